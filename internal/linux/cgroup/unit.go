package cgroup

import (
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// Units is systemd's side: transient units by D-Bus. The sub-package systemd
// implements it.
type Units interface {
	// Start makes a unit, and returns when it is there. A unit of that name
	// that has ended badly is forgotten first.
	Start(name string, properties []Property) error
	// Set changes properties of a running unit.
	Set(name string, properties []Property) error
	// Stop ends a unit; it succeeds when there is none.
	Stop(name string) error
	// Version is systemd's, as 252.
	Version() (int, error)
}

// Property of a unit. The type of Value decides the D-Bus type.
type Property struct {
	Name  string
	Value any
}

// unit is the systemd side of a Group.
type unit struct {
	name  string
	units Units
}

func (u *unit) stop() {
	if u.units != nil {
		u.units.Stop(u.name)
	}
}

func (u *unit) update(r *specs.LinuxResources, m Mode) error {
	if u.units == nil || r == nil {
		return nil
	}
	v, err := u.units.Version()
	if err != nil {
		return err
	}
	p, err := resourceProperties(r, m, v)
	if err != nil || len(p) == 0 {
		return err
	}
	return u.units.Set(u.name, p)
}

// unitPath splits "slice:prefix:name" into the slice, the unit's name and the
// path of its group.
func unitPath(p string, rootless bool) (slice, name, group string, err error) {
	parts := strings.Split(p, ":")
	if len(parts) != 3 || parts[2] == "" || strings.ContainsAny(p, "/\x00") {
		return "", "", "", errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "resolve", "control group "+p,
			"with systemd a control group path is slice:prefix:name"), "as system.slice:onggi:web")
	}
	slice, name = parts[0], parts[2]
	if slice == "" {
		slice = pick(rootless, "user.slice", "system.slice")
	}
	if !strings.HasSuffix(name, ".slice") {
		if parts[1] != "" {
			name = parts[1] + "-" + name
		}
		name += ".scope"
	}
	dir, err := expandSlice(slice)
	if err != nil {
		return "", "", "", err
	}
	return slice, name, path.Join(dir, name), nil
}

// expandSlice is the path of a slice: "a-b.slice" lies in "a.slice".
func expandSlice(slice string) (string, error) {
	base, ok := strings.CutSuffix(slice, ".slice")
	if !ok || base == "" || strings.Contains(base, "/") {
		return "", errdefs.Newf(errdefs.Invalid, "resolve", "slice "+slice, "not the name of a slice")
	}
	if base == "-" {
		return "/", nil
	}
	out, prefix := "", ""
	for part := range strings.SplitSeq(base, "-") {
		if part == "" {
			return "", errdefs.Newf(errdefs.Invalid, "resolve", "slice "+slice, "an empty part between dashes")
		}
		prefix += part
		out += "/" + prefix + ".slice"
		prefix += "-"
	}
	return out, nil
}

// resolveUnit says where the unit's group is. systemd's tree begins at the
// group in which process 1 was started.
func (l *layout) resolveUnit(p string, o Options) (*Group, error) {
	_, name, group, err := unitPath(p, o.Rootless)
	if err != nil {
		return nil, err
	}
	g := &Group{path: group, mode: l.mode, unit: &unit{name: name, units: o.Units}}
	text, _ := readFile("/proc/1/cgroup")
	for _, h := range l.hiers {
		base := "/"
		if own, ok := parseProcCgroup(text, h); ok {
			// Process 1 itself is in a scope of systemd's tree.
			base = path.Clean(strings.TrimSuffix(below(h.root, own), "/init.scope"))
			if base == "." {
				base = "/"
			}
		}
		g.dirs = append(g.dirs, dir{hierarchy: h, path: path.Join(h.dir, base, group), own: true})
	}
	return g, nil
}

