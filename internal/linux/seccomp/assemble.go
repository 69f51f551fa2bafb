package seccomp

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data.
const (
	offNr   = 0
	offArch = 4
	offArgs = 16
)

// An inst is one classic BPF instruction.
type inst struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// assembler collects instructions from the last to the first, so that what a
// jump leads to is there already: jumps lead forward only. A place is counted
// from the end.
type assembler struct {
	back []inst
	rets map[uint32]int // the nearest return of each action
	// shared is the code of conditions, which may serve several calls.
	shared map[string]target
}

func (a *assembler) emit(i inst) int {
	a.back = append(a.back, i)
	return len(a.back) - 1
}

// reach is the longest jump of a comparison.
const reach = 255

func (a *assembler) near(place int) bool { return len(a.back)-1-place <= reach }

// A target is where a comparison leads: a place, or the return of an action,
// of which there may be several copies.
type target struct {
	place  int
	action uint32
	ret    bool
}

func to(place int) target       { return target{place: place} }
func does(action uint32) target { return target{action: action, ret: true} }

// find returns a place for t within reach, made if need be.
func (a *assembler) find(t target) int {
	if t.ret {
		if p, ok := a.rets[t.action]; ok && a.near(p) {
			return p
		}
		p := a.emit(inst{code: unix.BPF_RET | unix.BPF_K, k: t.action})
		a.rets[t.action] = p
		return p
	}
	if !a.near(t.place) {
		return a.emit(inst{code: unix.BPF_JMP | unix.BPF_JA, k: uint32(len(a.back) - 1 - t.place)})
	}
	return t.place
}

// branch adds a comparison of the accumulator with k.
func (a *assembler) branch(code uint16, k uint32, yes, no target) target {
	if yes == no {
		return yes
	}
	for {
		y := a.find(yes)
		n := a.find(no)
		if !a.near(y) { // finding the other moved us out of its reach
			continue
		}
		return to(a.emit(inst{unix.BPF_JMP | unix.BPF_K | code,
			uint8(len(a.back) - 1 - y), uint8(len(a.back) - 1 - n), k}))
	}
}

// enter makes t what comes next.
func (a *assembler) enter(t target) {
	p := t.place
	if t.ret {
		p = a.find(t)
	}
	if p != len(a.back)-1 {
		a.emit(inst{code: unix.BPF_JMP | unix.BPF_JA, k: uint32(len(a.back) - 1 - p)})
	}
}

// load adds a load of a word of the call, before next.
func (a *assembler) load(off uint32, next target) target {
	if next.ret {
		return next
	}
	a.enter(next)
	return to(a.emit(inst{code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, k: off}))
}

// and adds a mask before next, which is the instruction just added.
func (a *assembler) and(mask uint32) target {
	return to(a.emit(inst{code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, k: mask}))
}

// A span is a range of numbers, up to the next one's start, with one target.
type span struct {
	from uint32
	to   target
}

// A group is a range of spans that search looks at together: ones with a
// common target, and between them single numbers with others.
type group struct{ spans []span }

// maxSingles bounds the single numbers of a group, which are compared one
// after another.
const maxSingles = 3

// groups divides spans. A single number in a group costs one comparison; as a
// leaf of the tree it would cost two.
func groups(spans []span) []group {
	var out []group
	for len(spans) > 0 {
		n := 1
		for n+1 < len(spans) && n < 2*maxSingles && spans[n].from+1 == spans[n+1].from && spans[n+1].to == spans[0].to {
			n += 2
		}
		out = append(out, group{spans[:n]})
		spans = spans[n:]
	}
	return out
}

// tree adds a search of the accumulator among spans, of which the first starts
// at 0.
func (a *assembler) tree(spans []span) target { return a.search(groups(spans)) }

func (a *assembler) search(list []group) target {
	if len(list) == 1 {
		spans := list[0].spans
		t := spans[0].to
		for i := 1; i < len(spans); i += 2 {
			t = a.branch(unix.BPF_JEQ, spans[i].from, spans[i].to, t)
		}
		return t
	}
	mid := len(list) / 2
	right := a.search(list[mid:])
	left := a.search(list[:mid])
	return a.branch(unix.BPF_JGE, list[mid].spans[0].from, right, left)
}

