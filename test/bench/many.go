package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// What many containers cost: not beside others, but beside what is promised.

// many measures an engine with n running containers, and then a soak.
func many(p *peer, n, soak int) {
	api := unixClient(p.socket)
	api.Transport.(*http.Transport).MaxIdleConnsPerHost = 64
	figure("1,000 ports published", "under 200 ms, no process", func() string { return publishing(p) })
	before := remains(p)
	figure(fmt.Sprintf("%d containers started", n), "", func() string {
		began := time.Now()
		each(n, 16, func(i int) {
			p.must("run", "-d", "--name", fmt.Sprintf("many-%d", i), "bench/busybox", "sleep", "100000")
		})
		took := time.Since(began)
		return fmt.Sprintf("%.1f s, %.1f ms each", took.Seconds(), ms(took)/float64(n))
	})
	figure(fmt.Sprintf("ps at %d", n), "under 30 ms", func() string {
		cli := spread(21, func() { p.must("ps") })
		before := processor(p.engines[0])
		alone := spread(51, func() { get(api, "/containers/json") })
		return fmt.Sprintf("%s; the request alone %s, of which the engine computes %.1f", cli, alone, ms(processor(p.engines[0])-before)/51)
	})
	figure("inspect, logs beside a stuck container", "p99 under 50 ms", func() string { return besideStuck(p, api) })
	figure(fmt.Sprintf("engine killed and started at %d", n), "under 1 s, no connection lost", func() string { return restart(p) })
	figure(fmt.Sprintf("%d containers removed", n), "", func() string {
		began := time.Now()
		each(n, 16, func(i int) { p.must("rm", "-f", fmt.Sprintf("many-%d", i)) })
		return fmt.Sprintf("%.1f s", time.Since(began).Seconds())
	})
	api.CloseIdleConnections()
	figure("left of them", "nothing", func() string { return settled(p, before) })
	figure(fmt.Sprintf("%d run and rm by 16, some killed", soak), "nothing left", func() string {
		began := time.Now()
		failed := soakRuns(p, soak)
		return fmt.Sprintf("%.0f s, %d failed; left: %s", time.Since(began).Seconds(), failed, settled(p, before))
	})
}

func figure(name, goal string, f func() string) {
	if wanted(name) {
		fmt.Printf("%-40s %s", name, f())
		if goal != "" {
			fmt.Printf("  (goal: %s)", goal)
		}
		fmt.Println()
	}
}

