package container

import (
	"context"
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/monitor"
	"github.com/onggi/onggi/internal/ociruntime"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// Exec is a further process of a running container.
type Exec struct {
	id  string
	c   *Container
	cfg container.ExecCreateRequest

	mu       sync.Mutex
	started  bool
	running  bool
	pid      int
	exitCode *int
	attached []*attachment
	early    *monitor.Event // it ended before its start returned
	starting bool
	done     chan struct{} // closed at its end
}

// maxExecs bounds the ended execs that are remembered per container.
const maxExecs = 512

// ExecCreate prepares a process; ExecStart runs it.
func (s *Service) ExecCreate(ctx context.Context, ref string, q container.ExecCreateRequest) (id string, err error) {
	c, err := s.find("exec", ref)
	if err != nil {
		return "", err
	}
	if err := execPossible(ref, c); err != nil {
		return "", err
	}
	switch {
	case len(q.Cmd) == 0:
		return "", invalid("No exec command specified")
	case len(q.Cmd) > maxArgs || len(q.Env) > maxEnv:
		return "", invalid("%d arguments and %d environment variables: at most %d and %d are allowed", len(q.Cmd), len(q.Env), maxArgs, maxEnv)
	}
	for _, e := range q.Env {
		if strings.HasPrefix(e, "=") || strings.IndexByte(e, 0) >= 0 {
			return "", invalid("invalid environment variable: %s", clip(e))
		}
	}
	if q.DetachKeys != "" {
		if _, err := ReadDetachKeys(q.DetachKeys); err != nil {
			return "", err
		}
	}
	if q.User != "" {
		// Refused while the client still reads an ordinary answer.
		if _, err := s.execUser(c, q.User); err != nil {
			return "", err
		}
	}
	e := &Exec{id: newID(), c: c, cfg: q, done: make(chan struct{})}
	s.mu.Lock()
	s.execs[e.id] = e
	s.mu.Unlock()
	c.mu.Lock()
	c.execs[e.id] = e
	var old []string
	if len(c.execs) > maxExecs {
		for id, x := range c.execs {
			if x.hasEnded() {
				old = append(old, id)
				delete(c.execs, id)
			}
		}
	}
	c.mu.Unlock()
	if len(old) > 0 {
		s.mu.Lock()
		for _, id := range old {
			delete(s.execs, id)
		}
		s.mu.Unlock()
	}
	s.emit(c, "exec_create: "+execWords(q.Cmd), map[string]string{"execID": e.id})
	return e.id, nil
}

func (e *Exec) hasEnded() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

func execPossible(ref string, c *Container) error {
	rec, st := c.view()
	switch st.State {
	case Running:
		return nil
	case Paused:
		return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "Container %s is paused, unpause the container before exec", ref), "onggi unpause "+rec.Name)
	case Restarting:
		return errdefs.Newf(errdefs.Conflict, "", "", "container %s is restarting, wait until the container is running", c.id)
	}
	return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "container %s is not running", c.id), "onggi start "+rec.Name)
}

func execWords(cmd []string) events.Action { return events.Action(strings.Join(cmd, " ")) }

func (s *Service) findExec(id string) (*Exec, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if e := s.execs[id]; e != nil {
		return e, nil
	}
	return nil, errdefs.Newf(errdefs.NotFound, "", "", "No such exec instance: %s", clip(id))
}

