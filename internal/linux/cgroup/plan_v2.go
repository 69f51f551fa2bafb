package cgroup

import (
	"fmt"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// enabledV2 are the controllers that a group of ours gets on a v2 machine,
// limited or not, since what is not enabled is not counted either. The rest is
// enabled when it is asked for.
var enabledV2 = []string{"cpu", "cpuset", "io", "memory", "pids", "hugetlb", "rdma", "misc"}

// parentsReady remembers the groups whose children have the controllers, with
// what was asked of them, so that only the first child pays for looking.
var parentsReady sync.Map // parent path + want → true

// enable gives the group the controllers it needs, by cgroup.subtree_control
// of each group above it.
func (d *dir) enable(r *specs.LinuxResources) error {
	want := enabledV2
	if more := wantsV2(r, d.hierarchy); len(more) > 0 {
		want = append(slices.Clone(want), more...)
	}
	var have []string
	for _, c := range want {
		if d.has(c) && !slices.Contains(have, c) {
			have = append(have, c)
		}
	}
	if len(have) == 0 {
		return nil
	}
	slices.Sort(have)
	parent := path.Dir(d.path)
	key := parent + "\x00" + strings.Join(have, " ")
	if _, ok := parentsReady.Load(key); ok {
		// The parent may have been removed and made again meanwhile.
		if s, err := readFile(d.path + "/cgroup.controllers"); err == nil && hasAll(s, have) {
			return nil
		}
	}
	needed := wantsV2(r, d.hierarchy)
	if err := enableBelow(parent, d.dir, have, needed); err != nil {
		return err
	}
	parentsReady.Store(key, true)
	return nil
}

func hasAll(text string, want []string) bool {
	have := strings.Fields(text)
	for _, c := range want {
		if !slices.Contains(have, c) {
			return false
		}
	}
	return true
}

// enableBelow enables controllers for the children of group p, top first. Only
// needed ones that cannot be had are an error.
func enableBelow(p, root string, want, needed []string) error {
	if len(p) > len(root) {
		if err := enableBelow(path.Dir(p), root, want, needed); err != nil {
			return err
		}
	} else if len(p) < len(root) {
		return nil
	}
	file := p + "/cgroup.subtree_control"
	now, err := readFile(file)
	if err != nil {
		return errdefs.New(kindOf(err), "read", file, err)
	}
	var missing []string
	for _, c := range want {
		if !slices.Contains(strings.Fields(now), c) {
			missing = append(missing, "+"+c)
		}
	}
	if len(missing) == 0 || writeFile(file, strings.Join(missing, " ")) == nil {
		return nil
	}
	// One that cannot be enabled spoils a common write.
	for _, m := range missing {
		err := writeFile(file, m)
		if err == nil || !slices.Contains(needed, m[1:]) {
			continue
		}
		e := errdefs.Newf(kindOf(err), "enable", "controller "+m[1:]+" below control group "+p, "%w", err)
		switch err {
		case unix.EBUSY:
			e = errdefs.WithHint(e, "processes are in that group itself; move them to a group below it")
		case unix.ENOENT:
			e = errdefs.WithHint(e, "the group above does not hand the controller down")
		case unix.EACCES, unix.EPERM, unix.EROFS:
			e = errdefs.WithHint(e, "the controller is not delegated to you")
		}
		return e
	}
	return nil
}

// v2 plans one controller of a v2 hierarchy.
func (p *planner) v2(controller string, r *specs.LinuxResources) {
	switch controller {
	case "cpuset":
		if r.CPU.Cpus != "" {
			p.set("cpuset", "cpuset.cpus", r.CPU.Cpus)
		}
		if r.CPU.Mems != "" {
			p.set("cpuset", "cpuset.mems", r.CPU.Mems)
		}
	case "cpu":
		p.cpuV2(r.CPU)
	case "memory":
		p.memoryV2(r.Memory)
	case "pids":
		p.pids(*r.Pids.Limit)
	case "io":
		p.ioV2(r.BlockIO)
	case "hugetlb":
		for _, h := range r.HugepageLimits {
			if !pageSizeOK(h.Pagesize) {
				p.complain("hugetlb", "%q is not a page size", h.Pagesize)
				return
			}
			p.set("hugetlb", "hugetlb."+h.Pagesize+".max", u64(h.Limit))
			p.set("hugetlb", "hugetlb."+h.Pagesize+".rsvd.max", u64(h.Limit)).optional = true
		}
	case "rdma":
		p.rdma(r.Rdma)
	}
}

func (p *planner) cpuV2(c *specs.LinuxCPU) {
	if nonzero(c.RealtimePeriod) || nonzero(c.RealtimeRuntime) {
		p.refuse("cpu", "control groups v2 have no real-time limits")
		return
	}
	if c.Idle != nil {
		p.set("cpu", "cpu.idle", i64(*c.Idle))
	}
	// An idle group has no weight.
	if nonzero(c.Shares) && deref(c.Idle) != 1 {
		p.set("cpu", "cpu.weight", u64(weightOfShares(*c.Shares)))
	}
	if c.Burst != nil {
		p.set("cpu", "cpu.max.burst", u64(*c.Burst)).late = true
	}
	if !nonzero(c.Quota) && !nonzero(c.Period) {
		return
	}
	quota := "max"
	switch {
	case deref(c.Quota) > 0:
		quota = i64(*c.Quota)
	case !nonzero(c.Quota):
		// Only the period changes.
		if now, _, _ := strings.Cut(p.now("cpu", "cpu.max"), " "); now != "" {
			quota = now
		}
	}
	if nonzero(c.Period) {
		quota += " " + u64(*c.Period)
	}
	p.set("cpu", "cpu.max", quota)
}

func (p *planner) memoryV2(m *specs.LinuxMemory) {
	limit, swap := deref(m.Limit), deref(m.Swap)
	if limit == -1 && swap == 0 {
		swap = -1
	}
	// v1 counts memory and swap together, v2 swap alone.
	switch {
	case swap == -1:
		p.set("memory", "memory.swap.max", "max").optional = true
	case swap < -1:
		p.complain("memory", "memory+swap cannot be %d", swap)
	case swap > 0 && limit <= 0:
		old, err := parseUint(p.now("memory", "memory.max"))
		if limit < 0 || err != nil || old == ^uint64(0) {
			p.complain("memory", "memory+swap is limited (%d) but memory is not", swap)
			break
		}
		if old > uint64(swap) {
			p.complain("memory", "memory+swap (%d) is below memory (%d)", swap, old)
			break
		}
		p.set("memory", "memory.swap.max", u64(uint64(swap)-old))
	case swap > 0 && swap < limit:
		p.complain("memory", "memory+swap (%d) is below memory (%d)", swap, limit)
	case swap > 0:
		s := p.set("memory", "memory.swap.max", i64(swap-limit))
		s.optional = swap == limit // no swap at all is what a kernel without swap gives
	}
	if limit != 0 {
		p.set("memory", "memory.max", maxOr(limit))
	}
	if nonzero(m.Reservation) {
		p.set("memory", "memory.low", maxOr(*m.Reservation))
	}
	// swappiness, the OOM killer's switch and kernel limits have no
	// counterpart; what was asked for is a hint or a relic.
}

func maxOr(v int64) string {
	if v < 0 {
		return "max"
	}
	return i64(v)
}

func (p *planner) ioV2(b *specs.LinuxBlockIO) {
	weight := func(dev string, w *uint16) {
		if !nonzero(w) {
			return
		}
		if *w < 10 || *w > 1000 {
			p.complain("io", "a weight is 10 to 1000, not %d", *w)
			return
		}
		s := p.set("io", "io.bfq.weight", dev+strconv.Itoa(int(*w)))
		s.orElse, s.orElseValue = "io.weight", dev+u64(ioWeight(*w))
	}
	weight("", b.Weight)
	for _, d := range b.WeightDevice {
		weight(fmt.Sprintf("%d:%d ", d.Major, d.Minor), d.Weight)
	}
	throttle := func(key string, list []specs.LinuxThrottleDevice) {
		for _, d := range list {
			rate := "max"
			if d.Rate != 0 {
				rate = u64(d.Rate)
			}
			p.set("io", "io.max", fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, key, rate))
		}
	}
	throttle("rbps", b.ThrottleReadBpsDevice)
	throttle("wbps", b.ThrottleWriteBpsDevice)
	throttle("riops", b.ThrottleReadIOPSDevice)
	throttle("wiops", b.ThrottleWriteIOPSDevice)
}

func sortedKeys[V any](m map[string]V) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
