package ociruntime

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var rewrite = flag.Bool("rewrite", false, "write the goldens anew")

// The programs of many configurations, as text: the diff is the review.
func TestPrograms(t *testing.T) {
	fixMachine(t)
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for name, change := range map[string]func(*specs.Spec, *Options){
		"default":      func(*specs.Spec, *Options) {},
		"detachedroot": func(s *specs.Spec, o *Options) { o.RootFS, s.Root.Path = null, "" },
		"init":         func(s *specs.Spec, o *Options) { o.Init = true },
		"terminal": func(s *specs.Spec, o *Options) {
			s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Width: 80, Height: 24}
		},
		"user": func(s *specs.Spec, o *Options) {
			mask := uint32(0o27)
			s.Process.User = specs.User{UID: 1000, GID: 100, AdditionalGids: []uint32{10, 20}, Umask: &mask}
			s.Process.Cwd = "/home/me"
		},
		"nonewprivs": func(s *specs.Spec, o *Options) { s.Process.NoNewPrivileges = true },
		"ambient": func(s *specs.Spec, o *Options) {
			c := []string{"CAP_NET_RAW"}
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: c, Effective: c, Permitted: c, Inheritable: c, Ambient: c}
		},
		"nocaps":       func(s *specs.Spec, o *Options) { s.Process.Capabilities = nil },
		"unknowncap":   func(s *specs.Spec, o *Options) { s.Process.Capabilities.Bounding = []string{"CAP_FLY", "cap_kill"} },
		"readonlyroot": func(s *specs.Spec, o *Options) { s.Root.Readonly = true },
		"sysctl": func(s *specs.Spec, o *Options) {
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.shmmax": "65536", "net/ipv4/conf/eth0.1/forwarding": "1"}
		},
		"masked": func(s *specs.Spec, o *Options) {
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = []string{"/proc/kcore", "/sys/firmware"}, []string{"/proc/sys"}
		},
		"rlimits": func(s *specs.Spec, o *Options) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 4096}, {Type: "RLIMIT_CORE"}}
		},
		"oom": func(s *specs.Spec, o *Options) { n := 500; s.Process.OOMScoreAdj = &n },
		"personality": func(s *specs.Spec, o *Options) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		},
		"scheduling": func(s *specs.Spec, o *Options) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 4}
			s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0-1,3"}
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
		},
		"names": func(s *specs.Spec, o *Options) { s.Hostname, s.Domainname = "web", "example.org" },
		"userns": func(s *specs.Spec, o *Options) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user"})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
			o.RootFS = null
		},
		"joinuserns": func(s *specs.Spec, o *Options) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "user", Path: "/proc/self/ns/user"})
			o.RootFS = null
		},
		"joinpid":    func(s *specs.Spec, o *Options) { s.Linux.Namespaces[0].Path = "/proc/self/ns/pid" },
		"joinnet":    func(s *specs.Spec, o *Options) { s.Linux.Namespaces[1].Path = "/proc/self/ns/net" },
		"givennet":   func(s *specs.Spec, o *Options) { o.NetNS = null },
		"hostnet":    func(s *specs.Spec, o *Options) { withoutNamespace(s, specs.NetworkNamespace) },
		"hostmounts": func(s *specs.Spec, o *Options) { withoutNamespace(s, specs.MountNamespace) },
		"time": func(s *specs.Spec, o *Options) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: "time"})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 10, Nanosecs: 5}, "monotonic": {Secs: -1}}
		},
		"binds": func(s *specs.Spec, o *Options) {
			s.Mounts = append(s.Mounts,
				specs.Mount{Destination: "/data", Source: "/", Options: []string{"rbind", "ro", "nosuid", "rslave"}},
				specs.Mount{Destination: "/rro", Source: "/", Options: []string{"rbind", "rro", "rnoexec", "private"}},
				specs.Mount{Destination: "/file", Source: "/dev/null", Type: "bind", Options: []string{"noatime", "rw"}})
		},
		"mountfd": func(s *specs.Spec, o *Options) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/cache", Source: "a label", Options: []string{"bind", "ro"}})
			o.MountFDs = map[int]*os.File{len(s.Mounts) - 1: null}
		},
		"sharedroot": func(s *specs.Spec, o *Options) {
			s.Linux.RootfsPropagation = "rshared"
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/shared", Source: "/", Options: []string{"rbind", "rshared"}})
		},
		"privateroot": func(s *specs.Spec, o *Options) { s.Linux.RootfsPropagation = "private" },
		"superblock": func(s *specs.Spec, o *Options) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/d", Type: "ext4", Source: "/dev/sda", Options: []string{"sync", "lazytime", "ro", "data=ordered", "nobarrier"}})
		},
		"longoptions": func(s *specs.Spec, o *Options) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/o", Type: "overlay", Source: "overlay",
				Options: []string{"lowerdir=" + strings.Repeat("/a/long/path:", 30) + "/end", "nosuid", "rprivate"}})
		},
		"devices": func(s *specs.Spec, o *Options) {
			mode, id := os.FileMode(0o640), uint32(5)
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode, UID: &id, GID: &id},
				{Path: "/dev/pipe", Type: "p"}, {Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: &mode}}
		},
		"hostdev": func(s *specs.Spec, o *Options) {
			s.Mounts = []specs.Mount{{Destination: "/dev", Source: "/dev", Type: "bind", Options: []string{"rbind"}}}
		},
		"nopivot":     func(s *specs.Spec, o *Options) { o.NoPivot = true },
		"nokeyring":   func(s *specs.Spec, o *Options) { o.NoKeyring = true },
		"startsocket": func(s *specs.Spec, o *Options) { o.StartSocket = null },
		"preserve":    func(s *specs.Spec, o *Options) { o.Preserve = []*os.File{null, null} },
		"hooks": func(s *specs.Spec, o *Options) {
			s.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/hook"}}}
			o.Hooks = true
		},
		"seccomp":   func(s *specs.Spec, o *Options) { o.Seccomp = make([]byte, 16) },
		"path":      func(s *specs.Spec, o *Options) { s.Process.Env = []string{"PATH=/a::/b/:c", "PATH=/x:/y"} },
		"slashpath": func(s *specs.Spec, o *Options) { s.Process.Args = []string{"./run", "x"} },
	} {
		t.Run(name, func(t *testing.T) {
			s := &specs.Spec{
				Version: "1.3.0", Root: &specs.Root{Path: "/bundle/rootfs"},
				Process: &specs.Process{Args: []string{"sh"}, Env: []string{"PATH=/bin"}, Cwd: "/",
					Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL"}, Effective: []string{"CAP_KILL"}, Permitted: []string{"CAP_KILL"}}},
				Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
					{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}}},
				Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: "pid"}, {Type: "network"}, {Type: "ipc"}, {Type: "uts"}, {Type: "mount"}, {Type: "cgroup"}}},
			}
			var o Options
			change(s, &o)
			got, err := Text(s, o)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, filepath.Join("testdata", "programs", name+".txt"), got)
		})
	}
}

// fixMachine makes programs independent of the kernel that runs the test.
func fixMachine(t *testing.T) {
	oldLast, oldHost, oldKcore := lastCap, hostCaps, hasKcore
	t.Cleanup(func() { lastCap, hostCaps, hasKcore = oldLast, oldHost, oldKcore })
	lastCap, hostCaps, hasKcore = func() int { return 40 }, func() uint64 { return 1<<41 - 1 }, func() bool { return true }
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *rewrite {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test -rewrite writes it)", err)
	}
	if string(want) == got {
		return
	}
	w, g := strings.Split(string(want), "\n"), strings.Split(got, "\n")
	for i := range g {
		if i >= len(w) || w[i] != g[i] {
			t.Fatalf("%s, line %d:\ngot  %s\nwant %s", file, i+1, g[i], at(w, i))
		}
	}
	t.Fatalf("%s: %d lines are missing", file, len(w)-len(g))
}

func at(lines []string, i int) string {
	if i < len(lines) {
		return lines[i]
	}
	return "nothing"
}
