// Package metadb keeps the engine's records.
//
// # Model
//
// Records are JSON values under (bucket, key). All of them are in memory; on
// disk there is one append-only log. An Update is one frame of the log: it
// happens entirely or not at all.
//
// # On disk
//
//	<dir>/lock        held by the one process that has the database open
//	<dir>/log.<n>     the records; the highest n counts
//	<dir>/log.<n>.damaged  a log that Options.Salvage went over, kept for people
//	<dir>/log.<n>.new a log being written by compaction; worthless
//	<dir>/spare       space to give up when the disk is full
//
// A log is a header (frame.go) and frames. Compaction writes all records to
// log.<n+1>, lets new frames go to both logs until the new one is on disk, and
// only then gives it its name, so that each log is complete for as long as its
// name exists.
//
// # Guarantees
//
// After Update returns nil its frame survives kill -9 of this process; it
// survives a power cut after Sync, which happens in the background within
// Options.SyncEvery, many Updates at once. A crash keeps a prefix of the
// Updates: never a later one without all earlier ones.
//
// The log's space is allocated ahead, and there is a spare file, so that
// records can still be changed for a while, and deleted for much longer, when
// the disk is full; such an Update fails only with errdefs.Exhausted.
//
// A frame that is damaged but was once known to be on disk makes Open fail
// with the place named, unless Options.Salvage says to go on without it. One
// that a power cut tore was never acknowledged by Sync and is dropped.
//
// # Concurrency
//
// Any number of Views run beside one Update. A function given to Update must
// not block, nor call the DB. Lock order: write → mu; neither is held across a
// sync.
//
// # Not here
//
// What the records mean, and their versions: their owners'. Blobs: package
// content.
package metadb

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/vfs"
)

// Options of a DB. The zero value is good.
type Options struct {
	FS        vfs.FS        // default: the directory itself
	SyncEvery time.Duration // default 500 ms; negative: nothing happens in the background
	Reserve   int64         // bytes allocated ahead of the log; default 1 MiB
	CompactAt int64         // least size of a log worth compacting; default 4 MiB
	Salvage   bool          // go on without damaged frames
	Logger    *slog.Logger
}

// A DB is an open database.
type DB struct {
	o    Options
	fs   vfs.FS
	dir  string
	lock io.Closer

	write    sync.Mutex // serialises Updates, and guards what follows
	log      *logFile   // where frames go; replaced with syncMu held too
	next     *logFile   // a second log that frames also go to
	changed  uint64     // the last frame of log that changes something
	synced   uint64     // the last frame of log known to be on disk
	broken   error      // the last sync went wrong
	busy     bool       // a compaction runs
	retry    time.Time  // not before then another, after one that failed
	done     bool       // closed
	salvaged bool       // the log that was found is kept beside the new one
	buf      []byte

	mu      sync.RWMutex
	buckets map[string]map[string]json.RawMessage // guarded by mu
	bytes   int64                                 // guarded by mu; of all keys and values

	syncMu sync.Mutex // one sync at a time; order: syncMu → write

	kick chan struct{}
	stop chan struct{}
	wg   sync.WaitGroup
}

