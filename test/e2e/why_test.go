package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
)

// Each step says why it ran: the file, the argument, the base image.
func TestWhyBuild(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"Dockerfile": "FROM busybox\nARG WHO=nobody\nRUN echo $WHO >/who\nCOPY app /app\nRUN ls /app >/list\n",
		"app/one":    "1\n", "app/two": "2\n",
	})
	explain := func(args ...string) string {
		t.Helper()
		r := e.try(append([]string{"build", "-q", "--explain", "-t", "why"}, append(args, dir)...)...)
		if r.code != 0 {
			t.Fatalf("build %v: %s", args, r.err)
		}
		return r.err
	}
	has := func(text string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("no %q in\n%s", w, text)
			}
		}
	}
	has(explain(), "first build")
	if found, _ := filepath.Glob(filepath.Join(e.dir, "data/build/ext/*/onggi.hostdir.v1")); len(found) == 0 {
		t.Error("the directory was sent, not taken by its descriptor")
	}
	if got := explain(); strings.Contains(got, "run ") || strings.Count(got, "cached") != 3 {
		t.Errorf("nothing has changed:\n%s", got)
	}
	write(t, dir, map[string]string{"app/two": "22\n", "app/three": "3\n"})
	got := explain()
	has(got, "file app/two: sha256:", " → sha256:", "file app/three: new", "builds on a step that ran: [3/4] COPY app /app")
	if strings.Contains(got, "app/one") {
		t.Errorf("a file that has not changed:\n%s", got)
	}
	has(explain("--build-arg", "WHO=me"), "arg WHO: nobody → me")
	has(e.do("why", "build"), "arg WHO: nobody → me")
	has(e.do("why", "build", "why"), "arg WHO: nobody → me")
	e.do("tag", "why", "busybox") // another base under the old name
	has(explain("--build-arg", "WHO=me"), "base docker.io/library/busybox:latest: sha256:")

	// The same for machines, with the failure.
	write(t, dir, map[string]string{"Dockerfile": "FROM busybox\nRUN echo the last words; sh -c 'kill -9 $$'; exit $?\n"})
	r := e.try("build", "--progress", "json", "-t", "why", dir)
	var last struct {
		Explain struct {
			Steps []struct {
				Name, State string
				Failure     struct {
					Command, Signal, Where string
					ExitCode               int
					Output, Source         []string
				}
			}
		}
	}
	for line := range strings.Lines(r.err) {
		if strings.HasPrefix(line, `{"explain"`) {
			if err := json.Unmarshal([]byte(line), &last); err != nil {
				t.Fatal(err)
			}
		}
	}
	steps := last.Explain.Steps
	if r.code == 0 || len(steps) == 0 {
		t.Fatalf("%d: %s", r.code, r.err)
	}
	s := steps[len(steps)-1]
	if s.State != "failed" || s.Failure.Signal != "SIGKILL" || s.Failure.ExitCode != 137 || s.Failure.Where != "Dockerfile:2" ||
		!strings.Contains(s.Failure.Command, "kill -9") || strings.Join(s.Failure.Output, "|") != "the last words|Killed" || len(s.Failure.Source) == 0 {
		t.Errorf("%+v", s)
	}
	has(r.err, "killed by SIGKILL", filepath.Base("Dockerfile:2"))
	e.refuse(1, []string{"remembers none"}, "why", "build", "nonesuch")
}
