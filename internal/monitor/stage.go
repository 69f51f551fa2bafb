package monitor

import (
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/logs"
)

// peekBytes is how much of a pipe's head is looked at once.
const peekBytes = 64 << 10

// stagePipe is the size of staging pipes: as many pieces as an unprivileged
// program can have in a pipe of its own.
const stagePipe = 1 << 20

// A stage moves batches from pipes into logs so that a kill at any instruction
// neither loses nor repeats a byte. One loop has one stage.
type stage struct {
	r, w               int // where a batch is while it is logged
	scratchR, scratchW int // for looking at a pipe's head
	null               int
	words              []uint64 // shared with a successor; see word*
	inherited          bool     // r and w are the ones that words is about
}

// The words of a stage. phase is stored last when a batch begins, so that the
// others are valid whenever it is not idle.
const (
	wordPhase = iota
	wordSerial
	wordStream
	wordOffset
	wordTime
	wordCount
	stageWords = 8
)

const (
	phaseIdle    = iota // the staging pipe is empty
	phaseWriting        // count bytes at the stream's head go to offset
	phaseMoving         // they are in the log, and go to the staging pipe
	phaseMoved          // what is in the staging pipe is in the log
)

// newStage makes a stage, over the pipe of a predecessor where kept has one.
func newStage(words []uint64, kept *keptFDs) (*stage, error) {
	s := &stage{r: -1, w: -1, scratchR: -1, scratchW: -1, null: -1, words: words}
	var err error
	if kept != nil {
		s.inherit(*kept)
	} else if s.r, s.w, err = linux.Pipe(); err != nil {
		return nil, err
	} else {
		linux.SetPipeSize(s.w, stagePipe) // smaller works too, in smaller batches
	}
	if s.scratchR, s.scratchW, err = linux.Pipe(); err == nil {
		linux.SetPipeSize(s.scratchW, stagePipe)
		s.null, err = linux.OpenNull()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// inherit goes on with a predecessor's pipe.
func (s *stage) inherit(kept keptFDs) {
	linux.CloseFDs([]int{s.r, s.w})
	s.r, s.w, s.inherited = kept[keptStdout], kept[keptStdin], true
}

func (s *stage) close() {
	linux.CloseFDs([]int{s.r, s.w, s.scratchR, s.scratchW, s.null})
}

// peek copies the head of a pipe into buf without taking it out.
func (s *stage) peek(pipe int, buf []byte) (int, error) {
	n, err := linux.Tee(pipe, s.scratchW, len(buf))
	if err != nil || n == 0 {
		return 0, err
	}
	for got := 0; got < n; {
		m, err := linux.ReadFD(s.scratchR, buf[got:n])
		if err != nil || m == 0 {
			return 0, fmt.Errorf("read back what was looked at: %w", err)
		}
		got += m
	}
	return n, nil
}

// commit takes p, which peek found at the head of pipe, out of it and into the
// log.
func (s *stage) commit(log *logs.Writer, serial uint64, stream logs.Stream, pipe int, p []byte) {
	now := time.Now()
	off := log.Offset()
	atomic.StoreUint64(&s.words[wordSerial], serial)
	atomic.StoreUint64(&s.words[wordStream], uint64(stream))
	atomic.StoreUint64(&s.words[wordOffset], uint64(off))
	atomic.StoreUint64(&s.words[wordTime], uint64(now.UnixNano()))
	atomic.StoreUint64(&s.words[wordCount], uint64(len(p)))
	atomic.StoreUint64(&s.words[wordPhase], phaseWriting)
	log.Write(time.Unix(0, now.UnixNano()), stream, p)
	s.take(pipe, len(p))
}

// take drops n bytes at a pipe's head, which are in the log. They go through the
// staging pipe, where nothing else can come between: how many of them are gone
// already can always be told.
func (s *stage) take(pipe, n int) {
	atomic.StoreUint64(&s.words[wordPhase], phaseMoving)
	s.move(pipe, n)
	s.clear(n)
}

// clear empties the staging pipe of n bytes, which are in the log.
func (s *stage) clear(n int) {
	atomic.StoreUint64(&s.words[wordPhase], phaseMoved)
	for n > 0 {
		m, err := linux.Splice(s.r, s.null, n)
		if err != nil || m == 0 {
			break
		}
		n -= m
	}
	atomic.StoreUint64(&s.words[wordPhase], phaseIdle)
}

// move takes n bytes from a pipe's head into the staging pipe.
func (s *stage) move(pipe, n int) {
	for n > 0 {
		m, err := linux.Splice(pipe, s.w, n)
		if err != nil || m == 0 {
			return // cannot be: they were seen there, and nobody else reads
		}
		n -= m
	}
}

// pending tells whose batch a predecessor left unfinished.
func (s *stage) pending() (serial uint64, stream logs.Stream, ok bool) {
	switch atomic.LoadUint64(&s.words[wordPhase]) {
	case phaseWriting, phaseMoving:
		stream = streamOf(atomic.LoadUint64(&s.words[wordStream]))
		return atomic.LoadUint64(&s.words[wordSerial]), stream, true
	}
	return 0, 0, false
}

// finish ends the batch that a predecessor left, of a stream whose log and pipe
// these are.
func (s *stage) finish(log *logs.Writer, pipe int) error {
	n := int(atomic.LoadUint64(&s.words[wordCount]))
	switch atomic.LoadUint64(&s.words[wordPhase]) {
	case phaseWriting:
		buf := make([]byte, n)
		got, err := s.peek(pipe, buf)
		if err != nil {
			return err
		}
		stream := streamOf(atomic.LoadUint64(&s.words[wordStream]))
		at := time.Unix(0, int64(atomic.LoadUint64(&s.words[wordTime])))
		log.Redo(int64(atomic.LoadUint64(&s.words[wordOffset])), at, stream, buf[:got])
		s.take(pipe, got)
	case phaseMoving:
		// Without the predecessor's staging pipe nobody knows how much of it was
		// moved. What was not is logged twice then, rather than something not at all.
		if !s.inherited {
			break
		}
		moved, err := linux.Queued(s.r)
		if err != nil {
			return os.NewSyscallError("ioctl", err)
		}
		s.move(pipe, n-moved)
	}
	return s.reset()
}

// reset empties the staging pipe: what is in it is logged, or nobody's any more.
func (s *stage) reset() error {
	n, err := linux.Queued(s.r)
	if err != nil {
		return os.NewSyscallError("ioctl", err)
	}
	s.clear(n)
	return nil
}

// streamOf reads the word; older monitors kept a flag above the first byte.
func streamOf(w uint64) logs.Stream { return logs.Stream(w & 0xff) }
