package build

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
)

// BenchmarkSteps builds many small steps: new ones, then the same from cache.
func BenchmarkSteps(b *testing.B) {
	const steps = 50
	bl := benchBuilder(b)
	for _, cached := range []bool{false, true} {
		b.Run(fmt.Sprintf("cached=%v", cached), func(b *testing.B) {
			n := 0
			for b.Loop() {
				if !cached {
					n++
				}
				var df strings.Builder
				fmt.Fprintf(&df, "FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nENV RUN=%d-%v\n", n, cached)
				for i := range steps {
					fmt.Fprintf(&df, "RUN [\"/bin/busybox\", \"touch\", \"/%d\"]\n", i)
				}
				os.WriteFile(filepath.Join(bl.dir, "Dockerfile"), []byte(df.String()), 0o644)
				bl.run(b)
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N)/steps, "ms/step")
		})
	}
}

// BenchmarkContext rebuilds without a change over a context of many files.
func BenchmarkContext(b *testing.B) {
	for _, files := range []int{2000, 10000} {
		b.Run(fmt.Sprint(files), func(b *testing.B) {
			bl := benchBuilder(b)
			for i := range files {
				d := filepath.Join(bl.dir, "src", fmt.Sprint(i%100))
				os.MkdirAll(d, 0o755)
				os.WriteFile(filepath.Join(d, fmt.Sprint(i)), fmt.Appendf(nil, "%d", i), 0o644)
			}
			os.WriteFile(filepath.Join(bl.dir, "Dockerfile"), []byte("FROM scratch\nCOPY src /src\n"), 0o644)
			bl.run(b)
			b.ResetTimer()
			for b.Loop() {
				bl.run(b)
			}
		})
	}
}

type benchmark struct {
	*builder
	dir string
}

func benchBuilder(b *testing.B) *benchmark {
	bl := &benchmark{builder: openReal(b, b.TempDir()), dir: b.TempDir()}
	if raw, err := os.ReadFile("/bin/busybox"); err == nil {
		os.WriteFile(filepath.Join(bl.dir, "busybox"), raw, 0o755)
	}
	return bl
}

func (bl *benchmark) run(b *testing.B) {
	b.Helper()
	_, err := bl.build(b.Context(), buildOptions{dir: bl.dir, attrs: map[string]string{"force-network-mode": "none"},
		output: client.ExportEntry{Type: "moby", Attrs: map[string]string{"name": "docker.io/library/bench:1"}}})
	if err != nil {
		b.Fatal(err)
	}
}
