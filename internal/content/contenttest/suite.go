// Package contenttest checks that a store of blobs keeps the contract of
// package content, on any file system.
package contenttest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/content"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
)

// Run runs the whole suite against fresh stores made by open.
func Run(t *testing.T, open func(t *testing.T) *content.Store) {
	for _, tt := range []struct {
		name string
		f    func(*testing.T, *content.Store)
	}{
		{"commit-and-read", commitAndRead},
		{"nothing-before-commit", nothingBeforeCommit},
		{"mismatch-leaves-nothing", mismatchLeavesNothing},
		{"resume", resume},
		{"reset", reset},
		{"one-writer-per-ref", oneWriterPerRef},
		{"concurrent-commits", concurrentCommits},
		{"other-digests", otherDigests},
		{"digest-is-no-path", digestIsNoPath},
		{"delete-and-walk", deleteAndWalk},
		{"drop-partials", dropPartials},
		{"damage", damage},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.f(t, open(t)) })
	}
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func kind(t *testing.T, err error, want errdefs.Kind) {
	t.Helper()
	if !errdefs.Is(err, want) {
		t.Errorf("got %v, want an error of kind %v", err, want)
	}
}

func desc(b []byte) ocispec.Descriptor {
	return ocispec.Descriptor{MediaType: "application/octet-stream", Digest: digest.FromBytes(b), Size: int64(len(b))}
}

// Put writes a blob in pieces.
func Put(t testing.TB, s *content.Store, b []byte) ocispec.Descriptor {
	t.Helper()
	d := desc(b)
	w, err := s.Writer(t.Context(), "put-"+string(d.Digest), d)
	must(t, err)
	for p := b; len(p) > 0; p = p[min(len(p), 1000):] {
		_, err := w.Write(p[:min(len(p), 1000)])
		must(t, err)
	}
	must(t, w.Commit(0, ""), w.Close())
	return d
}

func commitAndRead(t *testing.T, s *content.Store) {
	want := bytes.Repeat([]byte("onggi "), 10000)
	d := Put(t, s, want)
	b, err := s.Open(d.Digest)
	must(t, err)
	defer b.Close()
	got, err := io.ReadAll(b.Reader())
	must(t, err)
	if !bytes.Equal(got, want) || b.Size() != d.Size {
		t.Error("other bytes came back")
	}
	p := make([]byte, 6)
	if _, err := b.ReadAt(p, 6); err != nil || string(p) != "onggi " {
		t.Errorf("ReadAt: %q, %v", p, err)
	}
	if got, err := s.Read(d); err != nil || !bytes.Equal(got, want) {
		t.Errorf("Read: %v", err)
	}
	if n, err := s.Has(d.Digest); n != d.Size || err != nil {
		t.Errorf("Has: %d, %v", n, err)
	}
	must(t, s.Verify(t.Context(), d.Digest))
	Put(t, s, want) // again is fine
	e := Put(t, s, nil)
	if n, err := s.Has(e.Digest); n != 0 || err != nil {
		t.Errorf("the empty blob: %d, %v", n, err)
	}
}

func nothingBeforeCommit(t *testing.T, s *content.Store) {
	d := desc([]byte("hello"))
	w, err := s.Writer(t.Context(), "r", d)
	must(t, err)
	w.Write([]byte("hello"))
	_, err = s.Open(d.Digest)
	kind(t, err, errdefs.NotFound)
	_, err = s.Has(d.Digest)
	kind(t, err, errdefs.NotFound)
	must(t, w.Discard())
	kind(t, s.Verify(t.Context(), d.Digest), errdefs.NotFound)
}

func mismatchLeavesNothing(t *testing.T, s *content.Store) {
	d := desc([]byte("hello"))
	for name, f := range map[string]func(w *content.Writer) error{
		"digest": func(w *content.Writer) error { w.Write([]byte("jello")); return w.Commit(0, "") },
		"short":  func(w *content.Writer) error { w.Write([]byte("hell")); return w.Commit(0, "") },
		"long": func(w *content.Writer) error {
			_, err := w.Write([]byte("hello!"))
			kind(t, err, errdefs.Invalid)
			return w.Commit(0, "")
		},
		"said at commit": func(w *content.Writer) error { w.Write([]byte("hello")); return w.Commit(4, "") },
		"other digest":   func(w *content.Writer) error { w.Write([]byte("hello")); return w.Commit(0, desc(nil).Digest) },
	} {
		w, err := s.Writer(t.Context(), name, d)
		must(t, err)
		kind(t, f(w), errdefs.Invalid)
		must(t, w.Close())
		_, err = s.Has(d.Digest)
		kind(t, err, errdefs.NotFound)
		w, err = s.Writer(t.Context(), name, d)
		must(t, err)
		if w.Offset() != 0 {
			t.Errorf("%s: %d bytes were left", name, w.Offset())
		}
		must(t, w.Discard())
	}
}

