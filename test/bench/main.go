// Command bench measures Onggi beside Docker and Podman in one run.
//
// # Model
//
// Every peer gets an engine of its own in a temporary directory. A metric is a
// command (or a request); its samples are taken in turn from all peers, so that
// whatever else the machine does hits them alike. Medians and minima are
// printed, and how many times longer a peer takes than Onggi.
//
// # Not here
//
// Pass or fail: a slow machine fails no test.
package main

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A peer is one engine under test.
type peer struct {
	name    string
	cli     []string // the command line, up to the verb
	root    string   // directory that all it starts names in its command line
	socket  string   // of the Docker API; "" where the peer has none
	engines []int    // processes of the engine, for memory
	boot    time.Duration
	stop    func()
	restart func(syscall.Signal) time.Duration // ends the engine so, and starts it
}

func (p *peer) command(args ...string) *exec.Cmd {
	return exec.Command(p.cli[0], append(append([]string{}, p.cli[1:]...), args...)...)
}

func (p *peer) must(args ...string) string {
	out, err := p.command(args...).CombinedOutput()
	if err != nil {
		fatal(fmt.Errorf("%s %s: %w\n%s", p.name, strings.Join(args, " "), err, out))
	}
	return strings.TrimSpace(string(out))
}

var (
	samples = flag.Int("n", 21, "samples for each metric and peer")
	only    = flag.String("only", "", "regular expression of metrics to measure")
	bin     = flag.String("bin", "bin", "directory with Onggi's programs")
	peersIn = flag.String("peers", "docker,podman", "peers to compare with, where installed")
	buildx  = flag.String("buildx", "", "program of Docker's buildx, for the rows of it")
	manyIn  = flag.Int("many", 0, "measure so many containers on Onggi alone, and 2,000 runs by sixteen at a time")
	cleanup []func()
)

func main() {
	flag.Parse()
	if os.Geteuid() != 0 {
		fatal(errors.New("the benchmark starts containers: run it as root"))
	}
	dir, err := os.MkdirTemp("", "onggi-bench.")
	if err != nil {
		fatal(err)
	}
	cleanup = append(cleanup, func() { exec.Command("rm", "-rf", "--one-file-system", dir).Run() })
	defer runCleanup()

	image := filepath.Join(dir, "busybox.tar")
	if err := writeBusybox(image); err != nil {
		fatal(err)
	}
	var peers []*peer
	peers = append(peers, startOnggi(dir))
	if *manyIn > 0 {
		peers[0].must("import", image, "bench/busybox:latest")
		peers[0].must("run", "--rm", "bench/busybox", "true")
		many(peers[0], *manyIn, 2000)
		return
	}
	if strings.Contains(*peersIn, "docker") {
		if p := startDocker(dir); p != nil {
			peers = append(peers, p)
		}
	}
	if strings.Contains(*peersIn, "podman") {
		if p := startPodman(dir); p != nil {
			peers = append(peers, p)
		}
	}
	for _, p := range peers {
		p.must("import", image, "bench/busybox:latest")
		p.must("run", "--rm", "bench/busybox", "true")
	}
	measure(dir, peers)
	runtimes(dir)
}

func measure(dir string, peers []*peer) {
	fmt.Printf("%-34s", "median (min), ms")
	for _, p := range peers {
		fmt.Printf("%22s", p.name)
	}
	fmt.Println()
	timed("run --rm true", peers, nil, func(p *peer) *exec.Cmd { return p.command("run", "--rm", "bench/busybox", "true") })
	timed("run --rm --network none true", peers, nil, func(p *peer) *exec.Cmd {
		return p.command("run", "--rm", "--network", "none", "bench/busybox", "true")
	})
	if wanted("exec true|ps|memory") {
		for _, p := range peers {
			p.must("run", "-d", "--name", "bench-idle", "bench/busybox", "sleep", "100000")
		}
		timed("exec true", peers, nil, func(p *peer) *exec.Cmd { return p.command("exec", "bench-idle", "true") })
		for _, p := range peers {
			for i := range 9 {
				p.must("run", "-d", "--name", fmt.Sprintf("bench-idle-%d", i), "bench/busybox", "sleep", "100000")
			}
		}
		timed("ps of 10", peers, nil, func(p *peer) *exec.Cmd { return p.command("ps") })
		memory(peers)
		for _, p := range peers {
			args := []string{"rm", "-f", "-t", "0", "bench-idle"}
			for i := range 9 {
				args = append(args, fmt.Sprintf("bench-idle-%d", i))
			}
			if out, err := p.command(args...).CombinedOutput(); err != nil {
				args = append([]string{"rm", "-f"}, args[4:]...)
				if out2, err := p.command(args...).CombinedOutput(); err != nil {
					fmt.Fprintf(os.Stderr, "%s: %s%s\n", p.name, out, out2)
				}
			}
		}
	}
	createStart(peers)
	builds(dir, peers)
	throughput(peers)
	fmt.Println()
	row("engine boot, ms", peers, func(p *peer) string {
		if p.boot == 0 {
			return "-"
		}
		return fmt.Sprintf("%.0f", ms(p.boot))
	})
	time.Sleep(15 * time.Second) // the engines come to rest
	row("engine at rest (RSS), MB", peers, func(p *peer) string {
		if len(p.engines) == 0 {
			return "-"
		}
		var kb int64
		for _, pid := range p.engines {
			kb += statusKB(pid, "VmRSS")
		}
		return fmt.Sprintf("%.1f", float64(kb)/1024)
	})
}

