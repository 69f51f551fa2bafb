package worker

import (
	"context"
	"encoding/json"
	"time"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/containerimage"
	"github.com/moby/buildkit/util/progress"
	"github.com/moby/buildkit/util/resolver"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/errdefs"
)

// Images is the image store as the builder uses it.
type Images interface {
	// Get finds an image by the name in a FROM. errdefs.NotFound: there is
	// none, or not for this platform.
	Get(ctx context.Context, name string, p ocispecs.Platform) (*Image, error)
	// Pull fetches an image of the machine's platform into the store.
	Pull(ctx context.Context, name string, creds Credentials, report func(id, status string, current, total int64)) (*Image, error)
	// Register makes an image of layers that lie in the snapshot store.
	Register(ctx context.Context, b Built) error
}

// Credentials asks the client for its account at a registry host.
type Credentials func(host string) (user, secret string, err error)

// Image is an image of the store.
type Image struct {
	Digest  digest.Digest // of the manifest it was pulled by, else of the config
	Config  []byte
	DiffIDs []digest.Digest
	Blobs   []ocispecs.Descriptor // what the layers were pulled as, if known
	Origin  string                // repository they were pulled from, "" for none
	Created time.Time
}

// Built is an image to register.
type Built struct {
	Names    []string
	Config   []byte
	Manifest []byte
	Index    []byte // the manifest list around it, nil for none
	Target   ocispecs.Descriptor
	Platform *ocispecs.Platform
	Layers   []refs.Layer
	Blob     func(digest.Digest) ([]byte, error) // the small documents that Index refers to
}

// imageSource is BuildKit's image source with our store in front of it.
type imageSource struct {
	*containerimage.Source
	w *Worker
}

func (s *imageSource) platform(p *ocispecs.Platform) ocispecs.Platform {
	if p != nil {
		return platforms.Normalize(*p)
	}
	return s.native()
}

func (s *imageSource) native() ocispecs.Platform {
	if len(s.w.o.Platforms) > 0 {
		return s.w.o.Platforms[0]
	}
	return platforms.Normalize(platforms.DefaultSpec())
}

// find returns the image from the store, or pulls it there. It returns nil
// where BuildKit's own source has to do the work: images of a platform other
// than the machine's must not take over a local name.
func (s *imageSource) find(ctx context.Context, name string, p ocispecs.Platform, mode resolver.ResolveMode, sm *session.Manager, g session.Group) (*Image, error) {
	images := s.w.o.Images
	if images == nil {
		return nil, nil
	}
	if mode != resolver.ResolveModeForcePull {
		img, err := images.Get(ctx, name, p)
		if err == nil {
			return img, nil
		}
		if !errdefs.Is(err, errdefs.NotFound) {
			return nil, err
		}
	}
	if !platforms.OnlyStrict(s.native()).Match(p) {
		return nil, nil
	}
	creds := func(host string) (string, string, error) {
		_, user, secret, err := auth.CredentialsFunc(ctx, sm, g)(host)
		return user, secret, err
	}
	pw, _, _ := progress.NewFromContext(ctx)
	defer pw.Close()
	started := time.Now()
	return images.Pull(ctx, name, creds, func(id, status string, current, total int64) {
		st := progress.Status{Action: status, Current: int(current), Total: int(total), Started: &started}
		if total > 0 && current >= total {
			now := time.Now()
			st.Completed = &now
		}
		pw.Write(id+" "+status, st)
	})
}

// resolveMetadata answers for images; nil means that it is not for us.
func (s *imageSource) resolveMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, job solver.JobContext) (*sourceresolver.MetaResponse, error) {
	if opt.ImageOpt != nil && (opt.ImageOpt.AttestationChain || len(opt.ImageOpt.ResolveAttestations) > 0) {
		return nil, nil
	}
	var pp *pb.Platform
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		p := pb.PlatformFromSpec(*opt.ImageOpt.Platform)
		pp = p
	}
	parsed, err := s.w.ParseSource(op, pp)
	if err != nil {
		return nil, nil // the caller words this error
	}
	id, ok := parsed.(*containerimage.ImageIdentifier)
	if !ok {
		return nil, nil
	}
	mode := id.ResolveMode
	if opt.ImageOpt != nil && opt.ImageOpt.ResolveMode != "" {
		if mode, err = resolver.ParseImageResolveMode(opt.ImageOpt.ResolveMode); err != nil {
			return nil, err
		}
	}
	var g session.Group
	if job != nil {
		g = job.Session()
	}
	img, err := s.find(ctx, id.Reference.String(), s.platform(id.Platform), mode, sm, g)
	if img == nil || err != nil {
		return nil, err
	}
	return &sourceresolver.MetaResponse{
		Op:    op,
		Image: &sourceresolver.ResolveImageResponse{Digest: img.Digest, Config: img.Config},
	}, nil
}

// Resolve implements source.Source.
func (s *imageSource) Resolve(ctx context.Context, id source.Identifier, sm *session.Manager, v solver.Vertex) (source.SourceInstance, error) {
	stock, err := s.Source.Resolve(ctx, id, sm, v)
	if err != nil {
		return nil, err
	}
	i, ok := id.(*containerimage.ImageIdentifier)
	if !ok || i.LayerLimit != nil || i.Checksum != "" {
		return stock, nil
	}
	return &imageInstance{SourceInstance: stock, s: s, id: i, sm: sm}, nil
}

// imageInstance is one FROM in one build.
type imageInstance struct {
	source.SourceInstance // BuildKit's, for what the store does not have
	s                     *imageSource
	id                    *containerimage.ImageIdentifier
	sm                    *session.Manager
	img                   *Image
}

func (i *imageInstance) CacheKey(ctx context.Context, job solver.JobContext, index int) (key, pin string, opts solver.CacheOpts, done bool, err error) {
	var g session.Group
	if job != nil {
		g = job.Session()
	}
	i.img, err = i.s.find(ctx, i.id.Reference.String(), i.s.platform(i.id.Platform), i.id.ResolveMode, i.sm, g)
	if err != nil {
		return "", "", nil, false, err
	}
	if i.img == nil {
		return i.SourceInstance.CacheKey(ctx, job, index)
	}
	// The config names every layer, so its digest is all that matters; the
	// name and registry it came by do not.
	dt, err := json.Marshal(struct{ Image digest.Digest }{digest.FromBytes(i.img.Config)})
	if err != nil {
		return "", "", nil, false, err
	}
	return digest.FromBytes(dt).String(), i.img.Digest.String(), nil, true, nil
}

func (i *imageInstance) Snapshot(ctx context.Context, job solver.JobContext) (cache.ImmutableRef, error) {
	if i.img == nil {
		return i.SourceInstance.Snapshot(ctx, job)
	}
	ref, err := i.s.w.o.Refs.Image(ctx, refs.ImageLayers{
		DiffIDs: i.img.DiffIDs, Blobs: i.img.Blobs, Origin: i.img.Origin, Created: i.img.Created,
		Description: "layer of " + i.id.Reference.String(),
	})
	if err != nil || ref == nil {
		return nil, err // a nil pointer must not become a ref
	}
	if i.id.RecordType != "" && ref.GetRecordType() == "" {
		if err := ref.SetRecordType(i.id.RecordType); err != nil {
			ref.Release(ctx)
			return nil, err
		}
	}
	return ref, nil
}
