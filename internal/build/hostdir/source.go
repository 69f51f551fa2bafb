package hostdir

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/local"
	"github.com/moby/buildkit/util/progress"
	digest "github.com/opencontainers/go-digest"
	"github.com/tonistiigi/fsutil"

	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/linux"
)

// Source is BuildKit's source of local files, with Dirs in front of it.
type Source struct {
	source.Source
	cache Refs
	dirs  *Dirs

	// Report is told what each build's directories hold, by the build's vertex;
	// the map is not changed any more. It may be nil.
	Report func(vertex digest.Digest, name string, files map[string]string)

	mu      sync.Mutex
	indexes map[string]index             // guarded by mu: by ref, of the last few
	files   map[string]map[string]string // guarded by mu: digests of the same
	asked   map[string]asked             // guarded by mu: by name and directory
	walks   map[string]*walk             // guarded by mu: by session and name
	changes int                          // guarded by mu: to indexes
}

// Refs is where a Source keeps files.
type Refs interface {
	cache.Accessor
	Lend(cache.MutableRef, refs.Lender)
	Directories(cache.MutableRef) (own string, lowers []string, err error)
}

// NewSource returns a source that keeps files in refs of c.
func NewSource(c Refs, dirs *Dirs) (*Source, error) {
	stock, err := local.NewSource(local.Opt{CacheAccessor: c})
	if err != nil {
		return nil, err
	}
	return &Source{Source: stock, cache: c, dirs: dirs, indexes: map[string]index{}, files: map[string]map[string]string{},
		asked: map[string]asked{}, walks: map[string]*walk{}}, nil
}

// Resolve implements source.Source.
func (s *Source) Resolve(ctx context.Context, id source.Identifier, sm *session.Manager, v solver.Vertex) (source.SourceInstance, error) {
	stock, err := s.Source.Resolve(ctx, id, sm, v)
	l, ok := id.(*local.LocalIdentifier)
	if err != nil || !ok || l.MetadataOnly {
		return stock, err
	}
	i := &instance{SourceInstance: stock, s: s, id: *l}
	if v != nil {
		i.vertex = v.Digest()
	}
	return i, nil
}

// instance is one local source of one build. Its key is BuildKit's.
type instance struct {
	source.SourceInstance
	s      *Source
	id     local.LocalIdentifier
	vertex digest.Digest
}

// Snapshot implements source.SourceInstance.
func (i *instance) Snapshot(ctx context.Context, job solver.JobContext) (cache.ImmutableRef, error) {
	dir, session, err := i.open(job)
	if err != nil {
		return nil, err
	}
	if dir == linux.NoFD {
		ref, err := i.SourceInstance.Snapshot(ctx, job)
		if err == nil && ref != nil && i.s.Report != nil {
			if files := sentFiles(ref); files != nil {
				i.s.Report(i.vertex, i.id.Name, files)
			}
		}
		return ref, err
	}
	defer dir.Close()
	ref, err := i.snapshot(ctx, job, dir, session)
	if err != nil {
		return nil, fmt.Errorf("the build context %s: %w", i.id.Name, err)
	}
	return ref, nil
}

func (i *instance) open(job solver.JobContext) (fd linux.FD, session string, err error) {
	if id := i.id.SessionID; id != "" {
		if fd, err := i.s.dirs.open(id, i.id.Name); fd != linux.NoFD || err != nil {
			return fd, id, err
		}
	}
	if job == nil || job.Session() == nil {
		return linux.NoFD, "", nil
	}
	for it := job.Session().SessionIterator(); ; {
		id := it.NextSession()
		if id == "" {
			return linux.NoFD, "", nil
		}
		if fd, err := i.s.dirs.open(id, i.id.Name); fd != linux.NoFD || err != nil {
			return fd, id, err
		}
	}
}

const keyIndex = "onggi.hostdir.v1"

func (i *instance) snapshot(ctx context.Context, job solver.JobContext, dir linux.FD, session string) (_ cache.ImmutableRef, err error) {
	var st linux.Stat
	if err := dir.Stat(&st); err != nil {
		return nil, err
	}
	done := i.progress(ctx)
	key := fmt.Sprintf("%s:%s:host:%d:%d", i.id.Name, i.id.SharedKeyHint, st.Dev, st.Ino)
	ref, old, err := i.s.kept(ctx, key, i.id.Name)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			ref.Release(context.WithoutCancel(ctx))
		}
	}()
	filter := fsutil.FilterOpt{IncludePatterns: i.id.IncludePatterns, ExcludePatterns: i.id.ExcludePatterns, FollowPaths: i.id.FollowPaths}
	files, ok := i.s.walked(ctx, session, i.id.Name, &filter)
	if !ok {
		if files, err = list(ctx, dir, &filter, old); err != nil {
			return nil, err
		}
	}
	checkPlaces(files)
	var copied int64
	if old == nil || len(files) != len(old) || !allUnchanged(files) {
		if copied, err = i.s.update(ctx, dir, ref, old, files); err != nil {
			i.s.spoil(ref)
			return nil, err
		}
	}
	i.s.mu.Lock()
	i.s.remember(fmt.Sprintf("%s:%d:%d", i.id.Name, st.Dev, st.Ino), ref.ID(), filter, len(files))
	i.s.mu.Unlock()
	done(copied)
	if i.s.Report != nil {
		i.s.Report(i.vertex, i.id.Name, i.s.digests(ref.ID()))
	}
	if err := i.s.lend(job, ref, dir); err != nil {
		return nil, err
	}
	return ref.Commit(ctx)
}

