package seccomp

import (
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// reference decides on a call by reading the profile as doc.go says, entry by
// entry; it knows nothing of ranges, trees and programs.
func reference(s *specs.LinuxSeccomp, c Call) uint32 {
	var ar *arch
	listed := append([]specs.Arch{native().name}, s.Architectures...)
	for i := range arches {
		a := &arches[i]
		if a.audit != c.Arch || !slices.Contains(listed, a.name) {
			continue
		}
		if a.audit == arches[0].audit && (c.Nr >= x32Bit) != (a.mode == x32Bit) && c.Nr != ^uint32(0) {
			continue
		}
		ar = a
	}
	if ar == nil {
		return unix.SECCOMP_RET_KILL_THREAD
	}
	def, _ := action(s.DefaultAction, s.DefaultErrnoRet)
	nr := c.Nr - ar.mode
	last, named := uint32(0), false
	var first *uint32
	decided := false
	var verdict uint32
	for _, e := range s.Syscalls {
		act, _ := action(e.Action, e.ErrnoRet)
		for _, name := range e.Names {
			row := lookup(name)
			if n, ok := ar.number(name, row); ok {
				last, named = max(last, n), true
				if n == nr && c.Nr != ^uint32(0) && act != def {
					if len(e.Args) == 0 && first == nil {
						first = &act
					}
					if len(e.Args) > 0 && !decided && fulfilled(e.Args, c, ar.bits) {
						decided, verdict = true, act
					}
				}
			}
			n, code, ok := ar.muxed(name)
			if ok && act != def {
				last = max(last, n)
			}
			if ok && n == nr && act != def && !decided && uint32(c.Args[0]) == code &&
				(ar.bits == 32 || c.Args[0]>>32 == 0) {
				decided, verdict = true, act
			}
		}
	}
	if !lets(def) && named && (nr > last || c.Nr == ^uint32(0)) {
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	if first != nil {
		return *first
	}
	if decided {
		return verdict
	}
	return def
}

func fulfilled(args []specs.LinuxSeccompArg, c Call, bits int) bool {
	one := func(a specs.LinuxSeccompArg) bool {
		v, x, y := c.Args[a.Index], a.Value, a.ValueTwo
		if bits == 32 {
			v, x, y = v&0xffffffff, x&0xffffffff, y&0xffffffff
		}
		switch a.Op {
		case specs.OpEqualTo:
			return v == x
		case specs.OpNotEqual:
			return v != x
		case specs.OpLessThan:
			return v < x
		case specs.OpLessEqual:
			return v <= x
		case specs.OpGreaterThan:
			return v > x
		case specs.OpGreaterEqual:
			return v >= x
		}
		return v&x == y&x
	}
	count := map[uint]int{}
	alternatives := false
	for _, a := range args {
		count[a.Index]++
		alternatives = alternatives || count[a.Index] > 1
	}
	for _, a := range args {
		if one(a) == alternatives {
			return alternatives
		}
	}
	return !alternatives
}

var someNames = []string{
	"read", "write", "open", "openat", "socket", "bind", "accept", "ioctl", "clone", "clone3", "personality", "mount",
	"umount2", "ptrace", "rt_sigaction", "semop", "shmat", "socketcall", "ipc", "cacheflush", "set_tls", "nosuchcall",
	"execve", "fchmodat2", "prctl", "exit_group", "getpid", "_llseek", "mseal", "close", "dup", "pipe", "poll",
}

var someValues = []uint64{0, 1, 2, 3, 10, 40, 0x7fffffff, 0x80000000, 0xffffffff, 0x100000000, 0x100000001,
	0x1ffffffff, 1 << 63, ^uint64(0), ^uint64(0) - 1, 0xffffffff00000000}

var allActions = []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap,
	specs.ActErrno, specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify}

var allOps = []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
	specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}

