package conformance

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Limits are read back from the files of the group that the process is in.
func TestLimits(t *testing.T) {
	for _, c := range []struct {
		name       string
		r          specs.LinuxResources
		v1, want1  string
		v2, want2  string
		relative   bool
		controller string
	}{
		{name: "memory", r: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(50593792))}},
			v1: "memory.limit_in_bytes", want1: "50593792", v2: "memory.max", want2: "50593792"},
		{name: "reservation", r: specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: ptr(int64(50593792))}},
			v1: "memory.soft_limit_in_bytes", want1: "50593792", v2: "memory.low", want2: "50593792"},
		{name: "swap", r: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr(int64(1 << 26)), Swap: ptr(int64(1 << 27))}},
			v1: "memory.memsw.limit_in_bytes", want1: "134217728", v2: "memory.swap.max", want2: "67108864"},
		{name: "swappiness", r: specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: ptr(uint64(50))}},
			v1: "memory.swappiness", want1: "50"},
		{name: "pids", r: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(1000))}},
			v1: "pids.max", want1: "1000", v2: "pids.max", want2: "1000"},
		{name: "quota", r: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr(int64(25000)), Period: ptr(uint64(50000))}},
			v1: "cpu.cfs_quota_us", want1: "25000", v2: "cpu.max", want2: "25000 50000"},
		{name: "shares", r: specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: ptr(uint64(1024))}},
			v1: "cpu.shares", want1: "1024", v2: "cpu.weight", want2: "100"},
		{name: "cpuset", r: specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}},
			v1: "cpuset.cpus", want1: "0", v2: "cpuset.cpus", want2: "0"},
		{name: "throttle", r: specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{}}, v1: "blkio.throttle.read_bps_device", v2: "io.max"},
		{name: "relative", r: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(77))}}, relative: true,
			v1: "pids.max", want1: "77", v2: "pids.max", want2: "77"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if isV2() && c.v2 == "" {
				t.Skip("v2 has no such limit")
			}
			if c.name == "shares" && isV2() {
				better(t, "older runtimes convert shares along a straight line")
			}
			b := open(t, "sleep 100")
			b.spec.Linux.Resources = &c.r
			if c.relative {
				b.spec.Linux.CgroupsPath = b.id
			}
			if c.name == "throttle" {
				dev := specs.LinuxThrottleDevice{Rate: 102400}
				dev.Major, dev.Minor = disk(t)
				c.r.BlockIO.ThrottleReadBpsDevice = []specs.LinuxThrottleDevice{dev}
				c.want1 = fmt.Sprintf("%d:%d 102400", dev.Major, dev.Minor)
				c.want2 = fmt.Sprintf("%d:%d rbps=102400 wbps=max riops=max wiops=max", dev.Major, dev.Minor)
			}
			b.up()
			want := c.want1
			if isV2() {
				want = c.want2
			}
			if got := b.group(b.state().Pid, c.v1, c.v2); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

// disk is a block device of this machine.
func disk(t *testing.T) (major, minor int64) {
	t.Helper()
	ents, _ := filepath.Glob("/sys/block/*/dev")
	for _, e := range ents {
		if strings.Contains(e, "/ram") {
			continue
		}
		text, _ := os.ReadFile(e)
		if _, err := fmt.Sscanf(string(text), "%d:%d", &major, &minor); err == nil {
			return major, minor
		}
	}
	t.Skip("no block device here")
	return 0, 0
}

// A limit for a controller that is missing is refused, and says so.
func TestMissingController(t *testing.T) {
	if _, err := os.Stat("/sys/fs/cgroup/net_cls"); err == nil {
		t.Skip("net_cls is here")
	}
	if isV2() {
		better(t, "v2 drops it silently")
	}
	b := open(t, "true")
	b.spec.Linux.Resources.Network = &specs.LinuxNetwork{ClassID: ptr(uint32(255))}
	if msg := b.refused(); !strings.Contains(msg, "net_cls") {
		t.Errorf("the reason is not named: %s", msg)
	}
}

func TestGroupsAreRemoved(t *testing.T) {
	b := open(t, "sleep 100 & sleep 100")
	b.up()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", b.state().Pid))
	b.check(err)
	b.good("delete", "--force", b.id)
	n := 0
	for l := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n") {
		f := strings.SplitN(l, ":", 3)
		controller := strings.TrimPrefix(f[1], "name=")
		if controller == "" && !isV2() {
			controller = "unified"
		}
		if !strings.Contains(f[2], b.id) {
			continue
		}
		n++
		if p := filepath.Join("/sys/fs/cgroup", controller, f[2]); exists(p) {
			t.Errorf("%s is there", p)
		}
	}
	if n == 0 {
		t.Errorf("the container was in no group of its own:\n%s", text)
	}
}

func exists(p string) bool { _, err := os.Stat(p); return err == nil }

// A container sees its own groups, and cannot change them.
func TestGroupsInside(t *testing.T) {
	better(t, "runc 1.1 leaves the directory of the v1 hierarchies writable")
	b := open(t, "ls /sys/fs/cgroup | head -3; mkdir /sys/fs/cgroup/x 2>&1; for d in /sys/fs/cgroup/*/; do mkdir $d/x 2>/dev/null && echo made; done; true")
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: "cgroup"})
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}})
	got := b.run()
	if strings.Contains(got, "made") || !strings.Contains(got, "Read-only file system") {
		t.Errorf("got\n%s", got)
	}
}
