package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
)

// Compose builds by running Docker's plugin buildx: it writes the builds of a
// project to `docker-buildx bake`, reads their progress from its standard error,
// and their results from a file. Under that name onggi-build does just this, so
// that onggi compose needs no buildx (cmd/onggi-compose).

// pluginVersion is one of buildx that has all that Compose asks for.
const pluginVersion = "v0.38.2"

// bakeFile are the builds of a project, as Compose writes them.
type bakeFile struct {
	Group  map[string]struct{ Targets []string } `json:"group"`
	Target map[string]*bakeTarget                `json:"target"`
}

type bakeTarget struct {
	Context          string
	Contexts         map[string]string
	Dockerfile       string
	DockerfileInline string `json:"dockerfile-inline"`
	Args, Labels     map[string]string
	Tags             []string
	CacheFrom        []string `json:"cache-from"`
	CacheTo          []string `json:"cache-to"`
	Target           string
	Secret, SSH      []string
	Platforms        []string
	Pull             bool
	NoCache          bool `json:"no-cache"`
	Network          string
	NoCacheFilter    []string    `json:"no-cache-filter"`
	ShmSize          json.Number `json:"shm-size"`
	Ulimits          []string
	Call             string
	Entitlements     []string
	ExtraHosts       map[string]string `json:"extra-hosts"`
	Output, Attest   []string

	once   sync.Once
	err    error
	result map[string]string
}

// plugin does what buildx is asked for.
func plugin(ctx context.Context, args []string) error {
	switch {
	case len(args) > 0 && args[0] == "docker-cli-plugin-metadata":
		return json.NewEncoder(os.Stdout).Encode(map[string]string{
			"SchemaVersion": "0.1.0", "Vendor": "Onggi", "Version": pluginVersion, "ShortDescription": "Builds for onggi compose",
		})
	case len(args) > 0 && args[0] == "bake":
		if os.Getenv("ONGGI_HOST") == "" {
			os.Setenv("ONGGI_HOST", os.Getenv("DOCKER_HOST"))
		}
		return bake(ctx, args[1:])
	}
	return errors.New("this is onggi-build, for onggi compose; install Docker's buildx for its commands")
}

