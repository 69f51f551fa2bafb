package image

import (
	"archive/tar"
	"context"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
)

// An archive of images is one tar that is an OCI layout and Docker's format at
// the same time, over the same blobs:
//
//	blobs/sha256/…   configurations, manifests, layers (not compressed)
//	index.json, oci-layout            for readers of the OCI's layout
//	manifest.json, repositories       for Docker's
//
// The layers' blobs are their exact tars, named by DiffID.

// Annotations by which readers find names in an index.
const (
	annotationImageName = "io.containerd.image.name"
	annotationRefName   = "org.opencontainers.image.ref.name"
)

// dockerEntry is an image in manifest.json.
type dockerEntry struct {
	Config       string
	RepoTags     []string
	Layers       []string
	LayerSources map[ocispec.Digest]ocispec.Descriptor `json:",omitempty"`
}

// saved is one target of an archive.
type saved struct {
	images  []Image  // of each platform, the one that the names mean first
	configs [][]byte // read before the archive begins: the images may be removed meanwhile
	names   []reference.Ref
}

// Save writes images as an archive.
func (s *Service) Save(ctx context.Context, q SaveRequest, w io.Writer) error {
	list, err := s.selectImages(q)
	if err != nil {
		return err
	}
	for _, v := range list {
		for _, img := range v.images {
			s.pin(img.Chain)
			defer s.unpin(ctx, img.Chain)
		}
	}
	a := &archive{s: s, w: tar.NewWriter(w), have: map[ocispec.Digest]bool{}}
	if err := a.write(ctx, list); err != nil {
		return errdefs.New(errdefs.KindOf(err), "save", strings.Join(q.Names, ", "), err)
	}
	for _, v := range list {
		s.emit("save", v.images[0].ID, v.images[0].ID)
	}
	return a.w.Close()
}

