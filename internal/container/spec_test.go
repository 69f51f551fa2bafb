package container

import (
	"encoding/json"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/ocispec"
)

const testID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// specOf takes a request through everything that needs no kernel: image,
// normal form, mounts, spec.
func specOf(t *testing.T, c *Config, h *HostConfig) *specs.Spec {
	t.Helper()
	img := imageConfig{Env: []string{"PATH=/bin", "LANG=C"}, Cmd: []string{"sh"}, WorkingDir: "/srv", Labels: map[string]string{"from": "image"}}
	if err := mergeImage(c, img); err != nil {
		t.Fatal(err)
	}
	if _, err := normalise(testID, c, h, Defaults{}); err != nil {
		t.Fatal(err)
	}
	mounts, err := planMounts(c, h, nil)
	if err != nil {
		t.Fatal(err)
	}
	in := specInput{
		ID: testID, Config: c, Host: h, Hostname: c.Hostname, HostsFile: "/c/hosts", HostFile: "/c/hostname", ResolvFile: "/c/resolv.conf",
		CgroupsPath: "/onggi/" + testID, KnownCaps: len(allCaps), User: identity{Groups: []uint32{0}, Home: "/root"},
		Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
	}
	for _, m := range mounts {
		p := m.Source
		if m.Type == mount.TypeVolume {
			p = "/volumes/" + cmpOr(m.Name, "anonymous") + "/_data"
		}
		in.Mounts = append(in.Mounts, sourcedMount{Mount: m, Path: p})
	}
	if in.Security, err = parseSecurity(h.SecurityOpt); err != nil {
		t.Fatal(err)
	}
	if in.Security.seccomp == unconfined || h.Privileged {
		in.Seccomp = nil
	}
	if in.Resources, err = linuxResources(&h.Resources, Defaults{}); err != nil {
		t.Fatal(err)
	}
	return buildSpec(in)
}

// The spec of each kind of container is golden text, so that a change of what
// containers get is a diff somebody reads.
func TestSpecGoldens(t *testing.T) {
	yes, pids := true, int64(100)
	for _, c := range []struct {
		name string
		cfg  Config
		host HostConfig
	}{
		{"default", Config{}, HostConfig{}},
		{"terminal", Config{Tty: true, OpenStdin: true, Entrypoint: []string{"/bin/ash"}, Cmd: []string{"-l"}, Hostname: "box", Domainname: "example.org", Env: []string{"LANG=ko_KR.UTF-8", "EMPTY=", "UNSET"}, User: "app"}, HostConfig{ConsoleSize: [2]uint{24, 80}}},
		{"privileged", Config{Cmd: []string{"sh"}}, HostConfig{Privileged: true}},
		{"hardened", Config{Cmd: []string{"sh"}}, HostConfig{ReadonlyRootfs: true, CapDrop: []string{"all"}, CapAdd: []string{"NET_BIND_SERVICE"}, SecurityOpt: []string{"no-new-privileges", "seccomp=unconfined"}, Tmpfs: map[string]string{"/run": "size=64m,exec"}}},
		{"mounts", Config{Cmd: []string{"sh"}, Volumes: map[string]struct{}{"/var/lib/data": {}, "/src": {}}}, HostConfig{
			Binds:  []string{"/src:/src:ro", "named:/data", "/host:/host:rshared"},
			Mounts: []mount.Mount{{Type: mount.TypeTmpfs, Target: "/cache", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20, Mode: 0o1777}}, {Type: mount.TypeBind, Source: "/b", Target: "/data/below", ReadOnly: true, BindOptions: &mount.BindOptions{NonRecursive: true}}},
		}},
		{"namespaces", Config{Cmd: []string{"sh"}}, HostConfig{NetworkMode: "host", PidMode: "host", IpcMode: "host", UTSMode: "host", CgroupnsMode: "host"}},
		{"limits", Config{Cmd: []string{"sh"}}, HostConfig{OomScoreAdj: 500, Resources: container.Resources{
			Memory: 64 << 20, NanoCPUs: 1.5e9, CPUShares: 512, CpusetCpus: "0", PidsLimit: &pids, BlkioWeight: 300, OomKillDisable: &yes,
			Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}, {Name: "core", Soft: -1, Hard: -1}}, DeviceCgroupRules: []string{"c 10:* rm"},
		}, Sysctls: map[string]string{"net.core.somaxconn": "1024"}}},
	} {
		s := specOf(t, &c.cfg, &c.host)
		b, err := json.MarshalIndent(s, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		checkGolden(t, "testdata/spec-"+c.name+".json", string(b)+"\n")
		for _, set := range [][]string{s.Process.Capabilities.Inheritable, s.Process.Capabilities.Ambient} {
			if len(set) > 0 {
				t.Errorf("%s: inheritable or ambient capabilities %v", c.name, set)
			}
		}
	}
}

