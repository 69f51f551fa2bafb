package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/layer"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
	"github.com/onggi/onggi/internal/registry"
)

// Push writes an image to its registry, under one tag or all it has there.
//
// An image that was pulled goes out with the digests it came with: its blobs
// are found at the registry, mounted from another repository there, or fetched
// again from where they came. Where that cannot be, layers are compressed
// anew, and Pushed.Changed says why the digest is another.
func (s *Service) Push(ctx context.Context, q PushRequest, listen func(Progress)) (PushResult, error) {
	rep := newReporter(listen)
	defer rep.flush()
	report := rep.report
	var out PushResult
	if q.Ref.Digest != "" {
		return out, errdefs.Newf(errdefs.Invalid, "push", q.Ref.Familiar(), "cannot push a digest reference")
	}
	refs := []reference.Ref{q.Ref.OrLatest()}
	if q.AllTags {
		s.mu.RLock()
		refs = nil
		for n := range s.names {
			if r, err := reference.Parse(n); err == nil && r.Tag != "" && r.Repository() == q.Ref.Repository() {
				refs = append(refs, r)
			}
		}
		s.mu.RUnlock()
		slices.SortFunc(refs, func(a, b reference.Ref) int { return strings.Compare(a.Tag, b.Tag) })
	}
	if len(refs) == 0 {
		return out, errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "push", q.Ref.Familiar(), "An image does not exist locally with the tag: %s", q.Ref.FamiliarName()), "onggi tag IMAGE "+q.Ref.Familiar())
	}
	report(Progress{Status: "The push refers to repository [" + q.Ref.Name() + "]"})
	repo := s.o.Registry.Repository(q.Ref, q.Auth)
	for _, ref := range refs {
		p, err := s.pushOne(ctx, repo, ref, q, report)
		if err != nil {
			return out, err
		}
		out.Pushed = append(out.Pushed, p)
		report(Progress{Status: fmt.Sprintf("%s: digest: %s size: %d", p.Tag, p.Digest, p.Size)})
		if p.Changed != "" {
			report(Progress{Status: "Note: the digest differs from the one the image came with: " + p.Changed})
		}
	}
	return out, nil
}

// pushing is one image on its way out.
type pushing struct {
	s      *Service
	repo   *registry.Repository
	ref    reference.Ref
	auth   registry.Auth
	img    Image
	report func(Progress)

	manifest []byte // as it is at the registry
	desc     ocispec.Descriptor
	changed  string // why it is not the one that the image came with
}

func (s *Service) pushOne(ctx context.Context, repo *registry.Repository, ref reference.Ref, q PushRequest, report func(Progress)) (Pushed, error) {
	images, err := s.toPush(ref, q)
	if err != nil {
		return Pushed{}, err
	}
	var list []*pushing
	for _, img := range images {
		s.pin(img.Chain)
		defer s.unpin(ctx, img.Chain)
		list = append(list, &pushing{s: s, repo: repo, ref: ref, auth: q.Auth, img: img, report: report})
	}
	pushed, added, err := pushTarget(ctx, list, q.Platform == nil)
	if err != nil {
		return Pushed{}, errdefs.New(errdefs.KindOf(err), "push", ref.Familiar(), err)
	}
	digestRef, err := ref.WithDigest(pushed.Digest)
	if err != nil {
		return Pushed{}, err
	}
	for _, a := range added {
		a.names = []reference.Ref{digestRef}
		if len(a.docs) > 0 && q.Platform == nil {
			a.names = append(a.names, ref) // the name means here what it means there
		}
		if s.hasAll(a) && len(a.docs) == 0 {
			continue
		}
		if err := s.add(a); err != nil {
			return Pushed{}, err
		}
	}
	s.emit("push", images[0].ID, ref.Familiar())
	return pushed, nil
}

// toPush finds the images of a tag, the one that it means first.
func (s *Service) toPush(ref reference.Ref, q PushRequest) ([]Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	target := s.byNameLocked(ref)
	if target == "" {
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "push", ref.Familiar(), "An image does not exist locally with the tag: %s", ref.FamiliarName()), "onggi tag IMAGE "+ref.Familiar())
	}
	first := s.firstLocked(target)
	list := append([]*entry{first}, slices.DeleteFunc(s.membersLocked(target), func(e *entry) bool { return e == first })...)
	if q.Platform != nil {
		e := best(list, *q.Platform)
		if e == nil {
			return nil, otherPlatform(ref.Familiar(), list, *q.Platform)
		}
		list = []*entry{e}
	}
	var out []Image
	for _, e := range list {
		img, err := s.imageLocked(e, target)
		if err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	return out, nil
}

