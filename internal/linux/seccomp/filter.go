package seccomp

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A Filter is a program ready for seccomp(2).
type Filter struct {
	Prog   []byte // struct sock_filter, 8 bytes each, in the machine's byte order
	Flags  uint   // of SECCOMP_SET_MODE_FILTER
	Notify bool   // some calls are for a listener: add SECCOMP_FILTER_FLAG_NEW_LISTENER
}

// Len is the number of instructions.
func (f *Filter) Len() int { return len(f.Prog) / 8 }

// maxLen is the kernel's limit.
const maxLen = unix.BPF_MAXINSNS

// Compile makes the filter of a profile, or takes it from the cache. A nil
// profile, and one that says nothing, have none.
func Compile(s *specs.LinuxSeccomp) (*Filter, error) { return compiled.Compile(s) }

var compiled Cache

// Cache keeps filters by what their profiles say. The zero value is ready.
type Cache struct {
	mu      sync.Mutex
	filters map[[sha256.Size]byte]*Filter
}

// maxCached bounds the cache: profiles in use are few, and a stream of new
// ones is not worth keeping.
const maxCached = 128

// Compile is the function of that name, with a cache of its own.
func (c *Cache) Compile(s *specs.LinuxSeccomp) (*Filter, error) {
	if s == nil || s.DefaultAction == "" && len(s.Syscalls) == 0 {
		return nil, nil
	}
	key := digest(s)
	c.mu.Lock()
	f := c.filters[key]
	c.mu.Unlock()
	if f != nil {
		return f, nil
	}
	f, err := compile(s)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	if c.filters == nil || len(c.filters) >= maxCached {
		c.filters = map[[sha256.Size]byte]*Filter{}
	}
	c.filters[key] = f
	c.mu.Unlock()
	return f, nil
}

func compile(s *specs.LinuxSeccomp) (*Filter, error) {
	p, err := check(s)
	if err != nil {
		return nil, err
	}
	prog := p.assemble()
	if len(prog) > maxLen {
		return nil, bad("it needs %d instructions, and the kernel takes %d", len(prog), maxLen)
	}
	f := &Filter{Prog: make([]byte, 0, 8*len(prog)), Flags: p.flags, Notify: p.notify}
	for _, i := range prog {
		f.Prog = binary.NativeEndian.AppendUint16(f.Prog, i.code)
		f.Prog = append(f.Prog, i.jt, i.jf)
		f.Prog = binary.NativeEndian.AppendUint32(f.Prog, i.k)
	}
	return f, nil
}

// digest tells profiles apart. Every field goes in with its length, so that no
// two profiles look the same.
func digest(s *specs.LinuxSeccomp) (sum [sha256.Size]byte) {
	d := digester{h: sha256.New(), buf: make([]byte, 0, 8192)}
	d.str(string(s.DefaultAction))
	d.opt(s.DefaultErrnoRet)
	d.num(uint64(len(s.Architectures)))
	for _, a := range s.Architectures {
		d.str(string(a))
	}
	// No flags and an empty list are not the same.
	d.num(uint64(len(s.Flags)))
	if s.Flags == nil {
		d.num(1)
	}
	for _, f := range s.Flags {
		d.str(string(f))
	}
	d.str(s.ListenerPath)
	for i := range s.Syscalls {
		c := &s.Syscalls[i]
		d.num(uint64(len(c.Names)))
		for _, n := range c.Names {
			d.str(n)
		}
		d.str(string(c.Action))
		d.opt(c.ErrnoRet)
		d.num(uint64(len(c.Args)))
		for _, a := range c.Args {
			d.num(uint64(a.Index))
			d.num(a.Value)
			d.num(a.ValueTwo)
			d.str(string(a.Op))
		}
	}
	d.h.Write(d.buf)
	d.h.Sum(sum[:0])
	return sum
}

type digester struct {
	h   hash.Hash
	buf []byte
}

func (d *digester) num(n uint64) { d.buf = binary.AppendUvarint(d.buf, n) }

func (d *digester) str(s string) {
	d.num(uint64(len(s)))
	d.buf = append(d.buf, s...)
	if len(d.buf) > 4096 {
		d.h.Write(d.buf)
		d.buf = d.buf[:0]
	}
}

func (d *digester) opt(n *uint) {
	if n == nil {
		d.num(0)
		return
	}
	d.num(1)
	d.num(uint64(*n))
}

// A Call is what a filter decides on.
type Call struct {
	Arch uint32 // AUDIT_ARCH_*
	Nr   uint32
	Args [maxArgs]uint64
}

// Run gives the program's answer to a call, as the kernel would take it: a
// SECCOMP_RET_* with its data. It stands in for the kernel in tests and
// explanations.
func (f *Filter) Run(c Call) (uint32, error) {
	var data [64]byte
	ne := binary.NativeEndian
	ne.PutUint32(data[offNr:], c.Nr)
	ne.PutUint32(data[offArch:], c.Arch)
	for i, v := range c.Args {
		ne.PutUint64(data[offArgs+8*i:], v)
	}
	var acc uint32
	for pc := 0; pc < f.Len(); pc++ {
		in := f.Prog[8*pc:]
		jt, jf, k := int(in[2]), int(in[3]), ne.Uint32(in[4:])
		jump := func(yes bool) {
			if yes {
				pc += jt
			} else {
				pc += jf
			}
		}
		switch ne.Uint16(in) {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if k > 60 || k%4 != 0 {
				return 0, fmt.Errorf("instruction %d loads from %d", pc, k)
			}
			acc = ne.Uint32(data[k:])
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= k
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(k)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(acc == k)
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			jump(acc >= k)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(acc > k)
		case unix.BPF_RET | unix.BPF_K:
			return k, nil
		default:
			return 0, fmt.Errorf("instruction %d has the unknown code %#x", pc, ne.Uint16(in))
		}
	}
	return 0, fmt.Errorf("the program does not end")
}
