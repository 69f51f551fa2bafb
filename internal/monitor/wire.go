package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// A packet is: version, operation, request number, body. Numbers are varints,
// strings and lists have their length before them. Descriptors travel beside a
// packet. A body that is too large for one packet travels in a memory file, its
// first descriptor.

const wireVersion = 1

// Operations. Requests get a reply with their number; events have the number 0.
const (
	opReply = iota + 1
	opStart
	opRelease
	opAttach
	opResize
	opCloseStdin
	opSignal
	opList
	opAck
	opUpgrade
	opShutdown
	opAdopt     // here are duplicates of what you may have lost
	opSubscribe // send me exits; I have adopted what I could
	opExited    // event: a process ended
	opKept      // event: duplicates for you to hold
	opTrim      // event: close some of them; worker to keeper too
	opDrop      // event: close all of them; worker to keeper too
	opReady     // keeper to worker: these were all
	opQuit      // worker to keeper: nothing is left, end with me
	opHello     // event: who serves
	opMax
)

// inBody marks an operation whose body is in the first descriptor.
const inFile = 0x80

const (
	maxPacket = 128 << 10 // of a packet on the socket
	maxInline = 96 << 10  // of a body in a packet
	maxBody   = 16 << 20  // of a body in a file
	maxList   = 1 << 16   // elements of any list
)

var errMalformed = errors.New("malformed message")

type enc struct{ b []byte }

func newMessage(op byte, id uint64) *enc {
	e := &enc{make([]byte, 0, 256)}
	e.b = append(e.b, wireVersion, op)
	e.u(id)
	return e
}

func (e *enc) u(v uint64)     { e.b = binary.AppendUvarint(e.b, v) }
func (e *enc) i(v int64)      { e.b = binary.AppendVarint(e.b, v) }
func (e *enc) bytes(p []byte) { e.u(uint64(len(p))); e.b = append(e.b, p...) }
func (e *enc) str(s string)   { e.u(uint64(len(s))); e.b = append(e.b, s...) }
func (e *enc) key(k Key)      { e.str(k.Container); e.str(k.Exec) }
func (e *enc) time(t time.Time) {
	if t.IsZero() {
		e.i(0)
		return
	}
	e.i(t.UnixNano())
}
func (e *enc) bool(v bool) {
	if v {
		e.b = append(e.b, 1)
	} else {
		e.b = append(e.b, 0)
	}
}
func (e *enc) strs(s []string) {
	e.u(uint64(len(s)))
	for _, x := range s {
		e.str(x)
	}
}

// dec reads what enc wrote. After the first error everything reads as zero.
type dec struct {
	b   []byte
	err error
}

// openMessage splits a packet's head from its body.
func openMessage(p []byte) (op byte, id uint64, d *dec, err error) {
	if len(p) < 3 {
		return 0, 0, nil, errMalformed
	}
	if p[0] != wireVersion {
		return 0, 0, nil, fmt.Errorf("message of version %d, where %d is spoken", p[0], wireVersion)
	}
	d = &dec{b: p[2:]}
	id = d.u()
	if op = p[1]; op&^inFile == 0 || op&^inFile >= opMax {
		return 0, 0, nil, errMalformed
	}
	return op, id, d, d.err
}

func (d *dec) bad() { d.b, d.err = nil, errMalformed }

func (d *dec) u() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *dec) i() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes shares its memory with the packet.
func (d *dec) bytes() []byte {
	n := d.u()
	if n > uint64(len(d.b)) {
		d.bad()
		return nil
	}
	p := d.b[:n:n]
	d.b = d.b[n:]
	return p
}

func (d *dec) str() string { return string(d.bytes()) }
func (d *dec) key() Key    { return Key{d.str(), d.str()} }

func (d *dec) time() time.Time {
	if n := d.i(); n != 0 {
		return time.Unix(0, n)
	}
	return time.Time{}
}

func (d *dec) bool() bool {
	if len(d.b) == 0 || d.b[0] > 1 {
		d.bad()
		return false
	}
	v := d.b[0] == 1
	d.b = d.b[1:]
	return v
}

