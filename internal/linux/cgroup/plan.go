package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"sort"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// A setting is one value to be written to one control group file.
type setting struct {
	controller string
	file       string
	value      string
	// late: when the kernel finds the value invalid, it may be so only beside
	// an old value that a later setting replaces; it is tried again at the end.
	late bool
	// optional: a kernel without the file already does what the value asks.
	optional bool
	// orElse is the file to use where the first is not there; with its value.
	orElse, orElseValue string
}

func (s setting) String() string { return s.controller + " " + s.file + " = " + s.value }

// read gives the planner a value that is set now, "" where there is none. It
// is not asked when the group is new.
type read func(controller, file string) string

// planner collects settings, and remembers the first complaint.
type planner struct {
	out []setting
	now read
	err error
}

func (p *planner) set(controller, file, value string) *setting {
	p.out = append(p.out, setting{controller: controller, file: file, value: value})
	return &p.out[len(p.out)-1]
}

func (p *planner) complain(controller, format string, args ...any) {
	if p.err == nil {
		p.err = errdefs.Newf(errdefs.Invalid, "limit", controller, format, args...)
	}
}

func (p *planner) refuse(controller, format string, args ...any) {
	if p.err == nil {
		p.err = errdefs.Newf(errdefs.Unsupported, "limit", controller, format, args...)
	}
}

// asked lists the controllers that r limits, devices apart.
func asked(r *specs.LinuxResources) []string {
	var out []string
	if r == nil {
		return nil
	}
	if c := r.CPU; c != nil {
		if c.Cpus != "" || c.Mems != "" {
			out = append(out, "cpuset")
		}
		if nonzero(c.Shares) || nonzero(c.Quota) || nonzero(c.Period) || c.Burst != nil ||
			c.Idle != nil || nonzero(c.RealtimePeriod) || nonzero(c.RealtimeRuntime) {
			out = append(out, "cpu")
		}
	}
	if m := r.Memory; m != nil && (nonzero(m.Limit) || nonzero(m.Swap) || nonzero(m.Reservation) ||
		nonzero(m.KernelTCP) || m.Swappiness != nil || m.DisableOOMKiller != nil && *m.DisableOOMKiller) {
		out = append(out, "memory")
	}
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit != 0 {
		out = append(out, "pids")
	}
	if b := r.BlockIO; b != nil && (nonzero(b.Weight) || nonzero(b.LeafWeight) || len(b.WeightDevice)+
		len(b.ThrottleReadBpsDevice)+len(b.ThrottleWriteBpsDevice)+
		len(b.ThrottleReadIOPSDevice)+len(b.ThrottleWriteIOPSDevice) > 0) {
		out = append(out, "io")
	}
	if len(r.HugepageLimits) > 0 {
		out = append(out, "hugetlb")
	}
	if len(r.Rdma) > 0 {
		out = append(out, "rdma")
	}
	if n := r.Network; n != nil {
		if n.ClassID != nil && *n.ClassID != 0 {
			out = append(out, "net_cls")
		}
		if len(n.Priorities) > 0 {
			out = append(out, "net_prio")
		}
	}
	return out
}

func nonzero[T int64 | uint64 | uint16](v *T) bool { return v != nil && *v != 0 }

// v1Name is the name of a controller in a v1 hierarchy.
func v1Name(controller string) string {
	if controller == "io" {
		return "blkio"
	}
	return controller
}

// wantsV2 lists the controllers that have to be enabled in a v2 hierarchy for r.
func wantsV2(r *specs.LinuxResources, h *hierarchy) []string {
	var out []string
	for _, c := range asked(r) {
		if h.has(c) {
			out = append(out, c)
		}
	}
	if r != nil {
		for k := range r.Unified {
			if c, _, _ := strings.Cut(k, "."); h.has(c) {
				out = append(out, c)
			}
		}
	}
	return out
}

// plan says what to write so that r holds. fresh is a group just made.
func (g *Group) plan(r *specs.LinuxResources, fresh bool) ([]setting, error) {
	if r == nil {
		return nil, nil
	}
	p := &planner{now: g.now}
	if fresh {
		p.now = func(string, string) string { return "" }
	}
	for _, c := range asked(r) {
		d := g.find(v1Name(c))
		if d == nil {
			d = g.find(c)
		}
		if d == nil {
			if g.mode == V2 && (c == "net_cls" || c == "net_prio") {
				p.refuse(c, "control groups v2 have no such controller")
			} else {
				p.refuse(c, "this machine has no such control group controller, or it is not delegated to us")
			}
			return nil, p.err
		}
		if d.v2 {
			p.v2(c, r)
		} else {
			p.v1(c, r)
		}
	}
	if len(r.Unified) > 0 {
		p.unified(g, r.Unified)
	}
	return p.out, p.err
}

func (g *Group) now(controller, file string) string {
	d := g.find(controller)
	if d == nil {
		return ""
	}
	s, _ := readWord(d.path + "/" + file)
	return s
}

// unified takes v2 files as they are named.
func (p *planner) unified(g *Group, u map[string]string) {
	d := g.unified()
	if g.mode != V2 || d == nil {
		p.refuse("unified", "control groups v1 are in use, and unified settings are of v2 only")
		return
	}
	keys := make([]string, 0, len(u))
	for k := range u {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		c, _, ok := strings.Cut(k, ".")
		switch {
		case strings.ContainsAny(k, "/\x00") || !ok || c == "":
			p.complain("unified", "%q is not the name of a control group file", k)
		case c != "cgroup" && !d.has(c):
			p.refuse("unified", "%s: controller %q is not available", k, c)
		default:
			p.set(c, k, u[k])
		}
	}
}

func i64(v int64) string  { return strconv.FormatInt(v, 10) }
func u64(v uint64) string { return strconv.FormatUint(v, 10) }