// assemble makes the program.
func (p *profile) assemble() []inst {
	a := &assembler{rets: map[uint32]int{}, shared: map[string]target{}}
	kill := does(unix.SECCOMP_RET_KILL_THREAD)
	type section struct {
		audit uint32
		code  target
	}
	var sections []section
	done := map[uint32]bool{}
	for i := len(p.arches) - 1; i >= 0; i-- {
		ar := p.arches[i]
		if done[ar.audit] {
			continue
		}
		done[ar.audit] = true
		var spans []span
		for _, b := range p.arches {
			if b.audit == ar.audit && b.mode == 0 {
				spans = a.spans(p, b)
			}
		}
		if ar.audit == arches[0].audit {
			spans = a.x32(p, spans)
		}
		sections = append(sections, section{ar.audit, a.load(offNr, a.tree(spans))})
	}
	// The native architecture is looked at first.
	slices.SortStableFunc(sections, func(x, y section) int {
		if n := p.arches[0].audit; x.audit == n || y.audit == n {
			if x.audit == n {
				return 1
			}
			return -1
		}
		return 0
	})
	next := kill
	for _, s := range sections {
		next = a.branch(unix.BPF_JEQ, s.audit, s.code, next)
	}
	a.enter(a.load(offArch, next))
	slices.Reverse(a.back)
	return a.back
}

// x32 adds the numbers of x32 to those of x86_64, with which it shares the
// kernel's name. -1 is no call of x32: it is what a tracer leaves behind that
// has answered a call itself.
func (a *assembler) x32(p *profile, spans []span) []span {
	end := a.unnamed(p, spans)
	own := []span{{x32Bit, does(unix.SECCOMP_RET_KILL_THREAD)}}
	for _, b := range p.arches {
		if b.mode == x32Bit {
			own = a.spans(p, b)
			for i := range own {
				own[i].from += x32Bit
			}
			end = own[len(own)-1].to
		}
	}
	if spans == nil { // a profile for x32 alone
		spans = []span{{0, does(unix.SECCOMP_RET_KILL_THREAD)}}
	}
	return merge(append(append(spans, own...), span{^uint32(0), end}))
}

// unnamed is where the highest numbers lead.
func (a *assembler) unnamed(p *profile, spans []span) target {
	if len(spans) == 0 {
		return does(p.def)
	}
	return spans[len(spans)-1].to
}

// spans lists the ranges of ar's numbers, without its mode bit.
func (a *assembler) spans(p *profile, ar *arch) []span {
	v := p.resolve(ar)
	out := make([]span, 0, 256)
	out = append(out, span{0, does(p.def)})
	next := uint32(0)
	v.each(ar, func(nr uint32, rules ruleList) {
		if nr != next {
			out = append(out, span{next, does(p.def)})
		}
		out = append(out, span{nr, a.rules(rules, ar.bits, does(p.def))})
		next = nr + 1
	})
	end := does(p.def)
	if !lets(p.def) && v.named {
		end = does(unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS))
		if next <= v.last {
			out = append(out, span{next, does(p.def)})
			next = v.last + 1
		}
	}
	return merge(append(out, span{next, end}))
}

// merge joins neighbours with one target, and drops what a later span at the
// same start replaces.
func merge(spans []span) []span {
	out := spans[:0]
	for _, s := range spans {
		if n := len(out); n > 0 && out[n-1].from == s.from {
			out = out[:n-1]
		}
		if n := len(out); n > 0 && out[n-1].to == s.to {
			continue
		}
		out = append(out, s)
	}
	return out
}

// rules adds the code for the rules of one call, the first that holds first.
func (a *assembler) rules(list ruleList, bits int, otherwise target) target {
	if len(list) > 0 && list[0].conds == nil {
		return does(list[0].action)
	}
	// Architectures of one width share the code.
	key := list.key(bits)
	if t, ok := a.shared[key]; ok {
		return t
	}
	t := a.conditions(list, bits, otherwise)
	a.shared[key] = t
	return t
}

// key tells lists of rules apart.
func (list ruleList) key(bits int) string {
	b := []byte{byte(bits)}
	for _, r := range list {
		b = binary.NativeEndian.AppendUint32(b, r.action)
		b = append(b, byte(len(r.conds)))
		for _, c := range r.conds {
			b = append(b, c.arg, byte(c.op))
			b = binary.NativeEndian.AppendUint64(b, c.mask)
			b = binary.NativeEndian.AppendUint64(b, c.value)
		}
	}
	return string(b)
}

func (a *assembler) conditions(list ruleList, bits int, otherwise target) target {
	if t, ok := a.intervals(list, bits, otherwise); ok {
		return t
	}
	next := otherwise
	for i := len(list) - 1; i >= 0; i-- {
		t := does(list[i].action)
		for j := len(list[i].conds) - 1; j >= 0; j-- {
			t = a.cond(&list[i].conds[j], bits, t, next)
		}
		next = t
	}
	return next
}