func TestCapabilities(t *testing.T) {
	for _, c := range []struct {
		add, drop []string
		privilege bool
		known     int
		want      int
		has, not  string
	}{
		{want: len(defaultCaps), has: "CAP_CHOWN", not: "CAP_NET_RAW"},
		{add: []string{"net_raw"}, want: len(defaultCaps) + 1, has: "CAP_NET_RAW"},
		{drop: []string{"CAP_CHOWN"}, want: len(defaultCaps) - 1, not: "CAP_CHOWN"},
		{drop: []string{"ALL"}, want: 0},
		{drop: []string{"all"}, add: []string{"sys_time"}, want: 1, has: "CAP_SYS_TIME"},
		{add: []string{"ALL"}, drop: []string{"SYS_ADMIN"}, want: len(allCaps) - 1, not: "CAP_SYS_ADMIN"},
		{privilege: true, want: len(allCaps), has: "CAP_SYS_ADMIN"},
		{privilege: true, known: 38, want: 38, not: "CAP_BPF"},
	} {
		add, err1 := normaliseCaps(c.add)
		drop, err2 := normaliseCaps(c.drop)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		got := effectiveCaps(add, drop, c.privilege, cmpOr(c.known, len(allCaps)))
		if len(got) != c.want || c.has != "" && !slices.Contains(got, c.has) || c.not != "" && slices.Contains(got, c.not) {
			t.Errorf("%+v: %v", c, got)
		}
	}
	if _, err := normaliseCaps([]string{"CAP_FLY"}); err == nil {
		t.Error("an unknown capability was accepted")
	}
}

