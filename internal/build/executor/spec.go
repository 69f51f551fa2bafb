package executor

import (
	"fmt"
	"path"
	"strings"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/solver/pb"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
)

// defaultHostname is what a build step sees as its host; the name is
// BuildKit's, so that results do not depend on who built.
const defaultHostname = "buildkitsandbox"

// defaultPids bounds the processes of one build step: a fork bomb in a
// Dockerfile stays in its control group.
const defaultPids = 32768

// capabilities a build step has, as in BuildKit.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// allCapabilities a step has that may do anything (RUN --security=insecure).
var allCapabilities = append([]string{
	"CAP_DAC_READ_SEARCH", "CAP_LINUX_IMMUTABLE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_LEASE", "CAP_AUDIT_CONTROL", "CAP_MAC_OVERRIDE",
	"CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}, capabilities...)

var maskedPaths = []string{
	"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
	"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
	"/sys/devices/virtual/powercap", "/sys/firmware",
}

var readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}

// devices that any step may use.
var devices = []specs.LinuxDeviceCgroup{
	{Allow: false, Access: "rwm"},
	{Allow: true, Type: "c", Access: "m"},
	{Allow: true, Type: "b", Access: "m"},
	dev(1, 3), dev(1, 5), dev(1, 7), dev(1, 8), dev(1, 9), dev(5, 0), dev(5, 1), dev(5, 2),
	{Allow: true, Type: "c", Major: number(136), Access: "rwm"},
}

func dev(major, minor int64) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"}
}

func number(n int64) *int64 { return &n }

// insecureDevices are made for a step that may do anything.
var insecureDevices = []specs.LinuxDevice{
	{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11},
	{Path: "/dev/cuse", Type: "c", Major: 10, Minor: 203},
	{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229},
	{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232},
	{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200},
	{Path: "/dev/loop-control", Type: "c", Major: 10, Minor: 237},
}

// specInput is what a step's OCI spec is made of, besides the step itself.
type specInput struct {
	user       specs.User
	home       string // of the user, for an environment without one
	hosts      string // file to bind on /etc/hosts
	resolvConf string // file to bind on /etc/resolv.conf
	mounts     []specs.Mount
	cgroupNS   bool
	pids       int64
	seccomp    func(caps []string) *specs.LinuxSeccomp
}

// specOf decides how a step runs. It is pure.
func specOf(m executor.Meta, in specInput) (*specs.Spec, error) {
	if len(m.Args) == 0 {
		return nil, errdefs.Newf(errdefs.Invalid, "run", "build step", "it has no command")
	}
	insecure := m.SecurityMode == pb.SecurityMode_INSECURE
	if !insecure && m.SecurityMode != pb.SecurityMode_SANDBOX {
		return nil, errdefs.Newf(errdefs.Invalid, "run", "build step", "there is no security mode %v", m.SecurityMode)
	}
	caps := capabilities
	s := &specs.Spec{
		Version:  "1.2.0",
		Hostname: hostname(m),
		Root:     &specs.Root{Path: "/", Readonly: m.ReadonlyRootFS},
		Process: &specs.Process{
			Terminal: m.Tty,
			Args:     m.Args,
			Env:      withHome(m.Env, in.home),
			Cwd:      cwd(m),
			User:     in.user,
		},
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{
				Devices: devices,
				Pids:    &specs.LinuxPids{Limit: number(in.pids)},
			},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
			MaskedPaths:   maskedPaths,
			ReadonlyPaths: readonlyPaths,
		},
	}
	if m.NetMode != pb.NetMode_HOST {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	if in.cgroupNS {
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	if insecure {
		caps = allCapabilities
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		s.Linux.Devices = insecureDevices
		for i := range int64(8) {
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: fmt.Sprintf("/dev/loop%d", i), Type: "b", Major: 7, Minor: i})
		}
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else if in.seccomp != nil {
		s.Linux.Seccomp = in.seccomp(caps)
	}
	s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	if insecure {
		s.Process.Capabilities.Inheritable, s.Process.Capabilities.Ambient = caps, caps
	}
	for _, u := range m.Ulimit {
		if u != nil {
			s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{
				Type: "RLIMIT_" + strings.ToUpper(u.Name), Hard: uint64(u.Hard), Soft: uint64(u.Soft),
			})
		}
	}
	resources(s.Linux.Resources, m.LinuxResources)
	s.Mounts = mountsOf(in, insecure)
	return s, nil
}

func hostname(m executor.Meta) string {
	if m.Hostname != "" {
		return m.Hostname
	}
	return defaultHostname
}

func cwd(m executor.Meta) string { return path.Join("/", m.Cwd) }

// resources takes over the limits that the step asks for.
func resources(r *specs.LinuxResources, want *pb.LinuxResources) {
	if want == nil {
		return
	}
	if want.Memory != 0 || want.MemorySwap != 0 {
		r.Memory = &specs.LinuxMemory{}
		if want.Memory != 0 {
			r.Memory.Limit = number(want.Memory)
		}
		if want.MemorySwap != 0 {
			r.Memory.Swap = number(want.MemorySwap)
		}
	}
	cpu := &specs.LinuxCPU{Cpus: want.CpusetCpus, Mems: want.CpusetMems}
	if want.CpuShares != 0 {
		v := uint64(want.CpuShares)
		cpu.Shares = &v
	}
	if want.CpuPeriod != 0 {
		v := uint64(want.CpuPeriod)
		cpu.Period = &v
	}
	if want.CpuQuota != 0 {
		cpu.Quota = number(want.CpuQuota)
	}
	if *cpu != (specs.LinuxCPU{}) {
		r.CPU = cpu
	}
}

// mountsOf lists the mounts, the system's first. A mount of the step's on the
// same place takes the system's place.
func mountsOf(in specInput, insecure bool) []specs.Mount {
	mode := "ro"
	if insecure {
		mode = "rw"
	}
	all := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{mode, "nosuid", "noexec", "nodev"}},
	}
	for _, f := range [][2]string{{in.resolvConf, "/etc/resolv.conf"}, {in.hosts, "/etc/hosts"}} {
		if f[0] != "" {
			all = append(all, specs.Mount{Destination: f[1], Type: "bind", Source: f[0],
				Options: []string{"nosuid", "noexec", "nodev", "rbind", "ro"}})
		}
	}
	all = append(all, in.mounts...)
	last := map[string]int{}
	for i, m := range all {
		last[m.Destination] = i
	}
	var out []specs.Mount
	for i, m := range all {
		if last[m.Destination] == i {
			out = append(out, m)
		}
	}
	return out
}

// hostsFile is the step's /etc/hosts.
func hostsFile(m executor.Meta) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", hostname(m))
	for _, h := range m.ExtraHosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.IP, h.Host)
	}
	return []byte(b.String())
}
