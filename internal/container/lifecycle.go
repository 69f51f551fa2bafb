package container

import (
	"context"
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/monitor"
)

// StartOptions say who wants to be there from the first byte on.
type StartOptions struct {
	ConsoleSize [2]uint // height, width; zero = as created
}

// Start runs a container that is not running. It returns once the program runs,
// or with what kept it from running.
func (s *Service) Start(ctx context.Context, ref string, o StartOptions) error {
	c, err := s.find("start", ref)
	if err != nil {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	_, st := c.view()
	switch st.State {
	case Running:
		return errdefs.Newf(errdefs.NotModified, "start", quote("container", ref), "it is running already")
	case Paused:
		return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "cannot start a paused container, try unpause instead"), "onggi unpause "+ref)
	case Removing, Dead, Gone:
		return errdefs.Newf(errdefs.Conflict, "", "", "container is marked for removal and cannot be started")
	}
	c.mu.Lock()
	c.st.RestartCount, c.st.Backoff, c.st.StopRequested = 0, 0, false
	c.mu.Unlock()
	return s.start(ctx, c, o)
}

// start runs the container. Preconditions: the token is held.
func (s *Service) start(ctx context.Context, c *Container, o StartOptions) error {
	// What the last run held is being given back; a new run must not share it.
	c.mu.Lock()
	last := c.run
	c.mu.Unlock()
	if last != nil {
		select {
		case <-last.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.awaitGreeted(ctx)
	acts, err := c.move(Start, func(st *Status) { st.Error, st.OOMKilled = "", false })
	if err != nil {
		return err
	}
	s.act(ctx, c, acts)
	c.mu.Lock()
	rec, attach := c.rec, c.pending
	c.pending, c.early = nil, nil
	c.mu.Unlock()
	if o.ConsoleSize != [2]uint{} {
		h := *rec.HostConfig
		h.ConsoleSize = o.ConsoleSize
		r := *rec
		r.HostConfig, rec = &h, &r
	}
	// A start that was begun is finished or undone, also when the client left.
	r, box, err := s.launch(context.WithoutCancel(ctx), c, rec, attach)
	if err != nil {
		return s.startFailed(c, attach, err)
	}
	c.mu.Lock()
	c.run = r
	_, err = c.moveLocked(StartDone, func(st *Status) {
		st.PID, st.StartedAt, st.Sandbox, st.BootID = r.pid(), r.started.StartedAt.UTC(), box, s.bootID
		st.ExitCode, st.FinishedAt, st.StartFailed = 0, time.Time{}, false
		st.Health, st.HealthStreak = "", 0
	})
	early := c.early
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if early == nil {
		if err := s.save(c); err != nil {
			s.log.Error("state not recorded", "container", c.id, "error", err)
		}
	}
	s.emit(c, "start", nil)
	s.startHealth(c)
	if early != nil { // it ended before we knew that it ran
		// Not here: its end may want the token that we hold, to remove it.
		s.background(func(context.Context) { s.mainExited(context.Background(), c, *early) })
	}
	return nil
}

func (s *Service) startFailed(c *Container, attach []*attachment, err error) error {
	code := 128
	if se, ok := errors.AsType[*StartError](err); ok && se.Code != 125 {
		code = se.Code
	}
	rec, _ := c.view()
	c.mu.Lock()
	c.run = nil // launch has undone it
	c.moveLocked(StartFailed, func(st *Status) { st.ExitCode, st.Error, st.PID, st.StartFailed = code, err.Error(), 0, true })
	c.exits++
	c.wakeLocked()
	c.mu.Unlock()
	for _, a := range attach {
		a.close()
	}
	if serr := s.save(c); serr != nil {
		s.log.Error("state not recorded", "container", c.id, "error", serr)
	}
	if rec.HostConfig.AutoRemove {
		s.background(func(ctx context.Context) { s.remove(ctx, c, RemoveOptions{Volumes: true}) })
	}
	return err
}

// act carries out what the life cycle demands and does not itself need a
// decision.
func (s *Service) act(ctx context.Context, c *Container, acts []Action) {
	for _, a := range acts {
		switch a {
		case DisarmRestart:
			c.mu.Lock()
			if c.timer != nil {
				c.timer.Stop()
				c.timer = nil
			}
			c.mu.Unlock()
		case ReleaseResources:
			c.mu.Lock()
			r := c.run
			c.mu.Unlock()
			if r == nil {
				continue
			}
			if err := s.releaseRun(ctx, c.id, r); err != nil {
				s.log.Error("not all that a run held could be given back", "container", c.id, "error", err)
			}
			c.mu.Lock()
			attached := r.attached
			r.attached = nil
			c.mu.Unlock()
			for _, a := range attached {
				a.close()
			}
			close(r.ended)
		case WakeNextExit:
			c.mu.Lock()
			c.exits++
			c.wakeLocked()
			c.mu.Unlock()
		case ArmRestart:
			_, st := c.view()
			c.mu.Lock()
			c.armLocked(st.Backoff, s.restartDue)
			c.mu.Unlock()
		}
	}
}

// watch hands out the monitor's exits until Close.
func (s *Service) watch() {
	evs := s.o.Monitor.Events()
	for {
		select {
		case <-s.stop:
			return
		case ev, ok := <-evs:
			if !ok {
				return
			}
			// Releasing one container's resources must not hold up the exits of others.
			s.background(func(context.Context) { s.exited(context.Background(), ev) })
		}
	}
}

// exited records an exit and tells the monitor that it may forget it.
func (s *Service) exited(ctx context.Context, ev monitor.Event) {
	s.mu.RLock()
	c := s.byID[ev.Key.Container]
	s.mu.RUnlock()
	switch {
	case ev.Key.Exec != "":
		s.execExited(ev)
	case c != nil:
		c.mu.Lock()
		if c.st.State == Starting {
			c.early = &ev
			c.mu.Unlock()
			return // start goes on with it
		}
		c.mu.Unlock()
		s.mainExited(ctx, c, ev)
		return
	}
	s.ack(ctx, ev.Key)
}

func (s *Service) ack(ctx context.Context, k monitor.Key) {
	if err := s.o.Monitor.Ack(ctx, k); err != nil && errdefs.KindOf(err) != errdefs.NotFound {
		s.log.Warn("exit not acknowledged", "process", k, "error", err)
	}
}

// mainExited moves a container on after its main process ended.
func (s *Service) mainExited(ctx context.Context, c *Container, ev monitor.Event) {
	oom, untold := s.wasOOMKilled(c)
	c.mu.Lock()
	watched := c.st.PID
	if r := c.run; r != nil && r.foreign != nil {
		watched = r.started.PID
	}
	if !c.st.State.HasProcess() || watched != ev.PID && ev.PID != 0 && watched != 0 {
		c.mu.Unlock() // told twice, or of an earlier run
		s.ack(ctx, ev.Key)
		return
	}
	again := restartWanted(c.rec.HostConfig.RestartPolicy, c.st, ev.Code)
	e := Exit
	if again {
		e = ExitAgain
	}
	rec := c.rec
	acts, err := c.moveLocked(e, func(st *Status) {
		st.Backoff = nextBackoff(st.Backoff, ev.At.Sub(st.StartedAt))
		st.ExitCode, st.FinishedAt, st.PID, st.OOMKilled = ev.Code, ev.At.UTC(), 0, oom
		if ev.Unknown {
			st.Error = "the exit status is unknown: nobody was there to see the process end"
		}
		if again {
			st.RestartCount++
		}
	})
	c.mu.Unlock()
	if err != nil {
		s.log.Error("exit of a container in an unexpected state", "container", c.id, "error", err)
		return
	}
	s.stopHealth(c)
	if err := s.save(c); err != nil {
		s.log.Error("exit not recorded", "container", c.id, "error", err)
	} else {
		s.ack(ctx, ev.Key)
	}
	s.killExecs(c)
	s.dropExecs(c)
	for range untold {
		s.emit(c, "oom", nil)
	}
	_, st := c.view()
	s.emitRecord(rec, "die", map[string]string{"exitCode": strconv.Itoa(ev.Code), "execDuration": strconv.Itoa(int(st.FinishedAt.Sub(st.StartedAt).Seconds()))})
	s.act(ctx, c, acts)
	if rec.HostConfig.AutoRemove && !again {
		if err := s.remove(ctx, c, RemoveOptions{Volumes: true}); err != nil && errdefs.KindOf(err) != errdefs.NotFound {
			s.log.Error("container not removed after its end", "container", c.id, "error", err)
		}
	}
}

// restartDue runs a container again whose pause is over.
func (s *Service) restartDue(c *Container) {
	select {
	case <-s.stop:
		return
	default:
	}
	s.background(func(ctx context.Context) {
		unlock, err := c.lock(ctx)
		if err != nil {
			return
		}
		defer unlock()
		if _, st := c.view(); st.State != Restarting {
			return
		}
		if err := s.start(ctx, c, StartOptions{}); err != nil {
			s.log.Warn("restart", "container", c.id, "error", err)
			s.retryStart(c)
		}
	})
}

// retryStart arms another restart after one that could not even start.
func (s *Service) retryStart(c *Container) {
	c.mu.Lock()
	again := c.st.State == Exited && restartWanted(c.rec.HostConfig.RestartPolicy, c.st, c.st.ExitCode)
	if again {
		c.st.State = Restarting
		c.st.RestartCount++
		c.st.Backoff = nextBackoff(c.st.Backoff, 0)
		c.armLocked(c.st.Backoff, s.restartDue)
		c.wakeLocked()
	}
	c.mu.Unlock()
	if again {
		if err := s.save(c); err != nil {
			s.log.Error("state not recorded", "container", c.id, "error", err)
		}
	}
}

// armLocked starts the pause before a restart. Preconditions: c.mu is held.
func (c *Container) armLocked(pause time.Duration, due func(*Container)) {
	c.timer = time.AfterFunc(pause, func() { due(c) })
}

// pauseLeft is what remains of the pause before a restart when the engine finds
// it begun. The clock may have been set meanwhile: it is never longer than it was.
func pauseLeft(st Status, now time.Time) time.Duration {
	return min(max(0, st.FinishedAt.Add(st.Backoff).Sub(now)), st.Backoff)
}

const (
	firstBackoff = 100 * time.Millisecond
	maxBackoff   = time.Minute
	calmAfter    = 10 * time.Second
)

// nextBackoff doubles the pause for a container that keeps ending soon.
func nextBackoff(last, uptime time.Duration) time.Duration {
	if last == 0 || uptime >= calmAfter {
		return firstBackoff
	}
	return min(2*last, maxBackoff)
}

// restartWanted decides by the policy whether a container that ended runs again.
func restartWanted(p container.RestartPolicy, st Status, code int) bool {
	if st.StopRequested {
		return false
	}
	switch p.Name {
	case container.RestartPolicyAlways, container.RestartPolicyUnlessStopped:
		return true
	case container.RestartPolicyOnFailure:
		return code != 0 && (p.MaximumRetryCount == 0 || st.RestartCount < p.MaximumRetryCount)
	}
	return false
}

// StopOptions say how to stop.
type StopOptions struct {
	Signal  string // "" = the container's
	Timeout *int   // seconds before SIGKILL; nil = the container's, negative = never
}

const defaultStopTimeout = 10

// Stop ends a container: its signal first, SIGKILL after the time-out.
func (s *Service) Stop(ctx context.Context, ref string, o StopOptions) error {
	c, err := s.find("stop", ref)
	if err != nil {
		return err
	}
	stopped, err := s.halt(ctx, c, o)
	if err == nil && !stopped {
		return errdefs.Newf(errdefs.NotModified, "stop", quote("container", ref), "it is not running")
	}
	return err
}

// halt ends c's process if it has one, and keeps the restart policy from
// starting another.
func (s *Service) halt(ctx context.Context, c *Container, o StopOptions) (stopped bool, err error) {
	rec, _ := c.view()
	sig, timeout, err := stopPlan(rec, o, s.o.Defaults.StopTimeout)
	if err != nil {
		return false, err
	}
	if err := c.until(ctx, func() bool { return c.st.State != Starting }); err != nil {
		return false, err
	}
	c.mu.Lock()
	state, exits := c.st.State, c.exits
	switch state {
	case Running, Paused:
		c.st.StopRequested = true
	case Restarting:
		acts, _ := c.moveLocked(StayDown, func(st *Status) { st.StopRequested = true })
		c.mu.Unlock()
		s.act(ctx, c, acts)
		return true, s.save(c)
	default:
		c.mu.Unlock()
		return false, nil
	}
	c.mu.Unlock()
	// An engine that dies now must not let the container's policy undo the stop.
	if err := s.save(c); err != nil {
		return false, err
	}
	ended := func() bool { return c.exits != exits || !c.st.State.HasProcess() && c.st.State != Exited }
	s.emit(c, "kill", map[string]string{"signal": strconv.Itoa(sig)})
	if err := s.signal(ctx, c, sig); err != nil && !isOver(err) {
		return false, err
	}
	if sig == int(signals["KILL"]) {
		err = s.awaitKilled(ctx, c, ended)
	} else if timeout >= 0 {
		tctx, cancel := context.WithTimeout(ctx, time.Duration(timeout)*time.Second)
		err = c.until(tctx, ended)
		cancel()
		if err != nil && ctx.Err() == nil {
			s.log.Info("container did not stop in time, killing it", "container", c.id, "signal", sig, "timeout", timeout)
			s.emit(c, "kill", map[string]string{"signal": "9"})
			if err := s.signal(ctx, c, int(signals["KILL"])); err != nil && !isOver(err) {
				return false, err
			}
			err = s.awaitKilled(ctx, c, ended)
		}
	} else {
		err = c.until(ctx, ended)
	}
	if err == nil {
		s.emit(c, "stop", nil)
		if _, st := c.view(); st.State != Gone {
			err = s.save(c)
		}
	}
	return err == nil, err
}

// isOver reports whether a signal found no process: it has exited, and the
// news of it may still be on its way.
func isOver(err error) bool {
	k := errdefs.KindOf(err)
	return k == errdefs.NotFound || k == errdefs.Conflict
}

// killPatience is how long an exit may take after SIGKILL before we say that
// the process is stuck in the kernel.
const killPatience = 10 * time.Second

func (s *Service) awaitKilled(ctx context.Context, c *Container, ended func() bool) error {
	kctx, cancel := context.WithTimeout(ctx, killPatience)
	defer cancel()
	err := c.until(kctx, ended)
	if err != nil && ctx.Err() == nil {
		_, st := c.view()
		return errdefs.WithHint(errdefs.Newf(errdefs.Unavailable, "stop", quote("container", c.id[:12]), "process %d does not end although it was killed: it is stuck in the kernel", st.PID),
			"look at /proc/"+strconv.Itoa(st.PID)+"/stack; the container ends as soon as the kernel lets go of it")
	}
	return err
}

func stopPlan(rec *Record, o StopOptions, def int) (sig, timeout int, err error) {
	name := cmpOr(o.Signal, rec.Config.StopSignal, "TERM")
	if sig, err = ParseSignal(name); err != nil {
		return 0, 0, err
	}
	timeout = cmpOr(def, defaultStopTimeout)
	if rec.Config.StopTimeout != nil {
		timeout = *rec.Config.StopTimeout
	}
	if o.Timeout != nil {
		timeout = *o.Timeout
	}
	return sig, timeout, nil
}

// signal sends a signal to the main process, and lets a paused container run
// so that it can be delivered when it is to end it.
func (s *Service) signal(ctx context.Context, c *Container, sig int) error {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	var err error
	if r != nil && r.foreign != nil {
		err = r.foreign.signal(ctx, sig)
	} else {
		err = s.o.Monitor.Signal(ctx, s.key(c), sig)
	}
	if err != nil {
		return err
	}
	if _, st := c.view(); st.State == Paused && sig != int(signals["STOP"]) {
		return s.thaw(ctx, c)
	}
	return nil
}

// Kill sends a signal; "" is SIGKILL.
func (s *Service) Kill(ctx context.Context, ref, signal string) error {
	c, err := s.find("kill", ref)
	if err != nil {
		return err
	}
	sig, err := ParseSignal(cmpOr(signal, "KILL"))
	if err != nil {
		return err
	}
	rec, st := c.view()
	if !st.State.HasProcess() {
		return errdefs.Newf(errdefs.Conflict, "", "", "cannot kill container: %s: container %s is not running", ref, c.id)
	}
	kill := sig == int(signals["KILL"])
	if stop, _, err := stopPlan(rec, StopOptions{}, 0); kill || err == nil && sig == stop {
		c.mu.Lock()
		c.st.StopRequested = true
		c.mu.Unlock()
		if err := s.save(c); err != nil {
			return err
		}
	}
	c.mu.Lock()
	exits := c.exits
	c.mu.Unlock()
	if err := s.signal(ctx, c, sig); err != nil {
		if isOver(err) {
			return errdefs.Newf(errdefs.Conflict, "", "", "cannot kill container: %s: container %s is not running", ref, c.id)
		}
		return err
	}
	s.emit(c, "kill", map[string]string{"signal": strconv.Itoa(sig)})
	if kill { // the client expects it to be over
		return s.awaitKilled(ctx, c, func() bool { return c.exits != exits })
	}
	return nil
}

// Restart stops a container if it runs, and starts it.
func (s *Service) Restart(ctx context.Context, ref string, o StopOptions) error {
	c, err := s.find("restart", ref)
	if err != nil {
		return err
	}
	rec, _ := c.view()
	if rec.HostConfig.AutoRemove {
		// Its end would remove it before it can start again.
		c.setAutoRemove(false)
		defer c.setAutoRemove(true)
	}
	if _, err := s.halt(ctx, c, o); err != nil {
		return err
	}
	if err := s.Start(ctx, c.id, StartOptions{}); err != nil && errdefs.KindOf(err) != errdefs.NotModified {
		return err
	}
	s.emit(c, "restart", nil)
	return nil
}

func (c *Container) setAutoRemove(v bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, h := *c.rec, *c.rec.HostConfig
	h.AutoRemove = v
	r.HostConfig, c.rec = &h, &r
}

// Pause freezes all processes of a container.
func (s *Service) Pause(ctx context.Context, ref string) error {
	c, err := s.find("pause", ref)
	if err != nil {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	c.mu.Lock()
	st, r := c.st, c.run
	c.mu.Unlock()
	switch {
	case st.State == Paused:
		return errdefs.Newf(errdefs.Conflict, "", "", "container %s is already paused", c.id)
	case st.State != Running || r == nil || r.group == nil:
		return errdefs.Newf(errdefs.Conflict, "", "", "container %s is not running", c.id)
	}
	if err := r.group.Freeze(ctx); err != nil {
		return errdefs.New(errdefs.KindOf(err), "pause", quote("container", ref), err)
	}
	if _, err := c.move(Pause, nil); err != nil {
		return errors.Join(err, r.group.Thaw(ctx))
	}
	s.emit(c, "pause", nil)
	return s.save(c)
}

// Unpause lets the processes of a paused container run on.
func (s *Service) Unpause(ctx context.Context, ref string) error {
	c, err := s.find("unpause", ref)
	if err != nil {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, st := c.view(); st.State != Paused {
		return errdefs.Newf(errdefs.Conflict, "", "", "container %s is not paused", c.id)
	}
	return s.thaw(ctx, c)
}

func (s *Service) thaw(ctx context.Context, c *Container) error {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil || r.group == nil {
		return nil
	}
	if err := r.group.Thaw(ctx); err != nil {
		return errdefs.New(errdefs.KindOf(err), "unpause", quote("container", c.id[:12]), err)
	}
	if _, err := c.move(Unpause, nil); err != nil {
		return nil // it ended meanwhile
	}
	s.emit(c, "unpause", nil)
	return s.save(c)
}

// RemoveOptions say what goes with a container.
type RemoveOptions struct {
	Force   bool // kill it first
	Volumes bool // its anonymous volumes too
}

// Remove deletes a container and what belongs to it.
func (s *Service) Remove(ctx context.Context, ref string, o RemoveOptions) error {
	c, err := s.find("remove", ref)
	if err != nil {
		return err
	}
	if _, st := c.view(); st.State == Removing {
		return errdefs.Newf(errdefs.Conflict, "", "", "removal of container %s is already in progress", ref)
	}
	return s.remove(ctx, c, o)
}

func (s *Service) remove(ctx context.Context, c *Container, o RemoveOptions) error {
	if o.Force {
		zero := 0
		if _, err := s.halt(ctx, c, StopOptions{Signal: "KILL", Timeout: &zero}); err != nil {
			return err
		}
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	c.mu.Lock()
	rec, st, r := c.rec, c.st, c.run
	c.mu.Unlock()
	switch st.State {
	case Gone:
		return errdefs.Newf(errdefs.NotFound, "", "", "No such container: %s", rec.Name)
	case Running, Paused, Restarting:
		if !o.Force || st.State != Restarting {
			return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "cannot remove container %q: container is %s: stop the container before removing or force remove", rec.Name, st.State), "onggi rm -f "+rec.Name)
		}
	}
	if r != nil {
		select { // its last run is still being given back
		case <-r.ended:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	acts, err := c.move(Remove, nil)
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	s.act(ctx, c, acts)
	if err := s.save(c); err != nil {
		s.log.Error("removal not recorded", "container", c.id, "error", err)
	}
	if err := s.deleteData(ctx, c, rec, o); err != nil {
		c.move(RemoveFailed, func(st *Status) { st.Error = err.Error() })
		s.save(c)
		return errdefs.New(errdefs.KindOf(err), "remove", quote("container", rec.Name), err)
	}
	if err := s.o.DB.Update(func(tx *metadb.Tx) error { return deleteRecords(tx, c.id) }); err != nil {
		c.move(RemoveFailed, func(st *Status) { st.Error = err.Error() })
		return errdefs.New(errdefs.KindOf(err), "remove", quote("container", rec.Name), err)
	}
	s.forget(c, rec)
	c.mu.Lock()
	c.moveLocked(RemoveDone, nil)
	pending := c.pending
	c.pending = nil
	c.mu.Unlock()
	for _, a := range pending {
		a.close()
	}
	s.emitRecord(rec, "destroy", nil)
	return nil
}

// deleteData removes everything but the record. Each part may be gone already.
func (s *Service) deleteData(ctx context.Context, c *Container, rec *Record, o RemoveOptions) error {
	var errs []error
	c.stopShipping()
	if err := s.o.Snapshots.Remove(ctx, c.id); err != nil && errdefs.KindOf(err) != errdefs.NotFound {
		errs = append(errs, err)
	}
	errs = append(errs, os.RemoveAll(s.dir(c.id)), s.dropEtc(c.id), s.unlimitRoot(rec))
	if rec.HostConfig.IpcMode.IsShareable() {
		errs = append(errs, s.dropShm(c.id))
	}
	for i, m := range rec.Mounts {
		if m.Type == mount.TypeImage {
			if err := s.o.Snapshots.Remove(ctx, imageMount(rec.ID, i)); err != nil && errdefs.KindOf(err) != errdefs.NotFound {
				errs = append(errs, err)
			}
		}
		if !o.Volumes || !m.Options.Anonymous || m.Name == "" || s.VolumeUsers()[m.Name] > 1 {
			continue
		}
		if err := s.o.Volumes.Remove(ctx, m.Name, false); err != nil && errdefs.KindOf(err) != errdefs.NotFound && errdefs.KindOf(err) != errdefs.Conflict {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (s *Service) forget(c *Container, rec *Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byID, c.id)
	if s.byName[rec.Name] == c.id {
		delete(s.byName, rec.Name)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.execs {
		delete(s.execs, id)
	}
}

// Rename gives a container another name.
func (s *Service) Rename(ctx context.Context, ref, name string) error {
	c, err := s.find("rename", ref)
	if err != nil {
		return err
	}
	name = strings.TrimPrefix(name, "/")
	if name == "" {
		return invalid("Neither old nor new names may be empty")
	}
	if err := checkName("", name); err != nil {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	old, _ := c.view()
	if old.Name == name {
		return invalid("Renaming a container with the same name as its current name")
	}
	if _, err := s.reserveName(name, c.id); err != nil {
		return err
	}
	r := *old
	r.Name = name
	if err := s.replaceRecord(c, &r); err != nil {
		s.releaseName(name, c.id)
		return err
	}
	s.releaseName(old.Name, c.id)
	s.expectEtc(c)
	if box, err := s.o.Networks.Rename(ctx, c.id, name); err != nil {
		s.log.Warn("the name servers know a container by its old name", "container", c.id, "error", err)
	} else if len(box.Endpoints) > 0 {
		if err := s.changedNetwork(c, box); err != nil {
			return err
		}
		s.tellLinked(c.id)
	}
	s.emit(c, "rename", map[string]string{"oldName": "/" + old.Name})
	return nil
}

// replaceRecord writes a changed record and then uses it.
func (s *Service) replaceRecord(c *Container, r *Record) error {
	if err := s.o.DB.Update(func(tx *metadb.Tx) error { return putRecord(tx, r) }); err != nil {
		return errdefs.New(errdefs.KindOf(err), "record", quote("container", r.Name), err)
	}
	c.mu.Lock()
	c.rec = r
	c.mu.Unlock()
	return nil
}

// Update changes limits and the restart policy, of a running container at once.
func (s *Service) Update(ctx context.Context, ref string, u container.UpdateConfig) (warnings []string, err error) {
	c, err := s.find("update", ref)
	if err != nil {
		return nil, err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c.mu.Lock()
	old, st, run := c.rec, c.st, c.run
	c.mu.Unlock()
	if st.State == Removing || st.State == Dead {
		return nil, errdefs.Newf(errdefs.Conflict, "", "", "cannot update container %s: it is being removed", c.id)
	}
	if err := checkUpdate(&old.HostConfig.Resources, &u.Resources); err != nil {
		return nil, err
	}
	h := *old.HostConfig
	mergeResources(&h.Resources, &u.Resources)
	if u.RestartPolicy.Name != "" {
		if h.AutoRemove && !u.RestartPolicy.IsNone() {
			return nil, errdefs.Newf(errdefs.Conflict, "", "", "Restart policy cannot be updated because AutoRemove is enabled for the container")
		}
		if err := container.ValidateRestartPolicy(u.RestartPolicy); err != nil {
			return nil, invalid("%v", err)
		}
		h.RestartPolicy = u.RestartPolicy
	}
	if warnings, err = checkResources(&h.Resources, s.o.Defaults); err != nil {
		return nil, err
	}
	r := *old
	r.HostConfig = &h
	if st.State.HasProcess() && run != nil && run.group != nil {
		limits, err := linuxResources(&h.Resources, s.o.Defaults)
		if err != nil {
			return nil, err
		}
		if err := run.group.Update(limits); err != nil {
			return nil, errdefs.New(errdefs.KindOf(err), "update", quote("container", old.Name), err)
		}
	}
	if err := s.replaceRecord(c, &r); err != nil {
		return nil, err
	}
	s.emit(c, "update", nil)
	return warnings, nil
}

// checkUpdate refuses, as Docker does, what would change a limit that nobody
// spoke of.
func checkUpdate(old, u *container.Resources) error {
	conflict := func(hint, format string, args ...any) error {
		return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", format, args...), hint)
	}
	for what, clash := range map[string]bool{"Period": old.CPUPeriod > 0, "Quota": old.CPUQuota > 0} {
		if clash && u.NanoCPUs > 0 {
			return conflict("update --cpu-quota and --cpu-period instead of --cpus", "Conflicting options: Nano CPUs cannot be updated as CPU %s has already been set", what)
		}
	}
	for what, wanted := range map[string]bool{"Period": u.CPUPeriod > 0, "Quota": u.CPUQuota > 0} {
		if wanted && old.NanoCPUs > 0 {
			return conflict("update --cpus instead", "Conflicting options: CPU %s cannot be updated as NanoCPUs has already been set", what)
		}
	}
	if u.Memory > 0 && u.MemorySwap == 0 && old.MemorySwap > 0 && u.Memory > old.MemorySwap {
		return conflict("add --memory-swap", "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	}
	return nil
}

// mergeResources takes over what the update sets.
func mergeResources(to, u *container.Resources) {
	set(&to.BlkioWeight, u.BlkioWeight)
	set(&to.CPUShares, u.CPUShares)
	set(&to.NanoCPUs, u.NanoCPUs)
	set(&to.CPUPeriod, u.CPUPeriod)
	set(&to.CPUQuota, u.CPUQuota)
	set(&to.CpusetCpus, u.CpusetCpus)
	set(&to.CpusetMems, u.CpusetMems)
	set(&to.Memory, u.Memory)
	set(&to.MemorySwap, u.MemorySwap)
	set(&to.MemoryReservation, u.MemoryReservation)
	set(&to.CPURealtimePeriod, u.CPURealtimePeriod)
	set(&to.CPURealtimeRuntime, u.CPURealtimeRuntime)
	if u.PidsLimit != nil {
		limit := *u.PidsLimit
		if limit <= 0 {
			limit = -1
		}
		to.PidsLimit = &limit
	}
	if len(u.BlkioDeviceReadBps) > 0 {
		to.BlkioDeviceReadBps = u.BlkioDeviceReadBps
	}
	if len(u.BlkioDeviceWriteBps) > 0 {
		to.BlkioDeviceWriteBps = u.BlkioDeviceWriteBps
	}
	if len(u.BlkioDeviceReadIOps) > 0 {
		to.BlkioDeviceReadIOps = u.BlkioDeviceReadIOps
	}
	if len(u.BlkioDeviceWriteIOps) > 0 {
		to.BlkioDeviceWriteIOps = u.BlkioDeviceWriteIOps
	}
	if len(u.BlkioWeightDevice) > 0 {
		to.BlkioWeightDevice = u.BlkioWeightDevice
	}
}

func set[T comparable](to *T, v T) {
	var zero T
	if v != zero {
		*to = v
	}
}

// WaitResult is how a wait ended.
type WaitResult struct {
	ExitCode int
	Error    string
}

// Wait registers for a condition ("not-running", "next-exit", "removed") and
// returns a function that waits for it.
func (s *Service) Wait(ref string, cond container.WaitCondition) (func(ctx context.Context) (WaitResult, error), error) {
	c, err := s.find("wait", ref)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	exits := c.exits
	var done func() bool
	switch cond {
	case "", container.WaitConditionNotRunning:
		done = func() bool {
			return c.exits != exits || !c.st.State.HasProcess() && c.st.State != Starting && c.st.State != Restarting
		}
		if !c.st.State.HasProcess() && c.run != nil && c.st.State != Starting && c.st.State != Restarting {
			// It has ended, but what it held is not given back yet.
			r := c.run
			was := done
			done = func() bool {
				select {
				case <-r.ended:
					return was()
				default:
					return c.exits != exits
				}
			}
		}
	case container.WaitConditionNextExit:
		done = func() bool { return c.exits != exits || c.st.State == Gone }
	case container.WaitConditionRemoved:
		done = func() bool { return c.st.State == Gone }
	default:
		return nil, invalid("invalid condition: %q", clip(string(cond)))
	}
	return func(ctx context.Context) (WaitResult, error) {
		if err := c.until(ctx, done); err != nil {
			return WaitResult{}, err
		}
		_, st := c.view()
		res := WaitResult{ExitCode: st.ExitCode}
		if !st.StartFailed { // whoever started it has been told
			res.Error = st.Error
		}
		return res, nil
	}, nil
}

// StopAll ends every container and forgets nothing: for an engine that is
// taken away, with its machine's resources.
func (s *Service) StopAll(ctx context.Context) error {
	var wg sync.WaitGroup
	zero := 0
	all := s.all()
	errs := make([]error, len(all))
	for i, c := range all {
		wg.Add(1)
		go func() {
			defer wg.Done()
			_, errs[i] = s.halt(ctx, c, StopOptions{Signal: "KILL", Timeout: &zero})
		}()
	}
	wg.Wait()
	return errors.Join(errs...)
}
