package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/linux/cgroup/systemd"
	"github.com/onggi/onggi/internal/ociruntime"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
	"github.com/onggi/onggi/internal/undo"
)

// creation is what create and run share.
type creation struct {
	bundle, console, pidFile *string
	noPivot, noKeyring       *bool
	preserve                 *int
}

func creationFlags(fs *flag.FlagSet) *creation {
	return &creation{
		bundle:    text(fs, "bundle", "b"),
		console:   text(fs, "console-socket"),
		pidFile:   text(fs, "pid-file"),
		noPivot:   fs.Bool("no-pivot", false, ""),
		noKeyring: fs.Bool("no-new-keyring", false, ""),
		preserve:  fs.Int("preserve-fds", 0, ""),
	}
}

func createFlags(fs *flag.FlagSet) func(*global, []string) error {
	o := creationFlags(fs)
	return func(g *global, args []string) error {
		b, err := loadBundle(*o.bundle)
		if err != nil {
			return err
		}
		if err := checkConsole(b.spec.Process, *o.console, true); err != nil {
			return err
		}
		c, proc, err := g.create(args[0], b, o, true)
		if err != nil {
			return err
		}
		proc.Leave()
		return g.afterCreate(c, o)
	}
}

// A bundle is a directory with a configuration.
type bundle struct {
	dir  string
	raw  []byte
	spec *specs.Spec // with absolute paths
}

func loadBundle(dir string) (*bundle, error) {
	// What takes time and needs no configuration is done beside reading it.
	go func() {
		cgroup.Detect()
		initproc.Binary()
		ociruntime.Capabilities()
	}()
	if dir == "" {
		dir = "."
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "config.json")
	raw, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "", "", "JSON specification file %s not found", file), "onggi-runtime spec")
	}
	if err != nil {
		return nil, err
	}
	spec := &specs.Spec{}
	if err := decodeConfig(raw, spec); err != nil {
		return nil, errdefs.Newf(errdefs.Invalid, "read", file, "%w", err)
	}
	if spec.Root != nil && spec.Root.Path != "" && !filepath.IsAbs(spec.Root.Path) {
		spec.Root.Path = filepath.Join(dir, spec.Root.Path)
	}
	for i, m := range spec.Mounts {
		if isBind(m) && m.Source != "" && !filepath.IsAbs(m.Source) {
			spec.Mounts[i].Source = filepath.Join(dir, m.Source)
		}
	}
	return &bundle{dir, raw, spec}, nil
}

func isBind(m specs.Mount) bool {
	if m.Type == "bind" {
		return true
	}
	for _, o := range m.Options {
		if o == "bind" || o == "rbind" {
			return true
		}
	}
	return false
}

// checkConsole says early what would hang or get lost later.
func checkConsole(p *specs.Process, socket string, detach bool) error {
	switch {
	case p == nil:
	case p.Terminal && detach && socket == "":
		return errdefs.Newf(errdefs.Invalid, "", "", "cannot allocate tty if the process is detached without --console-socket")
	case !(p.Terminal && detach) && socket != "":
		return errdefs.Newf(errdefs.Invalid, "", "", "cannot use --console-socket if the process is not detached with a terminal")
	}
	return nil
}

