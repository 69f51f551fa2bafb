package image

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/layer"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
)

// Import makes an image of one layer of the tar of a root file system,
// compressed or not.
func (s *Service) Import(ctx context.Context, r io.Reader, q ImportRequest) (Image, error) {
	cfg := ocispec.ImageConfig{}
	if err := applyChanges(&cfg, q.Changes); err != nil {
		return Image{}, err
	}
	if q.Platform.OS == "" {
		q.Platform = ocispec.Host()
	}
	u, err := s.unpack(ctx, "", source{open: func(context.Context) io.Reader { return r }})
	if err != nil {
		return Image{}, errdefs.New(errdefs.KindOf(err), "import", "", err)
	}
	now := time.Now().UTC()
	if q.Message == "" {
		q.Message = "Imported from -"
	}
	img := ocispec.Image{Created: &now, Platform: ocispec.Normalise(q.Platform), Config: cfg, History: []ocispec.History{{Created: &now, Comment: q.Message}}}
	out, err := s.addLayer(ctx, u, "", nil, img, record{}, q.Ref)
	if err == nil {
		s.emit("import", out.ID, firstOf(q.Ref.Familiar(), out.ID))
	}
	return out, err
}

// Commit makes an image of what a container has changed. The container goes on
// as it is.
func (s *Service) Commit(ctx context.Context, q CommitRequest) (Image, error) {
	if err := applyChanges(&q.Config, q.Changes); err != nil {
		return Image{}, err
	}
	base := ocispec.Image{Platform: ocispec.Host()}
	parent := ""
	if q.Parent != "" {
		p, err := s.Get(q.Parent)
		if err != nil {
			return Image{}, err
		}
		base, parent = p.Config, p.Snapshot
		s.pin(p.Chain)
		defer s.unpin(ctx, p.Chain)
	}
	dirs, err := s.o.Snapshots.Dirs(q.ContainerSnapshot)
	if err != nil {
		return Image{}, err
	}
	dir, err := os.Open(ownDir(dirs))
	if err != nil {
		return Image{}, errdefs.New(errdefs.Internal, "commit", "container "+q.ContainerID, err)
	}
	defer dir.Close()
	pr, pw := io.Pipe()
	tarred := make(chan error, 1)
	go func() {
		err := layer.Tar(ctx, pw, dir, layer.TarOptions{})
		pw.CloseWithError(err)
		tarred <- err
	}()
	u, err := s.unpack(ctx, parent, source{open: func(context.Context) io.Reader { return pr }})
	pr.CloseWithError(errors.New("unpacking ended"))
	if terr := <-tarred; terr != nil && err == nil {
		s.drop(ctx, u)
		err = terr
	}
	if err != nil {
		return Image{}, errdefs.New(errdefs.KindOf(err), "commit", "container "+q.ContainerID, err)
	}
	now := time.Now().UTC()
	img := base
	img.Created, img.Author, img.Config = &now, q.Author, q.Config
	img.RootFS.DiffIDs = slices.Clone(base.RootFS.DiffIDs)
	by := ""
	for i, c := range q.Config.Cmd {
		if i > 0 {
			by += " "
		}
		by += c
	}
	img.History = append(slices.Clone(base.History), ocispec.History{Created: &now, CreatedBy: by, Author: q.Author, Comment: q.Message})
	return s.addLayer(ctx, u, parent, base.RootFS.DiffIDs, img, record{Parent: q.Parent, Container: q.ContainerID}, q.Ref)
}

// addLayer makes an unpacked layer and a configuration into an image.
func (s *Service) addLayer(ctx context.Context, u *unpacked, parent string, below []ocispec.Digest, img ocispec.Image, rec record, ref reference.Ref) (Image, error) {
	img.RootFS.Type = "layers"
	img.RootFS.DiffIDs = append(slices.Clone(below), u.applied.DiffID)
	config, err := json.Marshal(img)
	if err != nil {
		s.drop(ctx, u)
		return Image{}, errdefs.New(errdefs.Internal, "write", "image", err)
	}
	if _, err := ocispec.ParseImage(config); err != nil { // the limits hold for us, too
		s.drop(ctx, u)
		return Image{}, err
	}
	chain := ocispec.ChainID(img.RootFS.DiffIDs).String()
	s.pin([]string{chain})
	defer s.unpin(ctx, []string{chain})
	leave, err := s.flights.enter(ctx, chain, nil)
	if err != nil {
		s.drop(ctx, u)
		return Image{}, err
	}
	_, err = s.settle(ctx, u, chain)
	leave()
	if err != nil {
		return Image{}, err
	}
	id := digest.FromBytes(config)
	a := addition{id: id.String(), rec: rec, docs: map[ocispec.Digest][]byte{id: config}}
	if !ref.IsZero() {
		a.names = []reference.Ref{ref.OrLatest()}
	}
	if err := s.finish(ctx, a); err != nil {
		return Image{}, err
	}
	for _, n := range a.names {
		s.emit("tag", a.id, n.Familiar())
	}
	return s.Get(a.id)
}

