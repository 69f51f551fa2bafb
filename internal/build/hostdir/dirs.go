package hostdir

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// Dirs are the directories that clients have handed over. The zero value is
// ready.
type Dirs struct {
	mu sync.Mutex
	m  map[string]map[string]*os.File // guarded by mu: session → name → directory
}

// Give takes the directories of a session; the returned function forgets and
// closes them.
func (d *Dirs) Give(session string, dirs map[string]*os.File) (forget func(), err error) {
	for name, f := range dirs {
		if fi, err := f.Stat(); err != nil || !fi.IsDir() || linux.IsHandle(f) {
			return nil, errdefs.Newf(errdefs.Invalid, "take over", "build context "+name, "it is no directory opened for reading")
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.m[session] != nil {
		return nil, errdefs.Newf(errdefs.Conflict, "take over", "build session "+session, "it has given its directories already")
	}
	if d.m == nil {
		d.m = map[string]map[string]*os.File{}
	}
	d.m[session] = dirs
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.m, session)
		for _, f := range dirs {
			f.Close()
		}
	}, nil
}

// Identity names a directory of a session by what it is, "" for none.
func (d *Dirs) Identity(session, name string) string {
	fd, err := d.open(session, name)
	if err != nil || fd == linux.NoFD {
		return ""
	}
	defer fd.Close()
	var st linux.Stat
	if fd.Stat(&st) != nil {
		return ""
	}
	return fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// names lists what a session has handed over.
func (d *Dirs) names(session string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.m[session]))
}

// open gives a descriptor of its own for a directory; NoFD where the session
// has none of the name.
func (d *Dirs) open(session, name string) (linux.FD, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.m[session][name]
	if f == nil {
		return linux.NoFD, nil
	}
	return linux.Root(f)
}
