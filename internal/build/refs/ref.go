package refs

import (
	"context"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/progress"
	"github.com/moby/sys/user"
	digest "github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/errdefs"
)

// metadataOf is a node seen as cache.RefMetadata.
type metadataOf struct{ n *node }

var _ cache.RefMetadata = metadataOf{}

func (m metadataOf) ID() string { return m.n.rec.ID } // an id never changes

func (m metadataOf) read(f func(*record)) {
	m.n.s.mu.Lock()
	defer m.n.s.mu.Unlock()
	f(&m.n.rec)
}

func (m metadataOf) GetDescription() (out string) {
	m.read(func(r *record) { out = r.Description })
	return out
}

func (m metadataOf) SetDescription(d string) error {
	return m.n.update(func(r *record) { r.Description = d })
}

func (m metadataOf) GetCreatedAt() (t time.Time) {
	m.read(func(r *record) { t = r.Created })
	return t
}

func (m metadataOf) SetCreatedAt(t time.Time) error {
	return m.n.update(func(r *record) { r.Created = t })
}

func (m metadataOf) HasCachePolicyDefault() bool { return !m.HasCachePolicyRetain() }

func (m metadataOf) SetCachePolicyDefault() error {
	return m.n.update(func(r *record) { r.Retain = false })
}

func (m metadataOf) HasCachePolicyRetain() (ok bool) {
	m.read(func(r *record) { ok = r.Retain })
	return ok
}

func (m metadataOf) SetCachePolicyRetain() error {
	return m.n.update(func(r *record) { r.Retain = true })
}

func (m metadataOf) GetLayerType() (t string) {
	m.read(func(r *record) { t = r.LayerType })
	return t
}

func (m metadataOf) SetLayerType(t string) error {
	return m.n.update(func(r *record) { r.LayerType = t })
}

func (m metadataOf) GetRecordType() (t client.UsageRecordType) {
	m.read(func(r *record) { t = r.Type })
	return t
}

func (m metadataOf) SetRecordType(t client.UsageRecordType) error {
	return m.n.update(func(r *record) { r.Type = t })
}

func (m metadataOf) GetEqualMutable() (cache.RefMetadata, bool) {
	m.n.s.mu.Lock()
	defer m.n.s.mu.Unlock()
	if m.n.rec.Mutable || m.n.twin == nil {
		return nil, false
	}
	return metadataOf{m.n.twin}, true
}

func (m metadataOf) Get(key string) (v *metadata.Value) {
	m.read(func(r *record) { v = r.Values[key] })
	return v
}

func (m metadataOf) GetString(key string) string {
	var out string
	if v := m.Get(key); v != nil && v.Unmarshal(&out) != nil {
		return ""
	}
	return out
}

// SetString stores a value and an index to find the node by. What the index
// says about the node's origin becomes its record type.
func (m metadataOf) SetString(key, val, index string) error {
	v, err := metadata.NewValue(val)
	if err != nil {
		return err
	}
	v.Index = index
	s := m.n.s
	return m.n.update(func(r *record) {
		if old := r.Values[key]; old != nil {
			s.dropIndex(old.Index, r.ID)
		}
		if r.Values == nil {
			r.Values = map[string]*metadata.Value{}
		}
		r.Values[key] = v
		s.addIndex(index, r.ID)
		if t, text := typeOf(index); t != "" && r.Type == "" {
			r.Type = t
			if r.Description == "" {
				r.Description = text
			}
		}
	})
}

func (m metadataOf) ClearValueAndIndex(key, index string) error {
	s := m.n.s
	current := m.GetString(key)
	return m.n.update(func(r *record) {
		if old := r.Values[key]; old != nil {
			s.dropIndex(old.Index, r.ID)
		}
		s.dropIndex(index+current, r.ID)
		delete(r.Values, key)
	})
}

// Larger metadata lies in files, since the records are kept in memory.

func (m metadataOf) extPath(key string) string {
	return filepath.Join(m.n.s.ext, m.n.rec.ID, url.PathEscape(key))
}

func (m metadataOf) GetExternal(key string) ([]byte, error) {
	b, err := os.ReadFile(m.extPath(key))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errdefs.Newf(errdefs.NotFound, "read", "metadata "+key, "build ref %s has none", m.n.rec.ID)
	}
	return b, err
}

func (m metadataOf) SetExternal(key string, b []byte) error {
	p := m.extPath(key)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		return err
	}
	// A torn file must not be read after a crash, so the name comes last; a
	// lost one is only hashed again, so nothing is synced.
	tmp := p + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, p)
}

// immutableRef implements cache.ImmutableRef.
type immutableRef struct {
	metadataOf
	handlers cache.DescHandlers
	progress progress.Controller
	counts   bool // releasing it counts as a use
	released bool // guarded by n.s.mu
}