// ExecStart runs a prepared process. With ready it is attached to the client
// that ready returns; without, it is detached.
func (s *Service) ExecStart(ctx context.Context, id string, q container.ExecStartRequest, ready func() (Stream, error)) error {
	e, err := s.findExec(id)
	if err != nil {
		return err
	}
	if err := execPossible(e.c.id, e.c); err != nil {
		return err
	}
	e.mu.Lock()
	if e.started {
		e.mu.Unlock()
		return errdefs.Newf(errdefs.Conflict, "", "", "exec command %s has already run or is running", id)
	}
	e.started, e.starting = true, true
	e.mu.Unlock()

	var a *attachment
	if ready != nil {
		stream, err := ready()
		if err != nil {
			s.execFailed(e, 126)
			return err
		}
		o := AttachOptions{Stdin: e.cfg.AttachStdin, Stdout: e.cfg.AttachStdout, Stderr: e.cfg.AttachStderr, Mux: stream.Mux}
		if e.cfg.Tty {
			o.DetachKeys, _ = ReadDetachKeys(e.cfg.DetachKeys)
		}
		if a, err = newAttachment(stream, o); err != nil {
			s.execFailed(e, 126)
			finish(stream)
			return nil
		}
	}
	size := q.ConsoleSize
	if size == nil {
		size = e.cfg.ConsoleSize
	}
	started, err := s.spawn(context.WithoutCancel(ctx), e.c, spawnRequest{
		key: monitor.Key{Container: e.c.id, Exec: e.id}, cfg: &e.cfg, size: size, attach: a,
	})
	if err != nil {
		code := 126
		if se, ok := errors.AsType[*StartError](err); ok {
			code = se.Code
		}
		s.execFailed(e, code)
		if a != nil {
			// The stream is open already: the words go there, as Docker sends them.
			text := []byte("OCI runtime exec failed: " + err.Error() + "\r\n")
			if a.o.Mux {
				text = frame("stderr", text)
			}
			a.s.Conn.Write(text)
			a.begin()
			a.close()
			return nil
		}
		return err
	}
	e.mu.Lock()
	e.running, e.pid, e.starting = true, started.PID, false
	if a != nil {
		e.attached = append(e.attached, a)
		a.onQuit = func() {
			s.emit(e.c, "exec_detach", map[string]string{"execID": e.id})
		}
	}
	early := e.early
	e.mu.Unlock()
	if a != nil {
		a.handed()
		a.begin()
	}
	s.emit(e.c, "exec_start: "+execWords(e.cfg.Cmd), map[string]string{"execID": e.id})
	if early != nil {
		s.execExited(*early)
	}
	return nil
}

func (s *Service) execFailed(e *Exec, code int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.running, e.starting, e.exitCode = false, false, &code
	if !e.hasEnded() {
		close(e.done)
	}
}

type spawnRequest struct {
	key    monitor.Key
	cfg    *container.ExecCreateRequest
	size   *[2]uint // height, width
	attach *attachment
	extra  []monitor.AttachSpec
	group  *cgroup.Group // nil: the container's
}

// spawn runs a process inside a running container.
func (s *Service) spawn(ctx context.Context, c *Container, q spawnRequest) (*monitor.Started, error) {
	c.mu.Lock()
	rec, st, r := c.rec, c.st, c.run
	c.mu.Unlock()
	if st.State != Running || r == nil || r.started == nil {
		return nil, execPossible(c.id, c)
	}
	p, err := s.execProcess(c, rec, r, q.cfg)
	if err != nil {
		return nil, err
	}
	group := q.group
	if group == nil {
		group = r.group
	}
	var program *initproc.Program
	var files []*os.File
	if r.foreign != nil {
		program, files, err = r.foreign.exec(p, q.key.Exec)
	} else {
		program, files, err = ociruntime.CompileExec(p, r.spec, ociruntime.ExecOptions{PidFD: r.started.PidFD, InitPID: st.PID, Cgroup: group})
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, f := range files {
			if f != r.started.PidFD { // it is the run's, for further execs
				f.Close()
			}
		}
	}()
	sr := monitor.StartRequest{
		Key: q.key, Program: program, Files: files, Terminal: q.cfg.Tty,
		OpenStdin: q.cfg.AttachStdin, StdinOnce: true,
		Log: logs.Spec{Driver: logs.None}, Attach: q.extra,
	}
	if q.size != nil {
		sr.Height, sr.Width = uint16(q.size[0]), uint16(q.size[1])
	}
	if q.attach != nil {
		sr.Attach = append(sr.Attach, q.attach.specs()...)
	}
	started, err := s.o.Monitor.Start(ctx, sr)
	if err != nil {
		return nil, startError(err, &specs.Spec{Process: p})
	}
	if started.PidFD != nil {
		started.PidFD.Close()
	}
	return started, nil
}

// execProcess is the container's process with what the exec changes.
func (s *Service) execProcess(c *Container, rec *Record, r *run, q *container.ExecCreateRequest) (*specs.Process, error) {
	p := *r.spec.Process
	p.Terminal, p.Args, p.ConsoleSize = q.Tty, q.Cmd, nil
	user := r.user
	if q.User != "" {
		var err error
		if user, err = s.execUser(c, q.User); err != nil {
			return nil, err
		}
		p.User.UID, p.User.GID, p.User.AdditionalGids = user.UID, user.GID, user.Groups
	}
	base := *rec.Config
	base.Tty = q.Tty
	base.Env = append(slices.Clone(rec.Config.Env), q.Env...)
	p.Env = environment(&base, r.spec.Hostname, user.Home, r.linkEnv)
	if q.WorkingDir != "" {
		p.Cwd = q.WorkingDir
	}
	if q.Privileged {
		p.Capabilities = capabilitySets(effectiveCaps(nil, nil, true, s.caps))
		p.NoNewPrivileges = false
	}
	return &p, nil
}