// createUnit asks systemd for the group, adds the hierarchies that systemd
// does not keep, and sets what it has no property for.
func (l *layout) createUnit(p string, r *specs.LinuxResources, o Options) (_ *Group, err error) {
	if o.Units == nil {
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "create", "control group "+p,
			"the systemd driver is not available here"), "use a path such as /onggi/name")
	}
	slice, name, _, err := unitPath(p, o.Rootless)
	if err != nil {
		return nil, err
	}
	g, err := l.resolveUnit(p, o)
	if err != nil {
		return nil, err
	}
	version, err := o.Units.Version()
	if err != nil {
		return nil, err
	}
	props, err := unitProperties(slice, name, r, l.mode, version, o)
	if err != nil {
		return nil, err
	}
	if err := o.Units.Start(name, props); err != nil {
		return nil, err
	}
	var made []string
	defer func() {
		if err != nil {
			for i := len(made) - 1; i >= 0; i-- {
				unix.Rmdir(made[i])
			}
			o.Units.Stop(name)
		}
	}()
	for i := range g.dirs {
		d := &g.dirs[i]
		if exists(d.path) {
			continue
		}
		if err := d.make(r, &made); err != nil {
			return nil, err
		}
		if o.Pid != 0 {
			if err := (&Group{path: g.path, mode: g.mode, dirs: []dir{*d}}).Add(o.Pid); err != nil {
				return nil, err
			}
		}
	}
	if err := g.apply(r, true, o); err != nil {
		return nil, err
	}
	return g, nil
}

// unitProperties describes the new unit.
func unitProperties(slice, name string, r *specs.LinuxResources, m Mode, version int, o Options) ([]Property, error) {
	p := []Property{{"Description", "Onggi container " + strings.TrimSuffix(name, ".scope")}}
	if strings.HasSuffix(name, ".slice") {
		p = append(p, Property{"Wants", []string{slice}})
	} else {
		p = append(p, Property{"Slice", slice}, Property{"Delegate", true})
		if o.Pid == 0 {
			return nil, errdefs.Newf(errdefs.Invalid, "create", "unit "+name, "systemd makes a scope around a process, and none is given")
		}
		p = append(p, Property{"PIDs", []uint32{uint32(o.Pid)}})
	}
	p = append(p,
		Property{"MemoryAccounting", true}, Property{"CPUAccounting", true}, Property{"TasksAccounting", true},
		Property{pick(m == V2, "IOAccounting", "BlockIOAccounting"), true},
		Property{"DefaultDependencies", false})
	res, err := resourceProperties(r, m, version)
	if err != nil {
		return nil, err
	}
	p = append(p, res...)
	for _, x := range o.Properties {
		p = slices.DeleteFunc(p, func(q Property) bool { return q.Name == x.Name })
		p = append(p, x)
	}
	return p, nil
}

// resourceProperties says r in systemd's words, so that systemd does not write
// its own values over ours when it reloads. What it has no words for is
// written to the files by apply.
func resourceProperties(r *specs.LinuxResources, m Mode, version int) ([]Property, error) {
	if r == nil {
		return nil, nil
	}
	var p []Property
	add := func(name string, v any) { p = append(p, Property{name, v}) }
	if c := r.CPU; c != nil {
		if nonzero(c.Shares) {
			if m == V2 {
				add("CPUWeight", weightOfShares(*c.Shares))
			} else {
				add("CPUShares", *c.Shares)
			}
		}
		cpuQuota(add, deref(c.Quota), deref(c.Period), version)
		if m == V2 && version >= 244 {
			for _, set := range []struct{ name, list string }{{"AllowedCPUs", c.Cpus}, {"AllowedMemoryNodes", c.Mems}} {
				if set.list == "" {
					continue
				}
				bits, err := bitmap(set.list)
				if err != nil {
					return nil, err
				}
				add(set.name, bits)
			}
		}
	}
	if mem := r.Memory; mem != nil {
		if nonzero(mem.Limit) {
			add(pick(m == V2, "MemoryMax", "MemoryLimit"), uint64(*mem.Limit))
		}
		if m == V2 {
			if nonzero(mem.Reservation) {
				add("MemoryLow", uint64(*mem.Reservation))
			}
			if s, l := deref(mem.Swap), deref(mem.Limit); s == -1 || s == 0 && l == -1 {
				add("MemorySwapMax", ^uint64(0))
			} else if s > 0 && l > 0 && s >= l {
				add("MemorySwapMax", uint64(s-l))
			}
		}
	}
	if r.Pids != nil && nonzero(r.Pids.Limit) {
		add("TasksMax", uint64(max(*r.Pids.Limit, -1)))
	}
	if b := r.BlockIO; b != nil && nonzero(b.Weight) {
		if m == V2 {
			add("IOWeight", ioWeight(*b.Weight))
		} else {
			add("BlockIOWeight", uint64(*b.Weight))
		}
	}
	if len(r.Devices) > 0 {
		add("DevicePolicy", "strict")
		add("DeviceAllow", deviceAllow(r.Devices, version))
		if last := r.Devices[len(r.Devices)-1]; everything(last) && last.Allow {
			p = p[:len(p)-2]
			add("DevicePolicy", "auto")
			add("DeviceAllow", []DeviceEntry{})
		}
	}
	return p, nil
}

