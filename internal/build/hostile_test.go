package build

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	gwclient "github.com/moby/buildkit/frontend/gateway/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	"google.golang.org/protobuf/proto"

	"github.com/onggi/onggi/internal/testenv"
)

// canary is a directory outside of any build, with a file that nobody may read.
type canary struct{ dir string }

const canaryWords = "words-of-the-host"

func newCanary(t *testing.T) canary {
	t.Helper()
	c := canary{t.TempDir()}
	if err := os.WriteFile(filepath.Join(c.dir, "f"), []byte(canaryWords), 0o644); err != nil {
		t.Fatal(err)
	}
	return c
}

// check looks whether the canary was touched, or its words are in a result.
func (c canary) check(t *testing.T, what, dest string, said ...string) {
	t.Helper()
	if e, err := os.ReadDir(c.dir); err != nil || len(e) != 1 {
		t.Errorf("%s: the canary's directory holds %v (%v)", what, e, err)
	}
	if b, _ := os.ReadFile(filepath.Join(c.dir, "f")); string(b) != canaryWords {
		t.Errorf("%s: the canary says %q", what, b)
	}
	for _, s := range said {
		if strings.Contains(s, canaryWords) {
			t.Errorf("%s: the canary was read: %.300s", what, s)
		}
	}
	if dest == "" {
		return
	}
	filepath.WalkDir(dest, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if b, _ := os.ReadFile(p); bytes.Contains(b, []byte(canaryWords)) {
				t.Errorf("%s: the canary is in %s", what, p)
			}
		}
		return nil
	})
}

// S47: who may do what is asked on every way in.
func TestEntitlementsOnEveryWayIn(t *testing.T) {
	exec := &nopExecutor{}
	b := newBuilder(t, exec)
	for _, run := range []string{"RUN --security=insecure x", "RUN --network=host x"} {
		if _, err := b.classic(ClassicRequest{Version: "1", Tar: tarOf(t, map[string]string{"Dockerfile": "FROM scratch\n" + run + "\n"})}); err == nil || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("POST /build of %s: %v", run, err)
		}
	}
	for name, opt := range map[string]llb.RunOption{"insecure": llb.Security(pb.SecurityMode_INSECURE), "host network": llb.Network(pb.NetMode_HOST)} {
		def, err := llb.Scratch().Run(llb.Args([]string{"x"}), opt).Root().Marshal(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.client.Solve(t.Context(), def, client.SolveOpt{}, nil); err == nil || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("solving %s: %v", name, err)
		}
		// A frontend of the client's asks for the same.
		_, err = b.client.Build(t.Context(), client.SolveOpt{}, "", func(ctx context.Context, c gwclient.Client) (*gwclient.Result, error) {
			return c.Solve(ctx, gwclient.SolveRequest{Definition: def.ToPB(), Evaluate: true})
		}, nil)
		if err == nil || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("a frontend, %s: %v", name, err)
		}
	}
	for name, start := range map[string]gwclient.StartRequest{"insecure": {Args: []string{"x"}, SecurityMode: pb.SecurityMode_INSECURE}} {
		_, err := b.client.Build(t.Context(), client.SolveOpt{}, "", func(ctx context.Context, c gwclient.Client) (*gwclient.Result, error) {
			def, err := llb.Scratch().File(llb.Mkfile("/a", 0o600, nil)).Marshal(ctx)
			if err != nil {
				return nil, err
			}
			res, err := c.Solve(ctx, gwclient.SolveRequest{Definition: def.ToPB()})
			if err != nil {
				return nil, err
			}
			ctr, err := c.NewContainer(ctx, gwclient.NewContainerRequest{Mounts: []gwclient.Mount{{Dest: "/", MountType: pb.MountType_BIND, Ref: res.Ref}}})
			if err != nil {
				return nil, err
			}
			defer ctr.Release(ctx)
			p, err := ctr.Start(ctx, start)
			if err != nil {
				return nil, err
			}
			return gwclient.NewResult(), p.Wait()
		}, nil)
		if err == nil || !strings.Contains(err.Error(), "not allowed") {
			t.Errorf("a frontend's container, %s: %v", name, err)
		}
	}
	if _, err := b.client.Solve(t.Context(), nil, client.SolveOpt{Frontend: "dockerfile.v0", AllowedEntitlements: []string{"everything"}}, nil); err == nil {
		t.Error("an entitlement that there is not was granted")
	}
	if exec.runs != 0 {
		t.Errorf("%d steps were run", exec.runs)
	}
}

