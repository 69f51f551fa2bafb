package container

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/blkiodev"
	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// checkResources refuses limits that can never work.
func checkResources(r *container.Resources, d Defaults) (warnings []string, err error) {
	switch {
	case r.Memory != 0 && r.Memory < minMemory:
		return nil, invalid("Minimum memory limit allowed is 6MB")
	case r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory:
		return nil, invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	case r.Memory == 0 && r.MemorySwap > 0:
		return nil, invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	case r.MemorySwappiness != nil && (*r.MemorySwappiness < 0 || *r.MemorySwappiness > 100):
		return nil, invalid("Invalid value: %v, valid memory swappiness range is 0-100", *r.MemorySwappiness)
	case r.MemoryReservation > 0 && r.MemoryReservation < minMemory:
		return nil, invalid("Minimum memory reservation allowed is 6MB")
	case r.Memory > 0 && r.MemoryReservation > r.Memory:
		return nil, invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	case r.NanoCPUs < 0:
		return nil, invalid("range of CPUs is from 0.01 to the number of CPUs of the machine")
	case r.NanoCPUs > 0 && (r.CPUPeriod > 0 || r.CPUQuota > 0):
		return nil, invalid("Conflicting options: Nano CPUs and CPU %s cannot both be set", either(r.CPUPeriod > 0, "Period", "Quota"))
	case r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000):
		return nil, invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	case r.CPUQuota > 0 && r.CPUQuota < 1000:
		return nil, invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	case r.CPUShares < 0:
		return nil, invalid("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	case r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000):
		return nil, invalid("Range of blkio weight is from 10 to 1000")
	}
	if n := runtime.NumCPU(); r.NanoCPUs > int64(n)*1e9 {
		return nil, invalid("range of CPUs is from 0.01 to %d.00, as there are only %d CPUs available", n, n)
	}
	for _, s := range []struct{ what, v, things, there string }{
		{"cpus", r.CpusetCpus, "CPUs", "/sys/devices/system/cpu/online"}, {"mems", r.CpusetMems, "memory nodes", "/sys/devices/system/node/online"},
	} {
		if err := checkCPUSet(s.v); err != nil {
			return nil, invalid("Invalid value %s for cpuset %s", clip(s.v), s.what)
		}
		if s.v == "" {
			continue
		}
		b, err := os.ReadFile(s.there)
		if there := strings.TrimSpace(string(b)); err == nil && !within(s.v, there) {
			return nil, invalid("Requested %s are not available - requested %s, available: %s", s.things, clip(s.v), there)
		}
	}
	for _, rule := range r.DeviceCgroupRules {
		if _, err := parseDeviceRule(rule); err != nil {
			return nil, err
		}
	}
	for _, dev := range r.Devices {
		if dev.PathOnHost == "" || dev.CgroupPermissions != "" && strings.Trim(dev.CgroupPermissions, "rwm") != "" {
			return nil, invalid("device %q with permissions %q: want a path and some of r, w and m", clip(dev.PathOnHost), clip(dev.CgroupPermissions))
		}
	}
	if r.PidsLimit != nil && *r.PidsLimit < -1 {
		return nil, invalid("pids limit %d: want a positive number, or -1 for none", *r.PidsLimit)
	}
	return warnings, nil
}

func either(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

// within tells whether every range of a list lies in one of another's.
func within(list, of string) bool {
	bounds := func(part string) (lo, hi int) {
		a, b, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			b = a
		}
		lo, _ = strconv.Atoi(a)
		hi, _ = strconv.Atoi(b)
		return lo, hi
	}
	for part := range strings.SplitSeq(list, ",") {
		lo, hi := bounds(part)
		in := false
		for o := range strings.SplitSeq(of, ",") {
			olo, ohi := bounds(o)
			in = in || olo <= lo && hi <= ohi
		}
		if !in {
			return false
		}
	}
	return true
}

// checkCPUSet refuses "0-2147483647" before anybody loops over it.
func checkCPUSet(s string) error {
	if s == "" {
		return nil
	}
	if len(s) > 4096 {
		return strconv.ErrSyntax
	}
	for part := range strings.SplitSeq(s, ",") {
		lo, hi, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			hi = lo
		}
		a, err := strconv.ParseUint(lo, 10, 16)
		if err != nil {
			return err
		}
		b, err := strconv.ParseUint(hi, 10, 16)
		if err != nil || b < a || b > 8191 {
			return strconv.ErrRange
		}
	}
	return nil
}

