package snapshot_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/content"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/snapshot"
)

// At no free bytes everything can be read and removed, also after a restart;
// what does not fit is refused as that, and leaves nothing.
func TestFullDisk(t *testing.T) {
	if !inNamespace(t) {
		return
	}
	for _, kind := range []string{"tmpfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			mnt := t.TempDir()
			if kind == "tmpfs" {
				run(t, "mount", "-t", "tmpfs", "-o", "size=12m,nr_inodes=2000", "tmpfs", mnt)
			} else {
				if _, err := exec.LookPath("mkfs.ext4"); err != nil {
					t.Skip("needs mkfs.ext4")
				}
				img := filepath.Join(t.TempDir(), "img")
				must(t, os.WriteFile(img, nil, 0o600), os.Truncate(img, 24<<20))
				run(t, "mkfs.ext4", "-q", "-F", img)
				run(t, "mount", "-o", "loop", img, mnt)
			}
			fullDisk(t, mnt)
			run(t, "umount", mnt)
		})
	}
}

type stores struct {
	db *metadb.DB
	cs *content.Store
	ss *snapshot.Store
}

func openAll(t *testing.T, mnt string) stores {
	t.Helper()
	db, err := metadb.Open(filepath.Join(mnt, "meta"), metadb.Options{})
	must(t, err)
	cs, err := content.Open(filepath.Join(mnt, "content"))
	must(t, err)
	ss, err := snapshot.Open(filepath.Join(mnt, "snapshots"), db, snapshot.Options{})
	must(t, err)
	return stores{db, cs, ss}
}

func (s stores) close(t *testing.T) {
	t.Helper()
	must(t, s.ss.Close(), s.db.Close())
}

func fullDisk(t *testing.T, mnt string) {
	ctx := t.Context()
	s := openAll(t, mnt)
	for i := range 20 {
		name := fmt.Sprint("l", i)
		must(t, s.ss.Prepare(ctx, name+"a", ""))
		d, _ := s.ss.Dirs(name + "a")
		must(t, os.WriteFile(filepath.Join(d.Upper, "f"), make([]byte, 100<<10), 0o644), s.ss.Commit(ctx, name, name+"a"))
	}
	w, err := s.cs.Writer(ctx, "r", ocispec.Descriptor{})
	must(t, err)
	_, err = w.Write([]byte("kept"))
	must(t, err, w.Commit(0, ""))
	must(t, s.db.Sync())

	// The last byte and the last inode.
	hog, err := os.Create(filepath.Join(mnt, "hog"))
	must(t, err)
	for size := 1 << 20; size > 0; {
		if _, err := hog.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	hog.Sync()
	hog.Close()
	os.Mkdir(filepath.Join(mnt, "inodes"), 0o700)
	for i := 0; os.WriteFile(filepath.Join(mnt, "inodes", fmt.Sprint(i)), nil, 0o600) == nil; i++ {
	}

	refused := func(what string, err error) {
		t.Helper()
		if !errdefs.Is(err, errdefs.Exhausted) || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	big, err := s.cs.Writer(ctx, "big", ocispec.Descriptor{})
	if err == nil { // a file may still fit, but no byte in it
		_, err = big.Write(make([]byte, 8<<10))
		must(t, big.Discard())
	}
	refused("write", err)
	var key string
	var ahead []string // some directories are made ahead
	for i := range 100 {
		key = fmt.Sprint("new", i)
		if err = s.ss.Prepare(ctx, key, "l19"); err != nil {
			break
		}
		ahead = append(ahead, key)
	}
	refused("prepare", err)
	_, err = s.ss.Stat(key)
	if !errdefs.Is(err, errdefs.NotFound) {
		t.Errorf("a refused snapshot: %v", err)
	}
	for _, key := range ahead {
		must(t, s.ss.Remove(ctx, key))
	}
	must(t, s.cs.Verify(ctx, digest.FromString("kept")))

	// Restarting works, and so do changes for some time.
	s.close(t)
	s = openAll(t, mnt)
	n := 0
	for ; n < 100000; n++ {
		if err = s.db.Update(func(tx *metadb.Tx) error { return tx.Put("b", fmt.Sprint("k", n%10), n) }); err != nil {
			refused("update", err)
			break
		}
	}
	if n < 1000 {
		t.Errorf("only %d changes of records", n)
	}
	for i := range 19 {
		must(t, s.ss.Remove(ctx, fmt.Sprint("l", i)))
	}
	must(t, s.ss.WaitTrash(ctx), s.cs.Delete(digest.FromString("kept")))
	if d, err := s.ss.Dirs("l19"); err != nil {
		t.Error(err)
	} else if fi, err := os.Stat(filepath.Join(d.Upper, "f")); err != nil || fi.Size() != 100<<10 {
		t.Errorf("what was kept: %v", err)
	}
	// That made room.
	must(t, s.ss.Prepare(ctx, "next", "l19"), s.db.Compact(), s.db.Sync())
	s.close(t)
	s = openAll(t, mnt)
	if names, _ := s.ss.Names(""); len(names) != 2 {
		t.Errorf("snapshots %v", names)
	}
	s.close(t)
}
