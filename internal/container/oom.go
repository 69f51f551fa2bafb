package container

import "github.com/onggi/onggi/internal/linux/cgroup"

// An oomWatch tells of a container whose memory runs out while it lives: a
// further process is killed, or, with --oom-kill-disable, nothing goes on.
type oomWatch struct {
	*cgroup.OOMWatch
	done chan struct{}
	told bool // once done is closed
}

func (s *Service) watchOOM(c *Container, rec *Record, r *run) {
	if rec.HostConfig.Memory == 0 || r.group == nil {
		return
	}
	w, err := r.group.WatchOOM()
	if err != nil { // the container may have ended
		s.log.Debug("memory is not watched", "container", rec.ID, "error", err)
		return
	}
	o := &oomWatch{OOMWatch: w, done: make(chan struct{})}
	r.oom = o
	go func() {
		defer close(o.done)
		for {
			if _, err := o.Wait(); err != nil {
				return
			}
			o.told = true
			s.emit(c, "oom", nil)
		}
	}()
}

// end stops the watch, and says whether it told of anything.
func (o *oomWatch) end() bool {
	if o == nil {
		return false
	}
	o.Close()
	<-o.done
	return o.told
}

// wasOOMKilled ends the watching of a container whose process has ended.
func (s *Service) wasOOMKilled(c *Container) (killed, told bool) {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil || r.group == nil {
		return false, false
	}
	n, err := r.group.OOMEvents()
	return err == nil && n > 0, r.oom.end()
}
