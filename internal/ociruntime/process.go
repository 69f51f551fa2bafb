package ociruntime

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

var rlimits = map[string]int{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_STACK": unix.RLIMIT_STACK,
	"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": 5, "RLIMIT_NPROC": 6, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_MEMLOCK": 8,
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": 10, "RLIMIT_SIGPENDING": 11, "RLIMIT_MSGQUEUE": 12, "RLIMIT_NICE": 13, "RLIMIT_RTPRIO": 14, "RLIMIT_RTTIME": 15,
}

// oomScore is written while the host's /proc can still be reached.
func (c *compiler) oomScore() {
	adj := c.proc.OOMScoreAdj
	if adj == nil {
		return
	}
	c.Step("set the preference of the OOM killer to %d (lowering it needs CAP_SYS_RESOURCE)", *adj)
	call := c.write("/proc/self/oom_score_adj", strconv.Itoa(*adj))
	if c.inUser() {
		call.Ignore(unix.EACCES, unix.EPERM)
	}
}

func (c *compiler) limits() error {
	seen := map[string]bool{}
	for _, l := range c.proc.Rlimits {
		res, ok := rlimits[l.Type]
		if !ok {
			return invalid("there is no limit %q", l.Type)
		}
		if seen[l.Type] {
			return invalid("the limit %q is there twice", l.Type)
		}
		seen[l.Type] = true
		c.Step("set the limit %s to %d:%d (above the hard limit needs CAP_SYS_RESOURCE)", l.Type, l.Soft, l.Hard)
		c.Call("prlimit64", unix.SYS_PRLIMIT64, 0, res, c.Words(l.Soft, l.Hard), 0)
	}
	if p := c.spec.Linux.Personality; p != nil {
		domains := map[specs.LinuxPersonalityDomain]int{specs.PerLinux: 0, specs.PerLinux32: 8}
		d, ok := domains[p.Domain]
		if !ok {
			return invalid("there is no personality %q", p.Domain)
		}
		c.Step("set the personality %s", p.Domain)
		c.Call("personality", unix.SYS_PERSONALITY, d)
	}
	if io := c.proc.IOPriority; io != nil {
		class, ok := map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}[io.Class]
		if !ok {
			return invalid("there is no class of I/O priority %q", io.Class)
		}
		c.Step("set the I/O priority")
		c.Call("ioprio_set", unix.SYS_IOPRIO_SET, 1, 0, class<<13|io.Priority)
	}
	if s := c.proc.Scheduler; s != nil {
		if err := c.scheduler(s); err != nil {
			return err
		}
	}
	if m := c.spec.Linux.MemoryPolicy; m != nil {
		if err := c.memoryPolicy(m); err != nil {
			return err
		}
	}
	return c.affinity()
}

func (c *compiler) memoryPolicy(m *specs.LinuxMemoryPolicy) error {
	modes := map[specs.MemoryPolicyModeType]int{specs.MpolDefault: 0, specs.MpolPreferred: 1, specs.MpolBind: 2, specs.MpolInterleave: 3, specs.MpolLocal: 4,
		specs.MpolPreferredMany: 5, specs.MpolWeightedInterleave: 6}
	flags := map[specs.MemoryPolicyFlagType]int{specs.MpolFStaticNodes: 1 << 15, specs.MpolFRelativeNodes: 1 << 14, specs.MpolFNumaBalancing: 1 << 13}
	mode, ok := modes[m.Mode]
	if !ok {
		return invalid("there is no memory policy %q", m.Mode)
	}
	for _, f := range m.Flags {
		bit, ok := flags[f]
		if !ok {
			return invalid("there is no flag %q of a memory policy", f)
		}
		mode |= bit
	}
	c.Step("set the memory policy %s", m.Mode)
	if m.Nodes == "" {
		c.Call("set_mempolicy", unix.SYS_SET_MEMPOLICY, mode, 0, 0)
		return nil
	}
	mask, err := cpuMask(m.Nodes)
	if err != nil {
		return invalid("linux.memoryPolicy.nodes %q: %v", m.Nodes, err)
	}
	c.Call("set_mempolicy", unix.SYS_SET_MEMPOLICY, mode, c.Data(mask), 8*len(mask))
	return nil
}

