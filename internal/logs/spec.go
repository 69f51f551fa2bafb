package logs

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
)

// Drivers that a Spec may name.
const (
	JSONFile = "json-file"
	Local    = "local"
	None     = "none"
)

// What a Spec's zero fields mean.
const (
	DefaultMaxSize  = 10 << 20
	DefaultMaxFiles = 3
)

// MaxLine is how much of one line is one entry; the rest follows in further ones.
const MaxLine = 16 << 10

// A Spec says where and how a container's output is kept.
type Spec struct {
	Driver   string // JSONFile when empty
	Path     string // the newest file; older ones are Path.1 and so on
	MaxSize  int64  // bytes before a new file is begun; 0: DefaultMaxSize, negative: no limit
	MaxFiles int    // files kept, the newest among them; 0: DefaultMaxFiles
	Compress bool   // gzip all files but the newest
	Attrs    map[string]string
}

// withDefaults fills the fields that are zero.
func (s Spec) withDefaults() Spec {
	if s.Driver == "" {
		s.Driver = JSONFile
	}
	if s.MaxSize == 0 {
		s.MaxSize = DefaultMaxSize
	}
	if s.MaxFiles <= 0 {
		s.MaxFiles = DefaultMaxFiles
	}
	return s
}

// Check reports what is wrong with s.
func (s Spec) Check() error {
	switch s.Driver {
	case "", JSONFile, Local:
		if s.Path == "" {
			return errdefs.Newf(errdefs.Invalid, "open", "log", "the %s driver needs a path", s.withDefaults().Driver)
		}
	case None:
	default:
		return errdefs.WithHint(
			errdefs.Newf(errdefs.Invalid, "open", "log", "no log driver is called %q", s.Driver),
			"use json-file, local or none")
	}
	return nil
}

// file is the name of generation n; 0 is the newest.
func (s Spec) file(n int) string {
	if n == 0 {
		return s.Path
	}
	return s.Path + "." + strconv.Itoa(n)
}

// A Stream is where a line was printed.
type Stream uint8

const (
	Stdout Stream = 1
	Stderr Stream = 2
)

func (s Stream) String() string {
	switch s {
	case Stdout:
		return "stdout"
	case Stderr:
		return "stderr"
	}
	return fmt.Sprintf("stream %d", uint8(s))
}

// An Entry is one line of a log, or a piece of a long one.
type Entry struct {
	Stream  string // "stdout" or "stderr"
	Time    time.Time
	Line    []byte // with its newline, unless Partial; valid until the callback returns
	Partial bool   // the line goes on in the stream's next entry
	Attrs   map[string]string
	After   Position // just behind this entry
}

// A Position is a place between two entries of a log, which a later Read can go
// on from, also after files were rotated. The zero value is the beginning.
type Position struct {
	File   uint64    `json:",omitempty"` // the file's inode
	Offset int64     `json:",omitempty"`
	Time   time.Time `json:",omitzero"` // of the entry before; tells a file from a later one with its inode
}

// sortedKeys are m's keys, so that equal attributes give equal bytes.
func sortedKeys(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
