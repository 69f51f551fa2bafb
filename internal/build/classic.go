package build

import (
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	fstypes "github.com/tonistiigi/fsutil/types"

	"github.com/tonistiigi/fsutil"

	"github.com/onggi/onggi/internal/errdefs"
)

// ClassicRequest is what POST /build asks for.
type ClassicRequest struct {
	Tar    io.Reader // the context as a tar, compressed or not; nil where Remote or the session has it
	Remote string    // URL of the context, or "client-session"

	Dockerfile   string
	Tags         []string
	Target       string
	Platform     string
	NetworkMode  string
	BuildArgs    map[string]*string
	Labels       map[string]string
	CacheFrom    []string
	ExtraHosts   []string
	Ulimits      []string // name=soft:hard
	ShmSize      int64
	CgroupParent string
	Resources    map[string]string // limits of steps, by the names of POST /build: memory, memswap, cpushares, …
	NoCache      bool
	Pull         bool
	Squash       bool
	Quiet        bool // say nothing but the image's id, unless the build fails
	Outputs      []Output

	Version   string // "1": plain progress; "2": BuildKit's status messages
	SessionID string
	BuildID   string
	Accounts  map[string]Account // by registry, as in X-Registry-Config
}

// Output is one of ClassicRequest.Outputs.
type Output struct {
	Type  string
	Attrs map[string]string
}

// Message is one line of the answer to POST /build.
type Message struct {
	Stream      string       `json:"stream,omitempty"`
	Status      string       `json:"status,omitempty"`
	ID          string       `json:"id,omitempty"`
	Aux         any          `json:"aux,omitempty"`
	Error       string       `json:"error,omitempty"`
	ErrorDetail *ErrorDetail `json:"errorDetail,omitempty"`
}

// ErrorDetail is the error of a Message.
type ErrorDetail struct {
	Code    int    `json:"code,omitempty"`
	Message string `json:"message"`
}

// builtImage is the message that tells the image's id.
type builtImage struct {
	ID string `json:"ID"`
}

// Classic builds as POST /build asks, and reports by emit, which is called from
// one goroutine at a time. The error of a build that began is emitted too.
func (s *Service) Classic(ctx context.Context, r ClassicRequest, emit func(Message) error) error {
	c, err := s.core(ctx)
	if err != nil {
		return err
	}
	if id, ok := strings.CutPrefix(r.BuildID, uploadPrefix); ok {
		return s.uploads.give(ctx, id, r.Tar)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if r.Remote == "upload-request" {
		body, done, err := s.uploads.take(ctx, r.BuildID)
		if err != nil {
			return err
		}
		defer done()
		r.Tar, r.Remote = body, ""
	}
	if r.BuildID != "" {
		if err := s.running.add(r.BuildID, cancel); err != nil {
			return err
		}
		defer s.running.remove(r.BuildID)
	}
	out := &classicWriter{emit: emit, plain: r.Version != "2"}
	out.quiet = out.plain && r.Quiet
	req, stop, err := c.classicSolve(ctx, r)
	if err != nil {
		return err
	}
	defer stop()
	resp, err := c.solve(ctx, req, out.status)
	if err != nil {
		err = explain(err)
		out.failed(err)
		return err
	}
	id := resp["containerimage.config.digest"]
	if id == "" {
		id = resp["containerimage.digest"]
	}
	return out.built(id, r.Tags)
}

// Cancel ends the classic build with the id.
func (s *Service) Cancel(id string) error { return s.running.cancel(id) }

// classicSolve turns the request into one for the control API.
func (c *core) classicSolve(ctx context.Context, r ClassicRequest) (_ *controlapi.SolveRequest, stop func(), err error) {
	attrs, err := classicAttrs(r)
	if err != nil {
		return nil, nil, err
	}
	req := &controlapi.SolveRequest{
		Ref:           identity.NewID(),
		Session:       r.SessionID,
		Frontend:      "dockerfile.v0",
		FrontendAttrs: attrs,
		Cache:         &controlapi.CacheOptions{},
	}
	if r.BuildID != "" {
		req.Ref = r.BuildID
	}
	if r.NetworkMode == "host" {
		req.Entitlements = append(req.Entitlements, "network.host")
	}
	if v := r.BuildArgs["BUILDKIT_INLINE_CACHE"]; v != nil && *v != "" && *v != "0" && *v != "false" {
		req.Cache.Exports = []*controlapi.CacheOptionsEntry{{Type: "inline"}}
	}
	if req.Exporters, err = classicOutputs(r); err != nil {
		return nil, nil, err
	}
	stop = func() {}
	if r.Tar == nil {
		if r.SessionID == "" {
			if req.Session, stop, err = c.startSession(ctx, "", r.Accounts); err != nil {
				return nil, nil, err
			}
		}
		return req, stop, nil
	}
	dir, err := os.MkdirTemp(c.p.root, "context-")
	if err != nil {
		return nil, nil, err
	}
	drop := func() { os.RemoveAll(dir) }
	if err := c.p.unpack(ctx, r.Tar, dir); err != nil {
		drop()
		return nil, nil, errdefs.New(errdefs.Invalid, "build", "context", err)
	}
	if err := checkDockerfile(dir, r); err != nil {
		drop()
		return nil, nil, err
	}
	id, end, err := c.startSession(ctx, dir, r.Accounts)
	if err != nil {
		drop()
		return nil, nil, err
	}
	req.Session = id
	return req, func() { end(); drop() }, nil
}

// checkDockerfile says early, with a status of its own, what else the solver
// would say late, and of a missing file by an internal path.
func checkDockerfile(dir string, r ClassicRequest) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	name := cmp.Or(r.Dockerfile, "Dockerfile")
	f, err := root.Open(strings.TrimPrefix(filepath.Clean(name), "/"))
	if err != nil && name == "Dockerfile" {
		f, err = root.Open("dockerfile")
	}
	if err != nil {
		return errdefs.WithHint(
			errdefs.Newf(errdefs.Invalid, "build", "context", "cannot find the Dockerfile %q in it", name),
			"name the file with -f, relative to the context")
	}
	defer f.Close()
	if r.Version == "2" {
		return nil // its clients expect it of the solver
	}
	if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() && fi.Size() == 0 {
		return errdefs.Newf(errdefs.Invalid, "", "", "the Dockerfile (%s) cannot be empty", name)
	}
	if _, err := parser.Parse(io.LimitReader(f, 16*maxDockerfile)); err != nil {
		return errdefs.Newf(errdefs.Invalid, "", "", "dockerfile parse error: %v", err)
	}
	return nil
}

