package monitor

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

func sampleStart() *StartRequest {
	return &StartRequest{
		Key: Key{"web", "e1"},
		Program: &initproc.Program{
			Code: []byte{1, 2, 3}, Clone: 1 << 40, Steps: []string{"a", ""}, Terminal: true, Forks: true,
			UIDMap: []initproc.IDMap{{Container: 0, Host: 100000, Size: 65536}}, GIDMap: []initproc.IDMap{{Container: 1, Host: 2, Size: 3}},
		},
		Terminal: true, Width: 80, Height: 25, OpenStdin: true, StdinOnce: true, Hold: true,
		Log:    logs.Spec{Driver: "json-file", Path: "/x", MaxSize: -1, MaxFiles: 3, Compress: true, Attrs: map[string]string{"a": "b"}},
		Attach: []AttachSpec{{Stdin: true, Mux: true, Patience: -1}, {Stdout: true, Stderr: true, Patience: time.Second}},
	}
}

func TestStartSurvivesTheWire(t *testing.T) {
	r := sampleStart()
	e := newMessage(opStart, 77)
	e.start(r)
	op, id, d, err := openMessage(e.b)
	if op != opStart || id != 77 || err != nil {
		t.Fatal(op, id, err)
	}
	got, files := d.start()
	if err := d.end(); err != nil || files != 0 || !reflect.DeepEqual(&got, r) {
		t.Errorf("got %+v, %d files, %v", got, files, err)
	}
	// A new field of Program must be added to the wire.
	if n := reflect.TypeFor[initproc.Program]().NumField(); n != 7 {
		t.Errorf("initproc.Program has %d fields: look at enc.program", n)
	}
	if n := reflect.TypeFor[StartRequest]().NumField(); n != 11 {
		t.Errorf("StartRequest has %d fields: look at enc.start", n)
	}
}

func TestErrorsSurviveTheWire(t *testing.T) {
	pass := func(err error) error {
		e := &enc{}
		e.error(err)
		d := &dec{b: e.b}
		got := d.error()
		if err := d.end(); err != nil {
			t.Fatal(err)
		}
		return got
	}
	if pass(nil) != nil {
		t.Error("nil")
	}
	err := pass(errdefs.WithHint(errdefs.New(errdefs.Conflict, "start", "container x", errors.New("it runs")), "stop it"))
	if err.Error() != "start container x: it runs" || errdefs.KindOf(err) != errdefs.Conflict || errdefs.HintOf(err) != "stop it" {
		t.Errorf("%v", err)
	}
	step := &initproc.StepError{Step: 3, Name: "mount", Errno: 2}
	if got := pass(step); !reflect.DeepEqual(got, step) {
		t.Errorf("%v", got)
	}
}

// FuzzMessages has anybody's bytes read as every kind of message.
func FuzzMessages(f *testing.F) {
	e := newMessage(opStart, 1)
	e.start(sampleStart())
	f.Add(e.b)
	e = newMessage(opReply, 1)
	e.error(errors.New("x"))
	f.Add(e.b)
	e = newMessage(opExited, 0)
	e.exited(&Exited{Key: Key{"a", ""}, At: time.Now()})
	f.Add(e.b)
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, read := range []func(*dec){
			func(d *dec) { d.start() }, func(d *dec) { d.exited() }, func(d *dec) { d.error() }, func(d *dec) { d.attach() },
			func(d *dec) { d.key(); d.u(); d.i(); d.strs(); d.time() },
		} {
			op, _, d, err := openMessage(p)
			if err != nil {
				return
			}
			if op&^inFile >= opMax {
				t.Fatal("an operation that does not exist")
			}
			read(d)
			if d.err != nil && len(d.b) > 0 {
				t.Fatal("bytes left after an error")
			}
		}
	})
}

// A process that is taken over before the staging pipe of its batch has that
// batch logged twice.
func TestStagingPipesAreHandedOverFirst(t *testing.T) {
	hand := map[string]keptProcess{stageName(1): {}, stageName(0): {}}
	for _, name := range []string{"", "!", "0", "web", web.file()} {
		hand[name] = keptProcess{}
	}
	got := handOrder(hand)
	if len(got) != len(hand) || got[0] != stageName(0) || got[1] != stageName(1) {
		t.Errorf("order %q", got)
	}
}
