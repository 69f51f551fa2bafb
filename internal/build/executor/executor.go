package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/solver/pb"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/undo"
)

// Network connects steps.
type Network interface {
	// Attach gives the step a network namespace of its own with a way out.
	Attach(ctx context.Context, id, hostname string) (*Sandbox, error)
	// Empty gives it one with nothing but a loopback interface.
	Empty() (*os.File, error)
}

// Sandbox is a step's network.
type Sandbox struct {
	NetNS      *os.File
	ResolvConf []byte
	Release    func(context.Context) error
}

// Runtime starts processes; package ociruntime's, or a stand-in of a test.
type Runtime interface {
	// Start makes the step's namespaces and runs its process. The files in s
	// stay the caller's.
	Start(ctx context.Context, s StartRequest) (*Process, error)
	// Exec runs one more process in a step.
	Exec(ctx context.Context, in *Process, s StartRequest) (*Process, error)
}

// StartRequest says what to start.
type StartRequest struct {
	Spec                  *specs.Spec
	Root                  *os.File         // detached mount
	NetNS                 *os.File         // nil: the host's
	Mounts                map[int]*os.File // detached mounts by index in Spec.Mounts
	Group                 *cgroup.Group
	Ready                 func()   // called when the set-up is done and the app has not begun; may be nil
	Stdin, Stdout, Stderr *os.File // unused with a terminal
}

// Process runs. It is a child of the engine.
type Process struct {
	PID     int
	PidFD   *os.File
	Console *os.File // the terminal's master, nil without one
}

// Options of an Executor.
type Options struct {
	Root         string // directory for files of running steps
	CgroupParent string // "/onggi/build" where empty
	Runtime      Runtime
	Network      Network // nil: only none and host are there
	MaxProcesses int64   // of one step; 32768 where 0
	Seccomp      func(caps []string) *specs.LinuxSeccomp
	Logger       *slog.Logger
}

// Executor implements BuildKit's executor.Executor.
type Executor struct {
	o Options

	mu    sync.Mutex
	steps map[string]*step // guarded by mu: by container id
}

var _ executor.Executor = (*Executor)(nil)

// New makes an executor, and removes what a killed engine left in Root.
func New(o Options) (*Executor, error) {
	if o.CgroupParent == "" {
		o.CgroupParent = "/onggi/build"
	}
	if o.MaxProcesses == 0 {
		o.MaxProcesses = defaultPids
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if err := os.RemoveAll(o.Root); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.Root, 0o700); err != nil {
		return nil, err
	}
	return &Executor{o: o, steps: map[string]*step{}}, nil
}

// step is a build step that runs.
type step struct {
	id    string
	meta  executor.Meta
	spec  *specs.Spec
	root  *os.File
	group *cgroup.Group
	dir   string
	stubs stubs
	req   StartRequest

	running chan struct{} // closed when the process runs
	ended   chan struct{} // closed when the step is over
	proc    *Process      // set before running is closed
}

// Run runs a step to its end.
func (e *Executor) Run(ctx context.Context, id string, root executor.Mount, mounts []executor.Mount, p executor.ProcessInfo, started chan<- struct{}) (_ resourcestypes.Recorder, err error) {
	if id == "" {
		id = identity.NewID()
	}
	if err := executor.ValidContainerID(id); err != nil {
		return nil, errdefs.New(errdefs.Invalid, "run", "build step", err)
	}
	s := &step{id: id, meta: p.Meta, running: make(chan struct{}), ended: make(chan struct{})}
	e.mu.Lock()
	if e.steps[id] != nil {
		e.mu.Unlock()
		return nil, errdefs.Newf(errdefs.Conflict, "run", "build step", "container %s exists", id)
	}
	e.steps[id] = s
	e.mu.Unlock()
	var once sync.Once
	tell := func() {
		once.Do(func() {
			if started != nil {
				close(started)
			}
		})
	}
	var u undo.Stack
	defer func() {
		e.mu.Lock()
		delete(e.steps, id)
		e.mu.Unlock()
		close(s.ended)
		u.Run(ctx, &err)
		tell()
	}()
	if err := e.prepare(ctx, s, root, mounts, &u); err != nil {
		return nil, err
	}
	return nil, e.run(ctx, s, p, tell)
}

