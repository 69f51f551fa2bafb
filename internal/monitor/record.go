package monitor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/logs"
)

// A record is what a successor must know of a process.
type record struct {
	key       Key
	pid       int
	ticks     uint64 // when it started, for the kernel; 0: see pidIno
	pidIno    uint64 // the inode of its pidfd
	serial    uint64 // names it in a stage
	startedAt time.Time

	phase                          byte // of the start
	terminal, openStdin, stdinOnce bool
	log                            logs.Spec
	outIno, errIno, inIno          uint64 // the inodes of its pipes
}

const (
	runSuffix  = ".run"
	exitSuffix = ".exit"
	// recordEnd shows that a file was written to its end.
	recordEnd = 0xa5
)

// records is the directory of what the monitor knows.
type records string

func (d records) path(k Key, suffix string) string {
	return filepath.Join(string(d), k.file()+suffix)
}

// write makes a file at once or not at all, as far as kills go: a file without
// its end does not count. It is for this boot only, so nothing is synced.
func (d records) write(k Key, suffix string, body []byte) error {
	return os.WriteFile(d.path(k, suffix), append(body, recordEnd), 0o600)
}

func (d records) read(k Key, suffix string) (*dec, error) {
	b, err := os.ReadFile(d.path(k, suffix))
	if err != nil {
		return nil, err
	}
	if len(b) < 2 || b[len(b)-1] != recordEnd || b[0] != wireVersion {
		return nil, fmt.Errorf("read %s: %w", d.path(k, suffix), errMalformed)
	}
	return &dec{b: b[1 : len(b)-1]}, nil
}

// Phases of a start, as the record has them.
const (
	phaseSetUp     = iota // nothing is left of it when the worker dies
	phaseReleasing        // it may run its program, or end as one in set-up does
	phaseReleased         // it runs its program
)

// phaseAt is where in a record the phase stands.
const phaseAt = 1

// putRun records a process in its set-up. The file is for setPhase.
func (d records) putRun(r *record) (*os.File, error) {
	e := &enc{[]byte{wireVersion, phaseSetUp}}
	e.key(r.key)
	e.u(uint64(r.pid))
	e.u(r.ticks)
	e.u(r.pidIno)
	e.u(r.serial)
	e.time(r.startedAt)
	e.bool(r.terminal)
	e.bool(r.openStdin)
	e.bool(r.stdinOnce)
	e.spec(r.log)
	e.u(r.outIno)
	e.u(r.errIno)
	e.u(r.inIno)
	f, err := os.OpenFile(d.path(r.key, runSuffix), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(append(e.b, recordEnd)); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func setPhase(f *os.File, phase byte) error {
	_, err := f.WriteAt([]byte{phase}, phaseAt)
	return err
}

func (d records) run(k Key) (*record, error) {
	in, err := d.read(k, runSuffix)
	if err != nil {
		return nil, err
	}
	r := &record{
		phase: in.byte(), key: in.key(), pid: int(in.u()), ticks: in.u(), pidIno: in.u(), serial: in.u(), startedAt: in.time(),
		terminal: in.bool(), openStdin: in.bool(), stdinOnce: in.bool(), log: in.spec(),
		outIno: in.u(), errIno: in.u(), inIno: in.u(),
	}
	return r, in.end()
}

func (d records) putExit(x *Exited) error {
	e := &enc{[]byte{wireVersion}}
	e.exited(x)
	return d.write(x.Key, exitSuffix, e.b)
}

// exit is the recorded exit of pid, nil if there is none.
func (d records) exit(k Key, pid int) *Exited {
	in, err := d.read(k, exitSuffix)
	if err != nil {
		return nil
	}
	x := in.exited()
	if in.end() != nil || x.PID != pid {
		return nil
	}
	return x
}

// remove forgets a process.
func (d records) remove(k Key) error {
	var errs []error
	// The exit goes last: without it a dead process would look unseen.
	for _, suffix := range []string{runSuffix, exitSuffix} {
		if err := os.Remove(d.path(k, suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// all are the keys that have a record, and leftovers of removed ones cleared.
func (d records) all() ([]Key, error) {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, err
	}
	var keys []Key
	runs := map[string]bool{}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), runSuffix); ok {
			keys = append(keys, keyOfFile(name))
			runs[name] = true
		}
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), exitSuffix); ok && !runs[name] {
			os.Remove(filepath.Join(string(d), e.Name()))
		}
	}
	return keys, nil
}
