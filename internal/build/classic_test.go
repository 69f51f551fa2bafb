package build

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"strings"
	"testing"
)

// tarOf makes a tar of file name → content.
func tarOf(t testing.TB, files map[string]string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Uid: 1234}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// classic runs a classic build, and returns what was emitted.
func (b *builder) classic(r ClassicRequest) ([]Message, error) {
	s := &Service{built: b.c}
	var out []Message
	err := s.Classic(b.t.Context(), r, func(m Message) error { out = append(out, m); return nil })
	return out, err
}

func streams(ms []Message) string {
	var b strings.Builder
	for _, m := range ms {
		b.WriteString(m.Stream)
	}
	return b.String()
}

// A file of the same size and time, but not the same, is another file.
func TestClassicTarsDiffer(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	ids := map[string]bool{}
	for _, content := range []string{"foo", "bar"} {
		ms, err := b.classic(ClassicRequest{Version: "1", Tar: tarOf(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": content})})
		if err != nil {
			t.Fatal(err, ms)
		}
		ids[streams(ms[len(ms)-1:])] = true
	}
	if len(ids) != 2 {
		t.Errorf("%v", ids)
	}
}

func TestClassicTar(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	arg := "v"
	ms, err := b.classic(ClassicRequest{
		Version: "1", Tags: []string{"classic"}, BuildArgs: map[string]*string{"A": &arg}, Labels: map[string]string{"l": "m"},
		Tar: tarOf(t, map[string]string{"Dockerfile": "FROM scratch\nARG A\nRUN echo $A\nCOPY f /f\n", "f": "x"}),
	})
	if err != nil {
		t.Fatal(err, ms)
	}
	text := streams(ms)
	for _, want := range []string{"Step 1/2 : RUN echo v\n ---> Running in ", "ran [/bin/sh -c echo $A]", "\n ---> Removed intermediate container ", "Step 2/2 : COPY f /f\n ---> ", "Successfully built ", "Successfully tagged classic:latest\n"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	var id string
	for _, m := range ms {
		if a, ok := m.Aux.(builtImage); ok {
			id = a.ID
		}
	}
	if !strings.HasPrefix(id, "sha256:") {
		t.Errorf("image id %q", id)
	}
	img, err := b.images.Get(t.Context(), "docker.io/library/classic:latest", b.c.worker.Platforms(false)[0])
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(img.Config), `"l":"m"`) {
		t.Errorf("label is missing: %s", img.Config)
	}
}

// A quiet build says its image's id, or everything when it fails.
func TestClassicQuiet(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	for _, c := range []struct {
		dockerfile string
		fails      bool
	}{{"FROM scratch\nCOPY f /f\n", false}, {"FROM scratch\nCOPY f /f\nCOPY none /\n", true}} {
		ms, err := b.classic(ClassicRequest{Version: "1", Quiet: true, Tar: tarOf(t, map[string]string{"Dockerfile": c.dockerfile, "f": "x"})})
		switch {
		case c.fails && (err == nil || len(ms) < 2 || ms[len(ms)-1].Error == "" || !strings.Contains(streams(ms), "Step ")):
			t.Errorf("%v: %+v", err, ms)
		case !c.fails && (err != nil || len(ms) != 1 || !strings.HasPrefix(ms[0].Stream, "sha256:")):
			t.Errorf("%v: %+v", err, ms)
		}
	}
}

func TestStepLine(t *testing.T) {
	for name, want := range map[string]string{
		"[1/2] FROM docker.io/library/x": "Step 1/2 : FROM docker.io/library/x\n",
		"[1/2] FROM docker.io/library/x:1@sha256:77af4d6b9913e693e8d0b4b294fa62ade6054e6b2f1ffb617ac955dd63fb0182": "Step 1/2 : FROM x:1\n",
		"[a 2/3] RUN [ x ]":             "Step a 2/3 : RUN [ x ]\n",
		"[internal] load build context": "",
		"exporting to image":            "",
		"importing cache manifest":      "importing cache manifest\n",
		"[auth] x":                      "[auth] x\n",
	} {
		if got, from := stepLine(name); got != want || from != strings.Contains(name, "FROM") {
			t.Errorf("%q becomes %q, %v", name, got, from)
		}
	}
}

func TestClassicStatusMessages(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	ms, err := b.classic(ClassicRequest{Version: "2", Tar: tarOf(t, map[string]string{"Dockerfile": "FROM scratch\nCOPY f /f\n", "f": "x"})})
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]int{}
	for _, m := range ms {
		ids[m.ID]++
	}
	if ids["moby.buildkit.trace"] == 0 || ids["moby.image.id"] != 1 || ids[""] != 0 {
		t.Errorf("messages: %v", ids)
	}
}

func TestFailuresExplainThemselves(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	for _, c := range []struct {
		name  string
		files map[string]string
		code  int
		want  []string
	}{
		{"syntax", map[string]string{"Dockerfile": "FROM scratch\nRNU x\n"}, 0, []string{"Dockerfile:2", "2 | >>> RNU x", "unknown instruction: RNU"}},
		{"failing RUN", map[string]string{"Dockerfile": "FROM scratch\nENV a=b\nRUN exit 3\n"}, 3, []string{"Dockerfile:3", ">>> RUN exit 3", "exit code: 3"}},
		{"missing source", map[string]string{"Dockerfile": "FROM scratch\nCOPY nope /x\n"}, 0, []string{"Dockerfile:2", "nope", "not found"}},
		{"missing image", map[string]string{"Dockerfile": "FROM nosuchimage:1\n"}, 0, []string{"nosuchimage"}},
		{"missing Dockerfile", map[string]string{"x": ""}, 0, []string{`cannot find the Dockerfile "Dockerfile"`}},
		{"empty Dockerfile", map[string]string{"Dockerfile": ""}, 0, []string{"the Dockerfile (Dockerfile) cannot be empty"}},
		{"no instructions", map[string]string{"Dockerfile": "# nothing\n"}, 0, []string{"file with no instructions"}},
		{"unknown stage", map[string]string{"Dockerfile": "FROM scratch\nCOPY --from=7 a b\n"}, 0, []string{"7"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ms, err := b.classic(ClassicRequest{Version: "1", Tar: tarOf(t, c.files)})
			if err == nil {
				t.Fatal("it was built")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("no %q in: %v", w, err)
				}
			}
			if c.code != 0 {
				d := ms[len(ms)-1].ErrorDetail
				if d.Code != c.code {
					t.Errorf("exit code %d, want %d", d.Code, c.code)
				}
				if want := "\nThe command '/bin/sh -c exit 3' returned a non-zero code: 3"; !strings.HasSuffix(d.Message, want) {
					t.Errorf("no %q in %q", want, d.Message)
				}
			}
		})
	}
}

// The typed errors must survive the way over gRPC.
func TestErrorsOverGRPC(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	dir := contextDir(t, map[string]string{"Dockerfile": "FROM scratch\nRUN exit 3\n"})
	_, err := b.build(t.Context(), buildOptions{dir: dir})
	if err == nil {
		t.Fatal("it was built")
	}
	if src := sourceOf(err); !strings.Contains(src, "Dockerfile:2") {
		t.Errorf("the place was lost: %q in %v", src, err)
	}
	if f, ok := explain(err).(*failedStep); !ok || f.code != 3 {
		t.Errorf("the exit code was lost: %v", err)
	}
}

func TestCancelledClassicBuild(t *testing.T) {
	exec := &hangingExecutor{started: make(chan struct{})}
	b := newBuilder(t, exec)
	s := &Service{built: b.c}
	done := make(chan error, 1)
	go func() {
		done <- s.Classic(t.Context(), ClassicRequest{Version: "1", BuildID: "b1",
			Tar: tarOf(t, map[string]string{"Dockerfile": "FROM scratch\nRUN sleep\n"})}, func(Message) error { return nil })
	}()
	<-exec.started
	if err := s.Cancel("b1"); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
		t.Errorf("a cancelled build: %v", err)
	}
	if err := s.Cancel("b1"); err != nil {
		t.Errorf("cancelling twice: %v", err)
	}
}

