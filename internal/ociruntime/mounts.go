package ociruntime

import (
	"encoding/binary"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// Offsets in struct stat.
const (
	statMode = initproc.Ptr(unsafe.Offsetof(unix.Stat_t{}.Mode))
	statRdev = initproc.Ptr(unsafe.Offsetof(unix.Stat_t{}.Rdev))
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
	copyUp       bool
	super        []string // flags of the file system itself
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
		case "tmpcopyup":
			m.copyUp = true
		case "sync", "dirsync", "lazytime", "mand":
			m.super = append(m.super, o)
		case "defaults", "remount", "async", "nomand", "iversion", "noiversion", "silent", "loud", "nolazytime", "acl", "noacl", "":
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

// ownMounts reports whether a mount namespace is made. Otherwise the root is a
// tree that is attached nowhere: what is mounted in it (Linux 6.15) nobody else
// sees, and it goes with the container.
func (c *compiler) ownMounts() bool { return c.isNew(specs.MountNamespace) }

func (c *compiler) propagation() error {
	p := c.spec.Linux.RootfsPropagation
	name := strings.TrimPrefix(p, "r")
	if _, ok := propagations[name]; p != "" && !ok {
		return invalid("linux.rootfsPropagation %q: want private, slave, shared or unbindable", p)
	}
	if !c.ownMounts() {
		return nil
	}
	flag := uint64(unix.MS_SLAVE)
	switch name {
	case "private":
		flag = unix.MS_PRIVATE
	case "shared":
		// Binds that are to be shared with the host must be cloned while they are.
		c.early = map[int]initproc.Reg{}
		for i, m := range c.spec.Mounts {
			o := parseOptions(m.Options)
			if !(o.bind || m.Type == "bind") || o.propagation != unix.MS_SHARED || c.o.MountFDs[i] != nil || c.inUser() {
				continue
			}
			r, err := c.KeepReg()
			if err != nil {
				return err
			}
			c.Step("clone %q", m.Source)
			c.cloneTree(m.Source, o.rbind).Into(r)
			c.early[i] = r
		}
	}
	// The old root must not stay shared while it is left (pivot_root(2)).
	c.Step("keep our mounts out of the host")
	c.Call("mount", unix.SYS_MOUNT, 0, c.Str("/"), 0, flag|unix.MS_REC, 0)
	return nil
}

// cloneTree clones what is mounted at a path of the host.
func (c *compiler) cloneTree(source string, recursive bool) initproc.Call {
	flags := unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return c.Call("open_tree", unix.SYS_OPEN_TREE, unix.AT_FDCWD, c.Str(source), flags)
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

// openRoot makes the root a mount, and puts it where pivot_root finds it.
func (c *compiler) openRoot() error {
	p := ""
	if c.spec.Root != nil {
		p = c.spec.Root.Path
	}
	at := "/"
	if h := c.spec.Hooks; c.o.RootFS == nil && c.o.Hooks && h != nil {
		at = p // hooks look for it there
	}
	switch {
	case c.o.RootFS != nil:
		c.Step("mount the root")
		c.Set(c.root, c.file(c.o.RootFS))
	case c.inUser():
		// Root of the user namespace may not be able to reach it.
		f, err := linux.CloneTree(nil, p, true)
		if err != nil {
			return errdefs.New(errdefs.Invalid, "mount", "the root "+p, err)
		}
		c.Step("mount the root %s", p)
		c.Set(c.root, c.file(f))
	default:
		c.Step("mount the root %s", p)
		c.cloneTree(p, true).Into(c.root)
	}
	if c.ownMounts() {
		c.Call("move_mount", unix.SYS_MOVE_MOUNT, c.root, c.Str(""), unix.AT_FDCWD, c.Str(at), emptyFrom)
	}
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

// insideProc are the files of /proc that may be mounted over: they tell a
// container about its own limits.
var insideProc = []string{"/proc/cpuinfo", "/proc/diskstats", "/proc/meminfo", "/proc/stat", "/proc/swaps", "/proc/uptime", "/proc/loadavg",
	"/proc/slabinfo", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled"}

// mountNeeds is what to know when mounting does not work.
func (c *compiler) mountNeeds() string {
	if c.ownMounts() {
		return ""
	}
	return " (without a mount namespace of its own this needs Linux 6.15)"
}

// checkProc refuses a mount that would fake /proc to the container's own tools.
func checkProc(m specs.Mount, isBind bool) error {
	dest := path.Clean("/" + m.Destination)
	switch {
	case dest == "/proc" && !isBind && m.Type != "proc":
		return invalid("mount %q: only a proc file system can be there", m.Destination)
	case dest == "/proc" && isBind:
		if t, err := linux.FilesystemOf(m.Source); err == nil && t != unix.PROC_SUPER_MAGIC {
			return invalid("mount %q: only a proc file system can be there", m.Destination)
		}
	case strings.HasPrefix(dest, "/proc/") && !slices.Contains(insideProc, dest):
		return invalid("mount %q: it is inside /proc", m.Destination)
	}
	return nil
}

func (c *compiler) mount(i int, m specs.Mount) error {
	o := parseOptions(m.Options)
	isBind := o.bind || m.Type == "bind" || c.o.MountFDs[i] != nil
	o.idmap = o.idmap || len(m.UIDMappings) > 0
	if err := checkProc(m, isBind && c.o.MountFDs[i] == nil); err != nil {
		return err
	}
	c.Step("mount %q on %q%s", describeMount(m), m.Destination, c.mountNeeds())
	switch {
	case isBind:
		return c.bind(i, m, o)
	case m.Type == "cgroup" || m.Type == "cgroup2":
		return c.cgroupMount(m, o)
	case m.Type == "tmpfs" && o.copyUp:
		f, err := c.copyUp(m, o)
		if err != nil {
			return err
		}
		if f != nil {
			return c.attach(c.file(f), m, o, true)
		}
	case tooLong(o.data):
		return c.classicMount(m, o)
	}
	dirMode := m.Type == "tmpfs" && !hasKey(o.data, "mode")
	late := o.set
	if dirMode {
		o.set &^= unix.MOUNT_ATTR_RDONLY
	}
	fd, err := c.filesystem(m.Type, m.Source, o)
	if err != nil {
		return err
	}
	if dirMode {
		c.takeMode(fd, m.Destination)
		if late != o.set {
			c.setattr(fd, 0, late, 0, 0, 0)
		}
	}
	if o.idmap {
		if err := c.idmap(fd, m, o); err != nil {
			return err
		}
	}
	return c.attach(fd, m, o, true)
}

// bind mounts what is there already.
func (c *compiler) bind(i int, m specs.Mount, o mountOptions) error {
	var fd any
	isDir := true
	f := c.o.MountFDs[i]
	if f == nil && m.Source == "" {
		return invalid("mount %q: a bind needs a source", m.Destination)
	}
	if f == nil && (o.idmap || c.inUser()) {
		// Only out here is the right to map owners, and to reach every source.
		var err error
		if f, err = c.cloneHere(m, o); err != nil {
			return err
		}
	}
	if f != nil {
		fd = c.file(f)
		if fi, err := f.Stat(); err == nil {
			isDir = fi.IsDir()
		}
	} else {
		if fi, err := os.Stat(m.Source); err == nil {
			isDir = fi.IsDir()
		}
		r, ok := c.early[i]
		if !ok {
			r = c.NewReg()
			c.cloneTree(m.Source, o.rbind).Into(r)
		}
		fd = r
	}
	if o.set|o.clear != 0 {
		c.setattr(fd, 0, o.set, o.clear, 0, 0)
	}
	return c.attach(fd, m, o, isDir)
}

// cloneHere clones a source before the container's process is there.
func (c *compiler) cloneHere(m specs.Mount, o mountOptions) (*os.File, error) {
	f, err := linux.CloneTree(nil, m.Source, o.rbind)
	if err != nil {
		return nil, errdefs.New(errdefs.Invalid, "mount", fmt.Sprintf("%q on %q", m.Source, m.Destination), err)
	}
	if !o.idmap {
		return f, nil
	}
	ns, err := c.mapsOf(m)
	if err == nil {
		err = linux.SetMountAttributes(f, o.ridmap, 0, 0, 0, ns)
		ns.Close()
	}
	if err != nil {
		f.Close()
		return nil, errdefs.New(errdefs.Unsupported, "map owners of", fmt.Sprintf("%q", m.Source), err)
	}
	return f, nil
}

// attach puts a mount into its place.
func (c *compiler) attach(fd any, m specs.Mount, o mountOptions, isDir bool) error {
	if o.rset|o.rclear != 0 {
		c.setattr(fd, unix.AT_RECURSIVE, o.rset, o.rclear, 0, 0)
	}
	d := c.target(m.Destination, isDir)
	c.Call("move_mount", unix.SYS_MOVE_MOUNT, fd, c.Str(""), d, c.Str(""), emptyBoth)
	c.Call("close", unix.SYS_CLOSE, d)
	c.propagate(fd, o)
	c.Call("close", unix.SYS_CLOSE, fd)
	return nil
}

// takeMode gives a new tmpfs the mode of the directory that it hides, where
// nothing else is said, as every runtime does.
func (c *compiler) takeMode(fd any, dest string) {
	st, mode, dir := c.Data(make([]byte, 256)), c.NewReg(), c.NewReg()
	d := c.target(dest, true)
	c.Call("newfstatat", unix.SYS_NEWFSTATAT, d, c.Str(""), st, unix.AT_EMPTY_PATH)
	c.Load(mode, st+statMode, 4)
	c.Call("openat", unix.SYS_OPENAT, fd, c.Str("."), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0).Into(dir)
	c.Call("fchmod", unix.SYS_FCHMOD, dir, mode)
	c.Call("close", unix.SYS_CLOSE, dir)
	c.Call("close", unix.SYS_CLOSE, d)
}

// classicMount is mount(2), for options that are longer than what fsconfig
// takes: the lower directories of overlays.
func (c *compiler) classicMount(m specs.Mount, o mountOptions) error {
	data := strings.Join(append(slices.Clone(o.data), o.super...), ",")
	if len(data) >= os.Getpagesize() {
		return invalid("mount %q: its options are longer than a page", m.Destination)
	}
	d := c.target(m.Destination, true)
	c.Call("fchdir", unix.SYS_FCHDIR, d)
	c.Call("mount", unix.SYS_MOUNT, c.Str(m.Source), c.Str("."), c.Str(m.Type), 0, c.Str(data))
	c.Call("chdir", unix.SYS_CHDIR, c.Str("/"))
	c.Call("close", unix.SYS_CLOSE, d)
	fd := c.target(m.Destination, true) // what is there now
	if o.set|o.clear != 0 {
		c.setattr(fd, 0, o.set, o.clear, 0, 0)
	}
	c.propagate(fd, o)
	c.Call("close", unix.SYS_CLOSE, fd)
	return nil
}

func tooLong(data []string) bool {
	return slices.ContainsFunc(data, func(o string) bool {
		_, v, _ := strings.Cut(o, "=")
		return len(v) > 255
	})
}

func hasKey(data []string, key string) bool {
	return slices.ContainsFunc(data, func(o string) bool { return strings.HasPrefix(o, key+"=") })
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
	for _, opt := range o.super {
		c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_FLAG, c.Str(opt), 0, 0)
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
		c.Call("close", unix.SYS_CLOSE, d)
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
	var links [][2]string
	for controller, at := range mounts {
		name := path.Base(at)
		if strings.Contains(name, ",") { // several controllers in one hierarchy
			links = append(links, [2]string{name, controller})
		}
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
		g := clone(dirs[n], 0)
		place(g, path.Join(m.Destination, n))
		c.Call("close", unix.SYS_CLOSE, g)
	}
	slices.SortFunc(links, func(a, b [2]string) int { return strings.Compare(a[1], b[1]) })
	for _, l := range links {
		c.Call("symlinkat", unix.SYS_SYMLINKAT, c.Str(l[0]), r, c.Str(l[1])).Ignore(unix.EEXIST)
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

// idmap lets files of a new file system appear with the owners that a user
// namespace maps.
func (c *compiler) idmap(fd any, m specs.Mount, o mountOptions) error {
	ns, err := c.mapsOf(m)
	if err != nil {
		return err
	}
	flags := 0
	if o.ridmap {
		flags = unix.AT_RECURSIVE
	}
	c.setattr(fd, flags, unix.MOUNT_ATTR_IDMAP, 0, 0, uint64(c.file(ns)))
	return nil
}

// mapsOf is a user namespace with the maps of a mount, or of the container.
func (c *compiler) mapsOf(m specs.Mount) (*os.File, error) {
	uids, gids := m.UIDMappings, m.GIDMappings
	if len(uids) == 0 {
		uids, gids = c.spec.Linux.UIDMappings, c.spec.Linux.GIDMappings
	}
	if len(uids) == 0 || len(gids) == 0 {
		return nil, invalid("mount %q: idmap needs uidMappings and gidMappings", m.Destination)
	}
	return userNamespace(idMaps(uids), idMaps(gids))
}

// userNamespace makes one that nobody lives in, for its maps.
func userNamespace(uids, gids []initproc.IDMap) (*os.File, error) {
	proc, err := waiting(&initproc.Program{Clone: unix.CLONE_NEWUSER, UIDMap: uids, GIDMap: gids})
	if err != nil {
		return nil, err
	}
	defer proc.Kill()
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", proc.PID))
}

// Placeholder starts a process that only waits to be killed.
func Placeholder() (*initproc.Process, error) { return waiting(&initproc.Program{}) }

func waiting(like *initproc.Program) (*initproc.Process, error) {
	b := initproc.NewBuilder()
	b.Step("wait")
	b.Ready()
	p, err := b.Program()
	if err != nil {
		return nil, err
	}
	p.Clone, p.UIDMap, p.GIDMap = like.Clone, like.UIDMap, like.GIDMap
	return initproc.Start(p, nil, initproc.Stdio{})
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

// hasKcore reports whether the kernel shows its memory, for the link in /dev.
var hasKcore = sync.OnceValue(func() bool {
	_, err := os.Stat("/proc/kcore")
	return err == nil
})

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
	c.Step("open /dev")
	dev, err := c.KeepReg()
	if err != nil {
		return err
	}
	c.MkPath(c.root, "/dev", false, 0o755).Into(dev)
	for _, d := range list {
		if err := c.device(dev, d); err != nil {
			return err
		}
	}
	c.Step("make the links in /dev")
	for _, l := range [][2]string{{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}} {
		c.Call("symlinkat", unix.SYS_SYMLINKAT, c.Str(l[0]), dev, c.Str(l[1])).Ignore(unix.EEXIST)
	}
	if hasKcore() {
		c.Call("symlinkat", unix.SYS_SYMLINKAT, c.Str("/proc/kcore"), dev, c.Str("core")).Ignore(unix.EEXIST)
	}
	c.Call("close", unix.SYS_CLOSE, dev)
	return nil
}

// device makes one. Its mode needs no change afterwards, which could hit
// something else by then: the umask is zero.
func (c *compiler) device(dev initproc.Reg, d specs.LinuxDevice) error {
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
	parent := dev
	if dir != "/dev/" {
		parent = c.target(dir, true)
	}
	rdev := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	if c.inUser() && d.Type != "p" {
		c.Jump(bind)
	} else {
		r := c.NewReg()
		c.Call("mknodat", unix.SYS_MKNODAT, parent, c.Str(name), int(kind|mode), rdev).Into(r).On(exists, unix.EEXIST, unix.EPERM)
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
		c.Load(m, st+statMode, 4)
		c.Load(dv, st+statRdev, 8)
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
	if parent != dev {
		c.Call("close", unix.SYS_CLOSE, parent)
	}
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
	if len(c.spec.Linux.MaskedPaths) == 0 {
		return nil
	}
	c.Step("make an empty file system")
	fs := c.NewReg()
	c.Call("fsopen", unix.SYS_FSOPEN, c.Str("tmpfs"), unix.FSOPEN_CLOEXEC).Into(fs)
	c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, c.Str("source"), c.Str("tmpfs"), 0)
	c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, c.Str("nr_blocks"), c.Str("1"), 0)
	c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, c.Str("nr_inodes"), c.Str("1"), 0)
	c.Call("fsconfig", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_FLAG, c.Str("ro"), 0, 0)
	c.Call("fsconfig create", unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
	c.Call("fsmount", unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC).Into(c.empty)
	c.Call("close", unix.SYS_CLOSE, fs)
	for _, p := range c.spec.Linux.MaskedPaths {
		c.mask(p)
	}
	return nil
}

// makeCwd makes the working directory where it is missing, as runc does.
func (c *compiler) makeCwd() error {
	if c.proc.Cwd == "/" {
		return nil
	}
	c.Step("make the working directory %q", c.proc.Cwd)
	r, skip := c.NewReg(), c.NewLabel()
	c.MkPath(c.root, c.proc.Cwd, false, 0o755).Into(r).On(skip, unix.EROFS, unix.ENOTDIR, unix.ELOOP, unix.EACCES)
	c.Call("close", unix.SYS_CLOSE, r)
	c.Mark(skip)
	return nil
}

func (c *compiler) enterRoot() error {
	c.Step("enter the root")
	c.Call("fchdir", unix.SYS_FCHDIR, c.root)
	switch {
	case !c.ownMounts():
		c.Call("chroot", unix.SYS_CHROOT, c.Str("."))
	case c.o.NoPivot:
		c.Call("mount", unix.SYS_MOUNT, c.Str("."), c.Str("/"), 0, unix.MS_MOVE, 0)
		c.Call("chroot", unix.SYS_CHROOT, c.Str("."))
	default:
		c.Call("pivot_root", unix.SYS_PIVOT_ROOT, c.Str("."), c.Str("."))
		c.Call("umount2", unix.SYS_UMOUNT2, c.Str("."), unix.MNT_DETACH)
	}
	c.Call("chdir", unix.SYS_CHDIR, c.Str("/"))
	if p := c.spec.Linux.RootfsPropagation; p != "" && c.ownMounts() {
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
	m := c.NewReg()
	first, done := c.NewLabel(), c.NewLabel()
	c.Call("open_tree", unix.SYS_OPEN_TREE, c.empty, c.Str(""), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH).Into(m).On(first, unix.EINVAL)
	c.Call("move_mount", unix.SYS_MOVE_MOUNT, m, c.Str(""), at, c.Str(""), emptyBoth)
	c.Call("close", unix.SYS_CLOSE, m)
	c.Jump(done)
	// Before Linux 6.15 a mount can be cloned only once it is attached: the
	// first directory gets the mount itself, and the others its clones.
	c.Mark(first)
	c.Call("move_mount", unix.SYS_MOVE_MOUNT, c.empty, c.Str(""), at, c.Str(""), emptyBoth)
	c.Mark(done)
	c.Call("close", unix.SYS_CLOSE, at)
	c.Mark(next)
}