// cpuQuota converts a quota per period to one per second, of whole percents of
// a processor, as systemd keeps it.
func cpuQuota(add func(string, any), quota int64, period uint64, version int) {
	if quota == 0 && period == 0 {
		return
	}
	if period != 0 && version >= 242 {
		add("CPUQuotaPeriodUSec", period)
	}
	perSecond := ^uint64(0)
	if quota > 0 {
		if period == 0 {
			period = 100000
		}
		perSecond = uint64(quota) * 1000000 / period
		if perSecond%10000 != 0 {
			perSecond = (perSecond/10000 + 1) * 10000
		}
	}
	if quota != 0 {
		add("CPUQuotaPerSecUSec", perSecond)
	}
}

// bitmap is a list such as "0-3,7" as bytes, the lowest first.
func bitmap(list string) ([]byte, error) {
	var out []byte
	bad := func() ([]byte, error) {
		return nil, errdefs.Newf(errdefs.Invalid, "limit", "cpuset", "%q is not a list of numbers and ranges", list)
	}
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		a, b, isRange := strings.Cut(part, "-")
		if !isRange {
			b = a
		}
		lo, err1 := parseUint(a)
		hi, err2 := parseUint(b)
		if err1 != nil || err2 != nil || lo > hi || hi > 8191 {
			return bad()
		}
		for i := lo; i <= hi; i++ {
			for uint64(len(out)) <= i/8 {
				out = append(out, 0)
			}
			out[i/8] |= 1 << (i % 8)
		}
	}
	if out == nil {
		return bad()
	}
	return out, nil
}

// DeviceEntry is one rule of DeviceAllow.
type DeviceEntry struct{ Path, Access string }

// deviceAllow names the allowed devices as systemd does: by the links in
// /dev/char and /dev/block, or by the driver's name for all its minors.
func deviceAllow(rules []specs.LinuxDeviceCgroup, version int) []DeviceEntry {
	var out []DeviceEntry
	drivers, _ := readFile("/proc/devices")
	for _, r := range rules {
		if everything(r) {
			out = nil
			continue
		}
		if !r.Allow {
			continue // systemd has no exceptions of exceptions; ours come on top
		}
		kind := ""
		switch r.Type {
		case "b":
			kind = "block"
		case "c", "u":
			kind = "char"
		default:
			continue
		}
		access := r.Access
		if access == "" {
			access = "rwm"
		}
		wildMajor, wildMinor := r.Major == nil || *r.Major == -1, r.Minor == nil || *r.Minor == -1
		switch {
		case wildMajor && version >= 240:
			out = append(out, DeviceEntry{kind + "-*", access})
		case wildMajor:
		case wildMinor:
			if name := driver(drivers, kind, *r.Major); name != "" {
				out = append(out, DeviceEntry{kind + "-" + name, access})
			}
		default:
			out = append(out, DeviceEntry{"/dev/" + kind + "/" + i64(*r.Major) + ":" + i64(*r.Minor), access})
		}
	}
	return out
}

// driver finds the name of a major number in the text of /proc/devices.
func driver(text, kind string, major int64) string {
	section := ""
	for line := range strings.SplitSeq(text, "\n") {
		switch {
		case strings.HasPrefix(line, "Character"):
			section = "char"
		case strings.HasPrefix(line, "Block"):
			section = "block"
		case section == kind:
			if n, name, ok := strings.Cut(strings.TrimSpace(line), " "); ok && n == i64(major) {
				return name
			}
		}
	}
	return ""
}
