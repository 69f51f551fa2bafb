// Command onggi-build is the client of one build: it opens a BuildKit session
// with the engine, gives it files, credentials and secrets, and shows the
// progress. onggi starts it for `onggi build`, because linking BuildKit's client
// would make every other command slower.
//
// The engine's address is ONGGI_HOST, the directory of config.json ONGGI_CONFIG.
// Where that is a way to another machine, ONGGI_REMOTE is the address there.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/cli/cli/config"
	configtypes "github.com/docker/cli/cli/config/types"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/progress/progressui"
	"github.com/tonistiigi/fsutil"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/metadata"

	"github.com/onggi/onggi/internal/api"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if filepath.Base(os.Args[0]) == "docker-buildx" {
		if err := plugin(ctx, os.Args[1:]); err != nil {
			for _, s := range errdefs.Sources(err) {
				s.Print(os.Stderr)
			}
			fmt.Fprintln(os.Stderr, "ERROR:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(ctx, os.Args[1:]); err != nil {
		if ctx.Err() != nil {
			fmt.Fprintln(os.Stderr, "onggi: the build was cancelled")
			os.Exit(130)
		}
		explain(os.Stderr, err)
		os.Exit(1)
	}
}

// explain shows the Dockerfile's line, where the error has one.
func explain(w io.Writer, err error) {
	for _, s := range errdefs.Sources(err) {
		s.Print(w)
	}
	msg := strings.TrimPrefix(err.Error(), "failed to solve: ")
	fmt.Fprintf(w, "onggi: build: %s\n", msg)
	var f *failed
	if !errors.As(err, &f) || f.why == nil {
		return
	}
	for _, s := range f.why.Steps {
		if x := s.Failure; x != nil && x.ExitCode != 0 {
			fmt.Fprintf(w, "step:   %s\nended:  %s\n", s.Name, x.How())
		}
	}
}

func run(ctx context.Context, args []string) error {
	o, contextArg, err := parseFlags(args)
	if err != nil || o.help {
		return err
	}
	opt, err := o.solveOpt(contextArg)
	if err != nil {
		return err
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	stop, err := o.shareDirectories(ctx, opt)
	defer stop()
	if err != nil {
		return err
	}

	mode := progressui.DisplayMode(o.progress)
	if o.quiet {
		mode = progressui.QuietMode
	}
	if mode == "json" {
		mode = progressui.RawJSONMode
	}
	display, err := progressui.NewDisplay(os.Stderr, mode)
	if err != nil {
		return fmt.Errorf("--progress: %w", err)
	}
	status := make(chan *client.SolveStatus)
	var resp *client.SolveResponse
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() (err error) {
		// The image is enough; nobody here reads the history's record.
		resp, err = c.Solve(metadata.AppendToOutgoingContext(ctx, "onggi-prompt", "1"), nil, *opt, status)
		return err
	})
	eg.Go(func() error {
		// The display outlives a cancelled build, to show what it ended with.
		_, err := display.UpdateFrom(context.WithoutCancel(ctx), status)
		return err
	})
	err = eg.Wait()
	why := o.why(context.WithoutCancel(ctx), opt.Ref, mode, err)
	if err != nil {
		return &failed{err, why}
	}
	return o.report(resp)
}

// why shows the engine's explanation of the build, where it was asked for, and
// returns it for a failed one.
func (o *options) why(ctx context.Context, ref string, mode progressui.DisplayMode, failure error) *api.BuildWhy {
	raw := mode == progressui.RawJSONMode
	if !o.explain && !raw && failure == nil || o.call != "build" && o.call != "" {
		return nil
	}
	c, err := api.New(api.Options{Host: engineHost(), Name: hostHeader()})
	if err != nil {
		return nil
	}
	w := &api.BuildWhy{}
	if err := c.Call(ctx, "GET", "/onggi/v1/build/why", url.Values{"ref": {ref}}, nil, w); err != nil {
		return nil // another engine, or a build that was refused
	}
	switch {
	case raw:
		json.NewEncoder(os.Stderr).Encode(map[string]any{"explain": w})
	case o.explain:
		w.Text(os.Stderr)
	}
	return w
}

// failed is a failed build with what the engine knows of it.
type failed struct {
	error
	why *api.BuildWhy
}

func (f *failed) Unwrap() error { return f.error }

// report prints and writes what the build made.
func (o *options) report(resp *client.SolveResponse) error {
	r := resp.ExporterResponse
	if o.call != "build" && o.call != "" {
		for _, k := range []string{"result.txt", "result.json"} {
			if s := r[k]; s != "" {
				fmt.Print(s)
				break
			}
		}
		if code := r["result.statuscode"]; code != "" && code != "0" {
			return errors.New("the check found problems")
		}
		return nil
	}
	id := r["containerimage.config.digest"]
	if id == "" {
		id = r["containerimage.digest"]
	}
	if o.iidFile != "" && id != "" {
		if err := os.WriteFile(o.iidFile, []byte(id), 0o644); err != nil {
			return err
		}
	}
	if o.metaFile != "" {
		m := map[string]any{}
		for k, v := range r {
			var raw json.RawMessage
			if json.Unmarshal([]byte(v), &raw) == nil && strings.HasPrefix(v, "{") {
				m[k] = raw
			} else {
				m[k] = v
			}
		}
		data, err := json.MarshalIndent(m, "", "  ")
		if err != nil {
			return err
		}
		if err := os.WriteFile(o.metaFile, data, 0o644); err != nil {
			return err
		}
	}
	if o.quiet && id != "" {
		fmt.Println(id)
	}
	return nil
}

func (o *options) solveOpt(contextArg string) (*client.SolveOpt, error) {
	attrs, err := o.frontendAttrs()
	if err != nil {
		return nil, err
	}
	opt := &client.SolveOpt{Ref: identity.NewID(), Frontend: "dockerfile.v0", FrontendAttrs: attrs, LocalMounts: map[string]fsutil.FS{}, AllowedEntitlements: o.allow}
	if o.network == "host" && !contains(opt.AllowedEntitlements, "network.host") {
		opt.AllowedEntitlements = append(opt.AllowedEntitlements, "network.host")
	}
	if err := o.context(opt, contextArg); err != nil {
		return nil, err
	}
	if err := o.session(opt); err != nil {
		return nil, err
	}
	if o.call == "build" || o.call == "" {
		if err := o.exports(opt); err != nil {
			return nil, err
		}
	}
	for _, x := range []struct {
		flag string
		set  []string
		into *[]client.CacheOptionsEntry
	}{{"cache-from", o.cacheFrom, &opt.CacheImports}, {"cache-to", o.cacheTo, &opt.CacheExports}} {
		for _, s := range x.set {
			if !strings.Contains(s, "=") {
				s = "type=registry,ref=" + s
			}
			m, err := fields(s, "")
			if err != nil {
				return nil, fmt.Errorf("--%s: %w", x.flag, err)
			}
			kind := m["type"]
			delete(m, "type")
			*x.into = append(*x.into, client.CacheOptionsEntry{Type: kind, Attrs: m})
		}
	}
	return opt, nil
}

// context says where files come from: a directory, a tar archive or Dockerfile
// on standard input, or a URL that the engine fetches.
func (o *options) context(opt *client.SolveOpt, arg string) error {
	var stdin *bufio.Reader
	o.dirs = map[string]string{}
	mount := func(name, dir string) error {
		fs, err := fsutil.NewFS(dir)
		if err == nil {
			opt.LocalMounts[name] = fs
			o.dirs[name] = dir
		}
		return err
	}
	switch {
	case arg == "-":
		stdin = bufio.NewReaderSize(os.Stdin, 64<<10)
		head, err := stdin.Peek(512)
		if err != nil && err != io.EOF {
			return fmt.Errorf("read standard input: %w", err)
		}
		if len(head) == 0 {
			return errors.New("standard input is empty: neither a Dockerfile nor an archive")
		}
		if !isArchive(head) {
			dir, err := saveDockerfile(stdin)
			if err != nil {
				return err
			}
			empty, err := os.MkdirTemp("", "onggi-context-")
			if err != nil {
				return err
			}
			if err := mount("context", empty); err != nil {
				return err
			}
			return mount("dockerfile", dir)
		}
		up := uploadprovider.New()
		opt.FrontendAttrs["context"] = up.Add(io.NopCloser(stdin))
		opt.Session = append(opt.Session, up)
	case isURL(arg):
		opt.FrontendAttrs["context"] = arg
	default:
		if fi, err := os.Stat(arg); err != nil {
			return fmt.Errorf("the context: %w", err)
		} else if !fi.IsDir() {
			return fmt.Errorf("the context %s is not a directory\ntry:   onggi build -f %s %s", arg, arg, filepath.Dir(arg))
		}
		if err := mount("context", arg); err != nil {
			return err
		}
		if o.file == "-" {
			dir, err := saveDockerfile(os.Stdin)
			if err != nil {
				return err
			}
			if err := mount("dockerfile", dir); err != nil {
				return err
			}
			break
		}
		dir, name, err := dockerfile(arg, o.file)
		if err != nil {
			return err
		}
		opt.FrontendAttrs["filename"] = name
		opt.SharedKey = filepath.Base(arg)
		if err := mount("dockerfile", dir); err != nil {
			return err
		}
	}
	if o.file != "" && o.file != "-" && (arg == "-" || isURL(arg)) {
		opt.FrontendAttrs["filename"] = o.file
	}
	for _, s := range o.contexts {
		name, v, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("--build-context %q: want name=path", s)
		}
		if isURL(v) || strings.HasPrefix(v, "docker-image://") || strings.HasPrefix(v, "oci-layout://") {
			opt.FrontendAttrs["context:"+name] = v
			continue
		}
		local := "context-" + name
		if err := mount(local, v); err != nil {
			return fmt.Errorf("--build-context %s: %w", name, err)
		}
		opt.FrontendAttrs["context:"+name] = "local:" + local
	}
	return nil
}