// execUser finds a user of the exec among the container's accounts, as they
// are now.
func (s *Service) execUser(c *Container, spec string) (identity, error) {
	rec, st := c.view()
	root, err := os.Open("/proc/" + strconv.Itoa(st.PID) + "/root")
	if err != nil {
		return identity{}, errdefs.New(errdefs.Conflict, "exec", quote("container", rec.Name), err)
	}
	defer root.Close()
	return userIn(root, spec, rec.HostConfig.GroupAdd)
}

// execExited records the end of an exec.
func (s *Service) execExited(ev monitor.Event) {
	defer s.ack(context.Background(), ev.Key)
	if s.probeExited(ev) {
		return
	}
	e, err := s.findExec(ev.Key.Exec)
	if err != nil {
		return
	}
	e.mu.Lock()
	if e.starting {
		e.early = &ev
		e.mu.Unlock()
		return
	}
	if e.hasEnded() {
		e.mu.Unlock()
		return
	}
	code := ev.Code
	e.running, e.pid, e.exitCode = false, 0, &code
	attached := e.attached
	e.attached = nil
	close(e.done)
	e.mu.Unlock()
	for _, a := range attached {
		a.close()
	}
	s.emit(e.c, "exec_die", map[string]string{"execID": e.id, "exitCode": strconv.Itoa(code)})
}

// killExecs ends what runs beside a main process that ended; in a pid
// namespace of its own the kernel has done so.
func (s *Service) killExecs(c *Container) {
	c.mu.Lock()
	var group *cgroup.Group
	if c.run != nil {
		group = c.run.group
	}
	shared := !c.rec.HostConfig.PidMode.IsPrivate()
	c.mu.Unlock()
	if shared && group != nil {
		if err := group.Kill(); err != nil {
			s.log.Warn("processes left by a container", "container", c.id, "error", err)
		}
	}
}

// dropExecs forgets what was prepared and not started: the next run of the
// container is not what it was for.
func (s *Service) dropExecs(c *Container) {
	c.mu.Lock()
	var old []string
	for id, e := range c.execs {
		e.mu.Lock()
		if !e.started {
			old = append(old, id)
			delete(c.execs, id)
		}
		e.mu.Unlock()
	}
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range old {
		delete(s.execs, id)
	}
}

// ExecResize sets the size of an exec's terminal.
func (s *Service) ExecResize(ctx context.Context, id string, height, width uint16) error {
	e, err := s.findExec(id)
	if err != nil {
		return err
	}
	e.mu.Lock()
	running, starting := e.running, e.starting
	e.mu.Unlock()
	if starting {
		// The client sends the size at once; the process is about to be there.
		tctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		for !running && tctx.Err() == nil {
			select {
			case <-time.After(5 * time.Millisecond):
			case <-tctx.Done():
			}
			e.mu.Lock()
			running = e.running
			e.mu.Unlock()
		}
	}
	if !running {
		return errdefs.Newf(errdefs.Conflict, "", "", "exec process %s is not running", id)
	}
	return s.o.Monitor.Resize(ctx, monitor.Key{Container: e.c.id, Exec: e.id}, width, height)
}

// ExecInspect tells how an exec stands.
func (s *Service) ExecInspect(id string) (container.ExecInspectResponse, error) {
	e, err := s.findExec(id)
	if err != nil {
		return container.ExecInspectResponse{}, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	keys, _ := ReadDetachKeys(e.cfg.DetachKeys)
	privileged := e.cfg.Privileged
	return container.ExecInspectResponse{
		ID: e.id, Running: e.running || e.starting, ExitCode: e.exitCode, Pid: e.pid, ContainerID: e.c.id,
		OpenStdin: e.cfg.AttachStdin, OpenStdout: e.cfg.AttachStdout, OpenStderr: e.cfg.AttachStderr, DetachKeys: keys, CanRemove: e.hasEnded(),
		ProcessConfig: &container.ExecProcessConfig{Tty: e.cfg.Tty, Entrypoint: e.cfg.Cmd[0], Arguments: e.cfg.Cmd[1:], User: e.cfg.User, Privileged: &privileged},
	}, nil
}
