package hostdir

import (
	"context"
	"reflect"

	"github.com/tonistiigi/fsutil"

	"github.com/onggi/onggi/internal/linux"
)

// A directory is walked from the moment in which it is handed over: a session
// opens and a Dockerfile is read meanwhile. Which files a build will ask for is
// guessed to be what the last one did.

// walk is a walk that somebody may ask for.
type walk struct {
	filter  fsutil.FilterOpt
	changes int           // of Source, when it began
	done    chan struct{} // closed when files and err are there
	files   []found
	err     error
}

// worthAhead is how many files make a walk worth beginning before it is asked for.
const worthAhead = 200

// remember notes what a build asked for, for the next one to begin with.
// Preconditions: s.mu is held.
func (s *Source) remember(dir string, ref string, filter fsutil.FilterOpt, files int) {
	switch {
	case files >= worthAhead:
		if len(s.asked) >= maxIndexes {
			clear(s.asked)
		}
		s.asked[dir] = asked{ref, filter}
	case s.asked[dir].ref == ref:
		delete(s.asked, dir)
	}
}

// asked is what a build asked for, and the ref that holds it.
type asked struct {
	ref    string
	filter fsutil.FilterOpt
}

// Ahead begins to walk the directories that a session has handed over, until
// the context ends.
func (s *Source) Ahead(ctx context.Context, session string) {
	for _, name := range s.dirs.names(session) {
		dir := s.dirs.Identity(session, name)
		s.mu.Lock()
		last, ok := s.asked[name+":"+dir]
		old := s.indexes[last.ref]
		w := &walk{filter: last.filter, changes: s.changes, done: make(chan struct{})}
		ok = ok && old != nil
		if ok {
			s.walks[session+":"+name] = w
			context.AfterFunc(ctx, func() { s.dropWalk(session, name, w) })
		}
		s.mu.Unlock()
		if !ok {
			continue
		}
		fd, err := s.dirs.open(session, name)
		if err != nil || fd == linux.NoFD {
			s.dropWalk(session, name, w)
			continue
		}
		go func() {
			defer close(w.done)
			defer fd.Close()
			w.files, w.err = list(ctx, fd, &w.filter, old)
		}()
	}
}

func (s *Source) dropWalk(session, name string, w *walk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key := session + ":" + name; s.walks[key] == w {
		delete(s.walks, key)
	}
}

// walked returns what a walk that has begun already finds, if it is what is
// asked for.
func (s *Source) walked(ctx context.Context, session, name string, filter *fsutil.FilterOpt) ([]found, bool) {
	s.mu.Lock()
	w := s.walks[session+":"+name]
	ok := w != nil && reflect.DeepEqual(w.filter, *filter)
	if ok {
		delete(s.walks, session+":"+name)
		ok = w.changes == s.changes
	}
	s.mu.Unlock()
	if !ok {
		return nil, false
	}
	select {
	case <-w.done:
		return w.files, w.err == nil
	case <-ctx.Done():
		return nil, false
	}
}
