package ociruntime

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

const (
	emptyFrom = unix.MOVE_MOUNT_F_EMPTY_PATH
	emptyBoth = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
)

// mountOptions is what the strings of a mount mean.
type mountOptions struct {
	set, clear   uint64 // MOUNT_ATTR_* of the mount
	rset, rclear uint64 // the same, of all mounts below it too
	propagation  uint64
	rprop        bool
	bind, rbind  bool
	idmap        bool
	ridmap       bool
	data         []string // for the file system
}

type attr struct {
	bit   uint64
	clear bool
}

// attrs are the options that are attributes of a mount; with an r in front
// they hold for everything below it.
var attrs = map[string]attr{
	"ro": {unix.MOUNT_ATTR_RDONLY, false}, "rw": {unix.MOUNT_ATTR_RDONLY, true},
	"nosuid": {unix.MOUNT_ATTR_NOSUID, false}, "suid": {unix.MOUNT_ATTR_NOSUID, true},
	"nodev": {unix.MOUNT_ATTR_NODEV, false}, "dev": {unix.MOUNT_ATTR_NODEV, true},
	"noexec": {unix.MOUNT_ATTR_NOEXEC, false}, "exec": {unix.MOUNT_ATTR_NOEXEC, true},
	"nodiratime": {unix.MOUNT_ATTR_NODIRATIME, false}, "diratime": {unix.MOUNT_ATTR_NODIRATIME, true},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, false}, "symfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, true},
	"noatime": {unix.MOUNT_ATTR_NOATIME, false}, "atime": {unix.MOUNT_ATTR_NOATIME, true},
	"strictatime": {unix.MOUNT_ATTR_STRICTATIME, false}, "nostrictatime": {unix.MOUNT_ATTR_STRICTATIME, true},
	"relatime": {unix.MOUNT_ATTR_RELATIME, false}, "norelatime": {unix.MOUNT_ATTR_RELATIME, true},
}