func isURL(s string) bool {
	for _, p := range []string{"http://", "https://", "git://", "ssh://", "git@", "github.com/"} {
		if strings.HasPrefix(s, p) {
			return true
		}
	}
	return false
}

// isArchive knows tar, and what it is compressed with, by the first bytes.
func isArchive(head []byte) bool {
	for _, magic := range []string{"\x1f\x8b", "BZh", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if strings.HasPrefix(string(head), magic) {
			return true
		}
	}
	return len(head) > 262 && string(head[257:262]) == "ustar"
}

func saveDockerfile(r io.Reader) (string, error) {
	dir, err := os.MkdirTemp("", "onggi-dockerfile-")
	if err != nil {
		return "", err
	}
	data, err := io.ReadAll(io.LimitReader(r, 16<<20))
	if err != nil {
		return "", fmt.Errorf("read the Dockerfile from standard input: %w", err)
	}
	return dir, os.WriteFile(filepath.Join(dir, "Dockerfile"), data, 0o600)
}

// session adds credentials, secrets and agents.
func (o *options) session(opt *client.SolveOpt) error {
	dir := os.Getenv("ONGGI_CONFIG")
	if dir == "" {
		dir = config.Dir()
	}
	cfg, err := config.Load(dir)
	if err != nil {
		return err
	}
	opt.Session = append(opt.Session, authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{
		AuthConfigProvider: func(_ context.Context, host string, _ []string, _ authprovider.ExpireCachedAuthCheck) (configtypes.AuthConfig, error) {
			if host == "registry-1.docker.io" || host == "docker.io" {
				host = "https://index.docker.io/v1/"
			}
			return cfg.GetAuthConfig(host)
		},
	}))
	var sources []secretsprovider.Source
	for _, s := range o.secrets {
		m, err := fields(s, "id")
		if err != nil {
			return fmt.Errorf("--secret: %w", err)
		}
		src := secretsprovider.Source{ID: m["id"], FilePath: m["src"], Env: m["env"]}
		if src.FilePath == "" {
			src.FilePath = m["source"]
		}
		if m["type"] == "env" && src.Env == "" {
			src.Env, src.FilePath = src.FilePath, ""
		}
		if src.FilePath == "" && src.Env == "" {
			if _, ok := os.LookupEnv(src.ID); ok {
				src.Env = src.ID
			} else {
				src.FilePath = src.ID
			}
		}
		sources = append(sources, src)
	}
	if len(sources) > 0 {
		store, err := secretsprovider.NewStore(sources)
		if err != nil {
			return fmt.Errorf("--secret: %w", err)
		}
		opt.Session = append(opt.Session, secretsprovider.NewSecretProvider(store))
	}
	var agents []sshprovider.AgentConfig
	for _, s := range o.ssh {
		id, paths, ok := strings.Cut(s, "=")
		a := sshprovider.AgentConfig{ID: id}
		if ok {
			a.Paths = strings.Split(paths, ",")
		}
		agents = append(agents, a)
	}
	if len(agents) > 0 {
		p, err := sshprovider.NewSSHAgentProvider(agents)
		if err != nil {
			return fmt.Errorf("--ssh: %w", err)
		}
		opt.Session = append(opt.Session, p)
	}
	return nil
}

