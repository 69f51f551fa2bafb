package worker

import (
	"context"
	"encoding/json"
	"strings"

	"github.com/moby/buildkit/client/llb/sourceresolver"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
)

// buildDockerfile is BuildKit's Dockerfile frontend, which is shown nothing
// that it could choke on.
func buildDockerfile(ctx context.Context, c client.Client) (*client.Result, error) {
	res, err := dockerfile.Build(ctx, guard{c})
	if err != nil || res == nil {
		return res, err
	}
	bare := func(r client.Reference) client.Reference {
		if g, ok := r.(guardedRef); ok {
			return g.Reference
		}
		return r
	}
	res.Ref = bare(res.Ref)
	for k, r := range res.Refs {
		res.Refs[k] = bare(r)
	}
	for _, list := range res.Attestations {
		for i := range list {
			list[i].Ref = bare(list[i].Ref)
		}
	}
	return res, nil
}

// guard looks at the files and the configs that the frontend reads.
type guard struct{ client.Client }

func (g guard) Solve(ctx context.Context, req client.SolveRequest) (*client.Result, error) {
	res, err := g.Client.Solve(ctx, req)
	if err != nil || res == nil {
		return res, err
	}
	if res.Ref != nil {
		res.Ref = guardedRef{res.Ref}
	}
	for k, r := range res.Refs {
		if r != nil {
			res.Refs[k] = guardedRef{r}
		}
	}
	return res, nil
}

func (g guard) ResolveImageConfig(ctx context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	name, d, cfg, err := g.Client.ResolveImageConfig(ctx, ref, opt)
	if err == nil {
		err = checkConfig(cfg)
	}
	return name, d, cfg, err
}

func (g guard) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt) (*sourceresolver.MetaResponse, error) {
	m, err := g.Client.ResolveSourceMetadata(ctx, op, opt)
	if err == nil && m.Image != nil {
		err = checkConfig(m.Image.Config)
	}
	return m, err
}

func checkConfig(raw []byte) error {
	var c struct{ Config struct{ OnBuild []string } }
	if json.Unmarshal(raw, &c) != nil {
		return nil // the frontend says it
	}
	return checkTriggers(c.Config.OnBuild)
}

type guardedRef struct{ client.Reference }

func (r guardedRef) ReadFile(ctx context.Context, req client.ReadRequest) ([]byte, error) {
	if req.Range != nil && req.Range.Length < maxDockerfile {
		return r.Reference.ReadFile(ctx, req) // the first bytes, to see what it is
	}
	b, err := r.Reference.ReadFile(ctx, req)
	if err == nil && !strings.HasSuffix(req.Filename, ".dockerignore") {
		err = checkDockerfile(b)
	}
	return b, err
}
