package refs

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/progress"
	digest "github.com/opencontainers/go-digest"
	chains "github.com/opencontainers/image-spec/identity"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/onggi/onggi/internal/errdefs"
	tarlayer "github.com/onggi/onggi/internal/layer"
)

// Indexes of our own. Nodes of one chain id hold the same files.
const (
	chainIndex = "chain:"
)

// createdAtAnnotation carries a layer's time through a remote cache; the name
// is BuildKit's.
const createdAtAnnotation = "buildkit/createdat"

func (s *Store) indexBlob(n *node) {
	if n.rec.Chain != "" {
		s.addIndex(chainIndex+n.rec.Chain.String(), n.rec.ID)
	}
}

func (s *Store) unindexBlob(n *node) {
	if n.rec.Chain != "" {
		s.dropIndex(chainIndex+n.rec.Chain.String(), n.rec.ID)
	}
}

func (s *Store) hasBlob(d digest.Digest) bool {
	if s.o.Content == nil {
		return false
	}
	_, err := s.o.Content.Info(context.Background(), d)
	return err == nil
}

// GetByBlob returns the node for a layer of an image or a remote cache. The
// blob is fetched when the node is first needed.
func (s *Store) GetByBlob(ctx context.Context, desc ocispecs.Descriptor, parent cache.ImmutableRef, opts ...cache.RefOption) (cache.ImmutableRef, error) {
	diffID, err := diffIDOf(desc)
	if err != nil {
		return nil, err
	}
	o := readOptions(opts)
	if o.handlers[desc.Digest] == nil && !s.hasBlob(desc.Digest) {
		return nil, cache.NeedsRemoteProviderError{desc.Digest}
	}
	var p *node
	if parent != nil {
		r, err := s.own(parent)
		if err != nil {
			return nil, err
		}
		p = r.n
		if err := p.finalize(ctx); err != nil {
			return nil, err
		}
	}
	created := time.Now()
	if t, ok := desc.Annotations[createdAtAnnotation]; ok {
		if err := created.UnmarshalText([]byte(t)); err != nil {
			return nil, errdefs.New(errdefs.Invalid, "import", "layer "+desc.Digest.String(), err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layerLocked(layer{DiffID: diffID, Blob: &desc, Created: created, Origin: originOf(desc, o.handlers[desc.Digest]),
		Description: desc.Annotations["buildkit/description"]}, p, o)
}

// distributionSource begins the annotations that name a blob's repository; the
// rest is the registry. The name is containerd's.
const distributionSource = "containerd.io/distribution.source."

// originOf is the repository that a blob comes from, "" if it is not known.
func originOf(desc ocispecs.Descriptor, h *cache.DescHandler) string {
	all := []map[string]string{desc.Annotations}
	if h != nil {
		all = append(all, h.Annotations)
	}
	for _, m := range all {
		for k, v := range m {
			if host, ok := strings.CutPrefix(k, distributionSource); ok && v != "" && host != "ref" {
				repo, _, _ := strings.Cut(v, ",")
				return host + "/" + repo
			}
		}
	}
	return ""
}

// originKey is a context's permission to take blobs from their origin.
type originKey struct{}

// WithOrigin lets GetRemotes describe layers by blobs that are not here, but
// can be fetched from where they came from. That is right for a push, which
// then need not even fetch them; an archive is better made of what is here.
func WithOrigin(ctx context.Context) context.Context {
	return context.WithValue(ctx, originKey{}, true)
}

// madeKey is a context's wish to hear of blobs.
type madeKey struct{}

// WithMade has f called with each blob that GetRemotes compresses, as soon as
// it is in the content store, while others may still be compressed.
func WithMade(ctx context.Context, f func(ocispecs.Descriptor)) context.Context {
	return context.WithValue(ctx, madeKey{}, f)
}

// layer describes one layer of an image for layerLocked.
type layer struct {
	DiffID      digest.Digest
	Blob        *ocispecs.Descriptor // nil: the snapshot of the chain id is there
	Origin      string
	Created     time.Time
	Description string
}

// layerLocked finds or makes the node of an image layer. Preconditions: s.mu
// is held.
func (s *Store) layerLocked(l layer, p *node, o refOptions) (*immutableRef, error) {
	chain := l.DiffID
	if p != nil {
		pc := p.chainID()
		if pc == "" {
			return nil, errdefs.Newf(errdefs.Internal, "import", "layer "+l.DiffID.String(), "the layer below it has no chain id")
		}
		chain = chains.ChainID([]digest.Digest{pc, l.DiffID})
	}
	for id := range s.index[chainIndex+chain.String()] {
		n := s.nodes[id]
		if n == nil || n.rec.Mutable || n.twin != nil || n.parent != p {
			continue
		}
		if n.rec.Blob == nil && l.Blob != nil {
			n.rec.Blob, n.rec.Origin = l.Blob, l.Origin
			n.save()
		}
		return n.handle(o, nil), nil
	}
	id := identity.NewID()
	n := &node{s: s, parent: p, rec: record{
		ID: id, Snapshot: Prefix + id, Lazy: true, Blob: l.Blob, Origin: l.Origin, DiffID: l.DiffID, Chain: chain,
		Size: unknown, Created: l.Created, Description: l.Description,
		Retain: true,
	}}
	if n.rec.Description == "" {
		n.rec.Description = "layer " + l.DiffID.String()
	}
	if p != nil {
		p.children++
		n.rec.Parent = p.rec.ID
	}
	s.nodes[id] = n
	s.indexBlob(n)
	if err := n.save(); err != nil {
		n.drop(false)
		return nil, err
	}
	return n.handle(o, nil), nil
}

// ImageLayers are the layers of an image of the snapshot store.
type ImageLayers struct {
	DiffIDs     []digest.Digest
	Blobs       []ocispecs.Descriptor // what they were pulled as; empty if unknown
	Origin      string                // repository that has the blobs
	Created     time.Time
	Description string
}

// Image returns the node of the top layer of an image whose layers are all in
// the snapshot store under their chain ids, nil for an image without layers.
func (s *Store) Image(ctx context.Context, img ImageLayers) (cache.ImmutableRef, error) {
	var top *immutableRef
	for i, d := range img.DiffIDs {
		l := layer{DiffID: d, Created: img.Created, Description: img.Description}
		if len(img.Blobs) == len(img.DiffIDs) && img.Origin != "" {
			l.Blob, l.Origin = &img.Blobs[i], img.Origin
		}
		var p *node
		if top != nil {
			p = top.n
		}
		s.mu.Lock()
		r, err := s.layerLocked(l, p, refOptions{quiet: i+1 < len(img.DiffIDs)})
		s.mu.Unlock()
		if top != nil {
			top.Release(ctx)
		}
		if err != nil {
			return nil, err
		}
		top = r
		// The name must be ours before the image can be removed.
		if err := r.n.adopt(ctx); err != nil {
			top.Release(ctx)
			return nil, err
		}
	}
	if top == nil {
		return nil, nil
	}
	return top, nil
}

// adopt gives the snapshot of the node's chain id a name of ours.
func (n *node) adopt(ctx context.Context) error {
	n.work.Lock()
	defer n.work.Unlock()
	n.s.mu.Lock()
	lazy, chain, name, below := n.rec.Lazy, n.rec.Chain, n.rec.Snapshot, ""
	if n.parent != nil {
		below = n.parent.rec.Snapshot
	}
	n.s.mu.Unlock()
	if !lazy {
		return nil
	}
	// It lies on our own snapshots, not on the image's, so that the image can
	// be removed while we keep its layers.
	if err := n.s.o.Snapshots.Stack(ctx, name, chain.String(), below); err != nil {
		return err
	}
	return n.update(func(r *record) { r.Lazy = false })
}

// unpack makes the files of a lazy node and of those below it. Blobs are
// fetched side by side, and unpacked from the lowest up.
func (n *node) unpack(ctx context.Context, h cache.DescHandlers, sess session.Group) error {
	n.s.mu.Lock()
	var lazy []*node
	for _, l := range n.layers() {
		if l.rec.Lazy {
			lazy = append(lazy, l)
		}
	}
	n.s.mu.Unlock()
	if len(lazy) == 0 {
		return nil
	}
	fetched := make([]chan error, len(lazy))
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(4)
	var wanted []int
	for i, l := range lazy {
		fetched[i] = make(chan error, 1)
		if l.s.o.Shared != nil && l.s.o.Shared(l.rec.Chain.String()) {
			fetched[i] <- nil
			continue
		}
		wanted = append(wanted, i)
	}
	go func() {
		for _, i := range wanted {
			eg.Go(func() error {
				err := lazy[i].fetch(ectx, h, sess)
				fetched[i] <- err
				return err
			})
		}
	}()
	for i, l := range lazy {
		err := <-fetched[i]
		if err == nil {
			err = l.unpackOne(ctx, h)
		}
		if err != nil {
			return fmt.Errorf("unpacking layer %s: %w", l.rec.DiffID, err)
		}
	}
	return nil
}

// fetch brings the node's blob into the content store.
func (n *node) fetch(ctx context.Context, h cache.DescHandlers, sess session.Group) error {
	desc := n.rec.Blob
	if desc == nil || n.s.hasBlob(desc.Digest) {
		return nil
	}
	dh := h[desc.Digest]
	if dh == nil || dh.Provider == nil {
		return cache.NeedsRemoteProviderError{desc.Digest}
	}
	if dh.Progress != nil {
		_, done := dh.Progress.Start(ctx)
		defer func() { done(nil) }()
	}
	if n.s.o.Lease != nil {
		n.s.o.Lease(ctx, n.rec.ID+"-fetch", desc.Digest)
	}
	ref := dh.Ref
	if ref == "" {
		ref = desc.Digest.String()
	}
	return contentutil.Copy(ctx, n.s.o.Content, &reporting{dh.Provider(sess), dh.Progress}, *desc, ref, nil)
}

// unpackOne makes the files of one node whose blob has arrived.
func (n *node) unpackOne(ctx context.Context, h cache.DescHandlers) (err error) {
	n.work.Lock()
	defer n.work.Unlock()
	s := n.s
	s.mu.Lock()
	lazy, below := n.rec.Lazy, ""
	if n.parent != nil {
		below = n.parent.rec.Snapshot
	}
	s.mu.Unlock()
	if !lazy {
		return nil
	}
	if chain := n.rec.Chain.String(); s.o.Snapshots.Exists(chain) {
		if err := s.o.Snapshots.Stack(ctx, n.rec.Snapshot, chain, below); err != nil {
			return err
		}
		return n.update(func(r *record) { r.Lazy = false })
	}
	desc := n.rec.Blob
	if desc == nil {
		return errdefs.Newf(errdefs.NotFound, "unpack", "layer "+n.rec.DiffID.String(), "its files are gone, and it is not known where they came from")
	}
	if dh := h[desc.Digest]; dh != nil && dh.Progress != nil {
		_, stop := dh.Progress.Start(ctx)
		status := dh.Progress.Status("extracting "+desc.Digest.String(), "extracting")
		defer func() { status(); stop(err) }()
	}
	ra, err := s.o.Content.ReaderAt(ctx, *desc)
	if err != nil {
		return err
	}
	defer ra.Close()
	key := n.rec.Snapshot + "-unpack"
	if err := s.o.Snapshots.Remove(ctx, key); err != nil {
		return err
	}
	if err := s.o.Snapshots.Prepare(ctx, key, below); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.o.Snapshots.Remove(context.WithoutCancel(ctx), key))
		}
	}()
	own, lowers, err := s.o.Snapshots.Dirs(key)
	if err != nil {
		return err
	}
	got, size, err := s.o.Layers.Apply(ctx, io.NewSectionReader(ra, 0, ra.Size()), own, lowers)
	if err != nil {
		return err
	}
	if got != n.rec.DiffID {
		return errdefs.Newf(errdefs.Invalid, "unpack", "layer "+desc.Digest.String(), "its content has digest %s, not %s", got, n.rec.DiffID)
	}
	if err := s.o.Snapshots.Commit(ctx, n.rec.Snapshot, key); err != nil {
		return err
	}
	if s.o.Unlease != nil {
		s.o.Unlease(ctx, n.rec.ID+"-fetch")
	}
	return n.update(func(r *record) { r.Lazy, r.TarSize, r.Size = false, size, unknown })
}

