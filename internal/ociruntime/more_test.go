package ociruntime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
	"github.com/onggi/onggi/internal/testenv"
)

// inUserNamespace lets a container map its root to an unprivileged user.
func inUserNamespace(s *specs.Spec) {
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.GIDMappings = s.Linux.UIDMappings
	filepath.Walk(s.Root.Path, func(p string, fi os.FileInfo, err error) error {
		return os.Lchown(p, 100000, 100000)
	})
}

// kernel skips a test on older kernels.
func kernel(t *testing.T, major, minor int) {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var a, b int
	fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b)
	if a < major || a == major && b < minor {
		t.Skipf("Linux %d.%d is older than %d.%d", a, b, major, minor)
	}
}

func withoutNamespace(s *specs.Spec, t specs.LinuxNamespaceType) {
	var keep []specs.LinuxNamespace
	for _, n := range s.Linux.Namespaces {
		if n.Type != t {
			keep = append(keep, n)
		}
	}
	s.Linux.Namespaces = keep
}

// The host directories above a bind's source are closed to the container's
// root.
func TestBindsIntoAUserNamespace(t *testing.T) {
	if fs, _ := linux.FilesystemOf(t.TempDir()); fs == unix.TMPFS_MAGIC {
		kernel(t, 6, 3) // owners of a tmpfs cannot be mapped before
	}
	dir := filepath.Join(t.TempDir(), "closed", "data")
	os.MkdirAll(dir, 0o755)
	os.WriteFile(filepath.Join(dir, "f"), []byte("content\n"), 0o644)
	os.Chmod(filepath.Dir(dir), 0o700)
	out := shell(t, `cat /data/f; stat -c %u /data/f /mapped/f; (touch /data/x) 2>&1 | grep -o "Permission denied"; touch /mapped/mine; id -u`, func(s *specs.Spec, o *Options) {
		inUserNamespace(s)
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/data", Source: dir, Options: []string{"bind"}},
			specs.Mount{Destination: "/mapped", Source: dir, Options: []string{"bind", "idmap"}})
	})
	// Outside, the owner is root: unmapped without idmap, root with it.
	expect(t, out, "content\n65534\n0\nPermission denied\n0\n")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "mine"), &st); err != nil || st.Uid != 0 {
		t.Errorf("a file made through an idmapped mount belongs to %d, %v", st.Uid, err)
	}
}

func TestTimeAndUserNamespaceTogether(t *testing.T) {
	out := shell(t, "test $(cut -d. -f1 /proc/uptime) -gt 864000 && echo shifted", func(s *specs.Spec, o *Options) {
		inUserNamespace(s)
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "time"})
		s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 864000}}
	})
	expect(t, out, "shifted\n")
}

// Without a mount namespace of its own the container's mounts are nobody's.
func TestNoMountNamespace(t *testing.T) {
	kernel(t, 6, 15)
	before, _ := os.ReadFile("/proc/self/mountinfo")
	out := shell(t, "ls /; hostname; echo ok > /dev/null; test -r /proc/self/stat && echo proc", func(s *specs.Spec, o *Options) {
		withoutNamespace(s, specs.MountNamespace)
		withoutNamespace(s, specs.CgroupNamespace)
		s.Linux.ReadonlyPaths = nil
	})
	if !strings.HasPrefix(out, "bin\ndev\netc\nproc\nroot\nsys\ntmp\njar\nproc\n") {
		t.Errorf("got %q", out)
	}
	after, _ := os.ReadFile("/proc/self/mountinfo")
	expect(t, string(after), string(before))
}

