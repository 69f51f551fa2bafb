package ociruntime

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/ociruntime/initproc"
	"github.com/onggi/onggi/internal/testenv"
)

// rootfs makes a root with busybox and its applets.
func rootfs(t testing.TB) string {
	t.Helper()
	bb := testenv.Busybox(t)
	dir := filepath.Join(t.TempDir(), "rootfs")
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "etc", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(bb)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	list, err := exec.Command(bb, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range strings.Fields(string(list)) {
		if a != "busybox" {
			os.Symlink("busybox", filepath.Join(dir, "bin", a))
		}
	}
	return dir
}

func baseSpec(root string, args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETUID", "CAP_SETGID", "CAP_NET_BIND_SERVICE"}
	return &specs.Spec{
		Version: "1.3.0",
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{Args: args, Env: []string{"PATH=/bin", "HOME=/root"}, Cwd: "/", NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}},
		Hostname: "jar",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces:    []specs.LinuxNamespace{{Type: "pid"}, {Type: "network"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"}},
			MaskedPaths:   []string{"/proc/keys", "/proc/acpi", "/proc/scsi", "/sys/firmware", "/proc/not-there"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// run runs a container to its end.
func run(t testing.TB, spec *specs.Spec, o Options) (string, int, error) {
	t.Helper()
	p, files, err := Compile(spec, o)
	if err != nil {
		return "", 0, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	proc, err := initproc.Start(p, files, initproc.Stdio{Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		return "", 0, err
	}
	if err := errors.Join(proc.WaitReady()); err != nil {
		return "", 0, err
	}
	if c := proc.Console(); c != nil {
		r.Close()
		r = c
	}
	if err := proc.Release(); err != nil {
		t.Fatal(err)
	}
	if err := proc.WaitExec(); err != nil {
		return "", 0, err
	}
	defer proc.PidFD.Close()
	out, _ := io.ReadAll(r) // a terminal ends with EIO
	var ws unix.WaitStatus
	if _, err := unix.Wait4(proc.PID, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	return string(out), ws.ExitStatus(), nil
}

func shell(t *testing.T, script string, change func(*specs.Spec, *Options)) string {
	t.Helper()
	testenv.NeedRoot(t)
	spec := baseSpec(rootfs(t), "sh", "-c", script)
	var o Options
	if change != nil {
		change(spec, &o)
	}
	out, code, err := run(t, spec, o)
	if err != nil {
		t.Fatalf("run: %v", err)
	}
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
	return out
}

func expect(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestAContainer(t *testing.T) {
	out := shell(t, `echo $$ $(hostname) $(id -u); ls /; cat /proc/keys | wc -c; ls /proc/acpi /sys/firmware | grep -v : | tr -d '\n'; echo hi >/dev/null
		(echo x > /proc/sys/kernel/hostname) 2>&1 | grep -o 'Read-only'; readlink /proc/self/cwd; grep CapEff /proc/self/status; ls /proc/self/fd | wc -l; cat /proc/mounts | grep -c ' / '`, nil)
	expect(t, out, "1 jar 0\nbin\ndev\netc\nproc\nroot\nsys\ntmp\n0\nRead-only\n/\nCapEff:\t00000000000004e3\n4\n1\n")
}

func TestRootFromADetachedMount(t *testing.T) {
	out := shell(t, "ls / | tr '\n' ' '; awk '$2==\"/\"' /proc/mounts | wc -l", func(s *specs.Spec, o *Options) {
		fd, err := unix.OpenTree(unix.AT_FDCWD, s.Root.Path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			t.Fatal(err)
		}
		o.RootFS = os.NewFile(uintptr(fd), "root")
		s.Root.Path = ""
	})
	expect(t, out, "bin dev etc proc root sys tmp 1\n")
}

func TestUser(t *testing.T) {
	out := shell(t, "id -u; id -g; id -G; grep -E 'Cap(Eff|Prm|Inh|Amb)|NoNewPrivs' /proc/self/status | cut -f2 | tr '\n' ' '; umask; pwd", func(s *specs.Spec, o *Options) {
		mask := uint32(0o077)
		s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8}, Umask: &mask}
		s.Process.Cwd = "/tmp"
	})
	expect(t, out, "1000\n1001\n1001 7 8\n0000000000000000 0000000000000000 0000000000000000 0000000000000000 1 0077\n/tmp\n")
}

func TestTerminal(t *testing.T) {
	out := shell(t, "tty; stty size; echo hello >/dev/console; ls -l /dev/console | cut -c1", func(s *specs.Spec, o *Options) {
		s.Process.Terminal = true
		s.Process.ConsoleSize = &specs.Box{Height: 40, Width: 120}
	})
	expect(t, out, "/dev/pts/0\r\n40 120\r\nhello\r\nc\r\n")
}

func TestBindsAndTheirOptions(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "f"), []byte("content\n"), 0o644)
	out := shell(t, "cat /made/for/it/f /file; (touch /made/for/it/x) 2>&1 | grep -o Read-only; mount | grep -E 'for/it' | grep -o nosuid", func(s *specs.Spec, o *Options) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/made/for/it", Source: dir, Type: "bind", Options: []string{"rbind", "ro", "nosuid", "rprivate"}},
			specs.Mount{Destination: "/file", Source: filepath.Join(dir, "f"), Options: []string{"bind"}})
	})
	expect(t, out, "content\ncontent\nRead-only\nnosuid\n")
}

// Links in the image lead nowhere outside it (CVE-2021-30465, 2024-45310).
func TestMountTargetsStayInTheRoot(t *testing.T) {
	outside := t.TempDir()
	shell(t, "mkdir /in/x; ls /in", func(s *specs.Spec, o *Options) {
		os.Symlink(outside, filepath.Join(s.Root.Path, "link"))
		os.Symlink("/../../../../../../"+outside, filepath.Join(s.Root.Path, "in"))
		os.MkdirAll(filepath.Join(s.Root.Path, outside), 0o755)
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/link", Type: "tmpfs", Source: "tmpfs"})
	})
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("a container made %v on the host", entries)
	}
}

func TestReadOnlyRootAndSysctl(t *testing.T) {
	out := shell(t, "(touch /x) 2>&1 | grep -o Read-only; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax", func(s *specs.Spec, o *Options) {
		s.Root.Readonly = true
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.msgmax": "9000"}
	})
	expect(t, out, "Read-only\n0\n9000\n")
}

func TestUserNamespace(t *testing.T) {
	out := shell(t, "id -u; cat /proc/self/uid_map | tr -s ' '; touch /tmp/mine; ls -l /dev/null | cut -c1-10; echo x >/dev/null; hostname", func(s *specs.Spec, o *Options) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
		s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
		s.Linux.GIDMappings = s.Linux.UIDMappings
		for d := s.Root.Path; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
			os.Chmod(d, 0o755)
		}
		os.Chown(filepath.Join(s.Root.Path, "tmp"), 100000, 100000)
		os.Chown(s.Root.Path, 100000, 100000)
	})
	expect(t, out, "0\n 0 100000 65536\ncrw-rw-rw-\njar\n")
}

