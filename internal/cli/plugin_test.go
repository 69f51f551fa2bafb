package cli

import (
	"os"
	"path/filepath"
	"testing"
)

// Words below a plugin's command are asked from the plugin.
func TestPluginCompletion(t *testing.T) {
	dir := t.TempDir()
	plugins := filepath.Join(dir, "cli-plugins")
	if err := os.Mkdir(plugins, 0o755); err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\n" + `[ "$1 $2 $3 $4 $#" = "__complete fake sub x 4" ] || { echo "xbad $*"; exit; }` + "\nprintf 'x1\\twhat it does\\nxtwo\\n:4\\nx-not\\n'\n"
	if err := os.WriteFile(filepath.Join(plugins, "docker-fake"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	out, errs, code := onggi(t, dir, "__complete", "fake", "sub", "x")
	if out != "x1\nxtwo\n" || errs != "" || code != 0 {
		t.Errorf("%q %q %d", out, errs, code)
	}
}
