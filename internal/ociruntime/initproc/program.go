package initproc

import (
	"encoding/binary"
	"fmt"
	"sync"
	"syscall"
)

// The format that onggi-init reads (all numbers little endian, 64 bits):
//
//	header  magic, ops, offset of ops, relocations, their offset, size of all,
//	        and, for the launcher, which file is the control group (1 = first)
//	data    strings, structures, arrays; a relocation names a place in it that
//	        holds an offset and becomes an address
//	ops     80 bytes each: opcode (1), destination register (1), kinds of the
//	        arguments (2), step (4), number of the system call, six arguments,
//	        eight errnos that are no failure, target of a jump
//
// cmd/onggi-init/init.c is the other half.
const (
	magic      = 0x31494e494f474e4f
	headerSize = 56
	opSize     = 80
	noJump     = 0xffffffff
)

const (
	opSyscall = iota
	opJump
	opStore
	opJumpIf
	opLoad
	opExit
	opTell
	opFail
	opInit
	opSet
	opMkpath
	opMove
)

const (
	msgReady = iota + 1
	msgError
	msgPID
	msgFD
	msgStage
)

// Descriptors of the child: stdio, then these.
const (
	SocketFD  = 3
	programFD = 4
	FirstFile = 5 // the program's files
)

// IDMap is one line of a user namespace's map.
type IDMap struct{ Container, Host, Size uint32 }

// A Program is what onggi-init does before it becomes the app.
type Program struct {
	Code     []byte
	Clone    uint64  // namespaces to create at clone: CLONE_NEW*
	UIDMap   []IDMap // of a new user namespace
	GIDMap   []IDMap
	Steps    []string // Steps[i] says what step i was doing
	Terminal bool     // the program makes a terminal and sends its master
	Forks    bool     // the process that is started forks, reports the app's pid, and ends
}

// Reg is a register of the interpreter.
type Reg uint8

// Ptr is an offset into the program's data.
type Ptr uint64

// A Label is a place to jump to, marked later.
type Label int

type operation struct {
	name   string
	count  int // of arguments
	code   uint8
	dst    Reg
	types  uint16
	step   uint32
	nr     uint64
	args   [6]uint64
	errs   [8]byte
	target uint64
	label  Label // of target, -1 = none
}

// A span is an array of words in the data.
type span struct {
	at    Ptr
	words int
}

// A Builder puts a program together. The zero value is not usable; call
// NewBuilder.
type Builder struct {
	ops    []operation
	data   []byte
	relocs []uint64
	steps  []string
	labels []int
	cgroup uint64
	reg    Reg
	kept   int
	moved  Reg    // the socket, when it is not SocketFD any more
	spans  []span // structures in data, for Text
	strs   map[string]Ptr
}

// CloneInto lets the process be born in the v2 control group whose directory is
// this one of the program's files.
func (b *Builder) CloneInto(file int) { b.cgroup = uint64(file - FirstFile + 1) }

// cgroupFile is the index among the files of the directory to be born in.
func (p *Program) cgroupFile() (int, bool) {
	if len(p.Code) < headerSize {
		return 0, false
	}
	n := binary.LittleEndian.Uint64(p.Code[48:])
	return int(n) - 1, n > 0
}

// operations are lists to be used again: that of an ordinary container takes
// eight times the room of all else here.
var operations = sync.Pool{New: func() any {
	list := make([]operation, 0, 512)
	return &list
}}

// NewBuilder starts an empty program.
func NewBuilder() *Builder {
	return &Builder{ops: *operations.Get().(*[]operation), data: make([]byte, headerSize, 8<<10), strs: make(map[string]Ptr, 128)}
}

// Step names what follows, for errors: `mount "proc" on "/proc"`.
func (b *Builder) Step(format string, a ...any) {
	b.steps = append(b.steps, fmt.Sprintf(format, a...))
}

// Registers below firstShared are given once; the others again and again, so
// that a value in one of them is good for the next few operations only.
const (
	firstShared = 8
	registers   = 192
	lastReg     = 255 // those above the shared ones are kept
)

// NewReg gives a register. The first seven are the caller's for good; later
// ones are used anew after some fifty more.
func (b *Builder) NewReg() Reg {
	b.reg++
	if b.reg >= registers {
		b.reg = firstShared
	}
	return b.reg
}

// Data places bytes, aligned for any structure.
func (b *Builder) Data(p []byte) Ptr {
	for len(b.data)%8 != 0 {
		b.data = append(b.data, 0)
	}
	at := Ptr(len(b.data))
	b.data = append(b.data, p...)
	return at
}

// Str places a string for C, once.
func (b *Builder) Str(s string) Ptr {
	if p, ok := b.strs[s]; ok {
		return p
	}
	p := b.Data(append([]byte(s), 0))
	b.strs[s] = p
	return p
}

