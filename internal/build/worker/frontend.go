package worker

import (
	"context"
	"strconv"
	"strings"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/frontend"
	dockerfileversion "github.com/moby/buildkit/frontend/dockerfile/version"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"
	bkworker "github.com/moby/buildkit/worker"
)

// Frontends are the languages a build may be written in: Dockerfiles by the
// frontend that is linked in, anything else by an image.
func Frontends(infos bkworker.Infos) (map[string]frontend.Frontend, error) {
	gw, err := gateway.NewGatewayFrontend(infos, nil)
	if err != nil {
		return nil, err
	}
	builtin := forwarder.NewGatewayForwarder(infos, buildDockerfile)
	return map[string]frontend.Frontend{
		"dockerfile.v0": unsetting{builtin},
		"gateway.v0":    unsetting{&syntaxFrontend{external: gw, builtin: builtin, version: dockerfileversion.Version()}},
	}, nil
}

// syntaxFrontend answers `# syntax=docker/dockerfile:1` with the frontend that
// is linked in, where that is as new: pulling and starting an image to get the
// same parser would only take time.
type syntaxFrontend struct {
	external, builtin frontend.Frontend
	version           string
}

func (f *syntaxFrontend) Solve(ctx context.Context, b frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string, inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	if isBuiltin(opt[frontend.KeySource], f.version) {
		return f.builtin.Solve(ctx, b, exec, opt, inputs, sid, sm)
	}
	return f.external.Solve(ctx, b, exec, opt, inputs, sid, sm)
}

// isBuiltin reports whether the image reference names the Dockerfile frontend
// in a version that have covers. A digest names particular bytes, and the labs
// channel has other features, so neither is.
func isBuiltin(ref, have string) bool {
	for _, p := range []string{"docker.io/", "index.docker.io/", "registry-1.docker.io/"} {
		ref = strings.TrimPrefix(ref, p)
	}
	name, tag, ok := strings.Cut(ref, ":")
	if name != "docker/dockerfile" || strings.Contains(ref, "@") {
		return false
	}
	if !ok || tag == "latest" {
		return true
	}
	want, ok := numbers(tag)
	has, ok2 := numbers(strings.SplitN(have, "-", 2)[0])
	if !ok || !ok2 || want[0] != has[0] {
		return false
	}
	for i := range want {
		if i >= len(has) || want[i] < has[i] {
			return true
		}
		if want[i] > has[i] {
			return false
		}
	}
	return true
}

func numbers(v string) ([]int, bool) {
	var out []int
	for p := range strings.SplitSeq(v, ".") {
		n, err := strconv.Atoi(p)
		if err != nil || n < 0 || len(out) == 3 {
			return nil, false
		}
		out = append(out, n)
	}
	return out, true
}
