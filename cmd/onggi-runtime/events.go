package main

import (
	"encoding/json"
	"flag"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/cgroup"
)

// The documents that events prints have runc's names.
type event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

type stats struct {
	CPU     cpuStats               `json:"cpu"`
	CPUSet  struct{}               `json:"cpuset"`
	Memory  memoryStats            `json:"memory"`
	Pids    pidsStats              `json:"pids"`
	Blkio   blkioStats             `json:"blkio"`
	Hugetlb map[string]hugetlbStat `json:"hugetlb"`
}

type cpuStats struct {
	Usage      cpuUsage  `json:"usage"`
	Throttling throttled `json:"throttling"`
}

type cpuUsage struct {
	Total  uint64   `json:"total,omitempty"`
	PerCPU []uint64 `json:"percpu,omitempty"`
	Kernel uint64   `json:"kernel"`
	User   uint64   `json:"user"`
}

type throttled struct {
	Periods          uint64 `json:"periods,omitempty"`
	ThrottledPeriods uint64 `json:"throttledPeriods,omitempty"`
	ThrottledTime    uint64 `json:"throttledTime,omitempty"`
}

type memoryEntry struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type memoryStats struct {
	Cache     uint64            `json:"cache,omitempty"`
	Usage     memoryEntry       `json:"usage"`
	Swap      memoryEntry       `json:"swap"`
	Kernel    memoryEntry       `json:"kernel"`
	KernelTCP memoryEntry       `json:"kernelTCP"`
	Raw       map[string]uint64 `json:"raw,omitempty"`
}

type pidsStats struct {
	Current uint64 `json:"current,omitempty"`
	Limit   uint64 `json:"limit,omitempty"`
}

type blkioEntry struct {
	Major uint64 `json:"major,omitempty"`
	Minor uint64 `json:"minor,omitempty"`
	Op    string `json:"op,omitempty"`
	Value uint64 `json:"value,omitempty"`
}

type blkioStats struct {
	Bytes  []blkioEntry `json:"ioServiceBytesRecursive,omitempty"`
	Ops    []blkioEntry `json:"ioServicedRecursive,omitempty"`
	Queued []blkioEntry `json:"ioQueueRecursive,omitempty"`
	Time   []blkioEntry `json:"ioServiceTimeRecursive,omitempty"`
	Wait   []blkioEntry `json:"ioWaitTimeRecursive,omitempty"`
	Merged []blkioEntry `json:"ioMergedRecursive,omitempty"`
}

type hugetlbStat struct {
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

func eventsFlags(fs *flag.FlagSet) func(*global, []string) error {
	interval := fs.Duration("interval", 5*time.Second, "")
	once := fs.Bool("stats", false, "")
	return func(g *global, args []string) error {
		if *interval <= 0 {
			return errdefs.Newf(errdefs.Invalid, "", "", "duration interval must be greater than 0")
		}
		c, err := g.load(args[0])
		if err != nil {
			return err
		}
		if c.status() == specs.StateStopped {
			return errdefs.Newf(errdefs.Conflict, "", "", "container with id %s is not running", c.ID)
		}
		group, err := c.group()
		if err != nil {
			return err
		}
		out := json.NewEncoder(os.Stdout)
		if *once {
			return writeStats(out, c.ID, group)
		}
		return c.follow(out, group, *interval)
	}
}

func writeStats(out *json.Encoder, id string, group *cgroup.Group) error {
	s, err := group.Stats()
	if err != nil {
		return err
	}
	return out.Encode(event{"stats", id, statsView(s)})
}

// follow prints until the container ends: counters in each interval, and when
// the kernel has killed for want of memory.
func (c *container) follow(out *json.Encoder, group *cgroup.Group, interval time.Duration) error {
	fd, err := c.pidfd()
	if err != nil {
		return err
	}
	defer fd.Close()
	ended := make(chan error, 1)
	go func() { ended <- waitEnd(fd) }()
	var kills uint64
	if s, err := group.Stats(); err == nil {
		kills = s.Memory.OOMKills
	}
	for {
		select {
		case err := <-ended:
			return err
		case <-time.After(interval):
		}
		s, err := group.Stats()
		if err != nil {
			return nil // gone
		}
		if s.Memory.OOMKills > kills {
			kills = s.Memory.OOMKills
			if err := out.Encode(event{Type: "oom", ID: c.ID}); err != nil {
				return err
			}
		}
		if err := out.Encode(event{"stats", c.ID, statsView(s)}); err != nil {
			return err
		}
	}
}

func statsView(s *cgroup.Stats) stats {
	v := stats{
		CPU: cpuStats{
			cpuUsage{s.CPU.Usage, s.CPU.PerCPU, s.CPU.System, s.CPU.User},
			throttled{s.CPU.Periods, s.CPU.ThrottledPeriods, s.CPU.ThrottledTime},
		},
		Memory: memoryStats{
			Cache:     s.Memory.Cache(),
			Usage:     memoryEntry{s.Memory.Limit, s.Memory.Usage, s.Memory.MaxUsage, s.Memory.Failures},
			Swap:      memoryEntry{s.Memory.SwapLimit, s.Memory.SwapUsage, s.Memory.SwapMaxUsage, s.Memory.SwapFailures},
			Kernel:    memoryEntry{Usage: s.Memory.KernelUsage, Max: s.Memory.KernelMaxUsage, Failcnt: s.Memory.KernelFailures},
			KernelTCP: memoryEntry{Usage: s.Memory.KernelTCPUsage},
			Raw:       s.Memory.Stat,
		},
		Pids: pidsStats{s.Pids.Current, s.Pids.Limit},
		Blkio: blkioStats{
			Bytes: blkioEntries(s.IO.ServiceBytes), Ops: blkioEntries(s.IO.Serviced), Queued: blkioEntries(s.IO.Queued),
			Time: blkioEntries(s.IO.ServiceTime), Wait: blkioEntries(s.IO.WaitTime), Merged: blkioEntries(s.IO.Merged),
		},
		Hugetlb: map[string]hugetlbStat{},
	}
	for size, h := range s.HugeTLB {
		v.Hugetlb[size] = hugetlbStat{h.Usage, h.MaxUsage, h.Failures}
	}
	return v
}

func blkioEntries(in []cgroup.IOEntry) []blkioEntry {
	var out []blkioEntry
	for _, e := range in {
		out = append(out, blkioEntry{e.Major, e.Minor, e.Op, e.Value})
	}
	return out
}

// waitEnd returns when the process of a pidfd has ended.
func waitEnd(pidfd *os.File) error {
	for !linux.WaitReadable(int(linux.RawFD(pidfd)), time.Hour) {
	}
	return nil
}
