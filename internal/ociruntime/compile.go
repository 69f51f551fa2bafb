package ociruntime

import (
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/linux/seccomp"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// Stages at which the launcher runs hooks.
const (
	StageCreate = 1 // namespaces and mounts are there, the root is not entered yet
	StageStart  = 2 // released, just before the app
)

// Options complete a configuration with what only the caller has.
type Options struct {
	RootFS    *os.File                      // detached mount that becomes the root; nil: spec.Root.Path
	NetNS     *os.File                      // network namespace to join, whatever the configuration says
	Cgroup    *cgroup.Group                 // the group, made already; nil: none is joined
	Seccomp   []byte                        // compiled filter; nil: that of the configuration is compiled
	MountFDs  map[int]*os.File              // detached mounts, by index in spec.Mounts
	Init      bool                          // stay as PID 1 and reap in front of the app
	ExecHold  bool                          // accepted for clarity: programs always wait to be released
	NoPivot   bool                          // chroot instead of pivot_root, for roots on a ramfs
	Preserve  []*os.File                    // descriptors that the app gets as 3, 4, …
	Hooks     bool                          // tell the launcher when hooks are due
	NoKeyring bool                          // stay in the caller's session keyring
	Warn      func(format string, a ...any) // told what was left out; nil: nobody
	// StartSocket, when set, is a listening socket (SOCK_SEQPACKET) on which the
	// process waits to be started: whoever connects is the launcher from then on
	// (initproc.Resume), and gets StageStart first.
	StartSocket *os.File
	ConsoleAt   [2]uint16 // width and height of the terminal, 0 = leave
}

// A compiler writes one program.
type compiler struct {
	*initproc.Builder
	spec  *specs.Spec
	proc  *specs.Process
	o     Options
	files []*os.File
	root  initproc.Reg // descriptor of the root mount
	prog  initproc.Program
	null  initproc.Reg         // the host's /dev/null
	empty initproc.Reg         // an empty read-only file system, to mask directories
	early map[int]initproc.Reg // binds cloned before the propagation was cut
}

func invalid(format string, a ...any) error {
	return errdefs.Newf(errdefs.Invalid, "read", "the container's configuration", format, a...)
}

// Compile writes the program that starts a container. The files are passed to
// initproc.Start beside it; the caller still owns those of the options.
func Compile(spec *specs.Spec, o Options) (*initproc.Program, []*os.File, error) {
	if err := validate(spec, o); err != nil {
		return nil, nil, err
	}
	c := &compiler{Builder: initproc.NewBuilder(), spec: spec, proc: spec.Process, o: o}
	if c.proc == nil {
		c.proc = &specs.Process{Cwd: "/", Args: []string{"true"}}
	}
	if err := c.all(); err != nil {
		return nil, nil, err
	}
	p, err := c.Program()
	if err != nil {
		return nil, nil, err
	}
	p.Clone, p.UIDMap, p.GIDMap, p.Terminal, p.Forks = c.prog.Clone, c.prog.UIDMap, c.prog.GIDMap, c.proc.Terminal, c.prog.Forks
	return p, c.files, nil
}

// Text is the program that Compile would write, for people and goldens.
func Text(spec *specs.Spec, o Options) (string, error) {
	if err := validate(spec, o); err != nil {
		return "", err
	}
	c := &compiler{Builder: initproc.NewBuilder(), spec: spec, proc: spec.Process, o: o}
	if err := c.all(); err != nil {
		return "", err
	}
	return fmt.Sprintf("clone %s\n%s", flagNames(c.prog.Clone), c.Text()), nil
}

func flagNames(flags uint64) string {
	var out []string
	for _, t := range joinOrder {
		if flags&cloneFlag[t] != 0 {
			out = append(out, string(t))
		}
	}
	return strings.Join(out, " ")
}

func validate(spec *specs.Spec, o Options) error {
	switch {
	case spec.Linux == nil:
		return invalid("it has no linux section")
	case o.RootFS == nil && (spec.Root == nil || spec.Root.Path == ""):
		return invalid("root.path is empty")
	case spec.Process != nil && len(spec.Process.Args) == 0:
		return invalid("process.args is empty")
	case spec.Process != nil && !path.IsAbs(spec.Process.Cwd):
		return invalid("process.cwd %q is not absolute", spec.Process.Cwd)
	}
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range spec.Linux.Namespaces {
		if _, ok := cloneFlag[ns.Type]; !ok {
			return invalid("there is no namespace type %q", ns.Type)
		}
		if seen[ns.Type] {
			return invalid("the namespace type %q is there twice", ns.Type)
		}
		seen[ns.Type] = true
	}
	if (spec.Hostname != "" || spec.Domainname != "") && !seen[specs.UTSNamespace] {
		return invalid("hostname needs a uts namespace")
	}
	if !seen[specs.UserNamespace] && (len(spec.Linux.UIDMappings) > 0 || len(spec.Linux.GIDMappings) > 0) {
		return invalid("id mappings need a user namespace")
	}
	if len(spec.Linux.TimeOffsets) > 0 && !seen[specs.TimeNamespace] {
		return invalid("time offsets need a time namespace")
	}
	if len(spec.Linux.NetDevices) > 0 {
		return errdefs.Newf(errdefs.Unsupported, "read", "the container's configuration", "linux.netDevices is not supported")
	}
	if spec.Linux.IntelRdt != nil {
		return errdefs.Newf(errdefs.Unsupported, "read", "the container's configuration", "linux.intelRdt is not supported")
	}
	return validateSysctls(spec, seen)
}

// validateSysctls lets only those through that belong to a namespace of the
// container: the others would change the host (CVE-2022-0811).
func validateSysctls(spec *specs.Spec, has map[specs.LinuxNamespaceType]bool) error {
	ipc := []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}
	for k, v := range spec.Linux.Sysctl {
		if strings.ContainsAny(k, "\x00\n+ ") || strings.Contains(k, "..") || strings.ContainsAny(v, "\x00\n") {
			return invalid("sysctl %q=%q: neither may hold a newline, NUL or .., and the name no space or +", k, v)
		}
		name := strings.ReplaceAll(k, "/", ".")
		switch {
		case slices.Contains(ipc, name) || strings.HasPrefix(name, "fs.mqueue."):
			if !has[specs.IPCNamespace] {
				return invalid("sysctl %q needs an ipc namespace of the container's own", k)
			}
		case strings.HasPrefix(name, "net."):
			if !has[specs.NetworkNamespace] {
				return invalid("sysctl %q needs a network namespace of the container's own", k)
			}
		case strings.HasPrefix(name, "user."):
			if !has[specs.UserNamespace] {
				return invalid("sysctl %q needs a user namespace of the container's own", k)
			}
		case name == "kernel.domainname" || name == "kernel.hostname":
			if !has[specs.UTSNamespace] {
				return invalid("sysctl %q needs a uts namespace of the container's own", k)
			}
			if name == "kernel.hostname" {
				return invalid("sysctl %q: use hostname instead", k)
			}
		default:
			return invalid("sysctl %q is not one of a namespace: it would change the host", k)
		}
	}
	return nil
}

