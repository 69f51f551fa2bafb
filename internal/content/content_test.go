package content_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/content"
	"github.com/onggi/onggi/internal/content/contenttest"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/vfs"
)

func open(t testing.TB, f vfs.FS) *content.Store {
	t.Helper()
	s, err := content.OpenFS(f)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestContract(t *testing.T) {
	t.Run("dir", func(t *testing.T) {
		contenttest.Run(t, func(t *testing.T) *content.Store { return open(t, vfs.Dir(t.TempDir())) })
	})
	t.Run("mem", func(t *testing.T) {
		contenttest.Run(t, func(t *testing.T) *content.Store { return open(t, vfs.NewMem()) })
	})
}

// The order of disk operations is what makes a blob durable.
func TestCommitTranscript(t *testing.T) {
	var got strings.Builder
	s := open(t, vfs.Hook{FS: vfs.NewMem(), Before: func(op string) error { got.WriteString(op + "\n"); return nil }})
	got.Reset()
	d := contenttest.Put(t, s, []byte("hello"))
	text := strings.ReplaceAll(got.String(), d.Digest.Encoded(), "HEX")
	for _, line := range strings.Fields(text) {
		if p, ok := strings.CutPrefix(line, "partial/"); ok {
			text = strings.ReplaceAll(text, p, "REF")
		}
	}
	const want = "create partial/REF\nwrite partial/REF\nsync partial/REF\nrename partial/REF sha256/HEX\nsync sha256\n"
	if text != want {
		t.Errorf("got:\n%swant:\n%s", text, want)
	}
}

// Cut the power before every operation of two commits: what can be seen
// afterwards is whole, and what was committed can be seen.
func TestPowerCuts(t *testing.T) {
	blobs := [][]byte{bytes.Repeat([]byte("first "), 500), bytes.Repeat([]byte("second "), 500)}
	for n := 0; ; n++ {
		finished := false
		for seed := range uint64(16) {
			mem := vfs.NewMem()
			committed := 0
			s, err := content.OpenFS(vfs.Hook{FS: mem, Before: vfs.FailAt(n, vfs.ErrPowerCut)})
			for i := 0; i < len(blobs) && err == nil; i++ {
				var w *content.Writer
				w, err = s.Writer(t.Context(), "r", ocispec.Descriptor{Digest: digest.FromBytes(blobs[i])})
				if err == nil {
					_, err = w.Write(blobs[i])
				}
				if err == nil {
					err = w.Commit(0, "")
				}
				if err == nil {
					committed++
				}
			}
			finished = err == nil
			after := open(t, mem.Crash(seed))
			for i, b := range blobs {
				err := after.Verify(t.Context(), digest.FromBytes(b))
				if i < committed && err != nil || err != nil && !errdefs.Is(err, errdefs.NotFound) {
					t.Fatalf("cut before operation %d, seed %d, %d committed: blob %d: %v", n, seed, committed, i, err)
				}
			}
			// A partial that the cut left, damaged or not, does no harm.
			w, err := after.Writer(t.Context(), "r", ocispec.Descriptor{Digest: digest.FromBytes(blobs[1]), Size: int64(len(blobs[1]))})
			if err != nil {
				t.Fatal(err)
			}
			w.Write(blobs[1][w.Offset():])
			if err := w.Commit(0, ""); err != nil && !errdefs.Is(err, errdefs.Invalid) {
				t.Fatal(err)
			}
		}
		if finished {
			return
		}
	}
}

func TestFullDisk(t *testing.T) {
	mem := vfs.NewMem()
	s := open(t, mem)
	mem.Capacity = 10 << 10
	kept := contenttest.Put(t, s, bytes.Repeat([]byte("k"), 4<<10))
	big := bytes.Repeat([]byte("b"), 8<<10)
	w, err := s.Writer(t.Context(), "big", ocispec.Descriptor{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(big)
	if !errdefs.Is(err, errdefs.Exhausted) || errdefs.HintOf(err) == "" {
		t.Fatalf("got %v", err)
	}
	if err := errors.Join(w.Close(), s.Verify(t.Context(), kept.Digest), s.Delete(kept.Digest)); err != nil {
		t.Fatal(err)
	}
	// With room again it goes on where it stopped.
	if w, err = s.Writer(t.Context(), "big", ocispec.Descriptor{}); err != nil {
		t.Fatal(err)
	}
	if w.Offset() == 0 {
		t.Error("what had come is gone")
	}
	if _, err := w.Write(big[w.Offset():]); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(0, digest.FromBytes(big)); err != nil {
		t.Fatal(err)
	}
}

// A blob that rotted is not handed out as good.
func TestRot(t *testing.T) {
	dir := t.TempDir()
	s, err := content.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	d := contenttest.Put(t, s, []byte("hello"))
	os.WriteFile(filepath.Join(dir, "sha256", d.Digest.Encoded()), []byte("jello"), 0o600)
	if err := s.Verify(t.Context(), d.Digest); !errdefs.Is(err, errdefs.Internal) {
		t.Errorf("got %v", err)
	}
	if _, err := s.Read(d); !errdefs.Is(err, errdefs.Internal) {
		t.Errorf("got %v", err)
	}
}