// exports say where the result goes; without any it becomes an image.
func (o *options) exports(opt *client.SolveOpt) error {
	names := strings.Join(o.tags, ",")
	for _, s := range o.outputs {
		x, err := output(s)
		if err != nil {
			return err
		}
		switch x.Type {
		case "image", "docker", "oci", "moby", "registry":
			if x.Attrs["name"] == "" && names != "" {
				x.Attrs["name"] = names
			}
		}
		if x.Type == "registry" {
			x.Type, x.Attrs["push"] = "image", "true"
		}
		if x.Type == "docker" && x.Output == nil {
			x.Type = "moby"
		}
		opt.Exports = append(opt.Exports, *x)
	}
	if len(opt.Exports) == 0 {
		opt.Exports = []client.ExportEntry{{Type: "moby", Attrs: map[string]string{}}}
		if names != "" {
			opt.Exports[0].Attrs["name"] = names
		}
	}
	if o.push {
		if names == "" {
			return errors.New("--push needs a name: --tag registry/name:tag")
		}
		for i := range opt.Exports {
			if t := opt.Exports[i].Type; t == "moby" || t == "image" {
				opt.Exports[i].Attrs["push"] = "true"
			}
		}
	}
	if o.squash {
		for i := range opt.Exports {
			if t := opt.Exports[i].Type; t != "local" && t != "tar" {
				opt.Exports[i].Attrs["squash"] = "true"
			}
		}
	}
	for _, s := range o.annotations {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return fmt.Errorf("--annotation %q: want key=value", s)
		}
		for i := range opt.Exports {
			opt.Exports[i].Attrs["annotation."+k] = v
		}
	}
	return nil
}

