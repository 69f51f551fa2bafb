package volume

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/docker/go-units"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// firstProject begins the numbers that quotas of volumes have.
const firstProject = 0x6f670000

// limitLocked sets the limit of a new volume. Preconditions: s.mu is held.
func (s *Service) limitLocked(v *live, data string) error {
	if v.Options["size"] == "" {
		return nil
	}
	bytes, err := units.RAMInBytes(v.Options["size"])
	if err != nil {
		return err
	}
	dir, err := os.Open(data)
	if err != nil {
		return err
	}
	defer dir.Close()
	taken := map[uint32]bool{}
	for _, x := range s.vols {
		taken[x.Project] = true
	}
	id := uint32(firstProject)
	for used := true; used; id++ {
		if taken[id] {
			continue
		}
		if used, err = linux.ProjectUsed(dir, id); err != nil {
			return noQuota(err)
		}
		if !used {
			break
		}
	}
	if err := linux.LimitDirectory(dir, id, bytes); err != nil {
		return noQuota(err)
	}
	v.Project = id
	return nil
}

func noQuota(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "", "", "a size needs a quota: %w", err), "mount it with -o prjquota (xfs, or ext4 made with -O project,quota), or use --opt type=tmpfs --opt device=tmpfs --opt o=size=…")
	}
	return err
}

// unlimit takes a limit back; a directory that is gone has none.
func (s *Service) unlimit(v *live, data string) {
	if v.Project == 0 {
		return
	}
	if dir, err := os.Open(data); err == nil {
		linux.ForgetProject(dir, v.Project)
		dir.Close()
	}
}

// mountOptions mounts what the options type, device and o say.
func mountOptions(ctx context.Context, o map[string]string, target string) error {
	flags, data := mountFlags(o["o"])
	kind, device := o["type"], o["device"]
	if flags&syscall.MS_BIND != 0 || kind == "none" || kind == "bind" {
		kind, flags = "", flags|syscall.MS_BIND
	}
	data, err := withAddress(ctx, kind, device, data)
	if err == nil {
		err = linux.MountAt(device, target, kind, flags, data)
	}
	if err == nil && flags&syscall.MS_BIND != 0 && flags&^(syscall.MS_BIND|syscall.MS_REC) != 0 {
		// A bind takes its attributes in a second step.
		if err = linux.MountAt("", target, "", flags|syscall.MS_REMOUNT, ""); err != nil {
			linux.DetachMount(target)
		}
	}
	if err == nil {
		return nil
	}
	err = fmt.Errorf("failed to mount local volume: mount %s (type %q, options %q): %w", device, o["type"], hidden(o["o"]), err)
	switch {
	case errors.Is(err, syscall.ENODEV):
		return errdefs.WithHint(errdefs.New(errdefs.Unsupported, "", "", err), "the kernel has no file system "+kind+": modprobe "+kind)
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.EINVAL), errors.Is(err, syscall.ENOTDIR):
		return errdefs.New(errdefs.Invalid, "", "", err)
	}
	return errdefs.New(errdefs.Internal, "", "", err)
}

// withAddress adds the server's address to the options of a file system over the
// network: the kernel does not resolve names.
func withAddress(ctx context.Context, kind, device, data string) (string, error) {
	host := ""
	switch kind {
	case "nfs", "nfs4":
		host, _, _ = strings.Cut(device, ":")
		if rest, ok := strings.CutPrefix(device, "["); ok {
			host, _, _ = strings.Cut(rest, "]")
		}
	case "cifs", "smb3":
		host, _, _ = strings.Cut(strings.TrimPrefix(device, "//"), "/")
	default:
		return data, nil
	}
	var opts []string
	for _, o := range strings.Split(data, ",") {
		if v, ok := strings.CutPrefix(o, "addr="); ok {
			host = v
		} else if o != "" {
			opts = append(opts, o)
		}
	}
	a, err := netip.ParseAddr(host)
	if err != nil {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil || len(addrs) == 0 {
			return "", fmt.Errorf("the server's name %q: %w", host, err)
		}
		a = addrs[0]
	}
	return strings.Join(append(opts, "addr="+a.Unmap().String()), ","), nil
}

// hidden leaves passwords out of what is shown.
func hidden(options string) string {
	list := strings.Split(options, ",")
	for i, o := range list {
		if k, _, ok := strings.Cut(o, "="); ok && (strings.HasPrefix(k, "pass") || k == "credentials") {
			list[i] = k + "=********"
		}
	}
	return strings.Join(list, ",")
}

func mountFlags(options string) (flags uintptr, data string) {
	known := map[string]uintptr{"ro": syscall.MS_RDONLY, "nosuid": syscall.MS_NOSUID, "nodev": syscall.MS_NODEV, "noexec": syscall.MS_NOEXEC, "bind": syscall.MS_BIND,
		"rbind": syscall.MS_BIND | syscall.MS_REC, "noatime": syscall.MS_NOATIME, "nodiratime": syscall.MS_NODIRATIME, "relatime": syscall.MS_RELATIME,
		"strictatime": syscall.MS_STRICTATIME, "sync": syscall.MS_SYNCHRONOUS, "dirsync": syscall.MS_DIRSYNC, "mand": syscall.MS_MANDLOCK, "silent": syscall.MS_SILENT,
		"rw": 0, "suid": 0, "dev": 0, "exec": 0, "async": 0, "atime": 0, "defaults": 0, "": 0}
	var rest []string
	for _, o := range strings.Split(options, ",") {
		if f, ok := known[o]; ok {
			flags |= f
		} else {
			rest = append(rest, o)
		}
	}
	return flags, strings.Join(rest, ",")
}
