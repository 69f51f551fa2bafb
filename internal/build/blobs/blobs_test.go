package blobs_test

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/onggi/onggi/internal/build/blobs"
	"github.com/onggi/onggi/internal/build/refs/refstest"
)

type store struct {
	*blobs.Store
	t      *testing.T
	dir    string
	blobs  refstest.Records
	leases refstest.Records
}

func open(t *testing.T) *store {
	s := &store{t: t, dir: t.TempDir()}
	s.reopen()
	return s
}

func (s *store) reopen() {
	s.t.Helper()
	b, err := blobs.Open(s.dir, &s.blobs, &s.leases)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Store = b
}

func (s *store) write(ctx context.Context, text string, labels map[string]string) digest.Digest {
	s.t.Helper()
	d := digest.FromString(text)
	desc := ocispec.Descriptor{Digest: d, Size: int64(len(text))}
	if err := content.WriteBlob(ctx, s, d.String(), strings.NewReader(text), desc, content.WithLabels(labels)); err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *store) has(d digest.Digest) bool {
	_, err := s.Info(context.Background(), d)
	if err != nil && !cerrdefs.IsNotFound(err) {
		s.t.Error(err)
	}
	return err == nil
}

func TestBlobsLiveByLeases(t *testing.T) {
	s := open(t)
	m := blobs.Leases{S: s.Store}
	ctx := namespaces.WithNamespace(context.Background(), "ns")
	l, err := m.Create(ctx, leases.WithID("kept"))
	if err != nil {
		t.Fatal(err)
	}
	lctx := leases.WithLease(ctx, l.ID)
	child := s.write(ctx, "child", nil)
	kept := s.write(lctx, "kept", map[string]string{"containerd.io/gc.ref.content.0": child.String()})
	loose := s.write(ctx, "loose", nil)
	if _, err := s.Writer(ctx, content.WithRef("x"), content.WithDescriptor(ocispec.Descriptor{Digest: kept})); !cerrdefs.IsAlreadyExists(err) {
		t.Errorf("writing what is there: %v", err)
	}
	s.Sweep()
	if !s.has(loose) {
		t.Error("a fresh blob went before anybody could name it")
	}
	s.reopen() // no blob is being written now, so nothing is fresh
	m.S = s.Store
	if !s.has(kept) || !s.has(child) || s.has(loose) {
		t.Errorf("kept %v, child %v, loose %v", s.has(kept), s.has(child), s.has(loose))
	}
	rs, err := m.ListResources(ctx, leases.Lease{ID: "kept"})
	if err != nil || len(rs) != 1 || rs[0].ID != kept.String() {
		t.Errorf("resources %v, %v", rs, err)
	}
	if ls, _ := m.List(namespaces.WithNamespace(ctx, "other")); len(ls) != 0 {
		t.Errorf("leases of another namespace: %v", ls)
	}
	if err := m.Delete(ctx, leases.Lease{ID: "kept"}); err != nil {
		t.Fatal(err)
	}
	s.reopen()
	if s.has(kept) || s.has(child) || s.blobs.Len() != 0 || s.leases.Len() != 0 {
		t.Error("blobs outlive their lease")
	}
}

func TestWriterVerifies(t *testing.T) {
	s := open(t)
	ctx := context.Background()
	w, err := s.Writer(ctx, content.WithRef("r"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Writer(ctx, content.WithRef("r")); !cerrdefs.IsUnavailable(err) {
		t.Errorf("two writers: %v", err)
	}
	io.WriteString(w, "half")
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w, err = s.Writer(ctx, content.WithRef("r")) // taken up again
	if err != nil {
		t.Fatal(err)
	}
	if st, _ := w.Status(); st.Offset != 4 {
		t.Errorf("offset %d", st.Offset)
	}
	io.WriteString(w, "+rest")
	if err := w.Commit(ctx, 0, digest.FromString("other")); !cerrdefs.IsFailedPrecondition(err) {
		t.Errorf("a wrong digest: %v", err)
	}
	if s.has(digest.FromString("half+rest")) {
		t.Error("what was refused is visible")
	}
	w, _ = s.Writer(ctx, content.WithRef("r"))
	io.WriteString(w, "abcdef")
	if err := w.Truncate(3); err != nil {
		t.Fatal(err)
	}
	io.WriteString(w, "X")
	if err := w.Commit(ctx, 4, digest.FromString("abcX")); err != nil {
		t.Fatal(err)
	}
	ra, err := s.ReaderAt(ctx, ocispec.Descriptor{Digest: digest.FromString("abcX")})
	if err != nil {
		t.Fatal(err)
	}
	defer ra.Close()
	b := make([]byte, 10)
	if n, err := ra.ReadAt(b, 0); string(b[:n]) != "abcX" || !errors.Is(err, io.EOF) {
		t.Errorf("%q %v", b[:n], err)
	}
}

func TestLabels(t *testing.T) {
	s := open(t)
	ctx := context.Background()
	d := s.write(ctx, "x", map[string]string{"a": "1", "b": "2"})
	info, err := s.Update(ctx, content.Info{Digest: d, Labels: map[string]string{"a": "3"}}, "labels.a", "labels.b")
	if err != nil || info.Labels["a"] != "3" || info.Labels["b"] != "" {
		t.Errorf("%v %v", info, err)
	}
	if _, err := s.Update(ctx, content.Info{Digest: d}, "size"); !cerrdefs.IsInvalidArgument(err) {
		t.Errorf("%v", err)
	}
	n := 0
	s.Walk(ctx, func(content.Info) error { n++; return nil }, `labels."a"==3`)
	if n != 1 {
		t.Errorf("the filter found %d", n)
	}
}