func bake(ctx context.Context, args []string) error {
	f := pflag.NewFlagSet("bake", pflag.ContinueOnError)
	f.Usage = func() {}
	file := f.StringP("file", "f", "-", "")
	progress := f.String("progress", "rawjson", "")
	metaFile := f.String("metadata-file", "", "")
	builder := f.String("builder", "", "")
	provenance, sbom := f.String("provenance", "", ""), f.String("sbom", "", "")
	f.StringArray("allow", nil, "") // Compose allows what its file says
	if err := f.Parse(args); err != nil {
		return err
	}
	if *file != "-" || *builder != "" && *builder != "default" {
		return errors.New("a builder of its own needs Docker's buildx: install the plugin docker-buildx")
	}
	var b bakeFile
	if err := json.NewDecoder(io.LimitReader(os.Stdin, 16<<20)).Decode(&b); err != nil {
		return fmt.Errorf("read the builds: %w", err)
	}
	display, err := progressui.NewDisplay(os.Stderr, progressui.DisplayMode(*progress))
	if err != nil {
		return fmt.Errorf("--progress: %w", err)
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	status := make(chan *client.SolveStatus)
	shown := make(chan error, 1)
	go func() {
		_, err := display.UpdateFrom(context.WithoutCancel(ctx), status)
		shown <- err
	}()
	w := &baker{bakeFile: b, client: c, status: status, provenance: *provenance, sbom: *sbom}
	eg, ctx := errgroup.WithContext(ctx)
	for _, name := range b.Group["default"].Targets {
		eg.Go(func() error { return w.build(ctx, name, nil) })
	}
	err = eg.Wait()
	close(status)
	if derr := <-shown; err == nil {
		err = derr
	}
	if err != nil || *metaFile == "" {
		return err
	}
	results := map[string]map[string]string{}
	for _, name := range b.Group["default"].Targets {
		results[name] = b.Target[name].result
	}
	data, err := json.Marshal(results)
	if err != nil {
		return err
	}
	return os.WriteFile(*metaFile, data, 0o644)
}

type baker struct {
	bakeFile
	client           *client.Client
	status           chan<- *client.SolveStatus
	provenance, sbom string
}

// build makes a target once, after those that it takes files from.
func (w *baker) build(ctx context.Context, name string, from []string) error {
	t := w.Target[name]
	if t == nil {
		return fmt.Errorf("there is no build %q", name)
	}
	for _, n := range from {
		if n == name {
			return fmt.Errorf("the build %s takes files from itself, by %s", name, strings.Join(from, ", "))
		}
	}
	for _, at := range t.Contexts {
		if base, ok := strings.CutPrefix(at, "target:"); ok {
			if err := w.build(ctx, base, append(from[:len(from):len(from)], name)); err != nil {
				return err
			}
		}
	}
	t.once.Do(func() {
		if t.err = w.solve(ctx, name, t); t.err != nil {
			t.err = fmt.Errorf("target %s: %w", name, t.err)
		}
	})
	return t.err
}

func (w *baker) solve(ctx context.Context, name string, t *bakeTarget) error {
	o := &options{
		tags: t.Tags, secrets: t.Secret, ssh: t.SSH, allow: t.Entitlements, outputs: t.Output, cacheFrom: t.CacheFrom, cacheTo: t.CacheTo,
		attest: t.Attest, noCacheFilter: t.NoCacheFilter, platforms: t.Platforms, ulimits: t.Ulimits, file: t.Dockerfile, target: t.Target,
		network: t.Network, provenance: w.provenance, sbom: w.sbom, shmSize: t.ShmSize.String(), noCache: t.NoCache, pull: t.Pull, call: "build",
	}
	if t.Call != "" {
		o.call = strings.Replace(t.Call, "lint", "check", 1)
	}
	if len(o.platforms) == 0 {
		o.platforms = envList("DOCKER_DEFAULT_PLATFORM")
	}
	for k, v := range t.Args {
		o.args = append(o.args, k+"="+plainText(v))
	}
	for k, v := range t.Labels {
		o.labels = append(o.labels, k+"="+v)
	}
	for k, v := range t.ExtraHosts {
		o.addHost = append(o.addHost, k+"="+v)
	}
	for k, v := range t.Contexts {
		if base, ok := strings.CutPrefix(v, "target:"); ok {
			if len(w.Target[base].Tags) == 0 {
				return fmt.Errorf("the build %s has no name", base)
			}
			v = "docker-image://" + w.Target[base].Tags[0]
		}
		o.contexts = append(o.contexts, k+"="+v)
	}
	if t.DockerfileInline != "" {
		if isURL(t.Context) {
			return errors.New("dockerfile_inline with a context that is fetched needs Docker's buildx")
		}
		dir, err := saveDockerfile(strings.NewReader(plainText(t.DockerfileInline)))
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		o.file = filepath.Join(dir, "Dockerfile")
	}
	opt, err := o.solveOpt(t.Context)
	if err != nil {
		return err
	}
	stop, err := o.shareDirectories(ctx, opt)
	defer stop()
	if err != nil {
		return err
	}
	status := make(chan *client.SolveStatus)
	var told sync.WaitGroup
	told.Go(func() {
		for s := range status {
			for _, v := range s.Vertexes {
				if len(w.Target) > 1 {
					v.Name = titled(name, v.Name)
				}
			}
			w.status <- s
		}
	})
	resp, err := w.client.Solve(ctx, nil, *opt, status)
	told.Wait()
	if err != nil {
		return err
	}
	t.result = resp.ExporterResponse
	return o.report(resp)
}

// titled says which build a step belongs to: "[web 1/2] RUN x".
func titled(target, name string) string {
	if rest, ok := strings.CutPrefix(name, "["); ok {
		return "[" + target + " " + rest
	}
	return "[" + target + "] " + name
}

// plainText takes back what hides variables from bake.
func plainText(s string) string { return strings.ReplaceAll(s, "$${", "${") }
