package build

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/containerd/platforms"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/onggi/onggi/internal/build/worker"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
	"github.com/onggi/onggi/internal/registry"
)

// images is the image store as the builder sees it.
type images struct{ s *image.Service }

var _ worker.Images = images{}

// Get finds the image of a FROM. A digest may be a manifest's or an image's id,
// since that is what an image without a manifest was resolved to.
func (a images) Get(_ context.Context, name string, p ocispecs.Platform) (*worker.Image, error) {
	img, err := a.s.GetFor(name, &p)
	if errdefs.Is(err, errdefs.NotFound) {
		if _, d, ok := strings.Cut(name, "@"); ok {
			img, err = a.s.GetFor(d, &p)
		}
	}
	if err != nil {
		return nil, err
	}
	if have := platforms.Normalize(img.Config.Platform); !platforms.Only(p).Match(have) {
		return nil, errdefs.Newf(errdefs.NotFound, "find", "image "+name, "it is for %s, not for %s", platforms.Format(have), platforms.Format(p))
	}
	return a.use(img, name)
}

// use describes an image for a build that called it by the name. Its digest is
// one that Get finds again: the one it has in the name's repository, or its id
// where it came from elsewhere, as an image does that was only pushed elsewhere.
func (a images) use(img image.Image, name string) (*worker.Image, error) {
	cfg, err := a.s.ConfigBytes(img.ID)
	if err != nil {
		return nil, err
	}
	out := &worker.Image{Digest: digest.Digest(img.ID), Config: cfg, DiffIDs: img.Config.RootFS.DiffIDs, Created: img.Created}
	if len(img.RepoDigests) == 0 {
		return out, nil
	}
	if asked, err := reference.Parse(name); err == nil {
		for _, n := range img.RepoDigests {
			if r, err := reference.Parse(n); err == nil && r.Name() == asked.Name() {
				out.Digest = digest.Digest(r.Digest)
				break
			}
		}
	}
	origin, err := reference.Parse(img.RepoDigests[0])
	if err != nil {
		return out, nil
	}
	raw, err := a.s.Doc(img.Manifest.Digest)
	if err != nil {
		return out, nil // known by digest only
	}
	m, err := ocispec.ParseManifest(raw, img.Manifest.MediaType)
	if err == nil && len(m.Layers) == len(out.DiffIDs) {
		out.Blobs, out.Origin = m.Layers, origin.Name()
	}
	return out, nil
}

// Pull fetches an image with the account that the client has for its registry.
func (a images) Pull(ctx context.Context, name string, creds worker.Credentials, report func(id, status string, current, total int64)) (*worker.Image, error) {
	ref, err := reference.Parse(name)
	if err != nil {
		return nil, err
	}
	host := ref.Domain
	if host == reference.DefaultDomain {
		host = "registry-1.docker.io" // the name that clients know it by
	}
	q := image.PullRequest{Ref: ref}
	// A client without an account, or that has gone, pulls as anybody.
	if user, secret, err := creds(host); err == nil && secret != "" {
		q.Auth = registry.Auth{Username: user, Password: secret}
		if user == "" {
			q.Auth = registry.Auth{IdentityToken: secret}
		}
	}
	img, err := a.s.Pull(ctx, q, func(p image.Progress) {
		if p.ID != "" && !strings.HasPrefix(p.Status, "Pulling from") { // the step says it
			report(p.ID, strings.ToLower(p.Status), p.Current, p.Total)
		}
	})
	if err != nil {
		return nil, err
	}
	return a.use(img, name)
}

// Register makes an image of layers where they lie.
func (a images) Register(ctx context.Context, b worker.Built) error {
	q := image.Built{Config: b.Config, Manifest: b.Manifest}
	for _, n := range b.Names {
		ref, err := reference.Parse(n)
		if err != nil {
			return err
		}
		q.Names = append(q.Names, ref)
	}
	for _, l := range b.Layers {
		bl := image.BuiltLayer{Snapshot: l.Snapshot, DiffID: l.DiffID, Size: l.Size}
		if l.Blob != nil && l.Origin != "" {
			if src, err := reference.Parse(l.Origin); err == nil {
				bl.Blob, bl.Source = l.Blob, src
			}
		}
		q.Layers = append(q.Layers, bl)
	}
	if len(b.Index) > 0 {
		docs, err := attestations(b)
		if err != nil {
			return err
		}
		q.Index, q.Docs = b.Index, docs
	}
	_, err := a.s.Register(ctx, q)
	return err
}

// attestations collects what an index has beside images: of the other platforms'
// each is registered in its turn.
func attestations(b worker.Built) (docs [][]byte, err error) {
	var idx ocispecs.Index
	if err := json.Unmarshal(b.Index, &idx); err != nil {
		return nil, err
	}
	for _, d := range idx.Manifests {
		if !ocispec.IsAttestation(d) {
			continue
		}
		raw, err := b.Blob(d.Digest)
		if err != nil {
			return nil, err
		}
		docs = append(docs, raw)
		var m ocispecs.Manifest
		if err := json.Unmarshal(raw, &m); err != nil {
			return nil, err
		}
		for _, l := range append(m.Layers, m.Config) {
			raw, err := b.Blob(l.Digest)
			if err != nil {
				return nil, err
			}
			docs = append(docs, raw)
		}
	}
	return docs, nil
}