func pickOf[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func randomProfile(r *rand.Rand) *specs.LinuxSeccomp {
	s := &specs.LinuxSeccomp{DefaultAction: pickOf(r, allActions[:8]), ListenerPath: "/run/agent.sock"}
	errno := func(a specs.LinuxSeccompAction) *uint {
		if (a == specs.ActErrno || a == specs.ActTrace) && r.IntN(2) == 0 {
			v := uint(r.IntN(100))
			return &v
		}
		return nil
	}
	s.DefaultErrnoRet = errno(s.DefaultAction)
	for i := range arches {
		if r.IntN(3) == 0 {
			s.Architectures = append(s.Architectures, arches[i].name)
		}
	}
	for range r.IntN(12) {
		c := specs.LinuxSyscall{Action: pickOf(r, allActions)}
		c.ErrnoRet = errno(c.Action)
		for range 1 + r.IntN(4) {
			name := pickOf(r, someNames)
			if r.IntN(3) == 0 {
				name = syscalls[r.IntN(len(syscalls))].name
			}
			if c.Action == specs.ActNotify && name == "write" {
				name = "read"
			}
			c.Names = append(c.Names, name)
		}
		if r.IntN(4) == 0 { // many alternatives, as Docker's socket families
			op := pickOf(r, allOps[:6])
			for range 3 + r.IntN(20) {
				c.Args = append(c.Args, specs.LinuxSeccompArg{Index: 0, Op: op, Value: uint64(r.IntN(50))})
			}
		} else {
			for range r.IntN(4) {
				c.Args = append(c.Args, specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Op: pickOf(r, allOps),
					Value: pickOf(r, someValues), ValueTwo: pickOf(r, someValues)})
			}
		}
		s.Syscalls = append(s.Syscalls, c)
	}
	return s
}

// randomCall makes calls that are near to what the profile is about.
func randomCall(r *rand.Rand, s *specs.LinuxSeccomp) Call {
	c := Call{Arch: arches[r.IntN(len(arches))].audit, Nr: uint32(r.IntN(600))}
	if r.IntN(2) == 0 {
		c.Arch = native().audit
	}
	ar := &arches[r.IntN(len(arches))]
	if r.IntN(4) == 0 {
		ar = native()
	}
	if len(s.Syscalls) > 0 && r.IntN(5) > 0 {
		e := pickOf(r, s.Syscalls)
		name := pickOf(r, e.Names)
		if n, ok := ar.number(name, lookup(name)); ok {
			c.Arch, c.Nr = ar.audit, n+ar.mode
		} else if n, _, ok := ar.muxed(name); ok {
			c.Arch, c.Nr = ar.audit, n
		}
		c.Nr += uint32(r.IntN(3)/2) * uint32(r.IntN(2))
		for _, a := range e.Args {
			switch r.IntN(4) {
			case 0:
				c.Args[a.Index] = a.Value
			case 1:
				c.Args[a.Index] = a.Value + 1
			case 2:
				c.Args[a.Index] = a.ValueTwo | a.Value&pickOf(r, someValues)
			}
		}
	}
	for i := range c.Args {
		if r.IntN(3) == 0 {
			c.Args[i] = pickOf(r, someValues)
		}
		if r.IntN(8) == 0 {
			c.Args[i] = uint64(r.IntN(60))
		}
	}
	if r.IntN(20) == 0 {
		c.Nr = pickOf(r, []uint32{^uint32(0), x32Bit, x32Bit - 1, x32Bit + 41, x32Bit + 520, 0x80000000, 471, 472, armPrivNr + 1})
	}
	return c
}

func compare(t *testing.T, s *specs.LinuxSeccomp, f *Filter, c Call) {
	t.Helper()
	got, err := f.Run(c)
	if err != nil {
		t.Fatal(err)
	}
	if want := reference(s, c); got != want {
		t.Fatalf("call %+v: the program says %#x, the profile %#x\n%+v", c, got, want, s)
	}
}

func check1(t *testing.T, seed1, seed2 uint64, calls int) {
	r := rand.New(rand.NewPCG(seed1, seed2))
	s := randomProfile(r)
	f, err := compile(s)
	if err != nil {
		t.Fatalf("%v\n%+v", err, s)
	}
	for range calls {
		compare(t, s, f, randomCall(r, s))
	}
}

func TestProgramsSayWhatProfilesSay(t *testing.T) {
	n := uint64(20000)
	if testing.Short() {
		n = 1000
	}
	for i := range n {
		check1(t, i, 7, 50)
	}
}

