package executor

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/solver/pb"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
)

func files(m map[string]string) userFiles {
	return func(p string) (io.ReadCloser, error) {
		if s, ok := m[p]; ok {
			return io.NopCloser(strings.NewReader(s)), nil
		}
		return nil, fs.ErrNotExist
	}
}

func TestLookUpUser(t *testing.T) {
	db := files(map[string]string{
		"/etc/passwd": "# comment\nroot:x:0:0:root:/root:/bin/sh\napp:x:1000:1001:::\nbroken\n",
		"/etc/group":  "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nextra:x:12:app\n",
	})
	for _, c := range []struct {
		in   string
		open userFiles
		uid  uint32
		gids []uint32 // the first is the primary one
		err  string
	}{
		{"", db, 0, []uint32{0, 10}, ""},
		{"app", db, 1000, []uint32{1001, 10, 12}, ""},
		{"1000", db, 1000, []uint32{1001, 10, 12}, ""},
		{"app:wheel", db, 1000, []uint32{10}, ""},
		{"app:77", db, 1000, []uint32{77}, ""},
		{"55:66", db, 55, []uint32{66}, ""},
		{"55", db, 55, []uint32{0}, ""},
		{"0", files(nil), 0, []uint32{0}, ""},
		{"ghost", db, 0, nil, "unable to find user ghost"},
		{"app:ghosts", db, 0, nil, "unable to find group ghosts"},
		{"-1", db, 0, nil, "unable to find user -1"},
		{"4294967295", db, 0, nil, "unable to find user"},
	} {
		u, err := lookUpUser(c.in, c.open)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || errdefs.KindOf(err) != errdefs.Invalid {
				t.Errorf("%q: %v", c.in, err)
			}
			continue
		}
		if err != nil || u.UID != c.uid || u.GID != c.gids[0] || !slices.Equal(u.AdditionalGids, c.gids) {
			t.Errorf("%q: %+v, %v", c.in, u, err)
		}
	}
	huge := func(string) (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(lines{}, 1<<30)), nil }
	if _, err := lookUpUser("x", huge); err == nil {
		t.Error("a passwd file without end was read")
	}
}

// lines is a file of comments without end.
type lines struct{}

func (lines) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = "#\n"[i%2]
	}
	return len(p), nil
}

func FuzzLookUpUser(f *testing.F) {
	f.Add("a:b", "a:x:1:2:::\n", "b:x:3:a\n")
	f.Fuzz(func(t *testing.T, name, passwd, group string) {
		_, err := lookUpUser(name, files(map[string]string{"/etc/passwd": passwd, "/etc/group": group}))
		if err != nil && errdefs.KindOf(err) != errdefs.Invalid {
			t.Errorf("%v", err)
		}
	})
}

func TestSpec(t *testing.T) {
	m := executor.Meta{Args: []string{"sh"}, Cwd: "w", ExtraHosts: []executor.HostIP{{Host: "h", IP: net.IPv4(1, 2, 3, 4)}}}
	seccomp := func(caps []string) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	}
	in := specInput{pids: 77, hosts: "/h", resolvConf: "/r", seccomp: seccomp,
		mounts: []specs.Mount{{Destination: "/dev/shm", Type: "tmpfs"}, {Destination: "/cache", Type: "bind"}}}
	s, err := specOf(m, in)
	if err != nil {
		t.Fatal(err)
	}
	if s.Process.Cwd != "/w" || s.Hostname != defaultHostname || s.Linux.Seccomp == nil || s.Process.NoNewPrivileges {
		t.Errorf("%+v", s.Process)
	}
	var dests []string
	for _, m := range s.Mounts {
		dests = append(dests, m.Destination)
	}
	want := []string{"/proc", "/dev", "/dev/pts", "/dev/mqueue", "/sys", "/sys/fs/cgroup", "/etc/resolv.conf", "/etc/hosts", "/dev/shm", "/cache"}
	if !slices.Equal(dests, want) {
		t.Errorf("mounts %v", dests)
	}
	if *s.Linux.Resources.Pids.Limit != 77 {
		t.Error("no limit of processes")
	}
	if !strings.Contains(string(hostsFile(m)), "1.2.3.4\th\n") {
		t.Errorf("hosts: %s", hostsFile(m))
	}

	m.SecurityMode, m.NetMode = pb.SecurityMode_INSECURE, pb.NetMode_HOST
	s, err = specOf(m, in)
	if err != nil {
		t.Fatal(err)
	}
	if s.Linux.Seccomp != nil || s.Linux.MaskedPaths != nil || !slices.Contains(s.Process.Capabilities.Effective, "CAP_SYS_ADMIN") {
		t.Error("an insecure step is confined")
	}
	for _, n := range s.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			t.Error("network=host has a network namespace")
		}
	}
	if _, err := specOf(executor.Meta{}, in); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("no command: %v", err)
	}
	var e *errdefs.Error
	if _, err := specOf(executor.Meta{Args: []string{"x"}, SecurityMode: 9}, in); !errors.As(err, &e) {
		t.Errorf("unknown mode: %v", err)
	}
}

func TestHome(t *testing.T) {
	passwd := func(string) (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader("root:x:0:0::/root:/bin/sh\nu:x:5:5::/home/u:\nnone:x:6:6:::\n")), nil
	}
	for uid, want := range map[uint32]string{0: "/root", 5: "/home/u", 6: "/", 7: "/"} {
		if got := homeOf(uid, passwd); got != want {
			t.Errorf("user %d: %q, want %q", uid, got, want)
		}
	}
	if env := withHome([]string{"A=1"}, "/x"); len(env) != 2 || env[1] != "HOME=/x" {
		t.Errorf("%v", env)
	}
	if env := withHome([]string{"HOME=/mine"}, "/x"); len(env) != 1 {
		t.Errorf("%v", env)
	}
}