// What can never work is refused at create, with words.
func TestNormaliseRefuses(t *testing.T) {
	n, neg := int64(-5), -2
	for name, q := range map[string]struct {
		c Config
		h HostConfig
	}{
		"no command":            {c: Config{Cmd: []string{}}},
		"relative workdir":      {c: Config{Cmd: []string{"x"}, WorkingDir: "srv"}},
		"env without name":      {c: Config{Cmd: []string{"x"}, Env: []string{"=x"}}},
		"host name newline":     {c: Config{Cmd: []string{"x"}, Hostname: "a\nb"}},
		"stop signal":           {c: Config{Cmd: []string{"x"}, StopSignal: "SIGNOPE"}},
		"stop timeout":          {c: Config{Cmd: []string{"x"}, StopTimeout: &neg}},
		"health type":           {c: Config{Cmd: []string{"x"}, Healthcheck: &container.HealthConfig{Test: []string{"RUN", "x"}}}},
		"health interval":       {c: Config{Cmd: []string{"x"}, Healthcheck: &container.HealthConfig{Interval: 1}}},
		"memory":                {h: HostConfig{Resources: container.Resources{Memory: 1 << 20}}},
		"swap below memory":     {h: HostConfig{Resources: container.Resources{Memory: 64 << 20, MemorySwap: 32 << 20}}},
		"cpus":                  {h: HostConfig{Resources: container.Resources{NanoCPUs: 4096e9}}},
		"cpu period and cpus":   {h: HostConfig{Resources: container.Resources{NanoCPUs: 1e9, CPUPeriod: 1000}}},
		"endless cpuset":        {h: HostConfig{Resources: container.Resources{CpusetCpus: "0-2147483647"}}},
		"pids":                  {h: HostConfig{Resources: container.Resources{PidsLimit: &n}}},
		"device rule":           {h: HostConfig{Resources: container.Resources{DeviceCgroupRules: []string{"c 1:3 rwx"}}}},
		"ulimit name":           {h: HostConfig{Resources: container.Resources{Ulimits: []*container.Ulimit{{Name: "fun"}}}}},
		"ulimit order":          {h: HostConfig{Resources: container.Resources{Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 3, Hard: 2}}}}},
		"sysctl of the host":    {h: HostConfig{Sysctls: map[string]string{"kernel.core_pattern": "|/x"}}},
		"sysctl by path":        {h: HostConfig{Sysctls: map[string]string{"net/../kernel/core_pattern": "x"}}},
		"sysctl two in one":     {h: HostConfig{Sysctls: map[string]string{"kernel.shmmax": "1\nkernel.core_pattern=x"}}},
		"sysctl in host net":    {h: HostConfig{NetworkMode: "host", Sysctls: map[string]string{"net.core.somaxconn": "1"}}},
		"security option":       {h: HostConfig{SecurityOpt: []string{"magic=on"}}},
		"rm with restart":       {h: HostConfig{AutoRemove: true, RestartPolicy: container.RestartPolicy{Name: "always"}}},
		"restart policy":        {h: HostConfig{RestartPolicy: container.RestartPolicy{Name: "maybe"}}},
		"retries with always":   {h: HostConfig{RestartPolicy: container.RestartPolicy{Name: "always", MaximumRetryCount: 3}}},
		"runtime":               {h: HostConfig{Runtime: "runsc"}},
		"log driver":            {h: HostConfig{LogConfig: container.LogConfig{Type: "carrier-pigeon"}}},
		"log option":            {h: HostConfig{LogConfig: container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "lots"}}}},
		"ipc mode":              {h: HostConfig{IpcMode: "friendly"}},
		"pid mode":              {h: HostConfig{PidMode: "container:"}},
		"userns mode":           {h: HostConfig{UsernsMode: "remap"}},
		"capability":            {h: HostConfig{CapAdd: []string{"CAP_FLY"}}},
		"shm size":              {h: HostConfig{ShmSize: -1}},
		"oom score":             {h: HostConfig{OomScoreAdj: 1001}},
		"extra host":            {h: HostConfig{ExtraHosts: []string{"evil\n0.0.0.0 bank"}}},
		"port":                  {h: HostConfig{PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "http"}}}}},
		"port 0":                {h: HostConfig{PortBindings: network.PortMap{network.MustParsePort("0/tcp"): {{}}}}},
		"storage option":        {h: HostConfig{StorageOpt: map[string]string{"size": "much"}}},
		"hostname and host uts": {c: Config{Cmd: []string{"x"}, Hostname: "a"}, h: HostConfig{UTSMode: "host"}},
	} {
		if q.c.Cmd == nil {
			q.c.Cmd = []string{"x"}
		}
		if _, err := normalise(testID, &q.c, &q.h, Defaults{}); err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "\n0.0.0.0") {
			t.Errorf("%s: raw line break in %q", name, err)
		}
	}
}

func TestMergeImage(t *testing.T) {
	img := imageConfig{Entrypoint: []string{"/entry"}, Cmd: []string{"serve"}, Env: []string{"A=image", "B=image"}, ExposedPorts: map[string]struct{}{"80": {}, "90-91/udp": {}}, User: "app"}
	for _, c := range []struct {
		entry, cmd, wantEntry, wantCmd []string
	}{
		{nil, nil, []string{"/entry"}, []string{"serve"}},
		{nil, []string{"sh"}, []string{"/entry"}, []string{"sh"}},
		{[]string{"/mine"}, nil, []string{"/mine"}, nil},
		{[]string{""}, []string{"sh"}, []string{""}, []string{"sh"}}, // normalise makes it none
	} {
		cfg := Config{Entrypoint: c.entry, Cmd: c.cmd, Env: []string{"A=mine"}}
		if err := mergeImage(&cfg, img); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(cfg.Entrypoint, c.wantEntry) || !slices.Equal(cfg.Cmd, c.wantCmd) {
			t.Errorf("%v %v: %v %v", c.entry, c.cmd, cfg.Entrypoint, cfg.Cmd)
		}
		if !slices.Equal(cfg.Env, []string{"A=mine", "B=image"}) || cfg.User != "app" || len(cfg.ExposedPorts) != 3 {
			t.Errorf("merged: %+v", cfg)
		}
	}
}