func (c *compiler) scheduler(s *specs.Scheduler) error {
	policies := map[specs.LinuxSchedulerPolicy]uint32{specs.SchedOther: 0, specs.SchedFIFO: 1, specs.SchedRR: 2, specs.SchedBatch: 3, specs.SchedISO: 4, specs.SchedIdle: 5, specs.SchedDeadline: 6}
	flags := map[specs.LinuxSchedulerFlag]uint64{specs.SchedFlagResetOnFork: 1, specs.SchedFlagReclaim: 2, specs.SchedFlagDLOverrun: 4, specs.SchedFlagKeepPolicy: 8,
		specs.SchedFlagKeepParams: 16, specs.SchedFlagUtilClampMin: 32, specs.SchedFlagUtilClampMax: 64}
	policy, ok := policies[s.Policy]
	if !ok {
		return invalid("there is no scheduling policy %q", s.Policy)
	}
	var f uint64
	for _, name := range s.Flags {
		bit, ok := flags[name]
		if !ok {
			return invalid("there is no scheduling flag %q", name)
		}
		f |= bit
	}
	attr := make([]byte, 48) // struct sched_attr, SCHED_ATTR_SIZE_VER0
	binary.LittleEndian.PutUint32(attr, 48)
	binary.LittleEndian.PutUint32(attr[4:], policy)
	binary.LittleEndian.PutUint64(attr[8:], f)
	binary.LittleEndian.PutUint32(attr[16:], uint32(s.Nice))
	binary.LittleEndian.PutUint32(attr[20:], uint32(s.Priority))
	binary.LittleEndian.PutUint64(attr[24:], s.Runtime)
	binary.LittleEndian.PutUint64(attr[32:], s.Deadline)
	binary.LittleEndian.PutUint64(attr[40:], s.Period)
	c.Step("set the scheduling policy %s", s.Policy)
	c.Call("sched_setattr", unix.SYS_SCHED_SETATTR, 0, c.Data(attr), 0)
	return nil
}

// affinity applies process.execCPUAffinity.final, which exec and init share.
func (c *compiler) affinity() error {
	a := c.proc.ExecCPUAffinity
	if a == nil || a.Final == "" {
		return nil
	}
	mask, err := cpuMask(a.Final)
	if err != nil {
		return invalid("process.execCPUAffinity.final %q: %v", a.Final, err)
	}
	c.Step("run on the CPUs %s", a.Final)
	c.Call("sched_setaffinity", unix.SYS_SCHED_SETAFFINITY, 0, len(mask), c.Data(mask))
	return nil
}

// cpuMask reads a list like 0-3,7.
func cpuMask(list string) ([]byte, error) {
	mask := make([]byte, 128)
	for _, part := range strings.Split(list, ",") {
		lo, hi, ok := strings.Cut(strings.TrimSpace(part), "-")
		if !ok {
			hi = lo
		}
		a, err1 := strconv.Atoi(lo)
		b, err2 := strconv.Atoi(hi)
		if err1 != nil || err2 != nil || a < 0 || b < a || b >= 8*len(mask) {
			return nil, fmt.Errorf("%q is not a CPU, or a range", part)
		}
		for i := a; i <= b; i++ {
			mask[i/8] |= 1 << (i % 8)
		}
	}
	return mask, nil
}