// digest computes the node's DiffID.
func (n *node) digest(ctx context.Context) (digest.Digest, int64, error) {
	n.work.Lock()
	defer n.work.Unlock()
	s := n.s
	s.mu.Lock()
	d, size, src := n.rec.DiffID, n.rec.TarSize, n.rec.Source
	key := n.rec.Snapshot
	source := s.nodes[src]
	s.mu.Unlock()
	if d != "" && size > 0 {
		return d, size, nil
	}
	if source != nil && source != n {
		var err error
		if d, size, err = source.digest(ctx); err != nil {
			return "", 0, err
		}
	} else {
		own, _, err := s.o.Snapshots.Dirs(key)
		if err != nil {
			return "", 0, err
		}
		c := &counter{h: sha256.New()}
		if err := s.o.Layers.Tar(ctx, c, own); err != nil {
			return "", 0, fmt.Errorf("digesting a layer: %w", err)
		}
		if d == "" {
			d = digest.NewDigest(digest.SHA256, c.h)
		}
		// The tar of a layer that came as a blob may be made differently from
		// the original; then only its size is of use.
		size = c.n
	}
	err := n.update(func(r *record) { r.DiffID, r.TarSize = d, size; n.chainID() })
	return d, size, err
}

type counter struct {
	h hash.Hash
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return c.h.Write(p)
}

