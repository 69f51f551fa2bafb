package container

import (
	"cmp"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// specInput is everything that decides how a container is started. What needs
// the kernel, another service or the image's files has been looked up already,
// so that buildSpec is a pure function.
type specInput struct {
	ID     string
	Config *Config
	Host   *HostConfig

	User   identity
	Mounts []sourcedMount

	LinkEnv    []string
	Hostname   string // as the container sees it
	HostsFile  string // host paths of the files that the engine writes; "" = none
	HostFile   string
	ResolvFile string
	ShmPath    string // host path of a shared /dev/shm; "" = a new one

	JoinNet, JoinPID, JoinIPC string // paths of namespaces to join; "" = by mode
	CgroupsPath               string
	Resources                 *specs.LinuxResources
	Devices                   []specs.LinuxDevice
	DeviceRules               []specs.LinuxDeviceCgroup
	Edits                     *specs.Spec // what CDI devices bring beside nodes and rules
	Seccomp                   *specs.LinuxSeccomp
	Security                  security
	KnownCaps                 int
	MaxFiles                  uint64 // the engine's own hard limit, where it cannot go above it
	Defaults                  Defaults
}

// sourcedMount is a Mount whose source on this host is known.
type sourcedMount struct {
	Mount
	Path string
	FD   *os.File // instead of a path: a detached mount
}

// buildSpec describes the container in the runtime's terms.
func buildSpec(in specInput) *specs.Spec {
	h, c := in.Host, in.Config
	caps := effectiveCaps(h.CapAdd, h.CapDrop, h.Privileged, in.KnownCaps)
	noNew := in.Defaults.NoNewPrivs
	if in.Security.noNewPrivs != nil {
		noNew = *in.Security.noNewPrivs
	}
	oom := h.OomScoreAdj
	s := &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs", Readonly: h.ReadonlyRootfs},
		Process: &specs.Process{
			Terminal:        c.Tty,
			Args:            commandLine(c),
			Env:             environment(c, in.Hostname, in.User.Home, in.LinkEnv),
			Cwd:             cmp.Or(c.WorkingDir, "/"),
			User:            specs.User{UID: in.User.UID, GID: in.User.GID, AdditionalGids: in.User.Groups, Umask: h.Umask},
			Capabilities:    capabilitySets(caps),
			NoNewPrivileges: noNew,
			Rlimits:         rlimits(h.Ulimits, in.Defaults.Ulimits, in.MaxFiles),
			OOMScoreAdj:     &oom,
			ApparmorProfile: in.Security.apparmor,
		},
		Hostname:    in.Hostname,
		Domainname:  c.Domainname,
		Annotations: maps.Clone(h.Annotations),
		Linux: &specs.Linux{
			Namespaces:    namespaces(in),
			Sysctl:        sysctls(h),
			Resources:     in.Resources,
			CgroupsPath:   in.CgroupsPath,
			Devices:       in.Devices,
			Seccomp:       in.Seccomp,
			MaskedPaths:   h.MaskedPaths,
			ReadonlyPaths: h.ReadonlyPaths,
		},
	}
	if h.UTSMode.IsHost() {
		s.Hostname, s.Domainname = "", ""
	}
	if c.Tty && h.ConsoleSize[0] > 0 && h.ConsoleSize[1] > 0 {
		s.Process.ConsoleSize = &specs.Box{Height: h.ConsoleSize[0], Width: h.ConsoleSize[1]}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	if h.Privileged {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else {
		s.Linux.Resources.Devices = append(defaultDevices(), in.DeviceRules...)
	}
	s.Mounts, s.Linux.RootfsPropagation = specMounts(in)
	if e := in.Edits; e != nil {
		s.Process.Env = dedupEnv(append(s.Process.Env, e.Process.Env...))
		s.Process.User.AdditionalGids = append(slices.Clone(s.Process.User.AdditionalGids), e.Process.User.AdditionalGids...)
		s.Mounts, s.Hooks = append(s.Mounts, e.Mounts...), e.Hooks
	}
	return s
}

func commandLine(c *Config) []string {
	return append(slices.Clone(c.Entrypoint), c.Cmd...)
}

func environment(c *Config, hostname, home string, links []string) []string {
	env := []string{"PATH=" + defaultPath}
	if hostname != "" {
		env = append(env, "HOSTNAME="+hostname)
	}
	if c.Tty {
		env = append(env, "TERM=xterm")
	}
	env = append(env, links...)
	for _, e := range c.Env {
		if strings.Contains(e, "=") {
			env = append(env, e)
		} else { // a bare name means "not set"
			env = slices.DeleteFunc(env, func(have string) bool { return strings.HasPrefix(have, e+"=") })
		}
	}
	env = slices.DeleteFunc(dedupEnv(env), func(e string) bool { return e == "HOME=" })
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		env = append(env, "HOME="+cmp.Or(home, "/"))
	}
	return env
}

// capabilitySets leaves the inheritable and ambient sets empty: a file with
// inheritable capabilities must not regain what was dropped.
func capabilitySets(caps []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
}

// defaultNoFile is generous where a program asks for more, and small where a
// program closes every descriptor up to the limit.
var defaultNoFile = specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 524288}

