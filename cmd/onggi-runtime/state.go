package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// Names in a container's directory.
const (
	stateFile = "state.json"
	startSock = "start.sock"
)

// record is what is kept of a container. The configuration is the one that it
// was created with: a change of the bundle has no effect afterwards.
type record struct {
	ID        string            `json:"id"`
	PID       int               `json:"pid"`
	PIDStart  uint64            `json:"pidStart"` // tells a process that got the same number
	Bundle    string            `json:"bundle"`
	Rootfs    string            `json:"rootfs"`
	Created   time.Time         `json:"created"`
	UID       int               `json:"uid"`
	Cgroups   map[string]string `json:"cgroups,omitempty"`
	CgroupArg string            `json:"cgroupArg,omitempty"` // as cgroup.Open takes it
	Systemd   bool              `json:"systemd,omitempty"`
	Steps     []string          `json:"steps,omitempty"`
	Config    json.RawMessage   `json:"config"`
}

// container is a record and where it lives.
type container struct {
	record
	Spec  *specs.Spec // what Config says
	dir   string
	known *cgroup.Group // made by this call

	placeholder *initproc.Process // keeps systemd's scope alive until the container is in it
}

func checkID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > 1024 {
		return errdefs.Newf(errdefs.Invalid, "", "", "%q is no name for a container", id)
	}
	for _, r := range id {
		if !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_+-.", r)) {
			return errdefs.Newf(errdefs.Invalid, "", "", "%q is no name for a container: it may hold letters, digits and _+-.", id)
		}
	}
	return nil
}

func (g *global) load(id string) (*container, error) {
	if err := checkID(id); err != nil {
		return nil, err
	}
	c := &container{dir: filepath.Join(g.root, id)}
	b, err := os.ReadFile(filepath.Join(c.dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return nil, errdefs.Newf(errdefs.NotFound, "", "", "container %q does not exist", id)
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &c.record); err != nil {
		return nil, fmt.Errorf("read the state of container %q: %w", id, err)
	}
	c.Spec = &specs.Spec{}
	if err := decodeConfig(c.Config, c.Spec); err != nil {
		return nil, fmt.Errorf("read the configuration of container %q: %w", id, err)
	}
	return c, nil
}

func (c *container) save() error {
	b, err := json.Marshal(&c.record)
	if err != nil {
		return err
	}
	tmp := filepath.Join(c.dir, ".state")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(c.dir, stateFile))
}

// alive reports whether the first process is there, and not just a zombie.
func (c *container) alive() bool {
	ticks, state, err := linux.StartTicks(c.PID)
	return err == nil && ticks == c.PIDStart && state != 'Z' && state != 'X'
}

// pidfd opens the first process; it is never another one with the same number.
func (c *container) pidfd() (*os.File, error) {
	fd, err := linux.OpenPidFD(c.PID)
	if err != nil || !c.alive() {
		if err == nil {
			linux.CloseFD(fd)
		}
		return nil, errdefs.Newf(errdefs.Conflict, "", "", "container %q: container not running", c.ID)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

func (c *container) status() specs.ContainerState {
	if !c.alive() {
		return specs.StateStopped
	}
	if _, err := os.Lstat(filepath.Join(c.dir, startSock)); err == nil {
		return specs.StateCreated
	}
	if g, err := c.group(); err == nil {
		if frozen, err := g.Frozen(); err == nil && frozen {
			return "paused"
		}
	}
	return specs.StateRunning
}

// group finds the container's control group.
func (c *container) group() (*cgroup.Group, error) {
	if c.known != nil {
		return c.known, nil
	}
	o := cgroup.Options{Rootless: os.Geteuid() != 0}
	if c.Systemd {
		var err error
		if o, err = systemdOptions(); err != nil {
			return nil, err
		}
		return cgroup.Open(c.CgroupArg, o)
	}
	if len(c.Cgroups) == 0 {
		return nil, errdefs.Newf(errdefs.NotFound, "", "", "container %q has no control group", c.ID)
	}
	return cgroup.OpenPaths(c.Cgroups, o)
}

// view is what `state` and `list` print, with runc's field names.
type view struct {
	Version     string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func (c *container) view() view {
	v := view{c.Spec.Version, c.ID, c.PID, string(c.status()), c.Bundle, c.Rootfs, c.Created, c.Spec.Annotations, owner(c.UID)}
	if v.Status == string(specs.StateStopped) {
		v.PID = 0
	}
	return v
}

func owner(uid int) string {
	if uid == 0 {
		return "root"
	}
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "#" + strconv.Itoa(uid)
}

// hookState is what hooks read.
func (c *container) hookState(status specs.ContainerState) *specs.State {
	s := &specs.State{Version: c.Spec.Version, ID: c.ID, Status: status, Pid: c.PID, Bundle: c.Bundle, Annotations: c.Spec.Annotations}
	if status == specs.StateStopped {
		s.Pid = 0
	}
	return s
}

// hookGroup is the control group that hooks of the container join, if any.
func (c *container) hookGroup() *cgroup.Group {
	g, err := c.group()
	if err != nil {
		return nil
	}
	return g
}
