package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// runtimes times what is below the engine: `run` of true by each OCI runtime
// alone, on one bundle with the configuration that `spec` writes.
func runtimes(dir string) {
	const name = "runtime run true"
	if !wanted(name) {
		return
	}
	ours, err := filepath.Abs(filepath.Join(*bin, "onggi-runtime"))
	if err != nil {
		fatal(err)
	}
	root := filepath.Join(dir, "runtimes")
	bundle := filepath.Join(root, "bundle")
	rootfs := filepath.Join(bundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		fatal(err)
	}
	if out, err := exec.Command("tar", "-xf", filepath.Join(dir, "busybox.tar"), "-C", rootfs).CombinedOutput(); err != nil {
		fatal(fmt.Errorf("unpack busybox: %w\n%s", err, out))
	}
	spec := exec.Command(ours, "spec")
	spec.Dir = bundle
	if out, err := spec.CombinedOutput(); err != nil {
		fatal(fmt.Errorf("onggi-runtime spec: %w\n%s", err, out))
	}
	adapt(filepath.Join(bundle, "config.json"))
	if hideUnified() {
		fmt.Fprintln(os.Stderr, "the runtimes see control groups v1 only: crun refuses a host with both versions")
	}

	peers := []*peer{{name: "onggi-runtime", cli: []string{ours, "--root", filepath.Join(root, "onggi")}}}
	for _, n := range []string{"crun", "runc"} {
		p, err := exec.LookPath(n)
		if err != nil {
			continue
		}
		cli := []string{p, "--root", filepath.Join(root, n)}
		peers = append(peers, &peer{name: n, cli: cli})
	}
	fmt.Printf("\n%-34s", "median (min), ms")
	for _, p := range peers {
		fmt.Printf("%22s", p.name)
	}
	fmt.Println()
	n := 0
	timed(name, peers, nil, func(p *peer) *exec.Cmd {
		n++
		return p.command("run", "--bundle", bundle, fmt.Sprintf("bench-%d", n))
	})
}

// hideUnified hides control groups v2 from what this goroutine starts from here
// on, where a host has both versions.
func hideUnified() bool {
	const unified = "/sys/fs/cgroup/unified"
	if _, err := os.Stat(unified + "/cgroup.controllers"); err != nil {
		return false
	}
	runtime.LockOSThread()
	if err := syscall.Unshare(syscall.CLONE_NEWNS); err != nil {
		fatal(err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		fatal(err)
	}
	if err := syscall.Unmount(unified, syscall.MNT_DETACH); err != nil {
		fatal(err)
	}
	return true
}

// adapt makes the configuration run true, for runtimes of any age.
func adapt(file string) {
	b, err := os.ReadFile(file)
	if err != nil {
		fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		fatal(err)
	}
	s.Version = "1.0.2"
	s.Process.Terminal, s.Process.Args = false, []string{"true"}
	if b, err = json.Marshal(&s); err != nil {
		fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		fatal(err)
	}
}
