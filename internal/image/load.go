package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/layer"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
)

// Limits of an archive that is loaded.
const (
	maxArchiveFiles = 100_000
	maxArchiveBytes = 1 << 40
	maxArchiveJSON  = 16 << 20
	maxLinks        = 8
	maxAttested     = 4 * maxAttestation // of all attestations of an image
)

// bundle is an archive, spread into numbered files. Names in it are only keys:
// nothing of them reaches the file system.
type bundle struct {
	dir   string
	files map[string]bundled
	links map[string]string // of name to name
}

type bundled struct {
	path string
	size int64
}

// Load reads images from an archive: an OCI layout, or Docker's format of any
// age with a manifest.json, compressed or not.
func (s *Service) Load(ctx context.Context, q LoadRequest, r io.Reader, listen func(Progress)) (out []Loaded, err error) {
	rep := newReporter(listen)
	defer rep.flush()
	report := rep.report
	dir, err := os.MkdirTemp(s.o.Dir, "load-")
	if err != nil {
		return nil, unpackError(err)
	}
	defer os.RemoveAll(dir)
	b, err := readBundle(ctx, r, dir)
	if err != nil {
		return nil, loadError(err)
	}
	var targets []*bundleTarget
	if _, ok := b.find("oci-layout"); ok {
		targets, err = b.ociImages(q)
	} else {
		targets, err = b.dockerImages(q)
	}
	if err != nil {
		return nil, loadError(err)
	}
	if len(targets) == 0 {
		return nil, loadError(errdefs.Newf(errdefs.Invalid, "", "", "there is no image in it"))
	}
	for _, t := range targets {
		v := Loaded{}
		for _, n := range t.names {
			v.Names = append(v.Names, n.Familiar())
		}
		for _, l := range t.images {
			id, err := s.loadOne(ctx, b, l, t, report)
			if err != nil {
				return out, loadError(err)
			}
			if v.ID == "" {
				v.ID = id
			}
			s.emit("load", id, id)
		}
		out = append(out, v)
	}
	return out, nil
}

func loadError(err error) error {
	return errdefs.New(errdefs.KindOf(unpackError(err)), "load", "archive", err)
}

// readBundle takes an archive apart.
func readBundle(ctx context.Context, r io.Reader, dir string) (*bundle, error) {
	plain, _, err := layer.Decompress(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	b := &bundle{dir: dir, files: map[string]bundled{}, links: map[string]string{}}
	t := tar.NewReader(plain)
	var total int64
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		h, err := t.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, errdefs.WithHint(errdefs.New(errdefs.Invalid, "", "", fmt.Errorf("not a tar archive: %w", err)), "onggi import reads a plain root file system")
		}
		if n >= maxArchiveFiles {
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "more than %d entries", maxArchiveFiles)
		}
		name := clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			if total += h.Size; total > maxArchiveBytes {
				return nil, errdefs.Newf(errdefs.Invalid, "", "", "more than %d bytes", int64(maxArchiveBytes))
			}
			p := filepath.Join(dir, strconv.Itoa(n))
			if err := spool(ctx, p, t); err != nil {
				return nil, err
			}
			if old, ok := b.files[name]; ok {
				os.Remove(old.path)
			}
			b.files[name] = bundled{p, h.Size}
			delete(b.links, name)
		case tar.TypeSymlink:
			b.links[name] = clean(path.Join(path.Dir("/"+name), h.Linkname))
		case tar.TypeLink:
			b.links[name] = clean(h.Linkname)
		}
	}
	return b, nil
}

func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func spool(ctx context.Context, p string, r io.Reader) error {
	f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.CopyBuffer(stoppable(ctx, f), r, make([]byte, 256<<10))
	return errors.Join(err, f.Close())
}

// find follows the archive's own links.
func (b *bundle) find(name string) (bundled, bool) {
	name = clean(name)
	for range maxLinks {
		if f, ok := b.files[name]; ok {
			return f, true
		}
		to, ok := b.links[name]
		if !ok {
			return bundled{}, false
		}
		name = to
	}
	return bundled{}, false
}