// S47: messages that no client would send end in errors.
func TestMalformedSolves(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	st := llb.Scratch().File(llb.Mkfile("/a", 0o600, []byte("x"))).Run(llb.Args([]string{"x"}), llb.AddMount("/m", llb.Scratch(), llb.AsPersistentCacheDir("../../c", llb.CacheMountShared))).Root()
	def, err := llb.Merge([]llb.State{st, llb.Diff(llb.Scratch(), st)}).Marshal(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	raw, err := proto.Marshal(def.ToPB())
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	solve := func(d *pb.Definition) {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		_, err := b.c.control.Solve(ctx, &controlapi.SolveRequest{Ref: identity.NewID(), Definition: d, Cache: &controlapi.CacheOptions{}})
		if errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a malformed message hangs: %s", base64.StdEncoding.EncodeToString(d.Def[0]))
		}
	}
	damage := func(b []byte) []byte {
		b = bytes.Clone(b)
		for range 1 + r.IntN(4) {
			switch i := r.IntN(len(b)); r.IntN(3) {
			case 0:
				b[i] ^= 1 << r.IntN(8)
			case 1:
				b[i] = byte(r.Uint32())
			default:
				b = append(b[:i], b[min(len(b), i+1+r.IntN(8)):]...)
			}
			if len(b) == 0 {
				return []byte{0}
			}
		}
		return b
	}
	for range 150 {
		var d pb.Definition
		if proto.Unmarshal(damage(raw), &d) == nil && len(d.Def) > 0 {
			solve(&d)
		}
		d = pb.Definition{}
		if err := proto.Unmarshal(raw, &d); err != nil {
			t.Fatal(err)
		}
		i := r.IntN(len(d.Def))
		d.Def[i] = damage(d.Def[i])
		solve(&d)
	}
	for name, req := range map[string]*controlapi.SolveRequest{
		"no definition":      {Ref: "a", Frontend: "gateway.v0"},
		"unknown frontend":   {Ref: "b", Frontend: "../../x"},
		"unknown exporter":   {Ref: "c", Frontend: "dockerfile.v0", Exporters: []*controlapi.Exporter{{Type: "../x"}}},
		"empty inputs":       {Ref: "e", Frontend: "dockerfile.v0", FrontendInputs: map[string]*pb.Definition{"context": {}, "dockerfile": nil}},
		"cache to somewhere": {Ref: "f", Frontend: "dockerfile.v0", Cache: &controlapi.CacheOptions{Exports: []*controlapi.CacheOptionsEntry{{Type: "local", Attrs: map[string]string{"dest": "/etc"}}}}},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		if _, err := b.c.control.Solve(ctx, req); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%s: %v", name, err)
		}
		cancel()
	}
	if _, err := b.build(t.Context(), buildOptions{dir: contextDir(t, outputFiles)}); err != nil {
		t.Errorf("an honest build after it: %v", err)
	}
}

