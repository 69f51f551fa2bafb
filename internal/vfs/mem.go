package vfs

import (
	"errors"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// sector is the unit in which a power cut keeps or loses written bytes.
const sector = 512

// ErrPowerCut is what operations on a Mem return after Crash.
var ErrPowerCut = errors.New("power cut")

// Mem is an FS in memory that remembers what was synced.
type Mem struct {
	// Capacity, if not 0, is how many bytes all files together may hold.
	Capacity int64

	mu      sync.Mutex
	dead    bool                        // guarded by mu
	names   map[string]*memNode         // guarded by mu; directories too
	durable map[string]*memNode         // guarded by mu; the names a power cut surely leaves
	pending []func(map[string]*memNode) // guarded by mu; changes of names since
	pendDir []string                    // guarded by mu; the directory of each
	locks   map[string]bool             // guarded by mu
}

type memNode struct {
	dir     bool
	data    []byte
	alloc   int64
	synced  []byte
	pending []memWrite // since the last sync
}

type memWrite struct {
	off   int64 // -1: a truncation to size
	size  int64
	bytes []byte
}

// NewMem returns an empty file system.
func NewMem() *Mem {
	root := &memNode{dir: true}
	return &Mem{names: map[string]*memNode{".": root}, durable: map[string]*memNode{".": root}, locks: map[string]bool{}}
}

func pathError(op, name string, err error) error { return &fs.PathError{Op: op, Path: name, Err: err} }

// change applies a change of names now, and remembers it for a crash.
func (m *Mem) change(dir string, f func(map[string]*memNode)) {
	f(m.names)
	m.pending = append(m.pending, f)
	m.pendDir = append(m.pendDir, dir)
}

func (m *Mem) Open(name string) (File, error) { return m.open(name, false) }

func (m *Mem) Create(name string) (File, error) { return m.open(name, true) }

func (m *Mem) open(name string, create bool) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, ErrPowerCut
	}
	name = path.Clean(name)
	n := m.names[name]
	switch {
	case n != nil && n.dir:
		return nil, pathError("open", name, syscall.EISDIR)
	case n != nil:
	case !create || m.names[path.Dir(name)] == nil:
		return nil, pathError("open", name, fs.ErrNotExist)
	default:
		n = &memNode{}
		m.change(path.Dir(name), func(t map[string]*memNode) { t[name] = n })
	}
	return &memFile{m: m, n: n, name: name, write: create}, nil
}

func (m *Mem) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	from, to = path.Clean(from), path.Clean(to)
	n := m.names[from]
	switch {
	case m.dead:
		return ErrPowerCut
	case n == nil || m.names[path.Dir(to)] == nil:
		return pathError("rename", from, fs.ErrNotExist)
	case n.dir:
		return pathError("rename", from, syscall.EISDIR)
	}
	m.change(path.Dir(to), func(t map[string]*memNode) { t[to] = n; delete(t, from) })
	return nil
}

func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = path.Clean(name)
	switch {
	case m.dead:
		return ErrPowerCut
	case m.names[name] == nil:
		return pathError("remove", name, fs.ErrNotExist)
	}
	for k := range m.names {
		if strings.HasPrefix(k, name+"/") {
			return pathError("remove", name, syscall.ENOTEMPTY)
		}
	}
	m.change(path.Dir(name), func(t map[string]*memNode) { delete(t, name) })
	return nil
}

func (m *Mem) Mkdir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return ErrPowerCut
	}
	var missing []string
	for d := path.Clean(name); m.names[d] == nil; d = path.Dir(d) {
		missing = append(missing, d)
	}
	for _, d := range slices.Backward(missing) {
		m.change(path.Dir(d), func(t map[string]*memNode) { t[d] = &memNode{dir: true} })
	}
	return nil
}

func (m *Mem) ReadDir(name string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = path.Clean(name)
	if m.dead {
		return nil, ErrPowerCut
	}
	if n := m.names[name]; n == nil || !n.dir {
		return nil, pathError("readdir", name, fs.ErrNotExist)
	}
	var out []string
	for k := range m.names {
		if k != "." && path.Dir(k) == name {
			out = append(out, path.Base(k))
		}
	}
	slices.Sort(out)
	return out, nil
}

func (m *Mem) Stat(name string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.names[path.Clean(name)]
	switch {
	case m.dead:
		return Info{}, ErrPowerCut
	case n == nil:
		return Info{}, pathError("stat", name, fs.ErrNotExist)
	}
	return Info{Size: int64(len(n.data))}, nil
}

func (m *Mem) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	name = path.Clean(name)
	if m.dead {
		return ErrPowerCut
	}
	// A journal is written in order: what came before the last change of this
	// directory becomes durable with it.
	last := -1
	for i, d := range m.pendDir {
		if d == name {
			last = i
		}
	}
	for _, f := range m.pending[:last+1] {
		f(m.durable)
	}
	m.pending, m.pendDir = m.pending[last+1:], m.pendDir[last+1:]
	return nil
}