var _ cache.ImmutableRef = (*immutableRef)(nil)

func (r *immutableRef) IdentityMapping() *user.IdentityMapping { return nil }

func (r *immutableRef) DescHandler(d digest.Digest) *cache.DescHandler { return r.handlers[d] }

func (r *immutableRef) Clone() cache.ImmutableRef { return r.clone() }

func (r *immutableRef) clone() *immutableRef {
	r.n.s.mu.Lock()
	defer r.n.s.mu.Unlock()
	return r.n.handle(refOptions{handlers: r.handlers, quiet: !r.counts}, r.progress)
}

func (r *immutableRef) Release(context.Context) error {
	n := r.n
	n.s.mu.Lock()
	defer n.s.mu.Unlock()
	if r.released {
		return nil
	}
	r.released = true
	n.handles--
	if n.dead || n.handles > 0 {
		return nil
	}
	if r.counts {
		n.used()
	}
	if n.twin != nil {
		n.saveLater()
		n.twin.releaseMutable()
		return nil
	}
	n.idle()
	n.saveLater()
	return nil
}

func (r *immutableRef) Finalize(ctx context.Context) error { return r.n.finalize(ctx) }

func (r *immutableRef) Extract(ctx context.Context, s session.Group) error {
	return r.n.unpack(ctx, r.handlers, s)
}

func (r *immutableRef) Mount(ctx context.Context, readOnly bool, s session.Group) (snapshot.Mountable, error) {
	if !readOnly {
		if err := r.n.finalize(ctx); err != nil {
			return nil, err
		}
	}
	if err := r.n.ready(ctx, r.handlers, s); err != nil {
		return nil, err
	}
	return &view{n: r.n, readOnly: true}, nil
}

// LayerChain returns a ref for each layer, the lowest first.
func (r *immutableRef) LayerChain() cache.RefList {
	r.n.s.mu.Lock()
	defer r.n.s.mu.Unlock()
	var out cache.RefList
	for _, n := range r.n.layers() {
		out = append(out, n.handle(refOptions{handlers: r.handlers, quiet: true}, nil))
	}
	return out
}

// FileList names the files that the top layer adds or changes.
func (r *immutableRef) FileList(ctx context.Context, s session.Group) ([]string, error) {
	if err := r.n.finalize(ctx); err != nil {
		return nil, err
	}
	if err := r.n.unpack(ctx, r.handlers, s); err != nil {
		return nil, err
	}
	own, _, err := r.n.s.o.Snapshots.Dirs(r.n.rec.Snapshot)
	if err != nil {
		return nil, err
	}
	var out []string
	err = filepath.WalkDir(own, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == own {
			return err
		}
		if d.Type()&fs.ModeCharDevice != 0 { // a whiteout, or a device nobody lists
			return nil
		}
		out = append(out, strings.TrimPrefix(p, own))
		return nil
	})
	return out, err
}

// mutableRef implements cache.MutableRef.
type mutableRef struct {
	metadataOf
	handlers cache.DescHandlers
	done     bool // guarded by n.s.mu: committed or released
}

var _ cache.MutableRef = (*mutableRef)(nil)

func (r *mutableRef) IdentityMapping() *user.IdentityMapping { return nil }

func (r *mutableRef) DescHandler(d digest.Digest) *cache.DescHandler { return r.handlers[d] }

func (r *mutableRef) Mount(_ context.Context, readOnly bool, _ session.Group) (snapshot.Mountable, error) {
	return &view{n: r.n, readOnly: readOnly}, nil
}

func (r *mutableRef) Commit(context.Context) (cache.ImmutableRef, error) {
	s := r.n.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.done || r.n.dead {
		return nil, errdefs.Newf(errdefs.Conflict, "commit", "build ref "+r.n.rec.ID, "it is not open any more")
	}
	r.done = true
	n := s.commitLocked(r.n)
	r.n.handles = 0
	return n.handle(refOptions{handlers: r.handlers}, nil), nil
}

func (r *mutableRef) Release(context.Context) error {
	s := r.n.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.done {
		return nil
	}
	r.done = true
	r.n.handles = 0
	if !r.n.dead {
		r.n.releaseMutable()
	}
	return nil
}

// isRetain recognises cache.CachePolicyRetain, a function that cannot be called.
func isRetain(opt any) bool {
	v := reflect.ValueOf(opt)
	if v.Kind() != reflect.Func {
		return false
	}
	f := runtime.FuncForPC(v.Pointer())
	return f != nil && strings.HasSuffix(f.Name(), "buildkit/cache.CachePolicyRetain")
}