// each calls f for 0 to n-1, by so many at a time.
func each(n, workers int, f func(int)) {
	var next atomic.Int64
	var all sync.WaitGroup
	for range workers {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	all.Wait()
}

// spread is the median and the slowest hundredth of n calls.
func spread(n int, f func()) string {
	took := make([]time.Duration, n)
	for i := range took {
		began := time.Now()
		f()
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return fmt.Sprintf("%.1f ms (p99 %.1f)", ms(took[n/2]), ms(took[(n*99-1)/100]))
}

// processor is the time that a process has computed: unlike the clock's, it says
// the same on a busy machine.
func processor(pid int) time.Duration {
	stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	f := strings.Fields(string(rest))
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // of USER_HZ
}

func get(c *http.Client, path string) []byte {
	resp, err := c.Get("http://engine" + path)
	if err != nil {
		fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode >= 300 {
		fatal(fmt.Errorf("%s: %s: %s %v", path, resp.Status, body, err))
	}
	return body
}

func publishing(p *peer) string {
	run := func(args ...string) time.Duration {
		began := time.Now()
		id := p.must(append(append([]string{"run", "-d"}, args...), "bench/busybox", "sleep", "100000")...)
		took := time.Since(began)
		p.must("rm", "-f", id)
		return took
	}
	processes := len(children(p.engines[0]))
	var plain, ports []time.Duration
	for range 7 {
		plain, ports = append(plain, run()), append(ports, run("-p", "127.0.0.1:21000-21999:1000-1999"))
	}
	both := []time.Duration{}
	for range 3 {
		both = append(both, run("-p", "21000-21999:1000-1999"))
	}
	return fmt.Sprintf("%.0f ms for a run of them, %.0f ms without; on all addresses of both families %.0f ms; %d processes more", ms(median(ports)), ms(median(plain)), ms(median(both)), len(children(p.engines[0]))-processes)
}

// besideStuck asks for one container while another is frozen, and while requests
// wait for that.
func besideStuck(p *peer, api *http.Client) string {
	p.must("run", "-d", "--name", "stuck", "bench/busybox", "sh", "-c", "while :; do echo line; sleep 0.01; done")
	p.must("run", "-d", "--name", "talker", "bench/busybox", "sh", "-c", "i=0; while [ $i -lt 1000 ]; do echo line $i; i=$((i+1)); done; sleep 100000")
	p.must("pause", "stuck")
	var waiting []*exec.Cmd
	for _, args := range [][]string{{"exec", "stuck", "true"}, {"stop", "-t", "60", "stuck"}, {"top", "stuck"}, {"logs", "-f", "stuck"}, {"stats", "--no-stream", "stuck"}, {"cp", "stuck:/etc", "-"}} {
		cmd := p.command(args...)
		cmd.Start()
		waiting = append(waiting, cmd)
	}
	out := "inspect " + spread(300, func() { get(api, "/containers/talker/json") }) + ", logs " + spread(300, func() { get(api, "/containers/talker/logs?stdout=1&tail=100") })
	p.command("unpause", "stuck").Run() // the stop may have ended it
	p.command("kill", "stuck").Run()
	for _, cmd := range waiting {
		cmd.Process.Kill()
		cmd.Wait()
	}
	p.must("rm", "-f", "stuck", "talker")
	return out
}

// restart kills the engine and starts it anew, while a connection through a
// published port is used.
func restart(p *peer) string {
	p.must("run", "-d", "--name", "echo", "-p", "127.0.0.1:22000:7", "bench/busybox", "nc", "-ll", "-p", "7", "-e", "cat")
	defer p.must("rm", "-f", "echo")
	var c net.Conn
	var err error
	for range 100 {
		if c, err = net.Dial("tcp", "127.0.0.1:22000"); err == nil {
			if _, err = c.Write([]byte("hello\n")); err == nil {
				if _, err = bufio.NewReader(c).ReadString('\n'); err == nil {
					break
				}
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		return "no connection: " + err.Error()
	}
	stop, slowest := make(chan struct{}), make(chan time.Duration)
	lost := ""
	go func() {
		var worst time.Duration
		r := bufio.NewReader(c)
		for {
			select {
			case <-stop:
				slowest <- worst
				return
			default:
			}
			began := time.Now()
			c.SetDeadline(began.Add(5 * time.Second))
			if _, err := fmt.Fprintln(c, "ping"); err == nil {
				_, err = r.ReadString('\n')
				if err != nil {
					lost = "; the connection is lost: " + err.Error()
				}
			}
			worst = max(worst, time.Since(began))
			time.Sleep(5 * time.Millisecond)
		}
	}()
	var took, computed []time.Duration
	refused := 0
	for i := range 4 {
		sig := syscall.SIGKILL
		if i%2 == 1 {
			sig = syscall.SIGTERM
		}
		took = append(took, p.restart(sig))
		computed = append(computed, processor(p.engines[0]))
		if d, err := net.DialTimeout("tcp", "127.0.0.1:22000", time.Second); err != nil {
			refused++
		} else {
			d.Close()
		}
	}
	close(stop)
	worst := <-slowest
	c.Close()
	return fmt.Sprintf("%.0f ms (worst of four %.0f), of which it computes %.0f; an echo took %.1f ms at most, %d of 4 new connections refused%s", ms(median(took)), ms(slices.Max(took)), ms(median(computed)), ms(worst), refused, lost)
}

// soakRuns starts containers and ends them in several ways.
func soakRuns(p *peer, n int) (failed int) {
	var bad atomic.Int64
	each(n, 16, func(i int) {
		name := fmt.Sprintf("soak-%d", i)
		args := []string{"run", "--name", name}
		var ways [][]string
		switch rand.IntN(4) {
		case 0: // to its end
			args = append(args, "--rm", "bench/busybox", "true")
		case 1: // with a port, removed by force
			args = append(args, "-d", "-p", "1234", "bench/busybox", "sleep", "1000")
			ways = [][]string{{"rm", "-f", name}}
		case 2: // killed, then removed
			args = append(args, "-d", "-v", "/data", "bench/busybox", "sleep", "1000")
			ways = [][]string{{"kill", name}, {"rm", "-f", "-v", name}}
		case 3: // its client is killed
			cmd := p.command(append(args, "--rm", "-i", "bench/busybox", "sleep", "1000")...)
			if cmd.Start() == nil {
				time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
				cmd.Process.Kill()
				cmd.Wait()
			}
			p.command("rm", "-f", "-v", name).Run() // it may not have come to be
			return
		}
		for _, w := range append([][]string{args}, ways...) {
			if out, err := p.command(w...).CombinedOutput(); err != nil {
				bad.Add(1)
				fmt.Fprintf(os.Stderr, "%s: %v: %s\n", strings.Join(w, " "), err, out)
			}
		}
	})
	// Some came to be after their removal.
	if ids := strings.Fields(p.must("ps", "-aq", "--filter", "name=soak-")); len(ids) > 0 {
		p.must(append([]string{"rm", "-f", "-v"}, ids...)...)
	}
	return int(bad.Load())
}

// remains counts what an engine has in the kernel.
func remains(p *peer) map[string]int {
	out := map[string]int{}
	pids := append([]int{p.engines[0]}, below(p.root, "onggi-monitor")...)
	for _, pid := range pids {
		fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		out["descriptors"] += len(fds)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	out["mounts"] = bytes.Count(mounts, []byte(p.root))
	// A network that has grown to further bridges (ogs…) keeps them, and their cables.
	links, _ := filepath.Glob("/sys/class/net/onggibench/brif/og[0-9a-f]*")
	out["links"] = len(slices.DeleteFunc(links, func(l string) bool {
		return strings.HasPrefix(filepath.Base(l), "ogc") && strings.HasSuffix(l, "a") && len(filepath.Base(l)) == 13
	}))
	sum := sha256.Sum256([]byte(filepath.Join(p.root, "run")))
	rules, _ := exec.Command("nft", "list", "table", "inet", "onggi-"+hex.EncodeToString(sum[:4])).Output()
	inSet := false // chains belong to the network
	for line := range bytes.Lines(rules) {
		switch {
		case bytes.HasPrefix(line, []byte("\tset ")), bytes.HasPrefix(line, []byte("\tmap ")):
			inSet = true
		case bytes.HasPrefix(line, []byte("\t}")):
			inSet = false
		case inSet:
			out["elements of rules"] += 1 + bytes.Count(line, []byte(" . "))
		}
	}
	groups, _ := exec.Command("find", "/sys/fs/cgroup", "-type", "d", "-path", "*/onggi-bench/*").Output()
	out["control groups"] = bytes.Count(groups, []byte("\n"))
	for _, d := range []string{"containers", "snapshots"} {
		entries, _ := os.ReadDir(filepath.Join(p.root, "data", d))
		out[d+" on disk"] = len(entries)
	}
	c := unixClient(p.socket)
	var info struct{ NGoroutines int }
	json.Unmarshal(get(c, "/info"), &info)
	c.CloseIdleConnections()
	out["goroutines"] = info.NGoroutines
	return out
}

// settled waits until there is no more than before, and tells what stays.
func settled(p *peer, before map[string]int) string {
	var left []string
	for range 50 {
		left = nil
		for k, n := range remains(p) {
			if d := n - before[k]; d > 0 {
				left = append(left, fmt.Sprintf("%d %s", d, k))
			}
		}
		if len(left) == 0 {
			return "nothing"
		}
		time.Sleep(200 * time.Millisecond)
	}
	slices.Sort(left)
	return strings.Join(left, ", ")
}

// below are the processes of a name whose command line names a directory.
func below(dir, name string) (pids []int) {
	list, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range list {
		line, _ := os.ReadFile(f)
		if bytes.Contains(line, []byte(dir)) && bytes.Contains(line, []byte(name)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}
