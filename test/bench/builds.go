package main

import (
	"bytes"
	"compress/gzip"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/layer"
)

// builds times builders. Docker's is BuildKit, Podman's is Buildah.
func builds(dir string, peers []*peer) {
	const (
		few, many   = "no-change rebuild, 2,000 files", "no-change rebuild, 10,000 files"
		cached      = "50 cached steps"
		each        = "RUN true, a step"
		files, big  = "COPY of 10,000 new files", "COPY of 300 new MB"
		buildxBuild = "buildx build, cached, no image"
		buildxLoads = "buildx build --load, cached"
		push        = "gzip for a push, MB/s"
	)
	defer compression(push)
	if !wanted(strings.Join([]string{few, many, cached, each, files, big, buildxBuild, buildxLoads}, "|")) {
		return
	}
	tree := func(name string, n int, seed string) string {
		ctx := filepath.Join(dir, name)
		for i := range n {
			d := filepath.Join(ctx, "src", fmt.Sprint(i%50))
			os.MkdirAll(d, 0o755)
			os.WriteFile(filepath.Join(d, fmt.Sprintf("file%d.txt", i)), bytes.Repeat([]byte(seed+strconv.Itoa(i)+"\n"), 200), 0o644)
		}
		os.MkdirAll(ctx, 0o755)
		return ctx
	}
	dockerfile := func(ctx, text string) {
		if err := os.WriteFile(filepath.Join(ctx, "Dockerfile"), []byte("FROM bench/busybox\n"+text), 0o644); err != nil {
			fatal(err)
		}
	}
	c2, c10 := tree("context", 2000, ""), tree("context10", 10000, "")
	for _, c := range []string{c2, c10} {
		dockerfile(c, "RUN echo hello >/hello\nCOPY . /src\nRUN ls /src/src | wc -l >/count\n")
	}
	var can []*peer
	for _, p := range peers {
		if out, err := build(p, c2).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s cannot build here: %s\n", p.name, out)
			continue
		}
		can = append(can, p)
	}
	if len(can) == 0 {
		return
	}
	of := func(ctx string, flags ...string) func(*peer) *exec.Cmd {
		return func(p *peer) *exec.Cmd { return build(p, ctx, flags...) }
	}
	timed(few, can, nil, of(c2))
	timed(many, can, nil, of(c10))

	steps := func(n int) string {
		ctx := tree(fmt.Sprintf("steps%d", n), 0, "")
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "RUN true %d\n", i)
		}
		dockerfile(ctx, b.String())
		return ctx
	}
	timed(cached, can, nil, of(steps(50)))
	perStep(each, can, of(steps(1), "--no-cache"), of(steps(21), "--no-cache"), 20)

	fresh := filepath.Join(dir, "fresh")
	timedN(files, min(*samples, 5), can, func(*peer) {
		tree("fresh", 10000, strconv.FormatInt(time.Now().UnixNano(), 36))
		dockerfile(fresh, "COPY src /src\n")
	}, of(fresh))
	blobs := tree("blobs", 0, "")
	dockerfile(blobs, "COPY blob* /\n")
	timedN(big, min(*samples, 5), can, func(*peer) {
		for i := range 3 {
			f, err := os.Create(filepath.Join(blobs, fmt.Sprintf("blob%d", i)))
			if err == nil {
				_, err = io.CopyN(f, rand.Reader, 100e6)
				f.Close()
			}
			if err != nil {
				fatal(err)
			}
		}
	}, of(blobs))

	if *buildx == "" {
		return
	}
	of = func(ctx string, flags ...string) func(*peer) *exec.Cmd {
		return func(p *peer) *exec.Cmd {
			cmd := exec.Command(*buildx, append(append([]string{"build", "-q"}, flags...), ctx)...)
			cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+p.socket, "DOCKER_CONFIG="+filepath.Join(dir, "buildx"))
			return cmd
		}
	}
	var by []*peer
	for _, p := range can {
		if p.socket == "" {
			continue
		}
		if out, err := of(c2, "--load", "-t", "bench/tree")(p).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%s cannot build with buildx: %s\n", p.name, out)
			continue
		}
		by = append(by, p)
	}
	if len(by) == 0 {
		return
	}
	timed(buildxBuild, by, nil, of(c2, "--output", "type=cacheonly"))
	timed(buildxLoads, by, nil, of(c2, "--load", "-t", "bench/tree"))
}

// build is a build's command.
func build(p *peer, ctx string, flags ...string) *exec.Cmd {
	args := append([]string{"build", "-q", "-t", "bench/tree"}, flags...)
	if p.name == "podman" {
		args = append(args, "--pull=never")
		if len(flags) == 0 {
			args = append(args, "--layers")
		}
	}
	cmd := p.command(append(args, ctx)...)
	cmd.Env = append(os.Environ(), "DOCKER_BUILDKIT=1") // Docker 20.10 has it, and does not use it unasked
	return cmd
}

// perStep prints what one step more costs.
func perStep(name string, peers []*peer, short, long func(*peer) *exec.Cmd, steps int) {
	if !wanted(name) {
		return
	}
	took := map[*peer][]time.Duration{}
	for range min(*samples, 7) {
		for _, p := range peers {
			var t [2]time.Duration
			for i, f := range []func(*peer) *exec.Cmd{short, long} {
				cmd := f(p)
				began := time.Now()
				if out, err := cmd.CombinedOutput(); err != nil {
					fatal(fmt.Errorf("%s: %s: %w\n%s", name, p.name, err, out))
				}
				t[i] = time.Since(began)
			}
			took[p] = append(took[p], max(0, t[1]-t[0])/time.Duration(steps))
		}
	}
	print(name, peers, took)
}

// compression compares how pushes compress with the standard library.
func compression(name string) {
	if !wanted(name) {
		return
	}
	self, err := os.Executable()
	if err != nil {
		fatal(err)
	}
	data, err := os.ReadFile(self) // a program, as most of an image is
	if err != nil {
		fatal(err)
	}
	rate := func(w io.WriteCloser, err error) float64 {
		if err != nil {
			fatal(err)
		}
		began := time.Now()
		for range 4 {
			w.Write(data)
		}
		w.Close()
		return 4 * float64(len(data)) / 1e6 / time.Since(began).Seconds()
	}
	ours, std := rate(layer.Compress(io.Discard, layer.Gzip, 0)), rate(gzip.NewWriter(io.Discard), nil)
	fmt.Printf("%-34s%22s%22s\n", name, fmt.Sprintf("%.0f", ours), fmt.Sprintf("compress/gzip %.0f %.1fx", std, ours/std))
}
