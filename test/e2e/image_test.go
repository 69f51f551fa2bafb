package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/testenv/registrytest"
)

var digestPattern = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// An image travels: from one engine through a registry that wants an account
// into another engine, and as a file; it is the same all along.
func TestImageTravels(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{Auth: registrytest.Basic})
	one, two := newEngine(t), newEngine(t)
	one.busybox()
	name := reg.Host + "/team/app:v1"
	ctx := filepath.Join(one.dir, "ctx")
	write(t, ctx, map[string]string{"Dockerfile": "FROM busybox\nRUN echo built > /made\nCOPY file /\n", "file": "copied\n"})
	one.do("build", "-q", "-t", name, ctx)
	id := one.do("images", "-q", "--no-trunc", name)

	one.refuse(1, []string{"authentication required"}, "push", name)
	if r := one.tryIn(strings.NewReader("wrong\n"), "login", "-u", registrytest.User, "--password-stdin", reg.Host); r.code == 0 {
		t.Error("logged in with a wrong password")
	}
	for _, e := range []*engine{one, two} {
		if r := e.tryIn(strings.NewReader(registrytest.Password+"\n"), "login", "-u", registrytest.User, "--password-stdin", reg.Host); r.code != 0 {
			t.Fatalf("login: %s%s", r.out, r.err)
		}
	}
	pushed := digestPattern.FindString(one.do("push", name))
	if again := digestPattern.FindString(one.do("push", name)); pushed == "" || again != pushed {
		t.Errorf("pushed %q, then %q", pushed, again)
	}
	two.do("pull", name)
	if got := two.do("images", "-q", "--no-trunc", name); got != id {
		t.Errorf("pulled %s, want %s", got, id)
	}
	if out := two.do("run", "--rm", name, "cat", "/made", "/file"); out != "built\ncopied" {
		t.Errorf("it says %q", out)
	}
	// From there to another repository: the same digest.
	two.do("tag", name, reg.Host+"/other/app:v2")
	if got := digestPattern.FindString(two.do("push", reg.Host+"/other/app:v2")); got != pushed {
		t.Errorf("pushed on as %s, want %s", got, pushed)
	}
	// As a file.
	file := filepath.Join(t.TempDir(), "saved.tar")
	two.do("save", "-o", file, name)
	one.refuse(1, []string{"does not match the specified platform (linux/s390x)"}, "rmi", "--platform", "linux/s390x", name)
	one.do("rmi", "-f", id)
	one.refuse(1, []string{"No such image"}, "history", name)
	one.refuse(1, []string{"linux/s390x"}, "load", "--platform", "linux/s390x", "-i", file)
	if out := one.do("load", "-i", file); !strings.Contains(out, "Loaded image: "+name) {
		t.Errorf("load: %s", out)
	}
	if got := one.do("images", "-q", "--no-trunc", name); got != id {
		t.Errorf("loaded %s, want %s", got, id)
	}
	if out := one.do("run", "--rm", name, "cat", "/made"); out != "built" {
		t.Errorf("it says %q", out)
	}
	// The password is nowhere in the engines' directories or logs.
	for _, e := range []*engine{one, two} {
		filepath.WalkDir(e.dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && !strings.HasPrefix(p, filepath.Join(e.dir, "config")) {
				if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), registrytest.Password) {
					t.Errorf("the password is in %s", p)
				}
			}
			return nil
		})
	}
	two.refuse(1, []string{"manifest unknown"}, "pull", reg.Host+"/team/app:none")
}