// become drops what the app must not have.
func (c *compiler) become() error {
	if !c.o.NoKeyring {
		c.Step("leave the session keyring")
		c.Call("keyctl", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, c.Str("_ses.onggi"), 0, 0, 0).
			Ignore(unix.ENOSYS, unix.EPERM, unix.EACCES, unix.EDQUOT, unix.ENOMEM)
	}
	f, err := c.filter()
	if err != nil {
		return err
	}
	caps, err := c.user(f != nil && !c.proc.NoNewPrivileges)
	if err != nil {
		return err
	}
	if c.proc.NoNewPrivileges {
		c.Step("forbid new privileges")
		c.Call("prctl", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	umask := 0o022
	if c.proc.User.Umask != nil {
		umask = int(*c.proc.User.Umask)
	}
	c.Step("set the umask")
	c.Call("umask", unix.SYS_UMASK, umask)
	if c.o.Init {
		c.Step("stay as init")
		c.Call("prctl", unix.SYS_PRCTL, unix.PR_SET_NAME, c.Str("onggi-init"), 0, 0, 0)
		c.Reap()
	}
	c.lookFor()
	if c.o.StartSocket != nil {
		c.ReadyFor(c.file(c.o.StartSocket), StageStart)
	} else {
		c.Ready()
	}
	if c.o.StartSocket == nil && c.o.Hooks && c.spec.Hooks != nil && len(c.spec.Hooks.StartContainer) > 0 {
		c.Step("run the hooks of the start")
		c.Stage(StageStart)
	}
	c.Step("close what the app must not see")
	c.Call("close_range", unix.SYS_CLOSE_RANGE, 3, 0xffffffff, unix.CLOSE_RANGE_CLOEXEC)
	if err := c.preserve(); err != nil {
		return err
	}
	c.load(f, caps)
	return nil
}

// load installs a seccomp filter. It is the last act but one: what the filter
// forbids to the app, the set-up may need.
func (c *compiler) load(f *filter, caps *capSets) {
	if f == nil {
		return
	}
	c.Step("load the seccomp filter")
	flags := f.flags
	if f.notify {
		flags |= unix.SECCOMP_FILTER_FLAG_NEW_LISTENER
	}
	p := c.Data(f.prog)
	r := c.NewReg()
	c.Call("seccomp", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, int(flags), c.Words(len(f.prog)/8, p)).Into(r)
	if f.notify {
		c.Step("hand the listener of the seccomp filter over")
		c.SendSeccomp(r)
	}
	if !c.proc.NoNewPrivileges {
		// Loading needed CAP_SYS_ADMIN; now it goes.
		c.Step("set the capabilities for good")
		c.capset(caps, 0)
	}
}

// capset sets the capabilities, and extra ones that go later.
func (c *compiler) capset(caps *capSets, extra uint64) {
	head := make([]byte, 8)
	binary.LittleEndian.PutUint32(head, unix.LINUX_CAPABILITY_VERSION_3)
	data := make([]byte, 24)
	for i := range 2 {
		shift := 32 * i
		binary.LittleEndian.PutUint32(data[12*i:], uint32((caps.effective|extra)>>shift))
		binary.LittleEndian.PutUint32(data[12*i+4:], uint32((caps.permitted|extra)>>shift))
		binary.LittleEndian.PutUint32(data[12*i+8:], uint32(caps.inheritable>>shift))
	}
	c.Call("capset", unix.SYS_CAPSET, c.Data(head), c.Data(data))
}

// user sets ids, groups, working directory and capabilities. If a filter is
// still to be loaded, CAP_SYS_ADMIN is kept for that.
func (c *compiler) user(keepAdmin bool) (*capSets, error) {
	caps, warn, err := capabilities(c.proc.Capabilities, c.inUser())
	if err != nil {
		return nil, err
	}
	for _, w := range warn {
		if c.o.Warn != nil {
			c.o.Warn("%s", w)
		}
	}
	u := c.proc.User
	c.Step("drop capabilities from the bounding set")
	for n := range lastCap() + 1 {
		if caps.bounding&(1<<n) == 0 {
			c.Call("prctl", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, n, 0, 0, 0).Ignore(unix.EINVAL)
		}
	}
	c.ownStdio()
	went := c.enterCwd()
	c.Step("keep capabilities over the change of user")
	c.Call("prctl", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	c.Step("set the groups %v", u.AdditionalGids)
	groups := make([]byte, 4*len(u.AdditionalGids))
	for i, g := range u.AdditionalGids {
		binary.LittleEndian.PutUint32(groups[4*i:], g)
	}
	set := c.Call("setgroups", unix.SYS_SETGROUPS, len(u.AdditionalGids), c.Data(groups))
	if c.inUser() && len(u.AdditionalGids) == 0 {
		set.Ignore(unix.EPERM) // where the map forbids it there is nothing to drop either
	}
	c.Step("become the group %d", u.GID)
	c.Call("setresgid", unix.SYS_SETRESGID, int(u.GID), int(u.GID), int(u.GID))
	c.Step("become the user %d", u.UID)
	c.Call("setresuid", unix.SYS_SETRESUID, int(u.UID), int(u.UID), int(u.UID))
	c.cwd(went)
	c.Step("set the capabilities")
	var extra uint64
	if keepAdmin {
		extra = 1 << unix.CAP_SYS_ADMIN
	}
	c.capset(caps, extra)
	c.Call("prctl", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
	for n := range lastCap() + 1 {
		if caps.ambient&(1<<n) != 0 {
			c.Call("prctl", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n, 0, 0).Ignore(unix.EPERM)
		}
	}
	return caps, nil
}

// ownStdio gives the app's user the pipes or the terminal that it writes to, so
// that it can open /dev/stdout anew.
func (c *compiler) ownStdio() {
	if c.proc.User.UID == 0 && !c.inUser() {
		return
	}
	c.Step("give the user its standard streams")
	st := c.Data(make([]byte, 256))
	for fd := range 3 {
		skip, rdev := c.NewLabel(), c.NewReg()
		c.Call("fstat", unix.SYS_FSTAT, fd, st).On(skip, unix.EBADF)
		c.Load(rdev, st+statRdev, 8)
		c.JumpIf(skip, rdev, unix.Mkdev(1, 3), ^uint64(0)) // everybody's /dev/null
		c.Call("fchown", unix.SYS_FCHOWN, fd, int(c.proc.User.UID), -1).Ignore(unix.EINVAL, unix.EPERM, unix.EROFS)
		c.Mark(skip)
	}
}

// enterCwd tries the working directory with the rights of root: the user may
// have none to the directories above it.
func (c *compiler) enterCwd() initproc.Reg {
	r := c.NewReg()
	c.Step("go to the working directory %q", c.proc.Cwd)
	c.Call("chdir", unix.SYS_CHDIR, c.Str(c.proc.Cwd)).Into(r).Ignore(unix.EACCES, unix.EPERM)
	return r
}

// cwd goes to the working directory as the user, unless root could, and makes
// sure that it lies in the root: a descriptor of the host left open could lead
// out of it (CVE-2024-21626).
func (c *compiler) cwd(went initproc.Reg) {
	c.Step("go to the working directory %q", c.proc.Cwd)
	there := c.NewLabel()
	c.JumpIf(there, went, 0, ^uint64(0))
	c.Call("chdir", unix.SYS_CHDIR, c.Str(c.proc.Cwd))
	c.Mark(there)
	buf := c.Data(make([]byte, 4096))
	first, inside, long := c.NewReg(), c.NewLabel(), c.NewLabel()
	c.Call("getcwd", unix.SYS_GETCWD, buf, 4096).On(long, unix.ERANGE, unix.ENAMETOOLONG)
	c.Load(first, buf, 1)
	c.JumpIf(inside, first, '/', 0xff)
	c.Mark(long)
	c.Fail(unix.EXDEV)
	c.Mark(inside)
}

// candidates are the paths where the app may be.
func (c *compiler) candidates() []string {
	name := c.proc.Args[0]
	if strings.Contains(name, "/") {
		return []string{name}
	}
	search := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, e := range c.proc.Env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	var out []string
	for _, dir := range strings.Split(search, ":") {
		if dir == "" {
			dir = "."
		}
		out = append(out, path.Join(dir, name))
		if dir == "." {
			out[len(out)-1] = "./" + name
		}
	}
	return out
}

// lookFor makes a missing app an error of the creation, as runc does.
func (c *compiler) lookFor() {
	c.Step("%s%q", initproc.ExecStep, c.proc.Args[0])
	found, denied := c.NewLabel(), c.NewReg()
	c.Set(denied, 0)
	for _, p := range c.candidates() {
		r, next := c.NewReg(), c.NewLabel()
		c.Call("faccessat", unix.SYS_FACCESSAT, unix.AT_FDCWD, c.Str(p), 1).Into(r).Ignore(unix.ENOENT, unix.ENOTDIR, unix.EACCES, unix.ELOOP, unix.EPERM, unix.ENAMETOOLONG)
		c.JumpIf(found, r, 0, ^uint64(0))
		minus := -int64(unix.EACCES)
		is := c.NewLabel()
		c.JumpIf(is, r, uint64(minus), ^uint64(0))
		c.Jump(next)
		c.Mark(is)
		c.Set(denied, 1)
		c.Mark(next)
	}
	no := c.NewLabel()
	c.JumpIf(no, denied, 0, ^uint64(0))
	c.Fail(unix.EACCES)
	c.Mark(no)
	c.Fail(unix.ENOENT)
	c.Mark(found)
}

// preserve gives the app its further descriptors as 3, 4, … The socket to the
// launcher moves out of their way.
func (c *compiler) preserve() error {
	n := len(c.o.Preserve)
	if n == 0 {
		return nil
	}
	c.Step("preserve descriptors")
	above := 3 + n
	sock := c.NewReg()
	c.Call("fcntl", unix.SYS_FCNTL, initproc.SocketFD, unix.F_DUPFD_CLOEXEC, above).Into(sock)
	c.MoveSocket(sock)
	var high []initproc.Reg
	for _, f := range c.o.Preserve {
		r, err := c.KeepReg()
		if err != nil {
			return invalid("%d descriptors cannot be preserved: %v", n, err)
		}
		c.Call("fcntl", unix.SYS_FCNTL, c.file(f), unix.F_DUPFD_CLOEXEC, above).Into(r)
		high = append(high, r)
	}
	for i, r := range high {
		c.Call("dup3", unix.SYS_DUP3, r, 3+i, 0)
	}
	return nil
}

// exec becomes the app.
func (c *compiler) exec() error {
	argv, env := c.Strs(c.proc.Args), c.Strs(c.proc.Env)
	c.Step("%s%q", initproc.ExecStep, c.proc.Args[0])
	denied := c.NewReg()
	c.Set(denied, 0)
	candidates := c.candidates()
	for i, p := range candidates {
		next, is, r := c.NewLabel(), c.NewLabel(), c.NewReg()
		call := c.Call("execve", unix.SYS_EXECVE, c.Str(p), argv, env).Into(r)
		if i == len(candidates)-1 && len(candidates) == 1 {
			break
		}
		call.Ignore(unix.ENOENT, unix.ENOTDIR, unix.EACCES)
		minus := -int64(unix.EACCES)
		c.JumpIf(is, r, uint64(minus), ^uint64(0))
		c.Jump(next)
		c.Mark(is)
		c.Set(denied, 1)
		c.Mark(next)
	}
	no := c.NewLabel()
	c.JumpIf(no, denied, 0, ^uint64(0))
	c.Fail(unix.EACCES)
	c.Mark(no)
	c.Fail(unix.ENOENT)
	return nil
}

// ExecOptions say where a further process goes.
type ExecOptions struct {
	PidFD     *os.File      // of the container's first process
	InitPID   int           // its pid, where there is no pidfd
	Cgroup    *cgroup.Group // the group to join
	Seccomp   []byte        // compiled filter; nil: that of the configuration is compiled
	Preserve  []*os.File    // descriptors that the app gets as 3, 4, …
	ConsoleAt [2]uint16
	Warn      func(format string, a ...any) // told what was left out; nil: nobody
}

// CompileExec writes the program of a further process in a running container.
func CompileExec(p *specs.Process, spec *specs.Spec, o ExecOptions) (*initproc.Program, []*os.File, error) {
	switch {
	case len(p.Args) == 0:
		return nil, nil, invalid("process.args is empty")
	case !path.IsAbs(p.Cwd):
		return nil, nil, invalid("process.cwd %q is not absolute", p.Cwd)
	case spec.Linux == nil:
		return nil, nil, invalid("it has no linux section")
	}
	c := &compiler{Builder: initproc.NewBuilder(), spec: spec, proc: p, o: Options{Cgroup: o.Cgroup, Seccomp: o.Seccomp, Preserve: o.Preserve, ConsoleAt: o.ConsoleAt, Warn: o.Warn, NoKeyring: true}}
	c.root, c.null = c.NewReg(), c.NewReg()
	target := o.PidFD
	if target == nil {
		fd, err := unix.PidfdOpen(o.InitPID, 0)
		if err != nil {
			return nil, nil, errdefs.New(errdefs.Conflict, "enter", fmt.Sprintf("process %d", o.InitPID), err)
		}
		target = os.NewFile(uintptr(fd), "pidfd")
	}
	c.Step("begin")
	// Nobody in the container may look into this process before it is one of
	// theirs (CVE-2016-9962).
	c.Call("prctl", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	c.Call("umask", unix.SYS_UMASK, 0)
	c.Call("setsid", unix.SYS_SETSID).Ignore(unix.EPERM)
	c.oomScore()
	if err := c.cgroups(); err != nil {
		return nil, nil, err
	}
	var flags uint64
	for _, n := range spec.Linux.Namespaces {
		flags |= cloneFlag[n.Type]
	}
	c.Step("join the container's namespaces")
	fd := c.file(target)
	c.Call("setns", unix.SYS_SETNS, fd, flags)
	c.Call("close", unix.SYS_CLOSE, fd)
	if flags&unix.CLONE_NEWUSER != 0 {
		c.rootIDs()
	}
	if flags&(unix.CLONE_NEWPID|unix.CLONE_NEWTIME) != 0 {
		c.fork()
	}
	if p.Terminal {
		c.Step("make the terminal")
		c.Call("setsid", unix.SYS_SETSID).Ignore(unix.EPERM)
		c.openTerminal(func(fl int) (initproc.Reg, initproc.Call) {
			r := c.NewReg()
			return r, c.Call("openat", unix.SYS_OPENAT, unix.AT_FDCWD, c.Str("/dev/pts/ptmx"), fl|unix.O_CLOEXEC, 0).Into(r)
		})
	} else if flags&unix.CLONE_NEWPID != 0 {
		c.Call("setsid", unix.SYS_SETSID).Ignore(unix.EPERM)
	}
	for _, f := range []func() error{c.limits, c.become, c.exec} {
		if err := f(); err != nil {
			return nil, nil, err
		}
	}
	prog, err := c.Program()
	if err != nil {
		return nil, nil, err
	}
	prog.Terminal, prog.Forks = p.Terminal, c.prog.Forks
	return prog, c.files, nil
}

// lsm refuses labels that the kernel could not apply: running without the
// confinement that was asked for would be worse.
func (c *compiler) lsm() error {
	for _, l := range []struct{ name, label, dir string }{
		{"AppArmor", c.proc.ApparmorProfile, "/sys/module/apparmor"}, {"SELinux", c.proc.SelinuxLabel, "/sys/fs/selinux/enforce"},
	} {
		if l.label == "" || l.label == "unconfined" && l.name == "AppArmor" {
			continue
		}
		if _, err := os.Stat(l.dir); err != nil {
			return errdefs.Newf(errdefs.Unsupported, "apply", fmt.Sprintf("the %s label %q", l.name, l.label), "this kernel does not have %s", l.name)
		}
		c.Step("apply the %s label %q", l.name, l.label)
		if l.name == "AppArmor" {
			c.write("/proc/self/attr/apparmor/exec", "exec "+l.label)
		} else {
			c.write("/proc/self/attr/exec", l.label)
		}
	}
	return nil
}

// hostCaps are the capabilities that this process may hand on.
var hostCaps = sync.OnceValue(func() uint64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return ^uint64(0)
	}
	for _, line := range strings.Split(string(data), "\n") {
		if v, ok := strings.CutPrefix(line, "CapPrm:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64); err == nil {
				return n
			}
		}
	}
	return ^uint64(0)
})

type capSets struct{ bounding, effective, permitted, inheritable, ambient uint64 }

// capNames are the capabilities by number (linux/capability.h).
var capNames = []string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE",
	"NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
	"SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
	"MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"}

// lastCap is the highest capability that the kernel knows.
var lastCap = sync.OnceValue(func() int {
	data, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && n < 64 {
			return n
		}
	}
	return len(capNames) - 1
})

// capabilities turns names into sets. What is unknown here, or not ours to
// give, is left out with a warning, as the specification says.
func capabilities(c *specs.LinuxCapabilities, inUser bool) (*capSets, []string, error) {
	if c == nil {
		return &capSets{}, nil, nil
	}
	have := hostCaps()
	if inUser {
		have = ^uint64(0)
	}
	var warn []string
	set := func(list []string) uint64 {
		var out uint64
		for _, name := range list {
			n := slices.Index(capNames, strings.TrimPrefix(strings.ToUpper(name), "CAP_"))
			if n < 0 || n > lastCap() || have&(1<<n) == 0 {
				warn = append(warn, "the capability "+name+" is unknown or not available here, and left out")
				continue
			}
			out |= 1 << n
		}
		return out
	}
	s := &capSets{set(c.Bounding), set(c.Effective), set(c.Permitted), set(c.Inheritable), set(c.Ambient)}
	if s.effective&^s.permitted != 0 {
		return nil, nil, invalid("the effective capabilities are not all permitted")
	}
	return s, warn, nil
}
