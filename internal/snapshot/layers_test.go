package snapshot_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/layer"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/testenv"
)

// A change is one entry of a random layer.
type change struct {
	h    tar.Header
	body string
}

// randomLayer makes entries without two of one name, or one below a
// non-directory.
func randomLayer(rng *rand.Rand) (out []change) {
	used := map[string]byte{} // path → type
	for range 1 + rng.IntN(10) {
		parts := make([]string, 1+rng.IntN(3))
		for i := range parts {
			parts[i] = string(rune('a' + rng.IntN(3)))
		}
		name := path.Join(parts...)
		ok := used[name] == 0
		for p := path.Dir(name); p != "."; p = path.Dir(p) {
			ok = ok && (used[p] == 0 || used[p] == tar.TypeDir)
		}
		for u := range used {
			ok = ok && !strings.HasPrefix(u, name+"/")
		}
		if !ok {
			continue
		}
		c := change{h: tar.Header{Name: name, Mode: int64(0o400 + rng.IntN(0o400)), Uid: rng.IntN(3), ModTime: time.Unix(rng.Int64N(1e9), 0), Typeflag: tar.TypeReg}}
		switch rng.IntN(6) {
		case 0, 1:
			c.h.Typeflag = tar.TypeDir
		case 2:
			c.h.Typeflag, c.h.Linkname = tar.TypeSymlink, "nowhere"
		case 3:
			c.h = tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), ".wh."+path.Base(name))}
			used[name] = 'w'
		default:
			c.body = fmt.Sprint(rng.Int())
			c.h.Size = int64(len(c.body))
		}
		if used[name] == 0 {
			used[name] = c.h.Typeflag
		}
		out = append(out, c)
		if c.h.Typeflag == tar.TypeDir && rng.IntN(3) == 0 {
			out = append(out, change{h: tar.Header{Typeflag: tar.TypeReg, Name: path.Join(name, ".wh..wh..opq")}})
		}
	}
	return out
}

func pack(t *testing.T, cs []change) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, c := range cs {
		h := c.h
		must(t, w.WriteHeader(&h))
		io.WriteString(w, c.body)
	}
	must(t, w.Close())
	return &b
}

// plainly does to a plain tree what the OCI says a layer means: first what is
// removed, then what is there.
func plainly(t *testing.T, dir string, cs []change) {
	t.Helper()
	var rest []change
	for _, c := range cs {
		d, base := path.Split(c.h.Name)
		at := filepath.Join(dir, d)
		switch {
		case base == ".wh..wh..opq":
			ents, _ := os.ReadDir(at)
			for _, e := range ents {
				must(t, os.RemoveAll(filepath.Join(at, e.Name())))
			}
		case strings.HasPrefix(base, ".wh."):
			os.RemoveAll(filepath.Join(at, base[4:])) // its parent may be a file
		default:
			rest = append(rest, c)
		}
	}
	for _, c := range rest {
		for _, p := range parents(path.Dir(c.h.Name)) { // a non-directory of a lower layer gives way
			if st, err := os.Lstat(filepath.Join(dir, p)); err == nil && !st.IsDir() {
				os.Remove(filepath.Join(dir, p))
			}
		}
	}
	r, err := os.Open(dir)
	must(t, err)
	defer r.Close()
	must(t, layer.Extract(t.Context(), pack(t, rest), r, "/", layer.ExtractOptions{}))
}

func parents(p string) (out []string) {
	for ; p != "." && p != "/" && p != ""; p = path.Dir(p) {
		out = append([]string{p}, out...)
	}
	return out
}

// look describes a tree.
func look(t *testing.T, dir string) string {
	t.Helper()
	var out strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		fi, err := d.Info()
		if err != nil || rel == "." {
			return err
		}
		line := fmt.Sprintf("%s %v %d", rel, fi.Mode(), fi.Sys().(*syscall.Stat_t).Uid)
		if fi.Mode().IsRegular() {
			b, _ := os.ReadFile(p)
			line += " " + string(b)
		}
		if !fi.IsDir() { // those of implied directories depend on the order of the test
			line += fi.ModTime().UTC().Format(" 060102T150405")
		}
		out.WriteString(line + "\n")
		return nil
	}))
	return out.String()
}

// Random layers, unpacked one by one and put together by the kernel, look as
// the specification says; and again after a trip through Tar.
func TestLayersLookAsTheySay(t *testing.T) {
	testenv.NeedRoot(t)
	s := openAll(t, t.TempDir())
	defer s.close(t)
	rng := rand.New(rand.NewPCG(7, 7))
	for try := range 40 {
		plain := t.TempDir()
		parent, parent2 := "", ""
		var all [][]change
		for i := range 1 + rng.IntN(4) {
			cs := randomLayer(rng)
			all = append(all, cs)
			plainly(t, plain, cs)
			name := fmt.Sprintf("%d-%d", try, i)
			var dir string
			parent, dir = unpack(t, s.ss, name, parent, pack(t, cs))
			f, err := os.Open(dir)
			must(t, err)
			var again bytes.Buffer
			must(t, layer.Tar(t.Context(), &again, f, layer.TarOptions{}), f.Close())
			parent2, _ = unpack(t, s.ss, name+"-again", parent2, &again)
		}
		want := look(t, plain)
		for _, top := range []string{parent, parent2} {
			m, err := s.ss.MountFD(t.Context(), top, snapshot.MountOptions{})
			must(t, err)
			got := look(t, fmt.Sprintf("/proc/self/fd/%d/.", m.Fd()))
			m.Close()
			if got != want {
				for _, cs := range all {
					for _, c := range cs {
						t.Logf("%s %c", c.h.Name, c.h.Typeflag)
					}
					t.Log("--")
				}
				t.Fatalf("snapshot %s:\n%s\nwant:\n%s", top, got, want)
			}
		}
	}
}

func unpack(t *testing.T, ss *snapshot.Store, name, parent string, r io.Reader) (committed, dir string) {
	t.Helper()
	ctx := context.Background()
	must(t, ss.Prepare(ctx, name+"a", parent))
	d, err := ss.Dirs(name + "a")
	must(t, err)
	f, err := os.Open(d.Upper)
	must(t, err)
	defer f.Close()
	_, err = layer.Apply(ctx, r, f, layer.ApplyOptions{Lowers: d.Lowers})
	must(t, err, ss.Commit(ctx, name, name+"a"))
	return name, d.Upper
}
