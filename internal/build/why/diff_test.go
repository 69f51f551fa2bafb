package why

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/api"
)

// sample is a build of two stages, in which everything was cached.
func sample() *Build {
	return &Build{
		Ref:     "new",
		Sources: map[string]Files{"context": {"src": "d0", "src/a": "d1", "src/b": "d2", "README": "d3"}},
		Steps: []Step{
			{Name: "[base 1/2] FROM alpine:3@sha256:aa", Source: true, Base: "sha256:aa", State: api.StepUsed},
			{Name: "[base 2/2] RUN echo $X", Command: "echo $X", Args: map[string]string{"X": "1"}, Inputs: []Input{{Step: "[base 1/2] FROM alpine:3@sha256:aa"}}, State: api.StepCached},
			{Name: "[stage-1 1/2] COPY src /src", Command: "copy /src /src", Inputs: []Input{{Step: "[base 2/2] RUN echo $X"}, {Local: "context", Path: "/src"}}, State: api.StepCached},
			{Name: "[stage-1 2/2] RUN make", Command: "make", Options: map[string]string{"user": "0"}, Inputs: []Input{{Step: "[stage-1 1/2] COPY src /src"}}, State: api.StepCached},
		},
	}
}

func TestDiff(t *testing.T) {
	const (
		from = "[base 1/2] FROM alpine:3@sha256:aa"
		echo = "[base 2/2] RUN echo $X"
		copy = "[stage-1 1/2] COPY src /src"
		run  = "[stage-1 2/2] RUN make"
	)
	ran := func(b *Build, steps ...int) {
		for _, i := range steps {
			b.Steps[i].State = api.StepRun
		}
	}
	for name, c := range map[string]struct {
		old, new func(b *Build)
		none     bool // no build before
		want     map[string][]string
	}{
		"nothing has changed": {},
		"the first build":     {none: true, new: func(b *Build) { ran(b, 1, 2, 3) }},
		"a file": {
			new: func(b *Build) { b.Sources["context"]["src/b"] = "e2"; ran(b, 2, 3) },
			want: map[string][]string{
				copy: {"file src/b: d2 → e2"},
				run:  {"builds on a step that ran: " + copy},
			},
		},
		"files come and go": {
			new: func(b *Build) {
				b.Sources["context"]["src/c"] = "e3"
				delete(b.Sources["context"], "src/a")
				ran(b, 2)
			},
			want: map[string][]string{copy: {"file src/a: gone, was d1", "file src/c: new, e3"}},
		},
		"a file that the step does not take": {
			new:  func(b *Build) { b.Sources["context"]["README"] = "e"; ran(b, 2) },
			want: map[string][]string{copy: {"no input has changed; its result was not in the cache any more"}},
		},
		"an argument": {
			new: func(b *Build) { b.Steps[1].Args = map[string]string{"X": "2", "Y": ""}; ran(b, 1) },
			want: map[string][]string{
				echo: {"arg X: 1 → 2", `arg Y: new, ""`},
			},
		},
		"an option": {
			new:  func(b *Build) { b.Steps[3].Options = map[string]string{"network": "none"}; ran(b, 3) },
			want: map[string][]string{run: {"option network: new, none", "option user: gone, was 0"}},
		},
		"the command": {
			new: func(b *Build) {
				b.Steps[3].Name, b.Steps[3].Command = "[stage-1 2/2] RUN make all", "make all"
				ran(b, 3)
			},
			want: map[string][]string{"[stage-1 2/2] RUN make all": {"command: make → make all"}},
		},
		"the base image": {
			new: func(b *Build) {
				b.Steps[0].Name, b.Steps[0].Base = "[base 1/2] FROM alpine:3@sha256:bb", "sha256:bb"
				b.Steps[1].Inputs[0].Step = b.Steps[0].Name
				ran(b, 1)
			},
			want: map[string][]string{
				"[base 1/2] FROM alpine:3@sha256:bb": {"base alpine:3: sha256:aa → sha256:bb"},
				echo:                                 {"base alpine:3: sha256:aa → sha256:bb"},
			},
		},
		"a step between": {
			new: func(b *Build) {
				b.Steps[3].Inputs[0].Step = "[stage-1 2/3] RUN configure"
				b.Steps = slices.Insert(b.Steps, 3, Step{Name: "[stage-1 2/3] RUN configure", Command: "configure", State: api.StepRun})
				ran(b, 4)
			},
			want: map[string][]string{
				"[stage-1 2/3] RUN configure": {"new: the build before had no such step"},
				run:                           {"builds on a step that ran: [stage-1 2/3] RUN configure"},
			},
		},
		"a step less": {
			new: func(b *Build) {
				b.Steps = slices.Delete(b.Steps, 2, 3)
				b.Steps[2].Inputs[0].Step = echo
				ran(b, 2)
			},
			want: map[string][]string{run: {"comes after another step: " + echo + ", before " + copy}},
		},
		"no cache": {
			new:  func(b *Build) { b.NoCache = []string{"base"}; ran(b, 1, 2) },
			want: map[string][]string{echo: {"asked for: --no-cache"}, copy: {"builds on a step that ran: " + echo}},
		},
		"it failed before": {
			old:  func(b *Build) { b.Steps[3].State = api.StepFailed },
			new:  func(b *Build) { ran(b, 3) },
			want: map[string][]string{run: {"it failed the last time"}},
		},
	} {
		old, b := sample(), sample()
		old.Ref = "old"
		if c.old != nil {
			c.old(old)
		}
		if c.none {
			old = nil
		}
		if c.new != nil {
			c.new(b)
		}
		got := map[string][]string{}
		w := Diff(old, b)
		for _, s := range w.Steps {
			for _, x := range s.Changes {
				got[s.Name] = append(got[s.Name], x.String())
			}
		}
		if len(got)+len(c.want) > 0 && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\n%q\nwant\n%q", name, got, c.want)
		}
		if (w.ComparedTo == "old") == c.none {
			t.Errorf("%s: compared to %q", name, w.ComparedTo)
		}
	}
}