// timed runs a command of each peer in turn and prints a row.
func timed(name string, peers []*peer, prepare func(*peer), f func(*peer) *exec.Cmd) {
	timedN(name, *samples, peers, prepare, f)
}

func timedN(name string, n int, peers []*peer, prepare func(*peer), f func(*peer) *exec.Cmd) {
	if !wanted(name) {
		return
	}
	took := map[*peer][]time.Duration{}
	for i := range n + 2 {
		for _, p := range peers {
			if prepare != nil {
				prepare(p)
			}
			cmd := f(p)
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			t := time.Now()
			if err := cmd.Run(); err != nil {
				fatal(fmt.Errorf("%s: %s: %w\n%s", name, p.name, err, out.Bytes()))
			}
			if i >= 2 { // the first rounds warm caches
				took[p] = append(took[p], time.Since(t))
			}
		}
	}
	print(name, peers, took)
}

func print(name string, peers []*peer, took map[*peer][]time.Duration) {
	fmt.Printf("%-34s", name)
	base := median(took[peers[0]])
	for i, p := range peers {
		d := took[p]
		if len(d) == 0 {
			fmt.Printf("%22s", "-")
			continue
		}
		cell := fmt.Sprintf("%.1f (%.1f)", ms(median(d)), ms(d[0]))
		if i > 0 && base > 0 {
			cell += fmt.Sprintf(" %4.1fx", float64(median(d))/float64(base))
		}
		fmt.Printf("%22s", cell)
	}
	fmt.Println()
}

