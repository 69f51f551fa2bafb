package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
	"github.com/onggi/onggi/internal/registry"
)

// maxNesting is how many indexes may lie in one another.
const maxNesting = 4

// resolved is an image at a registry, without its layers.
type resolved struct {
	target   ocispec.Descriptor // what the name means there
	index    ocispec.Descriptor // zero for none
	manifest ocispec.Descriptor
	layers   []ocispec.Descriptor
	config   ocispec.Image
	id       ocispec.Digest
	docs     map[ocispec.Digest][]byte
}

// Resolved is what Resolve finds.
type Resolved struct {
	Target   ocispec.Descriptor // an index or a manifest
	Manifest ocispec.Descriptor
	Config   []byte
	Layers   []ocispec.Descriptor
}

// Resolve looks an image up at its registry without pulling its layers.
func (s *Service) Resolve(ctx context.Context, q PullRequest) (Resolved, error) {
	ref := q.Ref.OrLatest()
	res, err := s.resolve(ctx, s.o.Registry.Repository(ref, q.Auth), ref, q.Platform)
	if err != nil {
		return Resolved{}, err
	}
	return Resolved{Target: res.target, Manifest: res.manifest, Config: res.docs[res.id], Layers: res.layers}, nil
}

func tagOrDigest(ref reference.Ref) string {
	if ref.Digest != "" {
		return ref.Digest
	}
	return ref.Tag
}

// resolve follows a name to the manifest and configuration for a platform.
func (s *Service) resolve(ctx context.Context, repo *registry.Repository, ref reference.Ref, want *ocispec.Platform) (*resolved, error) {
	platform := ocispec.Host()
	if want != nil {
		platform = *want
	}
	d, b, err := repo.Manifest(ctx, tagOrDigest(ref))
	if err != nil {
		return nil, pullError(ref, err)
	}
	res := &resolved{target: d, docs: map[ocispec.Digest][]byte{}}
	res.docs[d.Digest] = b
	for depth := 0; ocispec.IsIndex(d.MediaType); depth++ {
		if depth == maxNesting {
			return nil, errdefs.Newf(errdefs.Invalid, "pull", ref.Familiar(), "more than %d indexes in one another", maxNesting)
		}
		x, err := ocispec.ParseIndex(b, d.MediaType)
		if err != nil {
			return nil, errdefs.New(errdefs.Invalid, "pull", ref.Familiar(), err)
		}
		if depth == 0 {
			res.index = d
		}
		next, ok := ocispec.Choose(x.Manifests, platform)
		if !ok {
			return nil, noPlatform(ref, platform, ocispec.Platforms(x.Manifests))
		}
		if d, b, err = repo.Manifest(ctx, next.Digest.String()); err != nil {
			return nil, pullError(ref, err)
		}
		if d.MediaType != next.MediaType || d.Size != next.Size {
			return nil, errdefs.Newf(errdefs.Invalid, "pull", ref.Familiar(), "the index says that %s is %s of %d bytes; it is %s of %d", next.Digest, next.MediaType, next.Size, d.MediaType, d.Size)
		}
		res.docs[d.Digest] = b
	}
	m, err := ocispec.ParseManifest(b, d.MediaType)
	if err != nil {
		return nil, errdefs.New(errdefs.KindOf(err), "pull", ref.Familiar(), err)
	}
	if !ocispec.IsConfig(m.Config.MediaType) {
		return nil, errdefs.Newf(errdefs.Unsupported, "pull", ref.Familiar(), "this is no image but an artifact of type %q", firstOf(m.ArtifactType, m.Config.MediaType))
	}
	for _, l := range m.Layers {
		if !ocispec.IsLayer(l.MediaType) {
			return nil, errdefs.Newf(errdefs.Unsupported, "pull", ref.Familiar(), "a layer of the unknown type %q", l.MediaType)
		}
	}
	cb, err := repo.Small(ctx, m.Config, ocispec.MaxConfig)
	if err != nil {
		return nil, pullError(ref, err)
	}
	cfg, err := ocispec.ParseImage(cb)
	if err != nil {
		return nil, errdefs.New(errdefs.Invalid, "pull", ref.Familiar(), err)
	}
	if len(cfg.RootFS.DiffIDs) != len(m.Layers) {
		return nil, errdefs.Newf(errdefs.Invalid, "pull", ref.Familiar(), "the manifest has %d layers, the configuration %d", len(m.Layers), len(cfg.RootFS.DiffIDs))
	}
	if err := checkPlatform(ref, cfg, want); err != nil {
		return nil, err
	}
	res.manifest, res.layers, res.config, res.id = d, m.Layers, cfg, m.Config.Digest
	res.docs[res.id] = cb
	return res, nil
}

