package linux

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// CheckOverlay reports why overlays cannot have their writable directories
// below dir, or nil: it mounts one, detached from everything.
func CheckOverlay(dir string) error {
	tmp, err := os.MkdirTemp(dir, "overlay-check-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	// Else its end would wait until all that the file system has to write is written.
	opts := []string{"volatile"}
	for _, d := range []struct{ name, key string }{{"lower", "lowerdir"}, {"upper", "upperdir"}, {"work", "workdir"}} {
		p := filepath.Join(tmp, d.name)
		if err := os.Mkdir(p, 0o700); err != nil {
			return err
		}
		opts = append(opts, d.key+"="+p)
	}
	f, err := Filesystem("overlay", opts, 0)
	if err != nil {
		return fmt.Errorf("overlayfs does not work there: %w", err)
	}
	defer f.Close()
	// Without whiteouts (character device 0:0) nothing could be deleted.
	if err := MknodAt(f, "whiteout-check", 0o020000, 0, 0, 0); err != nil && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("overlayfs cannot write there: %w", err)
	}
	return nil
}
