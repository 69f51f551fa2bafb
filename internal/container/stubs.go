package container

import (
	"context"
	"os"
	"path/filepath"

	"github.com/onggi/onggi/internal/snapshot"
)

// stubs is a directory with the places where something is mounted in every
// container, and with the file by which programs know that they run in one. It
// lies under an image's layers: a start makes nothing in the container's own
// layer, and neither diff nor commit see any of it.
func (s *Service) stubs() string {
	return filepath.Join(filepath.Dir(s.o.Root), "mountpoints")
}

// stubDirs and stubFiles are what is there, as in Docker.
var (
	stubDirs  = []string{"/dev", "/dev/pts", "/dev/shm", "/etc", "/proc", "/sys"}
	stubFiles = []string{"/.dockerenv", "/dev/console", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}
)

func makeStubs(dir string) error {
	for _, d := range stubDirs {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for _, f := range stubFiles {
		file, err := os.OpenFile(filepath.Join(dir, f), os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		file.Close()
	}
	return nil
}

// mountRoot mounts the root of a container that does not run, or not yet.
func (s *Service) mountRoot(ctx context.Context, id string, o snapshot.MountOptions) (*os.File, error) {
	o.Under = []string{s.stubs()}
	return s.o.Snapshots.MountFD(ctx, id, o)
}