func firstOf(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func noPlatform(ref reference.Ref, p ocispec.Platform, have []string) error {
	err := errdefs.Newf(errdefs.NotFound, "pull", ref.Familiar(), "no matching manifest for %s in the manifest list entries", ocispec.FormatPlatform(p))
	if len(have) > 0 {
		err = errdefs.WithHint(err, "it is there for "+strings.Join(have, ", ")+" (--platform)")
	}
	return err
}

// checkPlatform refuses what cannot run here, or is not what was asked for.
func checkPlatform(ref reference.Ref, cfg ocispec.Image, want *ocispec.Platform) error {
	have := ocispec.Normalise(cfg.Platform)
	if want != nil && have.Architecture != "" && !ocispec.Matches(*want, have) {
		return errdefs.Newf(errdefs.NotFound, "pull", ref.Familiar(), "image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
			ref.Familiar(), ocispec.FormatPlatform(have), ocispec.FormatPlatform(*want))
	}
	if have.OS != "" && have.OS != ocispec.Host().OS {
		return errdefs.Newf(errdefs.Unsupported, "pull", ref.Familiar(), "image operating system %q cannot be used on this platform", have.OS)
	}
	return nil
}

// pullError words why a name could not be fetched.
func pullError(ref reference.Ref, err error) error {
	switch errdefs.KindOf(err) {
	case errdefs.NotFound:
		return errdefs.WithHint(errdefs.New(errdefs.NotFound, "", "", fmt.Errorf("manifest for %s not found: %w", ref.Familiar(), err)), "see whether the name and tag are right")
	case errdefs.Unauthorized, errdefs.Forbidden:
		return errdefs.WithHint(errdefs.New(errdefs.NotFound, "", "", fmt.Errorf("pull access denied for %s, repository does not exist or may require 'onggi login': %w", ref.FamiliarName(), err)), "see whether the name is right; if the repository is private, onggi login"+registryOf(ref))
	}
	return err
}

// registryOf is what login has to be told, nothing for Docker Hub.
func registryOf(ref reference.Ref) string {
	if ref.Domain == reference.DefaultDomain {
		return ""
	}
	return " " + ref.Domain
}

// Pull fetches an image from its registry.
func (s *Service) Pull(ctx context.Context, q PullRequest, listen func(Progress)) (Image, error) {
	rep := newReporter(listen)
	defer rep.flush()
	report := rep.report
	repo := s.o.Registry.Repository(q.Ref, q.Auth)
	if !q.AllTags {
		return s.pullOne(ctx, repo, q.Ref.OrLatest(), q.Platform, report)
	}
	tags, err := repo.Tags(ctx)
	if err != nil {
		return Image{}, pullError(q.Ref, err)
	}
	if len(tags) == 0 {
		return Image{}, errdefs.Newf(errdefs.NotFound, "pull", q.Ref.Familiar(), "the repository has no tags")
	}
	var img Image
	for _, t := range tags {
		ref, err := q.Ref.WithTag(t)
		if err != nil {
			return Image{}, err
		}
		if img, err = s.pullOne(ctx, repo, ref, q.Platform, report); err != nil {
			return Image{}, err
		}
	}
	return img, nil
}

func (s *Service) pullOne(ctx context.Context, repo *registry.Repository, ref reference.Ref, want *ocispec.Platform, report func(Progress)) (Image, error) {
	res, err := s.resolve(ctx, repo, ref, want)
	if err != nil {
		return Image{}, err
	}
	// Not before: an error that comes first is the answer itself, with a status
	// that clients decide by.
	report(Progress{ID: tagOrDigest(ref), Status: "Pulling from " + strings.TrimPrefix(ref.Path, ref.Domain)})
	if host := ocispec.Host(); want == nil && res.config.Architecture != "" && !ocispec.Matches(host, res.config.Platform) {
		report(Progress{Status: fmt.Sprintf("WARNING: The requested image's platform (%s) does not match the detected host platform (%s) and no specific platform was requested",
			ocispec.FormatPlatform(ocispec.Normalise(res.config.Platform)), ocispec.FormatPlatform(host))})
	}
	digestRef, err := ref.WithDigest(res.target.Digest.String())
	if err != nil {
		return Image{}, err
	}
	names := []reference.Ref{digestRef}
	if ref.Digest == "" {
		names = append(names, ref)
	}
	status := "Image is up to date for "
	a := addition{
		id: res.id.String(), rec: record{origin: origin{Manifest: res.manifest, Index: res.index}}, docs: res.docs, names: names,
	}
	if !s.hasAll(a) {
		status = "Downloaded newer image for "
		chains := chainNames(res.config.RootFS.DiffIDs)
		s.pin(chains)
		defer s.unpin(ctx, chains)
		perLayer := report
		if s.hasAll(addition{id: a.id}) { // another name of an image that is here: nothing to tell
			perLayer = func(Progress) {}
		}
		if err := s.pullLayers(ctx, repo, ref, res, chains, perLayer); err != nil {
			return Image{}, errdefs.New(errdefs.KindOf(err), "pull", ref.Familiar(), err)
		}
		if err := s.finish(ctx, a); err != nil {
			return Image{}, errdefs.New(errdefs.KindOf(err), "pull", ref.Familiar(), err)
		}
	}
	report(Progress{Status: "Digest: " + res.target.Digest.String()})
	report(Progress{Status: "Status: " + status + ref.Familiar()})
	s.emit("pull", res.id.String(), ref.Familiar())
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.images[a.id]
	if e == nil {
		return Image{}, notFound(ref.Familiar(), true) // removed meanwhile
	}
	return s.imageLocked(e, a.target())
}

func chainNames(diffIDs []ocispec.Digest) []string {
	var out []string
	for _, c := range ocispec.ChainIDs(diffIDs) {
		out = append(out, c.String())
	}
	return out
}

// hasAll reports whether an image is here as part of its index, and under all
// names.
func (s *Service) hasAll(a addition) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e := s.images[a.id]
	if e == nil || a.rec.Index.Digest != "" && !slices.Contains(s.membersLocked(a.target()), e) {
		return false
	}
	for _, n := range a.names {
		if s.names[n.String()] != a.target() {
			return false
		}
	}
	return true
}