// Layer is a layer of a ref, for an exporter that takes the files as they lie.
type Layer struct {
	Snapshot string // committed
	DiffID   digest.Digest
	ChainID  digest.Digest
	Size     int64 // of the tar
	Blob     *ocispecs.Descriptor
	Origin   string // repository that has Blob
}

// Layers finalizes the ref and names its layers, the lowest first.
func (s *Store) Layers(ctx context.Context, ref cache.ImmutableRef, sess session.Group) ([]Layer, error) {
	if ref == nil {
		return nil, nil
	}
	r, err := s.own(ref)
	if err != nil {
		return nil, err
	}
	if err := r.n.complete(ctx, r.handlers, sess); err != nil {
		return nil, err
	}
	var out []Layer
	for _, n := range r.n.layers() {
		d, size, err := n.digest(ctx)
		if err != nil {
			return nil, err
		}
		s.mu.Lock()
		out = append(out, Layer{Snapshot: n.rec.Snapshot, DiffID: d, ChainID: n.chainID(), Size: size, Blob: n.rec.Blob, Origin: n.rec.Origin})
		s.mu.Unlock()
	}
	return out, nil
}

// GetRemotes describes the ref's layers as blobs. Without compression a blob is
// made only when it is read; with it the blob is made now, where create allows.
func (r *immutableRef) GetRemotes(ctx context.Context, create bool, cfg cacheconfig.RefConfig, all bool, sess session.Group) ([]*solver.Remote, error) {
	if !create && r.n.shared() {
		// The history of builds only asks; a finalized ref could not be taken up
		// again, as that of a build context is by the next build.
		return nil, errdefs.Newf(errdefs.NotFound, "open", "blob of build ref "+r.ID(), "it was not made")
	}
	if err := r.n.finalize(ctx); err != nil {
		return nil, err
	}
	nodes := r.n.layers()
	descs := make([]ocispecs.Descriptor, len(nodes))
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(2)
	for i, n := range nodes {
		eg.Go(func() (err error) {
			descs[i], err = n.blob(ectx, create, cfg.Compression, r.handlers, sess)
			return err
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	p := &provider{s: r.n.s, handlers: r.handlers, sess: sess, nodes: map[digest.Digest]*node{}}
	for i, n := range nodes {
		p.nodes[descs[i].Digest] = n
	}
	return []*solver.Remote{{Descriptors: descs, Provider: p}}, nil
}

// blob describes the node as a blob of the wanted compression.
func (n *node) blob(ctx context.Context, create bool, c compression.Config, h cache.DescHandlers, sess session.Group) (ocispecs.Descriptor, error) {
	s := n.s
	s.mu.Lock()
	have, variants, lazy := n.rec.Blob, n.rec.Variants, n.rec.Lazy
	far := n.rec.Origin != "" && s.o.Fetch != nil && ctx.Value(originKey{}) != nil
	origin := n.rec.Origin
	diffID, created := n.rec.DiffID, n.rec.Created
	s.mu.Unlock()

	finish := func(d ocispecs.Descriptor) ocispecs.Descriptor {
		a := map[string]string{}
		for k, v := range d.Annotations {
			a[k] = v
		}
		a[labels.LabelUncompressed] = diffID.String()
		if t, err := created.MarshalText(); err == nil {
			a[createdAtAnnotation] = string(t)
		}
		d.Annotations = a
		return d
	}
	// The blob it came as is the best, if it can still be had.
	if have != nil && (s.hasBlob(have.Digest) || h[have.Digest] != nil || far) &&
		(!c.Force || compression.IsMediaType(c.Type, have.MediaType)) {
		d := finish(*have)
		if host, repo, ok := strings.Cut(origin, "/"); ok {
			d.Annotations[distributionSource+host] = repo
		}
		return d, nil
	}
	for _, v := range variants {
		if compression.IsMediaType(c.Type, v.MediaType) && s.hasBlob(v.Digest) {
			return finish(v), nil
		}
	}
	if lazy {
		if err := n.unpack(ctx, h, sess); err != nil {
			return ocispecs.Descriptor{}, err
		}
	}
	if !create && c.Type != compression.Uncompressed {
		return ocispecs.Descriptor{}, errdefs.Newf(errdefs.NotFound, "open", "blob of build ref "+n.rec.ID, "it was not made")
	}
	d, size, err := n.digest(ctx)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	diffID = d
	if c.Type == compression.Uncompressed {
		return finish(ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayer, Digest: d, Size: size}), nil
	}
	desc, err := n.compress(ctx, c)
	return finish(desc), err
}

// parallelGzip compresses as our own pushes do, on all processors.
func parallelGzip(c compression.Config) compression.Compressor {
	level := 0
	if c.Level != nil {
		level = *c.Level
	}
	return func(w io.Writer, _ string) (io.WriteCloser, error) { return tarlayer.Compress(w, tarlayer.Gzip, level) }
}

// compress makes a blob of the node, and remembers it.
func (n *node) compress(ctx context.Context, c compression.Config) (desc ocispecs.Descriptor, err error) {
	n.work.Lock()
	defer n.work.Unlock()
	s := n.s
	own, _, err := s.o.Snapshots.Dirs(n.rec.Snapshot)
	if err != nil {
		return desc, err
	}
	w, err := content.OpenWriter(ctx, s.o.Content, content.WithRef("build-"+n.rec.ID+"-"+c.Type.String()))
	if err != nil {
		return desc, err
	}
	defer w.Close()
	if err := w.Truncate(0); err != nil {
		return desc, err
	}
	open, finalize := c.Type.Compress(ctx, c)
	if c.Type.String() == compression.Gzip.String() && (c.Level == nil || *c.Level > 0) {
		open = parallelGzip(c)
	}
	cw, err := open(w, c.Type.MediaType())
	if err != nil {
		return desc, err
	}
	raw := &counter{h: sha256.New()}
	if err := s.o.Layers.Tar(ctx, io.MultiWriter(cw, raw), own); err != nil {
		return desc, fmt.Errorf("compressing a layer: %w", errors.Join(err, cw.Close()))
	}
	if err := cw.Close(); err != nil {
		return desc, err
	}
	st, err := w.Status()
	if err != nil {
		return desc, err
	}
	desc = ocispecs.Descriptor{MediaType: c.Type.MediaType(), Digest: w.Digest(), Size: st.Offset}
	diffID := digest.NewDigest(digest.SHA256, raw.h)
	lab := map[string]string{labels.LabelUncompressed: diffID.String()}
	if err := w.Commit(ctx, desc.Size, desc.Digest, content.WithLabels(lab)); err != nil && !cerrdefs.IsAlreadyExists(err) {
		return desc, err
	}
	if s.o.Lease != nil {
		s.o.Lease(ctx, n.rec.ID, desc.Digest)
	}
	if finalize != nil {
		if desc.Annotations, err = finalize(ctx, s.o.Content); err != nil {
			return desc, err
		}
	}
	err = n.update(func(r *record) {
		if r.DiffID == "" {
			r.DiffID, r.TarSize = diffID, raw.n
			n.chainID()
		}
		r.Variants = append(r.Variants, desc)
	})
	if made, ok := ctx.Value(madeKey{}).(func(ocispecs.Descriptor)); ok && err == nil {
		made(desc)
	}
	return desc, err
}

// provider reads the blobs of a remote.
type provider struct {
	s        *Store
	handlers cache.DescHandlers
	sess     session.Group
	nodes    map[digest.Digest]*node
}

func (p *provider) Info(ctx context.Context, d digest.Digest) (content.Info, error) {
	if info, err := p.s.o.Content.Info(ctx, d); err == nil || !cerrdefs.IsNotFound(err) {
		return info, err
	}
	n := p.nodes[d]
	if n == nil {
		return content.Info{}, fmt.Errorf("blob %s: %w", d, cerrdefs.ErrNotFound)
	}
	p.s.mu.Lock()
	defer p.s.mu.Unlock()
	if b := n.rec.Blob; b != nil && b.Digest == d {
		return content.Info{Digest: d, Size: b.Size}, nil
	}
	return content.Info{Digest: d, Size: n.rec.TarSize}, nil
}

func (p *provider) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	if ra, err := p.s.o.Content.ReaderAt(ctx, desc); err == nil || !cerrdefs.IsNotFound(err) {
		return ra, err
	}
	if h := p.handlers[desc.Digest]; h != nil && h.Provider != nil {
		return h.Provider(p.sess).ReaderAt(ctx, desc)
	}
	n := p.nodes[desc.Digest]
	if n == nil {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, cerrdefs.ErrNotFound)
	}
	if b := n.rec.Blob; b != nil && b.Digest == desc.Digest && n.rec.Origin != "" && p.s.o.Fetch != nil {
		return p.s.o.Fetch(ctx, n.rec.Origin, desc, p.sess)
	}
	return n.tarFile(ctx, desc.Digest)
}