// create makes everything of the container up to the point where its process
// waits: for whoever starts it later, or for this call.
func (g *global) create(id string, b *bundle, o *creation, later bool) (_ *container, _ *initproc.Process, err error) {
	if err := checkID(id); err != nil {
		return nil, nil, err
	}
	spec := b.spec
	if err := checkSpec(spec); err != nil {
		return nil, nil, err
	}
	var u undo.Stack
	defer func() { u.Run(context.Background(), &err) }()

	c := &container{dir: filepath.Join(g.root, id), Spec: spec, record: record{
		ID: id, Bundle: b.dir, Created: time.Now().UTC(), UID: os.Geteuid(), Config: b.raw, Systemd: g.systemd,
	}}
	if spec.Root != nil {
		c.Rootfs = spec.Root.Path
	}
	defer func() {
		if c.placeholder != nil {
			c.placeholder.Kill()
		}
	}()
	if err := g.makeDir(c); err != nil {
		return nil, nil, err
	}
	u.Push(func(context.Context) error { return os.RemoveAll(c.dir) })

	group, err := g.makeGroup(c)
	if err != nil {
		return nil, nil, err
	}
	if group != nil {
		u.Push(func(context.Context) error {
			group.Kill()
			return group.Delete()
		})
	}

	var sock *os.File
	if later {
		if sock, err = c.listen(); err != nil {
			return nil, nil, err
		}
		defer sock.Close()
	}
	preserve, err := preserved(*o.preserve)
	if err != nil {
		return nil, nil, err
	}
	prog, files, err := ociruntime.Compile(spec, ociruntime.Options{
		Cgroup: group, NoPivot: *o.noPivot, NoKeyring: *o.noKeyring, Preserve: preserve, StartSocket: sock, Hooks: true, Warn: g.warn,
	})
	if err != nil {
		return nil, nil, err
	}
	defer closeFiles(files)
	proc, err := initproc.Start(prog, files, stdio(prog.Terminal))
	if err != nil {
		return nil, nil, err
	}
	c.PID = proc.PID
	if later {
		c.Steps = prog.Steps
	}
	c.PIDStart, _, err = linux.StartTicks(proc.PID)
	proc.Stages = func(stage int) error {
		if stage == ociruntime.StageStart {
			return c.startHooks()
		}
		return g.createHooks(c, proc)
	}
	if err == nil {
		err = proc.WaitReady()
	} else {
		proc.Kill()
	}
	if err == nil && c.PID != proc.PID { // it has forked
		c.PID = proc.PID
		c.PIDStart, _, err = linux.StartTicks(proc.PID)
	}
	if err == nil {
		if err = g.handConsole(proc, *o.console); err == nil {
			err = c.save()
		}
		if err != nil {
			proc.Kill()
		}
	}
	if err != nil {
		return nil, nil, err
	}
	u.Disarm()
	return c, proc, nil
}

func (c *container) listen() (*os.File, error) {
	dir, err := os.Open(c.dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return linux.ListenAt(dir, startSock)
}

// checkSpec refuses what no runtime may accept.
func checkSpec(spec *specs.Spec) error {
	if spec.Version == "" {
		return errdefs.Newf(errdefs.Invalid, "read", "config.json", "ociVersion is missing")
	}
	if !plausibleVersion(spec.Version) {
		return errdefs.Newf(errdefs.Invalid, "read", "config.json", "ociVersion %q is not one of 1.x", spec.Version)
	}
	if spec.Process == nil {
		return errdefs.Newf(errdefs.Invalid, "read", "config.json", "process is missing")
	}
	return nil
}

func plausibleVersion(v string) bool {
	// Versions before 1.0 were release candidates that tests still use.
	return len(v) >= 5 && v[1] == '.' && (v[0] == '1' || v[0] == '0')
}

// makeDir makes the container's directory. One that a killed creation left
// behind, which has no state, gives way.
func (g *global) makeDir(c *container) error {
	if err := os.MkdirAll(g.root, 0o700); err != nil {
		return err
	}
	for try := 0; ; try++ {
		err := os.Mkdir(c.dir, 0o700)
		if !errors.Is(err, os.ErrExist) {
			return err
		}
		exists := errdefs.Newf(errdefs.Conflict, "", "", "container with id exists: %s", c.ID)
		if _, err := os.Stat(filepath.Join(c.dir, stateFile)); err == nil || try > 0 {
			return exists
		}
		fi, err := os.Stat(c.dir)
		if err != nil || time.Since(fi.ModTime()) < time.Minute {
			return exists // being created just now
		}
		if err := os.RemoveAll(c.dir); err != nil {
			return err
		}
	}
}

// makeGroup makes the control group. Without the right to make one, a rootless
// container goes without.
func (g *global) makeGroup(c *container) (*cgroup.Group, error) {
	l := c.Spec.Linux
	if l == nil {
		return nil, nil
	}
	var r specs.LinuxResources
	if l.Resources != nil {
		r = *l.Resources
	}
	r.Devices = cgroup.RuntimeDevices(r.Devices)
	rootless := g.rootless == "true" || g.rootless == "auto" && os.Geteuid() != 0
	o := cgroup.Options{Rootless: rootless}
	c.CgroupArg = l.CgroupsPath
	if g.systemd {
		so, err := systemdOptions()
		if err != nil {
			return nil, err
		}
		o = so
		o.Rootless = rootless
		// systemd makes no scope without a process in it.
		placeholder, err := ociruntime.Placeholder()
		if err != nil {
			return nil, err
		}
		o.Pid, c.placeholder = placeholder.PID, placeholder
		if c.CgroupArg == "" {
			c.CgroupArg = "system.slice:onggi:" + c.ID
		}
	}
	if c.CgroupArg == "" {
		c.CgroupArg = c.ID
	}
	group, err := cgroup.Create(c.CgroupArg, &r, o)
	if err != nil {
		if rootless && l.CgroupsPath == "" && l.Resources == nil {
			g.debugf("no control group: %v", err)
			return nil, nil
		}
		return nil, err
	}
	c.Cgroups, c.known = group.Paths(), group
	return group, nil
}

func systemdOptions() (cgroup.Options, error) {
	if !systemd.Running() {
		return cgroup.Options{}, errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "", "", "--systemd-cgroup: systemd does not run here"), "run without it")
	}
	return cgroup.Options{Systemd: true, Units: systemd.New()}, nil
}

