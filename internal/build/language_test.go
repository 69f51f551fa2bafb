package build

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
)

// Each case is a Dockerfile behind a stage "base" with busybox, and what its
// result holds. "-" is: not there.
var language = []struct {
	name  string
	files map[string]string
	want  map[string]string
	logs  []string
}{
	{"copy", map[string]string{
		"Dockerfile": "FROM scratch\nCOPY a b /d/\nCOPY d1 /d2\nCOPY --chown=7:8 --chmod=640 a /own\nCOPY --exclude=*.x d1 /d3/\nCOPY *.txt /t/\nADD a /added\n",
		"a":          "A", "b": "B", "d1/f": "F", "d1/g.x": "G", "one.txt": "1", "two.txt": "2",
	}, map[string]string{"d/a": "A", "d/b": "B", "d2/f": "F", "d2/g.x": "G", "d3/f": "F", "d3/g.x": "-", "t/one.txt": "1", "t/two.txt": "2", "added": "A"}, nil},
	{"heredocs", map[string]string{
		"Dockerfile": "FROM base\nRUN <<EOF\nset -e\necho one > /one\necho two > /two\nEOF\nCOPY <<EOF /three\nthree $HOME\nEOF\nRUN <<-\"X\" sh -s\n\techo '$HOME' > /four\nX\n",
	}, map[string]string{"one": "one\n", "two": "two\n", "three": "three \n", "four": "$HOME\n"}, nil},
	{"args and env", map[string]string{
		"Dockerfile": "ARG V=1\nFROM base\nARG V\nARG W=w\nENV X=${V}-${W} Y=${NOPE:-def}\nRUN echo $X $Y $W > /out; env | sort > /env\n",
	}, map[string]string{"out": "1-w def w\n"}, nil},
	{"whiteouts", map[string]string{
		"Dockerfile": "FROM base\nRUN mkdir -p /d/e /k && touch /d/e/f /k/x /k/y\nRUN rm -r /d && rm /k/x\nRUN mkdir /d && touch /d/new\n",
	}, map[string]string{"d/new": "", "d/e": "-", "k/x": "-", "k/y": ""}, nil},
	{"stages", map[string]string{
		"Dockerfile": "FROM base AS a\nRUN echo a > /a\nFROM base AS unused\nRUN exit 1\nFROM base AS b\nRUN --mount=from=a,target=/m cat /m/a > /b\nFROM scratch\nCOPY --from=a /a /x/a\nCOPY --from=b /b /x/\n",
	}, map[string]string{"x/a": "a\n", "x/b": "a\n", "a": "-"}, nil},
	{"links", map[string]string{
		"Dockerfile": "FROM base AS l\nCOPY --link a /l/a\nCOPY --link b /l/b\nRUN echo $(cat /l/a /l/b) > /l/c\nFROM l\nCOPY --link a /l/d\n",
		"a":          "A", "b": "B",
	}, map[string]string{"l/a": "A", "l/b": "B", "l/c": "AB\n", "l/d": "A"}, nil},
	{"bind mounts", map[string]string{
		"Dockerfile": "FROM base\nRUN --mount=target=/c cat /c/sub/f > /one && ! touch /c/x\nRUN --mount=target=/s,source=sub cat /s/f > /two\nRUN --mount=target=/f,source=sub/f cat /f > /three\nRUN --mount=target=/w,rw touch /w/new && ls /w/new\nRUN test ! -e /w/new\n",
		"sub/f":      "F",
	}, map[string]string{"one": "F", "two": "F", "three": "F", "c": "-", "f": "-", "s": "-"}, nil},
	{"cache mounts", map[string]string{
		"Dockerfile": "FROM base\nRUN --mount=type=cache,target=/c,id=t1 echo 1 > /c/f\nRUN --mount=type=cache,target=/c,id=t1 cat /c/f > /one\nRUN --mount=type=cache,target=/c,id=t2 ls /c > /two\nRUN --mount=type=cache,target=/c,id=t1,ro ! touch /c/x\nRUN --mount=type=cache,target=/s,id=t3,from=base,source=/etc,mode=0700 cat /s/passwd > /three && touch /s/mine\nRUN --mount=type=cache,target=/s,id=t3,from=base,source=/etc ls /s > /four\nRUN --mount=type=cache,target=/u,uid=5,gid=6,mode=0750 stat -c %u:%g:%a /u > /five\n",
	}, map[string]string{"one": "1\n", "two": "", "four": "mine\npasswd\n", "five": "5:6:750\n", "c": "-"}, nil},
	{"tmpfs", map[string]string{
		"Dockerfile": "FROM base\nRUN --mount=type=tmpfs,target=/t,size=1m touch /t/x && df -k /t | tail -1 | awk '{print $2}' > /size && ! dd if=/dev/zero of=/t/big bs=1M count=2 2>/dev/null\n",
	}, map[string]string{"size": "1024\n", "t": "-"}, nil},
	{"users", map[string]string{
		"Dockerfile": "FROM base\nRUN echo app:x:1000:1001::/home/app:/bin/sh >> /etc/passwd && printf 'app:x:1001:\\nmore:x:12:app\\n' > /etc/group && mkdir -m 777 /o\nUSER app\nRUN id > /o/one\nUSER app:more\nRUN id -g > /o/two\nUSER 55:66\nRUN echo $(id -u):$(id -g) > /o/three\nWORKDIR /o/w/x\nRUN pwd > /o/four\nCOPY --chown=app:more a /o/five\n",
		"a":          "",
	}, map[string]string{"o/one": "uid=1000(app) gid=1001(app) groups=12(more),1001(app)\n", "o/two": "12\n", "o/three": "55:66\n", "o/four": "/o/w/x\n"}, nil},
	{"shell and onbuild", map[string]string{
		"Dockerfile": "FROM base AS on\nONBUILD RUN echo on > /on\nFROM on\nSHELL [\"/bin/sh\", \"-xc\"]\nRUN : x\nRUN [\"sh\", \"-c\", \"echo $0 > /zero\", \"arg\"]\n",
	}, map[string]string{"on": "on\n", "zero": "arg\n"}, []string{"+ : x\n"}},
	{"workdir and expansion", map[string]string{
		"Dockerfile": "FROM base\nARG d=dir\nWORKDIR /a\nWORKDIR $d\nWORKDIR ../c\nRUN pwd > /pwd\nENV v=file.tar.gz\nRUN echo ${v%.gz} ${v##*.} > /x\nCOPY ${v%.tar.gz} ${v}\n",
		"file":       "F",
	}, map[string]string{"pwd": "/a/c\n", "x": "file.tar gz\n", "a/c/file.tar.gz": "F", "a/dir": ""}, nil},
	{"ignored files", map[string]string{
		"Dockerfile": "FROM base\nCOPY . /c\n", ".dockerignore": "# c\n*.log\n!keep.log\nsub\n", "a.log": "", "keep.log": "", "sub/x": "", "y": "",
	}, map[string]string{"c/a.log": "-", "c/keep.log": "", "c/sub": "-", "c/y": ""}, nil},
	{"symlinks", map[string]string{
		"Dockerfile": "FROM base\nRUN mkdir -p /real && ln -s /real /abs && ln -s ../../../../../../real /dots\nCOPY a /abs/a\nCOPY a /dots/b\nWORKDIR /abs/w\n",
		"a":          "A",
	}, map[string]string{"real/a": "A", "real/b": "A", "real/w": ""}, nil},
	{"hosts and devices", map[string]string{
		"Dockerfile": "FROM base\nRUN cat /etc/hosts > /hosts && ls -l /dev/null /dev/tty /dev/ptmx > /dev.txt && ! echo x > /proc/sys/kernel/hostname; ! mount -t tmpfs x /tmp && grep Seccomp: /proc/self/status > /secc && cat /proc/self/attr/current /dev/null > /dev/null 2>&1; ulimit -n > /nofile\n",
	}, map[string]string{"hosts": "127.0.0.1\tlocalhost buildkitsandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n", "secc": "Seccomp:\t2\n", "etc/hosts": "-", "etc/resolv.conf": "-"}, nil},
	{"archives", map[string]string{
		"Dockerfile": "FROM base AS t\nRUN mkdir /t && echo in > /t/in && tar -C /t -czf /t.tgz .\nFROM base\nCOPY --from=t /t.tgz /copied\nRUN --mount=from=t,target=/m tar -C /tmp -xzf /m/t.tgz\n",
	}, map[string]string{"tmp/in": "in\n"}, nil},
}