// read reads a small file whole.
func (b *bundle) read(name string, limit int64) ([]byte, error) {
	f, ok := b.find(name)
	if !ok {
		return nil, errdefs.Newf(errdefs.Invalid, "", "", "the file %q is missing", name)
	}
	if f.size > limit {
		return nil, errdefs.Newf(errdefs.Invalid, "", "", "the file %q has %d bytes, more than the %d allowed", name, f.size, limit)
	}
	return os.ReadFile(f.path)
}

// blob reads a small blob of an OCI layout, and verifies it.
func (b *bundle) blob(d ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := ocispec.CheckDescriptor(d); err != nil {
		return nil, errdefs.New(errdefs.Invalid, "", "", err)
	}
	data, err := b.read(blobName(d.Digest), limit)
	if err != nil {
		return nil, err
	}
	return data, ocispec.Verify(d, data)
}

// bundleTarget is what names of an archive mean: an index, or one image.
type bundleTarget struct {
	images []*loading
	index  []byte // nil for none
	names  []reference.Ref
}

// loading is an image of an archive.
type loading struct {
	config   []byte
	platform ocispec.Platform
	manifest []byte // of an OCI layout, nil otherwise
	mdType   string
	layers   []ocispec.Descriptor // Digest "" where it is not known
	files    []string
	beside   map[ocispec.Digest][]byte // its attestations
}

func (l *loading) readConfig() error {
	cfg, err := ocispec.ParseImage(l.config)
	l.platform = cfg.Platform
	return err
}

// dockerImages reads manifest.json.
func (b *bundle) dockerImages(q LoadRequest) ([]*bundleTarget, error) {
	if _, ok := b.find("manifest.json"); !ok {
		if _, old := b.find("repositories"); old {
			return nil, errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "", "", "it is of Docker's format before 1.10, which has no digests"), "load and save it with a newer Docker first")
		}
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "there is neither a manifest.json nor an OCI layout in it"), "onggi import reads a plain root file system")
	}
	doc, err := b.read("manifest.json", maxArchiveJSON)
	if err != nil {
		return nil, err
	}
	var list []dockerEntry
	if err := json.Unmarshal(doc, &list); err != nil {
		return nil, errdefs.Newf(errdefs.Invalid, "", "", "manifest.json: %w", err)
	}
	var out []*bundleTarget
	for _, e := range list {
		l := &loading{}
		if l.config, err = b.read(e.Config, ocispec.MaxConfig); err != nil {
			return nil, err
		}
		if len(e.Layers) > ocispec.MaxLayers {
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "%d layers, more than the %d allowed", len(e.Layers), ocispec.MaxLayers)
		}
		l.layers = make([]ocispec.Descriptor, len(e.Layers))
		l.files = e.Layers
		if err := l.readConfig(); err != nil {
			return nil, err
		}
		names, err := parseNames(e.RepoTags)
		if err != nil {
			return nil, err
		}
		out = append(out, &bundleTarget{images: []*loading{l}, names: names})
	}
	return selectPlatforms(out, q)
}

func parseNames(in []string) ([]reference.Ref, error) {
	var out []reference.Ref
	for _, n := range in {
		r, err := reference.Parse(n)
		if err != nil {
			return nil, err
		}
		if r.Digest == "" && !slices.Contains(out, r.OrLatest()) {
			out = append(out, r.OrLatest())
		}
	}
	return out, nil
}

// selectPlatforms drops single images that are for none of the platforms asked
// for.
func selectPlatforms(in []*bundleTarget, q LoadRequest) ([]*bundleTarget, error) {
	out := slices.DeleteFunc(in, func(t *bundleTarget) bool {
		return t.index == nil && len(q.Platforms) > 0 && !slices.ContainsFunc(q.Platforms, func(p ocispec.Platform) bool { return ocispec.Matches(p, t.images[0].platform) })
	})
	if len(out) == 0 && len(in) > 0 {
		return nil, errdefs.Newf(errdefs.NotFound, "", "", "no image in it is for %s", formatAll(q.Platforms))
	}
	return out, nil
}