// pushTarget brings images to the registry and calls them by the tag: as the
// index they came with, else as an index of those that are here, or as the one
// image. whole: the tag means an index there, too.
func pushTarget(ctx context.Context, list []*pushing, whole bool) (Pushed, []addition, error) {
	p := list[0]
	changed := ""
	for _, each := range list {
		if err := each.run(ctx); err != nil {
			return Pushed{}, nil, err
		}
		if each.changed != "" {
			changed = each.changed
		}
	}
	whole = whole && p.img.Index.Digest != ""
	if whole || len(list) > 1 {
		for _, each := range list {
			if _, err := p.repo.PutManifest(ctx, each.desc.Digest.String(), each.desc.MediaType, each.manifest); err != nil {
				return Pushed{}, nil, err
			}
		}
	}
	if whole && changed == "" {
		x, raw, why := p.index(ctx, list)
		if why == "" {
			if _, err := p.repo.PutManifest(ctx, p.ref.Tag, x.MediaType, raw); err != nil {
				return Pushed{}, nil, err
			}
			a := addition{id: p.img.ID, rec: record{origin: origin{Manifest: p.img.Manifest, Index: x}}}
			return Pushed{Tag: p.ref.Tag, Digest: x.Digest.String(), Size: x.Size}, []addition{a}, nil
		}
		if ctx.Err() != nil {
			return Pushed{}, nil, context.Cause(ctx)
		}
		changed = why
	}
	if !p.cameFromRegistry() {
		changed = "" // nobody has been told another digest
	}
	if len(list) > 1 {
		return pushNewIndex(ctx, list, changed)
	}
	if _, err := p.repo.PutManifest(ctx, p.ref.Tag, p.desc.MediaType, p.manifest); err != nil {
		return Pushed{}, nil, err
	}
	a := addition{id: p.img.ID}
	if p.desc.Digest != p.img.Manifest.Digest {
		a.rec.Manifest = p.desc
		a.docs = map[ocispec.Digest][]byte{p.desc.Digest: p.manifest}
	}
	return Pushed{Tag: p.ref.Tag, Digest: p.desc.Digest.String(), Size: p.desc.Size, Changed: changed}, []addition{a}, nil
}

// pushNewIndex makes an index of the images that are here.
func pushNewIndex(ctx context.Context, list []*pushing, changed string) (Pushed, []addition, error) {
	p := list[0]
	x := ocispec.Index{Versioned: ocispec.Versioned, MediaType: ocispec.TypeIndex}
	for _, each := range list {
		d := each.desc
		c := each.img.Config
		d.Platform = &ocispec.Platform{OS: c.OS, Architecture: c.Architecture, Variant: c.Variant, OSVersion: c.OSVersion}
		x.Manifests = append(x.Manifests, d)
	}
	raw, err := json.Marshal(x)
	if err != nil {
		return Pushed{}, nil, err
	}
	d := ocispec.DescriptorOf(ocispec.TypeIndex, raw)
	if _, err := p.repo.PutManifest(ctx, p.ref.Tag, d.MediaType, raw); err != nil {
		return Pushed{}, nil, err
	}
	var added []addition
	for _, each := range list {
		added = append(added, addition{id: each.img.ID, rec: record{origin: origin{Manifest: each.desc, Index: d}}, docs: map[ocispec.Digest][]byte{each.desc.Digest: each.manifest, d.Digest: raw}})
	}
	return Pushed{Tag: p.ref.Tag, Digest: d.Digest.String(), Size: d.Size, Changed: changed}, added, nil
}

// run brings the image's layers and configuration to the registry, and leaves
// the manifest that names them.
func (p *pushing) run(ctx context.Context) error {
	config, err := p.s.doc(ocispec.Digest(p.img.ID))
	if err != nil {
		return err
	}
	old, err := p.oldManifest()
	if err != nil {
		return err
	}
	m, changed, err := p.layers(ctx, old)
	if err != nil {
		return err
	}
	if err := p.repo.PutSmall(ctx, m.Config, config); err != nil {
		return err
	}
	p.desc, p.changed = p.img.Manifest, changed
	if old != nil && changed == "" {
		p.manifest, err = p.s.doc(p.desc.Digest)
		return err
	}
	p.manifest, err = json.Marshal(m)
	p.desc = ocispec.DescriptorOf(m.MediaType, p.manifest)
	return err
}