func allUnchanged(files []found) bool {
	for i := range files {
		if !files[i].unchanged() {
			return false
		}
	}
	return true
}

// update copies what has changed into the ref, and notes it.
func (s *Source) update(ctx context.Context, dir linux.FD, ref cache.MutableRef, old index, files []found) (int64, error) {
	m, err := ref.Mount(ctx, false, nil)
	if err != nil {
		return 0, err
	}
	lm := snapshot.LocalMounter(m)
	p, err := lm.Mount()
	if err != nil {
		return 0, err
	}
	defer lm.Unmount()
	to, err := linux.OpenRoot(p)
	if err != nil {
		return 0, err
	}
	defer to.Close()
	hashes, err := contenthash.GetCacheContext(ctx, ref)
	if err != nil {
		return 0, err
	}
	// Should the engine die half way, nobody may trust what the ref holds.
	if err := ref.SetExternal(keyIndex, nil); err != nil {
		return 0, err
	}
	sy := &syncer{from: dir, to: to, old: old, hash: hashes}
	fresh, err := sy.run(ctx, files)
	if err != nil {
		return 0, err
	}
	b, err := fresh.marshal()
	if err != nil {
		return 0, err
	}
	if err := ref.SetExternal(keyIndex, b); err != nil {
		return 0, err
	}
	if err := contenthash.SetCacheContext(ctx, ref, hashes); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keep(ref.ID(), fresh)
	return sy.bytes.Load(), nil
}

// What is kept in memory beside the files is bounded.
const (
	maxIndexes = 20
	maxItems   = 300_000
)

// keep holds the index of a ref in memory. Preconditions: s.mu is held.
func (s *Source) keep(ref string, x index) {
	n := len(x)
	for _, other := range s.indexes {
		n += len(other)
	}
	if len(s.indexes) >= maxIndexes || n > maxItems {
		clear(s.indexes)
		clear(s.files)
	}
	s.changes++
	s.indexes[ref] = x
	delete(s.files, ref)
}

// spoil gives a ref up whose files may not be what its hashes say.
func (s *Source) spoil(ref cache.MutableRef) {
	ref.SetCachePolicyDefault()
	contenthash.ClearCacheContext(ref)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	delete(s.indexes, ref.ID())
	delete(s.files, ref.ID())
}

// digests lists what the ref holds.
func (s *Source) digests(ref string) map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	files := s.files[ref]
	if files == nil {
		files = make(map[string]string, len(s.indexes[ref]))
		for p, it := range s.indexes[ref] {
			files[p] = it.digest.String()
		}
		s.files[ref] = files
	}
	return files
}

// sentFiles lists what a session's file sync has brought into a ref, as
// BuildKit's content hash noted it.
func sentFiles(ref cache.ImmutableRef) map[string]string {
	md, ok := ref.GetEqualMutable()
	if !ok {
		return nil
	}
	raw, err := md.GetExternal("buildkit.contenthash.v0")
	if err != nil {
		return nil
	}
	var all contenthash.CacheRecords
	if all.UnmarshalVT(raw) != nil {
		return nil
	}
	files := make(map[string]string, len(all.Paths))
	for _, p := range all.Paths {
		if name := strings.Trim(strings.ReplaceAll(p.Path, "\x00", "/"), "/"); name != "" && p.Record.Type != contenthash.CacheRecordTypeDir {
			files[name] = p.Record.Digest
		}
	}
	return files
}

// index tells what the ref holds; nil where that is not known.
func (s *Source) index(ref cache.MutableRef) index {
	s.mu.Lock()
	defer s.mu.Unlock()
	if x := s.indexes[ref.ID()]; x != nil {
		return x
	}
	b, err := ref.GetExternal(keyIndex)
	if err != nil {
		return nil
	}
	x, err := parseIndex(b)
	if err != nil {
		return nil
	}
	s.keep(ref.ID(), x)
	return x
}

// The name and index under which BuildKit's own source keeps its refs too.
const (
	keyShared   = "local.sharedKey"
	sharedIndex = keyShared + ":"
)

// kept takes up the ref of an earlier build of the same directory, or makes one,
// which has no index yet.
func (s *Source) kept(ctx context.Context, key, name string) (cache.MutableRef, index, error) {
	found, err := s.cache.Search(ctx, sharedIndex+key, false)
	if err != nil {
		return nil, nil, err
	}
	for _, md := range found {
		m, err := s.cache.GetMutable(ctx, md.ID())
		if err != nil {
			continue // another build has it
		}
		if x := s.index(m); x != nil {
			return m, x, nil
		}
		s.spoil(m)
		m.Release(context.WithoutCancel(ctx))
	}
	m, err := s.cache.New(ctx, nil, nil, cache.CachePolicyRetain, cache.WithRecordType(client.UsageRecordTypeLocalSource),
		cache.WithDescription("local source for "+name))
	if err != nil {
		return nil, nil, err
	}
	if err := m.SetString(keyShared, key, sharedIndex+key); err != nil {
		m.Release(context.WithoutCancel(ctx))
		return nil, nil, err
	}
	return m, nil, nil
}

// progress shows the source as BuildKit's own does.
func (i *instance) progress(ctx context.Context) (done func(copied int64)) {
	pw, _, _ := progress.NewFromContext(ctx)
	began := time.Now()
	id := "transferring " + i.id.Name + ":"
	st := progress.Status{Started: &began, Action: "transferring"}
	pw.Write(id, st)
	return func(copied int64) {
		now := time.Now()
		st.Current, st.Completed = int(copied), &now
		pw.Write(id, st)
		pw.Close()
	}
}
