package container

import (
	"errors"
	"hash/fnv"
	"os"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/metadb"
)

// firstProject begins the numbers that quotas of containers have; those of
// volumes are below.
const firstProject = 0x6f680000

// limitRoot keeps what a container writes into its own layer under --storage-opt
// size, by a quota of the file system that has the layer.
func (s *Service) limitRoot(rec *Record) error {
	if rec.HostConfig.StorageOpt["size"] == "" {
		return nil
	}
	bytes, err := parseSize(rec.HostConfig.StorageOpt["size"])
	if err != nil {
		return err
	}
	d, err := s.o.Snapshots.Dirs(rec.ID)
	if err != nil {
		return err
	}
	upper, err := os.Open(d.Upper)
	if err != nil {
		return err
	}
	defer upper.Close()
	work, err := os.Open(d.Work)
	if err != nil {
		return err
	}
	defer work.Close()
	s.projects.Lock()
	defer s.projects.Unlock()
	h := fnv.New32()
	h.Write([]byte(rec.ID))
	n := h.Sum32()
	for used := true; used; n++ {
		rec.Project = firstProject | n&0xffff
		if used, err = linux.ProjectUsed(upper, rec.Project); err != nil {
			return noQuota(err)
		}
	}
	// Overlayfs moves files from the one to the other, which a project may not leave.
	for _, dir := range []*os.File{upper, work} {
		if err := linux.LimitDirectory(dir, rec.Project, bytes); err != nil {
			return noQuota(err)
		}
	}
	return s.o.DB.Update(func(tx *metadb.Tx) error { return putRecord(tx, rec) })
}

func noQuota(err error) error {
	if errors.Is(err, errors.ErrUnsupported) {
		return errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "", "", "storage option size needs a quota: %w", err), "put the data-root on a file system mounted with -o prjquota (xfs, or ext4 made with -O project,quota)")
	}
	return err
}

// unlimitRoot takes the limit back.
func (s *Service) unlimitRoot(rec *Record) error {
	if rec.Project == 0 {
		return nil
	}
	dir, err := os.Open(s.o.Root)
	if err != nil {
		return err
	}
	defer dir.Close()
	return linux.ForgetProject(dir, rec.Project)
}
