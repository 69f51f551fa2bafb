package metadb

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/vfs"
)

// A logFile is one open log. Its fields are guarded by DB.write, but f and
// header, which never change.
type logFile struct {
	f    vfs.File
	name string
	header
	size  int64  // where the next frame goes
	alloc int64  // allocated up to here
	seq   uint64 // of the last frame
	known uint64 // of the last frame that the log itself says is on disk
}

// load reads the newest whole log, and starts another where that has none or
// is torn.
func (db *DB) load() error {
	names, err := db.fs.ReadDir(".")
	if err != nil {
		return db.fail("open", err)
	}
	var numbers []uint64
	for _, name := range names {
		if n, ok := logNumber(name); ok {
			numbers = append(numbers, n)
		} else if strings.HasSuffix(name, ".new") {
			if err := db.fs.Remove(name); err != nil && !isFull(err) {
				return db.fail("open", err)
			}
		}
	}
	slices.Sort(numbers)
	if len(numbers) == 0 {
		return db.restart(0, 0)
	}
	n := numbers[len(numbers)-1]
	lf, clean, err := db.read(logName(n))
	if err != nil {
		return err
	}
	for _, old := range numbers[:len(numbers)-1] {
		if err := db.fs.Remove(logName(old)); err != nil {
			db.o.Logger.Warn("removing an old log of records", "err", err)
		}
	}
	if !clean {
		// What follows the torn place must never be read again.
		lf.f.Close()
		err := db.restart(n, lf.seq)
		if err == nil {
			return nil
		}
		if !isFull(err) {
			return err
		}
		// No room for a new log: blank the rest of this one in place.
		if lf, err = db.reopen(lf); err != nil {
			return db.fail("open", err)
		}
	}
	// What a killed process wrote last may not be on disk yet.
	db.log, db.synced, db.changed = lf, lf.known, lf.seq
	wake(db.kick)
	db.reserveLocked()
	return nil
}

// reopen makes a torn log usable where it is: zeros up to its end, synced.
func (db *DB) reopen(lf *logFile) (*logFile, error) {
	f, err := db.fs.Create(lf.name)
	if err != nil {
		return nil, err
	}
	lf.f = f
	end, err := f.Size()
	if err != nil {
		return nil, err
	}
	zero := make([]byte, 64<<10)
	for off := lf.size; off < end; off += int64(len(zero)) {
		if _, err := f.WriteAt(zero[:min(int64(len(zero)), end-off)], off); err != nil {
			return nil, err
		}
	}
	return lf, f.Sync()
}

