package seccomp

import (
	"maps"
	"math"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// Limits of what a profile may hold, far above any that is in use. A program
// has at most 4096 instructions anyhow.
const (
	maxEntries = 20000 // names over all entries
	maxArgs    = 6
)

// A cond is one condition on an argument.
type cond struct {
	arg         uint8
	op          op
	mask, value uint64 // the mask is for masked equality only
}

type op uint8

const (
	eq op = iota
	ne
	lt
	le
	gt
	ge
	masked
)

// A rule is an action under conditions, all of which must hold.
type rule struct {
	action uint32
	conds  []cond
}

// profile is a checked OCI profile.
type profile struct {
	def     uint32
	arches  []*arch
	entries []entry
	flags   uint
	notify  bool
}

type entry struct {
	names []string
	calls []*syscall // beside names; nil for one we do not know
	rules []rule     // several where conditions are alternatives
	same  bool       // the action is the default one
}

func bad(format string, args ...any) error {
	return errdefs.Newf(errdefs.Invalid, "compile", "seccomp profile", format, args...)
}

// check turns an OCI profile into ours.
func check(s *specs.LinuxSeccomp) (*profile, error) {
	p := &profile{}
	var err error
	if p.def, err = action(s.DefaultAction, s.DefaultErrnoRet); err != nil {
		return nil, err
	}
	if s.DefaultAction == specs.ActNotify {
		return nil, bad("SCMP_ACT_NOTIFY cannot be the default action: nothing could be done to hand over the listener")
	}
	if p.arches, err = architectures(s.Architectures); err != nil {
		return nil, err
	}
	if p.flags, err = flags(s.Flags); err != nil {
		return nil, err
	}
	total := 0
	for i := range s.Syscalls {
		e, err := p.entry(&s.Syscalls[i])
		if err != nil {
			return nil, err
		}
		e.calls = make([]*syscall, len(e.names))
		for i, n := range e.names {
			e.calls[i] = lookup(n)
		}
		if total += len(e.names) * max(1, len(e.rules)); total > maxEntries {
			return nil, bad("it has more than %d rules", maxEntries)
		}
		p.entries = append(p.entries, e)
	}
	if p.notify && s.ListenerPath == "" {
		return nil, bad("SCMP_ACT_NOTIFY needs a listenerPath")
	}
	return p, nil
}

func (p *profile) entry(s *specs.LinuxSyscall) (entry, error) {
	act, err := action(s.Action, s.ErrnoRet)
	if err != nil {
		return entry{}, err
	}
	if len(s.Names) == 0 {
		return entry{}, bad("an entry names no system call")
	}
	if slices.Contains(s.Names, "") {
		return entry{}, bad("the empty string is not a system call")
	}
	if s.Action == specs.ActNotify {
		if slices.Contains(s.Names, "write") {
			return entry{}, bad("SCMP_ACT_NOTIFY cannot be for write: it is needed to hand over the listener")
		}
		p.notify = true
	}
	e := entry{names: s.Names, same: act == p.def}
	conds, err := conditions(s.Args)
	if err != nil {
		return entry{}, err
	}
	if !repeats(conds) {
		e.rules = []rule{{act, conds}}
		return e, nil
	}
	for i := range conds {
		e.rules = append(e.rules, rule{act, conds[i : i+1]})
	}
	return e, nil
}

func conditions(args []specs.LinuxSeccompArg) ([]cond, error) {
	var out []cond
	for _, a := range args {
		if a.Index >= maxArgs {
			return nil, bad("there is no argument %d: a system call has %d", a.Index, maxArgs)
		}
		c := cond{arg: uint8(a.Index), value: a.Value}
		switch a.Op {
		case specs.OpEqualTo:
			c.op = eq
		case specs.OpNotEqual:
			c.op = ne
		case specs.OpLessThan:
			c.op = lt
		case specs.OpLessEqual:
			c.op = le
		case specs.OpGreaterThan:
			c.op = gt
		case specs.OpGreaterEqual:
			c.op = ge
		case specs.OpMaskedEqual:
			c.op, c.mask, c.value = masked, a.Value, a.ValueTwo
		default:
			return nil, bad("%q is not an operator", a.Op)
		}
		out = append(out, c)
	}
	return out, nil
}

// repeats reports whether two conditions are about one argument.
func repeats(conds []cond) bool {
	var seen [maxArgs]bool
	for _, c := range conds {
		if seen[c.arg] {
			return true
		}
		seen[c.arg] = true
	}
	return false
}

// action is what a filter returns.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	takesErrno := a == specs.ActErrno || a == specs.ActTrace
	if errno != nil && !takesErrno {
		return 0, bad("%s takes no errnoRet", a)
	}
	data := uint32(unix.EPERM)
	if errno != nil {
		if *errno > math.MaxUint16 {
			return 0, bad("errnoRet %d is above %d", *errno, math.MaxUint16)
		}
		data = uint32(*errno)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActNotify:
		return unix.SECCOMP_RET_USER_NOTIF, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	}
	return 0, bad("%q is not an action", a)
}

