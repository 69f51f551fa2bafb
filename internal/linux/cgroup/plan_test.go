package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
)

// pretend makes a Group in directories that hold what a kernel would show.
func pretend(t *testing.T, mode Mode, files map[string]string) *Group {
	t.Helper()
	root := t.TempDir()
	g := &Group{path: "/onggi/test", mode: mode}
	all := []string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb", "rdma"}
	if mode == V2 {
		g.dirs = []dir{{&hierarchy{dir: root, controllers: all, v2: true}, root + "/onggi/test", true}}
	} else {
		for _, c := range append(all, "blkio", "devices", "net_cls", "net_prio") {
			if c != "io" {
				g.dirs = append(g.dirs, dir{&hierarchy{dir: root + "/" + c, controllers: []string{c}}, root + "/" + c + "/onggi/test", true})
			}
		}
	}
	for _, d := range g.dirs {
		if err := os.MkdirAll(d.path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for f, v := range files {
		c, _, _ := strings.Cut(f, ".")
		if err := os.WriteFile(filepath.Join(g.Dir(c), f), []byte(v), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func u64p(v uint64) *uint64 { return &v }
func i64p(v int64) *int64   { return &v }
func u16p(v uint16) *uint16 { return &v }
func u32p(v uint32) *uint32 { return &v }

// Every line of want is a setting, in the order of writing.
func TestPlan(t *testing.T) {
	throttle := func(rate uint64) []specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = 8, 0
		return []specs.LinuxThrottleDevice{d}
	}
	weightDev := specs.LinuxWeightDevice{Weight: u16p(500)}
	weightDev.Major = 8
	for _, c := range []struct {
		name   string
		r      specs.LinuxResources
		update map[string]string // what is set before; nil for a new group
		v1, v2 string
	}{
		{name: "nothing", r: specs.LinuxResources{CPU: &specs.LinuxCPU{}, Memory: &specs.LinuxMemory{}, BlockIO: &specs.LinuxBlockIO{}, Pids: &specs.LinuxPids{}}},
		{name: "cpu",
			r:  specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: u64p(1024), Quota: i64p(50000), Period: u64p(100000), Cpus: "0-1", Mems: "0"}},
			v1: "cpuset cpuset.cpus = 0-1\ncpuset cpuset.mems = 0\ncpu cpu.shares = 1024\ncpu cpu.cfs_period_us = 100000\ncpu cpu.cfs_quota_us = 50000",
			v2: "cpuset cpuset.cpus = 0-1\ncpuset cpuset.mems = 0\ncpu cpu.weight = 100\ncpu cpu.max = 50000 100000"},
		{name: "burst and idle",
			r:  specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: u64p(2), Quota: i64p(50000), Burst: u64p(10000), Idle: i64p(1)}},
			v1: "cpu cpu.shares = 2\ncpu cpu.cfs_burst_us = 10000\ncpu cpu.cfs_quota_us = 50000\ncpu cpu.idle = 1",
			v2: "cpu cpu.idle = 1\ncpu cpu.max.burst = 10000\ncpu cpu.max = 50000"},
		{name: "no quota",
			r:  specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: i64p(-1)}},
			v1: "cpu cpu.cfs_quota_us = -1", v2: "cpu cpu.max = max"},
		{name: "period alone keeps the quota",
			r:      specs.LinuxResources{CPU: &specs.LinuxCPU{Period: u64p(50000)}},
			update: map[string]string{"cpu.max": "20000 100000"},
			v1:     "cpu cpu.cfs_period_us = 50000", v2: "cpu cpu.max = 20000 50000"},
		{name: "memory with swap",
			r: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64p(100), Swap: i64p(300), Reservation: i64p(50),
				Kernel: i64p(77), Swappiness: u64p(60)}},
			v1: "memory memory.limit_in_bytes = 100\nmemory memory.memsw.limit_in_bytes = 300\nmemory memory.soft_limit_in_bytes = 50\nmemory memory.swappiness = 60",
			v2: "memory memory.swap.max = 200\nmemory memory.max = 100\nmemory memory.low = 50"},
		{name: "unlimited memory is unlimited swap",
			r:  specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64p(-1)}},
			v1: "memory memory.memsw.limit_in_bytes = -1\nmemory memory.limit_in_bytes = -1",
			v2: "memory memory.swap.max = max\nmemory memory.max = max"},
		{name: "raising above the old memory+swap goes swap first",
			r:      specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64p(400), Swap: i64p(500)}},
			update: map[string]string{"memory.limit_in_bytes": "100"},
			v1:     "memory memory.memsw.limit_in_bytes = 500\nmemory memory.limit_in_bytes = 400",
			v2:     "memory memory.swap.max = 100\nmemory memory.max = 400"},
		{name: "lowering goes memory first",
			r:      specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64p(10), Swap: i64p(20)}},
			update: map[string]string{"memory.limit_in_bytes": "100"},
			v1:     "memory memory.limit_in_bytes = 10\nmemory memory.memsw.limit_in_bytes = 20",
			v2:     "memory memory.swap.max = 10\nmemory memory.max = 10"},
		{name: "swap alone counts from the memory limit in force",
			r:      specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: i64p(500)}},
			update: map[string]string{"memory.max": "200"},
			v1:     "memory memory.memsw.limit_in_bytes = 500", v2: "memory memory.swap.max = 300"},
		{name: "pids", r: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: i64p(42)}},
			v1: "pids pids.max = 42", v2: "pids pids.max = 42"},
		{name: "pids unlimited", r: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: i64p(-1)}},
			v1: "pids pids.max = max", v2: "pids pids.max = max"},
		{name: "block io",
			r: specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: u16p(100), WeightDevice: []specs.LinuxWeightDevice{weightDev},
				ThrottleReadBpsDevice: throttle(1024), ThrottleWriteIOPSDevice: throttle(0)}},
			v1: "blkio blkio.bfq.weight = 100\nblkio blkio.bfq.weight_device = 8:0 500\nblkio blkio.throttle.read_bps_device = 8:0 1024\nblkio blkio.throttle.write_iops_device = 8:0 0",
			v2: "io io.bfq.weight = 100\nio io.bfq.weight = 8:0 500\nio io.max = 8:0 rbps=1024\nio io.max = 8:0 wiops=max"},
		{name: "huge pages", r: specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 1 << 22}}},
			v1: "hugetlb hugetlb.2MB.limit_in_bytes = 4194304\nhugetlb hugetlb.2MB.rsvd.limit_in_bytes = 4194304",
			v2: "hugetlb hugetlb.2MB.max = 4194304\nhugetlb hugetlb.2MB.rsvd.max = 4194304"},
		{name: "rdma", r: specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"mlx": {HcaHandles: u32p(3)}, "a": {HcaObjects: u32p(4)}}},
			v1: "rdma rdma.max = a hca_object=4\nrdma rdma.max = mlx hca_handle=3",
			v2: "rdma rdma.max = a hca_object=4\nrdma rdma.max = mlx hca_handle=3"},
		{name: "unified", r: specs.LinuxResources{Unified: map[string]string{"memory.high": "max", "cgroup.max.depth": "3"}},
			v1: "error: unsupported", v2: "cgroup cgroup.max.depth = 3\nmemory memory.high = max"},
		{name: "network", r: specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: u32p(0x100001),
			Priorities: []specs.LinuxInterfacePriority{{Name: "eth0", Priority: 3}}}},
			v1: "net_cls net_cls.classid = 1048577\nnet_prio net_prio.ifpriomap = eth0 3", v2: "error: unsupported"},
		{name: "real time", r: specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimePeriod: u64p(1000000), RealtimeRuntime: i64p(1000)}},
			v1: "cpu cpu.rt_period_us = 1000000\ncpu cpu.rt_runtime_us = 1000", v2: "error: unsupported"},

		{name: "too few shares", r: specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: u64p(1)}}, v1: "error: invalid", v2: "cpu cpu.weight = 1"},
		{name: "swap below memory", r: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64p(100), Swap: i64p(50)}},
			v1: "error: invalid", v2: "error: invalid"},
		{name: "swappy", r: specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: u64p(101)}}, v1: "error: invalid"},
		{name: "bad weight", r: specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: u16p(9)}}, v1: "error: invalid", v2: "error: invalid"},
		{name: "page size with a path", r: specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../2MB"}}},
			v1: "error: invalid", v2: "error: invalid"},
		{name: "unified with a path", r: specs.LinuxResources{Unified: map[string]string{"memory/../x.y": "1"}},
			v1: "error: unsupported", v2: "error: invalid"},
		{name: "unified without its controller", r: specs.LinuxResources{Unified: map[string]string{"misc.max": "1"}},
			v1: "error: unsupported", v2: "error: unsupported"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for mode, want := range map[Mode]string{V1: c.v1, V2: c.v2} {
				g := pretend(t, mode, c.update)
				list, err := g.plan(&c.r, c.update == nil)
				var got []string
				for _, s := range list {
					got = append(got, s.String())
				}
				if err != nil {
					got = []string{"error: " + errdefs.KindOf(err).String()}
					t.Log(err)
				}
				if g := strings.Join(got, "\n"); g != want {
					t.Errorf("%v:\n%s\nwant:\n%s", mode, g, want)
				}
			}
		})
	}
}