// tarFile makes the node's tar in a file without a name.
func (n *node) tarFile(ctx context.Context, want digest.Digest) (_ content.ReaderAt, err error) {
	own, _, err := n.s.o.Snapshots.Dirs(n.rec.Snapshot)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(n.s.ext, ".tar-")
	if err != nil {
		return nil, err
	}
	os.Remove(f.Name())
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	c := &counter{h: sha256.New()}
	if err := n.s.o.Layers.Tar(ctx, io.MultiWriter(f, c), own); err != nil {
		return nil, err
	}
	if got := digest.NewDigest(digest.SHA256, c.h); got != want {
		return nil, errdefs.Newf(errdefs.Internal, "read", "layer "+want.String(), "its files now have the digest %s", got)
	}
	return &sizedFile{f, c.n}, nil
}

type sizedFile struct {
	*os.File
	size int64
}

func (f *sizedFile) Size() int64 { return f.size }

// diffIDOf is the digest of the uncompressed layer, as the descriptor says.
func diffIDOf(desc ocispecs.Descriptor) (digest.Digest, error) {
	if v, ok := desc.Annotations[labels.LabelUncompressed]; ok {
		return digest.Parse(v)
	}
	switch desc.MediaType {
	case images.MediaTypeDockerSchema2Layer, ocispecs.MediaTypeImageLayer:
		return desc.Digest, nil
	}
	return "", errdefs.Newf(errdefs.Invalid, "import", "layer "+desc.Digest.String(), "the digest of its content is not known")
}

// reporting shows what is fetched through a provider.
type reporting struct {
	content.Provider
	pg progress.Controller
}

func (r *reporting) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	ra, err := r.Provider.ReaderAt(ctx, desc)
	if err != nil || r.pg == nil {
		return ra, err
	}
	return &statusReader{ReaderAt: ra, done: r.pg.Status(desc.Digest.String(), "downloading")}, nil
}

type statusReader struct {
	content.ReaderAt
	done func()
}

func (r *statusReader) Close() error {
	r.done()
	return r.ReaderAt.Close()
}
