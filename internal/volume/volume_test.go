package volume

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/testenv"
)

var ctx = context.Background()

func open(t *testing.T, dir string) *Service {
	t.Helper()
	db, err := metadb.Open(filepath.Join(dir, "meta"), metadb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	s, err := Open(filepath.Join(dir, "volumes"), db, events.New())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestLife(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	v, err := s.Create(ctx, CreateRequest{Name: "data", Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, CreateRequest{Name: "data"}); err != nil {
		t.Errorf("creating it again: %v", err)
	}
	if _, err := s.Create(ctx, CreateRequest{Name: "data", Options: map[string]string{"type": "tmpfs", "device": "tmpfs"}}); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("other options: %v", err)
	}
	for _, name := range []string{"../x", "a/b", "x", "-a", "a b"} {
		if _, err := s.Create(ctx, CreateRequest{Name: name}); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("name %q: %v", name, err)
		}
	}
	p, err := s.Mount(ctx, "data", "c1")
	if err != nil || p != v.Mountpoint {
		t.Fatal(p, err)
	}
	if err := s.Remove(ctx, "data", true); !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("removing one in use: %v", err)
	}
	if l, _ := s.List(map[string][]string{"dangling": {"true"}}); len(l) != 0 {
		t.Errorf("dangling: %v", l)
	}
	s.Unmount(ctx, "data", "c1")
	if l, _ := open2(t, s).List(map[string][]string{"label": {"a=b"}}); len(l) != 1 {
		t.Errorf("by label: %v", l)
	}
	if err := s.Remove(ctx, "data", false); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(p); !os.IsNotExist(err) {
		t.Error("the directory is left")
	}
	if err := s.Remove(ctx, "data", false); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("removing it again: %v", err)
	}
}

func open2(t *testing.T, s *Service) *Service {
	t.Helper()
	again, err := Open(s.dir, s.db, events.New())
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func TestPruneTakesAnonymousOnes(t *testing.T) {
	s := open(t, t.TempDir())
	s.Create(ctx, CreateRequest{Name: "named"})
	anon, err := s.Create(ctx, CreateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(anon.Mountpoint, "f"), make([]byte, 1000), 0o644)
	names, freed, err := s.Prune(ctx, PruneOptions{})
	if err != nil || len(names) != 1 || names[0] != anon.Name || freed != 1000 {
		t.Errorf("%v %d %v", names, freed, err)
	}
	if names, _, _ = s.Prune(ctx, PruneOptions{Filters: map[string][]string{"all": {"true"}}}); len(names) != 1 {
		t.Errorf("all: %v", names)
	}
}

func TestCopyUp(t *testing.T) {
	testenv.NeedRoot(t)
	s := open(t, t.TempDir())
	root := t.TempDir()
	os.MkdirAll(filepath.Join(root, "var/lib/app/sub"), 0o750)
	os.WriteFile(filepath.Join(root, "var/lib/app/sub/f"), []byte("content"), 0o640)
	os.Chown(filepath.Join(root, "var/lib/app"), 1000, 1001)
	os.Symlink("/var/lib/app", filepath.Join(root, "link"))
	r, err := os.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	v, _ := s.Create(ctx, CreateRequest{Name: "data"})
	if err := s.CopyUp(ctx, "data", r, "/link", ""); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(v.Mountpoint, "sub/f")); string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
	fi, _ := os.Stat(v.Mountpoint)
	if fi.Mode().Perm() != 0o750 {
		t.Errorf("mode of the volume: %v", fi.Mode())
	}
	os.WriteFile(filepath.Join(root, "var/lib/app/later"), nil, 0o644)
	if err := s.CopyUp(ctx, "data", r, "/var/lib/app", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(v.Mountpoint, "later")); err == nil {
		t.Error("a volume with content was filled again")
	}
	// A directory of it may be empty still.
	os.Mkdir(filepath.Join(v.Mountpoint, "empty"), 0o755)
	for _, into := range []string{"empty", "sub/f", "nothing"} {
		if err := s.CopyUp(ctx, "data", r, "/var/lib/app", into); err != nil {
			t.Errorf("into %s: %v", into, err)
		}
	}
	if data, err := os.ReadFile(filepath.Join(v.Mountpoint, "empty/sub/f")); string(data) != "content" {
		t.Errorf("in a directory of the volume: %q, %v", data, err)
	}
	if err := s.CopyUp(ctx, "data", r, "/nothing", ""); err != nil {
		t.Errorf("nothing to copy: %v", err)
	}
}