func TestPlanMounts(t *testing.T) {
	for _, bad := range []string{"", ":", "a", "rel/path:/x", "/a:rel", "/a:/", "/a:/b:bogus", "/a:/b:ro,rw", "x:/b", "/a:/b:", "/a:/b:ro:x", "/a:/b:shared,slave", "name:/b:rshared", "/a:/b:nocopy", "/a\x00:/b"} {
		if _, err := planMounts(&Config{}, &HostConfig{Binds: []string{bad}}, nil); err == nil {
			t.Errorf("bind %q: accepted", bad)
		}
	}
	for _, bad := range []mount.Mount{
		{Type: mount.TypeBind, Target: "/x"}, {Type: mount.TypeBind, Source: "rel", Target: "/x"}, {Type: mount.TypeVolume, Source: "v"}, {Type: "fancy", Target: "/x"},
		{Type: mount.TypeTmpfs, Source: "x", Target: "/x"}, {Type: mount.TypeTmpfs, Target: "/x", BindOptions: &mount.BindOptions{}},
		{Type: mount.TypeVolume, Source: "vol", Target: "/x", VolumeOptions: &mount.VolumeOptions{Subpath: "/abs"}},
		{Type: mount.TypeTmpfs, Target: "/x", TmpfsOptions: &mount.TmpfsOptions{Options: [][]string{{"size", "1,exec"}}}},
		{Type: mount.TypeBind, Source: "/a", Target: "/x", BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}},
	} {
		if _, err := planMounts(&Config{}, &HostConfig{Mounts: []mount.Mount{bad}}, nil); err == nil {
			t.Errorf("mount %+v: accepted", bad)
		}
	}
	if _, err := planMounts(&Config{}, &HostConfig{Binds: []string{"/a:/x", "/b:/x/"}}, nil); err == nil {
		t.Error("two mounts at one place were accepted")
	}
	// The request wins over --volumes-from, which wins over the image.
	got, err := planMounts(&Config{Volumes: map[string]struct{}{"/a": {}, "/b": {}, "/c": {}}}, &HostConfig{Binds: []string{"/h:/a"}},
		[]Mount{{Type: mount.TypeVolume, Name: "other", Destination: "/b"}, {Type: mount.TypeVolume, Name: "lost", Destination: "/a"}})
	if err != nil || len(got) != 3 || got[0].Source != "/h" || got[1].Name != "other" || !got[2].Options.Anonymous {
		t.Errorf("%+v, %v", got, err)
	}
}

// Whatever a bind says, it ends at an absolute clean path or as an error.
func FuzzParseBind(f *testing.F) {
	f.Add("/a:/b:ro")
	f.Add("name:/b:nocopy")
	f.Add("/data")
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseBind(s, "")
		if err == nil && (!strings.HasPrefix(m.Destination, "/") || strings.Contains(m.Destination, "/../") || m.Destination == "/" || strings.Contains(m.Destination, "\x00")) {
			t.Fatalf("%q: %+v", s, m)
		}
	})
}