func TestLanguage(t *testing.T) {
	b := newRealBuilder(t)
	for _, c := range language {
		t.Run(c.name, func(t *testing.T) {
			dest, r, err := b.tree(withBusybox(t, c.files), nil)
			if err != nil {
				t.Fatalf("%v\n%s", err, r.logs)
			}
			for f, want := range c.want {
				fi, err := os.Lstat(filepath.Join(dest, f))
				switch {
				case want == "-":
					if err == nil {
						t.Errorf("%s is there", f)
					}
				case err != nil:
					t.Error(err)
				case !fi.IsDir():
					if got, err := os.ReadFile(filepath.Join(dest, f)); string(got) != want {
						t.Errorf("%s: %q, want %q (%v)", f, got, want, err)
					}
				}
			}
			for _, w := range c.logs {
				if !strings.Contains(r.logs, w) {
					t.Errorf("no %q in %q", w, r.logs)
				}
			}
			// Nothing of it is run again.
			_, again, err := b.tree(withBusybox(t, c.files), nil)
			if err != nil {
				t.Fatal(err)
			}
			for name, cached := range again.cached {
				if strings.HasPrefix(name, "[") && !strings.HasPrefix(name, "[internal]") && !cached {
					t.Errorf("not cached: %s", name)
				}
			}
		})
	}
}