// lets reports whether an action lets a call that we do not know through to
// the kernel, or to a tracer, who can answer ENOSYS themselves.
func lets(act uint32) bool {
	switch act & unix.SECCOMP_RET_ACTION_FULL {
	case unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_TRACE:
		return true
	}
	return false
}

func architectures(names []specs.Arch) ([]*arch, error) {
	out := []*arch{native()}
	for _, n := range names {
		a := archByName(n)
		switch {
		case a == nil && !foreign(n):
			return nil, bad("%q is not an architecture", n)
		case a != nil && !slices.Contains(out, a):
			out = append(out, a)
		}
	}
	return out, nil
}

// Flags of seccomp(2) in words of the specification.
func flags(list []specs.LinuxSeccompFlag) (uint, error) {
	if list == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var out uint
	for _, f := range list {
		switch f {
		case "SECCOMP_FILTER_FLAG_TSYNC":
			// The one that loads the filter has one thread.
		case specs.LinuxSeccompFlagLog:
			out |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			out |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			out |= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
		default:
			return 0, bad("%q is not a flag", f)
		}
	}
	return out, nil
}

// verdicts says what happens to the calls of one architecture.
type verdicts struct {
	dense []ruleList          // by number, from the architecture's first
	far   map[uint32]ruleList // numbers beyond
	last  uint32              // the highest number named
	named bool
}

// A ruleList is the rules of one call; the first that holds decides.
type ruleList []rule

// denseLen is above the count of calls of any architecture.
const denseLen = 640

// resolve gives every entry its number on a.
func (p *profile) resolve(a *arch) *verdicts {
	v := &verdicts{dense: make([]ruleList, denseLen)}
	for i := range p.entries {
		e := &p.entries[i]
		for j, name := range e.names {
			if nr, ok := a.number(name, e.calls[j]); ok {
				if nr > v.last {
					v.last = nr
				}
				v.named = true
				if !e.same {
					v.add(a, nr, e.rules)
				}
			}
			if nr, code, ok := a.muxed(name); ok && !e.same {
				v.last = max(v.last, nr)
				// The arguments proper are behind a pointer, where a filter
				// cannot look.
				v.add(a, nr, ruleList{{e.rules[0].action, []cond{{arg: 0, op: eq, value: uint64(code)}}}})
			}
		}
	}
	return v
}

// add appends rules to those of a call, as long as they can matter.
func (v *verdicts) add(a *arch, nr uint32, rules ruleList) {
	if i := nr - a.first; i < denseLen {
		v.dense[i] = v.dense[i].add(rules)
		return
	}
	if v.far == nil {
		v.far = map[uint32]ruleList{}
	}
	v.far[nr] = v.far[nr].add(rules)
}

func (have ruleList) add(rules ruleList) ruleList {
	if len(have) == 1 && have[0].conds == nil {
		return have
	}
	for i := range rules {
		if rules[i].conds == nil {
			return rules[i : i+1]
		}
	}
	if have == nil {
		return rules[:len(rules):len(rules)]
	}
	return append(have, rules...)
}

// each calls f for every call that has rules, in the order of the numbers.
func (v *verdicts) each(a *arch, f func(nr uint32, rules ruleList)) {
	for i, l := range v.dense {
		if l != nil {
			f(a.first+uint32(i), l)
		}
	}
	for _, nr := range slices.Sorted(maps.Keys(v.far)) {
		f(nr, v.far[nr])
	}
}
