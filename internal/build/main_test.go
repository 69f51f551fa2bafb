package build

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// testGroup is the control group above those of the tests' steps.
var testGroup = fmt.Sprintf("/onggi-test-build-%d", os.Getpid())

// TestMain removes what the tests share.
func TestMain(m *testing.M) {
	code := m.Run()
	made, _ := filepath.Glob("/sys/fs/cgroup/*" + testGroup)
	for _, dir := range append(made, "/sys/fs/cgroup"+testGroup) {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			fmt.Fprintln(os.Stderr, "left behind:", err)
			code = 1
		}
	}
	os.Exit(code)
}
