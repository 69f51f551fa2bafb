package archtest

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/onggi/onggi/"

// layer gives each package family its height. A package may import only
// strictly lower families, and its own sub-packages.
var layer = map[string]int{
	"errdefs": 0, "undo": 0,
	"reference": 1, "ocispec": 1, "api": 1,
	"linux": 2, "vfs": 2,
	"metadb": 3, "content": 3, "layer": 3, "events": 3, "logs": 3, "registry": 3,
	"snapshot": 4, "ociruntime": 4, "network": 4, "volume": 4,
	"image": 5, "monitor": 5,
	"container": 6, "build": 6,
	"swarm":     7,
	"engineapi": 8, "cri": 8, "cli": 8,

	"testenv": 0, "archtest": 9, // for tests only
}

// kernelDoors may speak to the kernel directly, each for a reason.
var kernelDoors = map[string]string{
	"linux":      "it is the door",
	"ociruntime": "it writes programs of system calls, and starts the process that runs them",
}

// banned package names say nothing about what is inside; such a drawer only grows.
var banned = map[string]string{
	"util":     "name it by what it gives",
	"utils":    "name it by what it gives",
	"common":   "name it by what it gives",
	"helper":   "name it by what it gives",
	"helpers":  "name it by what it gives",
	"shared":   "name it by what it gives",
	"misc":     "name it by what it gives",
	"manager":  "name the noun it keeps",
	"daemon":   "no god object: a service per noun, wired in cmd/onggid",
	"types":    "types live beside what they describe",
	"models":   "types live beside what they describe",
	"runtime":  "it shadows the standard library's",
	"context":  "it shadows the standard library's",
	"internal": "one internal directory is enough",
}

// onlyIn keeps heavy modules in the packages that exist to wrap them, so that
// a change of module, or of its version, touches one room.
var onlyIn = []struct {
	prefix   string
	families []string
	why      string
}{
	{"github.com/moby/buildkit", []string{"build", "engineapi"}, "BuildKit's API moves with every minor release; engineapi may mount its services only"},
	{"github.com/containerd/containerd", []string{"build", "registry", "image"}, "one registry client"},
	{"github.com/vishvananda/netlink", []string{"linux"}, "netlink is spoken by internal/linux/netlink"},
	{"github.com/google/nftables", []string{"linux"}, "nftables is spoken by internal/linux/nft"},
	{"go.opentelemetry.io", []string{"build"}, "BuildKit's traces only; nothing of ours is traced"},
	{"go.etcd.io/bbolt", []string{"build"}, "records live in metadb; only BuildKit's cache keys need bolt"},
	{"github.com/spf13/cobra", nil, "the command tree is our own, built lazily: cobra's is built whole at every start"},
}

func TestImportsGoDown(t *testing.T) {
	eachFile(t, "..", func(p string, src []byte) {
		f, err := parser.ParseFile(token.NewFileSet(), p, src, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		from := family(path.Dir(p))
		if _, ok := layer[from]; !ok {
			t.Errorf("%s: package family %q has no layer; add it to the table and to ARCHITECTURE.md", p, from)
		}
		for _, im := range f.Imports {
			imp, _ := strconv.Unquote(im.Path.Value)
			rest, ok := strings.CutPrefix(imp, module+"internal/")
			if !ok {
				checkForeign(t, p, from, imp)
				continue
			}
			if to := family(rest); to != from && layer[to] >= layer[from] {
				t.Errorf("%s (layer %d) imports %s (layer %d): imports go down only", p, layer[from], rest, layer[to])
			}
		}
	})
}

func checkForeign(t *testing.T, file, from, imp string) {
	if imp == "golang.org/x/sys/unix" && kernelDoors[from] == "" {
		t.Errorf("%s imports x/sys/unix: only internal/linux calls the kernel", file)
	}
	if imp == "os/exec" && !mayExec[from] {
		t.Errorf("%s imports os/exec: programs are started by cmd/ and %v only", file, keys(mayExec))
	}
	for _, o := range onlyIn {
		if strings.HasPrefix(imp, o.prefix) && !contains(o.families, from) {
			t.Errorf("%s imports %s, which only %v may: %s", file, imp, o.families, o.why)
		}
	}
}

// mayExec are the families that start programs: the runtime its hooks and
// init, the monitor's client the monitor, the command line its sibling
// binaries, the builder git.
var mayExec = map[string]bool{"ociruntime": true, "monitor": true, "cli": true, "build": true, "testenv": true}

func TestNoBannedNames(t *testing.T) {
	for _, root := range []string{"..", "../../cmd"} {
		fs.WalkDir(os.DirFS(root), ".", func(p string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() || d.Name() == "." || d.Name() == "testdata" {
				return err
			}
			if why, ok := banned[d.Name()]; ok {
				t.Errorf("%s/%s: banned package name: %s", root, p, why)
			}
			return nil
		})
	}
}

// The command line is started for every command: it must not link what costs
// milliseconds before main.
func TestCommandLineStaysLight(t *testing.T) {
	heavy := map[string]string{
		"net/http":                 "0.4 ms of start-up and 2 MiB; use internal/api",
		"crypto/tls":               "0.4 ms of start-up and 2 MiB; use the sibling binary onggi-tls",
		"crypto/x509":              "use the sibling binary onggi-tls",
		"text/template":            "it switches off the linker's dead-code elimination",
		"github.com/moby/buildkit": "use the sibling binary onggi-build",
		"google.golang.org/grpc":   "use the sibling binary onggi-build",
	}
	for _, root := range []string{"../cli", "../api", "../reference", "../../cmd/onggi"} {
		if _, err := os.Stat(root); err != nil {
			continue
		}
		eachFile(t, root, func(p string, src []byte) {
			f, err := parser.ParseFile(token.NewFileSet(), p, src, parser.ImportsOnly)
			if err != nil {
				t.Error(err)
				return
			}
			for _, im := range f.Imports {
				imp, _ := strconv.Unquote(im.Path.Value)
				for h, why := range heavy {
					if imp == h || strings.HasPrefix(imp, h+"/") {
						t.Errorf("%s/%s imports %s: %s", root, p, imp, why)
					}
				}
			}
		})
	}
}

// eachFile calls f with every non-test Go file under root.
func eachFile(t *testing.T, root string, f func(p string, src []byte)) {
	t.Helper()
	fsys := os.DirFS(root)
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(p, ".go") || strings.HasSuffix(p, "_test.go") {
			return err
		}
		src, err := fs.ReadFile(fsys, p)
		if err == nil {
			f(p, src)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func family(dir string) string { f, _, _ := strings.Cut(dir, "/"); return f }

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

func keys(m map[string]bool) []string {
	var out []string
	for k := range m {
		out = append(out, k)
	}
	return out
}