func TestOwnersModesTimes(t *testing.T) {
	b := newRealBuilder(t)
	_, r, err := b.tree(withBusybox(t, map[string]string{
		"Dockerfile": "FROM base\nCOPY --chown=7:8 --chmod=640 a /own\nCOPY --chmod=u+x,g=rw a /sym\nRUN stat -c %u:%g:%a /own /sym > /stat && ln /own /hard && touch -d '2001-02-03 04:05:06' /own && chmod 4755 /own && cat /stat\nRUN stat -c %h:%a:%y /own\n",
		"a":          "A",
	}), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range []string{"7:8:640", "0:0:764", "2:4755:2001-02-03 04:05:06"} {
		if !strings.Contains(r.logs, w) {
			t.Errorf("no %q in %q", w, r.logs)
		}
	}
}

// The metadata instructions end in the image's config.
func TestImageConfig(t *testing.T) {
	b := newRealBuilder(t)
	dir := contextDir(t, withBusybox(t, map[string]string{
		"Dockerfile": "FROM base\nMAINTAINER me\nLABEL a=b \"c d\"=e\nENV E=1\nEXPOSE 80 53/udp\nVOLUME /v\nUSER 3\nWORKDIR /w\nSTOPSIGNAL SIGINT\nHEALTHCHECK --interval=5s --start-interval=1s CMD true\nSHELL [\"/bin/sh\",\"-ec\"]\nENTRYPOINT [\"/e\"]\nCMD x y\nONBUILD RUN y\n",
	}))
	r, err := b.build(t.Context(), buildOptions{dir: dir, output: client.ExportEntry{Type: "moby", Attrs: map[string]string{"name": "docker.io/library/cfg:1"}}})
	if err != nil {
		t.Fatal(err)
	}
	img, err := b.store.Get("cfg:1")
	if err != nil {
		t.Fatal(err)
	}
	if r.resp["containerimage.digest"] != img.ID {
		t.Errorf("the client was told %s, the image is %s", r.resp["containerimage.digest"], img.ID)
	}
	c := img.Config.Config
	raw, _ := json.Marshal(c)
	if img.Config.Author != "me" || c.Labels["c d"] != "e" || c.User != "3" || c.WorkingDir != "/w" || c.StopSignal != "SIGINT" ||
		!slices.Equal(c.Entrypoint, []string{"/e"}) || !slices.Equal(c.Cmd, []string{"/bin/sh", "-ec", "x y"}) || len(c.Volumes) != 1 ||
		len(c.ExposedPorts) != 2 || c.Healthcheck == nil || !slices.Equal(c.OnBuild, []string{"RUN y"}) || !slices.Equal(c.Shell, []string{"/bin/sh", "-ec"}) {
		t.Errorf("config: %s", raw)
	}
	if len(img.Config.History) < 12 || len(img.Chain) != len(img.Config.RootFS.DiffIDs) {
		t.Errorf("history %d, chain %d", len(img.Config.History), len(img.Chain))
	}
	// Its files are where a container starts from.
	fd, err := b.snaps.MountFD(t.Context(), img.Snapshot, mountReadOnly)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
}

func TestSecrets(t *testing.T) {
	b := newRealBuilder(t)
	files := withBusybox(t, map[string]string{
		"Dockerfile": "FROM base\nRUN --mount=type=secret,id=s,target=/x/s,uid=5,mode=0444 cat /x/s && stat -c %u:%a /x/s\nRUN --mount=type=secret,id=s,env=TOKEN echo env=$TOKEN\nRUN --mount=type=secret,id=none cat /run/secrets/none || echo absent\nRUN ls /x /run 2>&1 || true\n",
	})
	dest, r, err := b.tree(files, func(o *buildOptions) {
		o.edit = func(s *client.SolveOpt) {
			s.Session = []session.Attachable{secretsprovider.FromMap(map[string][]byte{"s": []byte("hunter2\n")})}
		}
	})
	if err != nil {
		t.Fatal(err, r.logs)
	}
	for _, w := range []string{"hunter2", "5:444", "env=hunter2", "absent"} {
		if !strings.Contains(r.logs, w) {
			t.Errorf("no %q in %q", w, r.logs)
		}
	}
	filepath.WalkDir(dest, func(p string, d os.DirEntry, _ error) error {
		if d.Type().IsRegular() {
			if raw, _ := os.ReadFile(p); strings.Contains(string(raw), "hunter2") && d.Name() != "busybox" {
				t.Errorf("%s holds the secret", p)
			}
		}
		return nil
	})
	_, r, err = b.tree(map[string]string{"Dockerfile": files["Dockerfile"][:strings.Index(files["Dockerfile"], "FROM base")] +
		"FROM base\nRUN --mount=type=secret,id=must,required=true true\n", "busybox": files["busybox"]}, nil)
	if err == nil || !strings.Contains(err.Error(), "must") {
		t.Errorf("a missing secret: %v %s", err, r.logs)
	}
}

func TestFailingSteps(t *testing.T) {
	b := newRealBuilder(t)
	for _, c := range []struct {
		name, line string
		code       int
		want       string
	}{
		{"exit code", "RUN echo last words; exit 42", 42, "exit code: 42"},
		{"signal", "RUN sh -c 'kill -9 $$'; exit $?", 137, "exit code: 137"},
		{"no such program", "RUN [\"/nope\"]", 127, "/nope"},
		{"not a program", "RUN [\"/etc/passwd\"]", 126, "/etc/passwd"},
		{"no such user", "USER ghost\nRUN true", 0, "unable to find user ghost"},
		{"missing mount source", "RUN --mount=source=/nope,target=/x true", 0, "/nope"},
		{"mount on a file", "WORKDIR /etc/passwd\nRUN true", 0, "/etc/passwd"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, r, err := b.tree(withBusybox(t, map[string]string{"Dockerfile": "FROM base\n" + c.line + "\n"}), nil)
			if err == nil {
				t.Fatal("it was built")
			}
			if !strings.Contains(err.Error(), c.want) {
				t.Errorf("no %q in %v", c.want, err)
			}
			if f := explain(err).(*failedStep); f.code != c.code {
				t.Errorf("exit code %d, want %d: %v", f.code, c.code, err)
			}
			if strings.Contains(c.line, "last words") && !strings.Contains(r.logs, "last words") {
				t.Errorf("the last output was lost: %q", r.logs)
			}
		})
	}
}