// all writes the whole program.
func (c *compiler) all() error {
	c.root, c.null, c.empty = c.NewReg(), c.NewReg(), c.NewReg()
	steps := []func() error{c.begin, c.cgroups, c.namespaces, c.identity, c.names, c.propagation, c.openRoot, c.mounts, c.devices, c.makeCwd, c.terminal,
		c.hide, c.stageCreate, c.enterRoot, c.sysctls, c.limits, c.become, c.exec}
	for _, f := range steps {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// file adds a descriptor and returns its number in the child.
func (c *compiler) file(f *os.File) int {
	c.files = append(c.files, f)
	return initproc.FirstFile + len(c.files) - 1
}

func (c *compiler) begin() error {
	c.Step("begin")
	c.Call("umask", unix.SYS_UMASK, 0)
	c.Call("setsid", unix.SYS_SETSID).Ignore(unix.EPERM)
	c.Step("open the host's /dev/null")
	c.Call("openat", unix.SYS_OPENAT, unix.AT_FDCWD, c.Str("/dev/null"), unix.O_PATH|unix.O_CLOEXEC, 0).Into(c.null)
	c.oomScore()
	return c.lsm()
}

func (c *compiler) cgroups() error {
	if c.o.Cgroup == nil {
		return nil
	}
	tasks, dir, err := c.o.Cgroup.JoinFiles()
	if err != nil {
		return err
	}
	if dir != nil {
		fd := c.file(dir)
		c.CloneInto(fd)
		c.Step("leave the directory of the control group")
		c.Call("close", unix.SYS_CLOSE, fd)
	}
	for _, f := range tasks {
		c.Step("join the control group %s", strings.TrimSuffix(f.Name(), "/tasks"))
		fd := c.file(f)
		c.Call("write", unix.SYS_WRITE, fd, c.Str("0"), 1)
		// Nothing of the host stays open for who could look into this process.
		c.Call("close", unix.SYS_CLOSE, fd)
	}
	return nil
}

var cloneFlag = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.MountNamespace: unix.CLONE_NEWNS,
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.UserNamespace: unix.CLONE_NEWUSER,
	specs.CgroupNamespace: unix.CLONE_NEWCGROUP, specs.TimeNamespace: unix.CLONE_NEWTIME,
}

// joinOrder: the user namespace gives the right to join the others.
var joinOrder = []specs.LinuxNamespaceType{specs.UserNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace, specs.PIDNamespace,
	specs.CgroupNamespace, specs.TimeNamespace, specs.MountNamespace}

// has reports whether the container gets a namespace of the type, new or not.
func (c *compiler) has(t specs.LinuxNamespaceType) (ns specs.LinuxNamespace, ok bool) {
	for _, n := range c.spec.Linux.Namespaces {
		if n.Type == t {
			return n, true
		}
	}
	return ns, false
}

// isNew reports whether a namespace of the type is made.
func (c *compiler) isNew(t specs.LinuxNamespaceType) bool {
	n, ok := c.has(t)
	return ok && n.Path == "" && !(t == specs.NetworkNamespace && c.o.NetNS != nil)
}

// namespaces decides which are made by the clone, which are joined, and which
// must be made afterwards.
func (c *compiler) namespaces() error {
	joined := map[specs.LinuxNamespaceType]int{}
	for _, t := range joinOrder {
		n, ok := c.has(t)
		switch {
		case t == specs.NetworkNamespace && c.o.NetNS != nil:
			joined[t] = c.file(c.o.NetNS)
		case ok && n.Path != "":
			f, err := os.Open(n.Path)
			if err != nil {
				return errdefs.New(errdefs.NotFound, "open", fmt.Sprintf("%s namespace %s", t, n.Path), err)
			}
			joined[t] = c.file(f)
		}
	}
	userJoined := joined[specs.UserNamespace] != 0
	var later uint64
	fork := joined[specs.PIDNamespace] != 0 || c.isNew(specs.TimeNamespace)
	for _, t := range joinOrder {
		if !c.isNew(t) {
			continue
		}
		switch {
		case t == specs.CgroupNamespace:
			later |= unix.CLONE_NEWCGROUP // its root is the group that was joined just now
		case t == specs.TimeNamespace:
			later |= unix.CLONE_NEWTIME // clone(2) has no flag for it
		case userJoined || fork && t == specs.PIDNamespace:
			later |= cloneFlag[t]
			fork = fork || t == specs.PIDNamespace
		default:
			c.prog.Clone |= cloneFlag[t]
		}
	}
	if c.isNew(specs.UserNamespace) {
		// A new user namespace does not own namespaces that are joined: they are
		// joined by the parent's rights, so before; the launcher cannot do that.
		if err := c.userMaps(); err != nil {
			return err
		}
	}
	for _, t := range joinOrder {
		if fd := joined[t]; fd != 0 {
			c.Step("join the %s namespace", t)
			c.Call("setns", unix.SYS_SETNS, fd, cloneFlag[t])
			if t == specs.UserNamespace {
				c.rootIDs()
			}
		}
	}
	if later != 0 {
		c.Step("create namespaces")
		c.Call("unshare", unix.SYS_UNSHARE, later)
	}
	if err := c.enterTime(); err != nil {
		return err
	}
	if fork {
		c.fork()
	}
	return nil
}

// fork goes on in a child whose parent is the launcher: a process stays out of
// the PID and time namespaces that it joined or made.
func (c *compiler) fork() {
	child, pid := c.NewLabel(), c.NewReg()
	c.Step("fork into the namespaces")
	c.Call("clone", unix.SYS_CLONE, unix.CLONE_PARENT|int(unix.SIGCHLD), 0, 0, 0, 0).Into(pid)
	c.JumpIf(child, pid, 0, ^uint64(0))
	c.ReportPID(pid)
	c.Exit(0)
	c.Mark(child)
	c.prog.Forks = true
}

func (c *compiler) userMaps() error {
	uids, gids := c.spec.Linux.UIDMappings, c.spec.Linux.GIDMappings
	if len(uids) == 0 || len(gids) == 0 {
		return invalid("a user namespace needs uidMappings and gidMappings")
	}
	c.prog.UIDMap, c.prog.GIDMap = idMaps(uids), idMaps(gids)
	return nil
}

func idMaps(in []specs.LinuxIDMapping) []initproc.IDMap {
	var out []initproc.IDMap
	for _, m := range in {
		out = append(out, initproc.IDMap{Container: m.ContainerID, Host: m.HostID, Size: m.Size})
	}
	return out
}

func (c *compiler) rootIDs() {
	c.Step("become root of the user namespace")
	c.Call("setgid", unix.SYS_SETRESGID, 0, 0, 0).Ignore(unix.EINVAL)
	c.Call("setuid", unix.SYS_SETRESUID, 0, 0, 0).Ignore(unix.EINVAL)
}

// inUser reports whether the container has a user namespace of its own.
func (c *compiler) inUser() bool { _, ok := c.has(specs.UserNamespace); return ok }

func (c *compiler) identity() error {
	if c.isNew(specs.UserNamespace) {
		c.rootIDs()
	}
	return nil
}

// enterTime shifts the clocks of a new time namespace, which can be done only
// as long as nobody is in it, and then enters it. A process with one thread may
// do that without a fork.
func (c *compiler) enterTime() error {
	if !c.isNew(specs.TimeNamespace) {
		if len(c.spec.Linux.TimeOffsets) > 0 {
			return invalid("time offsets need a new time namespace")
		}
		return nil
	}
	var clocks []string
	for clock := range c.spec.Linux.TimeOffsets {
		if clock != "monotonic" && clock != "boottime" {
			return invalid("there is no clock %q to shift: monotonic and boottime are", clock)
		}
		clocks = append(clocks, clock)
	}
	slices.Sort(clocks)
	for _, clock := range clocks {
		o := c.spec.Linux.TimeOffsets[clock]
		c.Step("shift the clock %s", clock)
		c.write("/proc/self/timens_offsets", fmt.Sprintf("%s %d %d\n", clock, o.Secs, o.Nanosecs))
	}
	c.Step("enter the time namespace")
	fd := c.NewReg()
	c.Call("openat", unix.SYS_OPENAT, unix.AT_FDCWD, c.Str("/proc/self/ns/time_for_children"), unix.O_RDONLY|unix.O_CLOEXEC, 0).Into(fd)
	c.Call("setns", unix.SYS_SETNS, fd, unix.CLONE_NEWTIME)
	c.Call("close", unix.SYS_CLOSE, fd)
	return nil
}

// write opens a file of the host (the root is not entered yet) and writes it.
func (c *compiler) write(file, text string) initproc.Call {
	fd := c.NewReg()
	c.Call("openat", unix.SYS_OPENAT, unix.AT_FDCWD, c.Str(file), unix.O_WRONLY|unix.O_CLOEXEC, 0).Into(fd)
	call := c.Call("write", unix.SYS_WRITE, fd, c.Str(text), len(text))
	return call
}

func (c *compiler) names() error {
	if c.spec.Hostname != "" {
		c.Step("set the host name %q", c.spec.Hostname)
		c.Call("sethostname", unix.SYS_SETHOSTNAME, c.Str(c.spec.Hostname), len(c.spec.Hostname))
	}
	if c.spec.Domainname != "" {
		c.Step("set the domain name %q", c.spec.Domainname)
		c.Call("setdomainname", unix.SYS_SETDOMAINNAME, c.Str(c.spec.Domainname), len(c.spec.Domainname))
	}
	if c.isNew(specs.NetworkNamespace) {
		c.loopbackUp()
	}
	return nil
}

// loopbackUp brings lo up in a network namespace that nobody else configures.
func (c *compiler) loopbackUp() {
	c.Step("bring the loopback interface up")
	fd := c.NewReg()
	req := make([]byte, 40)
	copy(req, "lo")
	req[16] = unix.IFF_UP
	c.Call("socket", unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0).Into(fd)
	c.Call("ioctl SIOCSIFFLAGS", unix.SYS_IOCTL, fd, unix.SIOCSIFFLAGS, c.Data(req))
}

// stageCreate lets hooks run before the root is entered.
func (c *compiler) stageCreate() error {
	if c.o.Hooks && c.spec.Hooks != nil {
		c.Step("run the hooks of the creation")
		c.Stage(StageCreate)
	}
	return nil
}

func (c *compiler) sysctls() error {
	if len(c.spec.Linux.Sysctl) == 0 {
		return nil
	}
	// A procfs of our own: the one in the container may be anything.
	c.Step("open /proc for sysctls")
	fs, mnt := c.NewReg(), c.NewReg()
	c.Call("fsopen", unix.SYS_FSOPEN, c.Str("proc"), unix.FSOPEN_CLOEXEC).Into(fs)
	c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	c.Call("fsmount", unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, 0).Into(mnt)
	var keys []string
	for k := range c.spec.Linux.Sysctl {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		v := c.spec.Linux.Sysctl[k]
		c.Step("set the sysctl %s=%s", k, v)
		fd := c.NewReg()
		file := "sys/" + sysctlPath(k)
		c.Call("openat", unix.SYS_OPENAT, mnt, c.Str(file), unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0).Into(fd)
		c.Call("write", unix.SYS_WRITE, fd, c.Str(v), len(v))
		c.Call("close", unix.SYS_CLOSE, fd)
	}
	return nil
}

// sysctlPath turns net.ipv4.ip_forward into net/ipv4/ip_forward; a name with
// slashes may have dots inside its parts.
func sysctlPath(k string) string {
	if strings.Contains(k, "/") {
		return k
	}
	return strings.ReplaceAll(k, ".", "/")
}

// A filter is a compiled seccomp profile.
type filter struct {
	prog   []byte
	flags  uint
	notify bool
}

// filter compiles the profile; nil for none.
func (c *compiler) filter() (*filter, error) {
	if c.o.Seccomp != nil {
		return &filter{prog: c.o.Seccomp}, nil
	}
	s := c.spec.Linux.Seccomp
	if s == nil {
		return nil, nil
	}
	f, err := seccomp.Compile(s)
	if err != nil {
		return nil, err
	}
	return &filter{f.Prog, f.Flags, f.Notify}, nil
}
