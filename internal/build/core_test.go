package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/pkg/archive"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/session"
	"github.com/tonistiigi/fsutil"

	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/build/refs/refstest"
	"github.com/onggi/onggi/internal/build/worker"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/testenv"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// nopExecutor pretends that every RUN succeeds.
type nopExecutor struct{ runs int }

func (e *nopExecutor) Run(_ context.Context, _ string, _ executor.Mount, _ []executor.Mount, p executor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	e.runs++
	if started != nil {
		close(started)
	}
	fmt.Fprintf(p.Stdout, "ran %v\n", p.Meta.Args)
	if len(p.Meta.Args) > 0 && strings.Contains(p.Meta.Args[len(p.Meta.Args)-1], "exit 3") {
		return nil, &gatewayapi.ExitError{ExitCode: 3}
	}
	return nil, nil
}

func (e *nopExecutor) Exec(context.Context, string, executor.ProcessInfo) error { return nil }

// memImages is an image store in memory.
type memImages struct {
	mu     sync.Mutex
	byName map[string]worker.Built
	snaps  refs.Snapshots
}

func (m *memImages) Get(_ context.Context, name string, _ ocispecs.Platform) (*worker.Image, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	name, _, _ = strings.Cut(name, "@")
	b, ok := m.byName[name]
	if !ok {
		return nil, errdefs.Newf(errdefs.NotFound, "find", "image "+name, "no such image")
	}
	img := &worker.Image{Digest: digest.FromBytes(b.Config), Config: b.Config}
	for _, l := range b.Layers {
		img.DiffIDs = append(img.DiffIDs, l.DiffID)
	}
	return img, nil
}

func (m *memImages) Pull(_ context.Context, name string, _ worker.Credentials, _ func(string, string, int64, int64)) (*worker.Image, error) {
	return nil, errdefs.Newf(errdefs.NotFound, "pull", "image "+name, "there is no registry in this test")
}

func (m *memImages) Register(ctx context.Context, b worker.Built) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	below := ""
	for _, l := range b.Layers {
		if !m.snaps.Exists(l.ChainID.String()) {
			if err := m.snaps.Stack(ctx, l.ChainID.String(), l.Snapshot, below); err != nil {
				return err
			}
		}
		below = l.ChainID.String()
	}
	if m.byName == nil {
		m.byName = map[string]worker.Built{}
	}
	for _, n := range b.Names {
		m.byName[n] = b
	}
	return nil
}

// builder is a core with a client on a unix socket.
type builder struct {
	t      testing.TB
	c      *core
	client *client.Client
	images *memImages // with stand-ins below

	store   *image.Service // with the real stores below
	snaps   *snapshot.Store
	service *Service
	close   []func() // after the core is closed
	stop    func()   // ends it all, once
}

// after runs f when the core is closed.
func (b *builder) after(f func()) { b.close = append(b.close, f) }

func newBuilder(t *testing.T, exec executor.Executor) *builder {
	t.Helper()
	return newBuilderWith(t, exec, func(*parts) {})
}

