package cgroup

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
)

func TestUnitPath(t *testing.T) {
	for _, c := range []struct{ path, slice, name, group string }{
		{"system.slice:onggi:web", "system.slice", "onggi-web.scope", "/system.slice/onggi-web.scope"},
		{":onggi:web", "system.slice", "onggi-web.scope", "/system.slice/onggi-web.scope"},
		{"a-b-c.slice::web", "a-b-c.slice", "web.scope", "/a.slice/a-b.slice/a-b-c.slice/web.scope"},
		{"-.slice:p:x", "-.slice", "p-x.scope", "/p-x.scope"},
		{"system.slice:p:x.slice", "system.slice", "x.slice", "/system.slice/x.slice"},
		{path: "/onggi/web"}, {path: "a:b"}, {path: "a.slice:b:"}, {path: "a:b:c"}, {path: "a--b.slice:p:x"},
		{path: ".slice:p:x"}, {path: "a.slice:p:../../x"},
	} {
		slice, name, group, err := unitPath(c.path, false)
		if c.name == "" {
			if !errdefs.Is(err, errdefs.Invalid) {
				t.Errorf("%s: %s %s %s %v", c.path, slice, name, group, err)
			}
			continue
		}
		if err != nil || slice != c.slice || name != c.name || group != c.group {
			t.Errorf("%s: %s %s %s %v", c.path, slice, name, group, err)
		}
	}
}

func TestResourceProperties(t *testing.T) {
	r := &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: u64p(1024), Quota: i64p(25000), Period: u64p(50000), Cpus: "0-2,9", Mems: "0"},
		Memory: &specs.LinuxMemory{Limit: i64p(100), Swap: i64p(150), Reservation: i64p(50)},
		Pids:   &specs.LinuxPids{Limit: i64p(-1)}, BlockIO: &specs.LinuxBlockIO{Weight: u16p(10)},
		Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Major: i64p(1), Minor: i64p(3)},
			{Allow: true, Type: "c", Access: "m"}, {Type: "b", Major: i64p(8), Access: "r"}},
	}
	for _, c := range []struct {
		mode    Mode
		version int
		want    string
	}{
		{V2, 252, "CPUWeight=100 CPUQuotaPeriodUSec=50000 CPUQuotaPerSecUSec=500000 AllowedCPUs=[7 2] AllowedMemoryNodes=[1] MemoryMax=100 MemoryLow=50 MemorySwapMax=50 TasksMax=18446744073709551615 IOWeight=1 DevicePolicy=strict DeviceAllow=[{/dev/char/1:3 rwm} {char-* m}]"},
		{V1, 230, "CPUShares=1024 CPUQuotaPerSecUSec=500000 MemoryLimit=100 TasksMax=18446744073709551615 BlockIOWeight=10 DevicePolicy=strict DeviceAllow=[{/dev/char/1:3 rwm}]"},
	} {
		p, err := resourceProperties(r, c.mode, c.version)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, x := range p {
			got = append(got, fmt.Sprintf("%s=%v", x.Name, x.Value))
		}
		if g := strings.Join(got, " "); g != c.want {
			t.Errorf("%v:\n%s\nwant\n%s", c.mode, g, c.want)
		}
	}
	if _, err := resourceProperties(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "3-1"}}, V2, 252); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("a bad list: %v", err)
	}
	p, _ := resourceProperties(&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}, V2, 252)
	if len(p) != 2 || p[0].Value != "auto" {
		t.Errorf("all devices: %v", p)
	}
}

// units is a systemd that makes the directories itself.
type units struct {
	root  string
	calls []string
}

func (u *units) Start(name string, p []Property) error {
	u.calls = append(u.calls, "start "+name)
	return os.MkdirAll(filepath.Join(u.root, "system.slice", name), 0o700)
}

func (u *units) Set(name string, p []Property) error {
	u.calls = append(u.calls, fmt.Sprint("set ", name, " ", p))
	return nil
}

func (u *units) Stop(name string) error {
	u.calls = append(u.calls, "stop "+name)
	return nil
}

func (u *units) Version() (int, error) { return 252, nil }

func TestCreateUnit(t *testing.T) {
	root := t.TempDir()
	l := &layout{mode: V2, hiers: []*hierarchy{{dir: root, v2: true, controllers: []string{"pids"}}}}
	u := &units{root: root}
	scope := root + "/system.slice/onggi-a.scope"
	if err := os.MkdirAll(scope, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(scope+"/pids.max", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: i64p(9)}}
	g, err := l.create("system.slice:onggi:a", r, Options{Systemd: true, Units: u, Pid: 1})
	if err != nil {
		t.Fatal(err)
	}
	if got := g.now("pids", "pids.max"); got != "9" {
		t.Errorf("pids.max is %q", got)
	}
	if err := g.Update(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: i64p(5)}}); err != nil {
		t.Fatal(err)
	}
	os.Remove(scope + "/pids.max")
	if err := g.Delete(); err != nil {
		t.Fatal(err)
	}
	want := "start onggi-a.scope; set onggi-a.scope [{TasksMax 5}]; stop onggi-a.scope"
	if got := strings.Join(u.calls, "; "); got != want {
		t.Errorf("systemd was asked: %s\nwant: %s", got, want)
	}
	if _, err := l.create("system.slice:onggi:a", r, Options{Systemd: true}); !errdefs.Is(err, errdefs.Unsupported) || errdefs.HintOf(err) == "" {
		t.Errorf("without D-Bus: %v", err)
	}
	if _, err := l.create("system.slice:onggi:a", r, Options{Systemd: true, Units: u}); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("a scope without a process: %v", err)
	}
}
