package main

import (
	"encoding/json"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// forwardListener hands the listener of a seccomp filter that notifies to the
// agent that waits for it.
func (g *global) forwardListener(c *container, proc *initproc.Process) error {
	f := proc.Seccomp()
	if f == nil {
		return nil
	}
	defer f.Close()
	l := c.Spec.Linux.Seccomp
	state := specs.ContainerProcessState{
		Version: specVersion, Fds: []string{specs.SeccompFdName}, Pid: c.PID, Metadata: l.ListenerMetadata, State: *c.hookState(specs.StateCreating),
	}
	state.State.Pid = c.PID
	b, err := json.Marshal(state)
	if err == nil {
		err = linux.SendFile(l.ListenerPath, b, f)
	}
	if err != nil {
		c.kill(9)
		return errdefs.New(errdefs.Unavailable, "hand over", "the seccomp listener", err)
	}
	return nil
}
