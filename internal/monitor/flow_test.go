package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/testenv"
)

// Clients that never read hold a process back once, for their patience, and
// never make the monitor grow.
func TestClientsThatDoNotRead(t *testing.T) {
	f := newFixture(t)
	const clients, lines = 100, 200000
	var attach []AttachSpec
	var idle []net.Conn
	for range clients {
		ours, theirs := pair(t)
		idle = append(idle, ours)
		attach = append(attach, AttachSpec{Conn: theirs, Stdout: true, Patience: 300 * time.Millisecond})
	}
	f.start(StartRequest{
		Key: web, Attach: attach,
		Program: shell(fmt.Sprintf(`i=0; while [ $i -lt %d ]; do i=$((i+1)); echo o$i; done`, lines)),
	})
	for _, a := range attach {
		a.Conn.Close()
	}
	f.exit(web)
	f.checkStream(web, "stdout", "o", lines)
	_, worker := f.pids()
	if kb := rss(t, worker, "VmHWM"); kb > 40<<10 {
		t.Errorf("the worker needed %d KiB", kb)
	}
	for _, c := range idle {
		got, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(got), "o1\no2\n") {
			t.Fatalf("what was sent to a client: %d bytes, %v", len(got), err)
		}
	}
}

// A client that is slow but reads gets everything, at its own pace.
func TestSlowClientLosesNothing(t *testing.T) {
	f := newFixture(t)
	ours, theirs := pair(t)
	const lines = 100000
	f.start(StartRequest{
		Key: web, Attach: []AttachSpec{{Conn: theirs, Stdout: true, Mux: true}},
		Program: shell(fmt.Sprintf(`i=0; while [ $i -lt %d ]; do i=$((i+1)); echo o$i; done`, lines)),
	})
	theirs.Close()
	var got bytes.Buffer
	buf := make([]byte, 5000)
	for i := 0; ; i++ {
		n, err := ours.Read(buf)
		got.Write(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if i%20 == 0 {
			time.Sleep(2 * time.Millisecond)
		}
	}
	out, _ := demux(t, got.Bytes())
	if n := strings.Count(out, "\n"); n != lines || !strings.HasSuffix(out, fmt.Sprintf("o%d\n", lines)) {
		t.Errorf("%d lines", n)
	}
}

func TestLineWithoutEnd(t *testing.T) {
	f := newFixture(t)
	_, worker := f.pids()
	f.start(StartRequest{Key: web, Program: shell("head -c 300000000 /dev/zero | tr '\\0' x"), Log: logs.Spec{Path: f.spec(web).Path, MaxSize: 1 << 20}})
	f.exit(web)
	if kb := rss(t, worker, "VmHWM"); kb > 40<<10 {
		t.Errorf("the worker needed %d KiB", kb)
	}
	entries := strings.Split(f.logged(web), "\n")
	if len(entries) < 3 { // the current file may have nothing but the end
		b, err := os.ReadFile(f.spec(web).Path + ".1")
		if err != nil {
			t.Fatal(err)
		}
		entries = strings.Split(string(b), "\n")
	}
	first := entries[0]
	if want := `{"log":"` + strings.Repeat("x", logs.MaxLine) + `","stream":"stdout","time":"`; !strings.HasPrefix(first, want) {
		t.Errorf("first entry %.50q… of %d bytes", first, len(first))
	}
}

// A writer that fills a pipe with the head of a line in it sleeps without telling.
func TestMuchAfterTheHeadOfALine(t *testing.T) {
	f := newFixture(t)
	ours, theirs := pair(t)
	const size = 300 << 10
	f.start(StartRequest{
		Key: web, Attach: []AttachSpec{{Conn: theirs, Stdout: true, Stdin: true}}, OpenStdin: true,
		Program: shell(fmt.Sprintf("printf head; read x; dd if=/dev/zero bs=%d count=1 2>/dev/null", size)),
	})
	theirs.Close()
	buf := make([]byte, 4)
	if _, err := io.ReadFull(ours, buf); err != nil || string(buf) != "head" {
		t.Fatalf("%q, %v", buf, err)
	}
	io.WriteString(ours, "go on\n")
	ours.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := io.Copy(io.Discard, ours); err != nil || n != size {
		t.Errorf("%d bytes of %d: %v", n, size, err)
	}
	f.exit(web)
}

func TestInputEndsWithItsClientOnlyIfOnce(t *testing.T) {
	for _, once := range []bool{false, true} {
		t.Run(fmt.Sprint("once=", once), func(t *testing.T) {
			f := newFixture(t)
			f.start(StartRequest{Key: web, Program: shell("cat; echo end"), OpenStdin: true, StdinOnce: once})
			for _, word := range []string{"one\n", "two\n"} {
				ours, theirs := pair(t)
				err := f.c.Attach(f.ctx, web, AttachSpec{Conn: theirs, Stdin: true})
				theirs.Close()
				if once && word == "two\n" {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(ours, word)
				ours.Close()
				f.within(5*time.Second, word, func() bool { return strings.Contains(text(f.loggedSoFar(web)), word) })
			}
			if !once {
				if strings.Contains(f.logged(web), "end") {
					t.Fatal("the input ended with its client")
				}
				if err := f.c.CloseStdin(f.ctx, web); err != nil {
					t.Fatal(err)
				}
			}
			f.exit(web)
			want := "one\ntwo\nend\n"
			if once {
				want = "one\nend\n"
			}
			if got := text(f.logged(web)); got != want {
				t.Errorf("log %q, want %q", got, want)
			}
		})
	}
}

func (f *fixture) loggedSoFar(k Key) string {
	b, _ := os.ReadFile(f.spec(k).Path)
	return string(b)
}

// More input than anybody takes waits with the client, not in the monitor.
func TestMuchInput(t *testing.T) {
	f := newFixture(t)
	ours, theirs := pair(t)
	f.start(StartRequest{
		Key: web, Program: shell("read go; sleep 0.1; wc -c"), OpenStdin: true, StdinOnce: true,
		Attach: []AttachSpec{{Conn: theirs, Stdin: true, Stdout: true}},
	})
	theirs.Close()
	const size = 20 << 20
	go func() {
		io.WriteString(ours, "go\n")
		ours.Write(make([]byte, size))
		ours.(*net.UnixConn).CloseWrite()
	}()
	b, err := io.ReadAll(ours)
	if got := strings.TrimSpace(string(b)); err != nil || got == "" {
		t.Fatalf("got %q, %v", got, err)
	} else if n := 0; true {
		fmt.Sscan(got, &n)
		// The shell's read may have taken some of it.
		if n < size-8192 || n > size {
			t.Errorf("%d bytes arrived of %d", n, size)
		}
	}
}

// A client that sent its input and went away has sent all of it, however late
// the process reads.
func TestInputOfAClientThatIsGone(t *testing.T) {
	for _, output := range []bool{false, true} {
		t.Run(fmt.Sprint("output=", output), func(t *testing.T) {
			f := newFixture(t)
			ours, theirs := pair(t)
			gone := filepath.Join(t.TempDir(), "gone")
			const size = 150 << 10 // more than a pipe holds, less than pipe and socket do
			f.start(StartRequest{
				Key: web, Program: shell("while [ ! -e " + gone + " ]; do sleep 0.01; done; echo gone; wc -c"), OpenStdin: true, StdinOnce: true,
				Attach: []AttachSpec{{Conn: theirs, Stdin: true, Stdout: output}}, Log: f.spec(web),
			})
			theirs.Close()
			if _, err := ours.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			ours.Close()
			if err := os.WriteFile(gone, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			f.exit(web)
			if got, want := text(f.logged(web)), fmt.Sprintf("gone\n%d\n", size); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// Others hold the output open after the process has exited.
// A client may go away while its container is started: the engine has closed the
// connection then, and its number may be another file's.
func TestClientThatWentBeforeTheStart(t *testing.T) {
	f := newFixture(t)
	_, theirs := pair(t)
	theirs.Close()
	f.start(StartRequest{Key: web, Program: shell("cat; echo done"), OpenStdin: true, StdinOnce: true,
		Attach: []AttachSpec{{Conn: theirs, Stdin: true, Stdout: true}}})
	if err := f.c.Attach(f.ctx, web, AttachSpec{Conn: theirs, Stdout: true}); err != nil && errdefs.KindOf(err) == errdefs.Internal {
		t.Error(err)
	}
	if ev := f.exit(web); ev.Code != 0 {
		t.Errorf("%+v", ev)
	}
	// What cannot be sent is not waited for.
	l, err := f.c.current(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.ask(f.ctx, opAttach, nil, -1); !errors.Is(err, syscall.EBADF) {
		t.Errorf("a request with a descriptor that is none: %v", err)
	}
}

func TestStraysDoNotHoldTheExit(t *testing.T) {
	f := newFixture(t)
	ours, theirs := pair(t)
	k := Key{Container: "web", Exec: "e"}
	begin := time.Now()
	f.start(StartRequest{
		Key: k, Log: logs.Spec{Driver: logs.None}, Attach: []AttachSpec{{Conn: theirs, Stdout: true}},
		Program: shell(`(sleep 0.1; echo late; sleep 4; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo $i; done; echo survived >` + f.logDir() + `/mark) & echo now; exit 3`),
	})
	theirs.Close()
	got, err := io.ReadAll(ours)
	if string(got) != "now\nlate\n" || err != nil {
		t.Errorf("got %q, %v", got, err)
	}
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("the client was held for %v", took)
	}
	if x := f.exit(k); x.Code != 3 {
		t.Errorf("exit %+v", x)
	}
	f.ack(k)
	f.within(15*time.Second, "the stray to write all of its output", func() bool {
		_, err := os.Stat(filepath.Join(f.logDir(), "mark"))
		return err == nil
	})
}

func TestFullDisk(t *testing.T) {
	testenv.NeedRoot(t)
	f := newFixture(t)
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	spec := logs.Spec{Path: filepath.Join(dir, "log"), MaxSize: -1}
	s := f.start(StartRequest{Key: web, Log: spec, Program: shell(`i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo o$i; done; while ! [ -e ` + dir + `/more ]; do sleep 0.01; done; echo done`)})
	f.within(10*time.Second, "the process to get past the full disk", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", s.PID, s.PID))
		return len(b) > 0 // it sleeps
	})
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size=1m"); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(dir, "more"), nil, 0o600)
	f.exit(web)
	b, _ := os.ReadFile(spec.Path)
	got := text(string(b))
	if !strings.Contains(got, "lines could not be logged: no space left on device\n") || !strings.HasSuffix(got, "done\n") {
		t.Errorf("the log ends %q", got[max(0, len(got)-300):])
	}
	for line := range strings.Lines(string(b)) {
		if !strings.HasPrefix(line, `{"log":"`) || !strings.HasSuffix(line, "\"}\n") {
			t.Fatalf("torn line %q", line)
		}
	}
}

// Nothing grows with what has been.
func TestNothingLeaks(t *testing.T) {
	f := newFixture(t)
	_, worker := f.pids()
	count := func() int {
		d, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", worker))
		return len(d)
	}
	round := func() {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				k := Key{Container: "c", Exec: fmt.Sprint("e", i)}
				ours, theirs := pair(t)
				r := StartRequest{Key: k, Program: shell("cat; echo x"), OpenStdin: true, StdinOnce: true, Log: f.spec(k)}
				r.Attach = []AttachSpec{{Conn: theirs, Stdin: true, Stdout: true, Stderr: true}}
				if i%4 == 3 {
					r.Program = program("/no/such/program")
				}
				if i%4 == 2 {
					r.Program.Terminal, r.Terminal = true, true
					r.Program.Code = shell("echo x").Code
				}
				s, err := f.c.Start(f.ctx, r)
				theirs.Close()
				if i%2 == 0 {
					ours.(*net.UnixConn).CloseWrite()
					io.ReadAll(ours)
				}
				ours.Close()
				if err == nil {
					s.PidFD.Close()
					f.exit(k)
					f.ack(k)
				}
			})
		}
		wg.Wait()
	}
	settled := func() (n int) {
		last := -1
		f.within(10*time.Second, "the worker to settle", func() bool {
			n = count()
			same := n == last
			last = n
			time.Sleep(20 * time.Millisecond)
			return same
		})
		return n
	}
	for range 5 {
		round()
	}
	before := settled()
	for range 30 {
		round()
	}
	if after := settled(); after > before+2 {
		d, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", worker))
		for _, x := range d {
			l, _ := os.Readlink(x)
			t.Log(x, l)
		}
		t.Errorf("%d descriptors, and later %d", before, after)
	}
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	for name := range f.c.kept {
		if !strings.HasPrefix(name, "#") {
			t.Errorf("the client keeps %s", name)
		}
	}
}

// What is not our language ends the connection, and nothing else.
func TestMalformedMessages(t *testing.T) {
	f := newFixture(t)
	for _, p := range [][]byte{
		{}, {0}, {wireVersion}, {wireVersion, opStart}, {9, opList, 1}, {wireVersion, 0, 1}, {wireVersion, 200, 1}, {wireVersion, opList, 0},
		{wireVersion, opStart, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1}, {wireVersion, opList, 1, 1}, {wireVersion, opReply, 1},
		{wireVersion, opStart | inFile, 1, 4}, {wireVersion, opHello, 1}, bytes.Repeat([]byte{wireVersion}, maxPacket+1),
	} {
		c, err := linux.DialPacket(filepath.Join(f.root, socketName))
		if err != nil {
			t.Fatal(err)
		}
		c.Send(p, 0)
		c.Close()
	}
	if _, err := f.c.List(f.ctx); err != nil {
		t.Error(err)
	}
	if err := f.c.Resize(f.ctx, web, 1, 1); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("resize of nothing: %v", err)
	}
}

// A request too large for a packet travels in a file.
func TestLargeRequest(t *testing.T) {
	f := newFixture(t)
	arg := strings.Repeat("a", 100<<10)
	f.start(StartRequest{Key: web, Program: program("/bin/sh", "-c", `printf %s\\n "$1" | wc -c`, "sh", arg)})
	f.exit(web)
	if got := strings.TrimSpace(text(f.logged(web))); got != fmt.Sprint(len(arg)+1) {
		t.Errorf("got %q", got)
	}
}

// Who waits for the next monitor when the client is closed waits no more.
func TestCloseEndsWaiting(t *testing.T) {
	f := newFixture(t)
	c := f.c
	l, err := c.current(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- c.leave(f.ctx, l) }()
	c.Close()
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if err := c.Ack(f.ctx, web); !errors.Is(err, os.ErrClosed) {
		t.Errorf("asked after the end: %v", err)
	}
	f.connect()
}