func TestDetachKeys(t *testing.T) {
	keys, err := ReadDetachKeys("")
	if err != nil || string(keys) != "\x10\x11" {
		t.Fatalf("%q %v", keys, err)
	}
	if k, err := ReadDetachKeys("ctrl-a,x,ctrl-@"); err != nil || string(k) != "\x01x\x00" {
		t.Errorf("%q %v", k, err)
	}
	for _, bad := range []string{"ctrl-", "ctrl-é", "ctrl-p,", "ctrl-A", "CTRL-a", "toolong", strings.Repeat("a,", 50) + "a"} {
		if _, err := ReadDetachKeys(bad); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
	for _, c := range []struct {
		in       []string
		want     string
		detached bool
	}{
		{[]string{"hello"}, "hello", false},
		{[]string{"a\x10\x11b"}, "a", true},
		{[]string{"a\x10", "\x11"}, "a", true},
		{[]string{"a\x10b\x11"}, "a\x10b\x11", false},
		{[]string{"\x10\x10\x11"}, "\x10", true},
	} {
		var out strings.Builder
		got, err := copyUntilKeys(&out, &pieces{c.in}, keys)
		if err != nil || got != c.detached || out.String() != c.want {
			t.Errorf("%q: %q %v %v", c.in, out.String(), got, err)
		}
	}
}

type pieces struct{ p []string }

func (r *pieces) Read(b []byte) (int, error) {
	if len(r.p) == 0 {
		return 0, io.EOF
	}
	n := copy(b, r.p[0])
	r.p = r.p[1:]
	return n, nil
}

func TestRestartPolicy(t *testing.T) {
	pol := func(n container.RestartPolicyMode, max int) container.RestartPolicy {
		return container.RestartPolicy{Name: n, MaximumRetryCount: max}
	}
	for _, c := range []struct {
		p    container.RestartPolicy
		st   Status
		code int
		want bool
	}{
		{pol("no", 0), Status{}, 1, false},
		{pol("always", 0), Status{}, 0, true},
		{pol("always", 0), Status{StopRequested: true}, 0, false},
		{pol("unless-stopped", 0), Status{}, 137, true},
		{pol("on-failure", 0), Status{RestartCount: 99}, 1, true},
		{pol("on-failure", 0), Status{}, 0, false},
		{pol("on-failure", 3), Status{RestartCount: 2}, 1, true},
		{pol("on-failure", 3), Status{RestartCount: 3}, 1, false},
	} {
		if got := restartWanted(c.p, c.st, c.code); got != c.want {
			t.Errorf("%+v after %d: %v", c.p, c.code, got)
		}
	}
	d := time.Duration(0)
	for range 20 {
		d = nextBackoff(d, time.Second)
	}
	if d != maxBackoff || nextBackoff(d, time.Minute) != firstBackoff || nextBackoff(0, 0) != firstBackoff {
		t.Errorf("back-off ends at %v", d)
	}
	now := time.Now()
	for ago, want := range map[time.Duration]time.Duration{0: 800, 300: 500, 800: 0, time.Hour: 0, -time.Hour: 800} {
		st := Status{FinishedAt: now.Add(-ago * time.Millisecond), Backoff: 800 * time.Millisecond}
		if got := pauseLeft(st, now); got != want*time.Millisecond {
			t.Errorf("%v after its end %v of the pause are left, want %v", ago*time.Millisecond, got, want*time.Millisecond)
		}
	}
}

func TestHealthPolicy(t *testing.T) {
	st, streak := container.Starting, 0
	for i, c := range []struct {
		ok, starting bool
		want         container.HealthStatus
		streak       int
	}{
		{false, true, container.Starting, 0}, {false, false, container.Starting, 1}, {true, false, container.Healthy, 0},
		{false, false, container.Healthy, 1}, {false, false, container.Healthy, 2}, {false, false, container.Unhealthy, 3}, {true, false, container.Healthy, 0},
	} {
		if st, streak = judge(st, streak, 3, c.ok, c.starting); st != c.want || streak != c.streak {
			t.Errorf("step %d: %v %d, want %v %d", i, st, streak, c.want, c.streak)
		}
	}
	if got := probeCommand(&Config{Healthcheck: &container.HealthConfig{Test: []string{"CMD-SHELL", "true"}}}); !slices.Equal(got, []string{"/bin/sh", "-c", "true"}) {
		t.Errorf("%v", got)
	}
	if probeCommand(&Config{Healthcheck: &container.HealthConfig{Test: []string{"NONE"}}}) != nil {
		t.Error("NONE runs something")
	}
}

func TestParseTime(t *testing.T) {
	now := time.Unix(1000000, 0)
	for in, want := range map[string]time.Time{
		"0": time.Unix(0, 0), "10m": now.Add(-10 * time.Minute), "1500000000": time.Unix(1500000000, 0), "1500000000.5": time.Unix(1500000000, 5e8), "-5": time.Unix(-5, 0),
		"2026-01-02T15:04:05Z": time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC),
	} {
		if got, err := ParseTime(in, now); err != nil || !got.Equal(want) {
			t.Errorf("%q: %v %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "yesterday", "1.2.3", "99999999999999999999", "1x", "."} {
		if got, err := ParseTime(bad, now); err == nil {
			t.Errorf("%q: %v", bad, got)
		}
	}
}

func TestSignals(t *testing.T) {
	for in, want := range map[string]int{"TERM": 15, "sigterm": 15, "9": 9, "RTMIN": 34, "RTMIN+3": 37, "RTMAX-1": 63, "64": 64} {
		if got, err := ParseSignal(in); err != nil || got != want {
			t.Errorf("%q: %d %v", in, got, err)
		}
	}
	for _, bad := range []string{"", "0", "65", "SIGNOPE", "RTMIN+40", "RTMIN3", "-1", "+9"} {
		if got, err := ParseSignal(bad); err == nil {
			t.Errorf("%q: %d", bad, got)
		}
	}
}

func TestTopColumns(t *testing.T) {
	for in, want := range map[string]string{
		"": "UID PID PPID C STIME TTY TIME CMD", "-ef": "UID PID PPID C STIME TTY TIME CMD", "aux": "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND",
		"-o pid,cmd": "PID COMMAND", "-eo user,pid=P": "USER P",
	} {
		cols, err := topColumns(in)
		var titles []string
		for _, c := range cols {
			titles = append(titles, c.title)
		}
		if err != nil || strings.Join(titles, " ") != want {
			t.Errorf("%q: %v %v", in, titles, err)
		}
	}
	for _, bad := range []string{"-o", "-o comm", "-o pid,bogus"} {
		if _, err := topColumns(bad); err == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
}

// A record says after a round trip what it said before.
func TestRecordRoundTrip(t *testing.T) {
	ten := 10
	r := &Record{Version: 1, ID: testID, Name: "web", Created: time.Unix(5, 6).UTC(), ImageID: "sha256:x", Config: &Config{Cmd: []string{"a"}, StopTimeout: &ten, ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}}},
		HostConfig: &HostConfig{DNS: []netip.Addr{netip.MustParseAddr("1.1.1.1")}, PortBindings: network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "8080"}}}},
		Networks:   map[string]*network.EndpointSettings{"bridge": {Aliases: []string{"a"}}}, Mounts: []Mount{{Type: "volume", Name: "v", Destination: "/d", Options: MountOptions{Anonymous: true}}}}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Record
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if b2, _ := json.Marshal(&back); string(b2) != string(b) {
		t.Errorf("%s\n%s", b, b2)
	}
	st := Status{State: Paused, PID: 7, ExitCode: 3, StartedAt: time.Unix(9, 0).UTC(), Sandbox: SandboxStatus{Ports: []PortStatus{{Port: 80, Proto: "tcp", HostIP: netip.MustParseAddr("0.0.0.0"), HostPort: 8080}}}}
	b, _ = json.Marshal(statusRecord{Status: st, State: st.State.String()})
	if !strings.Contains(string(b), `"State":"paused"`) {
		t.Errorf("state by number: %s", b)
	}
}

