package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
)

// add imports a small image of its own content.
func (e *engine) add(name string, changes ...string) Image {
	e.t.Helper()
	img, err := e.Import(e.t.Context(), bytes.NewReader(tarOf(file{name: "id", body: name + strings.Join(changes, " ")})), ImportRequest{Ref: parse(e.t, name), Changes: changes})
	if err != nil {
		e.t.Fatal(err)
	}
	return img
}

func users(list ...string) func(string) []string { return func(string) []string { return list } }

func text(list []Removed) string {
	var out []string
	for _, r := range list {
		switch {
		case r.Untagged != "":
			out = append(out, "-"+r.Untagged)
		default:
			out = append(out, "x")
		}
	}
	return strings.Join(out, " ")
}

// What `rmi` does, case by case, as Docker does it.
func TestRemove(t *testing.T) {
	for name, tt := range map[string]struct {
		tags    []string
		remove  string // "ID" and "SHORT" stand for the image's
		o       RemoveOptions
		want    string
		wantErr string
		left    bool
	}{
		"last name":                   {[]string{"a:1"}, "a:1", RemoveOptions{}, "-a:1 x x", "", false},
		"one of two":                  {[]string{"a:1", "a:2"}, "a:1", RemoveOptions{}, "-a:1", "", true},
		"by ID":                       {[]string{"a:1"}, "ID", RemoveOptions{}, "-a:1 x x", "", false},
		"by short ID":                 {[]string{"a:1"}, "SHORT", RemoveOptions{}, "-a:1 x x", "", false},
		"by ID, two repositories":     {[]string{"a:1", "b:1"}, "ID", RemoveOptions{}, "", "must be forced", true},
		"by ID, forced":               {[]string{"a:1", "b:1"}, "ID", RemoveOptions{Force: true}, "-a:1 -b:1 x x", "", false},
		"used by stopped":             {[]string{"a:1"}, "a:1", RemoveOptions{InUse: users("c1")}, "", "must force", true},
		"used by stopped, forced":     {[]string{"a:1"}, "a:1", RemoveOptions{InUse: users("c1"), Force: true}, "-a:1 x x", "", false},
		"used by stopped, two names":  {[]string{"a:1", "b:1"}, "a:1", RemoveOptions{InUse: users("c1")}, "-a:1", "", true},
		"used by stopped, by ID":      {[]string{"a:1"}, "ID", RemoveOptions{InUse: users("c1")}, "", "stopped container c1", true},
		"used by running, by ID":      {[]string{"a:1"}, "ID", RemoveOptions{InUse: users("c1 (running)"), Force: true}, "", "cannot be forced", true},
		"used by running, forced":     {[]string{"a:1"}, "a:1", RemoveOptions{InUse: users("c1 (running)"), Force: true}, "-a:1", "", true},
		"unknown":                     {[]string{"a:1"}, "a:2", RemoveOptions{}, "", "No such image: a:2", true},
		"full name":                   {[]string{"a:1"}, "docker.io/library/a:1", RemoveOptions{}, "-a:1 x x", "", false},
		"default tag":                 {[]string{"a:latest"}, "a", RemoveOptions{}, "-a:latest x x", "", false},
		"name of hexadecimal letters": {[]string{"cafe:latest"}, "cafe", RemoveOptions{}, "-cafe:latest x x", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEngine(t)
			img := e.add(tt.tags[0])
			for _, x := range tt.tags[1:] {
				e.tag(img.ID, x)
			}
			arg := map[string]string{"ID": img.ID, "SHORT": img.ID[7:19]}[tt.remove]
			if arg == "" {
				arg = tt.remove
			}
			got, err := e.Remove(t.Context(), arg, tt.o)
			if text(got) != tt.want || (err == nil) != (tt.wantErr == "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("got %q, %v", text(got), err)
			}
			if err != nil && tt.wantErr != "No such image: a:2" && (!errdefs.Is(err, errdefs.Conflict) || errdefs.HintOf(err) == "") {
				t.Errorf("kind %v, hint %q", errdefs.KindOf(err), errdefs.HintOf(err))
			}
			if _, err := e.Get(img.ID); (err == nil) != tt.left {
				t.Errorf("afterwards: %v", err)
			}
			if r := e.residue(); len(r) > 0 {
				t.Errorf("left: %v", r)
			}
		})
	}
}