func TestMissingController(t *testing.T) {
	g := pretend(t, V1, nil)
	g.dirs = g.dirs[:1] // cpu
	if _, err := g.plan(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: i64p(1)}}, true); !errdefs.Is(err, errdefs.Unsupported) ||
		!strings.Contains(err.Error(), "pids") {
		t.Errorf("got %v", err)
	}
	if l, err := g.plan(&specs.LinuxResources{}, true); err != nil || l != nil {
		t.Errorf("nothing asked: %v %v", l, err)
	}
}

// A setting that is invalid beside an old value is tried again after the rest.
func TestFilesThatAreNotThere(t *testing.T) {
	g := pretend(t, V2, map[string]string{"io.weight": "", "memory.max": ""})
	if err := g.apply(&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: u16p(1000)},
		Memory: &specs.LinuxMemory{Limit: i64p(-1)}}, true, Options{}); err != nil {
		t.Fatal(err)
	}
	if got := g.now("io", "io.weight"); got != "10000" {
		t.Errorf("io.weight is %q", got)
	}
	err := g.apply(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64p(10), Swap: i64p(30)}}, true, Options{})
	if !errdefs.Is(err, errdefs.Unsupported) || errdefs.HintOf(err) == "" {
		t.Errorf("no swap accounting: %v", err)
	}
	if err := g.apply(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: i64p(10), Swap: i64p(10)}}, true, Options{}); err != nil {
		t.Errorf("no swap at all: %v", err)
	}
}

