package worker

import (
	"context"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/resolver"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Fetch returns a function that reads blobs from the repositories that layers
// came from, with the client's credentials.
func Fetch(hosts docker.RegistryHosts, sm *session.Manager) func(ctx context.Context, origin string, desc ocispecs.Descriptor, g session.Group) (content.ReaderAt, error) {
	return func(ctx context.Context, origin string, desc ocispecs.Descriptor, g session.Group) (content.ReaderAt, error) {
		ref := origin + "@" + desc.Digest.String()
		f, err := resolver.DefaultPool.GetResolver(hosts, ref, resolver.ScopeType{}, sm, g).Fetcher(ctx, ref)
		if err != nil {
			return nil, err
		}
		return contentutil.FromFetcher(f).ReaderAt(ctx, desc)
	}
}