// Open opens the database in dir, and makes it where there is none.
func Open(dir string, o Options) (_ *DB, err error) {
	if o.FS == nil {
		o.FS = vfs.Dir(dir)
	}
	if o.SyncEvery == 0 {
		o.SyncEvery = 500 * time.Millisecond
	}
	if o.Reserve == 0 {
		o.Reserve = 1 << 20
	}
	if o.CompactAt == 0 {
		o.CompactAt = 4 << 20
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	db := &DB{o: o, fs: o.FS, dir: dir, buckets: map[string]map[string]json.RawMessage{},
		kick: make(chan struct{}, 1), stop: make(chan struct{})}
	if err := db.fs.Mkdir("."); err != nil {
		return nil, db.fail("open", err)
	}
	if db.lock, err = db.fs.Lock("lock"); err != nil {
		if errors.Is(err, vfs.ErrLocked) {
			return nil, errdefs.WithHint(errdefs.New(errdefs.Conflict, "open", "records in "+dir, err),
				"another engine runs with this data-root; give this one its own")
		}
		return nil, db.fail("open", err)
	}
	defer func() {
		if err != nil {
			db.lock.Close()
		}
	}()
	if err := db.load(); err != nil {
		return nil, err
	}
	if o.SyncEvery > 0 {
		db.wg.Go(db.background)
	}
	return db, nil
}

// fail words an error of the disk.
func (db *DB) fail(op string, err error) error {
	kind := errdefs.Internal
	switch {
	case isFull(err):
		kind = errdefs.Exhausted
	case errors.Is(err, fs.ErrPermission):
		kind = errdefs.Forbidden
	}
	return errdefs.New(kind, op, "records in "+db.dir, err)
}

func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// A Tx reads, and within Update changes, records. It is valid only during the
// call of its function.
type Tx struct {
	db      *DB
	changes map[string]map[string]json.RawMessage // nil value: deleted
	ops     []op
	write   bool
}

type op struct {
	bucket, key string
	value       json.RawMessage // nil: delete
}

// View calls f with a consistent state of all records.
func (db *DB) View(f func(*Tx) error) error {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return f(&Tx{db: db})
}

// Update calls f, and then makes what it changed happen as one. If f or the
// disk fails, nothing has changed.
func (db *DB) Update(f func(*Tx) error) error {
	db.write.Lock()
	defer db.write.Unlock()
	if db.done {
		return errdefs.New(errdefs.Unavailable, "change", "records in "+db.dir, errors.New("the database is closed"))
	}
	tx := &Tx{db: db, write: true, changes: map[string]map[string]json.RawMessage{}}
	if err := f(tx); err != nil {
		return err
	}
	if len(tx.ops) == 0 {
		return nil
	}
	if err := db.append(tx.ops); err != nil {
		return err
	}
	db.mu.Lock()
	for _, o := range tx.ops {
		db.applyLocked(o)
	}
	db.mu.Unlock()
	wake(db.kick)
	return nil
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// applyLocked makes one change in memory. Preconditions: db.mu is held.
func (db *DB) applyLocked(o op) {
	b := db.buckets[o.bucket]
	if old, ok := b[o.key]; ok {
		db.bytes -= int64(len(old) + len(o.key))
	}
	if o.value == nil {
		delete(b, o.key)
		if len(b) == 0 {
			delete(db.buckets, o.bucket)
		}
		return
	}
	if b == nil {
		b = map[string]json.RawMessage{}
		db.buckets[o.bucket] = b
	}
	b[o.key] = o.value
	db.bytes += int64(len(o.value) + len(o.key))
}

// Put writes a record.
func (tx *Tx) Put(bucket, key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return errdefs.New(errdefs.Internal, "write", fmt.Sprintf("record %s/%s", bucket, key), err)
	}
	return tx.set(bucket, key, raw)
}

// Delete removes a record; one that is not there is fine.
func (tx *Tx) Delete(bucket, key string) error {
	if _, ok := tx.raw(bucket, key); !ok {
		return nil
	}
	return tx.set(bucket, key, nil)
}

func (tx *Tx) set(bucket, key string, raw json.RawMessage) error {
	on := fmt.Sprintf("record %.80q/%.80q", bucket, key)
	switch {
	case !tx.write:
		return errdefs.New(errdefs.Internal, "write", on, errors.New("View cannot write"))
	case bucket == "" || len(bucket) > maxName || len(key) > maxName:
		return errdefs.Newf(errdefs.Invalid, "write", on, "a name has 1 to %d bytes", maxName)
	case len(raw) > maxValue:
		return errdefs.Newf(errdefs.Invalid, "write", on, "%d bytes are more than %d", len(raw), maxValue)
	}
	if tx.changes[bucket] == nil {
		tx.changes[bucket] = map[string]json.RawMessage{}
	}
	tx.changes[bucket][key] = raw
	tx.ops = append(tx.ops, op{bucket, key, raw})
	return nil
}

func (tx *Tx) raw(bucket, key string) (json.RawMessage, bool) {
	if raw, ok := tx.changes[bucket][key]; ok {
		return raw, raw != nil
	}
	// An Update reads without db.mu: only Updates change the maps, one at a time.
	raw, ok := tx.db.buckets[bucket][key]
	return raw, ok
}

// Get reads a record into v, a pointer, and reports whether there is one.
func (tx *Tx) Get(bucket, key string, v any) (bool, error) {
	raw, ok := tx.raw(bucket, key)
	if !ok {
		return false, nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return true, errdefs.New(errdefs.Internal, "read", fmt.Sprintf("record %s/%s", bucket, key), err)
	}
	return true, nil
}

// Each calls f with every record of a bucket, in the order of keys. f may
// change the bucket; it sees the records as they were. raw must not be
// changed.
func (tx *Tx) Each(bucket string, f func(key string, raw json.RawMessage) error) error {
	b := tx.db.buckets[bucket]
	keys := slices.Collect(maps.Keys(b))
	for k := range tx.changes[bucket] {
		if _, ok := b[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	for _, k := range keys {
		if raw, ok := tx.raw(bucket, k); ok {
			if err := f(k, raw); err != nil {
				return err
			}
		}
	}
	return nil
}

// Buckets lists the buckets that have records.
func (tx *Tx) Buckets() []string {
	out := slices.Collect(maps.Keys(tx.db.buckets))
	for b := range tx.changes {
		if _, ok := tx.db.buckets[b]; !ok {
			out = append(out, b)
		}
	}
	slices.Sort(out)
	return out
}

// Sync returns when every Update that returned before survives a power cut.
func (db *DB) Sync() error {
	db.write.Lock()
	lf, want, have := db.log, db.changed, db.synced
	db.write.Unlock()
	if have >= want {
		return nil
	}
	db.syncMu.Lock()
	defer db.syncMu.Unlock()
	return db.syncHeld(lf, want)
}

// syncHeld syncs unless another did since frame want of lf was written.
// Preconditions: syncMu is held.
func (db *DB) syncHeld(lf *logFile, want uint64) error {
	db.write.Lock()
	if db.log == lf && db.synced >= want {
		db.write.Unlock()
		return nil
	}
	cur, next, seq := db.log, db.next, db.log.seq
	db.write.Unlock()
	err := cur.f.Sync()
	if next != nil {
		err = errors.Join(err, next.f.Sync())
	}
	db.write.Lock()
	defer db.write.Unlock()
	if err != nil {
		// After a failed sync the kernel may have dropped the pages: only a new
		// log, written from memory, is worth syncing.
		db.broken = err
		return db.fail("sync", err)
	}
	db.synced = max(db.synced, seq)
	if db.log.alloc-db.log.size > db.o.Reserve/2 {
		// Later damage in what was just synced must not look like a torn end.
		db.log.write(make([]byte, frameHead), db.synced)
	}
	return nil
}

// background syncs soon after Updates, and compacts.
func (db *DB) background() {
	for {
		select {
		case <-db.stop:
			return
		case <-db.kick:
		}
		select {
		case <-db.stop:
			return
		case <-time.After(db.o.SyncEvery):
		}
		if err := db.Sync(); err != nil {
			db.o.Logger.Error("records are not safe from a power cut", "err", err)
		}
		if db.wantsCompaction() {
			if err := db.Compact(); err != nil {
				db.write.Lock()
				db.retry = time.Now().Add(30 * time.Second)
				db.write.Unlock()
				db.o.Logger.Warn("compacting the records", "err", err)
			}
		}
		db.write.Lock()
		db.reserveLocked()
		db.write.Unlock()
	}
}

func (db *DB) wantsCompaction() bool {
	db.write.Lock()
	defer db.write.Unlock()
	if time.Now().Before(db.retry) {
		return false
	}
	if db.broken != nil {
		return true
	}
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.log.size > db.o.CompactAt && db.log.size > 3*db.bytes
}

// Close syncs and closes. Records cannot be changed any more.
func (db *DB) Close() error {
	db.write.Lock()
	if db.done {
		db.write.Unlock()
		return nil
	}
	db.done = true
	db.write.Unlock()
	close(db.stop)
	db.wg.Wait()
	db.syncMu.Lock()
	err := db.syncHeld(db.log, db.changed)
	db.syncMu.Unlock()
	return errors.Join(err, db.log.f.Close(), db.lock.Close())
}

// Size is the size of the log, and how much of it is records.
func (db *DB) Size() (log, records int64) {
	db.write.Lock()
	defer db.write.Unlock()
	db.mu.RLock()
	defer db.mu.RUnlock()
	return db.log.size, db.bytes
}

func logName(n uint64) string { return fmt.Sprintf("log.%d", n) }

// logNumber parses a log's name.
func logNumber(name string) (n uint64, ok bool) {
	rest, ok := strings.CutPrefix(name, "log.")
	if !ok {
		return 0, false
	}
	_, err := fmt.Sscanf(rest, "%d", &n)
	return n, err == nil && logName(n) == name
}
