package container

import (
	"context"
	"os"
	"strconv"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/monitor"
	"github.com/onggi/onggi/internal/network"
)

// Restore makes memory agree with the monitor after a start of the engine: what
// lives is adopted, what ended meanwhile is recorded, what was half done is
// finished or undone. Then it watches exits, and starts what should run.
func (s *Service) Restore(ctx context.Context) error {
	running, err := s.o.Monitor.List(ctx)
	if err != nil {
		return err
	}
	live := map[string]monitor.Running{}
	for _, r := range running {
		switch c := s.byID[r.Key.Container]; {
		case r.Key.Exec != "":
			// An exec of the engine before this one: nobody can ask for it any more.
			if r.Exit != nil {
				s.ack(ctx, r.Key)
			}
		case c == nil:
			s.log.Warn("a process without a container record is ended", "container", r.Key.Container, "pid", r.PID)
			if r.Exit == nil {
				s.o.Monitor.Signal(ctx, r.Key, int(signals["KILL"]))
			}
			s.ack(ctx, r.Key)
		default:
			live[c.id] = r
			continue
		}
		closeAll(r.PidFD)
	}
	var boxes []network.SandboxRequest
	for _, c := range s.all() {
		if r, ok := live[c.id]; ok {
			if q := s.adopt(ctx, c, r); q != nil {
				boxes = append(boxes, *q)
			}
		}
	}
	if err := s.o.Networks.Restore(ctx, boxes); err != nil {
		s.log.Error("networks of running containers not restored", "error", err)
	}
	for _, c := range s.all() {
		r, ok := live[c.id]
		switch {
		case ok && r.Exit != nil:
			s.mainExited(ctx, c, *r.Exit)
		case !ok:
			s.settleWithoutProcess(ctx, c)
			s.shipRest(c)
		}
	}
	s.work.Add(1)
	go func() { defer s.work.Done(); s.watch() }()
	s.autostart(live)
	return nil
}

// adopt takes over a process of an earlier engine.
func (s *Service) adopt(ctx context.Context, c *Container, r monitor.Running) *network.SandboxRequest {
	rec, _ := c.view()
	run := &run{started: &monitor.Started{PID: r.PID, PidFD: r.PidFD, StartedAt: r.StartedAt}, ended: make(chan struct{}), shm: rec.HostConfig.IpcMode.IsShareable()}
	in := specInput{ID: rec.ID, Config: rec.Config, Host: rec.HostConfig, KnownCaps: s.caps, MaxFiles: s.maxFiles, Defaults: s.o.Defaults, Hostname: s.hostname(rec)}
	if err := s.prepareSpec(&in, rec); err != nil {
		s.log.Warn("adopted container: some settings could not be read", "container", c.id, "error", err)
	}
	for _, m := range rec.Mounts {
		if m.Name != "" {
			run.volumes = append(run.volumes, m.Name)
			if r.Exit == nil {
				s.o.Volumes.Mount(ctx, m.Name, rec.ID)
			}
		}
	}
	if r.Exit == nil {
		if root, err := os.Open("/proc/" + strconv.Itoa(r.PID) + "/root"); err == nil {
			in.User, _ = userIn(root, rec.Config.User, rec.HostConfig.GroupAdd)
			root.Close()
		}
	}
	in.LinkEnv, _ = s.linkEnvironment(rec)
	run.spec, run.user, run.linkEnv = buildSpec(in), in.User, in.LinkEnv
	g, err := cgroup.Open(in.CgroupsPath, s.o.CgroupOptions)
	if err == nil {
		run.group = g
	}
	run.network = !rec.HostConfig.NetworkMode.IsContainer()
	s.ship(c, rec, nil, run.ended)
	s.watchOOM(c, rec, run)
	c.mu.Lock()
	c.run = run
	if !c.st.State.HasProcess() { // the engine was killed between start and record
		c.st.State = Running
	}
	if run.foreign = s.foreignOf(rec); run.foreign != nil {
		run.foreign.pid = c.st.PID
	} else {
		c.st.PID = r.PID
	}
	if !r.StartedAt.IsZero() {
		c.st.StartedAt = r.StartedAt.UTC()
	}
	c.mu.Unlock()
	if r.Exit != nil {
		return nil
	}
	s.startHealth(c)
	if !run.network {
		return nil
	}
	q := s.sandboxRequest(rec, in.Hostname)
	if rec.HostConfig.NetworkMode.IsHost() {
		return &q
	}
	if f, err := os.Open("/proc/" + strconv.Itoa(r.PID) + "/ns/net"); err == nil {
		q.NetNS = f
	}
	return &q
}

