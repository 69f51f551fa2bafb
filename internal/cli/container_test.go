package cli

import (
	"testing"
	"time"

	"github.com/onggi/onggi/internal/api"
)

func TestBriefEnough(t *testing.T) {
	for format, want := range map[string]bool{
		"": true, "table": true, "{{.Names}}": true, "table {{.ID}}\t{{.Status}}": true, "{{.ID}} {{json .Size}}": true,
		"json": false, "{{json .}}": false, "{{.Labels}}": false, "table {{.Names}}\t{{.Mounts}}": false, "{{.State}}": false, `{{.Label "a"}}`: false, "{{.ID.Labels}}": false, "{{.nothing}}": false,
	} {
		if got := briefEnough(format); got != want {
			t.Errorf("%q: %v", format, got)
		}
	}
}

// The table shows the same of a brief list as of a whole one.
func TestBriefRow(t *testing.T) {
	c := api.ContainerSummary{ID: "76053a02836b99ce", Names: []string{"/web", "/other/alias"}, Image: "sha256:76053a02836b99ce", Command: `sh -c 'echo "a long command"'`, Created: 1,
		Ports: []api.Port{{IP: "::", PrivatePort: 80, PublicPort: 81, Type: "tcp"}}, SizeRw: 1, SizeRootFs: 2, State: "running", Status: "Up", Mounts: []api.MountPoint{{Name: "data"}}}
	now := time.Unix(1000, 0)
	for _, noTrunc := range []bool{false, true} {
		whole, brief := psRow(&c, now, noTrunc, false), psRow(&c, now, noTrunc, true)
		for _, col := range append([]string{"Size"}, psColumns...) {
			if got, there := brief[col]; !there || got != whole[col] {
				t.Errorf("%s: %q, want %q", col, got, whole[col])
			}
		}
	}
}
