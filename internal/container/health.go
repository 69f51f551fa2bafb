package container

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/linux"
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
	rec, _ := c.view()
	cmd := probeCommand(rec.Config)
	if cmd == nil {
		c.mu.Lock()
		c.health = nil
		c.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	h := &healthState{cancel: cancel, status: container.Starting}
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
	began := time.Now()
	inStart := func() bool { return time.Since(began) < hc.StartPeriod }
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
		now := h.status
		h.mu.Unlock()
		if now != old {
			s.emit(c, "health_status: "+events.Action(now), nil)
			c.mu.Lock()
			c.wakeLocked()
			c.mu.Unlock()
		}
	}
}

// probe runs one check and collects what it prints. One that takes too long is
// killed with all that it started.
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
	ended := make(chan monitor.Event, 1)
	h.mu.Lock()
	h.probe, h.ended = id, ended
	h.mu.Unlock()
	key := monitor.Key{Container: c.id, Exec: id}
	cfg := container.ExecCreateRequest{Cmd: cmd, AttachStdout: true, AttachStderr: true}
	_, err = s.spawn(ctx, c, spawnRequest{key: key, cfg: &cfg, extra: []monitor.AttachSpec{{Conn: theirs, Stdout: true, Stderr: true}}})
	theirs.Close()
	if err != nil {
		res.Output = err.Error()
		return res
	}
	output := make(chan string, 1)
	go func() { output <- readHead(ours, probeOutput) }()
	select {
	case ev := <-ended:
		res.ExitCode = ev.Code
	case <-time.After(timeout):
		s.o.Monitor.Signal(context.Background(), key, int(signals["KILL"]))
		res.Output = "Health check exceeded timeout (" + timeout.String() + ")"
		select {
		case <-ended:
		case <-time.After(killPatience):
		case <-ctx.Done():
		}
		return res
	case <-ctx.Done():
		s.o.Monitor.Signal(context.Background(), key, int(signals["KILL"]))
		return res
	}
	select {
	case res.Output = <-output:
	case <-time.After(time.Second): // something it started holds the pipe
		ours.Close()
		res.Output = <-output
	}
	return res
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