func formatAll(list []ocispec.Platform) string {
	var out []string
	for _, p := range list {
		out = append(out, ocispec.FormatPlatform(p))
	}
	return strings.Join(out, ", ")
}

// ociImages reads index.json.
func (b *bundle) ociImages(q LoadRequest) ([]*bundleTarget, error) {
	doc, err := b.read("index.json", ocispec.MaxManifest)
	if err != nil {
		return nil, err
	}
	x, err := ocispec.ParseIndex(doc, ocispec.TypeIndex)
	if err != nil {
		return nil, err
	}
	names := b.dockerNames()
	var out []*bundleTarget
	known := map[ocispec.Digest]*bundleTarget{}
	for _, d := range x.Manifests {
		if ocispec.IsAttestation(d) || !ocispec.IsIndex(d.MediaType) && !ocispec.IsManifest(d.MediaType) {
			continue
		}
		t := known[d.Digest]
		if t == nil {
			if t, err = b.ociTarget(d, q); err != nil {
				return nil, err
			}
			for _, l := range t.images {
				t.names = append(t.names, names[digest.FromBytes(l.config)]...)
			}
			known[d.Digest] = t
			out = append(out, t)
		}
		if n := imageName(d.Annotations); n != "" {
			r, err := reference.Parse(n)
			if err != nil {
				return nil, err
			}
			if !slices.Contains(t.names, r.OrLatest()) {
				t.names = append(t.names, r.OrLatest())
			}
		}
	}
	return selectPlatforms(out, q)
}

// ociTarget reads a manifest, or of an index those of the platforms asked for,
// else all that are there and can be used here.
func (b *bundle) ociTarget(d ocispec.Descriptor, q LoadRequest) (*bundleTarget, error) {
	if !ocispec.IsIndex(d.MediaType) {
		l, err := b.ociImage(d)
		if err != nil {
			return nil, err
		}
		return &bundleTarget{images: []*loading{l}}, nil
	}
	t := &bundleTarget{}
	var there, attestations []ocispec.Descriptor
	var err error
	if t.index, there, attestations, err = b.entries(d, 0); err != nil {
		return nil, err
	}
	missing := func(p string) error {
		return errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "", "", "no image in it is for %s", p), "--platform: "+strings.Join(ocispec.Platforms(there), ", "))
	}
	var picked []ocispec.Descriptor
	for _, p := range q.Platforms {
		e, ok := ocispec.Choose(there, p)
		if !ok {
			return nil, missing(ocispec.FormatPlatform(p))
		}
		if !slices.ContainsFunc(picked, func(o ocispec.Descriptor) bool { return o.Digest == e.Digest }) {
			picked = append(picked, e)
		}
	}
	if len(q.Platforms) == 0 {
		picked = there
	}
	for _, e := range picked {
		l, err := b.ociImage(e)
		if err != nil {
			return nil, err
		}
		if len(q.Platforms) == 0 && len(picked) > 1 && !b.usable(l) {
			continue
		}
		if err := b.attest(l, e.Digest, attestations); err != nil {
			return nil, err
		}
		t.images = append(t.images, l)
	}
	if len(t.images) == 0 {
		return nil, missing(ocispec.Host().OS)
	}
	return t, nil
}

// usable reports whether an image is for this operating system, and all its
// layers are in the archive.
func (b *bundle) usable(l *loading) bool {
	if l.platform.OS != "" && l.platform.OS != ocispec.Host().OS {
		return false
	}
	return !slices.ContainsFunc(l.files, func(f string) bool { _, ok := b.find(f); return !ok })
}

