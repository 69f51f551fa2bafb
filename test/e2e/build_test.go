package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestBuild(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"Dockerfile":    "FROM busybox AS one\nRUN echo made >/made\nFROM busybox\nARG WHO=nobody\nENV GREETING=hello\nCOPY --from=one /made /made\nCOPY app /app\nRUN echo $WHO >/who\nWORKDIR /app\nCMD [\"cat\", \"/made\", \"/who\", \"text\"]\n",
		"app/text":      "text\n",
		"ignored":       "x",
		".dockerignore": "ignored\n",
	})
	e.do("build", "-t", "built:1", "--build-arg", "WHO=me", dir)
	equal(t, e.do("run", "--rm", "built:1"), "made\nme\ntext")
	equal(t, e.do("inspect", "-f", "{{.Config.WorkingDir}}", "built:1"), "/app")
	equal(t, e.do("events", "--since", "0", "--until", "0s", "--filter", "type=image", "--filter", "event=create", "--filter", "event=tag", "--format", "{{.Action}}"), "tag\ncreate\ntag")
	t.Run("cache", func(t *testing.T) {
		r := e.try("build", "--progress", "plain", "-t", "built:2", "--build-arg", "WHO=me", dir)
		if n := strings.Count(r.err, "CACHED"); r.code != 0 || n < 4 {
			t.Errorf("a rebuild without change has %d cached steps:\n%s", n, r.err)
		}
		equal(t, e.do("inspect", "-f", "{{.Id}}", "built:1"), e.do("inspect", "-f", "{{.Id}}", "built:2"))
		write(t, dir, map[string]string{"app/text": "changed\n"})
		e.do("build", "-t", "built:3", "--build-arg", "WHO=me", dir)
		equal(t, e.do("run", "--rm", "built:3"), "made\nme\nchanged")
	})
	t.Run("quiet", func(t *testing.T) {
		id := e.do("build", "-q", "-t", "built:4", dir)
		if !strings.HasPrefix(id, "sha256:") {
			t.Errorf("build -q printed %q", id)
		}
	})
	t.Run("Dockerfile with an error", func(t *testing.T) {
		bad := t.TempDir()
		write(t, bad, map[string]string{"Dockerfile": "FROM busybox\nRUM echo\n"})
		e.refuse(1, []string{"RUM", "2"}, "build", bad)
	})
	t.Run("missing COPY source", func(t *testing.T) {
		bad := t.TempDir()
		write(t, bad, map[string]string{"Dockerfile": "FROM busybox\nCOPY nothing /x\n"})
		e.refuse(1, []string{"nothing", "not found"}, "build", bad)
	})
	t.Run("failing RUN", func(t *testing.T) {
		bad := t.TempDir()
		write(t, bad, map[string]string{"Dockerfile": "FROM busybox\nRUN echo the last words; exit 42\n"})
		e.refuse(1, []string{"exit code: 42", "the last words"}, "build", bad)
	})
	t.Run("no Dockerfile", func(t *testing.T) {
		e.refuse(1, []string{"Dockerfile"}, "build", t.TempDir())
		e.refuse(1, []string{"not", "there"}, "build", filepath.Join(t.TempDir(), "not", "there"))
	})
	if left, _ := filepath.Glob(filepath.Join(e.dir, "data/build/mnt/*")); len(left) > 0 {
		t.Errorf("builds leave %v", left)
	}
}