func TestOptionsAreMounted(t *testing.T) {
	testenv.NeedRoot(t)
	s := open(t, t.TempDir())
	v, err := s.Create(ctx, CreateRequest{Name: "ram", Options: map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m,nosuid"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mount(ctx, "ram", "c"); err != nil {
		t.Fatal(err)
	}
	if !isMount(v.Mountpoint) {
		t.Error("it is not mounted")
	}
	s.Unmount(ctx, "ram", "c")
	if isMount(v.Mountpoint) {
		t.Error("it is still mounted")
	}
	if _, err := s.Create(ctx, CreateRequest{Name: "odd", Options: map[string]string{"speed": "high"}}); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("unknown option: %v", err)
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct {
		options string
		flags   uintptr
		data    string
	}{
		{"", 0, ""}, {"rw,size=1m,mode=700", 0, "size=1m,mode=700"}, {"bind,ro,nodev", syscall.MS_BIND | syscall.MS_RDONLY | syscall.MS_NODEV, ""},
		{"noexec,addr=h,vers=4", syscall.MS_NOEXEC, "addr=h,vers=4"},
	} {
		if flags, data := mountFlags(c.options); flags != c.flags || data != c.data {
			t.Errorf("%q: %x %q", c.options, flags, data)
		}
	}
	for _, c := range []struct{ kind, device, data, want string }{
		{"nfs", "192.0.2.1:/export", "vers=4", "vers=4,addr=192.0.2.1"},
		{"nfs4", ":/export", "addr=192.0.2.2,ro", "ro,addr=192.0.2.2"},
		{"nfs", "[2001:db8::1]:/export", "", "addr=2001:db8::1"},
		{"cifs", "//192.0.2.3/share", "username=u,password=p", "username=u,password=p,addr=192.0.2.3"},
		{"tmpfs", "tmpfs", "size=1m", "size=1m"},
	} {
		if got, err := withAddress(ctx, c.kind, c.device, c.data); got != c.want || err != nil {
			t.Errorf("%s %s: %q, %v", c.kind, c.device, got, err)
		}
	}
	if s := hidden("username=u,password=secret,pass=x"); strings.Contains(s, "secret") || strings.Contains(s, "pass=x") {
		t.Error(s)
	}
	s := open(t, t.TempDir())
	for opts, kind := range map[string]errdefs.Kind{"size=many": errdefs.Invalid, "size=-1": errdefs.Invalid, "size=1m,type=tmpfs": errdefs.Invalid, "nonsense=1": errdefs.Invalid} {
		m := map[string]string{}
		for _, o := range strings.Split(opts, ",") {
			k, v, _ := strings.Cut(o, "=")
			m[k] = v
		}
		if _, err := s.Create(ctx, CreateRequest{Name: "x1", Options: m}); !errdefs.Is(err, kind) {
			t.Errorf("%s: %v", opts, err)
		}
	}
}

func TestMountsByOptions(t *testing.T) {
	testenv.NeedRoot(t)
	s := open(t, t.TempDir())
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "f"), []byte("bound"), 0o644)
	for name, o := range map[string]map[string]string{
		"bound": {"type": "none", "o": "bind,ro", "device": dir}, "tmp": {"type": "tmpfs", "device": "tmpfs", "o": "size=64k,mode=710"},
	} {
		if _, err := s.Create(ctx, CreateRequest{Name: name, Options: o}); err != nil {
			t.Fatal(err)
		}
		p, err := s.Mount(ctx, name, "one")
		if err != nil {
			t.Fatal(err)
		}
		s.Mount(ctx, name, "two")
		if err := s.Unmount(ctx, name, "one"); err != nil || !isMount(p) {
			t.Errorf("%s: unmounted while in use: %v", name, err)
		}
		err = os.WriteFile(filepath.Join(p, "new"), make([]byte, 100<<10), 0o644)
		if want := map[string]error{"bound": syscall.EROFS, "tmp": syscall.ENOSPC}[name]; !errors.Is(err, want) {
			t.Errorf("%s: writing too much, or at all: %v", name, err)
		}
		if err := s.Unmount(ctx, name, "two"); err != nil || isMount(p) {
			t.Errorf("%s: still mounted: %v", name, err)
		}
		if err := s.Remove(ctx, name, false); err != nil {
			t.Error(err)
		}
	}
	if data, _ := os.ReadFile(filepath.Join(dir, "f")); string(data) != "bound" {
		t.Error("removing a volume removed what was bound")
	}
	for _, o := range []map[string]string{{"type": "nosuchfs", "device": "x"}, {"type": "none", "o": "bind", "device": "/no/such/place"}} {
		if _, err := s.Create(ctx, CreateRequest{Name: "bad", Options: o}); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Mount(ctx, "bad", "one"); err == nil || !strings.Contains(err.Error(), o["device"]) || errdefs.KindOf(err) == errdefs.Internal {
			t.Errorf("%v: %v", o, err)
		}
		s.Remove(ctx, "bad", true)
	}
}