func TestTimeNamespace(t *testing.T) {
	out := shell(t, "test $(cut -d. -f1 /proc/uptime) -gt 864000 && echo shifted; echo $$", func(s *specs.Spec, o *Options) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "time"})
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 864000}, "monotonic": {Secs: 864000}}
	})
	expect(t, out, "shifted\n1\n")
}

func TestSeccompAndInit(t *testing.T) {
	out := shell(t, "(mkdir /x) 2>&1 | grep -o 'Operation not permitted'; cat /proc/1/comm; echo $$ | grep -vc '^1$'", func(s *specs.Spec, o *Options) {
		o.Init = true
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}}}
	})
	expect(t, out, "Operation not permitted\nonggi-init\n1\n")
}

func TestExecJoinsTheContainer(t *testing.T) {
	testenv.NeedRoot(t)
	spec := baseSpec(rootfs(t), "sleep", "1000")
	p, files, err := Compile(spec, Options{})
	if err != nil {
		t.Fatal(err)
	}
	proc, err := initproc.Start(p, files, initproc.Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(proc.WaitReady(), proc.Release(), proc.WaitExec()); err != nil {
		t.Fatal(err)
	}
	defer func() {
		unix.Kill(proc.PID, unix.SIGKILL)
		unix.Wait4(proc.PID, nil, 0, nil)
	}()
	p, files, err = CompileExec(&specs.Process{Args: []string{"sh", "-c", "hostname; pwd; cat /proc/1/comm; test $$ -gt 1 && echo inside; ls /proc/self/fd | wc -l; exit 3"}, Cwd: "/tmp", Env: []string{"PATH=/bin"},
		Capabilities: spec.Process.Capabilities}, spec, ExecOptions{PidFD: proc.PidFD})
	if err != nil {
		t.Fatal(err)
	}
	r, w, _ := os.Pipe()
	x, err := initproc.Start(p, files, initproc.Stdio{Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(x.WaitReady(), x.Release(), x.WaitExec()); err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(r)
	var ws unix.WaitStatus
	unix.Wait4(x.PID, &ws, 0, nil)
	expect(t, string(out), "jar\n/tmp\nsleep\ninside\n4\n")
	if ws.ExitStatus() != 3 {
		t.Errorf("status %v", ws)
	}
}

func TestErrorsNameTheStep(t *testing.T) {
	testenv.NeedRoot(t)
	root := rootfs(t)
	for name, c := range map[string]struct {
		change func(*specs.Spec)
		want   string
	}{
		"missing program": {func(s *specs.Spec) { s.Process.Args[0] = "nothing" }, `exec "nothing": no such file or directory`},
		"missing source": {func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Source: "/no/such", Options: []string{"bind"}})
		}, `mount "/no/such" on "/x": no such file or directory`},
		"cwd":     {func(s *specs.Spec) { s.Process.Cwd = "/bin/busybox" }, `go to the working directory "/bin/busybox": not a directory`},
		"sysctl":  {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"kernel.panic": "1"} }, "it would change the host"},
		"two":     {func(s *specs.Spec) { s.Linux.Sysctl = map[string]string{"net.x": "1\nkernel.panic=1"} }, "newline"},
		"ns type": {func(s *specs.Spec) { s.Linux.Namespaces[0].Type = "pud" }, `no namespace type "pud"`},
	} {
		s := baseSpec(root, "true")
		c.change(s)
		if _, _, err := run(t, s, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func BenchmarkRunTrue(b *testing.B) {
	spec := baseSpec(rootfs(b), "true")
	for b.Loop() {
		if _, _, err := run(b, spec, Options{}); err != nil {
			b.Fatal(err)
		}
	}
}
