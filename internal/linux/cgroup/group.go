package cgroup

import (
	"errors"
	"os"
	"path"
	"sort"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// Options of Create and Open.
type Options struct {
	// Systemd asks systemd to make the group, as a unit of its own. The path
	// is then "slice:prefix:name".
	Systemd bool
	// Units speaks to systemd; systemd.New() of the sub-package. It is needed
	// with Systemd only, so that programs without it link no D-Bus.
	Units Units
	// Pid, if not 0, is a process that joins the group as it is made. systemd
	// needs one, since it makes a scope around a process.
	Pid int
	// Properties are further unit properties for systemd, as in the
	// annotations "org.systemd.property.*".
	Properties []Property
	// Rootless makes hierarchies in which we may not make groups no error, as
	// long as nothing is to be limited there.
	Rootless bool
}

// Group is an existing control group, in all hierarchies.
type Group struct {
	path string
	dirs []dir
	unit *unit // with systemd only
	mode Mode
}

// dir is a Group in one hierarchy.
type dir struct {
	*hierarchy
	path string
	own  bool // false where a subgroup shares its parent's directory
}

// Create makes the group and sets its limits. A group that is there already is
// taken over if no process is in it.
func Create(p string, r *specs.LinuxResources, o Options) (*Group, error) {
	l, err := current()
	if err != nil {
		return nil, err
	}
	return l.create(p, r, o)
}

func (l *layout) create(p string, r *specs.LinuxResources, o Options) (_ *Group, err error) {
	if o.Systemd {
		return l.createUnit(p, r, o)
	}
	g, err := l.resolve(p)
	if err != nil {
		return nil, err
	}
	var made []string
	defer func() {
		if err != nil {
			for i := len(made) - 1; i >= 0; i-- {
				unix.Rmdir(made[i])
			}
		}
	}()
	if err := g.make(r, o, &made); err != nil {
		return nil, err
	}
	if err := g.apply(r, true, o); err != nil {
		return nil, err
	}
	if o.Pid != 0 {
		if err := g.Add(o.Pid); err != nil {
			return nil, err
		}
	}
	return g, nil
}

// Open finds a group that exists.
func Open(p string, o Options) (*Group, error) {
	l, err := current()
	if err != nil {
		return nil, err
	}
	return l.open(p, o)
}

func (l *layout) open(p string, o Options) (*Group, error) {
	var g *Group
	var err error
	if o.Systemd {
		g, err = l.resolveUnit(p, o)
	} else {
		g, err = l.resolve(p)
	}
	if err != nil {
		return nil, err
	}
	return g.present("open")
}

// OpenPaths finds a group by what Paths gave. A relative path means another
// group to another process; these do not.
func OpenPaths(paths map[string]string, o Options) (*Group, error) {
	l, err := current()
	if err != nil {
		return nil, err
	}
	g := &Group{mode: l.mode}
	for _, h := range l.hiers {
		p, ok := paths[h.key()]
		if !ok {
			continue
		}
		rel, ok := strings.CutPrefix(p, h.dir)
		if !ok || path.Clean(p) != p || rel == "" {
			return nil, errdefs.Newf(errdefs.Invalid, "open", "control group "+p, "it is not below %s", h.dir)
		}
		g.path = rel
		g.dirs = append(g.dirs, dir{hierarchy: h, path: p, own: true})
	}
	if o.Systemd && len(g.dirs) > 0 {
		g.unit = &unit{name: path.Base(g.path), units: o.Units}
	}
	return g.present("open")
}

// OfProcess finds the group that a process is in. A container that manages
// groups of its own moves its init; a further process then belongs beside it.
func OfProcess(pid int) (*Group, error) {
	l, err := current()
	if err != nil {
		return nil, err
	}
	text, err := readFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil, errdefs.New(errdefs.NotFound, "find", "control group of process "+strconv.Itoa(pid), err)
	}
	g := &Group{mode: l.mode}
	for _, h := range l.hiers {
		p, ok := parseProcCgroup(text, h)
		if !ok {
			continue
		}
		g.path = below(h.root, p)
		g.dirs = append(g.dirs, dir{hierarchy: h, path: path.Join(h.dir, g.path), own: true})
	}
	return g, nil
}

