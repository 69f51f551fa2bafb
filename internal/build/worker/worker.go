// Package worker is BuildKit's worker on our parts: refs on our snapshots, our
// executor, images taken from and given to our image store.
//
// # Model
//
// A Worker resolves the operations of a build graph. Sources: an image is
// looked for in the image store first, then pulled; local files are taken by
// descriptor where the client gave one (package hostdir); git, http and OCI
// layouts are BuildKit's sources on our refs. Exporters: "image" and
// "moby" register the refs' snapshots as an image, which copies, compresses
// and unpacks nothing; "local", "tar", "oci" and "docker" are BuildKit's.
//
// # Guarantees
//
// Manifests and configs are written by BuildKit's image writer, so that an
// image built here is the image that BuildKit would build. Layers of an image
// that is only stored are described uncompressed; a push compresses.
//
// # Not here
//
// The graph solver and the control API (package build wires them), and the
// Dockerfile language (BuildKit's frontend).
package worker

import (
	"context"
	"log/slog"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/exporter"
	imageexporter "github.com/moby/buildkit/exporter/containerimage"
	localexporter "github.com/moby/buildkit/exporter/local"
	ociexporter "github.com/moby/buildkit/exporter/oci"
	tarexporter "github.com/moby/buildkit/exporter/tar"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/containerblob"
	"github.com/moby/buildkit/source/containerimage"
	"github.com/moby/buildkit/source/git"
	"github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/version"
	bkworker "github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/onggi/onggi/internal/build/hostdir"
	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/build/why"
	"github.com/onggi/onggi/internal/errdefs"
)

// Options of a Worker.
type Options struct {
	ID            string
	Root          string
	Labels        map[string]string
	Platforms     []ocispecs.Platform // the first is the machine's own
	Refs          *refs.Store
	Executor      executor.Executor
	Content       *containerdsnapshot.Store
	Leases        *leaseutil.Manager
	Images        Images // nil: no image store
	Dirs          *hostdir.Dirs
	Explain       *why.Recorder
	Exported      func(build string, response map[string]string) // told when an image needs nothing more; may be nil
	RegistryHosts docker.RegistryHosts
	GCPolicy      []client.PruneInfo
	Collect       func(context.Context) error // sweeps blobs
	Logger        *slog.Logger
}

// Worker implements BuildKit's worker.Worker.
type Worker struct {
	*base.Worker
	o      Options
	image  *imageSource
	writer *imageexporter.ImageWriter
	files  *hostdir.Source
}

var _ bkworker.Worker = (*Worker)(nil)

// New wires a worker.
func New(o Options) (*Worker, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	b := &base.Worker{
		WorkerOpt: base.WorkerOpt{
			ID:        o.ID,
			Root:      o.Root,
			Labels:    o.Labels,
			Platforms: o.Platforms,
			GCPolicy:  o.GCPolicy,
			BuildkitVersion: client.BuildkitVersion{
				Package: version.Package, Version: version.Version, Revision: version.Revision,
			},
			Executor:      o.Executor,
			ContentStore:  o.Content,
			LeaseManager:  o.Leases,
			RegistryHosts: o.RegistryHosts,
		},
		CacheMgr: o.Refs,
	}
	w := &Worker{Worker: b, o: o}
	if err := w.sources(b); err != nil {
		return nil, err
	}
	var err error
	w.writer, err = imageexporter.NewImageWriter(imageexporter.WriterOpt{ContentStore: o.Content})
	return w, err
}

