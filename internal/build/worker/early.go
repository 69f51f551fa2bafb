package worker

import (
	"context"
	"sync"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/push"
	"github.com/moby/buildkit/util/resolver"
	resolverconfig "github.com/moby/buildkit/util/resolver/config"
	"github.com/moby/buildkit/util/resolver/limited"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/onggi/onggi/internal/build/refs"
)

// pushEarly uploads each layer as soon as it is compressed. The push that comes
// later finds it there; it also tells of errors, so that none are told here.
// The returned function waits for the uploads.
func (o *imageOutput) pushEarly(ctx context.Context, src *exporter.Source, sessionID string) (context.Context, func()) {
	names, err := o.names(src, ocispecs.Descriptor{})
	if err != nil {
		return ctx, func() {}
	}
	var to []images.HandlerFunc
	for _, n := range names {
		if h := o.uploader(ctx, n, sessionID); h != nil {
			to = append(to, h)
		}
	}
	var uploads sync.WaitGroup
	bare := ctx
	ctx = refs.WithMade(ctx, func(d ocispecs.Descriptor) {
		for _, h := range to {
			uploads.Go(func() {
				if _, err := h(bare, d); err != nil {
					o.w.o.Logger.Debug("uploading a layer early", "layer", d.Digest, "err", err)
				}
			})
		}
	})
	return ctx, uploads.Wait
}

// uploader sends blobs to the repository of a name; nil if that has to wait
// for the push.
func (o *imageOutput) uploader(ctx context.Context, name, sessionID string) images.HandlerFunc {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil
	}
	hosts, scope := o.w.o.RegistryHosts, resolver.ScopeType{Push: true}
	if o.insecure {
		yes := true
		scope.Insecure = true
		hosts = resolver.NewRegistryConfig(map[string]resolverconfig.RegistryConfig{
			reference.Domain(ref): {Insecure: &yes, PlainHTTP: &yes},
		})
	}
	p, err := push.Pusher(ctx, resolver.DefaultPool.GetResolver(hosts, name, scope, o.sm, session.NewGroup(sessionID)), name)
	if err != nil {
		return nil
	}
	return limited.PushHandler(p, o.w.o.Content, name)
}
