package snapshot

import (
	"context"
	"errors"
	"syscall"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/metadb"
)

// Usage counts the bytes and inodes of a snapshot's own directory: files by
// their size, without holes. For a committed one it is counted once.
func (s *Store) Usage(ctx context.Context, key string) (bytes, inodes int64, err error) {
	s.mu.Lock()
	n, err := s.findLocked("measure", key)
	if err != nil {
		s.mu.Unlock()
		return 0, 0, err
	}
	l := n.l
	if n.rec.Kind == View || l == nil {
		s.mu.Unlock()
		return 0, 0, nil
	}
	rec := l.rec
	s.mu.Unlock()
	if rec.Committed && rec.Size >= 0 {
		return rec.Size, rec.Inodes, nil
	}
	c := counter{seen: map[[2]uint64]bool{}}
	if err := c.tree(ctx, s.d, layerKey(rec.Dir), 0); err != nil && !errors.Is(err, syscall.ENOENT) {
		return 0, 0, s.fail("measure", key, err)
	}
	if !rec.Committed {
		return c.bytes, c.inodes, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.layers[l.id] != l {
		return c.bytes, c.inodes, nil
	}
	rec = l.rec
	rec.Size, rec.Inodes = c.bytes, c.inodes
	err = s.db.Update(func(tx *metadb.Tx) error { return tx.Put(layerBucket, layerKey(l.id), rec) })
	if err == nil {
		l.rec = rec
	}
	return c.bytes, c.inodes, nil
}

// counter adds up a tree; a file with several names counts once.
type counter struct {
	bytes, inodes int64
	seen          map[[2]uint64]bool
}

func (c *counter) tree(ctx context.Context, parent linux.FD, name string, depth int) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := parent.Dir(name)
	if err != nil {
		return err
	}
	defer d.Close()
	var st linux.Stat
	if err := d.Stat(&st); err != nil {
		return err
	}
	c.inodes++
	if depth > 1000 { // deeper than any honest tree: not worth a descriptor each
		return nil
	}
	entries, err := d.Entries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Type == linux.TypeDir {
			if err := c.tree(ctx, d, e.Name, depth+1); err != nil && !errors.Is(err, syscall.ENOENT) {
				return err
			}
			continue
		}
		if d.Lstat(e.Name, &st) != nil {
			continue // gone meanwhile
		}
		if st.Mode&linux.TypeMask == linux.TypeDir { // a file system that does not tell types
			if err := c.tree(ctx, d, e.Name, depth+1); err != nil && !errors.Is(err, syscall.ENOENT) {
				return err
			}
			continue
		}
		if st.Nlink > 1 {
			id := [2]uint64{st.Dev, st.Ino}
			if c.seen[id] {
				continue
			}
			c.seen[id] = true
		}
		c.bytes += min(st.Size, st.Blocks*512)
		c.inodes++
	}
	return nil
}