// finish makes layers durable, then the image visible, then its records
// durable.
func (s *Service) finish(ctx context.Context, a addition) error {
	if err := s.o.Snapshots.Sync(ctx); err != nil {
		return err
	}
	if err := s.add(a); err != nil {
		return err
	}
	return s.o.DB.Sync()
}

func (s *Service) putLayer(chain string, rec *layerRecord) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.o.DB.Update(func(tx *metadb.Tx) error { return tx.Put(bucketLayer, chain, rec) }); err != nil {
		return err
	}
	s.layers[chain] = rec
	return nil
}

// knowBlob remembers that a repository has a compressed form of a layer.
func (s *Service) knowBlob(chain string, d ocispec.Descriptor, repo reference.Ref) error {
	s.mu.RLock()
	old := s.layers[chain]
	s.mu.RUnlock()
	if old == nil || d.Digest == "" {
		return nil
	}
	name := repo.Name()
	rec := *old
	rec.Blobs = nil
	blob := blobRecord{Type: d.MediaType, Digest: d.Digest, Size: d.Size, Repos: []string{name}}
	for _, b := range old.Blobs {
		if b.Digest != d.Digest {
			rec.Blobs = append(rec.Blobs, b)
			continue
		}
		if len(b.Repos) > 0 && b.Repos[0] == name && len(old.Blobs) == 1 {
			return nil
		}
		for _, r := range b.Repos {
			if r != name && len(blob.Repos) < maxRepos {
				blob.Repos = append(blob.Repos, r)
			}
		}
	}
	rec.Blobs = append([]blobRecord{blob}, rec.Blobs...)
	if len(rec.Blobs) > maxRepos {
		rec.Blobs = rec.Blobs[:maxRepos]
	}
	return s.putLayer(chain, &rec)
}