// S49, S50: links and names of a context stay inside it.
func TestHostileContexts(t *testing.T) {
	b := newRealBuilder(t)
	c := newCanary(t)
	out := filepath.Join(c.dir, "f")
	df := "FROM scratch\nCOPY . /c\n"
	for name, entries := range map[string][]tar.Header{
		"Dockerfile is a link":          {{Name: "Dockerfile", Typeflag: tar.TypeSymlink, Linkname: out}},
		"Dockerfile is a climbing link": {{Name: "Dockerfile", Typeflag: tar.TypeSymlink, Linkname: "../../../../../../../.." + out}},
		"ignore file is a link":         {{Name: "Dockerfile"}, {Name: ".dockerignore", Typeflag: tar.TypeSymlink, Linkname: out}},
		"through a link":                {{Name: "Dockerfile"}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: c.dir}, {Name: "l/new"}, {Name: "l/f"}},
		"climbing names":                {{Name: "Dockerfile"}, {Name: "../../../../../../../.." + c.dir + "/new"}},
		"absolute names":                {{Name: "Dockerfile"}, {Name: c.dir + "/new"}},
		"hard link to outside":          {{Name: "Dockerfile"}, {Name: "h", Typeflag: tar.TypeLink, Linkname: out}},
		"hard link through a link":      {{Name: "Dockerfile"}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: c.dir}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/f"}},
		"copied link":                   {{Name: "Dockerfile"}, {Name: "l", Typeflag: tar.TypeSymlink, Linkname: c.dir}},
	} {
		var raw bytes.Buffer
		w := tar.NewWriter(&raw)
		for _, h := range entries {
			body := "x"
			if h.Name == "Dockerfile" {
				body = df
			}
			if h.Mode = 0o644; h.Typeflag == 0 {
				h.Typeflag, h.Size = tar.TypeReg, int64(len(body))
			}
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeReg {
				w.Write([]byte(body))
			}
		}
		w.Close()
		ms, err := b.classic(ClassicRequest{Version: "1", Tar: &raw, Tags: []string{"hostile"}})
		said := ""
		for _, m := range ms {
			said += m.Stream + m.Error
		}
		if err != nil {
			said += err.Error()
		}
		dest := t.TempDir()
		if err == nil {
			if _, err := b.build(t.Context(), buildOptions{dir: contextDir(t, map[string]string{"Dockerfile": "FROM hostile\nLABEL a=b\n"}), output: client.ExportEntry{Type: "local", OutputDir: dest}}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		c.check(t, name, dest, said)
	}
	// A client's directory is read by the client; what it sends is a link.
	dir := contextDir(t, map[string]string{".dockerignore": "x\n"})
	if err := os.Symlink(out, filepath.Join(dir, "Dockerfile")); err != nil {
		t.Fatal(err)
	}
	_, err := b.build(t.Context(), buildOptions{dir: dir})
	if err == nil {
		t.Error("a Dockerfile that is a link out of the context was read")
	} else {
		c.check(t, "a client's link", "", err.Error())
	}
}

// S50: a step's environment is what the Dockerfile says.
func TestStepEnvironment(t *testing.T) {
	t.Setenv("ENGINE_SECRET", canaryWords)
	b := newRealBuilder(t)
	dest, r, err := b.tree(withBusybox(t, map[string]string{"Dockerfile": "FROM base\nENV A=1\nARG B=2\nRUN env | sort > /env\n"}), nil)
	if err != nil {
		t.Fatal(err, r.logs)
	}
	got, err := os.ReadFile(filepath.Join(dest, "env"))
	want := "A=1\nB=2\nHOME=/root\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPWD=/\nSHLVL=1\n"
	if err != nil || string(got) != want {
		t.Errorf("%q (%v), want %q", got, err, want)
	}
}

// S48: what a mount's options say is a name or a path inside.
func TestHostileMountOptions(t *testing.T) {
	b := newRealBuilder(t)
	c := newCanary(t)
	up := "../../../../../../../../.." + c.dir
	files := withBusybox(t, map[string]string{"Dockerfile": ""})
	dir := contextDir(t, files)
	if err := os.Symlink(c.dir, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, m := range []string{
		"--mount=type=cache,id=" + up + ",target=/m",
		"--mount=type=cache,id=" + c.dir + ",target=/m",
		"--mount=\"type=cache,id=a,b\",target=/m",
		"--mount=type=cache,id=a=b=c,target=/m",
		"--mount=type=cache,\"id=a\nb\",target=/m",
		"--mount=type=cache,id=x,target=/m,source=" + up,
		"--mount=type=cache,id=x,target=/m,from=base,source=/link",
		"--mount=type=cache,id=x,target=" + up,
		"--mount=type=bind,target=/m,source=" + up,
		"--mount=type=bind,target=/m,source=link",
		"--mount=type=bind,target=/m,from=base,source=/link/../../../../.." + c.dir,
		"--mount=type=bind,target=/m,from=" + c.dir,
		"--mount=type=bind,target=/m,bind-propagation=rshared",
		"--mount=type=bind,target=/m,rw,options=suid",
		"--mount=type=tmpfs,target=/m,size=1m,mode=0777,source=" + c.dir,
		"--mount=type=tmpfs,target=/link/m",
		"--mount=type=secret,id=" + up + "/f,target=/m",
		"--mount=type=ssh,id=" + up + "/f",
	} {
		df := files["Dockerfile"] + "FROM base\nRUN ln -s " + c.dir + " /link\nRUN " + m + " cat /m /m/f /m/*; touch /m/new /m/f/new; true\n"
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(df), 0o600); err != nil {
			t.Fatal(err)
		}
		dest := t.TempDir()
		r, err := b.build(t.Context(), buildOptions{dir: dir, attrs: map[string]string{"force-network-mode": "none"}, output: client.ExportEntry{Type: "local", OutputDir: dest}})
		said := r.logs
		if err != nil {
			said += err.Error()
		}
		c.check(t, m, dest, said)
	}
}

// S49: a git address is an address, and what is in a repository stays there.
func TestHostileGit(t *testing.T) {
	testenv.NeedProgram(t, "git")
	b := newBuilder(t, &nopExecutor{})
	c := newCanary(t)
	work, web := t.TempDir(), t.TempDir()
	git := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=n", "-c", "user.email=e", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"}, args...)...)
		cmd.Dir = work
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	secret := filepath.Join(t.TempDir(), "secret")
	git("init", "-q", secret)
	for _, d := range []string{secret, work} {
		if d == work {
			git("init", "-q", ".")
			if err := os.Symlink(c.dir, filepath.Join(work, "out")); err != nil {
				t.Fatal(err)
			}
		}
		text := "x"
		if d == secret {
			text = canaryWords
		}
		if err := os.WriteFile(filepath.Join(d, "f"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		git("-C", d, "add", ".")
		git("-C", d, "commit", "-qm", "c")
	}
	git("clone", "-q", "--bare", ".", filepath.Join(web, "plain.git"))
	git("submodule", "add", "-q", "file://"+secret, "sub")
	git("commit", "-qm", "sub")
	git("clone", "-q", "--bare", ".", filepath.Join(web, "sub.git"))
	for _, r := range []string{"plain.git", "sub.git"} {
		git("-C", filepath.Join(web, r), "update-server-info")
	}
	srv := httptest.NewServer(http.FileServer(http.Dir(web)))
	defer srv.Close()
	plain := srv.URL + "/plain.git"
	for _, url := range []string{
		plain + "#main:../../../../../../../.." + c.dir,
		plain + "#main:out",
		plain + "#main:/out/",
		plain + "#main:f/../../../..",
		plain + "#--upload-pack=touch${IFS}" + c.dir + "/new",
		plain + "#main..--output=" + c.dir + "/new",
		plain + "?subdir=../../../.." + c.dir,
		plain + "?ref=--upload-pack%3dtouch+" + c.dir + "/new",
		srv.URL + "/sub.git#main",
		"git://-oProxyCommand=touch%20" + c.dir + "/new/x.git",
		"ssh://-oProxyCommand=touch%20" + c.dir + "%2fnew/x.git",
		"git@-oProxyCommand=touch:x.git",
		"ext::sh -c touch% " + c.dir + "/new.git",
		"file://" + secret + "/.git",
		secret + "/.git",
	} {
		dest := t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		r, err := b.build(ctx, buildOptions{dir: contextDir(t, map[string]string{"Dockerfile": "FROM scratch\nADD [\"" + url + "\", \"/g\"]\n"}), output: client.ExportEntry{Type: "local", OutputDir: dest}})
		cancel()
		said := r.logs
		if err != nil {
			said += err.Error()
		}
		c.check(t, url, dest, said)
	}
}

// S51: the frontend runs in the engine; what would make it grow is refused.
func TestParserBombs(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	many := func(n int, s string) string { return strings.Repeat(s, n) }
	for name, c := range map[string][2]string{
		"doubling":   {"FROM scratch\nENV a=xxxxxxxx\n" + many(60, "ENV a=$a$a$a\n"), "expands to more"},
		"large":      {"FROM scratch\n" + many(40000, "# a comment that says nothing at all\n"), "larger than"},
		"long line":  {"FROM scratch\nENV a=" + many(1<<19, "x") + "\n", "line greater than"},
		"long chain": {"FROM scratch\nRUN x" + many(20000, "\\\n") + "\n", "more than 10000 lines"},
		"cycle":      {"FROM a AS b\nFROM scratch AS c\nCOPY --from=d / /\nFROM c AS d\nCOPY --from=c / /\n", "circular"},
	} {
		_, err := b.build(t.Context(), buildOptions{dir: contextDir(t, map[string]string{"Dockerfile": c[0]})})
		if err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: %v, want %q", name, err, c[1])
		}
		_, err = b.classic(ClassicRequest{Version: "1", Tar: tarOf(t, map[string]string{"Dockerfile": c[0]})})
		if err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s, by POST /build: %v, want %q", name, err, c[1])
		}
	}
	// An image's triggers are instructions, too.
	triggers := many(60, "ONBUILD ENV a=$a$a$a\n")
	if _, err := b.build(t.Context(), buildOptions{dir: contextDir(t, map[string]string{"Dockerfile": "FROM scratch\nENV a=xxxxxxxx\n" + triggers}), output: client.ExportEntry{Type: "image", Attrs: map[string]string{"name": "docker.io/library/bomb:latest"}}}); err != nil {
		t.Fatal(err) // there they are only text
	}
	if _, err := b.build(t.Context(), buildOptions{dir: contextDir(t, map[string]string{"Dockerfile": "FROM bomb\n"})}); err == nil || !strings.Contains(err.Error(), "expands to more") {
		t.Errorf("triggers: %v", err)
	}
}

