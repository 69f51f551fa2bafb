package logs

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

const (
	readBlock = 64 << 10
	// maxStored is longer than any stored entry; what is longer is not ours.
	maxStored = 1 << 20
	// clockSlack is by how much times in a log may run backwards, after the clock
	// was set, without Since missing an entry.
	clockSlack = time.Minute
	// pollEvery is how often a follower looks that cannot watch the directory,
	// and in any case.
	pollEvery = time.Second
	// maxBehind is how many files a follower that is slow keeps from vanishing.
	maxBehind = 8
)

// ReadOptions choose entries. The zero value is everything up to now.
type ReadOptions struct {
	Since, Until   time.Time // zero: no limit; both inclusive
	Tail           int       // the last so many entries only; 0: all, negative: none
	Follow         bool      // go on with what is written later
	Ended          <-chan struct{}
	Stdout, Stderr bool     // neither: both
	After          Position // what was read before; beside no other choice
	CaughtUp       func()   // called when all that is there has been read, and before waiting for more
}

// Read calls f with each entry that o chooses, oldest first, and stops with f's
// error. With Follow it returns once Ended is closed and all has been read, or
// with the context's error, or when Until has passed.
func Read(ctx context.Context, spec Spec, o ReadOptions, f func(Entry) error) error {
	if err := spec.Check(); err != nil {
		return err
	}
	spec = spec.withDefaults()
	if spec.Driver == None {
		return errdefs.WithHint(
			errdefs.New(errdefs.Unsupported, "read", "log", errors.New("this container's output is not kept")),
			"run it with another --log-driver than none")
	}
	r := &reader{spec: spec, o: o, f: f}
	defer r.close()
	err := r.read(ctx)
	if errors.Is(err, errDone) {
		return nil
	}
	return err
}

// errDone: no later entry can be wanted.
var errDone = errors.New("done")

type reader struct {
	spec  Spec
	o     ReadOptions
	f     func(Entry) error
	files []*generation // oldest first
	text  []byte        // of the last entry, reused
}

func (r *reader) close() {
	for _, g := range r.files {
		g.close()
	}
}

func (r *reader) read(ctx context.Context) error {
	var changes <-chan struct{}
	if r.o.Follow {
		// Before the files are opened, so that no change goes unseen.
		var stop func()
		changes, stop = watch(filepath.Dir(r.spec.Path))
		defer stop()
	}
	if err := r.open(); err != nil {
		return err
	}
	if err := r.seek(); err != nil {
		return err
	}
	for {
		ended := r.ended()
		err := r.drain(ctx)
		if r.o.CaughtUp != nil {
			r.o.CaughtUp()
		}
		if err != nil || !r.o.Follow || ended {
			return err
		}
		if err := r.await(ctx, changes); err != nil {
			return err
		}
		if err := r.open(); err != nil {
			return err
		}
	}
}

// ended reports whether nothing more will be written that is wanted. It must be
// asked before the last look.
func (r *reader) ended() bool {
	select {
	case <-r.o.Ended:
		return true
	default:
		return !r.o.Until.IsZero() && time.Now().After(r.o.Until)
	}
}