func (m *Mem) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.dead:
		return nil, ErrPowerCut
	case m.locks[name]:
		return nil, ErrLocked
	}
	m.locks[name] = true
	return unlocker(func() { m.mu.Lock(); defer m.mu.Unlock(); delete(m.locks, name) }), nil
}

type unlocker func()

func (u unlocker) Close() error { u(); return nil }

// Kill returns the disk as a process that is killed now leaves it: with all
// that was written. The old Mem is dead.
func (m *Mem) Kill() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	return &Mem{Capacity: m.Capacity, names: maps.Clone(m.names), durable: maps.Clone(m.durable),
		pending: slices.Clone(m.pending), pendDir: slices.Clone(m.pendDir), locks: map[string]bool{}}
}

// Crash returns the disk as a power cut at this instant could leave it: all
// that was synced, and, drawn by seed, parts of what was not. The old Mem is
// dead. With seed 0 nothing unsynced survives.
func (m *Mem) Crash(seed uint64) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	rng := rand.New(rand.NewPCG(seed, 1))
	keep := 0
	if seed != 0 {
		keep = rng.IntN(len(m.pending) + 1)
	}
	names := maps.Clone(m.durable)
	for _, f := range m.pending[:keep] {
		f(names)
	}
	c := NewMem()
	c.Capacity = m.Capacity
	for _, k := range slices.Sorted(maps.Keys(names)) {
		n := names[k]
		nn := &memNode{dir: n.dir, alloc: n.alloc}
		if !n.dir {
			nn.data = n.crash(rng, seed != 0)
			nn.synced = slices.Clone(nn.data)
		}
		c.names[k], c.durable[k] = nn, nn
	}
	return c
}

// crash keeps each unsynced sector, and each change of size, or not.
func (n *memNode) crash(rng *rand.Rand, some bool) []byte {
	b := slices.Clone(n.synced)
	for _, w := range n.pending {
		if !some {
			break
		}
		if w.off < 0 {
			if rng.IntN(2) == 0 {
				b = resize(b, w.size)
			}
			continue
		}
		for o := int64(0); o < int64(len(w.bytes)); {
			end := min(int64(len(w.bytes)), (w.off+o)/sector*sector+sector-w.off)
			if rng.IntN(2) == 0 {
				b = writeAt(b, w.bytes[o:end], w.off+o)
			}
			o = end
		}
	}
	return b
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

func writeAt(b, p []byte, off int64) []byte {
	if end := off + int64(len(p)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[off:], p)
	return b
}

// free is how many bytes still fit. Preconditions: m.mu is held.
func (m *Mem) freeLocked() int64 {
	if m.Capacity == 0 {
		return 1 << 62
	}
	free := m.Capacity
	for _, n := range m.names {
		free -= max(int64(len(n.data)), n.alloc)
	}
	return free
}

type memFile struct {
	m     *Mem
	n     *memNode
	name  string
	write bool
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return 0, ErrPowerCut
	}
	if off >= int64(len(f.n.data)) {
		return 0, io.EOF
	}
	n := copy(p, f.n.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return 0, ErrPowerCut
	}
	if !f.write {
		return 0, pathError("write", f.name, syscall.EBADF)
	}
	room := max(int64(len(f.n.data)), f.n.alloc) + max(f.m.freeLocked(), 0)
	var err error
	if off+int64(len(p)) > room {
		p, err = p[:max(0, min(int64(len(p)), room-off))], pathError("write", f.name, syscall.ENOSPC)
	}
	if len(p) > 0 {
		f.n.data = writeAt(f.n.data, p, off)
		f.n.pending = append(f.n.pending, memWrite{off: off, bytes: slices.Clone(p)})
	}
	return len(p), err
}

func (f *memFile) Close() error { return nil }

func (f *memFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return 0, ErrPowerCut
	}
	return int64(len(f.n.data)), nil
}

func (f *memFile) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return ErrPowerCut
	}
	f.n.data = resize(f.n.data, size)
	f.n.pending = append(f.n.pending, memWrite{off: -1, size: size})
	return nil
}

func (f *memFile) Allocate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return ErrPowerCut
	}
	if size-max(int64(len(f.n.data)), f.n.alloc) > f.m.freeLocked() {
		return pathError("allocate", f.name, syscall.ENOSPC)
	}
	f.n.alloc = max(f.n.alloc, size)
	return nil
}

func (f *memFile) Sync() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return ErrPowerCut
	}
	f.n.synced, f.n.pending = slices.Clone(f.n.data), nil
	return nil
}
