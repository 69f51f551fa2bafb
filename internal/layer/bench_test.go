package layer

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/onggi/onggi/internal/testenv"
)

// tenThousand is a layer like a distribution's: 10,000 files of some KiB in 700
// directories, with links.
func tenThousand(b *testing.B) []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	words := make([]byte, 1<<20)
	for i := range words {
		words[i] = "etaoin shrdlu\n"[rng.IntN(14)]
	}
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for d := range 700 {
		dir := fmt.Sprintf("usr/share/doc/package-%d/", d)
		must(b, w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir, Mode: 0o755, ModTime: when.Truncate(1e9)}))
		for f := range 14 {
			n := rng.IntN(16 << 10)
			h := tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("%sfile-%d", dir, f), Mode: 0o644, Size: int64(n), ModTime: when.Truncate(1e9)}
			must(b, w.WriteHeader(&h))
			w.Write(words[rng.IntN(1<<20-n):][:n])
		}
		must(b, w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: dir + "link", Linkname: "file-1", Mode: 0o777, ModTime: when.Truncate(1e9)}))
	}
	must(b, w.Close())
	return out.Bytes()
}

func BenchmarkApply10k(b *testing.B) {
	testenv.NeedRoot(b)
	raw := tenThousand(b)
	var gz, zst bytes.Buffer
	for k, out := range map[Kind]*bytes.Buffer{Gzip: &gz, Zstd: &zst} {
		w, err := Compress(out, k, 0)
		must(b, err)
		w.Write(raw)
		must(b, w.Close())
	}
	for _, tt := range []struct {
		name   string
		blob   []byte
		record bool
	}{{"tar", raw, false}, {"gzip", gz.Bytes(), false}, {"gzip+record", gz.Bytes(), true}, {"zstd+record", zst.Bytes(), true}} {
		b.Run(tt.name, func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				b.StopTimer()
				dir := b.TempDir()
				f, err := os.Open(dir)
				must(b, err)
				b.StartTimer()
				d, _, err := Decompress(bytes.NewReader(tt.blob))
				must(b, err)
				var r io.Reader = d
				if tt.record {
					rec := Record(d, io.Discard)
					defer rec.Close()
					r = rec
				}
				_, err = Apply(b.Context(), r, f, ApplyOptions{})
				must(b, err)
				b.StopTimer()
				f.Close()
				os.RemoveAll(dir)
				b.StartTimer()
			}
		})
	}
}

func BenchmarkTar10k(b *testing.B) {
	testenv.NeedRoot(b)
	raw := tenThousand(b)
	dir := filepath.Join(b.TempDir(), "d")
	must(b, os.Mkdir(dir, 0o755))
	f, err := os.Open(dir)
	must(b, err)
	defer f.Close()
	_, err = Apply(b.Context(), bytes.NewReader(raw), f, ApplyOptions{})
	must(b, err)
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		must(b, Tar(b.Context(), io.Discard, f, TarOptions{}))
	}
}

func BenchmarkCompress(b *testing.B) {
	raw := tenThousand(b)
	for _, k := range []Kind{Gzip, Zstd} {
		b.Run(string(k), func(b *testing.B) {
			b.SetBytes(int64(len(raw)))
			for b.Loop() {
				w, err := Compress(io.Discard, k, 0)
				must(b, err)
				w.Write(raw)
				must(b, w.Close())
			}
		})
	}
}