// await waits until there may be something new.
func (r *reader) await(ctx context.Context, changes <-chan struct{}) error {
	wait := pollEvery
	if !r.o.Until.IsZero() {
		wait = min(wait, max(0, time.Until(r.o.Until)+time.Millisecond))
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-changes:
	case <-timer.C:
	case <-r.o.Ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// watch tells of changes in a directory; never, if it cannot be watched.
func watch(dir string) (changes <-chan struct{}, stop func()) {
	w, err := linux.WatchDir(dir)
	if err != nil {
		return nil, func() {}
	}
	ch := make(chan struct{}, 1)
	go func() {
		for w.Wait() == nil {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}()
	return ch, func() { w.Close() }
}

// drain reads all that is there, and lets go of files that are read to the end.
func (r *reader) drain(ctx context.Context) error {
	for len(r.files) > 0 {
		g := r.files[0]
		err := g.each(func(line []byte) error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return r.entry(line, Position{File: g.id, Offset: g.off + int64(len(line))})
		})
		if err != nil {
			return err
		}
		if len(r.files) == 1 {
			return nil // the newest: more may come
		}
		g.close()
		r.files = r.files[1:]
	}
	return nil
}

// entry hands a line out if it is wanted.
func (r *reader) entry(line []byte, after Position) error {
	e, buf, err := parseEntry(line, r.text)
	r.text = buf
	if err != nil {
		return nil // half a line that a crash left, or somebody else's
	}
	e.After, e.After.Time = after, e.Time
	if e.Time.Before(r.o.Since) {
		return nil
	}
	if !r.o.Until.IsZero() && e.Time.After(r.o.Until) {
		if e.Time.After(r.o.Until.Add(clockSlack)) {
			return errDone
		}
		return nil
	}
	if !r.wants(e.Stream) {
		return nil
	}
	return r.f(e)
}

func (r *reader) wants(stream string) bool {
	if r.o.Stdout == r.o.Stderr {
		return true
	}
	return r.o.Stdout == (stream == "stdout")
}

// open adds the generations that are newer than those we have.
func (r *reader) open() error {
	var newest uint64
	if len(r.files) > 0 {
		newest = r.files[len(r.files)-1].id
	}
	var found []*generation // newest first
	gaps := 0
	for n := 0; n < r.spec.MaxFiles+1 && gaps < 2; n++ {
		g, err := openGeneration(r.spec.file(n))
		if errors.Is(err, fs.ErrNotExist) {
			gaps++ // one may be between two names just now
			continue
		}
		if err != nil {
			closeAll(found)
			return errdefs.Newf(errdefs.Internal, "read", "log", "%w", err)
		}
		if newest != 0 && g.id == newest {
			g.close()
			break
		}
		if len(found) > 0 && found[len(found)-1].id == g.id {
			g.close() // it was renamed while we looked
			continue
		}
		found = append(found, g)
	}
	for i := len(found) - 1; i >= 0; i-- {
		r.files = append(r.files, found[i])
	}
	for len(r.files) > max(maxBehind, r.spec.MaxFiles+1) {
		r.files[0].close()
		r.files = r.files[1:]
	}
	return nil
}

// seek goes to the first entry that may be wanted.
func (r *reader) seek() error {
	if r.o.Tail < 0 {
		for _, g := range r.files {
			if err := g.load(); err != nil {
				return err
			}
			g.off = g.wholeLines()
		}
		return nil
	}
	if r.o.After.File != 0 {
		return r.resume()
	}
	if !r.o.Since.IsZero() {
		from := r.o.Since.Add(-clockSlack)
		for len(r.files) > 1 && r.files[0].modified.Before(from) {
			r.files[0].close()
			r.files = r.files[1:]
		}
		for _, g := range r.files {
			if err := g.bisect(from); err != nil {
				return err
			}
			if g.off < g.size() {
				break
			}
		}
	}
	if r.o.Tail == 0 {
		return nil
	}
	left := r.o.Tail
	for i := len(r.files) - 1; i >= 0 && left > 0; i-- {
		var err error
		if left, err = r.files[i].tail(left, r.chosen); err != nil {
			return err
		}
		if left == 0 {
			closeAll(r.files[:i])
			r.files = r.files[i:]
			break
		}
	}
	return nil
}

// resume goes to the position of an earlier Read. Where its file is gone, all
// that is kept is newer.
func (r *reader) resume() error {
	for i, g := range r.files {
		if g.id != r.o.After.File {
			continue
		}
		if err := g.load(); err != nil {
			return err
		}
		if g.endsAt(r.o.After) {
			closeAll(r.files[:i])
			r.files = r.files[i:]
			g.off = r.o.After.Offset
			return nil
		}
	}
	return nil
}

// endsAt reports whether the entry before the position is in this file.
func (g *generation) endsAt(p Position) bool {
	if p.Offset <= 0 || p.Offset > g.size() {
		return false
	}
	b := make([]byte, min(p.Offset, maxStored))
	if _, err := g.r.ReadAt(b, p.Offset-int64(len(b))); err != nil && !errors.Is(err, io.EOF) {
		return false
	}
	if b[len(b)-1] != '\n' {
		return false
	}
	at, ok := entryTime(b[bytes.LastIndexByte(b[:len(b)-1], '\n')+1:])
	return ok && at.Equal(p.Time)
}

// chosen reports whether an entry counts for the tail.
func (r *reader) chosen(line []byte) bool {
	if r.o.Stdout == r.o.Stderr && r.o.Until.IsZero() {
		return true
	}
	e, buf, err := parseEntry(line, r.text)
	r.text = buf
	return err == nil && r.wants(e.Stream) && (r.o.Until.IsZero() || !e.Time.After(r.o.Until))
}

// A generation is one file of a log.
type generation struct {
	id       uint64 // the inode it has, or had before it was compressed
	modified time.Time
	f        *os.File
	packed   bool
	r        io.ReaderAt // f, or what it unpacks to; nil until load
	unpacked int64
	off      int64 // what has been read
}

func closeAll(gs []*generation) {
	for _, g := range gs {
		g.close()
	}
}

func openGeneration(path string) (*generation, error) {
	f, err := os.Open(path)
	packed := false
	if errors.Is(err, fs.ErrNotExist) {
		f, err = os.Open(path + ".gz")
		packed = true
	}
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	g := &generation{id: inode(fi), modified: fi.ModTime(), f: f, packed: packed}
	if !packed {
		g.r = f
		return g, nil
	}
	if z, err := gzip.NewReader(f); err == nil {
		if id, err := strconv.ParseUint(z.Comment, 10, 64); err == nil {
			g.id = id
		}
	}
	return g, nil
}

func (g *generation) close() { g.f.Close() }

// load unpacks a compressed file; others need nothing.
func (g *generation) load() error {
	if g.r != nil {
		return nil
	}
	if _, err := g.f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	z, err := gzip.NewReader(g.f)
	if err != nil {
		return errdefs.Newf(errdefs.Internal, "unpack", "log "+g.f.Name(), "%w", err)
	}
	// What is readable of a damaged file is worth having.
	b, err := io.ReadAll(z)
	if err != nil && len(b) == 0 {
		return errdefs.Newf(errdefs.Internal, "unpack", "log "+g.f.Name(), "%w", err)
	}
	g.r, g.unpacked = bytes.NewReader(b), int64(len(b))
	return nil
}

func (g *generation) size() int64 {
	if g.packed {
		return g.unpacked
	}
	fi, err := g.f.Stat()
	if err != nil {
		return 0
	}
	return fi.Size()
}

// each calls f with every whole line that has not been read. A line counts as
// read when f returns nil.
func (g *generation) each(f func(line []byte) error) error {
	if err := g.load(); err != nil {
		return err
	}
	if g.size() < g.off {
		g.off = 0 // somebody emptied it
	}
	buf := make([]byte, readBlock)
	have := 0
	for {
		n, err := g.r.ReadAt(buf[have:], g.off+int64(have))
		have += n
		rest := buf[:have]
		for {
			i := bytes.IndexByte(rest, '\n')
			if i < 0 {
				break
			}
			if err := f(rest[:i+1]); err != nil {
				return err
			}
			g.off += int64(i + 1)
			rest = rest[i+1:]
		}
		have = copy(buf, rest)
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if have == len(buf) {
			if have >= maxStored {
				g.off += int64(have) // not a line of ours: skip it
				have = 0
				continue
			}
			buf = append(buf, make([]byte, len(buf))...)
		}
	}
}

// wholeLines is the size up to the last newline.
func (g *generation) wholeLines() int64 {
	end := g.size()
	buf := make([]byte, readBlock)
	for end > 0 {
		start := max(0, end-readBlock)
		n, _ := g.r.ReadAt(buf[:end-start], start)
		if i := bytes.LastIndexByte(buf[:n], '\n'); i >= 0 {
			return start + int64(i) + 1
		}
		end = start
	}
	return 0
}

// tail moves the offset to the last n entries that count, not before where it is.
// It returns how many are missing.
func (g *generation) tail(n int, counts func(line []byte) bool) (missing int, err error) {
	if err := g.load(); err != nil {
		return n, err
	}
	end := g.wholeLines() // of what is not looked at yet; a line's start
	var block []byte      // from start to end
	start := end
	for end > g.off {
		i := -1
		if len(block) > 0 {
			i = bytes.LastIndexByte(block[:len(block)-1], '\n')
		}
		if i < 0 && start > g.off && len(block) < maxStored {
			// The line begins further up.
			more := min(readBlock, start-g.off)
			b := make([]byte, int(more)+len(block), int(more)+len(block))
			if _, err := g.r.ReadAt(b[:more], start-more); err != nil && !errors.Is(err, io.EOF) {
				return n, err
			}
			copy(b[more:], block)
			block, start = b, start-more
			continue
		}
		line := block[i+1:]
		if counts(line) {
			if n--; n == 0 {
				g.off = end - int64(len(line))
				return 0, nil
			}
		}
		end -= int64(len(line))
		block = block[:i+1]
	}
	return n, nil
}

// bisect moves the offset to just before the first entry at or after t, as far
// as times are in order.
func (g *generation) bisect(t time.Time) error {
	if err := g.load(); err != nil {
		return err
	}
	lo, hi := g.off, g.wholeLines() // lo is a line's start, before t
	buf := make([]byte, 2*readBlock)
	for hi-lo > readBlock {
		mid := lo + (hi-lo)/2
		n, err := g.r.ReadAt(buf, mid)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		b := buf[:n]
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return nil // not lines of ours: read on from lo
		}
		j := bytes.IndexByte(b[i+1:], '\n')
		if j < 0 {
			hi = mid
			continue
		}
		at, ok := entryTime(b[i+1 : i+1+j])
		if ok && at.Before(t) {
			lo = mid + int64(i) + 1
		} else {
			hi = mid
		}
	}
	g.off = lo
	return nil
}