func TestManyChangesAreBounded(t *testing.T) {
	old, b := sample(), sample()
	for i := range 1000 {
		b.Sources["context"][fmt.Sprintf("src/f%03d", i)] = "x"
	}
	b.Steps[2].State = api.StepRun
	s := Diff(old, b).Steps[2]
	if len(s.Changes) != maxChanges || s.More != 1000-maxChanges {
		t.Errorf("%d changes and %d more", len(s.Changes), s.More)
	}
}

func TestTakes(t *testing.T) {
	for _, c := range []struct {
		in   Input
		file string
		want bool
	}{
		{Input{Path: "/"}, "a/b", true},
		{Input{Path: "/a"}, "a", true},
		{Input{Path: "/a"}, "a/b", true},
		{Input{Path: "/a"}, "ab", false},
		{Input{Path: "/*.go", Wild: true}, "x.go", true},
		{Input{Path: "/*.go", Wild: true}, "d/x.go", false},
		{Input{Path: "/d*", Wild: true}, "dir/x.go", true},
		{Input{Path: "/a", Except: []string{"*.log"}}, "a/x.log", false},
		{Input{Path: "/a", Except: []string{"*.log"}}, "a/x", true},
		{Input{Path: "/", Only: []string{"*.mod"}}, "go.mod", true},
		{Input{Path: "/", Only: []string{"*.mod"}}, "go.sum", false},
		{Input{Path: "/[", Wild: true}, "x", false},
	} {
		if got := c.in.takes(c.file); got != c.want {
			t.Errorf("%+v takes %s: %v", c.in, c.file, got)
		}
	}
}

// A build that fails does not make the next one forget the steps behind.
func TestFailedBuildKeepsWhatItDidNotReach(t *testing.T) {
	old, b := sample(), sample()
	b.Error, b.Steps = "exit code: 1", b.Steps[:2]
	b.Steps[1].State, b.Sources = api.StepFailed, nil
	kept := carry(old, b)
	var names []string
	for _, s := range kept.Steps {
		names = append(names, textOf(s.Name))
	}
	if got := strings.Join(names, "|"); got != "FROM alpine:3|RUN echo $X|COPY src /src|RUN make" {
		t.Error(got)
	}
	if !maps.Equal(kept.Sources["context"], old.Sources["context"]) {
		t.Error("the files are forgotten")
	}
	if kept.Steps[1].State != api.StepFailed {
		t.Error("the failure is forgotten")
	}
}

func TestLastBuildsAreBoundedOnDisk(t *testing.T) {
	dir := t.TempDir()
	r, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxKeys + 5 {
		r.save(fmt.Sprintf("key%d", i), sample())
	}
	r2, _ := New(dir)
	if b := r2.loadLocked(fmt.Sprintf("key%d", maxKeys+4)); b == nil || !reflect.DeepEqual(b.Sources, sample().Sources) || len(b.Steps) != 4 {
		t.Errorf("read back: %+v", b)
	}
	n := 0
	for i := range maxKeys + 5 {
		if r2.loadLocked(fmt.Sprintf("key%d", i)) != nil {
			n++
		}
	}
	if n > maxKeys {
		t.Errorf("%d builds are kept", n)
	}
}

func TestSignals(t *testing.T) {
	for code, want := range map[int]string{0: "", 1: "", 128: "", 137: "SIGKILL", 143: "SIGTERM", 150: "signal 22", 255: ""} {
		if got := signalOf(code); got != want {
			t.Errorf("%d: %q", code, got)
		}
	}
}

func FuzzNames(f *testing.F) {
	f.Add("[stage 2/4] RUN x")
	f.Add("[linux/amd64 1/1] FROM a@sha256:b")
	f.Fuzz(func(t *testing.T, name string) { stageOf(name); textOf(name); verb(name); imageName(name) })
}