// The files of a container survive its image, and go with the container.
func TestForcedRemovalUnderAContainer(t *testing.T) {
	e := newEngine(t)
	img := e.add("a:1")
	if err := e.snaps.Prepare(t.Context(), "container", img.Snapshot); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Remove(t.Context(), "a:1", RemoveOptions{Force: true, InUse: users("c")}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.snaps.Dirs("container"); err != nil {
		t.Errorf("the container lost its root: %v", err)
	}
	e.restart()
	if _, err := e.snaps.Dirs("container"); err != nil {
		t.Errorf("after a restart the container has lost its root: %v", err)
	}
	if err := e.snaps.Remove(t.Context(), "container"); err != nil {
		t.Fatal(err)
	}
	e.Collect(t.Context())
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
}

func TestListAndFilters(t *testing.T) {
	e := newEngine(t)
	one := e.add("team/one:v1", "LABEL kind=a", "LABEL only=1")
	time.Sleep(2 * time.Millisecond)
	e.add("two:v1", "LABEL kind=b")
	time.Sleep(2 * time.Millisecond)
	three := e.add("host.example:5000/three:v1")
	e.tag(one.ID, "one-more:x")
	nameless, err := e.Import(t.Context(), bytes.NewReader(tarOf(file{name: "z"})), ImportRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for want, f := range map[string]map[string][]string{
		"team/one two three ''":  {},
		"''":                     {"dangling": {"true"}},
		"team/one two three":     {"dangling": {"false"}},
		"team/one two":           {"label": {"kind"}},
		"team/one":               {"label": {"kind=a"}},
		"two three ''":           {"label!": {"kind=a"}},
		"two":                    {"reference": {"tw*"}},
		"team/one ":              {"reference": {"team/*"}},
		"team/one  ":             {"reference": {"one-more"}},
		"three":                  {"reference": {"host.example:5000/three:v1"}},
		"team/one two ":          {"before": {"host.example:5000/three:v1"}},
		"three ''":               {"since": {"two:v1"}},
		"three ":                 {"id": {three.ID[7:20]}},
		" ":                      {"until": {"24h"}},
		"team/one two three '' ": {"until": {fmt.Sprint(time.Now().Unix() + 100)}},
	} {
		list, err := e.List(ListOptions{Filters: f})
		if err != nil {
			t.Errorf("%v: %v", f, err)
			continue
		}
		got := map[string]bool{}
		for _, img := range list {
			switch {
			case img.ID == one.ID:
				got["team/one"] = true
			case img.ID == nameless.ID:
				got["''"] = true
			case img.ID == three.ID:
				got["three"] = true
			default:
				got["two"] = true
			}
		}
		if len(got) != len(strings.Fields(want)) {
			t.Errorf("%v: %v, want %s", f, got, want)
		}
		for _, w := range strings.Fields(want) {
			if !got[w] {
				t.Errorf("%v: %v, want %s", f, got, want)
			}
		}
	}
	list, _ := e.List(ListOptions{Filters: map[string][]string{"reference": {"one-more"}}})
	if len(list) != 1 || fmt.Sprint(list[0].RepoTags) != "[one-more:x]" {
		t.Errorf("names beside the filter: %+v", list)
	}
	for _, f := range []map[string][]string{{"x": {"y"}}, {"dangling": {"maybe"}}, {"until": {"soon"}}, {"reference": {"["}}, {"before": {"nothing"}}} {
		if _, err := e.List(ListOptions{Filters: f}); err == nil {
			t.Errorf("%v was taken", f)
		}
	}
	u := e.Usage(nil)
	if u.Layers == 0 || u.Unique[one.ID] != one.Size || u.Shared[one.ID] != 0 {
		t.Errorf("%+v", u)
	}
	if with := e.Usage(func(id string) bool { return id == one.ID }); u.Unused != u.Layers || with.Unused != u.Layers-one.Size {
		t.Errorf("nothing is used: %+v; one image of %d bytes is: %+v", u, one.Size, with)
	}
	// Prune: the nameless one, then all that nothing uses.
	rep, err := e.Prune(t.Context(), PruneOptions{})
	if err != nil || len(rep.Removed) != 2 || rep.Removed[0].Deleted != nameless.ID {
		t.Errorf("%+v, %v", rep, err)
	}
	rep, err = e.Prune(t.Context(), PruneOptions{Filters: map[string][]string{"dangling": {"false"}}, InUse: func(id string) []string {
		if id == three.ID {
			return []string{"c"}
		}
		return nil
	}})
	if err != nil || rep.Freed == 0 {
		t.Errorf("%+v, %v", rep, err)
	}
	if list, _ := e.List(ListOptions{All: true}); len(list) != 1 || list[0].ID != three.ID {
		t.Errorf("%+v", list)
	}
}

// Of an image in use a prune of everything takes the names that nobody used.
func TestPruneNames(t *testing.T) {
	for used, want := range map[string][]string{"app:b": {"app:b"}, "app": {"app:latest"}, "an ID": {"app:latest"}} {
		e := newEngine(t)
		img := e.add("app:a")
		e.tag(img.ID, "app:b")
		e.tag(img.ID, "app:latest")
		rep, err := e.Prune(t.Context(), PruneOptions{
			Filters: map[string][]string{"dangling": {"false"}},
			InUse:   func(string) []string { return []string{"c"} },
			UsedAs:  func(string) []string { return []string{used} },
		})
		got, gerr := e.Get(img.ID)
		if err != nil || gerr != nil || len(rep.Removed) != 2 || !slices.Equal(got.RepoTags, want) {
			t.Errorf("used as %s: %v left, %+v, %v %v", used, got.RepoTags, rep.Removed, err, gerr)
		}
	}
}

func TestFinding(t *testing.T) {
	e := newEngine(t)
	img := e.add("team/app:v1")
	for _, n := range []string{"team/app:v1", "docker.io/team/app:v1", img.ID, img.ID[7:], img.ID[7:10], img.ID[:20]} {
		if got, err := e.Get(n); err != nil || got.ID != img.ID {
			t.Errorf("%s: %v", n, err)
		}
	}
	d := "sha256:" + strings.Repeat("0", 64)
	for _, n := range []string{"team/app", "team/app:v2", "app:v1", d, strings.Repeat("0", 64), "team/app@" + d, "team/app:v1@" + d, "team/app@" + img.ID, "UPPER", "", "a b"} {
		if got, err := e.Get(n); err == nil {
			t.Errorf("%q found %s", n, got.ID)
		} else if k := errdefs.KindOf(err); k != errdefs.NotFound && k != errdefs.Invalid {
			t.Errorf("%q: kind %v", n, k)
		}
	}
	if err := e.Tag(t.Context(), "nothing", parse(t, "x")); !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("tag of nothing: %v", err)
	}
	if err := e.Tag(t.Context(), img.ID, parse(t, "x@"+d)); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("a tag with a digest: %v", err)
	}
	// A tag moves.
	other := e.add("other:1")
	e.tag(other.ID, "team/app:v1")
	if got, _ := e.Get("team/app:v1"); got.ID != other.ID {
		t.Errorf("the tag did not move: %s", got.ID)
	}
	if got, err := e.Get(img.ID); err != nil || len(got.RepoTags) != 0 {
		t.Errorf("%v, %v", got.RepoTags, err)
	}
}

