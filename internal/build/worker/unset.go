package worker

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/frontend"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver/pb"

	"github.com/onggi/onggi/internal/errdefs"
)

// unsetLabel says what an image shall not inherit: words such as VOLUME (all
// of them), VOLUME=/data, EXPOSE=80/tcp, ENV=NAME. A label can be given in a
// Dockerfile or with --label, through any client; other builders leave it
// alone. It does not become a part of the image.
const unsetLabel = "org.onggi.unset"

// unsetting takes out of the configs of a frontend's images what unsetLabel
// says.
type unsetting struct{ frontend.Frontend }

func (u unsetting) Solve(ctx context.Context, b frontend.FrontendLLBBridge, exec executor.Executor, opt map[string]string, inputs map[string]*pb.Definition, sid string, sm *session.Manager) (*frontend.Result, error) {
	res, err := u.Frontend.Solve(ctx, b, exec, opt, inputs, sid, sm)
	if err != nil || res == nil {
		return res, err
	}
	for k, raw := range res.Metadata {
		if k != exptypes.ExporterImageConfigKey && !strings.HasPrefix(k, exptypes.ExporterImageConfigKey+"/") {
			continue
		}
		if res.Metadata[k], err = unset(raw); err != nil {
			return nil, err
		}
	}
	return res, nil
}

// unset edits an image's config. What it does not know of it stays.
func unset(raw []byte) ([]byte, error) {
	var image, config map[string]json.RawMessage
	var labels map[string]string
	if json.Unmarshal(raw, &image) != nil || json.Unmarshal(image["config"], &config) != nil || json.Unmarshal(config["Labels"], &labels) != nil {
		return raw, nil
	}
	words, ok := labels[unsetLabel]
	if !ok {
		return raw, nil
	}
	var env []string
	var volumes, ports map[string]json.RawMessage
	for key, to := range map[string]any{"Env": &env, "Volumes": &volumes, "ExposedPorts": &ports} {
		if config[key] != nil {
			if err := json.Unmarshal(config[key], to); err != nil {
				return nil, err
			}
		}
	}
	for _, w := range strings.Fields(words) {
		what, name, one := strings.Cut(w, "=")
		switch strings.ToUpper(what) {
		case "VOLUME":
			drop(&volumes, name, one)
		case "EXPOSE":
			if one && !strings.Contains(name, "/") {
				name += "/tcp"
			}
			drop(&ports, name, one)
		case "ENV":
			env = slices.DeleteFunc(env, func(e string) bool {
				k, _, _ := strings.Cut(e, "=")
				return !one || k == name
			})
		default:
			return nil, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "read", "label "+unsetLabel, "%q is nothing that can be unset", w),
				"VOLUME, VOLUME=/path, EXPOSE, EXPOSE=80/tcp, ENV, ENV=NAME")
		}
	}
	delete(labels, unsetLabel)
	set := func(in map[string]json.RawMessage, key string, v any, n int) error {
		if n == 0 {
			delete(in, key)
			return nil
		}
		b, err := json.Marshal(v)
		in[key] = b
		return err
	}
	for _, err := range []error{set(config, "Labels", labels, len(labels)), set(config, "Env", env, len(env)), set(config, "Volumes", volumes, len(volumes)),
		set(config, "ExposedPorts", ports, len(ports)), set(image, "config", config, 1)} {
		if err != nil {
			return nil, err
		}
	}
	return json.Marshal(image)
}

// drop removes one entry, or all.
func drop(m *map[string]json.RawMessage, name string, one bool) {
	if !one {
		*m = nil
		return
	}
	delete(*m, name)
}
