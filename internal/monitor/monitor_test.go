package monitor

import (
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

var web = Key{Container: "web"}

func TestStartLogExit(t *testing.T) {
	f := newFixture(t)
	before := time.Now()
	s := f.start(StartRequest{Key: web, Program: shell("echo out; echo err >&2; printf rest; exit 7")})
	x := f.exit(web)
	if x.Code != 7 || x.Signal != 0 || x.Unknown || x.PID != s.PID || x.At.Before(before) || x.At.After(time.Now()) {
		t.Errorf("exit %+v", x)
	}
	got := f.logged(web)
	for _, want := range []string{
		`{"log":"out\n","stream":"stdout","time":"`, `{"log":"err\n","stream":"stderr","time":"`, `{"log":"rest","stream":"stdout","time":"`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("log %q lacks %q", got, want)
		}
	}
	f.ack(web)
	all, err := f.c.List(f.ctx)
	if err != nil || len(all) != 0 {
		t.Errorf("after the acknowledgement %+v, %v", all, err)
	}
}

func TestSignalGivesStatus(t *testing.T) {
	f := newFixture(t)
	f.start(StartRequest{Key: web, Program: shell("exec sleep 100")})
	if err := f.c.Signal(f.ctx, web, 15); err != nil {
		t.Fatal(err)
	}
	if x := f.exit(web); x.Code != 143 || x.Signal != 15 {
		t.Errorf("exit %+v", x)
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	f := newFixture(t)
	for _, name := range []string{"broken", "/no/such/program"} {
		_, err := f.c.Start(f.ctx, StartRequest{Key: web, Program: program(name), Log: f.spec(web)})
		if _, ok := err.(*initproc.StepError); !ok {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if all, _ := f.c.List(f.ctx); len(all) != 0 {
		t.Errorf("left: %+v", all)
	}
	f.start(StartRequest{Key: web, Program: shell("exit 0")})
	f.exit(web)
}

func TestKeyInUse(t *testing.T) {
	f := newFixture(t)
	f.start(StartRequest{Key: web, Program: shell("exec sleep 100")})
	_, err := f.c.Start(f.ctx, StartRequest{Key: web, Program: shell("true"), Log: f.spec(web)})
	if !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("second start: %v", err)
	}
	if _, err := f.c.Start(f.ctx, StartRequest{Key: Key{Container: "../x"}, Program: shell("true"), Log: f.spec(web)}); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("bad key: %v", err)
	}
}

func TestHoldAndRelease(t *testing.T) {
	f := newFixture(t)
	f.start(StartRequest{Key: web, Program: shell("echo ran"), Hold: true})
	all, err := f.c.List(f.ctx)
	if err != nil || len(all) != 1 || !all[0].Held || all[0].PidFD == nil {
		t.Fatalf("list %+v, %v", all, err)
	}
	all[0].PidFD.Close()
	if got, _ := os.ReadFile(f.spec(web).Path); len(got) > 0 {
		t.Errorf("ran before it was released: %q", got)
	}
	if err := f.c.Release(f.ctx, web); err != nil {
		t.Fatal(err)
	}
	f.exit(web)
	if got := text(f.logged(web)); got != "ran\n" {
		t.Errorf("log %q", got)
	}
}

func TestKillWhileHeld(t *testing.T) {
	f := newFixture(t)
	s := f.start(StartRequest{Key: web, Program: shell("echo ran"), Hold: true})
	if err := f.c.Signal(f.ctx, web, 9); err != nil {
		t.Fatal(err)
	}
	if err := f.c.Release(f.ctx, web); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("release: %v", err)
	}
	if alive(s.PID) {
		t.Error("it is alive")
	}
}

// pair gives two ends of a stream: ours, and the one for the monitor.
func pair(t *testing.T) (ours net.Conn, theirs *os.File) {
	t.Helper()
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = s.(*net.UnixConn).File()
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	t.Cleanup(func() { c.Close(); theirs.Close() })
	return c, theirs
}