func resume(t *testing.T, s *content.Store) {
	want := bytes.Repeat([]byte("0123456789"), 5000)
	d := desc(want)
	w, err := s.Writer(t.Context(), "r", d)
	must(t, err)
	w.Write(want[:20000])
	must(t, w.Close())
	w, err = s.Writer(t.Context(), "r", d)
	must(t, err)
	if w.Offset() != 20000 {
		t.Fatalf("offset %d", w.Offset())
	}
	w.Write(want[20000:])
	must(t, w.Commit(d.Size, d.Digest))
	must(t, s.Verify(t.Context(), d.Digest))
	// What is too long for the blob is not resumed.
	w, err = s.Writer(t.Context(), "long", ocispec.Descriptor{})
	must(t, err)
	w.Write(want)
	must(t, w.Close())
	w, err = s.Writer(t.Context(), "long", desc([]byte("x")))
	must(t, err)
	if w.Offset() != 0 {
		t.Errorf("offset %d", w.Offset())
	}
	must(t, w.Discard())
}

func reset(t *testing.T, s *content.Store) {
	w, err := s.Writer(t.Context(), "r", ocispec.Descriptor{})
	must(t, err)
	w.Write([]byte("wrong"))
	must(t, w.Reset())
	w.Write([]byte("right"))
	if w.Digest() != desc([]byte("right")).Digest {
		t.Error("the digest counts what was reset")
	}
	must(t, w.Commit(0, desc([]byte("right")).Digest))
	must(t, s.Verify(t.Context(), desc([]byte("right")).Digest))
}

func oneWriterPerRef(t *testing.T, s *content.Store) {
	w, err := s.Writer(t.Context(), "r", ocispec.Descriptor{})
	must(t, err)
	_, err = s.Writer(t.Context(), "r", ocispec.Descriptor{})
	kind(t, err, errdefs.Conflict)
	kind(t, s.Abort("r"), errdefs.Conflict)
	must(t, w.Close())
	w, err = s.Writer(t.Context(), "r", ocispec.Descriptor{})
	must(t, err)
	must(t, w.Discard(), s.Abort("r"), s.Abort("never"))
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("a discarded writer can be written")
	}
	if err := w.Commit(0, ""); err == nil {
		t.Error("a discarded writer can be committed")
	}
}

func concurrentCommits(t *testing.T, s *content.Store) {
	b := bytes.Repeat([]byte("same"), 10000)
	d := desc(b)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			w, err := s.Writer(t.Context(), fmt.Sprint("ref", i), d)
			if err == nil {
				_, err = w.Write(b)
			}
			if err == nil {
				err = w.Commit(0, "")
			}
			if err == nil {
				err = s.Verify(t.Context(), d.Digest)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func otherDigests(t *testing.T, s *content.Store) {
	for _, alg := range []digest.Algorithm{digest.SHA384, digest.SHA512} {
		d := alg.FromString("hello")
		w, err := s.Writer(t.Context(), "r", ocispec.Descriptor{Digest: d, Size: 5})
		must(t, err)
		w.Write([]byte("hello"))
		must(t, w.Commit(0, d), s.Verify(t.Context(), d))
	}
}

func digestIsNoPath(t *testing.T, s *content.Store) {
	for _, d := range []ocispec.Digest{"", "x", "sha256:", "sha256:../../x", "sha256:" + "A" + desc(nil).Digest[8:], "md5:d41d8cd98f00b204e9800998ecf8427e", "partial:00", desc(nil).Digest + "0"} {
		_, err := s.Open(d)
		kind(t, err, errdefs.Invalid)
		kind(t, s.Delete(d), errdefs.Invalid)
		if d != "" {
			_, err = s.Writer(t.Context(), "r", ocispec.Descriptor{Digest: d})
			kind(t, err, errdefs.Invalid)
		}
	}
}

func deleteAndWalk(t *testing.T, s *content.Store) {
	want := map[ocispec.Digest]int64{}
	for i := range 5 {
		d := Put(t, s, bytes.Repeat([]byte{byte(i)}, 100+i))
		want[d.Digest] = d.Size
	}
	must(t, s.Walk(func(i content.Info) error {
		if want[i.Digest] != i.Size {
			t.Errorf("unexpected %+v", i)
		}
		delete(want, i.Digest)
		return s.Delete(i.Digest)
	}))
	if len(want) > 0 {
		t.Errorf("not seen: %v", want)
	}
	must(t, s.Walk(func(i content.Info) error { return fmt.Errorf("%s is left", i.Digest) }))
	must(t, s.Delete(desc([]byte("never")).Digest))
	stop := errors.New("stop")
	Put(t, s, []byte("x"))
	if err := s.Walk(func(content.Info) error { return stop }); err != stop {
		t.Errorf("got %v", err)
	}
}

func dropPartials(t *testing.T, s *content.Store) {
	for _, ref := range []string{"a", "b"} {
		w, err := s.Writer(t.Context(), ref, ocispec.Descriptor{})
		must(t, err)
		w.Write(make([]byte, 1000))
		if ref == "a" {
			must(t, w.Close())
		} else {
			defer w.Discard()
		}
	}
	if n, err := s.DropPartials(time.Time{}); n != 1000 || err != nil {
		t.Errorf("freed %d, %v", n, err)
	}
}

func damage(t *testing.T, s *content.Store) {
	d := Put(t, s, []byte("good"))
	d.Size = 3
	_, err := s.Read(d)
	if err == nil {
		t.Error("a blob of another size was read")
	}
}