func TestTmpfsBeginsAsTheImagesDirectory(t *testing.T) {
	out := shell(t, `cat /up/a/f; readlink /up/l; stat -c '%a %u %A' /up /up/a /up/a/f /new /given | tr '\n' ';'; ls /new | wc -l`, func(s *specs.Spec, o *Options) {
		r := s.Root.Path
		os.MkdirAll(filepath.Join(r, "up/a"), 0o750)
		os.WriteFile(filepath.Join(r, "up/a/f"), []byte("text\n"), 0o640)
		os.Chmod(filepath.Join(r, "up/a/f"), 0o640|os.ModeSetuid)
		os.Symlink("a/f", filepath.Join(r, "up/l"))
		os.Chown(filepath.Join(r, "up/a"), 12, 13)
		os.Chmod(filepath.Join(r, "up"), 0o711)
		os.Mkdir(filepath.Join(r, "new"), 0o755)
		os.Chmod(filepath.Join(r, "new"), 0o777|os.ModeSticky)
		os.WriteFile(filepath.Join(r, "new/hidden"), nil, 0o644)
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "/up", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup", "size=1m", "nosuid", "ro"}},
			specs.Mount{Destination: "/new", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}},
			specs.Mount{Destination: "/given", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=700"}})
	})
	expect(t, out, "text\na/f\n711 0 drwx--x--x;750 12 drwxr-x---;4640 0 -rwSr-----;1777 0 drwxrwxrwt;700 0 drwx------;0\n")
}

// A link that leads nowhere is followed inside the root, and its target made,
// as with resolv.conf in images of Ubuntu.
func TestMountOnADanglingLink(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	os.WriteFile(file, []byte("nameserver\n"), 0o644)
	out := shell(t, "cat /etc/resolv.conf /run/systemd/resolve/stub; readlink /etc/resolv.conf", func(s *specs.Spec, o *Options) {
		os.Symlink("../run/systemd/resolve/stub", filepath.Join(s.Root.Path, "etc/resolv.conf"))
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/resolv.conf", Source: file, Options: []string{"bind"}})
	})
	expect(t, out, "nameserver\nnameserver\n../run/systemd/resolve/stub\n")
}

func TestSharedBindReachesTheHost(t *testing.T) {
	testenv.NeedRoot(t)
	// In a mount namespace of the test's own, with a shared mount in it.
	inPrivateMounts(t, func() {
		dir := t.TempDir()
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
		defer unix.Unmount(dir, unix.MNT_DETACH)
		must(t, unix.Mount("", dir, "", unix.MS_SHARED, ""))
		must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
		spec := baseSpec(rootfs(t), "sh", "-c", "mount -t tmpfs inner /shared/sub && echo done > /shared/sub/f")
		spec.Process.Capabilities.Bounding = append(spec.Process.Capabilities.Bounding, "CAP_SYS_ADMIN")
		spec.Process.Capabilities.Effective, spec.Process.Capabilities.Permitted = spec.Process.Capabilities.Bounding, spec.Process.Capabilities.Bounding
		spec.Linux.RootfsPropagation = "shared"
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/shared", Source: dir, Options: []string{"rbind", "rshared"}})
		_, code, err := run(t, spec, Options{})
		if err != nil || code != 0 {
			t.Fatalf("run: %d, %v", code, err)
		}
		if b, err := os.ReadFile(filepath.Join(dir, "sub/f")); err != nil || string(b) != "done\n" {
			t.Errorf("a mount of the container did not reach the host: %q, %v", b, err)
		}
		unix.Unmount(filepath.Join(dir, "sub"), unix.MNT_DETACH)
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// inPrivateMounts runs f on a thread with a mount namespace of its own.
func inPrivateMounts(t *testing.T, f func()) {
	t.Helper()
	done := make(chan bool)
	go func() {
		ok := false
		defer func() { done <- ok }()
		lockThread()
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		f()
		ok = true
	}()
	if !<-done {
		t.FailNow()
	}
}

// A filter that forbids what the set-up needs does not hinder it.
func TestSeccompIsTheLastAct(t *testing.T) {
	for _, nnp := range []bool{false, true} {
		t.Run(fmt.Sprint("no_new_privs=", nnp), func(t *testing.T) {
			out := shell(t, "id -u; grep -E 'Seccomp:|CapEff|CapPrm|NoNewPrivs' /proc/self/status | cut -f2 | tr '\n' ' '", func(s *specs.Spec, o *Options) {
				s.Process.NoNewPrivileges = nnp
				s.Process.User.UID = 1000
				s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{
					Names:  []string{"setresuid", "setresgid", "setgroups", "close_range", "recvfrom", "sendmsg", "keyctl", "mount_setattr", "pivot_root"},
					Action: specs.ActKillProcess}}}
			})
			want := "1000\n0000000000000000 0000000000000000 0 2 "
			if nnp {
				want = "1000\n0000000000000000 0000000000000000 1 2 "
			}
			expect(t, strings.ReplaceAll(out, "\n", "|"), strings.ReplaceAll(want, "\n", "|"))
		})
	}
}

func TestSeccompListenerReachesTheLauncher(t *testing.T) {
	testenv.NeedRoot(t)
	spec := baseSpec(rootfs(t), "sh", "-c", "mkdir /x; echo $?")
	spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/nowhere",
		Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActNotify}}}
	p, files, err := Compile(spec, Options{})
	must(t, err)
	r, w, _ := os.Pipe()
	proc, err := initproc.Start(p, files, initproc.Stdio{Stdout: w})
	must(t, err)
	w.Close()
	must(t, errors.Join(proc.WaitReady(), proc.Release(), proc.WaitExec()))
	if proc.Seccomp() == nil {
		t.Fatal("no listener came")
	}
	// Nobody answers once the listener is closed: the call gets ENOSYS.
	proc.Seccomp().Close()
	out, _ := io.ReadAll(r)
	unix.Wait4(proc.PID, nil, 0, nil)
	expect(t, string(out), "1\n")
}