// classicAttrs are the Dockerfile frontend's attributes for the request.
func classicAttrs(r ClassicRequest) (map[string]string, error) {
	a := map[string]string{}
	set := func(k, v string) {
		if v != "" {
			a[k] = v
		}
	}
	set("target", r.Target)
	if r.Dockerfile != "" && r.Dockerfile != "." {
		a["filename"] = r.Dockerfile
	}
	if r.Remote != "client-session" {
		set("context", r.Remote)
	}
	set("cache-from", strings.Join(r.CacheFrom, ","))
	for k, v := range r.BuildArgs {
		if v != nil {
			a["build-arg:"+k] = *v
		}
	}
	for k, v := range r.Labels {
		a["label:"+k] = v
	}
	if r.NoCache {
		a["no-cache"] = ""
	}
	a["image-resolve-mode"] = "local"
	if r.Pull {
		a["image-resolve-mode"] = "pull"
	}
	set("platform", r.Platform)
	switch r.NetworkMode {
	case "", "default", "bridge":
	case "host", "none":
		a["force-network-mode"] = r.NetworkMode
	default:
		return nil, errdefs.WithHint(
			errdefs.Newf(errdefs.Unsupported, "build", "image", "a build cannot use the network %q", r.NetworkMode),
			"use default, host or none")
	}
	if len(r.ExtraHosts) > 0 {
		var hosts []string
		for _, h := range r.ExtraHosts {
			name, ip, ok := strings.Cut(h, "=")
			if !ok {
				if name, ip, ok = strings.Cut(h, ":"); !ok {
					return nil, errdefs.Newf(errdefs.Invalid, "build", "image", "extra host %q is not name:address", h)
				}
			}
			hosts = append(hosts, name+"="+ip)
		}
		v, err := csvLine(hosts)
		if err != nil {
			return nil, err
		}
		a["add-hosts"] = v
	}
	if len(r.Ulimits) > 0 {
		v, err := csvLine(r.Ulimits)
		if err != nil {
			return nil, err
		}
		a["ulimit"] = v
	}
	if r.ShmSize > 0 {
		a["shm-size"] = fmt.Sprint(r.ShmSize)
	}
	set("cgroup-parent", r.CgroupParent)
	maps.Copy(a, r.Resources) // the frontend calls them the same
	return a, nil
}

func csvLine(fields []string) (string, error) {
	var b strings.Builder
	w := csv.NewWriter(&b)
	if err := w.Write(fields); err != nil {
		return "", err
	}
	w.Flush()
	return strings.TrimSpace(b.String()), w.Error()
}

// classicOutputs are the request's outputs; without any it is the image store.
func classicOutputs(r ClassicRequest) ([]*controlapi.Exporter, error) {
	outs := r.Outputs
	if len(outs) == 0 {
		outs = []Output{{Type: "moby"}}
	}
	var list []*controlapi.Exporter
	for _, o := range outs {
		e := &controlapi.Exporter{Type: o.Type, Attrs: maps.Clone(o.Attrs)}
		if e.Attrs == nil {
			e.Attrs = map[string]string{}
		}
		if r.Squash && o.Type != "local" && o.Type != "tar" {
			e.Attrs["squash"] = "true"
		}
		switch o.Type {
		case "cacheonly":
			continue
		case "moby", "image":
			if len(r.Tags) > 0 {
				names, err := csvNames(r.Tags)
				if err != nil {
					return nil, err
				}
				e.Attrs["name"] = names
			}
		}
		list = append(list, e)
	}
	return list, nil
}

// csvNames writes the tags in full, as the exporter expects them.
func csvNames(tags []string) (string, error) {
	var out []string
	for _, t := range tags {
		n, err := fullName(t)
		if err != nil {
			return "", errdefs.New(errdefs.Invalid, "tag", fmt.Sprintf("image %q", t), err)
		}
		out = append(out, n)
	}
	return strings.Join(out, ","), nil
}

// explain puts what BuildKit knows about a failure of a build into the words
// of POST /build: the place in the Dockerfile and the exit status.
func explain(err error) error {
	msg := err.Error()
	if src := sourceOf(err); src != "" {
		msg = src + "\n" + msg
	}
	var exit *gatewayapi.ExitError
	if errors.As(err, &exit) && exit.ExitCode > 0 && exit.ExitCode < 256 {
		return &failedStep{code: int(exit.ExitCode), msg: msg, err: err}
	}
	return &failedStep{msg: msg, err: err}
}

// failedStep is a build's failure as it is shown.
type failedStep struct {
	code int
	msg  string
	err  error
}

func (f *failedStep) Error() string { return f.msg }
func (f *failedStep) Unwrap() error { return f.err }

// ownedByRoot is what Docker's builders do to the files of a context.
func ownedByRoot(_ string, st *fstypes.Stat) fsutil.MapResult {
	st.Uid, st.Gid = 0, 0
	return fsutil.MapResultKeep
}