// read reads a log into memory. clean says that nothing but unused space
// follows the last frame.
func (db *DB) read(name string) (lf *logFile, clean bool, err error) {
	f, err := db.fs.Create(name) // opened for writing
	if err != nil {
		return nil, false, db.fail("open", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	size, err := f.Size()
	if err != nil {
		return nil, false, db.fail("open", err)
	}
	b := make([]byte, size)
	if n, err := f.ReadAt(b, 0); err != nil && !(errors.Is(err, io.EOF) && int64(n) == size) {
		return nil, false, db.fail("read", err)
	}
	h, err := decodeHeader(b)
	if err != nil {
		return nil, false, db.damaged(name, 0, err)
	}
	lf = &logFile{f: f, name: name, header: h}
	end, clean, err := db.replay(name, h, b, lf)
	lf.size = end
	lf.alloc = size
	return lf, clean, err
}

// damaged words what a person needs to decide.
func (db *DB) damaged(name string, off int64, err error) error {
	return errdefs.WithHint(errdefs.Newf(errdefs.Internal, "open", "records in "+db.dir, "%s is damaged at byte %d: %w", name, off, err),
		"check the disk; then start once with --salvage-records to go on without what cannot be read, or put a copy of "+db.dir+" back")
}

// replay applies the frames of b, and returns where they end.
func (db *DB) replay(name string, h header, b []byte, lf *logFile) (end int64, clean bool, err error) {
	off := headerSize
	var last uint64
	whole := false
	lost := 0
	for {
		f, n, err := h.readFrame(b[off:])
		if err == nil && last != 0 && f.seq != last+1 && lost == 0 {
			err = errTorn
		}
		if err != nil {
			at, next := h.nextFrame(b, off+1, last)
			if at < 0 {
				clean = allZero(b[off:])
				break
			}
			if next.newestSynced <= last { // all that follows was never synced: a torn end
				db.o.Logger.Warn("the last changes before a power cut are lost", "log", name, "changes", next.count)
				break
			}
			if !db.o.Salvage {
				return int64(off), false, db.damaged(name, int64(off), fmt.Errorf("%w; %d later changes are sound", err, next.count))
			}
			db.o.Logger.Error("records were lost", "log", name, "from", off, "to", at)
			db.salvaged = true
			lost++
			off = at
			continue
		}
		off += n
		last = f.seq
		lf.known = max(lf.known, f.synced)
		if len(f.payload) == 0 {
			continue
		}
		switch f.payload[0] {
		case kindSnapshot:
			whole = true
			lf.known = f.seq // it had no name before it was synced
		case kindChanges:
			err = decodeOps(f.payload[1:], func(o op) {
				o.value = slices.Clone(o.value)
				db.applyLocked(o)
			})
		default:
			err = errPayload
		}
		if err != nil {
			if !db.o.Salvage {
				return int64(off), false, db.damaged(name, int64(off-n), err)
			}
			db.salvaged = true
			lost++
		}
	}
	if !whole && !db.o.Salvage {
		return int64(off), false, db.damaged(name, int64(off), errors.New("its snapshot is not complete"))
	}
	lf.seq = last
	return int64(off), clean && lost == 0, nil
}

// following describes the sound frames after a damaged place.
type following struct {
	count        int
	newestSynced uint64
}

// nextFrame looks for sound frames at or after from that are newer than last.
func (h header) nextFrame(b []byte, from int, last uint64) (at int, fl following) {
	at = -1
	for off := from; off+frameHead <= len(b); {
		if binary.LittleEndian.Uint32(b[off:]) != frameMagic {
			off++
			continue
		}
		f, n, err := h.readFrame(b[off:])
		if err != nil || f.seq <= last {
			off++
			continue
		}
		if at < 0 {
			at = off
		}
		fl.count++
		fl.newestSynced = max(fl.newestSynced, f.synced)
		last = f.seq
		off += n
	}
	return at, fl
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// append writes one frame of changes. Preconditions: db.write is held.
func (db *DB) append(ops []op) error {
	b := append(db.buf[:0], make([]byte, frameHead)...)
	b = append(b, kindChanges)
	deletes := false
	for _, o := range ops {
		b = appendOp(b, o)
		deletes = deletes || o.value == nil
	}
	if cap(b) <= 1<<20 {
		db.buf = b
	}
	if len(b)-frameHead > maxFrame {
		return errdefs.New(errdefs.Invalid, "change", "records in "+db.dir, errTooLarge)
	}
	if err := db.roomLocked(int64(len(b)), deletes); err != nil {
		return err
	}
	if err := db.log.write(b, db.synced); err != nil {
		return db.fail("write", err)
	}
	if db.next != nil {
		if err := db.next.write(b, 0); err != nil {
			db.dropNext()
		}
	}
	db.changed = db.log.seq
	return nil
}

// dropNext takes the second log away, under whichever name, before it can miss
// a frame. The compaction sees that, and gives up. Preconditions: db.write is
// held.
func (db *DB) dropNext() {
	name := db.next.name
	db.next = nil
	db.fs.Remove(name + ".new") // then publish cannot rename it any more
	db.fs.Remove(name)
	db.fs.SyncDir(".")
}

// write puts a frame, whose head is still to be filled in, at the end. After an
// error the next frame goes to the same place.
func (lf *logFile) write(b []byte, synced uint64) error {
	lf.seal(b, 0, lf.seq+1, synced)
	if _, err := lf.f.WriteAt(b, lf.size); err != nil {
		return err
	}
	lf.size += int64(len(b))
	lf.seq++
	return nil
}

// reserveLocked allocates space ahead of the log, and the spare file. Where
// there is none it is not an error yet. Preconditions: db.write is held.
func (db *DB) reserveLocked() {
	if db.done || db.log.alloc-db.log.size >= db.o.Reserve {
		return
	}
	want := (db.log.size + 2*db.o.Reserve + 4095) &^ 4095
	if err := db.log.f.Allocate(want); err == nil {
		db.log.alloc = want
	}
	db.makeSpare()
}

const spareName = "spare"

func (db *DB) makeSpare() {
	if _, err := db.fs.Stat(spareName); err == nil {
		return
	}
	f, err := db.fs.Create(spareName)
	if err != nil {
		return
	}
	err = f.Allocate(db.o.Reserve)
	f.Close()
	if err != nil {
		db.fs.Remove(spareName)
	}
}

// roomLocked makes sure that a frame of n bytes fits. Where the disk is full,
// the last half of the reserve is for changes that delete something.
// Preconditions: db.write is held.
func (db *DB) roomLocked(n int64, deletes bool) error {
	lf := db.log
	left := lf.alloc - lf.size
	if left-n >= db.o.Reserve/2 {
		return nil
	}
	want := (lf.size + n + 2*db.o.Reserve + 4095) &^ 4095
	err := lf.f.Allocate(want)
	if err == nil {
		lf.alloc = want
		return nil
	}
	if !isFull(err) {
		return db.fail("write", err)
	}
	if deletes && n > left {
		db.fs.Remove(spareName)
		if want = (lf.size + n + 4095) &^ 4095; lf.f.Allocate(want) == nil {
			lf.alloc, left = want, want-lf.size
		}
	}
	if n <= left && (deletes || left-n >= db.o.Reserve/4) {
		return nil
	}
	return errdefs.WithHint(db.fail("write", err), "the disk is full: remove containers, images or volumes (onggi system prune)")
}

// restart writes a new log with all records in memory, and makes it the log.
// Only for Open: nothing else runs.
func (db *DB) restart(generation, seq uint64) error {
	lf, err := db.snapshot(generation+1, seq, db.buckets)
	if err == nil {
		err = db.publish(lf)
	}
	if err != nil {
		return db.fail("open", err)
	}
	db.log, db.synced, db.changed = lf, lf.seq, lf.seq
	if generation > 0 {
		if db.salvaged {
			db.fs.Rename(logName(generation), logName(generation)+".damaged")
		} else {
			db.fs.Remove(logName(generation))
		}
	}
	db.reserveLocked()
	return nil
}

// snapshot writes records to the file of a new log, without its name.
func (db *DB) snapshot(generation, seq uint64, records map[string]map[string]json.RawMessage) (_ *logFile, err error) {
	lf := &logFile{name: logName(generation), header: header{rand.Uint64(), generation}, seq: seq}
	if lf.f, err = db.fs.Create(lf.name + ".new"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lf.f.Close()
			db.fs.Remove(lf.name + ".new")
		}
	}()
	if err = lf.f.Truncate(0); err != nil {
		return nil, err
	}
	if _, err = lf.f.WriteAt(lf.header.encode(), 0); err != nil {
		return nil, err
	}
	lf.size = headerSize
	const chunk = 256 << 10
	fresh := func() []byte { return append(make([]byte, frameHead, chunk), kindChanges) }
	b := fresh()
	flush := func(b []byte) error { return lf.write(b, 0) }
	for _, bucket := range slices.Sorted(maps.Keys(records)) {
		for _, key := range slices.Sorted(maps.Keys(records[bucket])) {
			if b = appendOp(b, op{bucket, key, records[bucket][key]}); len(b) > chunk/2 {
				if err = flush(b); err != nil {
					return nil, err
				}
				b = fresh()
			}
		}
	}
	if len(b) > frameHead+1 {
		if err = flush(b); err != nil {
			return nil, err
		}
	}
	if err = flush(append(make([]byte, frameHead), kindSnapshot)); err != nil {
		return nil, err
	}
	lf.alloc = lf.size
	return lf, nil
}

// publish makes a new log durable, and then gives it its name. Its fields, but
// f and name, are not touched.
func (db *DB) publish(lf *logFile) error {
	if err := lf.f.Sync(); err != nil {
		return err
	}
	if err := db.fs.Rename(lf.name+".new", lf.name); err != nil {
		return err
	}
	return db.fs.SyncDir(".")
}

// Compact writes the records to a new log, while Updates go on.
func (db *DB) Compact() (err error) {
	db.write.Lock()
	if db.busy || db.done {
		db.write.Unlock()
		return nil
	}
	db.busy = true
	old := db.log
	// Values are never changed in place: copying the maps is a snapshot.
	records := make(map[string]map[string]json.RawMessage, len(db.buckets))
	for k, b := range db.buckets {
		records[k] = maps.Clone(b)
	}
	delta := old.size
	db.write.Unlock()

	defer func() {
		db.write.Lock()
		db.busy = false
		db.write.Unlock()
	}()
	lf, err := db.snapshot(old.generation+1, 0, records)
	if err != nil {
		return db.fail("compact", err)
	}
	defer func() {
		if err != nil {
			lf.f.Close()
			db.fs.Remove(lf.name + ".new")
		}
	}()
	if err := lf.f.Sync(); err != nil {
		return db.fail("compact", err)
	}

	// From here every frame goes to both. What came meanwhile is copied first.
	db.write.Lock()
	if err := db.copyFrames(old, delta, lf); err != nil {
		db.write.Unlock()
		return db.fail("compact", err)
	}
	db.next = lf
	synced := lf.seq
	db.write.Unlock()

	err = db.publish(lf)
	db.syncMu.Lock()
	defer db.syncMu.Unlock()
	db.write.Lock()
	switch {
	case err == nil && db.next != lf:
		err = errors.New("the new log could not be written to")
	case err != nil && db.next == lf:
		db.dropNext()
	}
	if err != nil {
		db.write.Unlock()
		return db.fail("compact", err)
	}
	// Sequence numbers start again.
	db.next, db.log = nil, lf
	db.synced, db.changed, db.broken = synced, lf.seq, nil
	db.write.Unlock()
	old.f.Close()
	if err := db.fs.Remove(old.name); err != nil {
		db.o.Logger.Warn("removing an old log of records", "err", err)
	}
	return nil
}

// copyFrames copies the payloads that came to a log since an offset.
// Preconditions: db.write is held.
func (db *DB) copyFrames(from *logFile, off int64, to *logFile) error {
	b := make([]byte, from.size-off)
	if len(b) == 0 {
		return nil
	}
	if _, err := from.f.ReadAt(b, off); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	for len(b) > 0 {
		f, n, err := from.readFrame(b)
		if err != nil {
			return err
		}
		if err := to.write(append(make([]byte, frameHead), f.payload...), 0); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