// Words places numbers; a Ptr among them becomes an address.
func (b *Builder) Words(words ...any) Ptr {
	buf := make([]byte, 8*len(words))
	at := b.Data(buf)
	b.spans = append(b.spans, span{at, len(words)})
	for i, w := range words {
		var v uint64
		switch w := w.(type) {
		case Ptr:
			v = uint64(w)
			b.relocs = append(b.relocs, uint64(at)+uint64(8*i))
		case int:
			v = uint64(w)
		case uint64:
			v = w
		default:
			panic(fmt.Sprintf("initproc: a word cannot be a %T", w))
		}
		binary.LittleEndian.PutUint64(b.data[int(at)+8*i:], v)
	}
	return at
}

// Strs places a NULL-terminated array of strings, as execve takes it.
func (b *Builder) Strs(list []string) Ptr {
	words := make([]any, 0, len(list)+1)
	for _, s := range list {
		words = append(words, b.Str(s))
	}
	return b.Words(append(words, 0)...)
}

// KeepReg gives a register that no other call gives.
func (b *Builder) KeepReg() (Reg, error) {
	r := registers + b.kept
	if r > lastReg {
		return 0, fmt.Errorf("a program keeps %d values at most", lastReg-registers)
	}
	b.kept++
	return Reg(r), nil
}

// NewLabel makes a label to be marked later.
func (b *Builder) NewLabel() Label {
	b.labels = append(b.labels, -1)
	return Label(len(b.labels) - 1)
}

// Mark puts the label here.
func (b *Builder) Mark(l Label) {
	b.labels[l] = len(b.ops)
}

// A Call is a system call just added, to be refined.
type Call struct {
	b *Builder
	i int
}

// Call adds a system call. Arguments are int, uint64, Ptr or Reg.
func (b *Builder) Call(name string, nr uintptr, args ...any) Call {
	o := b.add(opSyscall, args...)
	o.nr = uint64(nr)
	o.name, o.count = name, len(args)
	return Call{b, len(b.ops) - 1}
}

// Into keeps the result.
func (c Call) Into(r Reg) Call {
	c.b.ops[c.i].dst = r
	return c
}

// Ignore lists errnos that are no failure: the next operation follows.
func (c Call) Ignore(errs ...syscall.Errno) Call {
	for i, e := range errs {
		c.b.ops[c.i].errs[i] = byte(e)
	}
	return c
}

// On lists errnos that lead to a label.
func (c Call) On(l Label, errs ...syscall.Errno) Call {
	for i, e := range errs {
		c.b.ops[c.i].errs[i] = byte(e)
	}
	c.b.ops[c.i].label = l
	return c
}

func (b *Builder) add(code uint8, args ...any) *operation {
	o := operation{code: code, target: noJump, label: -1}
	if len(b.steps) > 0 {
		o.step = uint32(len(b.steps) - 1)
	}
	for i, a := range args {
		switch a := a.(type) {
		case nil:
		case int:
			o.args[i] = uint64(a)
		case uint64:
			o.args[i] = a
		case Ptr:
			o.args[i] = uint64(a)
			o.types |= 1 << (2 * i)
		case Reg:
			o.args[i] = uint64(a)
			o.types |= 2 << (2 * i)
		default:
			panic(fmt.Sprintf("initproc: an argument cannot be a %T", a))
		}
	}
	b.ops = append(b.ops, o)
	return &b.ops[len(b.ops)-1]
}

// MkPath opens a path below root as a handle, everything in between resolved
// inside the root, and makes what is missing: directories, and at the end a
// directory, or an empty file. The result is used as a Call's.
func (b *Builder) MkPath(root Reg, path string, file bool, mode int) Call {
	kind := 0
	if file {
		kind = 1
	}
	b.add(opMkpath, root, b.Str(path), kind, mode)
	return Call{b, len(b.ops) - 1}
}

// MoveSocket lets the interpreter speak to the launcher by another descriptor.
func (b *Builder) MoveSocket(fd Reg) {
	b.add(opMove, fd)
	b.moved = fd
}

// Jump goes to the label.
func (b *Builder) Jump(l Label) {
	b.add(opJump).label = l
}

// JumpIf goes to the label if v&mask is want. v is a Reg.
func (b *Builder) JumpIf(l Label, v Reg, want, mask uint64) {
	b.add(opJumpIf, v, want, mask).label = l
}

// Store writes a value of 4 or 8 bytes into the data.
func (b *Builder) Store(at Ptr, v any, size int) {
	b.add(opStore, at, v, size)
}

// Load reads a value of 1, 4 or 8 bytes of the data.
func (b *Builder) Load(r Reg, at Ptr, size int) {
	b.add(opLoad, at, size).dst = r
}

// Set puts a value into a register.
func (b *Builder) Set(r Reg, v any) {
	b.add(opSet, v).dst = r
}