// cameFromRegistry reports whether the manifest's digest, or its index's, is
// known from a registry.
func (p *pushing) cameFromRegistry() bool {
	for _, n := range p.img.RepoDigests {
		if r, err := reference.Parse(n); err == nil && (r.Digest == p.img.Manifest.Digest.String() || r.Digest == p.img.Index.Digest.String()) {
			return true
		}
	}
	return false
}

// oldManifest is the manifest to push as it is, nil if there is none. The
// builder's manifests have layers that are not compressed, since nobody had
// asked for bytes; those are not for pushing.
func (p *pushing) oldManifest() (*ocispec.Manifest, error) {
	if p.img.Manifest.Digest == "" {
		return nil, nil
	}
	b, err := p.s.doc(p.img.Manifest.Digest)
	if err != nil {
		return nil, err
	}
	m, err := ocispec.ParseManifest(b, p.img.Manifest.MediaType)
	if err != nil || len(m.Layers) != len(p.img.Chain) {
		return nil, err
	}
	if !p.cameFromRegistry() && slices.ContainsFunc(m.Layers, func(l ocispec.Descriptor) bool { return kindOf(l.MediaType) == layer.None }) {
		return nil, nil
	}
	return &m, nil
}

// layers brings every layer to the registry, several at a time, and returns
// the manifest that names them. changed says why it is not old.
func (p *pushing) layers(ctx context.Context, old *ocispec.Manifest) (m ocispec.Manifest, changed string, err error) {
	m = ocispec.Manifest{Versioned: ocispec.Versioned, MediaType: ocispec.TypeManifest}
	docker := old != nil && old.MediaType == ocispec.TypeDockerManifest
	if old != nil {
		m = *old
		m.Layers = slices.Clone(old.Layers)
	} else {
		b, err := p.s.doc(ocispec.Digest(p.img.ID))
		if err != nil {
			return m, "", err
		}
		m.Config = ocispec.DescriptorOf(ocispec.TypeConfig, b)
		m.Layers = make([]ocispec.Descriptor, len(p.img.Chain))
		changed = "it had no manifest"
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	for i := range p.img.Chain {
		p.report(Progress{ID: short(p.img.Config.RootFS.DiffIDs[i]), Status: "Preparing"})
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	slots := make(chan struct{}, p.s.o.Uploads)
	for i, c := range p.img.Chain {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if ctx.Err() != nil {
				return
			}
			var want *ocispec.Descriptor
			if old != nil {
				want = &old.Layers[i]
			}
			d, why, lerr := p.layer(ctx, c, want, docker)
			mu.Lock()
			defer mu.Unlock()
			if lerr != nil {
				if err == nil {
					err = lerr
					cancel(lerr)
				}
				return
			}
			m.Layers[i] = d
			if why != "" {
				changed = why
			}
		})
	}
	wg.Wait()
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return m, changed, err
}