// entries lists the manifests of an index, and of indexes in it, that are in
// the archive.
func (b *bundle) entries(d ocispec.Descriptor, depth int) (raw []byte, there, attestations []ocispec.Descriptor, err error) {
	if depth > maxNesting {
		return nil, nil, nil, errdefs.Newf(errdefs.Invalid, "", "", "more than %d indexes in one another", maxNesting)
	}
	if raw, err = b.blob(d, ocispec.MaxManifest); err != nil {
		return nil, nil, nil, err
	}
	x, err := ocispec.ParseIndex(raw, d.MediaType)
	if err != nil {
		return nil, nil, nil, err
	}
	for _, e := range x.Manifests {
		if _, ok := b.find(blobName(e.Digest)); !ok {
			continue
		}
		switch {
		case ocispec.IsAttestation(e):
			attestations = append(attestations, e)
			continue
		case !ocispec.IsIndex(e.MediaType):
			there = append(there, e)
			continue
		}
		_, more, besides, err := b.entries(e, depth+1)
		if err != nil {
			return nil, nil, nil, err
		}
		there, attestations = append(there, more...), append(attestations, besides...)
		if len(there)+len(attestations) > ocispec.MaxEntries {
			return nil, nil, nil, errdefs.Newf(errdefs.Invalid, "", "", "more than %d manifests in an index", ocispec.MaxEntries)
		}
	}
	return raw, there, attestations, nil
}

// attest reads the attestations of an image that are whole in the archive.
func (b *bundle) attest(l *loading, manifest ocispec.Digest, list []ocispec.Descriptor) error {
	l.beside = map[ocispec.Digest][]byte{}
	var total int64
	for _, d := range list {
		if attests(d) != manifest {
			continue
		}
		raw, err := b.blob(d, ocispec.MaxManifest)
		if err != nil {
			return err
		}
		m, err := ocispec.ParseManifest(raw, d.MediaType)
		if err != nil {
			return err
		}
		parts := append([]ocispec.Descriptor{m.Config}, m.Layers...)
		if slices.ContainsFunc(parts, func(p ocispec.Descriptor) bool { _, ok := b.find(blobName(p.Digest)); return !ok }) {
			continue
		}
		for _, p := range parts {
			data, err := b.blob(p, maxAttestation)
			if err != nil {
				return err
			}
			if total += int64(len(data)); total > maxAttested {
				return errdefs.Newf(errdefs.Invalid, "", "", "attestations of more than %d bytes", int64(maxAttested))
			}
			l.beside[p.Digest] = data
		}
		l.beside[d.Digest] = raw
	}
	return nil
}

// imageName is the whole name that an index gives an image, "" for none; a
// bare tag is not one.
func imageName(a map[string]string) string {
	if n := a[annotationImageName]; n != "" {
		return n
	}
	if n := a[annotationRefName]; strings.ContainsAny(n, "/:") {
		return n
	}
	return ""
}

// dockerNames reads the names that manifest.json gives, where it is there, too.
func (b *bundle) dockerNames() map[ocispec.Digest][]reference.Ref {
	out := map[ocispec.Digest][]reference.Ref{}
	doc, err := b.read("manifest.json", maxArchiveJSON)
	var list []dockerEntry
	if err != nil || json.Unmarshal(doc, &list) != nil {
		return out
	}
	for _, e := range list {
		config, err := b.read(e.Config, ocispec.MaxConfig)
		if err != nil {
			continue
		}
		if names, err := parseNames(e.RepoTags); err == nil {
			out[digest.FromBytes(config)] = names
		}
	}
	return out
}

// ociImage reads an image of a layout.
func (b *bundle) ociImage(d ocispec.Descriptor) (*loading, error) {
	data, err := b.blob(d, ocispec.MaxManifest)
	if err != nil {
		return nil, err
	}
	m, err := ocispec.ParseManifest(data, d.MediaType)
	if err != nil {
		return nil, err
	}
	if !ocispec.IsConfig(m.Config.MediaType) {
		return nil, errdefs.Newf(errdefs.Unsupported, "", "", "%s is no image but an artifact of type %q", d.Digest, firstOf(m.ArtifactType, m.Config.MediaType))
	}
	l := &loading{manifest: data, mdType: m.MediaType, layers: m.Layers}
	if l.config, err = b.blob(m.Config, ocispec.MaxConfig); err != nil {
		return nil, err
	}
	for _, d := range m.Layers {
		l.files = append(l.files, blobName(d.Digest))
	}
	return l, l.readConfig()
}