func (d *dec) byte() byte {
	if len(d.b) == 0 {
		d.bad()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

// count reads the length of a list; each element takes a byte at least.
func (d *dec) count() int {
	n := d.u()
	if n > maxList || n > uint64(len(d.b)) {
		d.bad()
		return 0
	}
	return int(n)
}

func (d *dec) strs() []string {
	n := d.count()
	s := make([]string, 0, n)
	for range n {
		s = append(s, d.str())
	}
	return s
}

// end reports what was wrong, too many bytes included.
func (d *dec) end() error {
	if d.err == nil && len(d.b) > 0 {
		d.bad()
	}
	return d.err
}

func (e *enc) spec(s logs.Spec) {
	e.str(s.Driver)
	e.str(s.Path)
	e.i(s.MaxSize)
	e.i(int64(s.MaxFiles))
	e.bool(s.Compress)
	e.u(uint64(len(s.Attrs)))
	for k, v := range s.Attrs {
		e.str(k)
		e.str(v)
	}
}

func (d *dec) spec() logs.Spec {
	s := logs.Spec{Driver: d.str(), Path: d.str(), MaxSize: d.i(), MaxFiles: int(d.i()), Compress: d.bool()}
	if n := d.count(); n > 0 {
		s.Attrs = make(map[string]string, n)
		for range n {
			k := d.str()
			s.Attrs[k] = d.str()
		}
	}
	return s
}

func (e *enc) maps(m []initproc.IDMap) {
	e.u(uint64(len(m)))
	for _, x := range m {
		e.u(uint64(x.Container))
		e.u(uint64(x.Host))
		e.u(uint64(x.Size))
	}
}

func (d *dec) maps() []initproc.IDMap {
	n := d.count()
	if n == 0 {
		return nil
	}
	m := make([]initproc.IDMap, 0, n)
	for range n {
		m = append(m, initproc.IDMap{Container: uint32(d.u()), Host: uint32(d.u()), Size: uint32(d.u())})
	}
	return m
}

func (e *enc) attach(a AttachSpec) {
	e.bool(a.Stdin)
	e.bool(a.Stdout)
	e.bool(a.Stderr)
	e.bool(a.Mux)
	e.i(int64(a.Patience))
}

func (d *dec) attach() AttachSpec {
	return AttachSpec{Stdin: d.bool(), Stdout: d.bool(), Stderr: d.bool(), Mux: d.bool(), Patience: time.Duration(d.i())}
}

// start writes r without its descriptors: first Files, then the connections.
func (e *enc) start(r *StartRequest) {
	e.key(r.Key)
	e.program(r.Program)
	e.u(uint64(len(r.Files)))
	e.bool(r.Terminal)
	e.u(uint64(r.Width))
	e.u(uint64(r.Height))
	e.bool(r.OpenStdin)
	e.bool(r.StdinOnce)
	e.spec(r.Log)
	e.u(uint64(len(r.Attach)))
	for _, a := range r.Attach {
		e.attach(a)
	}
	e.bool(r.Hold)
}

// start reads what enc.start wrote, and how many of the descriptors are Files.
func (d *dec) start() (r StartRequest, files int) {
	r.Key = d.key()
	r.Program = d.program()
	files = int(d.u() & 0xffff)
	r.Terminal = d.bool()
	r.Width = uint16(d.u())
	r.Height = uint16(d.u())
	r.OpenStdin = d.bool()
	r.StdinOnce = d.bool()
	r.Log = d.spec()
	for range d.count() {
		r.Attach = append(r.Attach, d.attach())
	}
	r.Hold = d.bool()
	return r, files
}

func (e *enc) exited(x *Exited) {
	e.key(x.Key)
	e.u(uint64(x.PID))
	e.u(uint64(x.Code))
	e.u(uint64(x.Signal))
	e.bool(x.Core)
	e.time(x.At)
	e.bool(x.Unknown)
}

func (d *dec) exited() *Exited {
	return &Exited{Key: d.key(), PID: int(d.u()), Code: int(d.u()), Signal: int(d.u()), Core: d.bool(), At: d.time(), Unknown: d.bool()}
}

// What kind of error a reply carries.
const (
	replyOK = iota
	replyError
	replyStepError
)

func (e *enc) error(err error) {
	step, isStep := errors.AsType[*initproc.StepError](err)
	switch {
	case err == nil:
		e.u(replyOK)
	case isStep:
		e.u(replyStepError)
		e.stepError(step)
	default:
		e.u(replyError)
		e.u(uint64(errdefs.KindOf(err)))
		e.str(err.Error())
		e.str(errdefs.HintOf(err))
	}
}

// error reads an error. d.err tells whether it could be read.
func (d *dec) error() error {
	switch d.u() {
	case replyOK:
		return nil
	case replyStepError:
		return d.stepError()
	case replyError:
		kind, text, hint := errdefs.Kind(d.u()), d.str(), d.str()
		err := errdefs.New(kind, "", "", errors.New(text))
		if hint != "" {
			err = errdefs.WithHint(err, hint)
		}
		return err
	}
	d.bad()
	return nil
}
