package executor

import (
	"os"
	"path/filepath"
	"testing"
)

func TestSocketDirectoriesAreRemoved(t *testing.T) {
	root := t.TempDir()
	for dir, left := range map[string]bool{".buildkit-ssh-sock1": false, "other": true} {
		if err := os.Mkdir(filepath.Join(root, dir), 0o700); err != nil {
			t.Fatal(err)
		}
		dropSocketDir(filepath.Join(root, dir, "ssh_auth_sock")) // the socket is gone already
		if _, err := os.Stat(filepath.Join(root, dir)); (err == nil) != left {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