// loadOne makes an image of an archive visible.
func (s *Service) loadOne(ctx context.Context, b *bundle, l *loading, t *bundleTarget, report func(Progress)) (string, error) {
	cfg, err := ocispec.ParseImage(l.config)
	if err != nil {
		return "", err
	}
	if cfg.OS != "" && cfg.OS != ocispec.Host().OS {
		return "", errdefs.Newf(errdefs.Unsupported, "", "", "image operating system %q cannot be used on this platform", cfg.OS)
	}
	if len(cfg.RootFS.DiffIDs) != len(l.layers) {
		return "", errdefs.Newf(errdefs.Invalid, "", "", "%d layers, the configuration has %d", len(l.layers), len(cfg.RootFS.DiffIDs))
	}
	chains := chainNames(cfg.RootFS.DiffIDs)
	s.pin(chains)
	defer s.unpin(ctx, chains)
	for i := range chains {
		if err := s.loadLayer(ctx, b, l, chains, i, cfg.RootFS.DiffIDs[i], report); err != nil {
			return "", err
		}
	}
	id := digest.FromBytes(l.config)
	a := addition{id: id.String(), docs: map[ocispec.Digest][]byte{id: l.config}, names: t.names}
	if l.manifest != nil {
		a.rec.Manifest = ocispec.DescriptorOf(l.mdType, l.manifest)
		a.docs[a.rec.Manifest.Digest] = l.manifest
		if t.index != nil {
			typ, err := ocispec.DetectType(t.index, "")
			if err != nil {
				return "", err
			}
			a.rec.Index = ocispec.DescriptorOf(typ, t.index)
			a.docs[a.rec.Index.Digest] = t.index
			maps.Copy(a.docs, l.beside)
		}
	}
	return a.id, s.finish(ctx, a)
}

func (s *Service) loadLayer(ctx context.Context, b *bundle, l *loading, chains []string, i int, diffID ocispec.Digest, report func(Progress)) error {
	id := short(diffID)
	leave, err := s.flights.enter(ctx, chains[i], nil)
	if err != nil {
		return err
	}
	defer leave()
	if s.haveLayer(chains[i]) {
		report(Progress{ID: id, Status: "Already exists"})
		return nil
	}
	file, ok := b.find(l.files[i])
	if !ok {
		return errdefs.Newf(errdefs.Invalid, "", "", "the layer %q is missing", l.files[i])
	}
	want := l.layers[i]
	if want.Digest != "" && file.size != want.Size {
		return errdefs.Newf(errdefs.Invalid, "", "", "layer %s has %d bytes, the manifest says %d", want.Digest, file.size, want.Size)
	}
	f, err := os.Open(file.path)
	if err != nil {
		return err
	}
	defer f.Close()
	parent := ""
	if i > 0 {
		parent = chains[i-1]
	}
	h := digest.SHA256.Hash()
	if want.Digest != "" {
		if h = newHash(want.Digest); h == nil {
			return errdefs.Newf(errdefs.Unsupported, "", "", "no implementation of the algorithm of %s", want.Digest)
		}
	}
	src := io.TeeReader(f, h)
	u, err := s.unpack(ctx, parent, source{open: func(context.Context) io.Reader { return src }, compressed: file.size, progress: func(n int64) {
		report(Progress{ID: id, Status: "Loading layer", Current: n, Total: file.size})
	}})
	if err == nil && want.Digest != "" {
		if _, err = io.Copy(io.Discard, src); err == nil && digest.NewDigest(want.Digest.Algorithm(), h) != want.Digest {
			err = errdefs.New(errdefs.Invalid, "", "layer "+want.Digest.String(), errCorrupt)
		}
		if err != nil {
			s.drop(ctx, u)
		}
	}
	if err != nil {
		return err
	}
	if u.applied.DiffID != diffID {
		s.drop(ctx, u)
		return errdefs.Newf(errdefs.Invalid, "", "", "layer %d unpacks to %s, the image's configuration says %s", i, u.applied.DiffID, diffID)
	}
	_, err = s.settle(ctx, u, chains[i])
	return err
}
