package container

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/monitor"
)

// Docker's defaults of a health check.
const (
	probeInterval      = 30 * time.Second
	probeTimeout       = 30 * time.Second
	probeStartInterval = 5 * time.Second
	probeRetries       = 3
	probeLogs          = 5
	probeOutput        = 4096
)

// healthState is the health of a running container.
type healthState struct {
	cancel context.CancelFunc

	mu     sync.Mutex
	status container.HealthStatus
	streak int
	log    []*container.HealthcheckResult
	probe  string // the exec that is running; "" if none
	ended  chan monitor.Event
}

func (h *healthState) api() *container.Health {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return &container.Health{Status: h.status, FailingStreak: h.streak, Log: slices.Clone(h.log)}
}

func (h *healthState) summary() *container.HealthSummary {
	if h == nil {
		return nil
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return &container.HealthSummary{Status: h.status, FailingStreak: h.streak}
}

// probeCommand is what a check runs; nil when there is none.
func probeCommand(c *Config) []string {
	h := c.Healthcheck
	if h == nil || len(h.Test) == 0 || h.Test[0] == "NONE" || h.Test[0] == "" {
		return nil
	}
	if h.Test[0] == "CMD-SHELL" {
		shell := c.Shell
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(slices.Clone(shell), h.Test[1:]...)
	}
	return h.Test[1:]
}

// judge is the whole policy: what one result makes of a container's health.
func judge(status container.HealthStatus, streak, retries int, ok, inStartPeriod bool) (container.HealthStatus, int) {
	if ok {
		return container.Healthy, 0
	}
	if inStartPeriod && status == container.Starting {
		return status, 0 // failures do not count yet
	}
	streak++
	if streak >= retries {
		return container.Unhealthy, streak
	}
	return status, streak
}

func (s *Service) startHealth(c *Container) {
	rec, st := c.view()
	cmd := probeCommand(rec.Config)
	if cmd == nil {
		c.mu.Lock()
		c.health = nil
		c.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	// What an engine before us found out is still true.
	h := &healthState{cancel: cancel, status: cmpOr(st.Health, container.Starting), streak: st.HealthStreak}
	c.mu.Lock()
	if c.health != nil {
		c.health.cancel()
	}
	c.health = h
	c.mu.Unlock()
	s.background(func(bg context.Context) {
		go func() {
			select {
			case <-bg.Done():
				cancel()
			case <-ctx.Done():
			}
		}()
		defer cancel()
		s.checkHealth(ctx, c, h, rec, cmd)
	})
}

// stopHealth ends the checks; what they found stays to be inspected.
func (s *Service) stopHealth(c *Container) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.health != nil {
		c.health.cancel()
	}
}

func (s *Service) checkHealth(ctx context.Context, c *Container, h *healthState, rec *Record, cmd []string) {
	hc := rec.Config.Healthcheck
	interval := cmpOr(hc.Interval, probeInterval)
	startInterval := cmpOr(hc.StartInterval, probeStartInterval)
	timeout := cmpOr(hc.Timeout, probeTimeout)
	retries := cmpOr(hc.Retries, probeRetries)
	_, st := c.view()
	inStart := func() bool { return time.Since(st.StartedAt) < hc.StartPeriod }
	for {
		wait := interval
		h.mu.Lock()
		if h.status == container.Starting && inStart() {
			wait = min(startInterval, interval)
			if hc.StartInterval != 0 {
				wait = startInterval
			}
		}
		h.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		if _, st := c.view(); st.State == Paused {
			continue
		}
		starting := inStart()
		res := s.probe(ctx, c, h, cmd, timeout)
		if ctx.Err() != nil {
			return
		}
		h.mu.Lock()
		old := h.status
		h.status, h.streak = judge(h.status, h.streak, retries, res.ExitCode == 0, starting)
		h.log = append(h.log, res)
		if len(h.log) > probeLogs {
			h.log = h.log[len(h.log)-probeLogs:]
		}
		now, streak := h.status, h.streak
		h.mu.Unlock()
		if now != old {
			s.emit(c, "health_status: "+events.Action(now), nil)
			c.mu.Lock()
			if c.health == h {
				c.st.Health, c.st.HealthStreak = now, streak
			}
			c.wakeLocked()
			c.mu.Unlock()
			if err := s.save(c); err != nil {
				s.log.Error("health not recorded", "container", c.id, "error", err)
			}
		}
	}
}

// probe runs one check and collects what it prints. Nothing that it started
// outlives it, whether it took too long or forked.
func (s *Service) probe(ctx context.Context, c *Container, h *healthState, cmd []string, timeout time.Duration) *container.HealthcheckResult {
	res := &container.HealthcheckResult{Start: time.Now(), ExitCode: -1}
	defer func() { res.End = time.Now() }()
	ours, theirs, err := linux.StreamPair()
	if err != nil {
		res.Output = err.Error()
		return res
	}
	defer closeAll(ours, theirs)
	id := "probe-" + newID()[:16]
	group, err := s.probeGroup(c, id)
	if err != nil {
		res.Output = err.Error()
		return res
	}
	ended := make(chan monitor.Event, 1)
	h.mu.Lock()
	h.probe, h.ended = id, ended
	h.mu.Unlock()
	cfg := container.ExecCreateRequest{Cmd: cmd, AttachStdout: true, AttachStderr: true}
	_, err = s.spawn(ctx, c, spawnRequest{key: monitor.Key{Container: c.id, Exec: id}, cfg: &cfg, group: group, extra: []monitor.AttachSpec{{Conn: theirs, Stdout: true, Stderr: true}}})
	theirs.Close()
	if err != nil {
		s.endProbe(c, group)
		res.Output = err.Error()
		return res
	}
	output := make(chan string, 1)
	go func() { output <- readHead(ours, probeOutput) }()
	text := ""
	select {
	case ev := <-ended:
		res.ExitCode = ev.Code
	case <-time.After(timeout):
		text = "Health check exceeded timeout (" + timeout.String() + ")"
	case <-ctx.Done():
	}
	s.endProbe(c, group)
	select {
	case res.Output = <-output:
	case <-time.After(time.Second): // it is stuck in the kernel
		ours.Close()
		res.Output = <-output
	}
	if text != "" {
		res.Output = strings.TrimSuffix(text+": "+res.Output, ": ")
	}
	return res
}

// probeGroup is a control group for a check and what it starts.
func (s *Service) probeGroup(c *Container, id string) (*cgroup.Group, error) {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil || r.group == nil {
		return nil, execPossible(c.id, c)
	}
	return r.group.Subgroup(id)
}

func (s *Service) endProbe(c *Container, group *cgroup.Group) {
	if err := errors.Join(group.Kill(), group.Delete()); err != nil {
		s.log.Warn("a health check was not ended", "container", c.id, "error", err)
	}
}

// readHead keeps the first n bytes and reads on, so that the probe is not held up.
func readHead(r interface{ Read([]byte) (int, error) }, n int) string {
	var out strings.Builder
	buf := make([]byte, 4096)
	for {
		k, err := r.Read(buf)
		if room := n - out.Len(); room > 0 && k > 0 {
			out.Write(buf[:min(k, room)])
		}
		if err != nil {
			return out.String()
		}
	}
}

// probeExited hands the exit of a probe to who waits for it.
func (s *Service) probeExited(ev monitor.Event) bool {
	if !strings.HasPrefix(ev.Key.Exec, "probe-") {
		return false
	}
	s.mu.RLock()
	c := s.byID[ev.Key.Container]
	s.mu.RUnlock()
	if c == nil {
		return true
	}
	c.mu.Lock()
	h := c.health
	c.mu.Unlock()
	if h == nil {
		return true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.probe == ev.Key.Exec && h.ended != nil {
		select {
		case h.ended <- ev:
		default:
		}
	}
	return true
}
