package layer

import (
	"bytes"
	"fmt"
	"os/exec"
	"testing"
)

// gnuTar returns a function that unpacks with GNU tar, and skips the test where
// there is none.
func gnuTar(t *testing.T) func(raw []byte, dir string) error {
	out, err := exec.Command("tar", "--version").Output()
	if err != nil || !bytes.Contains(out, []byte("GNU tar")) {
		t.Skip("needs GNU tar")
	}
	return func(raw []byte, dir string) error {
		cmd := exec.Command("tar", "-x", "-p", "--numeric-owner", "-C", dir)
		cmd.Stdin = bytes.NewReader(raw)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
}
