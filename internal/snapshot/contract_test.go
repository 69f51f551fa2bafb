package snapshot_test

import (
	"path/filepath"
	"testing"

	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/snapshot/snapshottest"
)

func TestContract(t *testing.T) {
	snapshottest.Run(t, func(t *testing.T) snapshottest.Snapshotter {
		dir := t.TempDir()
		db, err := metadb.Open(filepath.Join(dir, "meta"), metadb.Options{})
		if err != nil {
			t.Fatal(err)
		}
		s, err := snapshot.Open(filepath.Join(dir, "snapshots"), db, snapshot.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close(); db.Close() })
		return s
	})
}