// Exit ends the process.
func (b *Builder) Exit(code int) {
	b.add(opExit, code)
}

// Fail reports an errno as the failure of this step.
func (b *Builder) Fail(e syscall.Errno) {
	b.add(opFail, int(e))
}

// Ready tells the launcher that the set-up is done, and waits to be released.
func (b *Builder) Ready() { b.tell(msgReady, 0, 1) }

// ReadyFor tells the launcher that the set-up is done, and lets it go. Who
// connects to the listening socket then is the launcher: it gets the stage, and
// releases the process.
func (b *Builder) ReadyFor(socket, stage int) {
	b.tell(msgReady, 0, 0)
	conn := b.NewReg()
	b.Call("accept4", syscall.SYS_ACCEPT4, socket, 0, 0, syscall.SOCK_CLOEXEC).Into(conn)
	b.Call("dup3", syscall.SYS_DUP3, conn, SocketFD, syscall.O_CLOEXEC)
	b.Call("close", syscall.SYS_CLOSE, conn)
	b.Call("close", syscall.SYS_CLOSE, socket)
	b.Stage(stage)
}

// Stage tells the launcher that a stage is reached, and waits: hooks run then.
func (b *Builder) Stage(n int) { b.tell(msgStage, n, 1) }

// ReportPID tells the launcher the pid of the process that goes on.
func (b *Builder) ReportPID(r Reg) { b.tell(msgPID, r, 0) }

func (b *Builder) tell(kind int, v any, wait int) {
	b.add(opTell, kind, v, wait)
}

// What a descriptor is that a process sends to its launcher.
const (
	fdConsole = 1
	fdSeccomp = 2
)

// SendConsole sends the terminal's master to the launcher.
func (b *Builder) SendConsole(fd Reg) { b.sendFD(fd, fdConsole) }

// SendSeccomp sends the listener of a seccomp filter to the launcher.
func (b *Builder) SendSeccomp(fd Reg) { b.sendFD(fd, fdSeccomp) }

func (b *Builder) socket() any {
	if b.moved != 0 {
		return b.moved
	}
	return SocketFD
}

func (b *Builder) sendFD(fd Reg, what uint64) {
	msg := make([]byte, 16)
	binary.LittleEndian.PutUint32(msg, msgFD)
	binary.LittleEndian.PutUint64(msg[8:], what)
	payload := b.Data(msg)
	control := make([]byte, 24) // cmsghdr: length 20, SOL_SOCKET, SCM_RIGHTS, one int
	binary.LittleEndian.PutUint64(control, 20)
	binary.LittleEndian.PutUint32(control[8:], syscall.SOL_SOCKET)
	binary.LittleEndian.PutUint32(control[12:], syscall.SCM_RIGHTS)
	ctl := b.Data(control)
	iov := b.Words(payload, 16)
	hdr := b.Words(0, 0, iov, 1, ctl, 24, 0)
	b.Store(ctl+16, fd, 4)
	b.Call("sendmsg", syscall.SYS_SENDMSG, b.socket(), hdr, 0)
}

// Reap forks: this process stays as PID 1 and reaps, the child goes on.
func (b *Builder) Reap() {
	b.add(opInit)
}

// Program puts everything together. The builder is not usable any more.
func (b *Builder) Program() (*Program, error) {
	for len(b.data)%8 != 0 {
		b.data = append(b.data, 0)
	}
	relocs := uint64(len(b.data))
	out := make([]byte, 0, len(b.data)+8*len(b.relocs)+opSize*len(b.ops))
	out = append(out, b.data...)
	for _, r := range b.relocs {
		out = binary.LittleEndian.AppendUint64(out, r)
	}
	ops := uint64(len(out))
	for i := range b.ops {
		o := &b.ops[i]
		if o.label >= 0 {
			if b.labels[o.label] < 0 {
				return nil, fmt.Errorf("the label L%d is not marked", o.label)
			}
			o.target = uint64(b.labels[o.label])
		}
		out = append(out, o.code, byte(o.dst))
		out = binary.LittleEndian.AppendUint16(out, o.types)
		out = binary.LittleEndian.AppendUint32(out, o.step)
		out = binary.LittleEndian.AppendUint64(out, o.nr)
		for _, a := range o.args {
			out = binary.LittleEndian.AppendUint64(out, a)
		}
		out = append(out, o.errs[:]...)
		out = binary.LittleEndian.AppendUint64(out, o.target)
	}
	for i, v := range []uint64{magic, uint64(len(b.ops)), ops, uint64(len(b.relocs)), relocs, uint64(len(out)), b.cgroup} {
		binary.LittleEndian.PutUint64(out[8*i:], v)
	}
	list := b.ops[:0]
	b.ops = nil
	operations.Put(&list)
	return &Program{Code: out, Steps: b.steps}, nil
}
