package cgroup

import (
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux/devicefilter"
)

// DefaultDevices are the rules that every container of an OCI runtime gets
// after its own: making any node, and using the ones the specification puts
// into every /dev.
func DefaultDevices() []specs.LinuxDeviceCgroup {
	n := func(v int64) *int64 { return &v }
	allow := func(typ string, major, minor *int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: typ, Major: major, Minor: minor, Access: access}
	}
	return []specs.LinuxDeviceCgroup{
		allow("c", nil, nil, "m"),
		allow("b", nil, nil, "m"),
		allow("c", n(1), n(3), "rwm"),  // null
		allow("c", n(1), n(5), "rwm"),  // zero
		allow("c", n(1), n(7), "rwm"),  // full
		allow("c", n(1), n(8), "rwm"),  // random
		allow("c", n(1), n(9), "rwm"),  // urandom
		allow("c", n(5), n(0), "rwm"),  // tty
		allow("c", n(5), n(1), "rwm"),  // console
		allow("c", n(5), n(2), "rwm"),  // ptmx
		allow("c", n(136), nil, "rwm"), // pts/*
	}
}

// RuntimeDevices are the rules that an OCI runtime applies for a spec's: deny
// everything, then what the spec says, then what every container may use.
func RuntimeDevices(rules []specs.LinuxDeviceCgroup) []specs.LinuxDeviceCgroup {
	out := make([]specs.LinuxDeviceCgroup, 0, len(rules)+12)
	if len(rules) == 0 || !everything(rules[0]) {
		out = append(out, specs.LinuxDeviceCgroup{Allow: false, Access: "rwm"})
	}
	out = append(out, rules...)
	if last := len(rules) - 1; last >= 0 && everything(rules[last]) && rules[last].Allow {
		return out // nothing is left to allow
	}
	return append(out, DefaultDevices()...)
}

// everything reports whether the rule is about all devices and every access.
func everything(r specs.LinuxDeviceCgroup) bool {
	wild := func(v *int64) bool { return v == nil || *v == -1 }
	return (r.Type == "" || r.Type == "a") && wild(r.Major) && wild(r.Minor) && devicefilter.AllAccess(r.Access)
}

// applyDevices sets the device rules, by files on v1 and by a filter program
// on v2. Without privilege there is nothing to be set and nothing to be had.
func (g *Group) applyDevices(rules []specs.LinuxDeviceCgroup, o Options) error {
	if err := devicefilter.Check(rules); err != nil {
		return err
	}
	d := g.find("devices")
	if d == nil {
		u := g.unified()
		if g.mode == V2 && u != nil {
			return g.filterDevices(u, rules, o)
		}
		if o.Rootless {
			return nil
		}
		return errdefs.Newf(errdefs.Unsupported, "limit", "devices",
			"this machine has no such control group controller")
	}
	var w ruleFile
	defer w.close()
	for _, value := range v1Rules(rules) {
		file := d.path + value[0]
		if err := w.write(file, value[1]); err != nil {
			if err == unix.EPERM && o.Rootless {
				return nil
			}
			e := errdefs.New(kindOf(err), "write", strconv.Quote(value[1])+" to "+file, err)
			if err == unix.EPERM {
				e = errdefs.WithHint(e, "a group above does not allow the device, or the group has groups below it")
			}
			return e
		}
	}
	return nil
}

// A ruleFile takes one rule with each write, and stays open for the next.
type ruleFile struct {
	path string
	fd   int
}

func (w *ruleFile) write(path, rule string) error {
	if w.path != path {
		w.close()
		fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0) })
		if err != nil {
			return err
		}
		w.path, w.fd = path, fd
	}
	_, err := retry(func() (int, error) { return unix.Write(w.fd, []byte(rule)) })
	return err
}

func (w *ruleFile) close() {
	if w.path != "" {
		unix.Close(w.fd)
		w.path = ""
	}
}

// v1Rules lists what to write, as pairs of file and text. The first always
// says what holds for the devices that no further rule is about.
func v1Rules(rules []specs.LinuxDeviceCgroup) [][2]string {
	deny := specs.LinuxDeviceCgroup{}
	first := deny
	for i := len(rules) - 1; i >= 0; i-- {
		// What came before a rule about everything has no effect.
		if everything(rules[i]) {
			first, rules = rules[i], rules[i+1:]
			break
		}
	}
	var out [][2]string
	for _, r := range append([]specs.LinuxDeviceCgroup{first}, rules...) {
		file := "/devices.deny"
		if r.Allow {
			file = "/devices.allow"
		}
		if everything(r) {
			out = append(out, [2]string{file, "a"})
			continue
		}
		types := []string{r.Type}
		if r.Type == "" || r.Type == "a" {
			// The kernel takes any rule of type "a" as one about everything.
			types = []string{"b", "c"}
		}
		for _, t := range types {
			r.Type = t
			out = append(out, [2]string{file, v1Rule(r)})
		}
	}
	return out
}

// v1Rule is the text of a rule for devices.allow and devices.deny.
func v1Rule(r specs.LinuxDeviceCgroup) string {
	num := func(v *int64) string {
		if v == nil || *v == -1 {
			return "*"
		}
		return strconv.FormatInt(*v, 10)
	}
	access := r.Access
	if access == "" {
		access = "rwm"
	}
	typ := r.Type
	if typ == "u" {
		typ = "c"
	}
	return typ + " " + num(r.Major) + ":" + num(r.Minor) + " " + access
}

func (g *Group) filterDevices(u *dir, rules []specs.LinuxDeviceCgroup, o Options) error {
	prog, err := devicefilter.Compile(rules)
	if err != nil {
		return err
	}
	fd, err := retry(func() (int, error) {
		return unix.Open(u.path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return errdefs.New(gone(err), "open", g.String(), err)
	}
	defer unix.Close(fd)
	if err := devicefilter.Attach(fd, prog); err != nil {
		if o.Rootless && errdefs.Is(err, errdefs.Forbidden) {
			return nil
		}
		return err
	}
	return nil
}
