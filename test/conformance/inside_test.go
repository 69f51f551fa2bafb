package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestProcess(t *testing.T) {
	b := open(t, "pwd; echo $A; id -u; id -g; id -G; umask; cat /proc/self/oom_score_adj; grep -E 'NoNewPrivs|CapBnd|CapEff|CapPrm|CapInh|CapAmb' /proc/self/status; hostname; ulimit -n; ulimit -H -n")
	p := b.spec.Process
	p.Cwd, p.Env = "/data", append(p.Env, "A=b c")
	p.User = specs.User{UID: 10, GID: 11, AdditionalGids: []uint32{12, 13}, Umask: ptr(uint32(0o027))}
	p.OOMScoreAdj = ptr(500)
	p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
	kill := []string{"CAP_KILL", "CAP_CHOWN"}
	p.Capabilities = &specs.LinuxCapabilities{Bounding: kill, Permitted: kill, Effective: kill[:1], Inheritable: kill[:1], Ambient: kill[:1]}
	want := []string{"/data", "b c", "10", "11", "11 12 13", "0027", "500", "CapInh:\t0000000000000020", "CapPrm:\t0000000000000020",
		"CapEff:\t0000000000000020", "CapBnd:\t0000000000000021", "CapAmb:\t0000000000000020", "NoNewPrivs:\t1", "box", "100", "200"}
	got := lines(b.run())
	for i := range max(len(got), len(want)) {
		if i >= len(got) || i >= len(want) || got[i] != want[i] {
			t.Fatalf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestDefaultDevices(t *testing.T) {
	b := open(t, `for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' /dev/$d; done
		for l in fd stdin stdout stderr ptmx; do echo $l $(readlink /dev/$l); done; echo x >/dev/null && echo written
		stat -f -c %T /dev/shm /dev/mqueue /dev/pts 2>/dev/null; ls /dev/pts`)
	got := b.run()
	for _, want := range []string{
		"/dev/null character special file 1:3 666", "/dev/zero character special file 1:5 666", "/dev/full character special file 1:7 666",
		"/dev/random character special file 1:8 666", "/dev/urandom character special file 1:9 666", "/dev/tty character special file 5:0 666",
		"fd /proc/self/fd", "stdin /proc/self/fd/0", "stdout /proc/self/fd/1", "stderr /proc/self/fd/2", "ptmx pts/ptmx", "written", "ptmx"} {
		if !has(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestDevices(t *testing.T) {
	b := open(t, "stat -c '%n %F %t:%T %a %u:%g' /dev/mine /dev/block /dev/pipe")
	mode := func(m os.FileMode) *os.FileMode { return &m }
	b.spec.Linux.Devices = []specs.LinuxDevice{
		{Path: "/dev/mine", Type: "c", Major: 10, Minor: 229, FileMode: mode(0o640), UID: ptr(uint32(3)), GID: ptr(uint32(4))},
		{Path: "/dev/block", Type: "b", Major: 8, Minor: 0, FileMode: mode(0o600)},
		{Path: "/dev/pipe", Type: "p", FileMode: mode(0o644)},
	}
	want := "/dev/mine character special file a:e5 640 3:4\n/dev/block block special file 8:0 600 0:0\n/dev/pipe fifo 0:0 644 0:0"
	if got := b.run(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestDeviceRules(t *testing.T) {
	try := func(rules ...specs.LinuxDeviceCgroup) string {
		b := open(t, "mknod /data/zero c 1 5; mknod /data/kmsg c 1 11; (true </data/zero) 2>/dev/null && echo zero; (true </data/kmsg) 2>/dev/null && echo kmsg; true")
		b.spec.Process.Capabilities.Effective = append(b.spec.Process.Capabilities.Effective, "CAP_MKNOD", "CAP_SYSLOG")
		b.spec.Process.Capabilities.Permitted = b.spec.Process.Capabilities.Effective
		b.spec.Process.Capabilities.Bounding = b.spec.Process.Capabilities.Effective
		b.spec.Linux.Resources.Devices = rules
		return b.run()
	}
	if got := try(specs.LinuxDeviceCgroup{Access: "rwm"}); got != "zero" {
		t.Errorf("the defaults: %q", got)
	}
	allow := specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(11)), Access: "r"}
	if got := try(specs.LinuxDeviceCgroup{Access: "rwm"}, allow); got != "zero\nkmsg" {
		t.Errorf("with kmsg allowed: %q", got)
	}
}

func TestMounts(t *testing.T) {
	b := open(t, "cat /proc/self/mountinfo; cat /data/file; touch /data/new 2>&1; ls -d /made/here; stat -c %a /made/here; cat /etc/one")
	src := t.TempDir()
	b.check(os.WriteFile(filepath.Join(src, "file"), []byte("content\n"), 0o644))
	b.spec.Mounts = append(b.spec.Mounts,
		specs.Mount{Destination: "/data", Type: "bind", Source: src, Options: []string{"rbind", "ro", "nosuid", "nodev", "noexec"}},
		specs.Mount{Destination: "/made/here", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=64k", "mode=1770", "noexec"}},
		specs.Mount{Destination: "/etc/one", Type: "bind", Source: filepath.Join(src, "file"), Options: []string{"bind", "ro"}})
	got := b.run()
	for _, want := range []string{"content", "/made/here", "1770"} {
		if !has(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if !strings.Contains(got, "Read-only file system") {
		t.Errorf("a read-only mount was written to:\n%s", got)
	}
	for l := range strings.SplitSeq(got, "\n") {
		f := strings.Fields(l)
		if len(f) > 6 && f[4] == "/data" && !strings.HasPrefix(f[5], "ro,nosuid,nodev,noexec") {
			t.Errorf("options of /data: %s", l)
		}
	}
}

func TestReadOnlyRoot(t *testing.T) {
	for _, ro := range []bool{true, false} {
		b := open(t, "touch /new 2>/dev/null && echo written || echo refused")
		b.spec.Root.Readonly = ro
		want := map[bool]string{true: "refused", false: "written"}[ro]
		if got := b.run(); got != want {
			t.Errorf("readonly %v: %s", ro, got)
		}
	}
}

func TestMaskedAndReadOnlyPaths(t *testing.T) {
	b := open(t, `ls /secret | wc -l; cat /secret-file | wc -c; touch /fixed/x 2>&1; cat /fixed/file; mkdir -p /data/a`)
	b.check(os.MkdirAll(filepath.Join(b.rootfs, "secret"), 0o755))
	b.check(os.MkdirAll(filepath.Join(b.rootfs, "fixed"), 0o755))
	for _, f := range []string{"secret/file", "secret-file", "fixed/file"} {
		b.check(os.WriteFile(filepath.Join(b.rootfs, f), []byte("text\n"), 0o644))
	}
	b.spec.Linux.MaskedPaths = []string{"/secret", "/secret-file", "/proc/kcore", "/not/there"}
	b.spec.Linux.ReadonlyPaths = []string{"/fixed", "/proc/sys", "/not/there"}
	if got := b.run(); got != "0\n0\ntouch: /fixed/x: Read-only file system\ntext" {
		t.Errorf("got %q", got)
	}
}

// namespaces maps the types of the specification to the names in /proc.
var namespaces = map[specs.LinuxNamespaceType]string{"pid": "pid", "network": "net", "ipc": "ipc", "uts": "uts", "mount": "mnt", "cgroup": "cgroup"}

func TestNamespaces(t *testing.T) {
	script := "for n in pid net ipc uts mnt cgroup; do echo $n $(readlink /proc/self/ns/$n); done"
	own := func(name string) string {
		s, _ := os.Readlink("/proc/self/ns/" + name)
		return s
	}
	b := open(t, script)
	b.spec.Linux.Namespaces = nil
	for typ := range namespaces {
		b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: typ})
	}
	got := b.run()
	for _, n := range namespaces {
		if has(got, n+" "+own(n)) {
			t.Errorf("%s is the host's", n)
		}
	}
	// Left out means the caller's; a path means that one.
	keeper := open(t, "touch /data/ready; sleep 100")
	keeper.up()
	keeper.exists("data/ready")
	pid := keeper.state().Pid
	for typ, name := range namespaces {
		if typ == "mount" {
			continue
		}
		without := func(b *box) {
			var rest []specs.LinuxNamespace
			for _, n := range b.spec.Linux.Namespaces {
				if n.Type != typ {
					rest = append(rest, n)
				}
			}
			b.spec.Linux.Namespaces = rest
			if typ == "uts" {
				b.spec.Hostname = ""
			}
		}
		b := open(t, script)
		without(b)
		if typ == "network" || typ == "pid" {
			// sysfs and proc of a foreign namespace need more than a container has.
			b.spec.Mounts = b.spec.Mounts[:5]
		}
		if got := b.run(); !has(got, name+" "+own(name)) {
			t.Errorf("without %s:\n%s", typ, got)
		}
		b = open(t, script)
		without(b)
		p := fmt.Sprintf("/proc/%d/ns/%s", pid, name)
		b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: typ, Path: p})
		want, _ := os.Readlink(p)
		if got := b.run(); !has(got, name+" "+want) {
			t.Errorf("%s by path: want %s in\n%s", typ, want, got)
		}
	}
	b = open(t, "true")
	b.spec.Linux.Namespaces[0].Path = "/proc/self/ns/net" // of another type
	b.refused()
}

func TestUserNamespace(t *testing.T) {
	b := open(t, "cat /proc/self/uid_map /proc/self/gid_map; id -u; stat -c %u /data")
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
	b.spec.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 1000}}
	b.spec.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 2000}}
	b.check(os.Chown(filepath.Join(b.rootfs, "data"), 100005, 200005))
	// The way to the bundle must be open to the mapped user.
	for p := b.rootfs; len(p) > len(os.TempDir()); p = filepath.Dir(p) {
		b.check(os.Chmod(p, 0o755))
	}
	got := strings.Fields(b.run())
	want := strings.Fields("0 100000 1000 0 200000 2000 0 5")
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSysctl(t *testing.T) {
	b := open(t, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shm_rmid_forced")
	b.spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1"}
	if got := b.run(); got != "1\n1" {
		t.Errorf("got %q", got)
	}
}

func TestRootfsPropagation(t *testing.T) {
	for prop, want := range map[string]string{"private": "", "rprivate": "", "slave": "master:", "unbindable": "unbindable", "shared": "shared:"} {
		if prop == "unbindable" {
			better(t, "runc binds the root after making it unbindable")
		}
		b := open(t, "cat /proc/self/mountinfo")
		b.spec.Linux.RootfsPropagation = prop
		got := ""
		for l := range strings.SplitSeq(b.run(), "\n") {
			f := strings.Fields(l)
			if len(f) > 7 && f[4] == "/" {
				got = strings.Join(f[6:], " ")
			}
		}
		got, _, _ = strings.Cut(got, "- ")
		switch {
		case prop == "slave": // only where the host's mount is shared
			if strings.Contains(got, "shared:") {
				t.Errorf("%s: %q", prop, got)
			}
		case want == "" && got != "", want != "" && !strings.Contains(got, want):
			t.Errorf("%s: %q", prop, got)
		}
	}
}

func TestSeccomp(t *testing.T) {
	b := open(t, "pwd; mkdir /data/x 2>&1; mkdir /data/x 2>&1; true")
	b.spec.Linux.Seccomp = &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(28))}},
	}
	if got := b.run(); !strings.Contains(got, "No space left") {
		t.Errorf("got %q", got)
	}
	b = open(t, "true; mkdir /data/x; echo alive")
	b.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActKillProcess}}}
	b.spec.Process.Args = []string{"mkdir", "/data/x"}
	b.save()
	if r := b.call("run", b.id); r.code != 159 { // SIGSYS
		t.Errorf("got %v", r)
	}
}

func TestTerminal(t *testing.T) {
	b := open(t, "tty; stat -c %F /dev/console; test -t 0 && test -t 1 && echo both")
	b.spec.Process.Terminal = true
	b.save()
	// A terminal needs someone to hand it to.
	b.bad("create", "--bundle", b.bundle, b.id)
	b.bad("state", b.id)
}

func TestNoDescriptorsLeakIn(t *testing.T) {
	b := open(t, "ls -l /proc/self/fd")
	got := b.run()
	for _, l := range lines(got) {
		f := strings.Fields(l)
		if len(f) > 3 && strings.Contains(l, "->") {
			if n := f[len(f)-3]; n > "3" { // 3 is of ls itself
				t.Errorf("descriptor %s", l)
			}
		}
	}
}