// present keeps the directories that exist, and refuses where none does.
func (g *Group) present(op string) (*Group, error) {
	kept := g.dirs[:0:0]
	for _, d := range g.dirs {
		if exists(d.path) {
			kept = append(kept, d)
		}
	}
	if len(kept) == 0 {
		return nil, errdefs.Newf(errdefs.NotFound, op, g.String(), "it does not exist")
	}
	g.dirs = kept
	return g, nil
}

// resolve says where the group of a path is, without touching anything.
func (l *layout) resolve(p string) (*Group, error) {
	clean := path.Clean("/" + p)
	if p == "" || clean == "/" || strings.ContainsRune(p, 0) {
		return nil, errdefs.Newf(errdefs.Invalid, "resolve", "control group "+strconv.Quote(p), "the path names no group")
	}
	g := &Group{path: clean, mode: l.mode, dirs: make([]dir, 0, len(l.hiers))}
	for _, h := range l.hiers {
		full := h.dir + clean
		if !strings.HasPrefix(p, "/") {
			own, err := l.self(h)
			if err != nil {
				continue // not in this hierarchy
			}
			if h.v2 {
				// A group with processes cannot give controllers to a child,
				// so a sibling has to do.
				own = path.Dir(own)
			}
			full = path.Join(h.dir, own) + clean
		}
		g.dirs = append(g.dirs, dir{hierarchy: h, path: full, own: true})
	}
	return g, nil
}

// make makes the directories, and adds those that were not there to made.
func (g *Group) make(r *specs.LinuxResources, o Options, made *[]string) error {
	kept := g.dirs[:0]
	var refused error
	for _, d := range g.dirs {
		err := d.make(r, made)
		if err == nil {
			kept = append(kept, d)
			continue
		}
		// The unified tree of a hybrid machine is a convenience only.
		extra := g.mode == Hybrid && d.v2 && len(wantsV2(r, d.hierarchy)) == 0
		if k := errdefs.KindOf(err); !extra && (!o.Rootless || k != errdefs.Forbidden) {
			return err
		}
		refused = err
	}
	g.dirs = kept
	if len(kept) == 0 && !o.Rootless {
		return refused
	}
	return nil
}

func (d *dir) make(r *specs.LinuxResources, made *[]string) error {
	err := unix.Mkdir(d.path, 0o755)
	if err == unix.ENOENT {
		if err = d.makeParents(path.Dir(d.path), made); err == nil {
			err = unix.Mkdir(d.path, 0o755)
		}
	}
	switch {
	case err == nil:
		*made = append(*made, d.path)
	case err == unix.EEXIST:
		if procs, err := readWord(d.path + "/cgroup.procs"); err == nil && procs != "" {
			return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "create", "control group "+d.path,
				"it exists and has %d processes", len(strings.Fields(procs))),
				"remove the container that uses it, or choose another control group path")
		}
	default:
		return makeError(d.path, err)
	}
	if d.v2 {
		return d.enable(r)
	}
	if d.has("cpuset") {
		return inheritCPUSet(d.path, d.dir)
	}
	return nil
}

func makeError(p string, err error) error {
	e := errdefs.New(kindOf(err), "create", "control group "+p, err)
	switch err {
	case unix.EROFS, unix.EACCES, unix.EPERM:
		return errdefs.WithHint(e, "run as root, or where control groups are mounted writable and delegated to you")
	case unix.EAGAIN, unix.ENOSPC:
		return errdefs.WithHint(e, "remove unused groups, or raise cgroup.max.descendants of a parent")
	}
	return e
}

func (h *hierarchy) has(controller string) bool {
	for _, c := range h.controllers {
		if c == controller {
			return true
		}
	}
	return false
}