// S37: nothing that decides about an image is left out of what decides whether
// it is built again.
func TestEveryInstructionCounts(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	seen := map[string]string{}
	for _, line := range []string{"", "HEALTHCHECK CMD a", "HEALTHCHECK CMD b", "HEALTHCHECK --interval=5s CMD a", "HEALTHCHECK NONE", "ONBUILD RUN a", "ONBUILD RUN b", "CMD a", "CMD [\"a\"]",
		"ENTRYPOINT a", "ENV a=b", "ENV a=c", "LABEL a=b", "EXPOSE 1", "EXPOSE 1/udp", "VOLUME /a", "USER a", "USER a:b", "STOPSIGNAL 9", "STOPSIGNAL 10", "SHELL [\"a\"]", "MAINTAINER a", "WORKDIR /a",
		"RUN a", "RUN [\"a\"]", "COPY one /a", "COPY --chmod=600 one /a", "COPY --chown=1 one /a", "ARG a=1\nRUN a", "ARG a=2\nRUN a"} {
		r, err := b.build(t.Context(), buildOptions{dir: contextDir(t, map[string]string{"one": "1", "Dockerfile": "FROM scratch\nCOPY one /one\n" + line + "\n"}),
			attrs:  map[string]string{"build-arg:SOURCE_DATE_EPOCH": "1"},
			output: client.ExportEntry{Type: "image", Attrs: map[string]string{"store": "false", "rewrite-timestamp": "true"}}})
		if err != nil {
			t.Fatal(line, err)
		}
		d := r.resp["containerimage.digest"]
		if other, ok := seen[d]; ok {
			t.Errorf("%q makes the image of %q", line, other)
		}
		seen[d] = line
	}
}
