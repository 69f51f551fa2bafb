package cgroup

import (
	"os"
	"strconv"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
)

// Stats is what the group has used. What the machine does not count is zero.
// Times are in nanoseconds, sizes in bytes.
type Stats struct {
	CPU     CPUStats
	Memory  MemoryStats
	Pids    PidsStats
	IO      IOStats
	HugeTLB map[string]HugeTLBStats // by page size, as "2MB"
	Rdma    RdmaStats
}

// CPUStats is processor time.
type CPUStats struct {
	Usage, User, System uint64
	PerCPU              []uint64 // v1 only
	Periods             uint64   // of the quota, as far as the group ran in them
	ThrottledPeriods    uint64
	ThrottledTime       uint64
	Pressure            *Pressure // v2 only
}

// MemoryStats is memory. A limit that is not set is the largest number.
type MemoryStats struct {
	Usage, MaxUsage, Limit         uint64
	Failures                       uint64 // times the limit was hit
	SwapUsage, SwapLimit           uint64 // v1 counts memory+swap here, v2 swap alone
	SwapMaxUsage, SwapFailures     uint64
	KernelUsage, KernelTCPUsage    uint64
	KernelMaxUsage, KernelFailures uint64
	Stat                           map[string]uint64 // memory.stat, in the names of the version
	OOMKills                       uint64
	Pressure                       *Pressure
}

// Cache is the page cache among Usage.
func (m *MemoryStats) Cache() uint64 {
	if v, ok := m.Stat["file"]; ok {
		return v
	}
	return m.Stat["cache"]
}

// PidsStats counts processes and threads. Limit 0 is none.
type PidsStats struct{ Current, Limit uint64 }

// IOStats is block device traffic.
type IOStats struct {
	ServiceBytes, Serviced                               []IOEntry
	ServiceTime, WaitTime, Queued, Merged, Time, Sectors []IOEntry // v1 with BFQ only
	Pressure                                             *Pressure
}

// IOEntry is one counter of one device. Op is "Read", "Write", "Sync",
// "Async", "Discard", "Total", or "" where the counter is for all.
type IOEntry struct {
	Major, Minor uint64
	Op           string
	Value        uint64
}

// HugeTLBStats is the use of one size of huge pages.
type HugeTLBStats struct{ Usage, MaxUsage, Failures uint64 }

// RdmaStats is by device.
type RdmaStats struct{ Limit, Current map[string]RdmaEntry }

// RdmaEntry is the handles and objects of one device.
type RdmaEntry struct{ Handles, Objects uint64 }

// Pressure is the time in which some, or all, tasks waited for a resource.
type Pressure struct{ Some, Full PressureValues }

// PressureValues are shares in percent over three spans of seconds, and the
// sum in microseconds.
type PressureValues struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}

// Stats reads the counters. A controller that is missing, or whose file is,
// leaves zeroes; a group that is gone is NotFound.
func (g *Group) Stats() (*Stats, error) {
	t := g.tracking()
	if t == nil || !exists(t.path) {
		return nil, errdefs.Newf(errdefs.NotFound, "read", "counters of "+g.String(), "it does not exist")
	}
	s := &Stats{}
	for i := range g.dirs {
		d := &g.dirs[i]
		if d.v2 && g.mode == V2 {
			s.cpuV2(d)
		}
		for _, c := range d.controllers {
			if g.find(c) != d {
				continue
			}
			s.read(c, d)
		}
	}
	return s, nil
}

func (s *Stats) read(controller string, d *dir) {
	switch controller {
	case "cpu":
		if !d.v2 {
			m := d.keys("cpu.stat")
			s.CPU.Periods, s.CPU.ThrottledPeriods = m["nr_periods"], m["nr_throttled"]
			s.CPU.ThrottledTime = m["throttled_time"]
		}
	case "cpuacct":
		s.cpuacct(d)
	case "memory":
		if d.v2 {
			s.memoryV2(d)
		} else {
			s.memoryV1(d)
		}
	case "pids":
		s.Pids.Current = d.number("pids.current")
		if l := d.number("pids.max"); l != ^uint64(0) {
			s.Pids.Limit = l
		}
	case "blkio":
		s.blkio(d)
	case "io":
		s.ioV2(d)
	case "hugetlb":
		s.hugetlb(d)
	case "rdma":
		s.Rdma.Current, s.Rdma.Limit = d.rdma("rdma.current"), d.rdma("rdma.max")
	}
}

func (d *dir) number(file string) uint64 {
	n, err := readUint(d.path + "/" + file)
	if err != nil {
		return 0
	}
	return n
}