// makeParents makes p and what is missing above it.
func (d *dir) makeParents(p string, made *[]string) error {
	if len(p) <= len(d.dir) {
		return unix.ENOENT // the hierarchy itself is not there
	}
	err := unix.Mkdir(p, 0o755)
	if err == unix.ENOENT {
		if err = d.makeParents(path.Dir(p), made); err == nil {
			err = unix.Mkdir(p, 0o755)
		}
	}
	if err == unix.EEXIST {
		return nil
	}
	if err != nil {
		return err
	}
	*made = append(*made, p)
	if !d.v2 && d.has("cpuset") {
		// Children then start with our processors and nodes, which saves two
		// reads and two writes for each.
		writeFile(p+"/cgroup.clone_children", "1")
	}
	return nil
}

// inheritCPUSet gives a v1 group its parent's processors and memory nodes. No
// process can join a group that has none.
func inheritCPUSet(p, root string) error {
	if len(p) <= len(root) {
		return nil
	}
	cpus, err := readWord(p + "/cpuset.cpus")
	if err != nil {
		return errdefs.New(kindOf(err), "read", "cpuset of control group "+p, err)
	}
	if cpus != "" {
		if mems, err := readWord(p + "/cpuset.mems"); err == nil && mems != "" {
			return nil
		}
	}
	parent := path.Dir(p)
	if err := inheritCPUSet(parent, root); err != nil {
		return err
	}
	for _, f := range []string{"/cpuset.cpus", "/cpuset.mems"} {
		if have, err := readWord(p + f); err == nil && have != "" {
			continue
		}
		v, err := readWord(parent + f)
		if err == nil {
			err = writeFile(p+f, v)
		}
		if err != nil {
			return errdefs.New(kindOf(err), "inherit", "cpuset of control group "+p, err)
		}
	}
	return nil
}

// String names the group in messages.
func (g *Group) String() string { return "control group " + g.path }

// Path is where the group is, from the root of the hierarchies or of the
// caller's own group.
func (g *Group) Path() string { return g.path }

// Mode is the machine's.
func (g *Group) Mode() Mode { return g.mode }

// Paths lists the directories by controller; the unified one has the key "".
// It is what a record of the group keeps, for OpenPaths.
func (g *Group) Paths() map[string]string {
	out := make(map[string]string, len(g.dirs))
	for _, d := range g.dirs {
		if d.v2 {
			out[""] = d.path
			continue
		}
		for _, c := range d.controllers {
			out[c] = d.path
		}
	}
	return out
}

// Dir returns the directory of a controller, "" where there is none.
func (g *Group) Dir(controller string) string {
	if d := g.find(controller); d != nil {
		return d.path
	}
	return ""
}

// find returns the directory whose hierarchy has the controller.
func (g *Group) find(controller string) *dir {
	var unified *dir
	for i := range g.dirs {
		d := &g.dirs[i]
		if !d.has(controller) {
			continue
		}
		if !d.v2 {
			return d
		}
		unified = d
	}
	return unified
}

// unified returns the v2 directory, nil where there is none.
func (g *Group) unified() *dir {
	for i := range g.dirs {
		if g.dirs[i].v2 {
			return &g.dirs[i]
		}
	}
	return nil
}

// ProcsFiles opens cgroup.procs of each hierarchy for writing. A process that
// writes "0" to all of them has joined the group.
func (g *Group) ProcsFiles() ([]*os.File, error) {
	out := make([]*os.File, 0, len(g.dirs))
	for _, d := range g.dirs {
		p := d.path + "/cgroup.procs"
		fd, err := retry(func() (int, error) { return unix.Open(p, unix.O_WRONLY|unix.O_CLOEXEC, 0) })
		if err != nil {
			for _, f := range out {
				f.Close()
			}
			return nil, errdefs.New(gone(err), "open", "processes of "+g.String(), err)
		}
		out = append(out, os.NewFile(uintptr(fd), p))
	}
	return out, nil
}