// prepare makes everything that the step needs. What it makes is undone by u
// when the step is over, whether it was well or not.
func (e *Executor) prepare(ctx context.Context, s *step, root executor.Mount, mounts []executor.Mount, u *undo.Stack) (err error) {
	s.dir = filepath.Join(e.o.Root, s.id)
	if err := os.Mkdir(s.dir, 0o700); err != nil {
		return err
	}
	u.Push(func(context.Context) error { return os.RemoveAll(s.dir) })

	if s.root, err = openRoot(ctx, root); err != nil {
		return fmt.Errorf("mounting the root file system: %w", err)
	}
	u.Push(func(context.Context) error { return s.root.Close() })

	in := specInput{seccomp: e.o.Seccomp, pids: e.o.MaxProcesses, cgroupNS: cgroupNamespaces()}
	open := func(p string) (io.ReadCloser, error) { return linux.OpenRegularInRoot(s.root, p) }
	if in.user, err = lookUpUser(s.meta.User, open); err != nil {
		return err
	}
	in.home = homeOf(in.user.UID, open)
	if s.req.NetNS, in.resolvConf, err = e.network(ctx, s, u); err != nil {
		return err
	}
	in.hosts = filepath.Join(s.dir, "hosts")
	if err := os.WriteFile(in.hosts, hostsFile(s.meta), 0o644); err != nil {
		return err
	}
	dests := []string{"/etc/resolv.conf", "/etc/hosts"}
	opened, err := s.mounts(ctx, mounts, &in, u)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		dests = append(dests, m.Dest)
	}
	s.stubs = findStubs(s.root, dests, s.meta.RemoveMountStubsRecursive)
	u.Push(func(context.Context) error { s.stubs.clean(s.root); return nil })
	if s.spec, err = specOf(s.meta, in); err != nil {
		return err
	}
	if root.Readonly {
		s.spec.Root.Readonly = true
	}
	if err := s.workDir(in.user); err != nil {
		return err
	}
	s.req.Mounts = map[int]*os.File{}
	for i, m := range s.spec.Mounts {
		if f := opened[m.Source]; f != nil {
			s.req.Mounts[i] = f
		}
	}
	return e.makeGroup(s, u)
}

// openRoot takes the root file system as a detached mount.
func openRoot(ctx context.Context, root executor.Mount) (*os.File, error) {
	m, err := root.Src.Mount(ctx, false)
	if err != nil {
		return nil, err
	}
	o, ok := m.(refs.Opener)
	if !ok {
		return nil, errdefs.Newf(errdefs.Internal, "open", "build ref", "%T is not one of ours", m)
	}
	return o.Open(ctx)
}

// mounts opens the step's mounts, adds them to in, and returns the detached
// ones by the source that stands for them in the spec.
func (s *step) mounts(ctx context.Context, mounts []executor.Mount, in *specInput, u *undo.Stack) (map[string]*os.File, error) {
	opened := map[string]*os.File{}
	for i, m := range mounts {
		if m.Src == nil {
			return nil, errdefs.Newf(errdefs.Invalid, "mount", m.Dest, "it has no source")
		}
		src, err := m.Src.Mount(ctx, m.Readonly)
		if err != nil {
			return nil, errdefs.New(errdefs.KindOf(err), "mount", m.Dest, err)
		}
		dest := path.Join("/", m.Dest)
		if o, ok := src.(refs.Opener); ok {
			f, err := openMount(ctx, o, m)
			if err != nil {
				return nil, errdefs.New(errdefs.KindOf(err), "mount", m.Dest, err)
			}
			u.Push(func(context.Context) error { return f.Close() })
			name := fmt.Sprintf("ref-%d", i)
			opened[name] = f
			sm := specs.Mount{Destination: dest, Type: "bind", Source: name, Options: []string{"rbind"}}
			if m.Readonly {
				sm.Options = append(sm.Options, "ro")
			}
			in.mounts = append(in.mounts, sm)
			continue
		}
		list, release, err := src.Mount()
		if err != nil {
			return nil, errdefs.New(errdefs.KindOf(err), "mount", m.Dest, err)
		}
		if release != nil {
			u.Push(func(context.Context) error {
				err := release()
				for _, l := range list {
					dropSocketDir(l.Source)
				}
				return err
			})
		}
		for _, l := range list {
			opts := slices.Clone(l.Options)
			if m.Readonly && !slices.Contains(opts, "ro") {
				opts = append(opts, "ro")
			}
			in.mounts = append(in.mounts, specs.Mount{Destination: dest, Type: l.Type, Source: l.Source, Options: opts})
		}
	}
	return opened, nil
}