// createStart times create plus start over the API, on one kept connection.
func createStart(peers []*peer) {
	const name = "create+start in the engine"
	if !wanted(name) {
		return
	}
	took := map[*peer][]time.Duration{}
	clients := map[*peer]*http.Client{}
	for _, p := range peers {
		if p.socket != "" {
			clients[p] = unixClient(p.socket)
		}
	}
	body := `{"Image":"bench/busybox","Cmd":["true"],"HostConfig":{"NetworkMode":"none"}}`
	for range *samples {
		for _, p := range peers {
			c := clients[p]
			if c == nil {
				continue
			}
			t := time.Now()
			var made struct{ ID string }
			post(c, "/containers/create", body, &made)
			post(c, "/containers/"+made.ID+"/start", "", nil)
			took[p] = append(took[p], time.Since(t))
			post(c, "/containers/"+made.ID+"/wait", "", nil)
			req, _ := http.NewRequest("DELETE", "http://engine/v1.41/containers/"+made.ID+"?force=1", nil)
			if resp, err := c.Do(req); err == nil {
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		}
	}
	print(name, peers, took)
}

func post(c *http.Client, path, body string, into any) {
	resp, err := c.Post("http://engine/v1.41"+path, "application/json", strings.NewReader(body))
	if err != nil {
		fatal(err)
	}
	defer resp.Body.Close()
	data, _ := io.ReadAll(resp.Body)
	if resp.StatusCode >= 400 {
		fatal(fmt.Errorf("POST %s: %s", path, data))
	}
	if into != nil {
		if err := json.Unmarshal(data, into); err != nil {
			fatal(err)
		}
	}
}

// throughput counts complete `run --rm true` a second with four clients.
func throughput(peers []*peer) {
	const name = "starts/s, 4 clients"
	if !wanted(name) {
		return
	}
	const each = 4 * time.Second
	row(name, peers, func(p *peer) string {
		var mu sync.Mutex
		n := 0
		var wg sync.WaitGroup
		began := time.Now()
		for range 4 {
			wg.Go(func() {
				for time.Since(began) < each {
					if err := p.command("run", "--rm", "bench/busybox", "true").Run(); err != nil {
						fmt.Fprintf(os.Stderr, "%s: %v\n", p.name, err)
						return
					}
					mu.Lock()
					n++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		return fmt.Sprintf("%.1f", float64(n)/time.Since(began).Seconds())
	})
}

// memory adds up, for ten idle containers, what user space spends on them:
// every process whose command line names a container or that serves them, but
// not the containers themselves.
func memory(peers []*peer) {
	row("user memory per container, KB (PSS)", peers, func(p *peer) string {
		var kb int64
		for _, pid := range helpers(p) {
			kb += rollup(pid)
		}
		return fmt.Sprintf("%.0f", float64(kb)/10)
	})
}

// helpers are processes that exist because containers run: shims, monitors,
// proxies. The engine itself is reported apart.
func helpers(p *peer) []int {
	want := map[string]*regexp.Regexp{
		"onggi":  regexp.MustCompile(`onggi-monitor`),
		"docker": regexp.MustCompile(`containerd-shim|docker-proxy`),
		"podman": regexp.MustCompile(`conmon`),
	}[p.name]
	var pids []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		cmd, err := os.ReadFile(d + "/cmdline")
		if err == nil && bytes.Contains(cmd, []byte(p.root+"/")) && want.Match(cmd) {
			if pid, err := strconv.Atoi(filepath.Base(d)); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

func row(name string, peers []*peer, f func(*peer) string) {
	if !wanted(name) {
		return
	}
	fmt.Printf("%-34s", name)
	for _, p := range peers {
		fmt.Printf("%22s", f(p))
	}
	fmt.Println()
}

// runInMemory makes root/run, for what lasts until the next boot: every engine has
// it below /run, which is a tmpfs on most machines.
func runInMemory(root string) {
	run := filepath.Join(root, "run")
	if err := os.MkdirAll(run, 0o700); err != nil {
		fatal(err)
	}
	if err := syscall.Mount("tmpfs", run, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=0755"); err != nil {
		fatal(fmt.Errorf("mount a tmpfs on %s: %w", run, err))
	}
	cleanup = append(cleanup, func() { syscall.Unmount(run, syscall.MNT_DETACH) })
}

func startOnggi(dir string) *peer {
	root := filepath.Join(dir, "onggi")
	runInMemory(root)
	sock := filepath.Join(root, "run/onggi.sock")
	flags := []string{"--data-root", root + "/data", "--exec-root", root + "/run", "--pidfile", root + "/pid",
		"-H", "unix://" + sock, "--bip", "172.29.203.1/24", "--bridge-name", "onggibench"}
	if *manyIn > 0 {
		flags[9] = "10.190.0.1/20"
		flags = append(flags, "--debug", "--cgroup-parent", "onggi-bench") // debug: it counts its goroutines
	}
	cmd := exec.Command(filepath.Join(*bin, "onggid"), flags...)
	p := launch("onggi", cmd, sock, root)
	p.cli = []string{filepath.Join(*bin, "onggi"), "-H", "unix://" + sock}
	p.restart = func(sig syscall.Signal) time.Duration {
		cmd.Process.Signal(sig)
		cmd.Wait()
		cmd = exec.Command(filepath.Join(*bin, "onggid"), flags...)
		again := launch("onggi", cmd, sock, root)
		p.engines = again.engines
		return again.boot
	}
	cleanup = append(cleanup, func() {
		stopProcess(cmd)
		exec.Command(filepath.Join(*bin, "onggid"), append(flags, "--cleanup")...).Run()
	})
	return p
}

func startDocker(dir string) *peer {
	dockerd, err := exec.LookPath("dockerd")
	if err != nil {
		fmt.Fprintln(os.Stderr, "docker is not compared: no dockerd here (Debian: docker.io)")
		return nil
	}
	client := "/usr/bin/docker"
	if _, err := os.Stat(client); err != nil {
		client = "docker"
	}
	root := filepath.Join(dir, "docker")
	runInMemory(root)
	sock := filepath.Join(root, "docker.sock")
	cmd := exec.Command(dockerd, "--data-root", root+"/data", "--exec-root", root+"/run", "--pidfile", root+"/pid",
		"-H", "unix://"+sock, "--bip", "172.29.204.1/24")
	p := launch("docker", cmd, sock, root)
	if p == nil {
		return nil
	}
	p.cli = []string{client, "-H", "unix://" + sock}
	for _, pid := range children(cmd.Process.Pid) {
		p.engines = append(p.engines, pid)
	}
	cleanup = append(cleanup, func() { stopProcess(cmd) })
	return p
}

func startPodman(dir string) *peer {
	podman, err := exec.LookPath("podman")
	if err != nil {
		fmt.Fprintln(os.Stderr, "podman is not compared: not installed")
		return nil
	}
	root := filepath.Join(dir, "podman")
	runInMemory(root)
	cli := []string{podman, "--root", root + "/data", "--runroot", root + "/run", "--tmpdir", root + "/tmp",
		"--cgroup-manager", "cgroupfs", "--events-backend", "file"}
	// crun refuses a host with both versions of control groups.
	if _, err := os.Stat("/sys/fs/cgroup/unified/cgroup.controllers"); err == nil {
		cli = append(cli, "--runtime", "runc")
		fmt.Fprintln(os.Stderr, "podman runs with runc: crun refuses a host with both versions of control groups")
	}
	// Podman asks for limits that a host may not allow it.
	conf := filepath.Join(dir, "containers.conf")
	if err := os.WriteFile(conf, []byte("[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=4096:4096\"]\n"), 0o600); err != nil {
		fatal(err)
	}
	os.Setenv("CONTAINERS_CONF", conf)
	return &peer{name: "podman", root: root, cli: cli}
}

// launch starts an engine and waits until it answers a ping.
func launch(name string, cmd *exec.Cmd, sock, root string) *peer {
	log, err := os.Create(filepath.Join(root, "log"))
	if err != nil {
		fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	began := time.Now()
	if err := cmd.Start(); err != nil {
		fatal(err)
	}
	client := unixClient(sock)
	for time.Since(began) < 60*time.Second {
		if resp, err := client.Get("http://engine/_ping"); err == nil {
			resp.Body.Close()
			return &peer{name: name, root: root, socket: sock, engines: []int{cmd.Process.Pid}, boot: time.Since(began)}
		}
		if cmd.Process.Signal(syscall.Signal(0)) != nil {
			break
		}
		time.Sleep(2 * time.Millisecond) // polling another program's readiness
	}
	text, _ := os.ReadFile(filepath.Join(root, "log"))
	if len(text) > 2000 {
		text = text[len(text)-2000:]
	}
	fmt.Fprintf(os.Stderr, "%s did not start:\n%s\n", name, text)
	if name == "onggi" {
		fatal(errors.New("no engine"))
	}
	return nil
}

func unixClient(sock string) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", sock)
	}}}
}

func stopProcess(cmd *exec.Cmd) {
	cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		cmd.Process.Kill()
		<-done
	}
}

// writeBusybox makes a root file system of a static busybox with its applets.
func writeBusybox(file string) error {
	path := "/bin/busybox"
	if _, err := os.Stat(path); err != nil {
		path = "/usr/bin/busybox"
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("no static busybox (Debian: busybox-static): %w", err)
	}
	applets, err := exec.Command(path, "--list").Output()
	if err != nil {
		return err
	}
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, d := range []string{"bin/", "etc/", "tmp/", "root/", "proc/", "sys/", "dev/"} {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755})
	}
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(data))})
	w.Write(data)
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777})
		}
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\n"
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644, Size: int64(len(passwd))})
	io.WriteString(w, passwd)
	return w.Close()
}