func TestWeightOfShares(t *testing.T) {
	last := uint64(0)
	for s := uint64(0); s < 300000; s++ {
		w := weightOfShares(s)
		if w < 1 || w > 10000 || w < last {
			t.Fatalf("%d shares give weight %d after %d", s, w, last)
		}
		last = w
	}
	for s, w := range map[uint64]uint64{2: 1, 1024: 100, 262144: 10000} {
		if got := weightOfShares(s); got != w {
			t.Errorf("%d shares give %d, want %d", s, got, w)
		}
	}
}

func TestDeviceRulesOfV1(t *testing.T) {
	r := RuntimeDevices([]specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Access: "r"}, // any kind of device, for reading
		{Allow: true, Type: "c", Major: i64p(10), Minor: i64p(229), Access: "rwm"},
	})
	var got []string
	for _, w := range v1Rules(r)[:4] {
		got = append(got, strings.TrimPrefix(w[0], "/devices.")+" "+w[1])
	}
	want := []string{"deny a", "allow b *:* r", "allow c *:* r", "allow c 10:229 rwm"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	all := RuntimeDevices([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}, {Allow: true, Type: "a", Access: "rwm"}})
	if got := v1Rules(all); len(got) != 1 || got[0] != [2]string{"/devices.allow", "a"} {
		t.Errorf("a privileged container: %q", got)
	}
	if got := v1Rules([]specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: i64p(1), Access: "r"}}); got[0] != [2]string{"/devices.deny", "a"} {
		t.Errorf("a list without a start: %q", got)
	}
}

