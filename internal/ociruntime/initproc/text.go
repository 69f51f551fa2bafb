package initproc

import (
	"encoding/binary"
	"fmt"
	"strings"
	"syscall"
)

// Text is the program as people read it, for goldens and for looking at what
// is done: a line for each operation, under the name of its step.
func (b *Builder) Text() string {
	t := texter{Builder: b, spans: map[Ptr]int{}, strs: map[Ptr]string{}, relocs: map[uint64]bool{}, labels: map[int][]int{}}
	for s, at := range b.strs {
		t.strs[at] = s
	}
	for _, s := range b.spans {
		t.spans[s.at] = s.words
	}
	for _, r := range b.relocs {
		t.relocs[r] = true
	}
	for l, at := range b.labels {
		t.labels[at] = append(t.labels[at], l)
	}
	step := -1
	for i := range b.ops {
		o := &b.ops[i]
		if int(o.step) != step && len(b.steps) > 0 {
			step = int(o.step)
			t.line("# %s", b.steps[step])
		}
		for _, l := range t.labels[i] {
			t.line("L%d:", l)
		}
		t.operation(o)
	}
	for _, l := range t.labels[len(b.ops)] {
		t.line("L%d:", l)
	}
	return t.out.String()
}

type texter struct {
	*Builder
	out    strings.Builder
	spans  map[Ptr]int
	strs   map[Ptr]string
	relocs map[uint64]bool
	labels map[int][]int
}

func (t *texter) line(format string, a ...any) { fmt.Fprintf(&t.out, format+"\n", a...) }

func (t *texter) operation(o *operation) {
	a := func(i int) string { return t.arg(o, i) }
	switch o.code {
	case opSyscall:
		t.call(o, o.name, o.count)
	case opMkpath:
		t.call(o, "mkpath", 4)
	case opJump:
		t.line("\tjump L%d", o.label)
	case opStore:
		t.line("\tstore%d %s = %s", o.args[2], a(0), a(1))
	case opJumpIf:
		t.line("\tif %s & %#x == %#x jump L%d", a(0), o.args[2], o.args[1], o.label)
	case opLoad:
		t.line("\tr%d = load%d %s", o.dst, o.args[1], a(0))
	case opExit:
		t.line("\texit %s", a(0))
	case opTell:
		t.line("\ttell %s", t.tells(o))
	case opFail:
		t.line("\tfail %s", errnoName(syscall.Errno(o.args[0])))
	case opInit:
		t.line("\tfork, and reap in the parent")
	case opSet:
		t.line("\tr%d = %s", o.dst, a(0))
	case opMove:
		t.line("\tsocket = %s", a(0))
	}
}

func (t *texter) tells(o *operation) string {
	text := map[uint64]string{msgReady: "ready", msgPID: "pid " + t.arg(o, 1), msgStage: "stage " + t.arg(o, 1)}[o.args[0]]
	if o.args[2] != 0 {
		text += ", wait"
	}
	return text
}

func (t *texter) call(o *operation, name string, count int) {
	var args []string
	for i := range count {
		args = append(args, t.arg(o, i))
	}
	text := name + "(" + strings.Join(args, ", ") + ")"
	if o.dst != 0 {
		text = fmt.Sprintf("r%d = %s", o.dst, text)
	}
	var errs []string
	for _, e := range o.errs {
		if e != 0 {
			errs = append(errs, errnoName(syscall.Errno(e)))
		}
	}
	switch {
	case len(errs) > 0 && o.label >= 0:
		text += fmt.Sprintf(" on %s L%d", strings.Join(errs, " "), o.label)
	case len(errs) > 0:
		text += " ignore " + strings.Join(errs, " ")
	}
	t.line("\t%s", text)
}

func (t *texter) arg(o *operation, i int) string {
	v := o.args[i]
	switch o.types >> (2 * i) & 3 {
	case 1:
		return t.pointed(Ptr(v))
	case 2:
		return fmt.Sprintf("r%d", v)
	}
	return number(v)
}

func number(v uint64) string {
	if n := int64(v); n > 4096 || n < -200 {
		return fmt.Sprintf("%#x", v)
	}
	return fmt.Sprint(int64(v))
}

// pointed shows strings and arrays as such, and anything else as its place.
func (t *texter) pointed(p Ptr) string {
	if s, ok := t.strs[p]; ok {
		return fmt.Sprintf("%q", s)
	}
	n, ok := t.spans[p]
	if !ok {
		return "&data"
	}
	var out []string
	for i := range n {
		at := uint64(p) + uint64(8*i)
		v := binary.LittleEndian.Uint64(t.data[at:])
		if t.relocs[at] {
			out = append(out, t.pointed(Ptr(v)))
		} else {
			out = append(out, number(v))
		}
	}
	return "{" + strings.Join(out, ", ") + "}"
}
