package container

import (
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/onggi/onggi/internal/errdefs"
)

// allCaps are the capabilities by number.
var allCaps = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE",
	"CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
	"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
	"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// defaultCaps are Docker's without NET_RAW (ping works by ping_group_range),
// MKNOD and AUDIT_WRITE.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP",
	"CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL",
}

const capAll = "ALL"

// normaliseCaps spells names as CAP_X, or ALL, and refuses unknown ones.
func normaliseCaps(names []string) ([]string, error) {
	if len(names) == 0 {
		return nil, nil
	}
	var out []string
	for _, n := range names {
		c := strings.ToUpper(n)
		if c != capAll && !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if c != capAll && !slices.Contains(allCaps[:], c) {
			return nil, invalid("unknown capability: %q", clip(n))
		}
		if !slices.Contains(out, c) {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return out, nil
}

// effectiveCaps decides what a container may do. known is how many
// capabilities the kernel has.
func effectiveCaps(add, drop []string, privileged bool, known int) []string {
	all := allCaps[:min(known, len(allCaps))]
	if privileged {
		return slices.Clone(all)
	}
	base := defaultCaps
	switch {
	case slices.Contains(add, capAll):
		base = all
	case slices.Contains(drop, capAll):
		base = nil
	}
	var out []string
	for _, c := range all {
		in := slices.Contains(base, c) && !slices.Contains(drop, c)
		// With ALL dropped, what is added by name stays.
		if in || slices.Contains(add, c) && (slices.Contains(drop, capAll) || !slices.Contains(drop, c)) {
			out = append(out, c)
		}
	}
	return out
}

// defaultMasked and defaultReadonly hide what tells about, or can change, the host.
var (
	defaultMasked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi",
		"/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// security is what --security-opt asks for.
type security struct {
	seccomp         string // "" = the engine's, "builtin", "unconfined", or a profile's JSON
	apparmor        string
	noNewPrivs      *bool
	labelDisabled   bool
	writableCgroups bool
}

const (
	unconfined = "unconfined"
	builtin    = "builtin"
)

func parseSecurity(opts []string) (security, error) {
	var s security
	for _, o := range opts {
		if o == "no-new-privileges" {
			yes := true
			s.noNewPrivs = &yes
			continue
		}
		k, v, ok := strings.Cut(o, "=")
		if !ok {
			k, v, ok = strings.Cut(o, ":")
		}
		if !ok {
			if o == "disable" || o == "writable-cgroups" {
				s.writableCgroups = o == "writable-cgroups"
				continue
			}
			return s, invalid("invalid --security-opt 1: %q", clip(o))
		}
		switch k {
		case "seccomp":
			if len(v) > 1<<20 {
				return s, invalid("seccomp profile: %d bytes, at most %d are allowed", len(v), 1<<20)
			}
			s.seccomp = v
		case "apparmor":
			s.apparmor = v
		case "label":
			// Without SELinux a label changes nothing, as in Docker.
			s.labelDisabled = v == "disable"
		case "no-new-privileges":
			b, err := strconv.ParseBool(v)
			if err != nil {
				return s, invalid("invalid --security-opt: %q", clip(o))
			}
			s.noNewPrivs = &b
		case "writable-cgroups":
			b, err := strconv.ParseBool(v)
			if err != nil {
				return s, invalid("invalid --security-opt 2: %q", clip(o))
			}
			s.writableCgroups = b
		case "systempaths":
			return s, invalid("invalid --security-opt: %q: want systempaths=unconfined", clip(o))
		default:
			return s, invalid("invalid --security-opt 2: %q", clip(o))
		}
	}
	return s, nil
}

// checkSysctls lets only through what belongs to one of the container's own
// namespaces: a value must not smuggle in a second key, nor a key a path.
func checkSysctls(h *HostConfig) error {
	for k, v := range h.Sysctls {
		if strings.ContainsAny(k, "/\\\r\n\x00 ") || strings.Contains(k, "..") || strings.ContainsAny(v, "\r\n\x00") || len(v) > 4096 {
			return invalid("sysctl %q: a key has dots only, and a value is one line", clip(k))
		}
		switch {
		case slices.Contains([]string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}, k),
			strings.HasPrefix(k, "fs.mqueue."):
			if h.IpcMode.IsHost() {
				return invalid("sysctl '%s' is not allowed as ipc namespace is the host's", k)
			}
		case strings.HasPrefix(k, "net."):
			if h.NetworkMode.IsHost() {
				return invalid("sysctl '%s' not allowed in host network namespace", k)
			}
		case k == "kernel.domainname" || k == "kernel.hostname":
			return invalid("sysctl '%s' is not allowed: use --hostname or --domainname", k)
		default:
			return errdefs.WithHint(invalid("sysctl '%s' is not in a separate kernel namespace", clip(k)), "kernel.{shm*,msg*,sem}, fs.mqueue.* and net.* can be set per container")
		}
	}
	return nil
}

// rlimitName turns "nofile" into "RLIMIT_NOFILE".
func rlimitName(n string) (string, error) {
	switch n {
	case "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack", "as":
		return "RLIMIT_" + strings.ToUpper(n), nil
	}
	return "", invalid("invalid ulimit type: %s", clip(n))
}

var signals = map[string]syscall.Signal{
	"ABRT": syscall.SIGABRT, "ALRM": syscall.SIGALRM, "BUS": syscall.SIGBUS, "CHLD": syscall.SIGCHLD, "CLD": syscall.SIGCHLD, "CONT": syscall.SIGCONT,
	"FPE": syscall.SIGFPE, "HUP": syscall.SIGHUP, "ILL": syscall.SIGILL, "INT": syscall.SIGINT, "IO": syscall.SIGIO, "IOT": syscall.SIGIOT, "KILL": syscall.SIGKILL,
	"PIPE": syscall.SIGPIPE, "POLL": syscall.SIGIO, "PROF": syscall.SIGPROF, "PWR": syscall.SIGPWR, "QUIT": syscall.SIGQUIT, "SEGV": syscall.SIGSEGV,
	"STKFLT": syscall.SIGSTKFLT, "STOP": syscall.SIGSTOP, "SYS": syscall.SIGSYS, "TERM": syscall.SIGTERM, "TRAP": syscall.SIGTRAP, "TSTP": syscall.SIGTSTP,
	"TTIN": syscall.SIGTTIN, "TTOU": syscall.SIGTTOU, "URG": syscall.SIGURG, "USR1": syscall.SIGUSR1, "USR2": syscall.SIGUSR2, "VTALRM": syscall.SIGVTALRM,
	"WINCH": syscall.SIGWINCH, "XCPU": syscall.SIGXCPU, "XFSZ": syscall.SIGXFSZ,
}

const (
	sigRTMin = 34
	sigRTMax = 64
)

// ParseSignal reads "TERM", "SIGTERM", "15" or "RTMIN+3".
func ParseSignal(s string) (int, error) {
	if n, err := strconv.ParseUint(s, 10, 8); err == nil {
		if n == 0 || n > sigRTMax {
			return 0, invalid("invalid signal: %s", s)
		}
		return int(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, ok := signals[name]; ok {
		return int(n), nil
	}
	for base, at := range map[string]int{"RTMIN": sigRTMin, "RTMAX": sigRTMax} {
		rest, ok := strings.CutPrefix(name, base)
		if !ok {
			continue
		}
		off := 0
		if rest != "" {
			var err error
			if off, err = strconv.Atoi(rest); err != nil || rest[0] != '+' && rest[0] != '-' {
				break
			}
		}
		if n := at + off; n >= sigRTMin && n <= sigRTMax {
			return n, nil
		}
	}
	return 0, errdefs.WithHint(invalid("invalid signal: %s", clip(s)), "use a name such as TERM or a number from 1 to 64")
}