func output(s string) (*client.ExportEntry, error) {
	x := &client.ExportEntry{Attrs: map[string]string{}}
	if !strings.Contains(s, "=") {
		if s == "-" {
			s = "type=tar,dest=-"
		} else {
			s = "type=local,dest=" + s
		}
	}
	m, err := fields(s, "")
	if err != nil {
		return nil, fmt.Errorf("--output: %w", err)
	}
	x.Type, x.Attrs = m["type"], m
	dest := m["dest"]
	delete(m, "type")
	delete(m, "dest")
	switch x.Type {
	case "local":
		if dest == "" {
			return nil, errors.New("--output type=local needs dest=DIRECTORY")
		}
		x.OutputDir = dest
	case "tar", "oci", "docker":
		if dest == "" && x.Type == "docker" {
			return x, nil
		}
		x.Output = func(map[string]string) (io.WriteCloser, error) {
			if dest == "" || dest == "-" {
				return os.Stdout, nil
			}
			return os.Create(dest)
		}
	case "image", "registry", "moby", "cacheonly":
	default:
		return nil, fmt.Errorf("--output: there is no type %q: want local, tar, oci, docker, image or registry", x.Type)
	}
	return x, nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func engineHost() string {
	if host := os.Getenv("ONGGI_HOST"); host != "" {
		return host
	}
	return "unix:///run/onggi/onggi.sock"
}

// hostHeader is the name that an engine which listens on TCP wants to be asked by.
func hostHeader() string {
	if addr, ok := strings.CutPrefix(os.Getenv("ONGGI_REMOTE"), "tcp://"); ok {
		return strings.TrimSuffix(addr, "/")
	}
	return "onggi"
}

// dial makes a client of the engine's builder.
func dial(ctx context.Context) (*client.Client, error) {
	return client.New(ctx, "", client.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return dialGRPC(ctx) }))
}

// dialGRPC asks the engine to speak gRPC on the connection.
func dialGRPC(ctx context.Context) (net.Conn, error) { return dialUpgrade(ctx, "/grpc", "h2c") }

// dialUpgrade connects to the engine and asks it to speak another protocol.
func dialUpgrade(ctx context.Context, path, proto string) (net.Conn, error) {
	host := engineHost()
	network, addr, _ := strings.Cut(host, "://")
	d := net.Dialer{Timeout: 10 * time.Second}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	if _, err := io.WriteString(conn, "POST "+path+" HTTP/1.1\r\nHost: "+hostHeader()+"\r\nConnection: Upgrade\r\nUpgrade: "+proto+"\r\n\r\n"); err != nil {
		conn.Close()
		return nil, err
	}
	in := bufio.NewReader(conn)
	line, err := in.ReadString('\n')
	if err != nil || !strings.Contains(line, " 101 ") {
		conn.Close()
		return nil, fmt.Errorf("the engine at %s does not build: %s", host, strings.TrimSpace(line))
	}
	for line != "\r\n" {
		if line, err = in.ReadString('\n'); err != nil {
			conn.Close()
			return nil, err
		}
	}
	return &buffered{conn, in}, nil
}

// buffered gives what was read ahead first.
type buffered struct {
	net.Conn
	in *bufio.Reader
}

func (b *buffered) Read(p []byte) (int, error) { return b.in.Read(p) }