// sources registers where files can come from.
func (w *Worker) sources(b *base.Worker) error {
	m, err := source.NewManager()
	if err != nil {
		return err
	}
	b.SourceManager = m
	opt := containerimage.SourceOpt{
		ContentStore:  w.o.Content,
		CacheAccessor: w.o.Refs,
		RegistryHosts: w.o.RegistryHosts,
		ResolverType:  containerimage.ResolverTypeRegistry,
		LeaseManager:  w.o.Leases,
	}
	if b.ImageSource, err = containerimage.NewSource(opt); err != nil {
		return err
	}
	opt.ResolverType = containerimage.ResolverTypeOCILayout
	if b.OCILayoutSource, err = containerimage.NewSource(opt); err != nil {
		return err
	}
	w.image = &imageSource{Source: b.ImageSource, w: w}
	m.Register(w.image)
	m.Register(b.OCILayoutSource)
	blobs, err := containerblob.NewSource(containerblob.SourceOpt{
		ContentStore: w.o.Content, CacheAccessor: w.o.Refs, RegistryHosts: w.o.RegistryHosts,
	})
	if err != nil {
		return err
	}
	m.Register(blobs)
	if git.Supported() == nil {
		b.GitSource, err = git.NewSource(git.Opt{CacheAccessor: w.o.Refs, RegistryHosts: w.o.RegistryHosts})
		if err != nil {
			return err
		}
		m.Register(b.GitSource)
	}
	if b.HTTPSource, err = http.NewSource(http.Opt{CacheAccessor: w.o.Refs}); err != nil {
		return err
	}
	m.Register(b.HTTPSource)
	files, err := hostdir.NewSource(w.o.Refs, w.o.Dirs)
	if err != nil {
		return err
	}
	if w.o.Explain != nil {
		files.Report = w.o.Explain.Files
	}
	m.Register(files)
	w.files = files
	return nil
}

// WalkAhead begins to look at the directories that a session has handed over.
func (w *Worker) WalkAhead(ctx context.Context, session string) { w.files.Ahead(ctx, session) }

// ResolveOp shows each operation to the one who explains builds, and takes
// copies into its own hands.
func (w *Worker) ResolveOp(v solver.Vertex, s frontend.FrontendLLBBridge, sm *session.Manager, proxy bkworker.ProxyOpt) (solver.Op, error) {
	if w.o.Explain != nil {
		w.o.Explain.Op(v)
	}
	op, err := w.Worker.ResolveOp(v, s, sm, proxy)
	if f, ok := v.Sys().(*pb.Op); ok && err == nil && f.GetFile() != nil {
		op = &copyOp{Op: op, w: w, v: v, file: f.GetFile()}
	}
	return op, err
}

// GarbageCollect sweeps the blobs that nothing needs any more.
func (w *Worker) GarbageCollect(ctx context.Context) error {
	if w.o.Collect == nil {
		return nil
	}
	return w.o.Collect(ctx)
}

// Close leaves the stores to their owner.
func (w *Worker) Close() error { return nil }

// Prune removes unused cache, and the blobs that went with it.
func (w *Worker) Prune(ctx context.Context, ch chan client.UsageInfo, rules ...client.PruneInfo) error {
	if err := w.o.Refs.Prune(ctx, ch, rules...); err != nil {
		return err
	}
	return w.GarbageCollect(ctx)
}

// ResolveSourceMetadata looks into the image store before any registry.
func (w *Worker) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *session.Manager, job solver.JobContext) (*sourceresolver.MetaResponse, error) {
	resp, err := w.image.resolveMetadata(ctx, op, opt, sm, job)
	if resp != nil || err != nil {
		return resp, err
	}
	return w.Worker.ResolveSourceMetadata(ctx, op, opt, sm, job)
}

// Exporter returns what writes a build's result.
func (w *Worker) Exporter(name string, sm *session.Manager) (exporter.Exporter, error) {
	switch name {
	case client.ExporterImage, "moby":
		return squashing{&imageExporter{w: w, sm: sm, kind: name}, w}, nil
	case client.ExporterLocal:
		return localexporter.New(localexporter.Opt{SessionManager: sm})
	case client.ExporterTar:
		return tarexporter.New(tarexporter.Opt{SessionManager: sm})
	case client.ExporterOCI, client.ExporterDocker:
		v := ociexporter.VariantOCI
		if name == client.ExporterDocker {
			v = ociexporter.VariantDocker
		}
		e, err := ociexporter.New(ociexporter.Opt{
			SessionManager: sm, ImageWriter: w.writer, Variant: ociexporter.ExporterVariant(v), LeaseManager: w.o.Leases,
		})
		if err != nil {
			return nil, err
		}
		return squashing{e, w}, nil
	}
	return nil, errdefs.WithHint(
		errdefs.Newf(errdefs.Invalid, "export", "build result", "there is no output type %q", name),
		"use one of image, local, tar, oci, docker")
}