func children(pid int) []int {
	var out []int
	dirs, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, s := range dirs {
		data, err := os.ReadFile(s)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
		if len(fields) > 1 && fields[1] == strconv.Itoa(pid) {
			if n, err := strconv.Atoi(filepath.Base(filepath.Dir(s))); err == nil {
				out = append(out, n)
			}
		}
	}
	return out
}

func statusKB(pid int, key string) int64 { return keyKB(fmt.Sprintf("/proc/%d/status", pid), key) }
func rollup(pid int) int64               { return keyKB(fmt.Sprintf("/proc/%d/smaps_rollup", pid), "Pss") }

func keyKB(file, key string) int64 {
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for _, line := range strings.Split(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, _ := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			return n
		}
	}
	return 0
}

// median sorts d and returns its middle.
func median(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	sort.Slice(d, func(i, j int) bool { return d[i] < d[j] })
	return d[len(d)/2]
}

func ms(d time.Duration) float64 { return float64(d) / 1e6 }

func wanted(name string) bool {
	if *only == "" {
		return true
	}
	for _, part := range strings.Split(name, "|") {
		if ok, err := regexp.MatchString(*only, part); err == nil && ok {
			return true
		}
	}
	return false
}

func runCleanup() {
	for i := len(cleanup) - 1; i >= 0; i-- {
		cleanup[i]()
	}
	cleanup = nil
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "bench:", err)
	runCleanup()
	os.Exit(1)
}