func newBuilderWith(t *testing.T, exec executor.Executor, edit func(*parts)) *builder {
	t.Helper()
	testenv.NeedRoot(t)
	snaps := &refstest.Snapshots{Dir: t.TempDir()}
	t.Cleanup(snaps.Close)
	records := map[string]*refstest.Records{}
	images := &memImages{snaps: snaps}
	p := parts{
		root: t.TempDir(),
		records: func(b string) refs.Records {
			if records[b] == nil {
				records[b] = &refstest.Records{}
			}
			return records[b]
		},
		snapshots: snaps, layers: refstest.Layers{}, mounter: snaps, executor: exec, images: images,
		disk: func() (int64, int64, error) { return 1 << 40, 1 << 39, nil },
		unpack: func(ctx context.Context, r io.Reader, dir string) error {
			_, err := archive.Apply(ctx, dir, r)
			return err
		},
	}
	edit(&p)
	c, err := newCore(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	b := serve(t, c)
	b.images = images
	return b
}

// serve puts the core behind a socket, and connects a client of BuildKit's.
func serve(t testing.TB, c *core) *builder { return serveControl(t, c, c.close) }

func serveControl(t testing.TB, c *core, end func() error) *builder {
	sock := filepath.Join(t.TempDir(), "b.sock")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	srv := newServer(c)
	c.control.Register(srv)
	done := make(chan struct{})
	go func() { defer close(done); srv.Serve(l) }()
	cl, err := client.New(t.Context(), "unix://"+sock)
	if err != nil {
		t.Fatal(err)
	}
	b := &builder{t: t, c: c, client: cl}
	b.stop = sync.OnceFunc(func() {
		cl.Close()
		srv.Stop()
		<-done
		if err := end(); err != nil {
			t.Error(err)
		}
		for _, f := range b.close {
			f()
		}
	})
	t.Cleanup(b.stop)
	return b
}

// result is what a build gave back.
type result struct {
	resp   map[string]string
	cached map[string]bool // by vertex name
	ran    map[string]bool
	logs   string
}

type buildOptions struct {
	dir    string
	attrs  map[string]string
	output client.ExportEntry
	allow  []string
	edit   func(*client.SolveOpt)

	handOver bool // the directory, as a descriptor
}

func (b *builder) build(ctx context.Context, o buildOptions) (*result, error) {
	b.t.Helper()
	fs, err := fsutil.NewFS(o.dir)
	if err != nil {
		b.t.Fatal(err)
	}
	opt := client.SolveOpt{
		Frontend:      "dockerfile.v0",
		FrontendAttrs: map[string]string{"filename": "Dockerfile"},
		LocalMounts:   map[string]fsutil.FS{"context": fs, "dockerfile": fs},
		SharedKey:     o.dir,
	}
	for k, v := range o.attrs {
		opt.FrontendAttrs[k] = v
	}
	if o.output.Type != "" {
		opt.Exports = []client.ExportEntry{o.output}
	}
	opt.AllowedEntitlements = o.allow
	if o.edit != nil {
		o.edit(&opt)
	}
	if o.handOver {
		forget, err := b.handOver(ctx, o.dir, &opt)
		if err != nil {
			return nil, err
		}
		defer forget()
	}
	ch := make(chan *client.SolveStatus)
	res := &result{cached: map[string]bool{}, ran: map[string]bool{}}
	collected := make(chan struct{})
	go func() {
		defer close(collected)
		var logs strings.Builder
		for s := range ch {
			for _, v := range s.Vertexes {
				if v.Completed != nil {
					res.ran[v.Name] = true
					res.cached[v.Name] = v.Cached
				}
			}
			for _, l := range s.Logs {
				logs.Write(l.Data)
			}
		}
		res.logs = logs.String()
	}()
	r, err := b.client.Solve(ctx, nil, opt, ch)
	<-collected
	if r != nil {
		res.resp = r.ExporterResponse
	}
	return res, err
}

// handOver gives the builder descriptors of the directory. The session has no
// files, so that nothing else can have given them.
func (b *builder) handOver(ctx context.Context, dir string, opt *client.SolveOpt) (forget func(), err error) {
	s, err := session.NewSession(ctx, dir)
	if err != nil {
		return nil, err
	}
	dirs := map[string]*os.File{}
	for _, name := range []string{"context", "dockerfile"} {
		if dirs[name], err = os.Open(dir); err != nil {
			return nil, err
		}
	}
	opt.SharedSession, opt.LocalMounts = s, nil
	return b.c.dirs.Give(s.ID(), dirs)
}

// context makes a build context of file name → content.
func contextDir(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDockerfileToImageAndCache(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	dir := contextDir(t, map[string]string{
		"Dockerfile": "# syntax=docker/dockerfile:1\nFROM scratch AS a\nCOPY one /one\nRUN something\nFROM scratch\nCOPY --from=a /one /two\nCOPY --link two /three\nENV X=y\n",
		"one":        "1", "two": "2", "unused": "x", ".dockerignore": "unused\n",
	})
	image := client.ExportEntry{Type: "image", Attrs: map[string]string{"name": "docker.io/library/test:latest"}}
	r, err := b.build(t.Context(), buildOptions{dir: dir, output: image})
	if err != nil {
		t.Fatal(err)
	}
	built, ok := b.images.byName["docker.io/library/test:latest"]
	if !ok {
		t.Fatalf("not registered: %v", r.resp)
	}
	var cfg ocispecs.Image
	if err := json.Unmarshal(built.Config, &cfg); err != nil {
		t.Fatal(err)
	}
	if len(cfg.RootFS.DiffIDs) != 2 || len(cfg.History) != 3 || cfg.Config.Env[len(cfg.Config.Env)-1] != "X=y" {
		t.Errorf("config: %s", built.Config)
	}
	for i, l := range built.Layers {
		if l.DiffID != cfg.RootFS.DiffIDs[i] {
			t.Errorf("layer %d: %s, the config says %s", i, l.DiffID, cfg.RootFS.DiffIDs[i])
		}
	}
	if got := r.resp["containerimage.config.digest"]; got != digest.FromBytes(built.Config).String() {
		t.Errorf("config digest %q", got)
	}
	again, err := b.build(t.Context(), buildOptions{dir: dir, output: image})
	if err != nil {
		t.Fatal(err)
	}
	for name, cached := range again.cached {
		if strings.HasPrefix(name, "[") && !strings.Contains(name, "[internal]") && !cached {
			t.Errorf("%s was not cached", name)
		}
	}
	if again.resp["containerimage.digest"] != r.resp["containerimage.digest"] {
		t.Errorf("digests differ: %v %v", again.resp, r.resp)
	}
	// A change that matters, in a file that matters.
	os.WriteFile(filepath.Join(dir, "two"), []byte("3"), 0o644)
	third, err := b.build(t.Context(), buildOptions{dir: dir, output: image})
	if err != nil {
		t.Fatal(err)
	}
	if third.resp["containerimage.digest"] == r.resp["containerimage.digest"] {
		t.Error("the change was not seen")
	}
	// From the image that was built.
	os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM test\nCOPY one /four\n"), 0o644)
	if _, err := b.build(t.Context(), buildOptions{dir: dir, output: client.ExportEntry{Type: "moby", Attrs: map[string]string{"name": "docker.io/library/child:latest"}}}); err != nil {
		t.Fatal(err)
	}
	if n := len(b.images.byName["docker.io/library/child:latest"].Layers); n != 3 {
		t.Errorf("child has %d layers", n)
	}
}

// hangingExecutor runs until it is cancelled.
type hangingExecutor struct {
	nopExecutor
	started chan struct{}
}

func (e *hangingExecutor) Run(ctx context.Context, _ string, _ executor.Mount, _ []executor.Mount, _ executor.ProcessInfo, _ chan<- struct{}) (resourcestypes.Recorder, error) {
	close(e.started)
	<-ctx.Done()
	return nil, context.Cause(ctx)
}

// history lists the finished builds.
func (b *builder) history() []*controlapi.BuildHistoryRecord {
	b.t.Helper()
	l, err := b.client.ControlClient().ListenBuildHistory(b.t.Context(), &controlapi.BuildHistoryRequest{EarlyExit: true})
	if err != nil {
		b.t.Fatal(err)
	}
	var out []*controlapi.BuildHistoryRecord
	for {
		ev, err := l.Recv()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			b.t.Fatal(err)
		}
		if ev.Type != controlapi.BuildHistoryEventType_STARTED {
			out = append(out, ev.Record)
		}
	}
}
