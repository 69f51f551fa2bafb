package container

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/onggi/onggi/internal/linux"
)

// shmDir is the /dev/shm of a container whose IPC namespace others may join;
// any other's is in the container only.
func (s *Service) shmDir(id string) string { return filepath.Join(s.o.ExecRoot, "shm", id) }

// makeShm mounts it, unless an earlier engine has.
func (s *Service) makeShm(id string, size int64) (string, error) {
	dir := s.shmDir(id)
	if err := os.MkdirAll(dir, 0o700); err != nil || isMountPoint(dir) {
		return dir, err
	}
	mnt, err := linux.Filesystem("tmpfs", []string{"mode=1777", "size=" + strconv.FormatInt(size, 10)}, linux.NoSuidDevExec)
	if err != nil {
		return "", err
	}
	defer mnt.Close()
	return dir, linux.AttachMount(mnt, dir)
}

// dropShm takes it away; who has joined keeps it.
func (s *Service) dropShm(id string) error {
	dir := s.shmDir(id)
	if isMountPoint(dir) {
		if err := linux.DetachMount(dir); err != nil {
			return err
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func isMountPoint(dir string) bool {
	here, err1 := os.Lstat(dir)
	above, err2 := os.Lstat(filepath.Dir(dir))
	if err1 != nil || err2 != nil {
		return false
	}
	return here.Sys().(*syscall.Stat_t).Dev != above.Sys().(*syscall.Stat_t).Dev
}