// keys reads a file of "name number" lines.
func (d *dir) keys(file string) map[string]uint64 {
	text, _ := readFile(d.path + "/" + file)
	out := make(map[string]uint64, 64)
	for line := range strings.SplitSeq(text, "\n") {
		if k, v, ok := strings.Cut(line, " "); ok {
			if n, err := parseUint(v); err == nil {
				out[k] = n
			}
		}
	}
	return out
}

func (s *Stats) cpuV2(d *dir) {
	m := d.keys("cpu.stat")
	c := &s.CPU
	c.Usage, c.User, c.System = m["usage_usec"]*1000, m["user_usec"]*1000, m["system_usec"]*1000
	c.Periods, c.ThrottledPeriods, c.ThrottledTime = m["nr_periods"], m["nr_throttled"], m["throttled_usec"]*1000
	c.Pressure = d.pressure("cpu.pressure")
}

// userHZ is the unit of cpuacct.stat: 1/100 s on every architecture in use.
const userHZ = 100

func (s *Stats) cpuacct(d *dir) {
	c := &s.CPU
	c.Usage = d.number("cpuacct.usage")
	per, _ := readFile(d.path + "/cpuacct.usage_percpu")
	for f := range strings.FieldsSeq(per) {
		n, _ := parseUint(f)
		c.PerCPU = append(c.PerCPU, n)
	}
	c.User, c.System = d.number("cpuacct.usage_user"), d.number("cpuacct.usage_sys")
	if c.User == 0 && c.System == 0 {
		m := d.keys("cpuacct.stat")
		c.User, c.System = m["user"]*(1e9/userHZ), m["system"]*(1e9/userHZ)
	}
}

func (s *Stats) memoryV1(d *dir) {
	m := &s.Memory
	m.Usage, m.MaxUsage = d.number("memory.usage_in_bytes"), d.number("memory.max_usage_in_bytes")
	m.Limit, m.Failures = d.number("memory.limit_in_bytes"), d.number("memory.failcnt")
	m.SwapUsage, m.SwapMaxUsage = d.number("memory.memsw.usage_in_bytes"), d.number("memory.memsw.max_usage_in_bytes")
	m.SwapLimit, m.SwapFailures = d.number("memory.memsw.limit_in_bytes"), d.number("memory.memsw.failcnt")
	m.KernelUsage, m.KernelTCPUsage = d.number("memory.kmem.usage_in_bytes"), d.number("memory.kmem.tcp.usage_in_bytes")
	m.KernelMaxUsage, m.KernelFailures = d.number("memory.kmem.max_usage_in_bytes"), d.number("memory.kmem.failcnt")
	m.Stat = d.keys("memory.stat")
	m.OOMKills, _ = d.oomKills()
}

func (s *Stats) memoryV2(d *dir) {
	m := &s.Memory
	m.Usage, m.MaxUsage, m.Limit = d.number("memory.current"), d.number("memory.peak"), d.number("memory.max")
	m.SwapUsage, m.SwapMaxUsage, m.SwapLimit = d.number("memory.swap.current"), d.number("memory.swap.peak"), d.number("memory.swap.max")
	m.Stat = d.keys("memory.stat")
	m.KernelUsage = m.Stat["kernel"]
	ev := d.keys("memory.events")
	m.Failures, m.OOMKills = ev["max"], ev["oom_kill"]
	m.Pressure = d.pressure("memory.pressure")
}

func (s *Stats) blkio(d *dir) {
	// BFQ counts what passes its queues; the throttling layer counts all.
	pick := func(files ...string) []IOEntry {
		for _, f := range files {
			if e := d.ioEntries(f); len(e) > 0 {
				return e
			}
		}
		return nil
	}
	io := &s.IO
	io.ServiceBytes = pick("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_service_bytes", "blkio.bfq.io_service_bytes_recursive")
	io.Serviced = pick("blkio.throttle.io_serviced_recursive", "blkio.throttle.io_serviced", "blkio.bfq.io_serviced_recursive")
	if !exists(d.path + "/blkio.bfq.io_service_time_recursive") {
		return // a kernel without the debugging counters
	}
	io.ServiceTime = d.ioEntries("blkio.bfq.io_service_time_recursive")
	io.WaitTime = d.ioEntries("blkio.bfq.io_wait_time_recursive")
	io.Queued = d.ioEntries("blkio.bfq.io_queued_recursive")
	io.Merged = d.ioEntries("blkio.bfq.io_merged_recursive")
	io.Time = d.ioEntries("blkio.bfq.time_recursive")
	io.Sectors = d.ioEntries("blkio.bfq.sectors_recursive")
}