func FuzzCompile(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) { check1(t, a, b, 30) })
}

func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := Load(text, []string{"CAP_SYS_ADMIN"}, "amd64")
		if err != nil {
			return
		}
		c, err := compile(s)
		if err != nil {
			return
		}
		for nr := range uint32(500) {
			if _, err := c.Run(Call{Arch: native().audit, Nr: nr}); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// dockerCaps are the bounding capabilities of Docker's containers.
var dockerCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

func TestDefaultProfile(t *testing.T) {
	for _, caps := range [][]string{nil, dockerCaps, {"CAP_SYS_ADMIN", "CAP_BPF"}} {
		s := Default(caps, "")
		f, err := compile(s)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d instructions", f.Len())
		for _, a := range s.Architectures {
			ar := archByName(a)
			for nr := range uint32(600) {
				compare(t, s, f, Call{Arch: ar.audit, Nr: nr | ar.mode})
			}
			for v := range uint64(50) {
				n, _ := ar.number("socket", lookup("socket"))
				compare(t, s, f, Call{Arch: ar.audit, Nr: n | ar.mode, Args: [6]uint64{v}})
				compare(t, s, f, Call{Arch: ar.audit, Nr: n | ar.mode, Args: [6]uint64{v | 1<<40}})
			}
		}
	}
}

// Docker's package resolves its profile for the machine it is built for; ours
// for any must agree where both can say.
func TestDefaultIsDockers(t *testing.T) {
	for _, caps := range [][]string{nil, dockerCaps, {"CAP_SYS_ADMIN"}, {"CAP_SYS_TIME", "CAP_SYSLOG", "CAP_DAC_READ_SEARCH"}} {
		want, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
		if err != nil {
			t.Fatal(err)
		}
		if digest(want) != digest(Default(caps, "")) {
			t.Errorf("with %v another profile than Docker's", caps)
		}
	}
}

func TestEveryArchitectureHasADefault(t *testing.T) {
	for _, g := range []string{"amd64", "arm64", "riscv64", "s390x", "loong64", "ppc64le"} {
		s := Default(dockerCaps, g)
		if _, err := compile(s); err != nil {
			t.Errorf("%s: %v", g, err)
		}
		if g == "arm64" && !slices.Contains(s.Architectures, specs.ArchARM) {
			t.Errorf("%s: %v", g, s.Architectures)
		}
	}
}

func errnoRet(n uint) *uint { return &n }

func TestBadProfiles(t *testing.T) {
	allow := func(c specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{c}}
	}
	arg := func(a specs.LinuxSeccompArg) *specs.LinuxSeccomp {
		return allow(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{a}})
	}
	for name, s := range map[string]*specs.LinuxSeccomp{
		"no default":        {Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}},
		"bad default":       {DefaultAction: "SCMP_ACT_MAYBE"},
		"notify by default": {DefaultAction: specs.ActNotify},
		"errno with allow":  {DefaultAction: specs.ActAllow, DefaultErrnoRet: errnoRet(1)},
		"errno too large":   {DefaultAction: specs.ActErrno, DefaultErrnoRet: errnoRet(1 << 16)},
		"bad architecture":  {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_VAX"}},
		"bad flag":          {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_FUN"}},
		"no names":          allow(specs.LinuxSyscall{Action: specs.ActErrno}),
		"empty name":        allow(specs.LinuxSyscall{Action: specs.ActErrno, Names: []string{""}}),
		"bad action":        allow(specs.LinuxSyscall{Names: []string{"read"}}),
		"errno of an entry": allow(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActKill, ErrnoRet: errnoRet(1)}),
		"notify write":      allow(specs.LinuxSyscall{Names: []string{"read", "write"}, Action: specs.ActNotify}),
		"notify nobody":     allow(specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActNotify}),
		"argument 6":        arg(specs.LinuxSeccompArg{Index: 6, Op: specs.OpEqualTo}),
		"bad operator":      arg(specs.LinuxSeccompArg{Op: "SCMP_CMP_ISH"}),
		"too many":          allow(specs.LinuxSyscall{Names: slices.Repeat([]string{"read"}, maxEntries+1), Action: specs.ActErrno}),
	} {
		if _, err := Compile(s); !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestTooLongIsRefused(t *testing.T) {
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	for i := range uint64(3000) {
		s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{"read"}, Action: specs.ActErrno,
			Args: []specs.LinuxSeccompArg{{Index: uint(i % 6), Op: specs.OpMaskedEqual, Value: i, ValueTwo: i}}})
	}
	if _, err := Compile(s); !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(err.Error(), "instructions") {
		t.Errorf("got %v", err)
	}
}