// Register makes an image of layers that the builder has in the snapshot
// store. Nothing is copied: each layer gets its chain ID as a further name.
func (s *Service) Register(ctx context.Context, b Built) (Image, error) {
	cfg, err := ocispec.ParseImage(b.Config)
	if err != nil {
		return Image{}, err
	}
	if len(cfg.RootFS.DiffIDs) != len(b.Layers) {
		return Image{}, errdefs.Newf(errdefs.Invalid, "register", "image", "%d layers, the configuration has %d", len(b.Layers), len(cfg.RootFS.DiffIDs))
	}
	chains := chainNames(cfg.RootFS.DiffIDs)
	s.pin(chains)
	defer s.unpin(ctx, chains)
	for i, c := range chains {
		if b.Layers[i].DiffID != "" && b.Layers[i].DiffID != cfg.RootFS.DiffIDs[i] {
			return Image{}, errdefs.Newf(errdefs.Invalid, "register", "image", "layer %d is %s, the configuration has %s", i, b.Layers[i].DiffID, cfg.RootFS.DiffIDs[i])
		}
		below := ""
		if i > 0 {
			below = chains[i-1]
		}
		if err := s.adopt(ctx, c, below, cfg.RootFS.DiffIDs[i], b.Layers[i]); err != nil {
			return Image{}, err
		}
	}
	id := digest.FromBytes(b.Config)
	a := addition{id: id.String(), docs: map[ocispec.Digest][]byte{id: b.Config}}
	for _, d := range b.Docs {
		a.docs[digest.FromBytes(d)] = d
	}
	if len(b.Manifest) > 0 {
		t, err := ocispec.DetectType(b.Manifest, "")
		if err != nil {
			return Image{}, err
		}
		a.rec.Manifest = ocispec.DescriptorOf(t, b.Manifest)
		a.docs[a.rec.Manifest.Digest] = b.Manifest
	}
	if len(b.Index) > 0 {
		t, err := ocispec.DetectType(b.Index, "")
		if err != nil {
			return Image{}, err
		}
		a.rec.Index = ocispec.DescriptorOf(t, b.Index)
		a.docs[a.rec.Index.Digest] = b.Index
	}
	for _, n := range b.Names {
		a.names = append(a.names, n.OrLatest())
	}
	s.mu.RLock()
	_, known := s.images[a.id]
	s.mu.RUnlock()
	if known && s.hasAll(a) {
		s.mu.RLock()
		old := s.images[a.id].rec
		s.mu.RUnlock()
		if old.Manifest.Digest == a.rec.Manifest.Digest && old.Index.Digest == a.rec.Index.Digest {
			s.emit("create", a.id, a.id) // tells of a build, also where every step was cached
			return s.Get(a.id)
		}
	}
	if err := s.finish(ctx, a); err != nil {
		return Image{}, err
	}
	s.emit("create", a.id, a.id)
	for _, n := range a.names {
		s.emit("tag", a.id, n.Familiar())
	}
	return s.Get(a.id)
}

// adopt gives a committed snapshot the name of a chain ID, unless there is
// one. It then lies on the chain below, not on the builder's snapshot, so that
// neither store keeps the other from removing what is its own.
func (s *Service) adopt(ctx context.Context, chain, below string, diffID ocispec.Digest, l BuiltLayer) error {
	leave, err := s.flights.enter(ctx, chain, nil)
	if err != nil {
		return err
	}
	defer leave()
	if !s.haveLayer(chain) {
		if !s.exists(chain) {
			if err := s.o.Snapshots.Stack(ctx, chain, l.Snapshot, below); err != nil {
				return err
			}
		}
		size, _, err := s.o.Snapshots.Usage(ctx, chain)
		if err != nil {
			return err
		}
		if err := s.putLayer(chain, &layerRecord{V: 1, DiffID: diffID, Size: size, Tar: l.Size}); err != nil {
			return err
		}
	}
	if l.Blob != nil && !l.Source.IsZero() {
		return s.knowBlob(chain, *l.Blob, l.Source)
	}
	return nil
}
