package container

import "github.com/onggi/onggi/internal/linux/cgroup"

// An oomWatch tells of a container whose memory runs out while it lives: a
// further process is killed, or, with --oom-kill-disable, nothing goes on.
type oomWatch struct {
	*cgroup.OOMWatch
	done chan struct{}
	told uint64 // kills; once done is closed
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
			n, err := o.Wait()
			if err != nil {
				return
			}
			o.told += n
			for range n {
				s.emit(c, "oom", nil)
			}
		}
	}()
}

// end stops the watch, and says how often it told of a kill.
func (o *oomWatch) end() uint64 {
	if o == nil {
		return 0
	}
	o.Close()
	<-o.done
	return o.told
}

// wasOOMKilled ends the watching of a container whose process has ended. untold
// are the kills that no event has told of.
func (s *Service) wasOOMKilled(c *Container) (killed bool, untold uint64) {
	c.mu.Lock()
	r := c.run
	c.mu.Unlock()
	if r == nil || r.group == nil {
		return false, 0
	}
	told := r.oom.end()
	n, err := r.group.OOMEvents()
	if err != nil || n < told {
		return err == nil && n > 0, 0
	}
	return n > 0, n - told
}