// dropSocketDir removes the directory of a released SSH socket, which BuildKit
// leaves behind.
func dropSocketDir(socket string) {
	if dir := filepath.Dir(socket); strings.HasPrefix(filepath.Base(dir), ".buildkit-ssh-sock") {
		os.Remove(dir)
	}
}

// openMount makes a detached mount of a ref, or of what its selector names. The
// selector comes from a Dockerfile and leads through files that other steps
// may be changing: it is resolved inside the ref, once, and then only the
// descriptor is used.
func openMount(ctx context.Context, o refs.Opener, m executor.Mount) (*os.File, error) {
	p, err := o.Path(ctx)
	if err != nil {
		return nil, err
	}
	dir, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	target := dir
	if path.Join("/", m.Selector) != "/" {
		if target, err = linux.OpenPathInRoot(dir, m.Selector); err != nil {
			return nil, errdefs.Newf(errdefs.NotFound, "find", fmt.Sprintf("%q", m.Selector), "%w", err)
		}
		defer target.Close()
	}
	f, err := linux.CloneTree(target, "", true)
	if err != nil {
		return nil, err
	}
	if m.Readonly {
		if err := linux.SetMountReadOnly(f, true); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// workDir makes the working directory, where the image lacks it.
func (s *step) workDir(u specs.User) error {
	dir := cwd(s.meta)
	if f, err := linux.OpenPathInRoot(s.root, dir); err == nil {
		return f.Close()
	}
	f, err := linux.MkdirAllInRoot(s.root, dir, 0o755, int(u.UID), int(u.GID))
	if err != nil {
		return errdefs.New(errdefs.Invalid, "make", "working directory "+dir, err)
	}
	return f.Close()
}

// makeGroup makes the step's control group.
func (e *Executor) makeGroup(s *step, u *undo.Stack) (err error) {
	parent := e.o.CgroupParent
	if p := s.meta.CgroupParent; p != "" && !strings.Contains(p, ":") {
		parent = p
	}
	s.group, err = cgroup.Create(path.Join("/", parent, s.id), s.spec.Linux.Resources, cgroup.Options{})
	if err != nil {
		return err
	}
	u.Push(func(context.Context) error {
		// Whatever the step left running ends with it.
		return errors.Join(s.group.Kill(), s.group.Delete())
	})
	return nil
}

// network gives the step the network it asks for.
func (e *Executor) network(ctx context.Context, s *step, u *undo.Stack) (ns *os.File, resolvConf string, err error) {
	write := func(b []byte) (string, error) {
		p := filepath.Join(s.dir, "resolv.conf")
		return p, os.WriteFile(p, b, 0o644)
	}
	switch s.meta.NetMode {
	case pb.NetMode_HOST:
		b, err := os.ReadFile("/etc/resolv.conf")
		if err != nil && !os.IsNotExist(err) {
			return nil, "", err
		}
		resolvConf, err = write(b)
		return nil, resolvConf, err
	case pb.NetMode_NONE:
		if e.o.Network == nil {
			resolvConf, err = write(nil)
			return nil, resolvConf, err // the runtime makes an empty one
		}
		if ns, err = e.o.Network.Empty(); err != nil {
			return nil, "", err
		}
		u.Push(func(context.Context) error { return ns.Close() })
		resolvConf, err = write(nil)
		return ns, resolvConf, err
	case pb.NetMode_UNSET:
		if e.o.Network == nil {
			return nil, "", errdefs.WithHint(
				errdefs.Newf(errdefs.Unavailable, "run", "build step", "this engine has no network for build steps"),
				"use --network=none or --network=host")
		}
		sb, err := e.o.Network.Attach(ctx, s.id, hostname(s.meta))
		if err != nil {
			return nil, "", err
		}
		u.Push(sb.Release)
		u.Push(func(context.Context) error { return sb.NetNS.Close() })
		resolvConf, err = write(sb.ResolvConf)
		return sb.NetNS, resolvConf, err
	}
	return nil, "", errdefs.Newf(errdefs.Invalid, "run", "build step", "there is no network mode %v", s.meta.NetMode)
}

// run starts the step's process and waits for its end.
func (e *Executor) run(ctx context.Context, s *step, p executor.ProcessInfo, tell func()) error {
	req := s.req
	req.Spec, req.Root, req.Group = s.spec, s.root, s.group
	req.Ready = func() { s.stubs.made(s.root) }
	return e.supervise(ctx, s, p, req, func(ctx context.Context, r StartRequest) (*Process, error) {
		proc, err := e.o.Runtime.Start(ctx, r)
		if err == nil {
			s.proc = proc
			close(s.running)
			tell()
		}
		return proc, err
	}, func(*Process) { s.group.Kill() })
}

// Exec runs a process in a step that runs.
func (e *Executor) Exec(ctx context.Context, id string, p executor.ProcessInfo) error {
	e.mu.Lock()
	s := e.steps[id]
	e.mu.Unlock()
	if s == nil {
		return errdefs.Newf(errdefs.NotFound, "exec", "container "+id, "it is not running")
	}
	select {
	case <-s.running:
	case <-s.ended:
		return errdefs.Newf(errdefs.Conflict, "exec", "container "+id, "it has ended")
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	proc := *s.spec.Process
	open := func(f string) (io.ReadCloser, error) { return linux.OpenRegularInRoot(s.root, f) }
	if p.Meta.User != "" {
		u, err := lookUpUser(p.Meta.User, open)
		if err != nil {
			return err
		}
		proc.User = u
	}
	proc.Terminal, proc.Args = p.Meta.Tty, p.Meta.Args
	if p.Meta.Cwd != "" {
		proc.Cwd = cwd(p.Meta)
	}
	if len(p.Meta.Env) > 0 {
		proc.Env = withHome(p.Meta.Env, homeOf(proc.User.UID, open))
	}
	spec := *s.spec
	spec.Process = &proc
	return e.supervise(ctx, s, p, StartRequest{Spec: &spec, Group: s.group}, func(ctx context.Context, r StartRequest) (*Process, error) {
		return e.o.Runtime.Exec(ctx, s.proc, r)
	}, func(x *Process) { linux.SignalPidFD(int(linux.RawFD(x.PidFD)), int(syscall.SIGKILL)) })
}

// supervise starts a process by start, feeds it, and returns when it and its
// output have ended. A cancelled context kills.
func (e *Executor) supervise(ctx context.Context, s *step, p executor.ProcessInfo, req StartRequest,
	start func(context.Context, StartRequest) (*Process, error), kill func(*Process)) error {
	pipes := &plumbing{}
	defer pipes.close()
	if !p.Meta.Tty {
		if err := pipes.make(p, &req); err != nil {
			return err
		}
	}
	proc, err := start(ctx, req)
	pipes.closeTheirs()
	if err != nil {
		return e.startError(ctx, p, err)
	}
	defer proc.PidFD.Close()
	if proc.Console != nil {
		pipes.console(p, proc.Console)
		defer proc.Console.Close()
	}
	pipes.run()
	done := make(chan struct{})
	var feeding sync.WaitGroup
	feeding.Go(func() { control(ctx, p, proc, kill, done) })
	st, _, err := linux.Reap(int(linux.RawFD(proc.PidFD)), true)
	close(done)
	feeding.Wait()
	if err != nil {
		return fmt.Errorf("waiting for a build step: %w", err)
	}
	if req.Root != nil {
		// The first process of a PID namespace takes the others along, but a
		// step may have moved one out of reach; its pipes must end too.
		s.group.Kill()
	}
	pipes.wait()
	return e.exitError(ctx, s, p, st)
}

// control passes signals and sizes on, and kills when the build is cancelled.
func control(ctx context.Context, p executor.ProcessInfo, proc *Process, kill func(*Process), done <-chan struct{}) {
	cancelled := ctx.Done()
	for {
		select {
		case <-done:
			return
		case <-cancelled:
			kill(proc)
			cancelled = nil
		case sig, ok := <-p.Signal:
			if !ok {
				p.Signal = nil
				continue
			}
			linux.SignalPidFD(int(linux.RawFD(proc.PidFD)), int(sig))
		case sz, ok := <-p.Resize:
			if !ok {
				p.Resize = nil
				continue
			}
			if proc.Console != nil {
				linux.SetWinsize(int(linux.RawFD(proc.Console)), uint16(sz.Cols), uint16(sz.Rows))
			}
		}
	}
}

// startError words what kept a process from starting. A command that is not
// there is the Dockerfile's mistake, and ends like a shell's: with 127 or 126.
func (e *Executor) startError(ctx context.Context, p executor.ProcessInfo, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	code := uint32(0)
	switch {
	case errors.Is(err, syscall.ENOENT):
		code = 127
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.ENOEXEC), errors.Is(err, syscall.EISDIR):
		code = 126
	}
	if code == 0 || !isExec(err) {
		return err
	}
	if code == 127 && p.Meta.Args[0] == "/bin/sh" {
		err = fmt.Errorf("%w: the image has no shell; write RUN [\"program\", \"argument\"], or begin from an image with one", err)
	}
	if errors.Is(err, syscall.ENOEXEC) {
		err = fmt.Errorf("%w: if the image is for another processor, install emulation (Debian: qemu-user-static and binfmt-support) or build this stage with FROM --platform=$BUILDPLATFORM; a script begins with #!", err)
	}
	return allow(p, &gatewayapi.ExitError{ExitCode: code, Err: fmt.Errorf("%w (exit code: %d)", err, code)})
}

// isExec reports whether it was execve that failed, not the set-up before it.
func isExec(err error) bool {
	var x interface{ IsExec() bool }
	return errors.As(err, &x) && x.IsExec()
}

// exitError turns an exit status into BuildKit's error.
func (e *Executor) exitError(ctx context.Context, s *step, p executor.ProcessInfo, st linux.ExitStatus) error {
	x := &gatewayapi.ExitError{ExitCode: uint32(st.Code)}
	if st.Code != 0 {
		if n, err := s.group.OOMEvents(); err == nil && n > 0 {
			x.Err = fmt.Errorf("the step ran out of memory (exit code %d): %w", st.Code, syscall.ENOMEM)
		}
	}
	if ctx.Err() != nil {
		x.Err = fmt.Errorf("%w: exit code %d", context.Cause(ctx), st.Code)
		if x.ExitCode == 0 {
			return x.Err
		}
		return x
	}
	return allow(p, x)
}

// allow drops the error where the step may end like this.
func allow(p executor.ProcessInfo, x *gatewayapi.ExitError) error {
	valid := p.Meta.ValidExitCodes
	if valid == nil {
		valid = []int{0}
	}
	if slices.Contains(valid, int(x.ExitCode)) {
		return nil
	}
	return x
}

// cgroupNamespaces reports whether steps get a control group namespace: only
// the unified hierarchy shows something sensible in one.
func cgroupNamespaces() bool {
	m, err := cgroup.Detect()
	return err == nil && m == cgroup.V2
}