func rlimits(own []*container.Ulimit, defaults map[string]*container.Ulimit, maxFiles uint64) []specs.POSIXRlimit {
	files := defaultNoFile
	if maxFiles > 0 { // the engine itself has no more to give
		files.Hard = min(files.Hard, maxFiles)
		files.Soft = min(files.Soft, maxFiles)
	}
	byName := map[string]specs.POSIXRlimit{"nofile": files}
	for name, u := range defaults {
		byName[name] = rlimit(name, u)
	}
	for _, u := range own {
		byName[u.Name] = rlimit(u.Name, u)
	}
	var out []specs.POSIXRlimit
	for _, n := range slices.Sorted(maps.Keys(byName)) {
		out = append(out, byName[n])
	}
	return out
}

func rlimit(name string, u *container.Ulimit) specs.POSIXRlimit {
	return specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)}
}

func namespaces(in specInput) []specs.LinuxNamespace {
	h := in.Host
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if !h.NetworkMode.IsHost() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: in.JoinNet})
	}
	if !h.UTSMode.IsHost() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.UTSNamespace})
	}
	if !h.PidMode.IsHost() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: in.JoinPID})
	}
	if !h.IpcMode.IsHost() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: in.JoinIPC})
	}
	if !h.CgroupnsMode.IsHost() && !h.Privileged || h.CgroupnsMode.IsPrivate() {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns
}

// sysctls adds what lets an ordinary user bind low ports and ping, which then
// need no capability.
func sysctls(h *HostConfig) map[string]string {
	out := map[string]string{}
	if !h.NetworkMode.IsHost() && !h.NetworkMode.IsContainer() {
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
		out["net.ipv4.ping_group_range"] = "0 2147483647"
	}
	maps.Copy(out, h.Sysctls)
	return out
}

// specMounts lists the mounts in the order in which they are made.
func specMounts(in specInput) (mounts []specs.Mount, rootPropagation string) {
	h := in.Host
	access := "ro"
	if h.Privileged || in.Security.writableCgroups {
		access = "rw"
	}
	sysAccess := "ro"
	if h.Privileged {
		sysAccess = "rw"
	}
	mounts = []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", sysAccess}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{access, "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
	}
	taken := map[string]bool{}
	for _, m := range in.Mounts {
		taken[m.Destination] = true
	}
	switch {
	case taken["/dev/shm"], h.IpcMode.IsNone():
	case in.ShmPath != "":
		mounts = append(mounts, specs.Mount{Destination: "/dev/shm", Type: "bind", Source: in.ShmPath, Options: []string{"rbind", "rprivate"}})
	default:
		mounts = append(mounts, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(h.ShmSize, 10)}})
	}
	mounts = slices.DeleteFunc(mounts, func(m specs.Mount) bool {
		// A /dev of the user's comes with what is in it.
		return taken[m.Destination] && m.Destination != "/proc" && m.Destination != "/dev" ||
			taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/")
	})
	for _, f := range []struct{ dest, src string }{{"/etc/resolv.conf", in.ResolvFile}, {"/etc/hostname", in.HostFile}, {"/etc/hosts", in.HostsFile}} {
		if f.src == "" || taken[f.dest] {
			continue
		}
		opts := []string{"rbind", "rprivate"}
		if h.ReadonlyRootfs {
			opts = append(opts, "ro")
		}
		mounts = append(mounts, specs.Mount{Destination: f.dest, Type: "bind", Source: f.src, Options: opts})
	}
	for _, m := range in.Mounts {
		mounts = append(mounts, specMount(m))
		switch m.Propagation {
		case mount.PropagationShared, mount.PropagationRShared:
			rootPropagation = "shared"
		case mount.PropagationSlave, mount.PropagationRSlave:
			rootPropagation = cmp.Or(rootPropagation, "rslave")
		}
	}
	// A mount over /etc must not hide the files the engine gives, and a parent
	// comes before what lies in it.
	slices.SortStableFunc(mounts[1:], func(a, b specs.Mount) int {
		return cmp.Compare(depth(a.Destination), depth(b.Destination))
	})
	return mounts, rootPropagation
}

func depth(p string) int { return strings.Count(path.Clean(p), "/") }

func specMount(m sourcedMount) specs.Mount {
	if m.Type == mount.TypeTmpfs {
		opts := []string{"nosuid", "nodev"}
		own := strings.Split(m.Options.TmpfsData, ",")
		if m.Options.TmpfsData == "" {
			own = nil
		}
		if !slices.Contains(own, "exec") {
			opts = append(opts, "noexec")
		}
		for _, neg := range [][2]string{{"suid", "nosuid"}, {"dev", "nodev"}} {
			if slices.Contains(own, neg[0]) {
				opts = slices.DeleteFunc(opts, func(o string) bool { return o == neg[1] })
			}
		}
		if m.ReadOnly && !slices.Contains(own, "ro") {
			opts = append(opts, "ro")
		}
		return specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: append(opts, own...)}
	}
	bind := "rbind"
	if m.Options.NonRecursive {
		bind = "bind"
	}
	opts := []string{bind, string(cmp.Or(m.Propagation, mount.PropagationRPrivate))}
	if m.ReadOnly {
		// Read-only means all of it, as in Docker, unless asked otherwise.
		opts = append(opts, "ro")
		if m.Type == mount.TypeBind && !m.Options.ReadOnlyNonRecursive && !m.Options.NonRecursive {
			opts = append(opts, "rro")
		}
	}
	return specs.Mount{Destination: m.Destination, Type: "bind", Source: m.Path, Options: opts}
}