// JoinFiles is how a process with one thread joins the group without a stall: a
// move through cgroup.procs waits until every process of the machine is past a
// fork or exit, some milliseconds, but a thread that moves itself by writing
// "0" to a v1 tasks file does not (Linux 5.5), and neither does one that is born
// in the group. dir is for CLONE_INTO_CGROUP, nil where there is no v2.
func (g *Group) JoinFiles() (tasks []*os.File, dir *os.File, err error) {
	defer func() {
		if err == nil {
			return
		}
		for _, f := range tasks {
			f.Close()
		}
		tasks = nil
		if dir != nil {
			dir.Close()
			dir = nil
		}
	}()
	for _, d := range g.dirs {
		p, flags := d.path+"/tasks", unix.O_WRONLY|unix.O_CLOEXEC
		if d.v2 {
			p, flags = d.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC
		}
		fd, err := retry(func() (int, error) { return unix.Open(p, flags, 0) })
		if err != nil {
			return tasks, dir, errdefs.New(gone(err), "open", g.String(), err)
		}
		f := os.NewFile(uintptr(fd), p)
		if d.v2 {
			dir = f
		} else {
			tasks = append(tasks, f)
		}
	}
	return tasks, dir, nil
}

// UnifiedPart is the part of a group that a runtime which knows only v1 leaves
// alone on a machine with both versions: who starts it in there finds all of its
// processes there. It is nil on other machines.
func (g *Group) UnifiedPart() *Group {
	d := g.unified()
	if g.mode != Hybrid || d == nil {
		return nil
	}
	return &Group{path: g.path, mode: g.mode, dirs: []dir{*d}}
}