var propagations = map[string]uint64{"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE}

func parseOptions(options []string) (m mountOptions) {
	for _, o := range options {
		if a, ok := attrs[o]; ok {
			apply(&m.set, &m.clear, a)
			continue
		}
		rest, isR := strings.CutPrefix(o, "r")
		if a, ok := attrs[rest]; ok && isR {
			apply(&m.rset, &m.rclear, a)
			continue
		}
		if p, ok := propagations[o]; ok {
			m.propagation, m.rprop = p, false
			continue
		}
		if p, ok := propagations[rest]; ok && isR {
			m.propagation, m.rprop = p, true
			continue
		}
		switch o {
		case "bind":
			m.bind = true
		case "rbind":
			m.bind, m.rbind = true, true
		case "idmap":
			m.idmap = true
		case "ridmap":
			m.idmap, m.ridmap = true, true
		case "defaults", "remount", "async", "nomand", "mand", "sync", "dirsync", "iversion", "noiversion", "silent", "loud", "lazytime", "nolazytime", "acl", "noacl", "tmpcopyup", "":
		default:
			m.data = append(m.data, o)
		}
	}
	return m
}

// atimeBits are one field of the attributes: setting one clears the others.
const atimeBits = unix.MOUNT_ATTR__ATIME

func apply(set, clear *uint64, a attr) {
	if a.bit&atimeBits != 0 || a.bit == unix.MOUNT_ATTR_RELATIME {
		if a.clear {
			return // the opposite of one kind of atime is the default
		}
		*set = *set&^uint64(atimeBits) | a.bit
		*clear |= atimeBits
		return
	}
	if a.clear {
		*clear |= a.bit
		*set &^= a.bit
	} else {
		*set |= a.bit
		*clear &^= a.bit
	}
}

func (c *compiler) propagation() error {
	flag := uint64(unix.MS_SLAVE)
	if p := c.spec.Linux.RootfsPropagation; p != "" {
		name := strings.TrimPrefix(p, "r")
		if _, ok := propagations[name]; !ok {
			return invalid("linux.rootfsPropagation %q: want private, slave, shared or unbindable", p)
		}
		// The old root must not stay shared while it is left (pivot_root(2)).
		if name == "private" {
			flag = unix.MS_PRIVATE
		}
	}
	c.Step("keep our mounts out of the host")
	c.Call("mount", unix.SYS_MOUNT, 0, c.Str("/"), 0, flag|unix.MS_REC, 0)
	return nil
}

// how is the argument of openat2.
func (c *compiler) how(flags int, mode uint32) initproc.Ptr {
	return c.Words(flags, int(mode), unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

// inRoot opens a path of the container as a handle.
func (c *compiler) inRoot(p string, flags int) (initproc.Reg, initproc.Call) {
	r := c.NewReg()
	return r, c.Call("openat2", unix.SYS_OPENAT2, c.root, c.Str(p), c.how(unix.O_PATH|unix.O_CLOEXEC|flags, 0), 24).Into(r)
}

func (c *compiler) openRoot() error {
	if c.o.RootFS != nil {
		c.Step("mount the root")
		fd := c.file(c.o.RootFS)
		c.Call("move_mount", unix.SYS_MOVE_MOUNT, fd, c.Str(""), unix.AT_FDCWD, c.Str("/"), emptyFrom)
		c.Set(c.root, fd)
		return nil
	}
	p := c.spec.Root.Path
	c.Step("bind the root %s", p)
	c.Call("open_tree", unix.SYS_OPEN_TREE, unix.AT_FDCWD, c.Str(p), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE).Into(c.root)
	c.Call("move_mount", unix.SYS_MOVE_MOUNT, c.root, c.Str(""), unix.AT_FDCWD, c.Str(p), emptyFrom)
	return nil
}

// target opens the place of a mount, and makes it where it is missing.
func (c *compiler) target(dest string, isDir bool) initproc.Reg {
	r, mode := c.NewReg(), 0o755
	if !isDir {
		mode = 0o644
	}
	c.MkPath(c.root, path.Clean("/"+dest), !isDir, mode).Into(r)
	return r
}

// setattr changes attributes of a mount by descriptor.
func (c *compiler) setattr(fd any, flags int, set, clear, propagation, userns uint64) initproc.Call {
	at := c.Words(set, clear, propagation, userns)
	return c.Call("mount_setattr", unix.SYS_MOUNT_SETATTR, fd, c.Str(""), unix.AT_EMPTY_PATH|flags, at, 32)
}

func (c *compiler) mounts() error {
	for i, m := range c.spec.Mounts {
		if m.Destination == "" {
			return invalid("mount %d has no destination", i)
		}
		if err := c.mount(i, m); err != nil {
			return err
		}
	}
	return nil
}

func (c *compiler) mount(i int, m specs.Mount) error {
	o := parseOptions(m.Options)
	isBind := o.bind || m.Type == "bind" || c.o.MountFDs[i] != nil
	c.Step("mount %q on %q", describeMount(m), m.Destination)
	var fd any
	isDir := true
	switch {
	case c.o.MountFDs[i] != nil:
		fd = c.file(c.o.MountFDs[i])
		if fi, err := c.o.MountFDs[i].Stat(); err == nil {
			isDir = fi.IsDir()
		}
	case isBind:
		fi, err := os.Stat(m.Source)
		if err == nil {
			isDir = fi.IsDir()
		}
		r := c.NewReg()
		flags := unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
		if o.rbind {
			flags |= unix.AT_RECURSIVE
		}
		c.Call("open_tree", unix.SYS_OPEN_TREE, unix.AT_FDCWD, c.Str(m.Source), flags).Into(r)
		fd = r
	case m.Type == "cgroup" || m.Type == "cgroup2":
		return c.cgroupMount(m, o)
	default:
		r, err := c.filesystem(m.Type, m.Source, o)
		if err != nil {
			return err
		}
		fd = r
	}
	if isBind {
		if o.set|o.clear != 0 {
			c.setattr(fd, 0, o.set, o.clear, 0, 0)
		}
	}
	if o.rset|o.rclear != 0 {
		c.setattr(fd, unix.AT_RECURSIVE, o.rset, o.rclear, 0, 0)
	}
	if o.idmap || len(m.UIDMappings) > 0 {
		if err := c.idmap(fd, m, o); err != nil {
			return err
		}
	}
	d := c.target(m.Destination, isDir)
	c.Call("move_mount", unix.SYS_MOVE_MOUNT, fd, c.Str(""), d, c.Str(""), emptyBoth)
	c.Call("close", unix.SYS_CLOSE, d)
	c.propagate(fd, o)
	if m.Type == "tmpfs" && !isBind && slices.Contains(m.Options, "tmpcopyup") {
		return invalid("mount %q: tmpcopyup is not supported", m.Destination)
	}
	if r, ok := fd.(initproc.Reg); ok {
		c.Call("close", unix.SYS_CLOSE, r)
	}
	return nil
}

func (c *compiler) propagate(fd any, o mountOptions) {
	if o.propagation == 0 {
		return
	}
	flags := 0
	if o.rprop {
		flags = unix.AT_RECURSIVE
	}
	c.setattr(fd, flags, 0, 0, o.propagation, 0)
}

func describeMount(m specs.Mount) string {
	if m.Source != "" {
		return m.Source
	}
	return m.Type
}

// filesystem makes a new file system, mounted nowhere yet.
func (c *compiler) filesystem(kind, source string, o mountOptions) (initproc.Reg, error) {
	if kind == "" {
		return 0, invalid("a mount has neither a type nor the option bind")
	}
	fs, mnt := c.NewReg(), c.NewReg()
	c.Call("fsopen", unix.SYS_FSOPEN, c.Str(kind), unix.FSOPEN_CLOEXEC).Into(fs)
	if source != "" {
		c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, c.Str("source"), c.Str(source), 0).Ignore(unix.EINVAL)
	}
	for _, opt := range o.data {
		k, v, ok := strings.Cut(opt, "=")
		if ok {
			c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, c.Str(k), c.Str(v), 0)
		} else {
			c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_FLAG, c.Str(k), 0, 0)
		}
	}
	refused, done := c.NewLabel(), c.NewLabel()
	create := c.Call("fsconfig create", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	mount := c.Call("fsmount", unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, o.set).Into(mnt)
	c.Call("close", unix.SYS_CLOSE, fs)
	if kind == "sysfs" {
		// Only the owner of the network namespace may mount it anew: others
		// see the host's, read-only as it is.
		create.On(refused, unix.EPERM)
		mount.On(refused, unix.EPERM)
		c.Jump(done)
		c.Mark(refused)
		c.Call("open_tree", unix.SYS_OPEN_TREE, unix.AT_FDCWD, c.Str("/sys"), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE).Into(mnt)
		c.setattr(mnt, 0, o.set, 0, 0, 0).Ignore(unix.EPERM)
		c.Mark(done)
	} else {
		c.Mark(refused)
		c.Mark(done)
	}
	return mnt, nil
}

// cgroupMount shows the container its own control group.
func (c *compiler) cgroupMount(m specs.Mount, o mountOptions) error {
	mode, err := cgroup.Detect()
	if err != nil {
		return err
	}
	_, private := c.has(specs.CgroupNamespace)
	place := func(fd any, dest string) {
		d := c.target(dest, true)
		c.Call("move_mount", unix.SYS_MOVE_MOUNT, fd, c.Str(""), d, c.Str(""), emptyBoth)
	}
	clone := func(source string, recursive int) initproc.Reg {
		r := c.NewReg()
		c.Call("open_tree", unix.SYS_OPEN_TREE, unix.AT_FDCWD, c.Str(source), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|recursive).Into(r)
		c.setattr(r, recursive, o.set, 0, 0, 0)
		return r
	}
	if mode == cgroup.V2 {
		if private {
			o.data = nil
			r, err := c.filesystem("cgroup2", "cgroup2", o)
			if err != nil {
				return err
			}
			place(r, m.Destination)
			return nil
		}
		place(clone("/sys/fs/cgroup", unix.AT_RECURSIVE), m.Destination)
		return nil
	}
	tmp := o
	tmp.set &^= unix.MOUNT_ATTR_RDONLY
	tmp.data = []string{"mode=755"}
	r, err := c.filesystem("tmpfs", "tmpfs", tmp)
	if err != nil {
		return err
	}
	place(r, m.Destination)
	mounts, err := cgroup.Mounts()
	if err != nil {
		return err
	}
	dirs := map[string]string{} // name below the destination → the group on the host
	for controller, at := range mounts {
		name := path.Base(at)
		if c.o.Cgroup != nil {
			at = c.o.Cgroup.Dir(controller)
		}
		if at != "" && (controller != "" || c.o.Cgroup == nil) {
			dirs[name] = at
		}
	}
	var names []string
	for n := range dirs {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		c.Step("mount the control group %s on %q", dirs[n], path.Join(m.Destination, n))
		place(clone(dirs[n], 0), path.Join(m.Destination, n))
	}
	if o.set&unix.MOUNT_ATTR_RDONLY != 0 {
		c.Step("make %q read-only", m.Destination)
		// Opened anew: the register of the tmpfs may have been used again.
		at, _ := c.inRoot(m.Destination, 0)
		c.setattr(at, 0, unix.MOUNT_ATTR_RDONLY, 0, 0, 0)
		c.Call("close", unix.SYS_CLOSE, at)
	}
	return nil
}

// idmap lets files appear with the owners that a user namespace maps.
func (c *compiler) idmap(fd any, m specs.Mount, o mountOptions) error {
	uids, gids := m.UIDMappings, m.GIDMappings
	if len(uids) == 0 {
		uids, gids = c.spec.Linux.UIDMappings, c.spec.Linux.GIDMappings
	}
	if len(uids) == 0 || len(gids) == 0 {
		return invalid("mount %q: idmap needs uidMappings and gidMappings", m.Destination)
	}
	ns, err := userNamespace(idMaps(uids), idMaps(gids))
	if err != nil {
		return fmt.Errorf("mount %q: %w", m.Destination, err)
	}
	flags := 0
	if o.ridmap {
		flags = unix.AT_RECURSIVE
	}
	// The descriptor's number is only known as one of the child's.
	at := c.Words(uint64(unix.MOUNT_ATTR_IDMAP), 0, 0, uint64(c.file(ns)))
	c.Call("mount_setattr", unix.SYS_MOUNT_SETATTR, fd, c.Str(""), unix.AT_EMPTY_PATH|flags, at, 32)
	return nil
}

// userNamespace makes one that nobody lives in, for its maps.
func userNamespace(uids, gids []initproc.IDMap) (*os.File, error) {
	b := initproc.NewBuilder()
	b.Step("wait")
	b.Ready()
	p, err := b.Program()
	if err != nil {
		return nil, err
	}
	p.Clone, p.UIDMap, p.GIDMap = unix.CLONE_NEWUSER, uids, gids
	proc, err := initproc.Start(p, nil, initproc.Stdio{})
	if err != nil {
		return nil, err
	}
	defer proc.Kill()
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", proc.PID))
}

// defaultDevices are those that the specification demands.
var defaultDevices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, {Path: "/dev/zero", Type: "c", Major: 1, Minor: 5}, {Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8}, {Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9}, {Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

// ownDev reports whether /dev is the container's, to be filled.
func (c *compiler) ownDev() bool {
	for i, m := range c.spec.Mounts {
		if path.Clean(m.Destination) == "/dev" {
			o := parseOptions(m.Options)
			return !(o.bind || m.Type == "bind" || c.o.MountFDs[i] != nil)
		}
	}
	return true
}

func (c *compiler) devices() error {
	if !c.ownDev() {
		return nil
	}
	list := slices.Clone(defaultDevices)
	for _, d := range c.spec.Linux.Devices {
		list = slices.DeleteFunc(list, func(x specs.LinuxDevice) bool { return x.Path == path.Clean(d.Path) })
		d.Path = path.Clean(d.Path)
		list = append(list, d)
	}
	for _, d := range list {
		if err := c.device(d); err != nil {
			return err
		}
	}
	c.Step("make the links in /dev")
	dev, _ := c.inRoot("/dev", unix.O_DIRECTORY)
	for _, l := range [][2]string{{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}} {
		c.Call("symlinkat", unix.SYS_SYMLINKAT, c.Str(l[0]), dev, c.Str(l[1])).Ignore(unix.EEXIST)
	}
	if _, err := os.Stat("/proc/kcore"); err == nil {
		c.Call("symlinkat", unix.SYS_SYMLINKAT, c.Str("/proc/kcore"), dev, c.Str("core")).Ignore(unix.EEXIST)
	}
	c.Call("close", unix.SYS_CLOSE, dev)
	return nil
}

func (c *compiler) device(d specs.LinuxDevice) error {
	kinds := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}
	kind, ok := kinds[d.Type]
	if !ok {
		return invalid("device %q: there is no type %q", d.Path, d.Type)
	}
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(*d.FileMode) & 0o7777
	}
	var uid, gid uint32
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	c.Step("make the device %q", d.Path)
	dir, name := path.Split(d.Path)
	bind, exists, done := c.NewLabel(), c.NewLabel(), c.NewLabel()
	parent := c.target(dir, true)
	rdev := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	if c.inUser() && d.Type != "p" {
		c.Jump(bind)
	} else {
		r := c.NewReg()
		c.Call("mknodat", unix.SYS_MKNODAT, parent, c.Str(name), int(kind|mode), rdev).Into(r).On(exists, unix.EEXIST, unix.EPERM)
		c.Call("fchmodat", unix.SYS_FCHMODAT, parent, c.Str(name), int(mode))
		if uid != 0 || gid != 0 {
			c.Call("fchownat", unix.SYS_FCHOWNAT, parent, c.Str(name), int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
		}
		c.Jump(done)
		c.Mark(exists)
		minus1 := -int64(unix.EPERM)
		c.JumpIf(bind, r, uint64(minus1), ^uint64(0))
		// What is there already must be that very device, not a link that the
		// image put there (CVE-2025-31133).
		st := c.Data(make([]byte, 256))
		m, dv, bad := c.NewReg(), c.NewReg(), c.NewLabel()
		c.Call("newfstatat", unix.SYS_NEWFSTATAT, parent, c.Str(name), st, unix.AT_SYMLINK_NOFOLLOW)
		modeAt, rdevAt := initproc.Ptr(24), initproc.Ptr(40)
		if runtime.GOARCH == "arm64" {
			modeAt, rdevAt = 16, 32
		}
		c.Load(m, st+modeAt, 4)
		c.Load(dv, st+rdevAt, 8)
		right := c.NewLabel()
		c.JumpIf(right, m, uint64(kind), unix.S_IFMT)
		c.Jump(bad)
		c.Mark(right)
		if d.Type == "p" {
			c.Jump(done)
		} else {
			c.JumpIf(done, dv, rdev, ^uint64(0))
		}
		c.Mark(bad)
		c.Fail(unix.EEXIST)
	}
	c.Mark(bind)
	f, t, p := c.NewReg(), c.NewReg(), c.NewReg()
	c.Call("openat", unix.SYS_OPENAT, parent, c.Str(name), unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644).Into(f)
	c.Call("close", unix.SYS_CLOSE, f)
	c.Call("openat", unix.SYS_OPENAT, parent, c.Str(name), unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0).Into(p)
	c.Call("open_tree", unix.SYS_OPEN_TREE, unix.AT_FDCWD, c.Str(d.Path), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC).Into(t)
	c.Call("move_mount", unix.SYS_MOVE_MOUNT, t, c.Str(""), p, c.Str(""), emptyBoth)
	c.Mark(done)
	c.Call("close", unix.SYS_CLOSE, parent)
	return nil
}

// terminal makes one in the container's devpts, sends its master to the
// launcher, and puts its other end on stdio and /dev/console.
func (c *compiler) terminal() error {
	if !c.proc.Terminal {
		return nil
	}
	c.Step("make the terminal")
	slave := c.openTerminal(func(flags int) (initproc.Reg, initproc.Call) {
		r := c.NewReg()
		return r, c.Call("openat2", unix.SYS_OPENAT2, c.root, c.Str("/dev/pts/ptmx"), c.how(flags|unix.O_CLOEXEC, 0), 24).Into(r)
	})
	if c.ownDev() {
		c.Step("mount the terminal on /dev/console")
		t, p, f := c.NewReg(), c.NewReg(), c.NewReg()
		dev, _ := c.inRoot("/dev", unix.O_DIRECTORY)
		c.Call("openat", unix.SYS_OPENAT, dev, c.Str("console"), unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0o600).Into(f)
		c.Call("close", unix.SYS_CLOSE, f)
		c.Call("openat", unix.SYS_OPENAT, dev, c.Str("console"), unix.O_PATH|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0).Into(p)
		c.Call("open_tree", unix.SYS_OPEN_TREE, slave, c.Str(""), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH).Into(t)
		c.Call("move_mount", unix.SYS_MOVE_MOUNT, t, c.Str(""), p, c.Str(""), emptyBoth)
	}
	return nil
}

// openTerminal makes a pair, sends the master away and puts the slave on 0-2.
func (c *compiler) openTerminal(open func(flags int) (initproc.Reg, initproc.Call)) initproc.Reg {
	master, _ := open(unix.O_RDWR | unix.O_NOCTTY)
	slave := c.NewReg()
	c.Call("ioctl TIOCSPTLCK", unix.SYS_IOCTL, master, unix.TIOCSPTLCK, c.Data(make([]byte, 8)))
	c.Call("ioctl TIOCGPTPEER", unix.SYS_IOCTL, master, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC).Into(slave)
	if w, h := c.o.ConsoleAt[0], c.o.ConsoleAt[1]; w > 0 && h > 0 {
		c.winsize(master, h, w)
	} else if s := c.proc.ConsoleSize; s != nil {
		c.winsize(master, uint16(s.Height), uint16(s.Width))
	}
	c.SendConsole(master)
	c.Call("close", unix.SYS_CLOSE, master)
	for i := range 3 {
		c.Call("dup3", unix.SYS_DUP3, slave, i, 0)
	}
	c.Call("ioctl TIOCSCTTY", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0).Ignore(unix.EPERM)
	return slave
}

func (c *compiler) winsize(fd initproc.Reg, rows, cols uint16) {
	ws := make([]byte, 8)
	binary.LittleEndian.PutUint16(ws, rows)
	binary.LittleEndian.PutUint16(ws[2:], cols)
	c.Call("ioctl TIOCSWINSZ", unix.SYS_IOCTL, fd, unix.TIOCSWINSZ, c.Data(ws))
}

// hide masks paths and makes others read-only, before the root is entered: the
// host's /dev/null can be cloned only while it can be reached.
func (c *compiler) hide() error {
	for _, p := range c.spec.Linux.ReadonlyPaths {
		c.Step("make %q read-only", p)
		next := c.NewLabel()
		at, call := c.inRoot(p, 0)
		call.On(next, unix.ENOENT, unix.ENOTDIR)
		t := c.NewReg()
		c.Call("open_tree", unix.SYS_OPEN_TREE, at, c.Str(""), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE).Into(t)
		c.setattr(t, unix.AT_RECURSIVE, unix.MOUNT_ATTR_RDONLY, 0, 0, 0)
		c.Call("move_mount", unix.SYS_MOVE_MOUNT, t, c.Str(""), at, c.Str(""), emptyBoth)
		c.Call("close", unix.SYS_CLOSE, t)
		c.Call("close", unix.SYS_CLOSE, at)
		c.Mark(next)
	}
	for _, p := range c.spec.Linux.MaskedPaths {
		c.mask(p)
	}
	return nil
}

func (c *compiler) enterRoot() error {
	c.Step("enter the root")
	c.Call("fchdir", unix.SYS_FCHDIR, c.root)
	if c.o.NoPivot {
		c.Call("mount", unix.SYS_MOUNT, c.Str("."), c.Str("/"), 0, unix.MS_MOVE, 0)
		c.Call("chroot", unix.SYS_CHROOT, c.Str("."))
	} else {
		c.Call("pivot_root", unix.SYS_PIVOT_ROOT, c.Str("."), c.Str("."))
		c.Call("umount2", unix.SYS_UMOUNT2, c.Str("."), unix.MNT_DETACH)
	}
	c.Call("chdir", unix.SYS_CHDIR, c.Str("/"))
	if p := c.spec.Linux.RootfsPropagation; p != "" {
		flag := propagations[strings.TrimPrefix(p, "r")]
		if strings.HasPrefix(p, "r") {
			flag |= unix.MS_REC
		}
		c.Step("make the root %s", p)
		c.Call("mount", unix.SYS_MOUNT, 0, c.Str("/"), 0, flag, 0)
	}
	if c.spec.Root != nil && c.spec.Root.Readonly {
		c.Step("make the root read-only")
		at := c.Words(uint64(unix.MOUNT_ATTR_RDONLY), 0, 0, 0)
		c.Call("mount_setattr", unix.SYS_MOUNT_SETATTR, unix.AT_FDCWD, c.Str("/"), 0, at, 32)
	}
	return nil
}

// mask puts /dev/null over a file, and an empty read-only tmpfs over a
// directory.
func (c *compiler) mask(p string) {
	c.Step("mask %q", p)
	next, dir := c.NewLabel(), c.NewLabel()
	at, call := c.inRoot(p, 0)
	call.On(next, unix.ENOENT, unix.ENOTDIR, unix.EACCES)
	t := c.NewReg()
	c.Call("open_tree", unix.SYS_OPEN_TREE, c.null, c.Str(""), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH).Into(t)
	c.Call("move_mount", unix.SYS_MOVE_MOUNT, t, c.Str(""), at, c.Str(""), emptyBoth).On(dir, unix.ENOTDIR, unix.EINVAL)
	c.Call("close", unix.SYS_CLOSE, t)
	c.Call("close", unix.SYS_CLOSE, at)
	c.Jump(next)
	c.Mark(dir)
	c.Call("close", unix.SYS_CLOSE, t)
	fs, m := c.NewReg(), c.NewReg()
	c.Call("fsopen", unix.SYS_FSOPEN, c.Str("tmpfs"), unix.FSOPEN_CLOEXEC).Into(fs)
	c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, c.Str("nr_blocks"), c.Str("1"), 0)
	c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, c.Str("nr_inodes"), c.Str("1"), 0)
	c.Call("fsconfig create", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	c.Call("fsmount", unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC).Into(m)
	c.Call("move_mount", unix.SYS_MOVE_MOUNT, m, c.Str(""), at, c.Str(""), emptyBoth)
	c.Call("close", unix.SYS_CLOSE, fs)
	c.Call("close", unix.SYS_CLOSE, m)
	c.Call("close", unix.SYS_CLOSE, at)
	c.Mark(next)
}