func TestPreservedDescriptors(t *testing.T) {
	testenv.NeedRoot(t)
	var ends []*os.File
	for i := range 3 {
		r, w, err := os.Pipe()
		must(t, err)
		fmt.Fprintf(w, "pipe %d\n", i)
		w.Close()
		ends = append(ends, r)
	}
	spec := baseSpec(rootfs(t), "sh", "-c", "cat <&3; cat <&4; cat <&5; ls /proc/self/fd | wc -l")
	out, code, err := run(t, spec, Options{Preserve: ends})
	if err != nil || code != 0 {
		t.Fatalf("%d, %v", code, err)
	}
	expect(t, out, "pipe 0\npipe 1\npipe 2\n7\n")
	spec = baseSpec(rootfs(t), "/not-there")
	if _, _, err := run(t, spec, Options{Preserve: ends}); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a missing program with preserved descriptors: %v", err)
	}
}

// The user can open the streams that it was given, whoever made them.
func TestUserOwnsItsStreams(t *testing.T) {
	out := shell(t, "echo one > /dev/stdout; echo two > /proc/self/fd/2", func(s *specs.Spec, o *Options) { s.Process.User.UID = 1000 })
	expect(t, out, "one\ntwo\n")
}

func TestWorkingDirectory(t *testing.T) {
	out := shell(t, "pwd; stat -c %a .", func(s *specs.Spec, o *Options) { s.Process.Cwd = "/made/for/this" })
	expect(t, out, "/made/for/this\n755\n")
	out = shell(t, "pwd", func(s *specs.Spec, o *Options) {
		os.MkdirAll(filepath.Join(s.Root.Path, "closed/in"), 0o755)
		os.Chmod(filepath.Join(s.Root.Path, "closed"), 0o700)
		s.Process.Cwd, s.Process.User.UID = "/closed/in", 1000
	})
	expect(t, out, "/closed/in\n")
}

// Descriptors of the host are no way out (CVE-2024-21626).
func TestWorkingDirectoryOfADescriptor(t *testing.T) {
	testenv.NeedRoot(t)
	root := rootfs(t)
	for fd := range 24 {
		for _, cwd := range []string{fmt.Sprintf("/proc/self/fd/%d", fd), fmt.Sprintf("/proc/self/fd/%d/../../..", fd)} {
			spec := baseSpec(root, "sh", "-c", "ls -d bin dev etc proc >/dev/null 2>&1 || { pwd; ls; }")
			spec.Process.Cwd = cwd
			out, _, err := run(t, spec, Options{})
			if err == nil && out != "" {
				t.Errorf("%s leads to %q", cwd, out)
			}
		}
	}
}