// ioEntries reads lines "8:0 Read 4096" and "8:0 4096".
func (d *dir) ioEntries(file string) []IOEntry {
	text, _ := readFile(d.path + "/" + file)
	var out []IOEntry
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		major, minor, ok := device(f[0])
		n, err := parseUint(f[len(f)-1])
		if !ok || err != nil {
			continue // the line with the grand total
		}
		e := IOEntry{Major: major, Minor: minor, Value: n}
		if len(f) == 3 {
			e.Op = f[1]
		}
		out = append(out, e)
	}
	return out
}

func device(s string) (major, minor uint64, ok bool) {
	a, b, ok := strings.Cut(s, ":")
	if !ok {
		return 0, 0, false
	}
	major, err1 := strconv.ParseUint(a, 10, 32)
	minor, err2 := strconv.ParseUint(b, 10, 32)
	return major, minor, err1 == nil && err2 == nil
}

// ioV2 reads lines "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0", in
// the words of v1.
func (s *Stats) ioV2(d *dir) {
	text, _ := readFile(d.path + "/io.stat")
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		major, minor, ok := device(f[0])
		if !ok {
			continue
		}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, err := parseUint(v)
			if err != nil {
				continue
			}
			e := IOEntry{Major: major, Minor: minor, Value: n}
			to := &s.IO.ServiceBytes
			switch k {
			case "rbytes", "rios":
				e.Op = "Read"
			case "wbytes", "wios":
				e.Op = "Write"
			case "dbytes", "dios":
				e.Op = "Discard"
			default:
				continue
			}
			if strings.HasSuffix(k, "ios") {
				to = &s.IO.Serviced
			}
			*to = append(*to, e)
		}
	}
	s.IO.Pressure = d.pressure("io.pressure")
}

func (s *Stats) hugetlb(d *dir) {
	ents, err := os.ReadDir(d.path)
	if err != nil {
		return
	}
	usage, most, fail := "usage_in_bytes", "max_usage_in_bytes", "failcnt"
	if d.v2 {
		usage, most, fail = "current", "", ""
	}
	for _, e := range ents {
		size, file, _ := strings.Cut(strings.TrimPrefix(e.Name(), "hugetlb."), ".")
		if !strings.HasPrefix(e.Name(), "hugetlb.") || file != usage || !pageSizeOK(size) {
			continue
		}
		// Reservations are what a limit is about, where they are counted.
		prefix := "hugetlb." + size + "."
		if exists(d.path + "/" + prefix + "rsvd." + usage) {
			prefix += "rsvd."
		}
		h := HugeTLBStats{Usage: d.number(prefix + usage)}
		if d.v2 {
			h.Failures, _ = keyed(d.path+"/hugetlb."+size+".events", "max")
		} else {
			h.MaxUsage, h.Failures = d.number(prefix+most), d.number(prefix+fail)
		}
		if s.HugeTLB == nil {
			s.HugeTLB = map[string]HugeTLBStats{}
		}
		s.HugeTLB[size] = h
	}
}

// rdma reads lines "mlx4_0 hca_handle=2 hca_object=max".
func (d *dir) rdma(file string) map[string]RdmaEntry {
	text, _ := readFile(d.path + "/" + file)
	var out map[string]RdmaEntry
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		var e RdmaEntry
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, _ := parseUint(v)
			switch k {
			case "hca_handle":
				e.Handles = n
			case "hca_object":
				e.Objects = n
			}
		}
		if out == nil {
			out = map[string]RdmaEntry{}
		}
		out[f[0]] = e
	}
	return out
}

// pressure reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and "full …".
func (d *dir) pressure(file string) *Pressure {
	text, err := readFile(d.path + "/" + file)
	if err != nil {
		return nil
	}
	p := &Pressure{}
	for line := range strings.SplitSeq(text, "\n") {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		v := &p.Some
		if f[0] == "full" {
			v = &p.Full
		}
		for _, kv := range f[1:] {
			k, s, _ := strings.Cut(kv, "=")
			switch k {
			case "avg10":
				v.Avg10, _ = strconv.ParseFloat(s, 64)
			case "avg60":
				v.Avg60, _ = strconv.ParseFloat(s, 64)
			case "avg300":
				v.Avg300, _ = strconv.ParseFloat(s, 64)
			case "total":
				v.Total, _ = strconv.ParseUint(s, 10, 64)
			}
		}
	}
	return p
}
