package engineapi

import "testing"

func TestFilesystem(t *testing.T) {
	for path, want := range map[string]string{"/proc": "0x9fa0", "/no/such/path": "unknown"} {
		if got := filesystem(path); got != want {
			t.Errorf("%s is on %q", path, got)
		}
	}
}