// pullLayers makes every layer of an image be there. Blobs come several at a
// time; a layer is unpacked while its blob is still coming, when the one below
// it is done.
func (s *Service) pullLayers(ctx context.Context, repo *registry.Repository, ref reference.Ref, res *resolved, chains []string, report func(Progress)) (err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	slots := make(chan struct{}, s.o.Downloads)
	loads := make([]*download, len(chains))
	defer func() {
		// Blobs stay for another try, unless it can only end the same.
		drop := err == nil || errdefs.Is(err, errdefs.Invalid)
		var wg sync.WaitGroup
		for _, dl := range loads {
			if dl != nil {
				wg.Go(func() { dl.release(drop) })
			}
		}
		wg.Wait()
	}()
	for i, c := range chains {
		id := short(res.layers[i].Digest)
		if s.haveLayer(c) {
			report(Progress{ID: id, Status: "Already exists"})
			continue
		}
		if ocispec.IsForeign(res.layers[i].MediaType) {
			return errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "pull", ref.Familiar(), "layer %s is not at the registry but at an address of its maker's, and those are not fetched", id), "pull an image without foreign layers")
		}
		report(Progress{ID: id, Status: "Pulling fs layer"})
	}
	for i, c := range chains {
		if s.haveLayer(c) {
			continue
		}
		if loads[i], err = s.fetch(ctx, repo, res.layers[i], slots, watcher(res.layers[i], report)); err != nil {
			return err
		}
	}
	for i, c := range chains {
		for attempt := 0; ; attempt++ {
			err = s.pullLayer(ctx, chains, i, res, loads[i], report)
			if err == nil || attempt == 2 || !errors.Is(err, errCorrupt) || ctx.Err() != nil {
				break
			}
			// What was there before may have been wrong, or the mirror.
			dl := loads[i]
			loads[i] = nil
			fresh := dl.start() == 0
			dl.release(true)
			if fresh && !repo.Distrust() {
				break
			}
			var ferr error
			if loads[i], ferr = s.fetch(ctx, repo, res.layers[i], slots, watcher(res.layers[i], report)); ferr != nil {
				return ferr
			}
		}
		if err != nil {
			return err
		}
		if err := s.knowBlob(c, res.layers[i], repo.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (s *Service) haveLayer(chain string) bool {
	s.mu.RLock()
	l := s.layers[chain]
	s.mu.RUnlock()
	return l != nil && s.exists(chain)
}

// pullLayer unpacks one layer, unless another pull does or has done.
func (s *Service) pullLayer(ctx context.Context, chains []string, i int, res *resolved, dl *download, report func(Progress)) error {
	id := short(res.layers[i].Digest)
	leave, err := s.flights.enter(ctx, chains[i], func() { report(Progress{ID: id, Status: "Waiting"}) })
	if err != nil {
		return err
	}
	defer leave()
	if s.haveLayer(chains[i]) {
		if dl != nil {
			report(Progress{ID: id, Status: "Already exists"})
		}
		return nil
	}
	if dl == nil {
		return errdefs.Newf(errdefs.Unavailable, "pull", "layer "+id, "it was removed meanwhile")
	}
	parent := ""
	if i > 0 {
		parent = chains[i-1]
	}
	size := res.layers[i].Size
	u, err := s.unpack(ctx, parent, source{open: dl.reader, compressed: size, progress: func(n int64) {
		if dl.complete() {
			report(Progress{ID: id, Status: "Extracting", Current: n, Total: size})
		}
	}})
	if err != nil {
		// A broken blob explains whatever went wrong while unpacking it.
		if derr := dl.failed(); derr != nil {
			return derr
		}
		return err
	}
	if err := dl.wait(ctx); err != nil {
		s.drop(ctx, u)
		return err
	}
	if u.applied.DiffID != res.config.RootFS.DiffIDs[i] {
		s.drop(ctx, u)
		return errdefs.Newf(errdefs.Invalid, "pull", "layer "+id, "it unpacks to %s, the image's configuration says %s", u.applied.DiffID, res.config.RootFS.DiffIDs[i])
	}
	if _, err := s.settle(ctx, u, chains[i]); err != nil {
		return err
	}
	report(Progress{ID: id, Status: "Pull complete"})
	return nil
}

// watcher turns a download's states into progress.
func watcher(d ocispec.Descriptor, report func(Progress)) func(string, int64) {
	id := short(d.Digest)
	return func(state string, n int64) {
		p := Progress{ID: id, Status: state}
		if state == "Downloading" {
			p.Current, p.Total = n, d.Size
		}
		report(p)
	}
}

// reporter passes progress on from many goroutines, none of which waits for
// whoever listens: what repeats itself is let through only so often, and what
// a slow listener has not heard yet is replaced by what is newer.
type reporter struct {
	f    func(Progress)
	mu   sync.Mutex
	last map[[2]string]time.Time // guarded by mu
	next []Progress              // guarded by mu
	at   map[[2]string]int       // index in next; guarded by mu
	busy bool                    // a goroutine calls f; guarded by mu
	idle *sync.Cond
}

const reportEvery = 100 * time.Millisecond

// newReporter makes one. Call flush before returning to the listener.
func newReporter(f func(Progress)) *reporter {
	r := &reporter{f: f, last: map[[2]string]time.Time{}, at: map[[2]string]int{}}
	r.idle = sync.NewCond(&r.mu)
	return r
}

func (r *reporter) report(p Progress) {
	if r.f == nil {
		return
	}
	key := [2]string{p.ID, p.Status}
	r.mu.Lock()
	defer r.mu.Unlock()
	if i, ok := r.at[key]; ok && p.ID != "" {
		r.next[i] = p
		return
	}
	if p.ID != "" && p.Total > 0 {
		now := time.Now()
		if now.Sub(r.last[key]) < reportEvery && p.Current < p.Total {
			return
		}
		r.last[key] = now
	}
	r.at[key] = len(r.next)
	r.next = append(r.next, p)
	if !r.busy {
		r.busy = true
		go r.run()
	}
}

func (r *reporter) run() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.next) > 0 {
		list := r.next
		r.next = nil
		clear(r.at)
		r.mu.Unlock()
		for _, p := range list {
			r.f(p)
		}
		r.mu.Lock()
	}
	r.busy = false
	r.idle.Broadcast()
}

// flush waits until everything has been passed on.
func (r *reporter) flush() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.busy {
		r.idle.Wait()
	}
}
