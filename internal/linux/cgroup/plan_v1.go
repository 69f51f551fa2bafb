package cgroup

import (
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// v1 plans one controller of a v1 hierarchy.
func (p *planner) v1(controller string, r *specs.LinuxResources) {
	switch controller {
	case "cpuset":
		if r.CPU.Cpus != "" {
			p.set("cpuset", "cpuset.cpus", r.CPU.Cpus)
		}
		if r.CPU.Mems != "" {
			p.set("cpuset", "cpuset.mems", r.CPU.Mems)
		}
	case "cpu":
		p.cpuV1(r.CPU)
	case "memory":
		p.memoryV1(r.Memory)
	case "pids":
		p.pids(*r.Pids.Limit)
	case "io":
		p.blkio(r.BlockIO)
	case "hugetlb":
		for _, h := range r.HugepageLimits {
			if !pageSizeOK(h.Pagesize) {
				p.complain("hugetlb", "%q is not a page size", h.Pagesize)
				return
			}
			p.set("hugetlb", "hugetlb."+h.Pagesize+".limit_in_bytes", u64(h.Limit))
			p.set("hugetlb", "hugetlb."+h.Pagesize+".rsvd.limit_in_bytes", u64(h.Limit)).optional = true
		}
	case "rdma":
		p.rdma(r.Rdma)
	case "net_cls":
		p.set("net_cls", "net_cls.classid", strconv.FormatUint(uint64(*r.Network.ClassID), 10))
	case "net_prio":
		for _, n := range r.Network.Priorities {
			p.set("net_prio", "net_prio.ifpriomap", fmt.Sprintf("%s %d", n.Name, n.Priority))
		}
	}
}

func (p *planner) cpuV1(c *specs.LinuxCPU) {
	if nonzero(c.Shares) {
		// The kernel clamps without a word.
		switch s := *c.Shares; {
		case s < 2:
			p.complain("cpu", "the least shares are 2, not %d", s)
		case s > 262144:
			p.complain("cpu", "the most shares are 262144, not %d", s)
		}
		p.set("cpu", "cpu.shares", u64(*c.Shares))
	}
	// Real time: the runtime must fit into the period at every moment.
	if nonzero(c.RealtimePeriod) {
		p.set("cpu", "cpu.rt_period_us", u64(*c.RealtimePeriod)).late = true
	}
	if nonzero(c.RealtimeRuntime) {
		p.set("cpu", "cpu.rt_runtime_us", i64(*c.RealtimeRuntime)).late = true
	}
	// So must the burst into the quota, and the quota into the parent's share
	// of the period.
	if c.Burst != nil {
		p.set("cpu", "cpu.cfs_burst_us", u64(*c.Burst)).late = true
	}
	if nonzero(c.Period) {
		p.set("cpu", "cpu.cfs_period_us", u64(*c.Period)).late = true
	}
	if nonzero(c.Quota) {
		p.set("cpu", "cpu.cfs_quota_us", i64(*c.Quota)).late = true
	}
	if c.Idle != nil {
		p.set("cpu", "cpu.idle", i64(*c.Idle))
	}
}

func (p *planner) memoryV1(m *specs.LinuxMemory) {
	limit, swap := deref(m.Limit), deref(m.Swap)
	if limit == -1 && swap == 0 {
		// Unlimited memory below a limit of memory+swap is not possible.
		p.set("memory", "memory.memsw.limit_in_bytes", "-1").optional = true
		p.set("memory", "memory.limit_in_bytes", "-1")
	} else {
		p.memorySwapV1(limit, swap)
	}
	if nonzero(m.Reservation) {
		p.set("memory", "memory.soft_limit_in_bytes", i64(*m.Reservation))
	}
	// The kernel's own memory is not limited apart from the rest any more
	// (m.Kernel is ignored); its TCP buffers still are.
	if nonzero(m.KernelTCP) {
		p.set("memory", "memory.kmem.tcp.limit_in_bytes", i64(*m.KernelTCP))
	}
	if m.Swappiness != nil {
		if *m.Swappiness > 100 {
			p.complain("memory", "swappiness is 0 to 100, not %d", *m.Swappiness)
		}
		p.set("memory", "memory.swappiness", u64(*m.Swappiness))
	}
	if m.DisableOOMKiller != nil && *m.DisableOOMKiller {
		p.set("memory", "memory.oom_control", "1")
	}
}

// memorySwapV1 keeps limit <= memory+swap at every moment, as the kernel
// demands.
func (p *planner) memorySwapV1(limit, swap int64) {
	if limit > 0 && swap > 0 && swap < limit {
		p.complain("memory", "memory+swap (%d) is below memory (%d)", swap, limit)
		return
	}
	swapFirst := swap == -1
	if limit != 0 && swap > 0 {
		if old, err := parseUint(p.now("memory", "memory.limit_in_bytes")); err == nil {
			swapFirst = old < uint64(swap)
		}
	}
	if swap != 0 && swapFirst {
		p.set("memory", "memory.memsw.limit_in_bytes", i64(swap)).optional = swap == -1
	}
	if limit != 0 {
		p.set("memory", "memory.limit_in_bytes", i64(limit))
	}
	if swap != 0 && !swapFirst {
		p.set("memory", "memory.memsw.limit_in_bytes", i64(swap))
	}
}

func (p *planner) pids(limit int64) {
	if limit < 0 {
		p.set("pids", "pids.max", "max")
		return
	}
	p.set("pids", "pids.max", i64(limit))
}

func (p *planner) blkio(b *specs.LinuxBlockIO) {
	// The weight belongs to the BFQ scheduler; the old files to CFQ.
	weight := func(file, prefix string, w *uint16) {
		if nonzero(w) {
			if *w < 10 || *w > 1000 {
				p.complain("blkio", "a weight is 10 to 1000, not %d", *w)
			}
			v := prefix + strconv.Itoa(int(*w))
			s := p.set("blkio", "blkio.bfq."+file, v)
			s.orElse, s.orElseValue = "blkio."+file, v
		}
	}
	weight("weight", "", b.Weight)
	if nonzero(b.LeafWeight) {
		p.set("blkio", "blkio.leaf_weight", strconv.Itoa(int(*b.LeafWeight)))
	}
	for _, d := range b.WeightDevice {
		dev := fmt.Sprintf("%d:%d ", d.Major, d.Minor)
		weight("weight_device", dev, d.Weight)
		if nonzero(d.LeafWeight) {
			p.set("blkio", "blkio.leaf_weight_device", dev+strconv.Itoa(int(*d.LeafWeight)))
		}
	}
	throttle := func(file string, list []specs.LinuxThrottleDevice) {
		for _, d := range list {
			p.set("blkio", "blkio.throttle."+file, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate))
		}
	}
	throttle("read_bps_device", b.ThrottleReadBpsDevice)
	throttle("write_bps_device", b.ThrottleWriteBpsDevice)
	throttle("read_iops_device", b.ThrottleReadIOPSDevice)
	throttle("write_iops_device", b.ThrottleWriteIOPSDevice)
}

func (p *planner) rdma(m map[string]specs.LinuxRdma) {
	for _, dev := range sortedKeys(m) {
		v := dev
		if l := m[dev]; l.HcaHandles != nil {
			v += " hca_handle=" + strconv.FormatUint(uint64(*l.HcaHandles), 10)
		}
		if l := m[dev]; l.HcaObjects != nil {
			v += " hca_object=" + strconv.FormatUint(uint64(*l.HcaObjects), 10)
		}
		p.set("rdma", "rdma.max", v)
	}
}

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}