// /dev and /proc of a hostile image: links, files, and devices that are not
// what they are called (CVE-2025-31133, 2025-52565, 2026-41579).
func TestHostileImages(t *testing.T) {
	testenv.NeedRoot(t)
	canary := filepath.Join(t.TempDir(), "canary")
	os.WriteFile(canary, []byte("canary\n"), 0o644)
	dir := filepath.Dir(canary)
	for name, prepare := range map[string]func(root string){
		"dev is a link out": func(r string) { os.RemoveAll(r + "/dev"); os.Symlink(dir, r+"/dev") },
		"dev is a file":     func(r string) { os.RemoveAll(r + "/dev"); os.WriteFile(r+"/dev", nil, 0o644) },
		"proc is a link":    func(r string) { os.RemoveAll(r + "/proc"); os.Symlink(dir, r+"/proc") },
		"sys is dots":       func(r string) { os.RemoveAll(r + "/sys"); os.Symlink("../../../../../..", r+"/sys") },
		"pts is a link": func(r string) {
			os.Symlink(dir, r+"/dev/pts")
			os.Symlink(dir, r+"/dev/shm")
		},
		"null is the canary": func(r string) { os.Symlink(canary, r+"/dev/null") },
	} {
		for _, tmpfsDev := range []bool{true, false} {
			spec := baseSpec(rootfs(t), "sh", "-c", "echo pwned > /dev/null; echo pwned > /dev/console; true")
			spec.Process.Terminal = true
			prepare(spec.Root.Path)
			if !tmpfsDev {
				spec.Mounts = append(spec.Mounts[:1:1], spec.Mounts[2:]...)
			}
			_, _, err := run(t, spec, Options{})
			t.Logf("%s, own /dev %v: %v", name, tmpfsDev, err)
			if b, err := os.ReadFile(canary); err != nil || string(b) != "canary\n" {
				t.Fatalf("%s: the canary says %q, %v", name, b, err)
			}
			if e, _ := os.ReadDir(dir); len(e) != 1 {
				t.Fatalf("%s: the host got %v", name, e)
			}
		}
	}
}

// What is inside cannot open onggi-init for writing (CVE-2019-5736).
func TestInitCannotBeOverwritten(t *testing.T) {
	out := shell(t, `(echo x > /proc/1/exe) 2>&1 | grep -c .; head -c 4 /proc/1/exe | tail -c 3`, func(s *specs.Spec, o *Options) {
		o.Init = true
		caps := []string{"CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE"}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	})
	if !strings.HasPrefix(out, "1\n") {
		t.Errorf("got %q", out)
	}
}

func TestOverlayWithManyLayersInOneMount(t *testing.T) {
	base := t.TempDir()
	var lower []string
	for i := range 20 {
		d := filepath.Join(base, fmt.Sprintf("a-directory-with-a-long-name-%02d", i))
		os.MkdirAll(d, 0o755)
		os.WriteFile(filepath.Join(d, fmt.Sprint("f", i)), nil, 0o644)
		lower = append(lower, d)
	}
	out := shell(t, "ls /o | wc -l; (touch /o/x) 2>&1 | grep -o Read-only", func(s *specs.Spec, o *Options) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/o", Type: "overlay", Source: "overlay", Options: []string{"lowerdir=" + strings.Join(lower, ":"), "ro"}})
	})
	expect(t, out, "20\nRead-only\n")
}

func TestRecursiveReadOnly(t *testing.T) {
	testenv.NeedRoot(t)
	inPrivateMounts(t, func() {
		dir := t.TempDir()
		must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, ""))
		must(t, os.Mkdir(filepath.Join(dir, "sub"), 0o755))
		must(t, unix.Mount("tmpfs", filepath.Join(dir, "sub"), "tmpfs", 0, ""))
		spec := baseSpec(rootfs(t), "sh", "-c", "(touch /a/sub/x) 2>&1 | grep -c Read-only; touch /b/sub/x && echo written")
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/a", Source: dir, Options: []string{"rbind", "rro"}},
			specs.Mount{Destination: "/b", Source: dir, Options: []string{"rbind", "ro"}})
		out, _, err := run(t, spec, Options{})
		must(t, err)
		expect(t, out, "1\nwritten\n")
	})
}