// weightOfShares converts the processor shares of v1 (2 to 262144, usually
// 1024) to a weight of v2 (1 to 10000, usually 100). The curve goes through
// both ends and maps the usual value to the usual one; a straight line would
// make every converted container lose against whatever has the usual weight.
func weightOfShares(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612.0-7.0/34.0)))
}

// ioWeight converts a block weight of v1 (10 to 1000) to one of v2 (1 to 10000).
func ioWeight(w uint16) uint64 {
	if w == 0 {
		return 0
	}
	return 1 + (uint64(w)-10)*9999/990
}

// pageSizeOK guards the file name that is made of it.
func pageSizeOK(s string) bool {
	n := strings.TrimRight(s, "KMGB")
	unit := s[len(n):]
	if _, err := strconv.ParseUint(n, 10, 32); err != nil || n[0] == '+' {
		return false
	}
	return unit == "KB" || unit == "MB" || unit == "GB"
}

// Update changes what r names, and leaves the rest.
func (g *Group) Update(r *specs.LinuxResources) error {
	if g.unit != nil {
		if err := g.unit.update(r, g.mode); err != nil {
			return err
		}
	}
	if m := memory(r); m != nil && m.CheckBeforeUpdate != nil && *m.CheckBeforeUpdate {
		if err := g.checkUsage(m); err != nil {
			return err
		}
	}
	return g.apply(r, false, Options{})
}

func memory(r *specs.LinuxResources) *specs.LinuxMemory {
	if r == nil {
		return nil
	}
	return r.Memory
}

// checkUsage refuses a memory limit below what is in use, when that is asked
// for: the kernel would reclaim, and kill if it cannot.
func (g *Group) checkUsage(m *specs.LinuxMemory) error {
	d := g.find("memory")
	if d == nil || !nonzero(m.Limit) || *m.Limit < 0 {
		return nil
	}
	file := "/memory.usage_in_bytes"
	if d.v2 {
		file = "/memory.current"
	}
	used, err := readUint(d.path + file)
	if err != nil {
		return errdefs.New(gone(err), "read", "memory use of "+g.String(), err)
	}
	if used > uint64(*m.Limit) {
		return errdefs.Newf(errdefs.Conflict, "limit", "memory of "+g.String(),
			"%d bytes are in use, more than the new limit of %d", used, *m.Limit)
	}
	return nil
}

// apply writes what plan says.
func (g *Group) apply(r *specs.LinuxResources, fresh bool, o Options) error {
	todo, err := g.plan(r, fresh)
	if err != nil {
		return err
	}
	if r != nil && len(r.Devices) > 0 {
		if err := g.applyDevices(r.Devices, o); err != nil {
			return err
		}
	}
	var late []setting
	for _, s := range todo {
		err := g.write(s)
		if err == nil {
			continue
		}
		if s.late && errors.Is(err, unix.EINVAL) {
			late = append(late, s)
			continue
		}
		return g.explain(s, err)
	}
	for _, s := range late {
		if err := g.write(s); err != nil {
			return g.explain(s, err)
		}
	}
	return nil
}

func (g *Group) write(s setting) error {
	d := g.find(s.controller)
	if d == nil {
		d = g.unified() // cgroup.* files belong to no controller
	}
	if d == nil {
		return fs.ErrNotExist
	}
	err := writeFile(d.path+"/"+s.file, s.value)
	if err != nil && isMissing(err) {
		if s.orElse != "" {
			return writeFile(d.path+"/"+s.orElse, s.orElseValue)
		}
		if s.optional {
			return nil
		}
	}
	return err
}

// isMissing: the file is not there. Making a file is not permitted in a
// control group file system, and opening one never makes it here.
func isMissing(err error) bool { return err == unix.ENOENT }

// explain says why a setting did not take.
func (g *Group) explain(s setting, err error) error {
	d := g.find(s.controller)
	e := errdefs.New(kindOf(err), "set", fmt.Sprintf("%s to %q in %s", s.file, s.value, g), err)
	switch {
	case isMissing(err) && d != nil && !exists(d.path):
		return errdefs.Newf(errdefs.NotFound, "set", s.file+" of "+g.String(), "the group does not exist")
	case isMissing(err) && strings.Contains(s.file, "memsw"), isMissing(err) && strings.Contains(s.file, "swap"):
		return errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "set", s.file+" of "+g.String(),
			"this kernel does not account for swap"), "boot with swapaccount=1, or give no swap limit")
	case isMissing(err):
		return errdefs.Newf(errdefs.Unsupported, "set", s.file+" of "+g.String(),
			"this kernel's %s controller has no such setting", s.controller)
	case d != nil && s.controller == "memory" && (err == unix.EBUSY || err == unix.EINVAL):
		used := g.now("memory", pick(d.v2, "memory.current", "memory.usage_in_bytes"))
		return errdefs.WithHint(e, "in use are "+used+" bytes; a limit below that, or above memory+swap, is refused")
	case s.controller == "cpuset" && (err == unix.EINVAL || err == unix.EACCES || err == unix.ERANGE):
		return errdefs.WithHint(e, "the parent group has "+s.file+" "+parentSet(d, s.file))
	case strings.HasPrefix(s.file, "cpu.rt_"):
		return errdefs.WithHint(e, "give the parent groups real-time too: cpu.rt_runtime_us is 0 by default")
	}
	return e
}

func parentSet(d *dir, file string) string {
	if d == nil {
		return ""
	}
	parent := d.path[:strings.LastIndexByte(d.path, '/')]
	if d.v2 {
		file += ".effective"
	}
	s, _ := readWord(parent + "/" + file)
	return strconv.Quote(s)
}

func pick(b bool, yes, no string) string {
	if b {
		return yes
	}
	return no
}
