package cli

import (
	"os"
	"path/filepath"
	"testing"
)

// An engine that ends while it starts is heard, and an earlier one's words are
// not taken for its.
func TestLastWords(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	before := "onggid: before\n"
	for said, want := range map[string][2]string{
		"time=x level=INFO msg=y\nonggid: no: why\ntry: this\n": {"the engine stopped while starting: no: why", "this"},
		"onggid: no\n": {"the engine stopped while starting: no", "tail " + log},
		"panic":        {"the engine stopped while starting", "tail " + log},
	} {
		if err := os.WriteFile(log, []byte(before+said), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := lastWords(log, int64(len(before))); err.Error() != want[0] || hintOf(err) != want[1] {
			t.Errorf("%q becomes %q, %q", said, err, hintOf(err))
		}
	}
}