func TestParseMountinfo(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"v1 with co-mounted controllers", `
25 30 0:23 / /sys rw,nosuid shared:7 - sysfs sysfs rw
31 25 0:26 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro,mode=755
32 31 0:27 / /sys/fs/cgroup/unified rw shared:10 - cgroup2 cgroup2 rw,nsdelegate
33 31 0:28 / /sys/fs/cgroup/systemd rw shared:11 - cgroup cgroup rw,xattr,name=systemd
34 31 0:31 /docker/ab /sys/fs/cgroup/cpu,cpuacct rw shared:15 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/my\040mem rw shared:16 - cgroup cgroup rw,memory
36 31 0:32 / /mnt/again rw - cgroup cgroup rw,memory
37 31 0:33 / /mnt/named rw - cgroup cgroup rw,name=other
`, "v2 /sys/fs/cgroup/unified /; name=systemd /sys/fs/cgroup/systemd /; cpu+cpuacct /sys/fs/cgroup/cpu,cpuacct /docker/ab; memory /sys/fs/cgroup/my mem /"},
		{"garbage", "\n1 2\n - - - \nx - cgroup\n36 31 0:32 / /mnt - cgroup x memory\n", ""},
	} {
		hiers, err := parseMountinfo(strings.NewReader(c.text))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, h := range hiers {
			name := strings.Join(h.controllers, "+")
			if h.v2 {
				name = "v2"
			}
			got = append(got, fmt.Sprintf("%s %s %s", name, h.dir, h.root))
		}
		if g := strings.Join(got, "; "); g != c.want {
			t.Errorf("%s: %s, want %s", c.name, g, c.want)
		}
	}
}

func FuzzParsers(f *testing.F) {
	f.Add("34 31 0:31 /a /sys/fs/cgroup/cpu rw shared:15 - cgroup cgroup rw,cpu\n0::/x\n3:cpu,cpuacct:/y")
	f.Fuzz(func(t *testing.T, s string) {
		hiers, err := parseMountinfo(strings.NewReader(s))
		if err != nil {
			return
		}
		for _, h := range hiers {
			if p, ok := parseProcCgroup(s, h); ok && (!strings.HasPrefix(p, "/") || strings.Contains(p, "/../")) {
				t.Errorf("path %q", p)
			}
		}
		bitmap(s)
		expandSlice(s)
		unitPath(s, false)
		driver(s, "char", 1)
	})
}

func TestResolve(t *testing.T) {
	v1 := &hierarchy{dir: "/cg/memory", controllers: []string{"memory"}}
	v2 := &hierarchy{dir: "/cg", v2: true}
	self := func(h *hierarchy) (string, error) { return "/user/session", nil }
	for _, c := range []struct {
		h       *hierarchy
		p, want string
	}{
		{v1, "/onggi/a", "/cg/memory/onggi/a"}, {v1, "a", "/cg/memory/user/session/a"},
		{v1, "/../../etc", "/cg/memory/etc"}, {v1, "../../../etc", "/cg/memory/user/session/etc"},
		{v2, "/onggi/a", "/cg/onggi/a"}, {v2, "a", "/cg/user/a"}, {v1, "/onggi//a/.", "/cg/memory/onggi/a"},
		{v1, "", ""}, {v1, "/", ""}, {v1, "/..", ""}, {v1, ".", ""}, {v1, "a\x00b", ""},
	} {
		l := &layout{hiers: []*hierarchy{c.h}, self: self}
		g, err := l.resolve(c.p)
		switch {
		case c.want == "" && !errdefs.Is(err, errdefs.Invalid):
			t.Errorf("%q: %v %v", c.p, g, err)
		case c.want != "" && (err != nil || g.dirs[0].path != c.want):
			t.Errorf("%q: %v %v, want %s", c.p, g, err, c.want)
		}
	}
}

func TestBelow(t *testing.T) {
	for _, c := range [][3]string{
		{"/", "/a/b", "/a/b"}, {"/docker/x", "/docker/x", "/"}, {"/docker/x", "/docker/x/y", "/y"},
		{"/docker/x", "/docker/xy", "/"}, {"/..", "/a", "/"},
	} {
		if got := below(c[0], c[1]); got != c[2] {
			t.Errorf("%s seen from %s: %s, want %s", c[1], c[0], got, c[2])
		}
	}
}
