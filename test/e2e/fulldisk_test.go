package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/testenv"
)

// small puts the engine's data on a file system of its own with so many MB. It
// is mounted for the engine alone.
func (e *engine) small(mb int, mkfsOptions ...string) {
	e.t.Helper()
	e.disk(mb, "mkfs.ext4", append([]string{"-F", "-m", "0"}, mkfsOptions...)...)
}

// disk is small with a file system of any kind.
func (e *engine) disk(mb int, mkfs string, options ...string) {
	e.t.Helper()
	img := filepath.Join(e.dir, "disk")
	f, err := os.Create(img)
	if err != nil {
		e.t.Fatal(err)
	}
	f.Truncate(int64(mb) << 20)
	f.Close()
	if out, err := exec.Command(testenv.NeedProgram(e.t, mkfs), append(options, "-q", img)...).CombinedOutput(); err != nil {
		e.t.Fatalf("%s: %v\n%s", mkfs, err, out)
	}
	data := filepath.Join(e.dir, "data")
	os.Mkdir(data, 0o700)
	e.wrap = []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", `mount -o loop "$1" "$2" && shift 2 && exec "$@"`, "sh", img, data}
}

// A full disk fails what needs room, and nothing else: the engine answers, says
// what is the matter, and works on as soon as there is room.
func TestFullDisk(t *testing.T) {
	e := prepareEngine(t)
	e.small(64)
	e.start()
	e.busybox()
	before := state(e)

	e.do("run", "-d", "--name", "old", "busybox", "sleep", "10000")
	// A container fills the disk: it hears of it, and is there with its status.
	e.refuse(1, nil, "run", "--name", "filler", "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1M")

	dir := t.TempDir()
	write(t, dir, map[string]string{"Dockerfile": "FROM busybox\nRUN dd if=/dev/zero of=/b bs=1M count=100\n"})
	e.refuse(1, nil, "build", "-q", dir)
	r := e.tryIn(strings.NewReader(strings.Repeat("x", 1<<20)), "exec", "-i", "old", "sh", "-c", "cat >/more")
	if r.code == 0 {
		t.Error("a file of 1 MB fits on a full disk")
	}
	tarball := string(busyboxTar(t))
	if r := e.tryIn(strings.NewReader(tarball), "import", "-", "again"); r.code == 0 || !strings.Contains(r.err, "no space left") || !strings.Contains(r.err, "system prune") {
		t.Errorf("import on a full disk: exit %d, %s", r.code, r.err)
	}
	// What needs no room works.
	if got := e.do("exec", "old", "echo", "alive"); got != "alive" {
		t.Errorf("exec says %q", got)
	}
	e.do("ps", "-a")
	e.do("inspect", "filler")
	// So does what makes room, which is there at once.
	e.do("rm", "filler")
	equal(t, e.do("run", "--rm", "busybox", "echo", "room"), "room")
	equal(t, e.do("run", "--rm", "busybox", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=8 2>/dev/null && echo room"), "room")
	if r := e.tryIn(strings.NewReader(tarball), "import", "-", "again"); r.code != 0 {
		t.Errorf("import with room: %s", r.err)
	}
	e.do("rmi", "again")
	e.do("rm", "-f", "old")
	equal(t, state(e), before)
}

// Room that others have taken: creating, starting, stopping and removing.
func TestDiskFullOfOthers(t *testing.T) {
	e := prepareEngine(t)
	e.small(48)
	e.start()
	e.busybox()
	e.do("volume", "create", "vol")
	e.do("run", "-d", "--name", "old", "busybox", "sh", "-c", "while :; do echo 0123456789012345678901234567890123456789; done")
	if r := e.try("run", "--name", "filler", "-v", "vol:/v", "busybox", "sh", "-c", "dd if=/dev/zero of=/v/a bs=64k; dd if=/dev/zero of=/v/b bs=512; exit 0"); r.code != 0 {
		t.Logf("filling: exit %d %s", r.code, r.err)
	}
	// Not one command hangs or takes the engine down, whatever fits.
	for _, args := range [][]string{
		{"create", "--name", "new", "busybox", "true"}, {"start", "new"}, {"run", "--rm", "busybox", "true"},
		{"tag", "busybox", "other"}, {"network", "create", "n"}, {"rename", "old", "older"}, {"rename", "older", "old"},
	} {
		if r := e.try(args...); r.code != 0 && !strings.Contains(r.err, "no space left") && !strings.Contains(r.err, "No such container: new") {
			t.Errorf("%v: exit %d: %s", args, r.code, r.err)
		}
	}
	e.do("ps", "-a")
	e.do("rm", "-f", "old", "filler")
	e.do("volume", "rm", "vol")
	if got := e.do("run", "--rm", "busybox", "echo", "room"); got != "room" {
		t.Errorf("with room: %q", got)
	}
	// A restart finds all in order.
	e.signal(9)
	e.start()
	if got := e.do("run", "--rm", "busybox", "echo", "again"); got != "again" {
		t.Errorf("after a restart: %q", got)
	}
}