// parseDeviceRule reads "c 10:200 rwm", where numbers may be "*".
func parseDeviceRule(s string) (specs.LinuxDeviceCgroup, error) {
	bad := func() (specs.LinuxDeviceCgroup, error) {
		return specs.LinuxDeviceCgroup{}, invalid("invalid device cgroup rule format: '%s'", clip(s))
	}
	f := strings.Split(s, " ")
	if len(f) != 3 || len(f[0]) != 1 || !strings.Contains("abc", f[0]) || f[2] == "" || len(f[2]) > 3 || strings.Trim(f[2], "rwm") != "" {
		return bad()
	}
	maj, mnr, ok := strings.Cut(f[1], ":")
	if !ok {
		return bad()
	}
	num := func(v string) (*int64, bool) { // nil is all: crun knows no -1
		if v == "*" {
			return nil, true
		}
		u, err := strconv.ParseUint(v, 10, 32)
		n := int64(u)
		return &n, err == nil
	}
	a, ok1 := num(maj)
	b, ok2 := num(mnr)
	if !ok1 || !ok2 {
		return bad()
	}
	return specs.LinuxDeviceCgroup{Allow: true, Type: f[0], Major: a, Minor: b, Access: f[2]}, nil
}

// linuxResources converts the limits into the runtime's terms. Devices are
// added by the caller.
func linuxResources(r *container.Resources, d Defaults) (*specs.LinuxResources, error) {
	out := &specs.LinuxResources{Memory: memoryLimits(r), CPU: cpuLimits(r)}
	limit := cmpOr(d.PidsLimit, pidsLimit)
	if r.PidsLimit != nil {
		limit = *r.PidsLimit
	}
	if limit > 0 || r.PidsLimit != nil { // -1 lifts the limit of an earlier update
		out.Pids = &specs.LinuxPids{Limit: &limit}
	}
	var err error
	out.BlockIO, err = blockLimits(r)
	return out, err
}

func memoryLimits(r *container.Resources) *specs.LinuxMemory {
	m := &specs.LinuxMemory{}
	if r.Memory > 0 {
		m.Limit = &r.Memory
	}
	if r.MemoryReservation > 0 {
		m.Reservation = &r.MemoryReservation
	}
	if r.MemorySwap != 0 {
		m.Swap = &r.MemorySwap
	}
	if r.MemorySwappiness != nil {
		s := uint64(*r.MemorySwappiness)
		m.Swappiness = &s
	}
	m.DisableOOMKiller = r.OomKillDisable
	if *m == (specs.LinuxMemory{}) {
		return nil
	}
	return m
}

func cpuLimits(r *container.Resources) *specs.LinuxCPU {
	c := &specs.LinuxCPU{Cpus: r.CpusetCpus, Mems: r.CpusetMems}
	if r.CPUShares > 0 {
		s := uint64(r.CPUShares)
		c.Shares = &s
	}
	if r.NanoCPUs > 0 {
		period := uint64(100000)
		quota := r.NanoCPUs * int64(period) / 1e9
		c.Period, c.Quota = &period, &quota
	}
	if r.CPUPeriod != 0 {
		p := uint64(r.CPUPeriod)
		c.Period = &p
	}
	if r.CPUQuota != 0 {
		c.Quota = &r.CPUQuota
	}
	if r.CPURealtimePeriod != 0 {
		p := uint64(r.CPURealtimePeriod)
		c.RealtimePeriod = &p
	}
	if r.CPURealtimeRuntime != 0 {
		c.RealtimeRuntime = &r.CPURealtimeRuntime
	}
	if *c == (specs.LinuxCPU{}) {
		return nil
	}
	return c
}