// layer brings one layer to the registry. want, if not nil, is the blob it
// should be.
func (p *pushing) layer(ctx context.Context, chain string, want *ocispec.Descriptor, docker bool) (d ocispec.Descriptor, changed string, err error) {
	p.s.mu.RLock()
	rec := p.s.layers[chain]
	p.s.mu.RUnlock()
	if rec == nil {
		return d, "", errdefs.New(errdefs.NotFound, "read", "layer "+chain, nil)
	}
	id := short(rec.DiffID)
	done := func(up registry.Uploaded, d ocispec.Descriptor) (ocispec.Descriptor, string, error) {
		switch up.How {
		case registry.Exists:
			p.report(Progress{ID: id, Status: "Layer already exists"})
		case registry.Mounted:
			p.report(Progress{ID: id, Status: "Mounted from " + up.From.Path})
		default:
			p.report(Progress{ID: id, Status: "Pushed"})
		}
		return d, changed, p.s.knowBlob(chain, d, p.ref.Repository())
	}
	if want != nil {
		up, err := p.exactBlob(ctx, chain, rec, *want, id)
		if err == nil {
			return done(up, *want)
		}
		if !errors.Is(err, registry.ErrAbsent) && !errors.Is(err, errNoSource) {
			return d, "", err
		}
		changed = fmt.Sprintf("layer %s could not be had again as it was, and was compressed anew (%v)", short(want.Digest), err)
	} else {
		// Any compressed form will do that need not be sent.
		for _, b := range rec.Blobs {
			if kindOf(b.Type) == layer.None {
				continue
			}
			up, err := p.repo.PutBlob(ctx, registry.Upload{Desc: b.descriptor(), From: p.reposOf(b)})
			if err == nil {
				d := up.Desc
				d.MediaType = layerType(kindOf(b.Type), docker)
				return done(up, d)
			}
			if !errors.Is(err, registry.ErrAbsent) {
				return d, "", err
			}
		}
	}
	kind := layer.Gzip
	if want != nil && kindOf(want.MediaType) == layer.Zstd {
		kind = layer.Zstd
	}
	p.report(Progress{ID: id, Status: "Pushing", Current: 0, Total: max(rec.Tar, 1)})
	up, err := p.repo.PutBlob(ctx, registry.Upload{
		Desc: ocispec.Descriptor{MediaType: layerType(kind, docker)},
		Open: func(ctx context.Context) (io.ReadCloser, error) {
			return p.s.compressed(ctx, chain, kind, func(n int64) {
				p.report(Progress{ID: id, Status: "Pushing", Current: n, Total: max(rec.Tar, n)})
			}), nil
		},
	})
	if err != nil {
		return d, "", err
	}
	return done(up, up.Desc)
}

// reposOf lists the repositories that have a blob.
func (p *pushing) reposOf(b blobRecord) []reference.Ref {
	var out []reference.Ref
	for _, n := range b.Repos {
		if r, err := reference.Parse(n); err == nil {
			out = append(out, r)
		}
	}
	return out
}

// source is a repository to read from. The account is for the target's
// registry only.
func (p *pushing) source(ref reference.Ref) *registry.Repository {
	auth := registry.Auth{}
	if ref.Domain == p.ref.Domain {
		auth = p.auth
	}
	return p.s.o.Registry.Repository(ref, auth)
}

// maxAttestation is how large a part of an attestation may be to be carried
// along.
const maxAttestation = 16 << 20

// errNoSource is the cause where a blob is nowhere to be had.
var errNoSource = errors.New("no repository has it any more")

// exactBlob brings a blob to the registry without changing a byte of it.
func (p *pushing) exactBlob(ctx context.Context, chain string, rec *layerRecord, want ocispec.Descriptor, id string) (registry.Uploaded, error) {
	var from []reference.Ref
	for _, b := range rec.Blobs {
		if b.Digest == want.Digest {
			from = p.reposOf(b)
		}
	}
	up, err := p.repo.PutBlob(ctx, registry.Upload{Desc: want, From: from})
	if err == nil || !errors.Is(err, registry.ErrAbsent) {
		return up, err
	}
	progress := func(n int64) { p.report(Progress{ID: id, Status: "Pushing", Current: n, Total: want.Size}) }
	if want.Digest == rec.DiffID {
		return p.repo.PutBlob(ctx, registry.Upload{Desc: want, Progress: progress, Open: func(ctx context.Context) (io.ReadCloser, error) {
			return p.s.compressed(ctx, chain, layer.None, nil), nil
		}})
	}
	why := errNoSource
	for _, f := range from {
		if f == p.ref.Repository() {
			continue
		}
		src := p.source(f)
		// Asked first, so that its errors are not taken for the target's.
		if rc, err := src.Blob(ctx, want, 0); err != nil {
			why = fmt.Errorf("%w: %w", errNoSource, err)
			continue
		} else {
			rc.Close()
		}
		return p.repo.PutBlob(ctx, registry.Upload{Desc: want, Progress: progress, Open: func(ctx context.Context) (io.ReadCloser, error) { return src.Blob(ctx, want, 0) }})
	}
	return up, why
}

