package engineapi

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/testenv"
)

// notPublished are operations that we have and the published description has
// not, each with its reason.
var notPublished = map[string]string{
	"POST /build/cancel":                   "moby serves it, and docker build uses it at Ctrl-C",
	"POST /grpc":                           "moby serves it for BuildKit's clients",
	"GET /containers/{}/checkpoints":       "moby serves it under its experimental flag",
	"POST /containers/{}/checkpoints":      "moby serves it under its experimental flag",
	"DELETE /containers/{}/checkpoints/{}": "moby serves it under its experimental flag",
	"DELETE /containers/{}/{}":             "moby takes a link's name, CONTAINER/ALIAS, for that of a container",
	"POST /onggi/v1/run":                   "ours",
	"POST /onggi/v1/exec":                  "ours",
	"GET /onggi/v1/build/why":              "ours",
	"POST /onggi/v1/build/directories":     "ours",
}

var wildcard = regexp.MustCompile(`\{[^}]*\}`)

// swagger lists the operations of moby's published description.
func swagger(t *testing.T) map[string]bool {
	t.Helper()
	out, err := exec.Command(testenv.NeedProgram(t, "go"), "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Skipf("go list: %v", err)
	}
	f, err := os.Open(filepath.Join(strings.TrimSpace(string(out)), "swagger.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ops := map[string]bool{}
	path, inPaths := "", false
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		line := sc.Text()
		switch {
		case line == "paths:":
			inPaths = true
		case inPaths && strings.HasPrefix(line, "  /"):
			path = wildcard.ReplaceAllString(strings.TrimSuffix(strings.TrimSpace(line), ":"), "{}")
		case inPaths && strings.HasPrefix(line, "    ") && !strings.HasPrefix(line, "     "):
			m := strings.ToUpper(strings.TrimSuffix(strings.TrimSpace(line), ":"))
			if slices.Contains([]string{"GET", "HEAD", "POST", "PUT", "DELETE"}, m) {
				ops[m+" "+path] = true
			}
		}
	}
	if len(ops) < 100 {
		t.Fatalf("only %d operations read from swagger.yaml", len(ops))
	}
	return ops
}

// The route table has every operation of the published API, and no other
// without a reason.
func TestRoutesAgainstSwagger(t *testing.T) {
	published := swagger(t)
	ours := map[string]bool{}
	for _, r := range routes {
		k := r.method + " " + wildcard.ReplaceAllString(r.path, "{}")
		if ours[k] {
			t.Errorf("%s is there twice", k)
		}
		ours[k] = true
		if _, ok := parseVersion(r.since); !ok || r.handle == nil {
			t.Errorf("%s: since %q", k, r.since)
		}
		if !published[k] && notPublished[k] == "" {
			t.Errorf("%s is not in the published API, and no reason is given", k)
		}
	}
	for k := range published {
		if !ours[k] {
			t.Errorf("missing: %s", k)
		}
	}
}

func TestMatch(t *testing.T) {
	tr := newTree(routes)
	for _, c := range []struct{ method, path, want, key, value string }{
		{"GET", "/containers/json", "/containers/json", "", ""},
		{"GET", "/containers/web/json", "/containers/{id...}/json", "id", "web"},
		{"GET", "/containers/web/db/json", "/containers/{id...}/json", "id", "web/db"}, // a link
		{"GET", "/images/json", "/images/json", "", ""},
		{"GET", "/images/json/json", "/images/{name...}/json", "name", "json"},
		{"GET", "/images/quay.io/a/b:tag/json", "/images/{name...}/json", "name", "quay.io/a/b:tag"},
		{"DELETE", "/images/localhost:5000/a", "/images/{name...}", "name", "localhost:5000/a"},
		{"POST", "/images/a/b/push", "/images/{name...}/push", "name", "a/b"},
		{"GET", "/images/get", "/images/get", "", ""},
		{"GET", "/networks/", "/networks", "", ""},
		{"GET", "/plugins/vendor/x:latest/json", "/plugins/{name...}/json", "name", "vendor/x:latest"},
	} {
		r, v, _ := tr.find(c.method, c.path)
		if r == nil || r.path != c.want || c.key != "" && v[c.key] != c.value {
			t.Errorf("%s %s: %+v %v", c.method, c.path, r, v)
		}
	}
	for _, p := range []string{"/", "", "/containers", "/containers//json", "/images", "/nothing", "/containers/a/b/top"} {
		if r, _, _ := tr.find("GET", p); r != nil {
			t.Errorf("%q found %s", p, r.path)
		}
	}
	if _, _, known := tr.find("PATCH", "/containers/json"); !known {
		t.Error("a known path with another method is not known")
	}
}