// Long programs need jumps beyond what a comparison can reach.
func TestLongPrograms(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		s := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86, specs.ArchX32, specs.ArchX86_64}}
		for range 120 {
			s.Syscalls = append(s.Syscalls, specs.LinuxSyscall{Names: []string{syscalls[r.IntN(len(syscalls))].name, pickOf(r, someNames[:8])},
				Action: pickOf(r, allActions[:8]), Args: []specs.LinuxSeccompArg{
					{Index: uint(r.IntN(3)), Op: pickOf(r, allOps), Value: pickOf(r, someValues), ValueTwo: pickOf(r, someValues)},
					{Index: 3, Op: pickOf(r, allOps), Value: pickOf(r, someValues), ValueTwo: pickOf(r, someValues)}}})
		}
		f, err := compile(s)
		if err != nil {
			t.Fatal(err)
		}
		if f.Len() < 1000 {
			t.Fatalf("only %d instructions", f.Len())
		}
		for range 2000 {
			compare(t, s, f, randomCall(r, s))
		}
	}
}

func TestNothingIsNoFilter(t *testing.T) {
	for _, s := range []*specs.LinuxSeccomp{nil, {}} {
		if f, err := Compile(s); f != nil || err != nil {
			t.Errorf("got %v %v", f, err)
		}
	}
}

func TestFlags(t *testing.T) {
	s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}
	f, _ := Compile(s)
	if f.Flags != unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW {
		t.Errorf("without flags: %#x", f.Flags)
	}
	s.Flags = []specs.LinuxSeccompFlag{}
	if f, _ = Compile(s); f.Flags != 0 {
		t.Errorf("with an empty list: %#x", f.Flags)
	}
	s.Flags = []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC", specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagWaitKillableRecv}
	if f, _ = Compile(s); f.Flags != unix.SECCOMP_FILTER_FLAG_LOG|unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV {
		t.Errorf("got %#x", f.Flags)
	}
}

func TestCache(t *testing.T) {
	var c Cache
	a, err := c.Compile(Default(nil, ""))
	if err != nil {
		t.Fatal(err)
	}
	if b, _ := c.Compile(Default(nil, "")); a != b {
		t.Error("the same profile was compiled twice")
	}
	if b, _ := c.Compile(Default([]string{"CAP_SYS_ADMIN"}, "")); a == b {
		t.Error("another profile got the same filter")
	}
	for i := range uint(2 * maxCached) {
		c.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &i})
	}
	if len(c.filters) > maxCached {
		t.Errorf("%d filters are kept", len(c.filters))
	}
}

// The kernel is asked whether it takes the programs, not whether it obeys.
func TestKernelTakesIt(t *testing.T) {
	if _, err := os.Stat("/proc/self/seccomp"); err != nil && native().audit != arches[0].audit {
		t.Skip("another architecture")
	}
	r := rand.New(rand.NewPCG(9, 9))
	list := []*specs.LinuxSeccomp{Default(dockerCaps, ""), {DefaultAction: specs.ActAllow}}
	for range 20 {
		list = append(list, randomProfile(r))
	}
	for _, s := range list {
		f, err := compile(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(f); err != nil {
			t.Errorf("%v\n%+v", err, s)
		}
	}
}

func BenchmarkCompileDefault(b *testing.B) {
	s := Default(dockerCaps, "")
	for b.Loop() {
		compile(s)
	}
}

func BenchmarkCached(b *testing.B) {
	s := Default(dockerCaps, "")
	for b.Loop() {
		Compile(s)
	}
}

func BenchmarkDefault(b *testing.B) {
	for b.Loop() {
		Default(dockerCaps, "")
	}
}