// index makes the registry have everything that the image's index names. Other
// platforms' blobs may not be here: they are mounted, or left where they are.
// why says what is missing.
func (p *pushing) index(ctx context.Context, here []*pushing) (d ocispec.Descriptor, b []byte, why string) {
	d = p.img.Index
	b, err := p.s.doc(d.Digest)
	if err != nil {
		return d, nil, err.Error()
	}
	x, err := ocispec.ParseIndex(b, d.MediaType)
	if err != nil {
		return d, nil, err.Error()
	}
	for _, e := range x.Manifests {
		if slices.ContainsFunc(here, func(h *pushing) bool { return h.desc.Digest == e.Digest }) {
			continue
		}
		if err := p.other(ctx, e); err != nil {
			what := "its index names " + short(e.Digest)
			if e.Platform != nil {
				what += " for " + ocispec.FormatPlatform(*e.Platform)
			}
			return d, nil, what + ", which is not here, so that what is was pushed alone"
		}
	}
	return d, b, ""
}

// other makes the registry have an entry of the index that is not this image:
// from documents that are here, or from repositories of the same registry.
func (p *pushing) other(ctx context.Context, e ocispec.Descriptor) error {
	if d, err := p.repo.Resolve(ctx, e.Digest.String()); err == nil && d.Digest == e.Digest {
		return nil
	}
	if !ocispec.IsManifest(e.MediaType) {
		return errNoSource
	}
	// Attestations are small enough to be carried from another registry.
	carry := ocispec.IsAttestation(e)
	var from []reference.Ref
	for _, n := range p.img.RepoDigests {
		if r, err := reference.Parse(n); err == nil && r.Repository() != p.ref.Repository() && (carry || r.Domain == p.ref.Domain) {
			from = append(from, r.Repository())
		}
	}
	b, err := p.s.doc(e.Digest)
	var src *registry.Repository
	for _, f := range from {
		if err == nil {
			break
		}
		src = p.source(f)
		_, b, err = src.Manifest(ctx, e.Digest.String())
	}
	if err != nil {
		return err
	}
	m, err := ocispec.ParseManifest(b, e.MediaType)
	if err != nil {
		return err
	}
	for _, bd := range append([]ocispec.Descriptor{m.Config}, m.Layers...) {
		if data, err := p.s.doc(bd.Digest); err == nil {
			if err := p.repo.PutSmall(ctx, bd, data); err != nil {
				return err
			}
			continue
		}
		_, err := p.repo.PutBlob(ctx, registry.Upload{Desc: bd, From: from})
		if carry && src != nil && errors.Is(err, registry.ErrAbsent) {
			var data []byte
			if data, err = src.Small(ctx, bd, maxAttestation); err == nil {
				err = p.repo.PutSmall(ctx, bd, data)
			}
		}
		if err != nil {
			return err
		}
	}
	_, err = p.repo.PutManifest(ctx, e.Digest.String(), e.MediaType, b)
	return err
}

// compressed reads a layer's exact tar, compressed. progress counts the tar.
func (s *Service) compressed(ctx context.Context, chain string, kind layer.Kind, progress func(int64)) io.ReadCloser {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		z, err := layer.Compress(pw, kind, 0)
		if err == nil {
			err = s.exactTar(ctx, chain, &counter{w: z, f: progress})
			err = errors.Join(err, z.Close())
		}
		pw.CloseWithError(err)
	}()
	return &pipe{pr, done}
}

// pipe waits, when it is closed, for who writes it.
type pipe struct {
	*io.PipeReader
	done chan struct{}
}

func (p *pipe) Close() error {
	err := p.PipeReader.Close()
	<-p.done
	return err
}

type counter struct {
	w io.Writer
	f func(int64)
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	if c.f != nil {
		c.f(c.n)
	}
	return n, err
}

// kindOf is the compression that a layer's media type names.
func kindOf(mediaType string) layer.Kind {
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		return layer.Gzip
	case strings.HasSuffix(mediaType, "zstd"):
		return layer.Zstd
	}
	return layer.None
}

// layerType is the media type of a compression.
func layerType(k layer.Kind, docker bool) string {
	types := map[layer.Kind][2]string{
		layer.None: {ocispec.TypeLayer, ocispec.TypeDockerLayer}, layer.Gzip: {ocispec.TypeLayerGz, ocispec.TypeDockerLayerGz}, layer.Zstd: {ocispec.TypeLayerZst, ocispec.TypeDockerLayerZst},
	}
	if docker {
		return types[k][1]
	}
	return types[k][0]
}
