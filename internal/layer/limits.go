package layer

import (
	"path"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
)

// Limits bound what an archive may do to this machine. A zero field is the
// default.
type Limits struct {
	Bytes   int64 // of the tar, and of all files; default 256 GiB
	Entries int64 // default 8 million
	Depth   int   // of a path; default 256
}

const (
	maxPath = 4096
	mega    = 1 << 20
)

func (l Limits) withDefaults() Limits {
	if l.Bytes == 0 {
		l.Bytes = 256 << 30
	}
	if l.Entries == 0 {
		l.Entries = 8_000_000
	}
	if l.Depth == 0 {
		l.Depth = 256
	}
	return l
}

// LimitsFor are the limits for a compressed layer of that size: gzip makes 1
// of at most 1032, and more than that is no layer but an attack.
func LimitsFor(compressed int64) Limits {
	return Limits{Bytes: min(256<<30, max(compressed, 0)*1100+64*mega)}
}

// cleanName turns the name of an entry into a path below the root, without
// "." and "..", and "." for the root itself.
func (l Limits) cleanName(name string) (string, error) {
	if len(name) > maxPath {
		return "", invalid(name, "its name has more than %d bytes", maxPath)
	}
	c := path.Clean(strings.TrimLeft(name, "/"))
	switch {
	case name == "" || strings.IndexByte(name, 0) >= 0:
		return "", invalid(name, "that is no name")
	case c == ".." || strings.HasPrefix(c, "../"):
		return "", invalid(name, "its name leads out of the archive")
	case strings.Count(c, "/") >= l.Depth:
		return "", invalid(name, "it is more than %d directories deep", l.Depth)
	}
	return c, nil
}

// invalid says what is wrong with an entry of the archive.
func invalid(name, format string, args ...any) error {
	return errdefs.Newf(errdefs.Invalid, "unpack", "entry "+quote(name), format, args...)
}
