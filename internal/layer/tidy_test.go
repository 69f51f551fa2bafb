package layer

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestTidy(t *testing.T) {
	upper, lower := t.TempDir(), t.TempDir()
	old := time.Unix(1e9, 5)
	dir := func(root, name string, mode os.FileMode) {
		p := filepath.Join(root, name)
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []string{"same/deep", "mode", "full", "later"} {
		dir(upper, n, 0o711)
		dir(lower, n, 0o711)
	}
	dir(upper, "mode", 0o700)
	dir(upper, "new", 0o711)
	for _, root := range []string{upper, lower} {
		if err := os.WriteFile(filepath.Join(root, "full/f"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, n := range []string{"same/deep", "same", "mode", "full", "later", "new", "."} {
			os.Chtimes(filepath.Join(root, n), old, old)
		}
	}
	os.Chtimes(filepath.Join(upper, "later"), old, old.Add(1))
	f, err := os.Open(upper)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Tidy(f, []string{t.TempDir(), lower}); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(upper)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := []string{"full", "later", "mode", "new"}; !slices.Equal(left, want) {
		t.Errorf("left %v, want %v", left, want)
	}
	if fi, err := f.Stat(); err != nil || !fi.ModTime().Equal(old) {
		t.Errorf("the time of the directory above: %v %v", fi.ModTime(), err)
	}
}