// quotaDisk mounts a file system of a kind, with quotas for projects or without.
func quotaDisk(t *testing.T, kind string, on bool) string {
	t.Helper()
	mkfs := testenv.NeedProgram(t, "mkfs."+kind)
	testenv.NeedRoot(t)
	file, dir := filepath.Join(t.TempDir(), "disk"), t.TempDir()
	if err := os.WriteFile(file, nil, 0o600); err != nil || os.Truncate(file, 320<<20) != nil { // xfs wants 300 MB
		t.Fatal(err)
	}
	args, opts := []string{"-q"}, "loop"
	if on {
		opts = "loop,prjquota"
		if kind == "ext4" {
			args = append(args, "-O", "project,quota", "-E", "quotatype=prjquota")
		}
	}
	if out, err := exec.Command(mkfs, append(args, file)...).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.%s: %s", kind, out)
	}
	if out, err := exec.Command("mount", "-t", kind, "-o", opts, file, dir).CombinedOutput(); err != nil && on {
		t.Skipf("the kernel has no quotas of %s (CONFIG_QFMT_V2, CONFIG_XFS_QUOTA): %s", kind, out)
	} else if err != nil {
		t.Fatalf("mount: %s", out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %s", out)
		}
	})
	return dir
}

// withoutResource calls f on a thread that may not exceed limits, as the kernel
// lets those with CAP_SYS_RESOURCE.
func withoutResource(t *testing.T, f func()) {
	t.Helper()
	const version, sysResource = 0x20080522, 24 // of linux/capability.h
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with us
		head := struct{ version, pid uint32 }{version, 0}
		var data [6]uint32 // effective, permitted, inheritable; twice
		_, _, e := syscall.RawSyscall(syscall.SYS_CAPGET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data)), 0)
		if e == 0 {
			data[0] &^= 1 << sysResource
			_, _, e = syscall.RawSyscall(syscall.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&data)), 0)
		}
		if e != 0 {
			done <- e
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestSize(t *testing.T) {
	for _, kind := range []string{"ext4", "xfs"} {
		t.Run(kind, func(t *testing.T) { limits(t, open(t, quotaDisk(t, kind, true))) })
	}
}

// limits shows that volumes on a file system with quotas have their size.
func limits(t *testing.T, s *Service) {
	for _, name := range []string{"one", "two"} {
		v, err := s.Create(ctx, CreateRequest{Name: name, Options: map[string]string{"size": "1m"}})
		if err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(v.Mountpoint, "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		size := 0
		withoutResource(t, func() {
			for err == nil && size < 2<<20 { // xfs takes nothing of what does not fit as a whole
				var n int
				n, err = f.Write(make([]byte, 64<<10))
				size += n
			}
		})
		if !errors.Is(err, syscall.EDQUOT) && !errors.Is(err, syscall.ENOSPC) || size > 1<<20 || size < 512<<10 {
			t.Errorf("%s: %v after %d bytes", name, err, size)
		}
	}
	if a, b := s.vols["one"].Project, s.vols["two"].Project; a == b {
		t.Errorf("both have the project %d", a)
	}
	again := open2(t, s)
	if v := again.vols["one"]; v.Project != s.vols["one"].Project || v.mounted() {
		t.Errorf("after a restart: %+v", v.record)
	}
	if err := s.Remove(ctx, "one", false); err != nil {
		t.Fatal(err)
	}
	v, err := s.Create(ctx, CreateRequest{Name: "three", Options: map[string]string{"size": "4m"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(v.Mountpoint, "f"), make([]byte, 2<<20), 0o644); err != nil {
		t.Errorf("the limit of one that is gone: %v", err)
	}
}

func TestSizeWithoutQuota(t *testing.T) {
	s := open(t, quotaDisk(t, "ext4", false))
	if _, err := s.Create(ctx, CreateRequest{Name: "one", Options: map[string]string{"size": "1m"}}); !errdefs.Is(err, errdefs.Unsupported) || !strings.Contains(err.Error(), "quota") {
		t.Errorf("%v", err)
	}
	if l, _ := s.List(nil); len(l) != 0 {
		t.Errorf("left: %v", l)
	}
}
