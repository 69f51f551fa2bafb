package monitor

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"

	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/ociruntime"
	"github.com/onggi/onggi/internal/testenv"
)

// rootfs makes a root with busybox as its shell.
func rootfs(t *testing.T) string {
	t.Helper()
	testenv.NeedRoot(t)
	data, err := os.ReadFile(testenv.Busybox(t))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, d := range []string{"bin", "proc", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"sh", "sleep", "cat", "stty", "true"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// container is a request for a real container that runs a script.
func (f *fixture) container(k Key, root string, terminal bool, script string) StartRequest {
	f.Helper()
	spec := &specs.Spec{
		Version: "1.3.0",
		Root:    &specs.Root{Path: root},
		Process: &specs.Process{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin"}, Cwd: "/", Terminal: terminal},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "mode=755"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
		},
		Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: "pid"}, {Type: "mount"}, {Type: "uts"}, {Type: "ipc"}, {Type: "network"}}},
	}
	p, files, err := ociruntime.Compile(spec, ociruntime.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		for _, x := range files {
			x.Close()
		}
	})
	return StartRequest{Key: k, Program: p, Files: files, Terminal: terminal, Log: f.spec(k)}
}

// Containers, with terminals and without, go on through every death.
func TestContainersOutliveEveryDeath(t *testing.T) {
	root := rootfs(t)
	const lines = 20000
	for _, d := range deaths {
		t.Run(d.name, func(t *testing.T) {
			f := realFixture(t)
			db, tty := Key{Container: "db"}, Key{Container: "tty"}
			f.start(f.container(web, root, false, counting(lines)))
			r := f.container(tty, root, true, "read x; stty size; echo you said $x; exit 3")
			r.OpenStdin, r.Width, r.Height = true, 80, 24
			f.start(r)
			s := f.start(f.container(db, root, false, "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.01; done"))
			for range 6 {
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				d.kill(f)
			}
			if x := f.exit(web); x.Code != 5 || x.Unknown {
				t.Errorf("exit %+v", x)
			}
			f.checkCounted(web, lines)
			if err := f.c.Resize(f.ctx, tty, 90, 30); err != nil {
				t.Error(err)
			}
			ours, theirs := pair(t)
			if err := f.c.Attach(f.ctx, tty, AttachSpec{Conn: theirs, Stdin: true, Stdout: true}); err != nil {
				t.Fatal(err)
			}
			theirs.Close()
			io.WriteString(ours, "hello\n")
			got, _ := io.ReadAll(ours)
			if want := "hello\r\n30 90\r\nyou said hello\r\n"; string(got) != want {
				t.Errorf("the terminal says %q, want %q", got, want)
			}
			if x := f.exit(tty); x.Code != 3 || x.Unknown {
				t.Errorf("exit %+v", x)
			}
			if err := f.c.Signal(f.ctx, db, 15); err != nil {
				t.Error(err)
			}
			if x := f.exit(db); x.Code != 4 || x.Unknown || x.PID != s.PID {
				t.Errorf("exit %+v", x)
			}
			if got := text(f.logged(db)); got != "up\nbye\n" {
				t.Errorf("log %q", got)
			}
		})
	}
}

// A storm of kills over starts and exits loses no exit.
func TestKillStorm(t *testing.T) {
	root := rootfs(t)
	f := realFixture(t)
	stop := make(chan struct{})
	stormed := make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				stormed <- n
				return
			case <-time.After(time.Duration(rand.IntN(60)) * time.Millisecond):
				deaths[n%3].kill(f)
				n++
			}
		}
	}()
	for i := range 150 {
		k := Key{Container: fmt.Sprint("c", i)}
		r := f.container(k, root, false, fmt.Sprintf("echo I am %d; exit %d", i, i%100))
		s := f.start(r)
		s.PidFD.Close()
		if x := f.exit(k); x.Code != i%100 || x.Unknown {
			t.Errorf("exit %+v", x)
		}
		if got, want := text(f.logged(k)), fmt.Sprintf("I am %d\n", i); got != want {
			t.Errorf("log %q, want %q", got, want)
		}
		f.ack(k)
	}
	close(stop)
	t.Logf("%d kills", <-stormed)
}