func TestStatusText(t *testing.T) {
	now := time.Unix(100000, 0)
	at := func(d time.Duration) time.Time { return now.Add(-d) }
	for _, c := range []struct {
		st   Status
		want string
	}{
		{Status{State: Created}, "Created"},
		{Status{State: Running, StartedAt: at(3 * time.Second)}, "Up 3 seconds"},
		{Status{State: Running, StartedAt: at(90 * time.Second)}, "Up About a minute"},
		{Status{State: Paused, StartedAt: at(2 * time.Hour)}, "Up 2 hours (Paused)"},
		{Status{State: Exited, ExitCode: 137, StartedAt: at(time.Hour), FinishedAt: at(5 * time.Minute)}, "Exited (137) 5 minutes ago"},
		{Status{State: Exited, ExitCode: 127}, "Created"}, // could not be started
		{Status{State: Running, StartedAt: now.Add(time.Hour)}, "Up Less than a second"},
	} {
		if got := statusText(c.st, nil, now); got != c.want {
			t.Errorf("%+v: %q, want %q", c.st, got, c.want)
		}
	}
}

func TestNames(t *testing.T) {
	for _, ok := range []string{"ab", "a.b-c_d", "0x"} {
		if err := checkName("", ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "a", "-a", ".ab", "a b", "a/b", "é1", strings.Repeat("a", 256), "a\n"} {
		if checkName("", bad) == nil {
			t.Errorf("%q: accepted", bad)
		}
	}
	seen := map[string]bool{}
	for i := range 1000 {
		n := newName(i % 5)
		if err := checkName("", n); err != nil {
			t.Fatal(err)
		}
		seen[n] = true
	}
	if len(seen) < 500 {
		t.Errorf("only %d names", len(seen))
	}
}

// The name of an archive's first entry and the mode of a mount are Docker's.
func TestArchiveNames(t *testing.T) {
	for p, want := range map[string]string{"/": "/", "/.": "./", "/./": "./", "/a/.": "./", "/a/b": "b", "/a/b/": "b", "/a/b/./": "./"} {
		if got := archiveName(p); got != want {
			t.Errorf("%s: %q, want %q", p, got, want)
		}
	}
}

func TestPropagationAtTheDataRoot(t *testing.T) {
	for _, c := range []struct {
		source    string
		in, want  mount.Propagation
		forbidden bool
	}{
		{source: "/srv", want: mount.PropagationRPrivate},
		{source: "/srv", in: mount.PropagationShared, want: mount.PropagationShared},
		{source: "/", want: mount.PropagationRSlave},
		{source: "/var/lib/onggi", want: mount.PropagationRSlave},
		{source: "/var/lib/onggi/volumes", in: mount.PropagationRShared, want: mount.PropagationRShared},
		{source: "/var/lib/onggi2", in: mount.PropagationPrivate, want: mount.PropagationPrivate},
		{source: "/var/lib", in: mount.PropagationRPrivate, forbidden: true},
		{source: "/var/lib/onggi/volumes", in: mount.PropagationSlave, forbidden: true},
	} {
		m := []Mount{{Type: mount.TypeBind, Source: c.source, Propagation: c.in}}
		if err := settlePropagation(m, "/var/lib/onggi"); (err != nil) != c.forbidden || err == nil && m[0].Propagation != c.want {
			t.Errorf("%s %q: %q, %v", c.source, c.in, m[0].Propagation, err)
		}
	}
}

// A request for a /dev of the host's gets none of ours on top.
func TestOwnDev(t *testing.T) {
	s := specOf(t, &Config{}, &HostConfig{Binds: []string{"/dev:/dev:ro"}})
	for _, m := range s.Mounts {
		if strings.HasPrefix(m.Destination, "/dev/") {
			t.Errorf("%s is mounted over it", m.Destination)
		}
	}
}

func TestExtraHosts(t *testing.T) {
	in := []string{"a:1.2.3.4", "host:host-gateway", "b:::1"}
	if got := extraHosts(in, nil); !slices.Equal(got, in) {
		t.Errorf("%q", got)
	}
	if got := extraHosts(in, []string{"10.0.0.1", "fd00::1"}); !slices.Equal(got, []string{"a:1.2.3.4", "host:10.0.0.1", "host:fd00::1", "b:::1"}) {
		t.Errorf("%q", got)
	}
}

func TestDescends(t *testing.T) {
	step := func(by string) ocispec.History { return ocispec.History{CreatedBy: by} }
	img := func(layers string, steps ...string) (i ocispec.Image) {
		for _, l := range layers {
			i.RootFS.DiffIDs = append(i.RootFS.DiffIDs, ocispec.Digest(l))
		}
		for _, s := range steps {
			i.History = append(i.History, step(s))
		}
		return i
	}
	base := img("ab", "1", "2")
	for name, c := range map[string]struct {
		i    ocispec.Image
		want bool
	}{
		"itself":        {base, false},
		"a step more":   {img("ab", "1", "2", "3"), true},
		"a layer more":  {img("abc", "1", "2", "3"), true},
		"another base":  {img("acb", "1", "2", "3"), false},
		"another step":  {img("abc", "1", "x", "3"), false},
		"its own base":  {img("a", "1"), false},
		"layers alone":  {img("abc"), false},
		"without steps": {img("abcd", "1", "2"), true},
	} {
		if got := descends(c.i, base); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if descends(base, img("")) {
		t.Error("everything is made from an empty image")
	}
}

func TestEnvironment(t *testing.T) {
	for _, c := range []struct {
		env  []string
		want []string
	}{
		{nil, []string{"PATH=" + defaultPath, "HOSTNAME=h", "HOME=/root"}},
		{[]string{"HOME=", "A="}, []string{"PATH=" + defaultPath, "HOSTNAME=h", "A=", "HOME=/root"}},
		{[]string{"HOSTNAME", "PATH=/x", "B"}, []string{"PATH=/x", "HOME=/root"}},
	} {
		if got := environment(&Config{Env: c.env}, "h", "/root", nil); !slices.Equal(got, c.want) {
			t.Errorf("%q: %q, want %q", c.env, got, c.want)
		}
	}
}

func TestWithin(t *testing.T) {
	for _, c := range []struct {
		list, of string
		want     bool
	}{{"0", "0-1", true}, {"0-1", "0-1", true}, {"0,3", "0-1,3", true}, {"0-2", "0-1", false}, {"1,4", "0-3", false}, {"5", "0", false}} {
		if got := within(c.list, c.of); got != c.want {
			t.Errorf("%s in %s: %v", c.list, c.of, got)
		}
	}
}

// A port that was asked for is not given to another before.
func TestPortOrder(t *testing.T) {
	h := &HostConfig{PortBindings: network.PortMap{
		network.MustParsePort("80/tcp"):   {{}},
		network.MustParsePort("81/tcp"):   {{HostPort: "32768-32770"}},
		network.MustParsePort("8080/tcp"): {{HostPort: "32769"}},
	}}
	var got []uint16
	for _, r := range portRequests(&Config{}, h) {
		got = append(got, r.Port)
	}
	if !slices.Equal(got, []uint16{8080, 81, 80}) {
		t.Errorf("%d", got)
	}
}

// On the default network a link is to a container that is there.
func TestLinkToNothing(t *testing.T) {
	s := &Service{byID: map[string]*Container{}, byName: map[string]string{}}
	for _, mode := range []container.NetworkMode{"", "default", "bridge"} {
		if err := s.resolveModes("own", &HostConfig{NetworkMode: mode, Links: []string{"nothing:alias"}}); err == nil || !strings.Contains(err.Error(), "could not get container for nothing") {
			t.Errorf("%q: %v", mode, err)
		}
	}
	if err := s.resolveModes("own", &HostConfig{NetworkMode: "mine", Links: []string{"nothing:alias"}}); err != nil {
		t.Error(err)
	}
	if err := s.resolveModes("own", &HostConfig{NetworkMode: "container:own"}); err == nil || !strings.Contains(err.Error(), "cannot join own network") {
		t.Error(err)
	}
}

// A link belongs to the network that the container was made on.
func TestLinksOfNetworks(t *testing.T) {
	for mode, own := range map[container.NetworkMode]bool{"bridge": false, "mine": true} {
		rec := &Record{ID: strings.Repeat("ab", 32), HostConfig: &HostConfig{NetworkMode: mode, Links: []string{"web:front"}}, Config: &Config{}, Networks: map[string]*network.EndpointSettings{string(mode): {}, "other": {}}}
		q := (&Service{}).sandboxRequest(rec, "h")
		if (len(q.Links) == 0) != own || (len(q.Endpoints[0].Links) == 1) != own || len(q.Endpoints[1].Links) != 0 {
			t.Errorf("%s: links %v, of networks %+v", mode, q.Links, q.Endpoints)
		}
	}
}