func TestAttachGetsFirstByteToLast(t *testing.T) {
	f := newFixture(t)
	ours, theirs := pair(t)
	f.start(StartRequest{
		Key: web, Program: shell("read x; echo got $x; echo oops >&2; cat"), OpenStdin: true, StdinOnce: true,
		Attach: []AttachSpec{{Conn: theirs, Stdin: true, Stdout: true, Stderr: true, Mux: true}},
	})
	theirs.Close()
	io.WriteString(ours, "hello\nmore")
	ours.(*net.UnixConn).CloseWrite()
	b, err := io.ReadAll(ours)
	if err != nil {
		t.Fatal(err)
	}
	out, errs := demux(t, b)
	if out != "got hello\nmore" || errs != "oops\n" {
		t.Errorf("stdout %q, stderr %q", out, errs)
	}
	if x := f.exit(web); x.Code != 0 {
		t.Errorf("exit %+v", x)
	}
}

// The engine reads what a client sends, on its own descriptor of the socket
// that the monitor writes to.
func TestOutputOnlyLeavesInput(t *testing.T) {
	f := newFixture(t)
	ours, theirs := pair(t)
	feed, in := pair(t)
	io.WriteString(ours, "before ")
	f.start(StartRequest{
		Key: web, Program: shell("read x; echo got $x"), OpenStdin: true, StdinOnce: true,
		Attach: []AttachSpec{{Conn: theirs, Stdout: true}, {Conn: in, Stdin: true}},
	})
	in.Close()
	io.WriteString(ours, "after")
	ours.(*net.UnixConn).CloseWrite()
	io.WriteString(feed, "it\n")
	out := make([]byte, len("got it\n"))
	if _, err := io.ReadFull(ours, out); err != nil || string(out) != "got it\n" {
		t.Errorf("output %q, %v", out, err)
	}
	f.exit(web)
	if left, err := io.ReadAll(theirs); err != nil || string(left) != "before after" {
		t.Errorf("of the input %q is left, %v", left, err)
	}
}

func demux(t *testing.T, b []byte) (out, errs string) {
	t.Helper()
	for len(b) > 0 {
		if len(b) < 8 {
			t.Fatalf("half a frame: %q", b)
		}
		n := int(b[4])<<24 | int(b[5])<<16 | int(b[6])<<8 | int(b[7])
		if len(b) < 8+n {
			t.Fatalf("half a frame: %q", b)
		}
		if b[0] == 2 {
			errs += string(b[8 : 8+n])
		} else {
			out += string(b[8 : 8+n])
		}
		b = b[8+n:]
	}
	return out, errs
}

func TestTerminal(t *testing.T) {
	f := newFixture(t)
	ours, theirs := pair(t)
	p := shell("stty size; printf prompt; read x; echo you said $x; stty size")
	p.Terminal = true
	f.start(StartRequest{
		Key: web, Program: p, Terminal: true, Width: 100, Height: 40, OpenStdin: true,
		Attach: []AttachSpec{{Conn: theirs, Stdin: true, Stdout: true}},
	})
	theirs.Close()
	var got strings.Builder
	buf := make([]byte, 1024)
	for !strings.HasSuffix(got.String(), "prompt") {
		n, err := ours.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", got.String(), err)
		}
		got.Write(buf[:n])
	}
	if err := f.c.Resize(f.ctx, web, 120, 50); err != nil {
		t.Fatal(err)
	}
	io.WriteString(ours, "yes\n")
	rest, _ := io.ReadAll(ours)
	got.Write(rest)
	want := "40 100\r\npromptyes\r\nyou said yes\r\n50 120\r\n"
	if got.String() != want {
		t.Errorf("got %q, want %q", got.String(), want)
	}
	f.exit(web)
	if got := strings.ReplaceAll(text(f.logged(web)), `\r`, "\r"); got != want {
		t.Errorf("log %q, want %q", got, want)
	}
}

func TestExecWithoutLog(t *testing.T) {
	f := newFixture(t)
	ours, theirs := pair(t)
	k := Key{Container: "web", Exec: "e1"}
	f.start(StartRequest{
		Key: k, Program: shell("echo hi; exit 3"), Log: logs.Spec{Driver: logs.None},
		Attach: []AttachSpec{{Conn: theirs, Stdout: true}},
	})
	theirs.Close()
	if b, _ := io.ReadAll(ours); string(b) != "hi\n" {
		t.Errorf("got %q", b)
	}
	if x := f.exit(k); x.Code != 3 {
		t.Errorf("exit %+v", x)
	}
}