// stdio is what the container inherits.
func stdio(terminal bool) initproc.Stdio {
	if terminal {
		return initproc.Stdio{}
	}
	return initproc.Stdio{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr}
}

// preserved are descriptors that the caller hands through: those of socket
// activation, and n more.
func preserved(n int) ([]*os.File, error) {
	if l, err := strconv.Atoi(os.Getenv("LISTEN_FDS")); err == nil && l > 0 {
		n += l
	}
	var files []*os.File
	for fd := 3; fd < 3+n; fd++ {
		if _, _, err := linux.Inode(fd); err != nil {
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "--preserve-fds: descriptor %d is not open", fd)
		}
		files = append(files, os.NewFile(uintptr(fd), "preserved "+strconv.Itoa(fd)))
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// createHooks runs what belongs between the namespaces and the root.
func (g *global) createHooks(c *container, proc *initproc.Process) error {
	h := c.Spec.Hooks
	if h == nil {
		return nil
	}
	ctx := context.Background()
	state := c.hookState(specs.StateCreating)
	state.Pid = proc.PID
	before := *state
	before.Status = specs.StateCreated                                                // what prestart hooks have always read
	if err := ociruntime.RunHooks(ctx, "prestart", h.Prestart, &before); err != nil { //nolint:staticcheck // deprecated, and used
		return err
	}
	if err := ociruntime.RunHooks(ctx, "createRuntime", h.CreateRuntime, state); err != nil {
		return err
	}
	return ociruntime.RunHooksIn(ctx, "createContainer", h.CreateContainer, state)
}

// handConsole sends the terminal's master to whoever waits on the socket.
func (g *global) handConsole(proc *initproc.Process, socket string) error {
	if socket == "" || proc.Console() == nil {
		return nil
	}
	err := linux.SendFile(socket, []byte("/dev/ptmx"), proc.Console())
	proc.Console().Close()
	return err
}

// afterCreate writes the pid file: it must not be there before the container.
func (g *global) afterCreate(c *container, o *creation) error {
	if *o.pidFile == "" {
		return nil
	}
	if err := writePID(*o.pidFile, c.PID); err != nil {
		c.kill(9)
		g.destroy(c)
		return err
	}
	return nil
}

// writePID replaces the file at once, so that a reader sees all or nothing.
func writePID(file string, pid int) error {
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file))
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, file)
}

func startFlags(*flag.FlagSet) func(*global, []string) error {
	return func(g *global, args []string) error {
		c, err := g.load(args[0])
		if err != nil {
			return err
		}
		return g.start(c)
	}
}

// start lets the container's process become the app.
func (g *global) start(c *container) error {
	switch st := c.status(); st {
	case specs.StateCreated:
	case specs.StateStopped:
		return errdefs.Newf(errdefs.Conflict, "", "", "cannot start a container that has stopped")
	default:
		return errdefs.Newf(errdefs.Conflict, "", "", "cannot start an already running container")
	}
	dir, err := os.Open(c.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	sock, err := linux.DialAt(dir, startSock)
	if err != nil {
		return errdefs.New(errdefs.Conflict, "start", fmt.Sprintf("container %q", c.ID), err)
	}
	proc := initproc.Resume(sock, c.Steps)
	proc.Stages = func(int) error {
		// From here on nobody else can start it.
		if err := os.Remove(filepath.Join(c.dir, startSock)); err != nil {
			return err
		}
		return c.startHooks()
	}
	if err := proc.WaitExec(); err != nil {
		c.kill(9)
		return err
	}
	if err := g.forwardListener(c, proc); err != nil {
		return err
	}
	return c.started()
}

// startHooks runs what belongs between the start and the app.
func (c *container) startHooks() error {
	return ociruntime.RunStartHooks(context.Background(), c.Spec, c.hookState(specs.StateCreated), c.hookGroup())
}

// started runs what belongs behind the start.
func (c *container) started() error {
	if h := c.Spec.Hooks; h != nil && len(h.Poststart) > 0 {
		if err := ociruntime.RunHooks(context.Background(), "poststart", h.Poststart, c.hookState(specs.StateRunning)); err != nil {
			c.kill(9)
			return err
		}
	}
	return nil
}