// DirFD opens the group's directory, for CLONE_INTO_CGROUP. It is for machines
// with v2 only: elsewhere one clone does not join all hierarchies.
func (g *Group) DirFD() (*os.File, error) {
	d := g.unified()
	if g.mode != V2 || d == nil {
		return nil, errdefs.Newf(errdefs.Unsupported, "open", g.String(), "control groups v1 are in use")
	}
	fd, err := retry(func() (int, error) {
		return unix.Open(d.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return nil, errdefs.New(gone(err), "open", g.String(), err)
	}
	return os.NewFile(uintptr(fd), d.path), nil
}

// gone is kindOf for a group that should exist.
func gone(err error) errdefs.Kind {
	if err == unix.ENOENT || err == unix.ENODEV {
		return errdefs.NotFound
	}
	return kindOf(err)
}

// Add moves a process, with all its threads, into the group.
func (g *Group) Add(pid int) error {
	s := strconv.Itoa(pid)
	for _, d := range g.dirs {
		err := writeFile(d.path+"/cgroup.procs", s)
		// A process that is just being made cannot be moved for a moment.
		for i := 0; err == unix.EINVAL && i < 5; i++ {
			time.Sleep(10 * time.Millisecond)
			err = writeFile(d.path+"/cgroup.procs", s)
		}
		if err != nil {
			e := errdefs.New(gone(err), "move", "process "+s+" into control group "+d.path, err)
			if err == unix.EBUSY && d.v2 {
				e = errdefs.WithHint(e, "the group has groups of its own with controllers enabled; join one of those")
			}
			return e
		}
	}
	return nil
}

// Procs lists the processes in the group and in the groups below it.
func (g *Group) Procs() ([]int, error) {
	d := g.tracking()
	if d == nil {
		return nil, nil
	}
	seen := map[int]bool{}
	if err := eachGroup(d.path, func(p string) error {
		s, err := readFile(p + "/cgroup.procs")
		if err == unix.EOPNOTSUPP { // a threaded group: its processes are listed above
			return nil
		}
		if err != nil {
			return err
		}
		for f := range strings.FieldsSeq(s) {
			// 0 is a process of another pid namespace: not ours to name.
			if n, err := strconv.Atoi(f); err == nil && n > 0 {
				seen[n] = true
			}
		}
		return nil
	}); err != nil {
		if gone(err) == errdefs.NotFound {
			return nil, nil
		}
		return nil, errdefs.New(kindOf(err), "list", "processes of "+g.String(), err)
	}
	out := make([]int, 0, len(seen))
	for p := range seen {
		out = append(out, p)
	}
	sort.Ints(out)
	return out, nil
}

// tracking is the directory by which the group's processes are known: one
// that no subgroup shares with its parent.
func (g *Group) tracking() *dir {
	var best *dir
	for i := range g.dirs {
		d := &g.dirs[i]
		switch {
		case !d.own:
		case d.v2, best == nil, d.has("freezer") && !best.v2:
			best = d
		}
	}
	return best
}

// eachGroup calls f for the group at p and all below it, parents first.
func eachGroup(p string, f func(string) error) error {
	if err := f(p); err != nil {
		return err
	}
	subs, err := subdirs(p)
	if err != nil {
		return err
	}
	for _, s := range subs {
		if err := eachGroup(s, f); err != nil && gone(err) != errdefs.NotFound {
			return err
		}
	}
	return nil
}

func subdirs(p string) ([]string, error) {
	// The link count of a control group directory counts its children.
	var st unix.Stat_t
	if err := unix.Lstat(p, &st); err != nil {
		return nil, err
	}
	if st.Nlink == 2 {
		return nil, nil
	}
	ents, err := os.ReadDir(p)
	if err != nil {
		if e, ok := errors.AsType[unix.Errno](err); ok {
			return nil, e
		}
		return nil, err
	}
	var out []string
	for _, e := range ents {
		if e.IsDir() {
			out = append(out, p+"/"+e.Name())
		}
	}
	return out, nil
}

// Subgroup makes, or finds, a group below g in which processes are told apart
// from the rest but share all of g's limits: for the tree of one exec.
func (g *Group) Subgroup(name string) (*Group, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return nil, errdefs.Newf(errdefs.Invalid, "create", "control group "+strconv.Quote(name), "not a name")
	}
	sub := &Group{path: g.path + "/" + name, mode: g.mode, dirs: append([]dir(nil), g.dirs...)}
	t := g.tracking()
	for i := range sub.dirs {
		d := &sub.dirs[i]
		if d.own = t != nil && d.path == t.path && d.hierarchy == t.hierarchy; !d.own {
			continue
		}
		d.path += "/" + name
		if err := unix.Mkdir(d.path, 0o755); err != nil && err != unix.EEXIST {
			return nil, makeError(d.path, err)
		}
	}
	return sub, nil
}

// Delete removes the group, and the groups below it. It succeeds when they are
// gone. Processes that are dying get a second to do so.
func (g *Group) Delete() error {
	if g.unit != nil {
		g.unit.stop()
	}
	var errs []error
	deadline := time.Now().Add(removeWait)
	for _, d := range g.dirs {
		if !d.own {
			continue
		}
		if err := removeTree(d.path, deadline); err != nil {
			e := errdefs.New(kindOf(err), "remove", "control group "+d.path, err)
			if err == unix.EBUSY {
				procs, _ := g.Procs()
				e = errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "remove", "control group "+d.path,
					"processes are in it: %v", procs), "kill them first")
			}
			errs = append(errs, e)
		}
	}
	return errors.Join(errs...)
}

// removeWait is how long Delete waits for dying processes.
const removeWait = time.Second

// removeTree removes a directory of groups.
func removeTree(p string, deadline time.Time) error {
	for wait := time.Millisecond; ; wait = min(wait*2, 100*time.Millisecond) {
		err := removeOnce(p)
		if err != unix.EBUSY || time.Now().After(deadline) {
			return err
		}
		time.Sleep(wait)
	}
}

func removeOnce(p string) error {
	err := unix.Rmdir(p)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EBUSY && err != unix.ENOTEMPTY {
		return err
	}
	subs, serr := subdirs(p)
	if serr == unix.ENOENT {
		return nil
	}
	if serr != nil || len(subs) == 0 {
		return err
	}
	for _, s := range subs {
		if err := removeOnce(s); err != nil {
			return err
		}
	}
	if err := unix.Rmdir(p); err != nil && err != unix.ENOENT {
		return err
	}
	return nil
}
