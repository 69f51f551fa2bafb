package container

import (
	"bufio"
	"context"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux/cgroup"
)

// StatsInterval is the time between two samples of a stream.
const StatsInterval = time.Second

// Stats measures a container: once, or again and again while emit returns true.
func (s *Service) Stats(ctx context.Context, ref string, stream, oneShot bool, emit func(container.StatsResponse) bool) error {
	c, err := s.find("stats", ref)
	if err != nil {
		return err
	}
	prev := container.StatsResponse{}
	if !oneShot {
		prev = s.sample(c)
		if !stream {
			if err := pause(ctx, StatsInterval); err != nil {
				return err
			}
		}
	}
	for first := true; ; first = false {
		if stream && !first {
			if err := pause(ctx, StatsInterval); err != nil {
				return err
			}
		}
		now := s.sample(c)
		if !oneShot && !(stream && first) {
			now.PreRead, now.PreCPUStats = prev.Read, prev.CPUStats
		}
		if !emit(now) || !stream {
			return nil
		}
		if _, st := c.view(); st.State == Gone {
			return nil
		}
		prev = now
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// sample measures now; a container that does not run has only its name.
func (s *Service) sample(c *Container) container.StatsResponse {
	c.mu.Lock()
	rec, st, r := c.rec, c.st, c.run
	c.mu.Unlock()
	out := container.StatsResponse{ID: rec.ID, Name: "/" + rec.Name, OSType: "linux"}
	if !st.State.HasProcess() || r == nil || r.group == nil {
		return out
	}
	out.Read = time.Now().UTC()
	m, err := r.group.Stats()
	if err != nil {
		return out
	}
	fillStats(&out, m)
	out.CPUStats.SystemUsage, out.CPUStats.OnlineCPUs = hostCPU(), uint32(runtime.NumCPU())
	if out.MemoryStats.Limit == 0 || out.MemoryStats.Limit > 1<<62 {
		out.MemoryStats.Limit = HostMemory()
	}
	if !rec.HostConfig.NetworkMode.IsHost() {
		out.Networks = interfaces(st.PID)
	}
	return out
}

func fillStats(out *container.StatsResponse, m *cgroup.Stats) {
	out.CPUStats = container.CPUStats{
		CPUUsage:       container.CPUUsage{TotalUsage: m.CPU.Usage, UsageInKernelmode: m.CPU.System, UsageInUsermode: m.CPU.User, PercpuUsage: m.CPU.PerCPU},
		ThrottlingData: container.ThrottlingData{Periods: m.CPU.Periods, ThrottledPeriods: m.CPU.ThrottledPeriods, ThrottledTime: m.CPU.ThrottledTime},
	}
	out.MemoryStats = container.MemoryStats{Usage: m.Memory.Usage, MaxUsage: m.Memory.MaxUsage, Limit: m.Memory.Limit, Failcnt: m.Memory.Failures, Stats: m.Memory.Stat}
	out.PidsStats = container.PidsStats{Current: m.Pids.Current, Limit: m.Pids.Limit}
	conv := func(in []cgroup.IOEntry) []container.BlkioStatEntry {
		var es []container.BlkioStatEntry
		for _, e := range in {
			es = append(es, container.BlkioStatEntry{Major: e.Major, Minor: e.Minor, Op: e.Op, Value: e.Value})
		}
		return es
	}
	out.BlkioStats = container.BlkioStats{IoServiceBytesRecursive: conv(m.IO.ServiceBytes), IoServicedRecursive: conv(m.IO.Serviced)}
}

// hostCPU is the time that all processors have spent, in nanoseconds.
func hostCPU() uint64 {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return 0
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	if !sc.Scan() {
		return 0
	}
	fields := strings.Fields(sc.Text())
	var ticks uint64
	for i, v := range fields {
		if i == 0 || i > 7 { // guest time is in user time already
			continue
		}
		n, _ := strconv.ParseUint(v, 10, 64)
		ticks += n
	}
	const perSecond = 100 // USER_HZ, fixed by the kernel's ABI
	return ticks * (1e9 / perSecond)
}

// HostMemory is the machine's memory in bytes.
func HostMemory() uint64 {
	for line := range strings.Lines(readWord("/proc/meminfo")) {
		if v, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			n, _ := strconv.ParseUint(strings.Fields(v)[0], 10, 64)
			return n << 10
		}
	}
	return 0
}

// interfaces reads the counters of a process's network namespace.
func interfaces(pid int) map[string]container.NetworkStats {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/net/dev")
	if err != nil {
		return nil
	}
	out := map[string]container.NetworkStats{}
	for line := range strings.Lines(string(b)) {
		name, rest, ok := strings.Cut(line, ":")
		name = strings.TrimSpace(name)
		f := strings.Fields(rest)
		if !ok || name == "lo" || len(f) < 12 {
			continue
		}
		n := func(i int) uint64 { v, _ := strconv.ParseUint(f[i], 10, 64); return v }
		out[name] = container.NetworkStats{RxBytes: n(0), RxPackets: n(1), RxErrors: n(2), RxDropped: n(3), TxBytes: n(8), TxPackets: n(9), TxErrors: n(10), TxDropped: n(11)}
	}
	return out
}

// Top lists a container's processes as ps would; args are ps options, of which
// the usual ones are understood.
func (s *Service) Top(ref, args string) (container.TopResponse, error) {
	c, err := s.find("top", ref)
	if err != nil {
		return container.TopResponse{}, err
	}
	c.mu.Lock()
	st, r := c.st, c.run
	c.mu.Unlock()
	switch {
	case st.State == Restarting:
		return container.TopResponse{}, errdefs.Newf(errdefs.Conflict, "", "", "container %s is restarting, wait until the container is running", c.id)
	case !st.State.HasProcess() || r == nil || r.group == nil:
		return container.TopResponse{}, errdefs.Newf(errdefs.Conflict, "", "", "container %s is not running", c.id)
	}
	cols, err := topColumns(args)
	if err != nil {
		return container.TopResponse{}, err
	}
	pids, err := r.group.Procs()
	if err != nil {
		return container.TopResponse{}, err
	}
	if r.foreign != nil { // the runtime's command is beside its container
		pids = slices.DeleteFunc(pids, func(p int) bool { return p == r.started.PID })
	}
	slices.Sort(pids)
	out := container.TopResponse{Processes: [][]string{}}
	for _, col := range cols {
		out.Titles = append(out.Titles, col.title)
	}
	now := readProcs()
	for _, pid := range pids {
		p, err := now.process(pid)
		if err != nil {
			continue // it ended
		}
		row := make([]string, len(cols))
		for i, col := range cols {
			row[i] = col.value(p)
		}
		out.Processes = append(out.Processes, row)
	}
	s.emit(c, "top", nil)
	return out, nil
}