// selectImages finds what names mean. A repository without a tag means all its
// tags, an ID no name.
func (s *Service) selectImages(q SaveRequest) ([]saved, error) {
	var order []string
	found := map[string]*saved{}
	add := func(name, target string, names ...reference.Ref) error {
		v := found[target]
		if v == nil {
			first := s.firstLocked(target)
			members := slices.DeleteFunc(s.membersLocked(target), func(e *entry) bool { return e == first })
			list, err := exactly(append([]*entry{first}, members...), q.Platforms, name)
			if err != nil {
				return errdefs.New(errdefs.KindOf(err), "save", name, err)
			}
			v = &saved{}
			for _, e := range list {
				img, err := s.imageLocked(e, target)
				if err != nil {
					return err
				}
				config, err := s.doc(ocispec.Digest(e.id))
				if err != nil {
					return err
				}
				v.images, v.configs = append(v.images, img), append(v.configs, config)
			}
			found[target] = v
			order = append(order, target)
		}
		for _, n := range names {
			if !slices.Contains(v.names, n) {
				v.names = append(v.names, n)
			}
		}
		return nil
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, name := range q.Names {
		ref, perr := reference.Parse(name)
		if perr == nil && ref.Tag == "" && ref.Digest == "" {
			any := false
			for _, n := range slices.Sorted(maps.Keys(s.names)) {
				if r, err := reference.Parse(n); err == nil && r.Tag != "" && r.Repository() == ref {
					any = true
					if err := add(n, s.names[n], r); err != nil {
						return nil, err
					}
				}
			}
			if any {
				continue
			}
		}
		_, target, err := s.lookupLocked(name)
		if err != nil {
			return nil, err
		}
		var names []reference.Ref
		if perr == nil && ref.Digest == "" && s.names[ref.OrLatest().String()] == target {
			names = append(names, ref.OrLatest())
		}
		if err := add(name, target, names...); err != nil {
			return nil, err
		}
	}
	var out []saved
	for _, t := range order {
		out = append(out, *found[t])
	}
	return out, nil
}

// archive is an archive being written.
type archive struct {
	s    *Service
	w    *tar.Writer
	have map[ocispec.Digest]bool
}

func (a *archive) write(ctx context.Context, list []saved) error {
	for _, d := range []string{"blobs/", "blobs/sha256/"} {
		if err := a.w.WriteHeader(header(d, tar.TypeDir, 0)); err != nil {
			return err
		}
	}
	index := ocispec.Index{Versioned: ocispec.Versioned, MediaType: ocispec.TypeIndex, Manifests: []ocispec.Descriptor{}}
	var docker []dockerEntry
	repositories := map[string]map[string]string{}
	for _, v := range list {
		d, entry, err := a.target(ctx, v)
		if err != nil {
			return err
		}
		docker = append(docker, entry)
		if len(v.names) == 0 {
			index.Manifests = append(index.Manifests, d)
		}
		for _, n := range v.names {
			named := d
			named.Annotations = map[string]string{annotationImageName: n.String(), annotationRefName: n.Tag}
			index.Manifests = append(index.Manifests, named)
			repo := repositories[n.FamiliarName()]
			if repo == nil {
				repo = map[string]string{}
				repositories[n.FamiliarName()] = repo
			}
			repo[n.Tag] = ocispec.Digest(v.images[0].ID).Encoded()
		}
	}
	for _, f := range []struct {
		name string
		doc  any
	}{{"index.json", index}, {"manifest.json", docker}, {"oci-layout", map[string]string{"imageLayoutVersion": "1.0.0"}}, {"repositories", repositories}} {
		b, err := json.Marshal(f.doc)
		if err == nil {
			err = a.file(f.name, b)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// epoch is the time of everything in an archive, so that the same images give
// the same bytes.
var epoch = time.Unix(0, 0).UTC()

func header(name string, kind byte, size int64) *tar.Header {
	h := &tar.Header{Name: name, Typeflag: kind, Size: size, Mode: 0o644, ModTime: epoch}
	if kind == tar.TypeDir {
		h.Mode = 0o755
	}
	return h
}

func (a *archive) file(name string, b []byte) error {
	if err := a.w.WriteHeader(header(name, tar.TypeReg, int64(len(b)))); err != nil {
		return err
	}
	_, err := a.w.Write(b)
	return err
}

func blobName(d ocispec.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// target writes the images of all platforms, and tells how the two formats name
// them: Docker's knows but one.
func (a *archive) target(ctx context.Context, v saved) (ocispec.Descriptor, dockerEntry, error) {
	var docker dockerEntry
	index := ocispec.Index{Versioned: ocispec.Versioned, MediaType: ocispec.TypeIndex}
	for i, img := range v.images {
		d, entry, err := a.image(ctx, img, v.configs[i])
		if err != nil {
			return d, docker, err
		}
		d.Platform = &ocispec.Platform{OS: img.Config.OS, Architecture: img.Config.Architecture, Variant: img.Config.Variant}
		index.Manifests = append(index.Manifests, d)
		if i == 0 {
			docker = entry
		}
	}
	for _, n := range v.names {
		docker.RepoTags = append(docker.RepoTags, n.Familiar())
	}
	if len(index.Manifests) == 1 {
		return index.Manifests[0], docker, nil
	}
	b, err := json.Marshal(index)
	if err != nil {
		return ocispec.Descriptor{}, docker, err
	}
	d := ocispec.DescriptorOf(ocispec.TypeIndex, b)
	return d, docker, a.blob(d.Digest, b)
}

// image writes an image's blobs.
func (a *archive) image(ctx context.Context, img Image, config []byte) (_ ocispec.Descriptor, _ dockerEntry, err error) {
	m := ocispec.Manifest{Versioned: ocispec.Versioned, MediaType: ocispec.TypeManifest, Config: ocispec.DescriptorOf(ocispec.TypeConfig, config), Layers: []ocispec.Descriptor{}}
	entry := dockerEntry{Config: blobName(m.Config.Digest), Layers: []string{}, LayerSources: map[ocispec.Digest]ocispec.Descriptor{}}
	for i, c := range img.Chain {
		d := ocispec.Descriptor{MediaType: ocispec.TypeLayer, Digest: img.Config.RootFS.DiffIDs[i]}
		if d.Size, err = a.layer(ctx, c, d.Digest); err != nil {
			return d, entry, err
		}
		m.Layers = append(m.Layers, d)
		entry.Layers = append(entry.Layers, blobName(d.Digest))
		entry.LayerSources[d.Digest] = d
	}
	b, err := json.Marshal(m)
	if err != nil {
		return ocispec.Descriptor{}, entry, err
	}
	if err := a.blob(m.Config.Digest, config); err != nil {
		return ocispec.Descriptor{}, entry, err
	}
	d := ocispec.DescriptorOf(ocispec.TypeManifest, b)
	return d, entry, a.blob(d.Digest, b)
}

func (a *archive) blob(d ocispec.Digest, b []byte) error {
	if a.have[d] {
		return nil
	}
	a.have[d] = true
	return a.file(blobName(d), b)
}

// layer writes a layer's tar and returns its size.
func (a *archive) layer(ctx context.Context, chain string, d ocispec.Digest) (int64, error) {
	a.s.mu.RLock()
	rec := a.s.layers[chain]
	a.s.mu.RUnlock()
	if rec == nil {
		return 0, errdefs.New(errdefs.NotFound, "read", "layer "+chain, nil)
	}
	size := rec.Tar
	if size == 0 {
		c := &counter{w: io.Discard}
		if err := a.s.exactTar(ctx, chain, c); err != nil {
			return 0, err
		}
		size = c.n
	}
	if a.have[d] {
		return size, nil
	}
	a.have[d] = true
	if err := a.w.WriteHeader(header(blobName(d), tar.TypeReg, size)); err != nil {
		return 0, err
	}
	return size, a.s.exactTar(ctx, chain, stoppable(ctx, a.w))
}

// stoppable ends a long copy when nobody wants it any more.
func stoppable(ctx context.Context, w io.Writer) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return w.Write(p)
	})
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