// A client that reads its context from a pipe sends it in a second request.
func TestContextInASecondRequest(t *testing.T) {
	b := newBuilder(t, &nopExecutor{})
	s := &Service{built: b.c}
	quiet := func(Message) error { return nil }
	done := make(chan error, 1)
	go func() {
		done <- s.Classic(t.Context(), ClassicRequest{Version: "2", BuildID: "b2", Remote: "upload-request"}, quiet)
	}()
	if err := s.Classic(t.Context(), ClassicRequest{BuildID: "upload-request:b2",
		Tar: tarOf(t, map[string]string{"Dockerfile": "FROM scratch\nENV a=b\n"})}, quiet); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestClassicAttrs(t *testing.T) {
	a, err := classicAttrs(ClassicRequest{ExtraHosts: []string{"one:1.1.1.1", "two=2.2.2.2"}, Resources: map[string]string{"memory": "64"}, Ulimits: []string{"nofile=1:2"}})
	if err != nil || a["add-hosts"] != "one=1.1.1.1,two=2.2.2.2" || a["memory"] != "64" || a["ulimit"] != "nofile=1:2" {
		t.Errorf("%v %v", a, err)
	}
	for _, r := range []ClassicRequest{{ExtraHosts: []string{"nothing"}}, {NetworkMode: "mine"}} {
		if a, err := classicAttrs(r); err == nil {
			t.Errorf("%+v: %v", r, a)
		}
	}
}
