// Package devicefilter decides which devices a control group v2 may use, by a
// BPF program made of OCI device rules.
//
// # Model
//
//	rules ──Compile──▶ Program ──Attach──▶ control group
//
// The last rule that is about a device and a kind of access decides. A use of
// several kinds at once (open for reading and writing) needs each. What no
// rule is about is denied.
//
// # Guarantees
//
// Attach replaces an earlier program of ours without a moment in which neither
// holds; programs of others, such as systemd's, stay, and all of them have to
// agree. Run gives the verdict of a program without a kernel; it is what the
// tests compare with the rules.
//
// # Not here
//
// The device files of control groups v1 (package cgroup).
package devicefilter

import (
	"encoding/binary"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// Kinds of access, as the kernel numbers them.
const (
	Mknod = unix.BPF_DEVCG_ACC_MKNOD
	Read  = unix.BPF_DEVCG_ACC_READ
	Write = unix.BPF_DEVCG_ACC_WRITE

	allAccess = Mknod | Read | Write
)

// Kinds of device, as the kernel numbers them.
const (
	Block = unix.BPF_DEVCG_DEV_BLOCK
	Char  = unix.BPF_DEVCG_DEV_CHAR
)

// maxRules bounds a program: 9 instructions a rule stay below what the kernel
// takes, and below the reach of a jump.
const maxRules = 400

// Program is a compiled filter, as the kernel takes it.
type Program struct{ code []byte }

// Len is the number of instructions.
func (p *Program) Len() int { return len(p.code) / 8 }

// access turns "rwm" into bits. Nothing means everything.
func access(s string) (uint32, bool) {
	if s == "" {
		return allAccess, true
	}
	var out uint32
	for _, c := range s {
		switch c {
		case 'r':
			out |= Read
		case 'w':
			out |= Write
		case 'm':
			out |= Mknod
		default:
			return 0, false
		}
	}
	return out, true
}

// AllAccess reports whether s means every kind of access.
func AllAccess(s string) bool {
	a, ok := access(s)
	return ok && a == allAccess
}

// Check finds what is wrong with the rules.
func Check(rules []specs.LinuxDeviceCgroup) error {
	if len(rules) > maxRules {
		return errdefs.Newf(errdefs.Invalid, "check", "device rules", "%d of them, and %d is the most", len(rules), maxRules)
	}
	for i, r := range rules {
		bad := func(format string, args ...any) error {
			return errdefs.Newf(errdefs.Invalid, "check", "device rule "+describe(i, r), format, args...)
		}
		switch r.Type {
		case "", "a", "b", "c", "u":
		default:
			return bad("a type is a, b, c or u")
		}
		if _, ok := access(r.Access); !ok {
			return bad("access is made of r, w and m")
		}
		for _, n := range []*int64{r.Major, r.Minor} {
			if n != nil && (*n < -1 || *n > 1<<32-1) {
				return bad("%d is not a device number", *n)
			}
		}
	}
	return nil
}

func describe(i int, r specs.LinuxDeviceCgroup) string {
	num := func(n *int64) string {
		if n == nil || *n == -1 {
			return "*"
		}
		return itoa(*n)
	}
	verb := "deny"
	if r.Allow {
		verb = "allow"
	}
	return itoa(int64(i)) + ` "` + strings.TrimSpace(verb+" "+r.Type) + " " + num(r.Major) + ":" + num(r.Minor) + " " + r.Access + `"`
}

func itoa(n int64) string {
	if n < 0 {
		return "-" + itoa(-n)
	}
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}

// Registers of the program.
const (
	verdict = 0 // what the program returns: 1 allows
	ctx     = 1 // struct bpf_cgroup_dev_ctx
	typ     = 2
	wanted  = 3 // kinds of access not yet allowed
	major   = 4
	minor   = 5
	scratch = 6
)

// Compile makes the program. Rules are looked at from the last to the first:
// a rule that allows takes its kinds of access off what is wanted, and the end
// is reached when nothing is; one that denies ends it if it concerns anything
// still wanted.
func Compile(rules []specs.LinuxDeviceCgroup) (*Program, error) {
	if err := Check(rules); err != nil {
		return nil, err
	}
	a := &assembler{}
	a.op(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, typ, ctx, 0, 0)
	a.op(unix.BPF_ALU|opMov|unix.BPF_X, wanted, typ, 0, 0)
	a.op(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, typ, 0, 0, 0xffff)
	a.op(unix.BPF_ALU|unix.BPF_RSH|unix.BPF_K, wanted, 0, 0, 16)
	a.op(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, major, ctx, 4, 0)
	a.op(unix.BPF_LDX|unix.BPF_MEM|unix.BPF_W, minor, ctx, 8, 0)
	// A use that wants nothing is a use all the same: it ends at the deny.
	for i := len(rules) - 1; i >= 0; i-- {
		if a.rule(rules[i]) {
			return &Program{a.code}, nil
		}
	}
	a.end(0)
	return &Program{a.code}, nil
}

// rule adds one rule, and reports whether it decides everything that is left.
func (a *assembler) rule(r specs.LinuxDeviceCgroup) bool {
	bits, _ := access(r.Access)
	var jumps []int // to the next rule, where this one is not about the device
	test := func(reg uint8, v uint32) {
		jumps = append(jumps, a.jump(jmp32|opJne|unix.BPF_K, reg, v))
	}
	switch r.Type {
	case "b":
		test(typ, Block)
	case "c", "u":
		test(typ, Char)
	}
	if r.Major != nil && *r.Major != -1 {
		test(major, uint32(*r.Major))
	}
	if r.Minor != nil && *r.Minor != -1 {
		test(minor, uint32(*r.Minor))
	}
	final := len(jumps) == 0 && bits == allAccess
	switch {
	case bits == allAccess && r.Allow:
		a.end(1)
	case bits == allAccess:
		a.end(0)
	case r.Allow:
		a.op(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, wanted, 0, 0, allAccess&^bits)
		jumps = append(jumps, a.jump(jmp32|opJne|unix.BPF_K, wanted, 0))
		a.end(1)
	default:
		a.op(unix.BPF_ALU|opMov|unix.BPF_X, scratch, wanted, 0, 0)
		a.op(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, scratch, 0, 0, bits)
		jumps = append(jumps, a.jump(jmp32|unix.BPF_JEQ|unix.BPF_K, scratch, 0))
		a.end(0)
	}
	for _, j := range jumps {
		a.land(j)
	}
	return final
}

// Instruction parts that the classic BPF constants do not have.
const (
	opMov  = 0xb0
	opJne  = 0x50
	opExit = 0x90
	jmp32  = 0x06
)

// assembler collects instructions: op, registers, offset, immediate.
type assembler struct{ code []byte }

func (a *assembler) op(code, dst, src uint8, off int16, imm uint32) {
	a.code = append(a.code, code, src<<4|dst)
	a.code = binary.NativeEndian.AppendUint16(a.code, uint16(off))
	a.code = binary.NativeEndian.AppendUint32(a.code, imm)
}

func (a *assembler) end(v uint32) {
	a.op(unix.BPF_ALU|opMov|unix.BPF_K, verdict, 0, 0, v)
	a.op(unix.BPF_JMP|opExit, 0, 0, 0, 0)
}

// jump adds a jump whose target land sets.
func (a *assembler) jump(code, reg uint8, v uint32) int {
	a.op(code, reg, 0, 0, v)
	return len(a.code) - 8
}

func (a *assembler) land(at int) {
	binary.NativeEndian.PutUint16(a.code[at+2:], uint16((len(a.code)-at)/8-1))
}