func TestCancelLeavesNothing(t *testing.T) {
	b := newRealBuilder(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	stop := errors.New("that is enough")
	dir := contextDir(t, withBusybox(t, map[string]string{
		"Dockerfile": "FROM base\nRUN --network=none echo started; (setsid sleep 1000 &) ; (while :; do sleep 1; done) & trap '' TERM INT; sleep 1000\n",
	}))
	go func() {
		// The step runs when its control group has its processes.
		for ctx.Err() == nil {
			g, _ := filepath.Glob("/sys/fs/cgroup/pids" + testGroup + "/*/cgroup.procs")
			g2, _ := filepath.Glob("/sys/fs/cgroup" + testGroup + "/*/cgroup.procs")
			for _, p := range append(g, g2...) {
				if raw, _ := os.ReadFile(p); strings.Count(string(raw), "\n") >= 4 {
					cancel(stop)
				}
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	began := time.Now()
	_, err := b.build(ctx, buildOptions{dir: dir})
	if err == nil {
		t.Fatal("it was built")
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("it took %v", d)
	}
	// The clean-up of newRealBuilder looks for what is left.
	du, err := b.service.DiskUsage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range du {
		if u.InUse && strings.Contains(u.Description, "sleep 1000") {
			t.Errorf("left: %+v", u)
		}
	}
}

// A fork bomb stays in its step.
func TestForkBomb(t *testing.T) {
	b := newRealBuilder(t)
	_, r, err := b.tree(withBusybox(t, map[string]string{
		"Dockerfile": "FROM base\nRUN i=0; while [ $i -lt 400 ]; do sleep 100 & i=$((i+1)); done; echo no limit\n",
	}), nil)
	if err == nil || strings.Contains(r.logs, "no limit") || !strings.Contains(r.logs, "can't fork") {
		t.Errorf("%v %s", err, r.logs)
	}
}

func TestEntitlements(t *testing.T) {
	b := newRealBuilder(t)
	files := withBusybox(t, map[string]string{
		"Dockerfile": "FROM base\nRUN --security=insecure mount -t tmpfs x /tmp && echo mounted && grep Seccomp: /proc/self/status\n",
	})
	if _, _, err := b.tree(files, nil); err == nil || !strings.Contains(err.Error(), "security.insecure") {
		t.Errorf("an insecure step without being allowed: %v", err)
	}
	_, r, err := b.tree(files, func(o *buildOptions) { o.allow = []string{"security.insecure"} })
	if err != nil || !strings.Contains(r.logs, "mounted") || !strings.Contains(r.logs, "Seccomp:\t0") {
		t.Errorf("%v %q", err, r.logs)
	}
	host := withBusybox(t, map[string]string{"Dockerfile": "FROM base\nRUN --network=host ip link | wc -l\n"})
	if _, _, err := b.tree(host, func(o *buildOptions) { o.attrs = nil }); err == nil || !strings.Contains(err.Error(), "network.host") {
		t.Errorf("the host's network without being allowed: %v", err)
	}
	if _, r, err := b.tree(host, func(o *buildOptions) { o.attrs = nil; o.allow = []string{"network.host"} }); err != nil {
		t.Errorf("%v %q", err, r.logs)
	}
}

// Files of one step must not lead another, or us, out of the root.
func TestHostileSteps(t *testing.T) {
	b := newRealBuilder(t)
	canary := t.TempDir()
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(filepath.Join(canary, "resolv.conf"), nil, 0o600))
	must(os.WriteFile(filepath.Join(canary, "m"), nil, 0o600))
	for _, df := range []string{
		// The mount points' parents become links to the canary while mounted.
		"RUN --mount=type=tmpfs,target=/mp/m sh -c 'umount /mp/m 2>/dev/null; mv /mp /mp2; ln -s " + canary + " /mp'; true",
		"RUN rm -rf /etc && ln -s " + canary + " /etc && true",
		"RUN true",
		// A mount's source is a link to the host.
		"RUN ln -s " + canary + " /link && ln -s /proc/1/root /proclink",
		"RUN --mount=from=base2,source=/link,target=/x touch /x/pwned || true",
		"WORKDIR /link/w",
		"COPY --from=base2 /link/../../../../../../.." + canary + " /stolen/",
	} {
		b.tree(withBusybox(t, map[string]string{"Dockerfile": "FROM base AS base2\nRUN ln -s " + canary + " /link\nFROM base\n" + df + "\nRUN true\n"}), nil)
	}
	got, err := os.ReadDir(canary)
	must(err)
	var names []string
	for _, e := range got {
		names = append(names, e.Name())
	}
	if !slices.Equal(names, []string{"m", "resolv.conf"}) {
		t.Errorf("the canary's directory holds %v", names)
	}
}

// Two steps fight over a cache mount's subdirectory.
func TestSwappedMounts(t *testing.T) {
	b := newRealBuilder(t)
	canary := t.TempDir()
	must := os.WriteFile(filepath.Join(canary, "f"), []byte("host"), 0o600)
	if must != nil {
		t.Fatal(must)
	}
	swap := "FROM base\nRUN --mount=type=cache,id=race,target=/c i=0; while [ $i -lt 300 ]; do rm -rf /c/sub; ln -s " + canary + " /c/sub; rm -rf /c/sub; mkdir /c/sub; i=$((i+1)); done\n"
	use := "FROM base\n" + strings.Repeat("RUN --mount=type=cache,id=race,target=/c,source=sub cat /c/f 2>/dev/null; touch /c/pwned 2>/dev/null; true\n", 10)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var logs strings.Builder
	for _, df := range []string{swap, use, use} {
		wg.Go(func() {
			_, r, _ := b.tree(withBusybox(t, map[string]string{"Dockerfile": df}), func(o *buildOptions) { o.attrs["no-cache"] = "" })
			mu.Lock()
			defer mu.Unlock()
			logs.WriteString(r.logs)
		})
	}
	wg.Wait()
	if strings.Contains(logs.String(), "host") {
		t.Error("a file of the host was read")
	}
	if e, _ := os.ReadDir(canary); len(e) != 1 {
		t.Errorf("the canary's directory holds %v", e)
	}
}

// What an earlier engine built is still known.
func TestCacheSurvivesRestart(t *testing.T) {
	root := t.TempDir()
	files := withBusybox(t, map[string]string{"Dockerfile": "FROM base\nRUN echo x > /x\nCOPY a /a\n", "a": "A"})
	dir := contextDir(t, files)
	o := buildOptions{dir: dir, attrs: map[string]string{"force-network-mode": "none"},
		output: client.ExportEntry{Type: "moby", Attrs: map[string]string{"name": "docker.io/library/again:1"}}}
	b := openReal(t, root)
	first, err := b.build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	b.stop()

	b = openReal(t, root)
	second, err := b.build(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for name, cached := range second.cached {
		if strings.HasPrefix(name, "[") && !strings.HasPrefix(name, "[internal]") && !cached {
			t.Errorf("not cached: %s", name)
		}
	}
	if first.resp["containerimage.digest"] != second.resp["containerimage.digest"] {
		t.Error("the images differ")
	}
	// The image can go while its layers are cache, and come back from there.
	if _, err := b.store.Remove(t.Context(), "again:1", removeForce); err != nil {
		t.Fatal(err)
	}
	if _, err := b.build(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	p, err := b.service.Prune(t.Context(), PruneRequest{All: true})
	if err != nil || len(p.IDs) == 0 {
		t.Fatalf("%v %v", p, err)
	}
	if _, err := b.store.Get("again:1"); err != nil {
		t.Errorf("pruning took the image along: %v", err)
	}
	child, err := b.build(t.Context(), buildOptions{dir: contextDir(t, map[string]string{"Dockerfile": "FROM again:1\nRUN cat /x /a\n"}),
		attrs: map[string]string{"force-network-mode": "none"}})
	if err != nil || !strings.Contains(child.logs, "x\n") {
		t.Errorf("a build from an image of which the cache is gone: %v", err)
	}
	if _, err := b.service.Prune(t.Context(), PruneRequest{All: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.store.Remove(t.Context(), "again:1", removeForce); err != nil {
		t.Fatal(err)
	}
	b.c.refs.Close()
	if n, _ := b.snaps.Names(""); len(n) != 0 {
		t.Errorf("snapshots left: %v", n)
	}
}
