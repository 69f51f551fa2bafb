package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// setupBootstrap makes base images without a registry: Debian with mmdebstrap,
// busybox from Debian's static build. The labels say what the image is, so that
// nobody takes it for the one on Docker Hub.
func setupBootstrap(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	mirror := f.String("mirror", "", "Debian mirror (default: that of this machine)")
	variant := f.String("variant", "minbase", "variant of mmdebstrap")
	include := f.StringSlice("include", []string{"ca-certificates"}, "further packages")
	return func(ctx context.Context, args []string) error {
		repo, tag := splitTag(args[0])
		if tag == "" {
			tag = "latest"
		}
		base := repo[strings.LastIndexByte(repo, '/')+1:]
		labels := []string{
			"LABEL io.onggi.bootstrap=" + base,
			"LABEL org.opencontainers.image.created=" + time.Now().UTC().Format(time.RFC3339),
			"LABEL org.opencontainers.image.vendor=Onggi",
		}
		switch base {
		case "debian":
			suite := strings.TrimSuffix(tag, "-slim")
			if suite == "latest" {
				suite = "bookworm"
			}
			if number, ok := map[string]string{"11": "bullseye", "12": "bookworm", "13": "trixie"}[suite]; ok {
				suite = number
			}
			labels = append(labels, `LABEL org.opencontainers.image.title="Debian `+suite+`, made by onggi image bootstrap from Debian packages"`)
			return e.bootstrapDebian(ctx, repo+":"+tag, suite, *variant, *mirror, *include, append(labels, `CMD ["bash"]`, "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
		case "busybox":
			labels = append(labels, `LABEL org.opencontainers.image.title="BusyBox, made by onggi image bootstrap from Debian's busybox-static"`)
			archive, err := busyboxTar()
			if err != nil {
				return err
			}
			return e.importTar(ctx, "-", bytes.NewReader(archive), repo+":"+tag, "made by onggi image bootstrap", "", append(labels, `CMD ["sh"]`, "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"))
		}
		return &hinted{fmt.Errorf("bootstrap %s: only debian and busybox can be made from packages", args[0]), "onggi image bootstrap debian:bookworm"}
	}
}

func (e *env) bootstrapDebian(ctx context.Context, name, suite, variant, mirror string, include, changes []string) error {
	path, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return &hinted{fmt.Errorf("bootstrap %s: mmdebstrap is not installed", name), "apt-get install mmdebstrap"}
	}
	args := []string{"--variant=" + variant, "--quiet", "--aptopt=Apt::Install-Recommends false", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright", "--customize-hook=rm -f \"$1/etc/resolv.conf\" \"$1/etc/hostname\""}
	if len(include) > 0 {
		args = append(args, "--include="+strings.Join(include, ","))
	}
	args = append(args, "--format=tar", suite, "-")
	if mirror != "" {
		args = append(args, mirror)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	var report bytes.Buffer
	cmd.Stderr = &report
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("bootstrap %s: %w", name, err)
	}
	// The engine must not keep half an archive as an image: the stream ends
	// with mmdebstrap's verdict.
	ierr := e.importTar(ctx, "-", &verdict{out, cmd}, name, "made by onggi image bootstrap from Debian packages", "", changes)
	if cmd.ProcessState == nil {
		cmd.Process.Kill()
		cmd.Wait()
	}
	if s := cmd.ProcessState; s != nil && !s.Success() && s.Exited() {
		tail := report.String()
		if len(tail) > 600 {
			tail = "…" + tail[len(tail)-600:]
		}
		return &hinted{fmt.Errorf("bootstrap %s: mmdebstrap ended with %d:\n%s", name, s.ExitCode(), strings.TrimSpace(tail)), "--mirror URL, where the mirror of this machine does not have the suite"}
	}
	return ierr
}

// verdict reads a program's output and ends with an error when the program
// did.
type verdict struct {
	io.Reader
	cmd *exec.Cmd
}

func (v *verdict) Read(p []byte) (int, error) {
	n, err := v.Reader.Read(p)
	if err == io.EOF {
		if werr := v.cmd.Wait(); werr != nil {
			err = fmt.Errorf("%s: %w", v.cmd.Path, werr)
		}
	}
	return n, err
}

// busyboxTar is a root file system of a static busybox with its applets.
func busyboxTar() ([]byte, error) {
	path := "/bin/busybox"
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, &hinted{errors.New("bootstrap busybox: /bin/busybox is not there"), "apt-get install busybox-static"}
	}
	list, err := exec.Command(path, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("bootstrap busybox: list its applets: %w", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range []string{"bin", "dev", "etc", "home", "proc", "root", "sbin", "sys", "tmp", "usr", "usr/bin", "usr/sbin", "var", "var/spool"} {
		mode := int64(0o755)
		if d == "tmp" {
			mode = 0o1777
		}
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: mode})
	}
	file := func(name string, mode int64, data []byte) {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data))})
		w.Write(data)
	}
	file("bin/busybox", 0o755, data)
	file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"))
	file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	for _, a := range strings.Fields(string(list)) {
		switch dir, name, ok := strings.Cut(a, "/"); {
		case a == "bin/busybox" || name == "busybox":
		case !ok:
		case dir == "bin":
			w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: a, Linkname: "busybox", Mode: 0o777})
		default:
			w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: a, Linkname: "/bin/busybox", Mode: 0o777})
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
