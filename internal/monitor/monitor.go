package monitor

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// A Key names a process: a container's main one, or one executed in it.
type Key struct {
	Container string
	Exec      string // "" for the main process
}

func (k Key) String() string {
	if k.Exec == "" {
		return "container " + k.Container
	}
	return "exec " + k.Exec + " in container " + k.Container
}

// check refuses what could not be part of a file's name.
func (k Key) check() error {
	if k.Container == "" || !plainName(k.Container) || !plainName(k.Exec) {
		return errdefs.Newf(errdefs.Invalid, "start", fmt.Sprintf("process %q", k.Container+"/"+k.Exec), "not a valid name")
	}
	return nil
}

func plainName(s string) bool {
	if len(s) > 100 {
		return false
	}
	for _, c := range []byte(s) {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}

// file is the key as the name of a record.
func (k Key) file() string {
	if k.Exec == "" {
		return k.Container
	}
	return k.Container + "." + k.Exec
}

func keyOfFile(name string) Key {
	c, e, _ := strings.Cut(name, ".")
	return Key{c, e}
}

// A StartRequest is a process to start.
type StartRequest struct {
	Key     Key
	Program *initproc.Program
	Files   []*os.File // what Program refers to, in order; they stay the caller's

	Terminal      bool
	Width, Height uint16 // of the terminal; 0: whatever it has

	OpenStdin bool // standard input is a pipe that stays open, not /dev/null
	StdinOnce bool // it ends with the first client that sends to it

	Log    logs.Spec
	Attach []AttachSpec // connected before the first byte of output
	Hold   bool         // set up everything and wait for Release before running the program
}

// An AttachSpec connects a client to a process.
type AttachSpec struct {
	// Conn is a stream socket. It stays the caller's; the monitor uses a
	// duplicate, and closes that when the output has ended and is all written.
	Conn                  *os.File
	Stdin, Stdout, Stderr bool
	Mux                   bool // frame output as Docker does (eight bytes before each piece)
	// Patience is how long the process waits for a client that reads nothing at
	// all, before the client is dropped. 0: DefaultPatience; negative: for ever.
	Patience time.Duration
}

// DefaultPatience is the time that a client may block a process.
const DefaultPatience = 10 * time.Second

// Started is a process that runs its program, or is held right before.
type Started struct {
	PID       int
	PidFD     *os.File // the caller's to close
	StartedAt time.Time
}

// Running is a process that the monitor knows: running, or exited and not yet
// acknowledged.
type Running struct {
	Key       Key
	PID       int
	PidFD     *os.File // the caller's to close; nil once exited
	StartedAt time.Time
	Terminal  bool
	Held      bool    // waits for Release
	Exit      *Exited // nil while it runs
}

// An Event tells that a process ended.
type Event = Exited

// Exited is how and when a process ended.
type Exited struct {
	Key    Key
	PID    int
	Code   int  // as a shell has it: 128 + Signal for a signal
	Signal int  // 0 if it exited by itself
	Core   bool // it dumped core
	At     time.Time
	// Unknown: nobody was there to see the exit. Code is 255, and At when it was
	// found.
	Unknown bool
}