// settleWithoutProcess corrects a record that says more than is true: the
// machine was restarted, or the engine was killed in the middle.
func (s *Service) settleWithoutProcess(ctx context.Context, c *Container) {
	rec, st := c.view()
	switch st.State {
	case Restarting:
		s.releaseLeft(ctx, c, rec)
		c.mu.Lock()
		c.armLocked(pauseLeft(st, time.Now()), s.restartDue)
		c.mu.Unlock()
	case Running, Paused, Starting:
		c.mu.Lock()
		rebooted := c.st.BootID != s.bootID
		c.st.State = Exited
		c.st.PID, c.st.ExitCode, c.st.FinishedAt = 0, 255, time.Now().UTC()
		if !rebooted {
			c.st.Error = "the exit status is unknown: nobody was there to see the process end"
		}
		c.mu.Unlock()
		s.save(c)
		s.releaseLeft(ctx, c, rec)
		if rec.HostConfig.AutoRemove {
			s.remove(ctx, c, RemoveOptions{Volumes: true})
		}
	case Removing, Dead:
		c.mu.Lock()
		c.st.State = Dead
		c.mu.Unlock()
		if err := s.remove(ctx, c, RemoveOptions{}); err != nil {
			s.log.Error("removal of a container cannot be finished", "container", c.id, "error", err)
		}
	case Created:
		if _, err := os.Stat(s.dir(c.id)); err != nil { // killed in the middle of create
			s.remove(ctx, c, RemoveOptions{Volumes: true})
		}
	}
}

// releaseLeft gives back what a run held that ended while no engine was there.
func (s *Service) releaseLeft(ctx context.Context, c *Container, rec *Record) {
	s.o.Networks.Release(ctx, c.id)
	s.dropShm(c.id)
	if f := s.foreignOf(rec); f != nil {
		if err := f.release(ctx); err != nil {
			s.log.Error("a bundle is left", "container", c.id, "error", err)
		}
	}
	if g, err := cgroup.Open(s.cgroupPath(rec), s.o.CgroupOptions); err == nil {
		g.Kill()
		g.Delete()
	}
}

// autostart runs what the restart policies ask for.
func (s *Service) autostart(live map[string]monitor.Running) {
	var due []*Container
	for _, c := range s.all() {
		rec, st := c.view()
		if _, ok := live[c.id]; ok || st.State != Exited {
			continue
		}
		switch rec.HostConfig.RestartPolicy.Name {
		case container.RestartPolicyAlways:
			if st.StartedAt.IsZero() {
				continue
			}
		case container.RestartPolicyUnlessStopped:
			if st.StopRequested || st.StartedAt.IsZero() {
				continue
			}
		case container.RestartPolicyOnFailure:
			if !restartWanted(rec.HostConfig.RestartPolicy, st, st.ExitCode) {
				continue
			}
		default:
			continue
		}
		due = append(due, c)
	}
	if len(due) == 0 {
		return
	}
	s.background(func(ctx context.Context) {
		for _, c := range due {
			if ctx.Err() != nil {
				return
			}
			unlock, err := c.lock(ctx)
			if err != nil {
				return
			}
			if _, st := c.view(); st.State == Exited {
				c.mu.Lock()
				c.st.StopRequested = false // "always" runs again what was stopped
				c.mu.Unlock()
				if err := s.start(ctx, c, StartOptions{}); err != nil {
					s.log.Warn("container not started again", "container", c.id, "error", err)
					s.retryStart(c)
				}
			}
			unlock()
		}
	})
}