func blockLimits(r *container.Resources) (*specs.LinuxBlockIO, error) {
	b := &specs.LinuxBlockIO{}
	any := r.BlkioWeight > 0
	if any {
		b.Weight = &r.BlkioWeight
	}
	for _, w := range r.BlkioWeightDevice {
		if w == nil {
			continue
		}
		dev, err := linux.StatDevice(w.Path)
		if err != nil {
			return nil, invalid("block device %s: %w", clip(w.Path), err)
		}
		weight := w.Weight
		wd := specs.LinuxWeightDevice{Weight: &weight}
		wd.Major, wd.Minor = dev.Major, dev.Minor
		b.WeightDevice, any = append(b.WeightDevice, wd), true
	}
	for _, t := range []struct {
		in  []*blkiodev.ThrottleDevice
		out *[]specs.LinuxThrottleDevice
	}{
		{r.BlkioDeviceReadBps, &b.ThrottleReadBpsDevice},
		{r.BlkioDeviceWriteBps, &b.ThrottleWriteBpsDevice},
		{r.BlkioDeviceReadIOps, &b.ThrottleReadIOPSDevice},
		{r.BlkioDeviceWriteIOps, &b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.in {
			if d == nil {
				continue
			}
			dev, err := linux.StatDevice(d.Path)
			if err != nil {
				return nil, invalid("block device %s: %w", clip(d.Path), err)
			}
			td := specs.LinuxThrottleDevice{Rate: d.Rate}
			td.Major, td.Minor = dev.Major, dev.Minor
			*t.out, any = append(*t.out, td), true
		}
	}
	if !any {
		return nil, nil
	}
	return b, nil
}

// defaultDevices are what every container may use; the nodes themselves are
// made by the runtime.
func defaultDevices() []specs.LinuxDeviceCgroup {
	n := func(v int64) *int64 { return &v }
	out := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 1}, {5, 2}} {
		out = append(out, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: n(d[0]), Minor: n(d[1]), Access: "rwm"})
	}
	out = append(out,
		specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: n(136), Access: "rwm"}, // pts
		// Making a node of any kind is harmless: opening it is not allowed.
		specs.LinuxDeviceCgroup{Allow: true, Type: "c", Access: "m"},
		specs.LinuxDeviceCgroup{Allow: true, Type: "b", Access: "m"},
	)
	return out
}

// hostDevices resolves --device, of which a directory means all in it.
func hostDevices(mappings []container.DeviceMapping) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	var devs []specs.LinuxDevice
	var rules []specs.LinuxDeviceCgroup
	for _, m := range mappings {
		perms := cmpOr(m.CgroupPermissions, "rwm")
		target := cmpOr(m.PathInContainer, m.PathOnHost)
		found, err := linux.DevicesAt(m.PathOnHost)
		if err != nil || len(found) == 0 {
			if _, serr := os.Stat(m.PathOnHost); err == nil && serr == nil {
				err = fmt.Errorf("%q: not a device node", clip(m.PathOnHost))
			} else if err == nil {
				err = os.ErrNotExist
			}
			return nil, nil, errdefs.Newf(errdefs.Invalid, "", "", "error gathering device information while adding custom device %q: %w", clip(m.PathOnHost), err)
		}
		for _, d := range found {
			maj, mnr := d.Major, d.Minor
			mode, uid, gid := d.Mode, d.UID, d.GID
			devs = append(devs, specs.LinuxDevice{Path: target + strings.TrimPrefix(d.Path, m.PathOnHost), Type: d.Type, Major: maj, Minor: mnr, FileMode: &mode, UID: &uid, GID: &gid})
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &maj, Minor: &mnr, Access: perms})
		}
	}
	return devs, rules, nil
}

// allHostDevices are what --privileged gives: every node in /dev but what the
// runtime makes itself.
func allHostDevices() ([]specs.LinuxDevice, error) {
	found, err := linux.DevicesAt("/dev")
	if err != nil {
		return nil, err
	}
	own := []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx"}
	var out []specs.LinuxDevice
	for _, d := range found {
		if slices.Contains(own, d.Path) || strings.HasPrefix(d.Path, "/dev/pts/") || strings.HasPrefix(d.Path, "/dev/shm/") || strings.HasPrefix(d.Path, "/dev/mqueue/") {
			continue
		}
		mode, uid, gid := d.Mode, d.UID, d.GID
		out = append(out, specs.LinuxDevice{Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: &uid, GID: &gid})
	}
	return out, nil
}