// What a crash in the middle of a pull leaves is gone after the next start.
func TestSweepAfterACrash(t *testing.T) {
	e := newEngine(t)
	img := e.add("keep:1")
	ctx := context.Background()
	if err := e.snaps.Prepare(ctx, activePrefix+"crashed", img.Snapshot); err != nil {
		t.Fatal(err)
	}
	os.WriteFile(filepath.Join(e.o.Dir, "split", ".image-crashed"), []byte("x"), 0o600)
	// A layer of an image that never came to be.
	u, err := e.unpack(ctx, img.Snapshot, source{open: readerOf(tarOf(file{name: "x"}))})
	if err != nil {
		t.Fatal(err)
	}
	chain := ocispec.ChainID([]ocispec.Digest{img.Config.RootFS.DiffIDs[0], u.applied.DiffID}).String()
	if _, err := e.settle(ctx, u, chain); err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(filepath.Join(e.o.Dir, "load-crashed"), 0o700)
	e.restart()
	if r := e.residue(); len(r) > 0 {
		t.Errorf("left: %v", r)
	}
	if left, _ := filepath.Glob(filepath.Join(e.o.Dir, "load-*")); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if got, err := e.Get("keep:1"); err != nil || got.Size != img.Size {
		t.Errorf("%v", err)
	}
}