// intervals adds code for rules that have one comparison each, all of the same
// argument: a search in what they divide its values into. It is worth it from
// three rules on, and possible where only one word decides.
func (a *assembler) intervals(list ruleList, bits int, otherwise target) (target, bool) {
	if len(list) < 3 {
		return target{}, false
	}
	arg := list[0].conds[0].arg
	edges := make([]uint64, 1, 2*len(list)+1) // 0 is one
	for _, r := range list {
		c := r.conds[0]
		if len(r.conds) != 1 || c.arg != arg || c.op == masked {
			return target{}, false
		}
		v := c.word(bits)
		edges = append(edges, v)
		if v != ^uint64(0) {
			edges = append(edges, v+1)
		}
	}
	slices.Sort(edges)
	edges = slices.Compact(edges)
	decide := func(v uint64) target {
		for _, r := range list {
			if r.conds[0].holds(v, bits) {
				return does(r.action)
			}
		}
		return otherwise
	}
	const word = 1 << 32
	if edges[len(edges)-1] > word {
		return target{}, false
	}
	var spans []span
	for _, e := range edges {
		if e < word {
			spans = append(spans, span{uint32(e), decide(e)})
		}
	}
	t := a.tree(merge(spans))
	if !t.ret {
		t = a.load(a.low(arg), t)
	}
	if bits == 32 {
		return t, true
	}
	above := decide(word)
	if t == above {
		return t, true
	}
	return a.load(a.high(arg), a.branch(unix.BPF_JEQ, 0, t, above)), true
}

// low and high are the places of the halves of an argument.
func (a *assembler) low(arg uint8) uint32 {
	if bigEndian {
		return offArgs + 8*uint32(arg) + 4
	}
	return offArgs + 8*uint32(arg)
}

func (a *assembler) high(arg uint8) uint32 { return a.low(arg) ^ 4 }

var bigEndian = binary.NativeEndian.Uint16([]byte{0, 1}) == 1

// word is the value as far as it is compared.
func (c *cond) word(bits int) uint64 {
	if bits == 32 {
		return uint64(uint32(c.value))
	}
	return c.value
}

// holds says what the condition means.
func (c *cond) holds(v uint64, bits int) bool {
	want, mask := c.word(bits), c.mask
	if bits == 32 {
		v = uint64(uint32(v))
		mask = uint64(uint32(mask))
	}
	switch c.op {
	case eq:
		return v == want
	case ne:
		return v != want
	case lt:
		return v < want
	case le:
		return v <= want
	case gt:
		return v > want
	case ge:
		return v >= want
	default:
		return v&mask == want&mask
	}
}

// cond adds one condition.
func (a *assembler) cond(c *cond, bits int, yes, no target) target {
	lo, hi := uint32(c.value), uint32(c.value>>32)
	var code uint16 = unix.BPF_JEQ
	mlo, mhi := ^uint32(0), ^uint32(0)
	switch c.op {
	case ne:
		yes, no = no, yes
	case lt: // not at least
		yes, no = no, yes
		code = unix.BPF_JGE
	case le: // not above
		yes, no = no, yes
		code = unix.BPF_JGT
	case gt:
		code = unix.BPF_JGT
	case ge:
		code = unix.BPF_JGE
	case masked:
		mlo, mhi = uint32(c.mask), uint32(c.mask>>32)
		lo, hi = lo&mlo, hi&mhi
	}
	t := yes
	if mlo != 0 {
		t = a.compare(a.low(c.arg), mlo, code, lo, yes, no)
	}
	if bits == 32 {
		return t
	}
	if code == unix.BPF_JEQ {
		if mhi != 0 {
			t = a.compare(a.high(c.arg), mhi, code, hi, t, no)
		}
		return t
	}
	// Above in the upper half decides; equal there leaves it to the lower.
	t = a.branch(unix.BPF_JEQ, hi, t, no)
	t = a.branch(unix.BPF_JGT, hi, yes, t)
	return a.load(a.high(c.arg), t)
}

// compare adds load, mask and comparison of one half.
func (a *assembler) compare(off, mask uint32, code uint16, k uint32, yes, no target) target {
	t := a.branch(code, k, yes, no)
	if t.ret || t == yes {
		return t
	}
	if mask != ^uint32(0) {
		t = a.and(mask)
	}
	return a.load(off, t)
}
