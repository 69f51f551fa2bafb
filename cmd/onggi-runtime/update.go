package main

import (
	"encoding/json"
	"flag"
	"io"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
)

// limits are the flags of update, by name: what a value changes.
var limits = map[string]func(r *specs.LinuxResources, v string) error{
	"blkio-weight":       func(r *specs.LinuxResources, v string) error { return set16(&blkio(r).Weight, v) },
	"cpu-period":         func(r *specs.LinuxResources, v string) error { return setU(&cpu(r).Period, v) },
	"cpu-quota":          func(r *specs.LinuxResources, v string) error { return setI(&cpu(r).Quota, v) },
	"cpu-burst":          func(r *specs.LinuxResources, v string) error { return setU(&cpu(r).Burst, v) },
	"cpu-share":          func(r *specs.LinuxResources, v string) error { return setU(&cpu(r).Shares, v) },
	"cpu-rt-period":      func(r *specs.LinuxResources, v string) error { return setU(&cpu(r).RealtimePeriod, v) },
	"cpu-rt-runtime":     func(r *specs.LinuxResources, v string) error { return setI(&cpu(r).RealtimeRuntime, v) },
	"cpu-idle":           func(r *specs.LinuxResources, v string) error { return setI(&cpu(r).Idle, v) },
	"cpuset-cpus":        func(r *specs.LinuxResources, v string) error { cpu(r).Cpus = v; return nil },
	"cpuset-mems":        func(r *specs.LinuxResources, v string) error { cpu(r).Mems = v; return nil },
	"memory":             func(r *specs.LinuxResources, v string) error { return setSize(&memory(r).Limit, v) },
	"memory-reservation": func(r *specs.LinuxResources, v string) error { return setSize(&memory(r).Reservation, v) },
	"memory-swap":        func(r *specs.LinuxResources, v string) error { return setSize(&memory(r).Swap, v) },
	"pids-limit": func(r *specs.LinuxResources, v string) error {
		r.Pids = &specs.LinuxPids{}
		return setI(&r.Pids.Limit, v)
	},
	// Kernel memory is no limit of its own any more; runc takes the flags too.
	"kernel-memory":     func(*specs.LinuxResources, string) error { return nil },
	"kernel-memory-tcp": func(*specs.LinuxResources, string) error { return nil },
}

func cpu(r *specs.LinuxResources) *specs.LinuxCPU {
	if r.CPU == nil {
		r.CPU = &specs.LinuxCPU{}
	}
	return r.CPU
}

func memory(r *specs.LinuxResources) *specs.LinuxMemory {
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	return r.Memory
}

func blkio(r *specs.LinuxResources) *specs.LinuxBlockIO {
	if r.BlockIO == nil {
		r.BlockIO = &specs.LinuxBlockIO{}
	}
	return r.BlockIO
}

func setU(p **uint64, v string) error {
	n, err := strconv.ParseUint(v, 10, 64)
	*p = &n
	return err
}

func setI(p **int64, v string) error {
	n, err := strconv.ParseInt(v, 10, 64)
	*p = &n
	return err
}

func set16(p **uint16, v string) error {
	n, err := strconv.ParseUint(v, 10, 16)
	w := uint16(n)
	*p = &w
	return err
}

// setSize reads bytes, with the suffixes that people write: 512m, 2GiB; -1 is
// unlimited.
func setSize(p **int64, v string) error {
	s := strings.ToLower(strings.TrimSpace(v))
	s = strings.TrimSuffix(strings.TrimSuffix(s, "b"), "i")
	shift := uint(0)
	if s != "" {
		if i := strings.IndexByte("kmgtp", s[len(s)-1]); i >= 0 {
			shift, s = 10*uint(i+1), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && n > 0 && n > (1<<63-1)>>shift {
		err = strconv.ErrRange
	}
	if n > 0 {
		n <<= shift
	}
	*p = &n
	return err
}

func updateFlags(fs *flag.FlagSet) func(*global, []string) error {
	file := text(fs, "resources", "r")
	values := map[string]*string{}
	for name := range limits {
		values[name] = text(fs, name)
	}
	text(fs, "l3-cache-schema")
	text(fs, "mem-bw-schema")
	return func(g *global, args []string) error {
		c, err := g.load(args[0])
		if err != nil {
			return err
		}
		if st := c.status(); st == specs.StateStopped {
			return errdefs.Newf(errdefs.Conflict, "", "", "container not running")
		}
		r := &specs.LinuxResources{}
		if *file != "" {
			if err := readResources(*file, r); err != nil {
				return err
			}
		} else {
			for name, v := range values {
				if *v == "" {
					continue
				}
				if err := limits[name](r, *v); err != nil {
					return errdefs.Newf(errdefs.Invalid, "", "", "--%s %q: %w", name, *v, err)
				}
			}
			fs.Visit(func(f *flag.Flag) {
				if f.Name == "l3-cache-schema" || f.Name == "mem-bw-schema" {
					err = errdefs.Newf(errdefs.Unsupported, "", "", "--%s: this runtime does not control Intel RDT", f.Name)
				}
			})
			if err != nil {
				return err
			}
		}
		group, err := c.group()
		if err != nil {
			return err
		}
		if err := group.Update(completed(r, c)); err != nil {
			return err
		}
		if err := c.merge(r); err != nil {
			return err
		}
		return c.save()
	}
}

// completed adds what the kernel needs to see together: swap is memory+swap, so
// one without the other takes what the container has.
func completed(r *specs.LinuxResources, c *container) *specs.LinuxResources {
	r.Devices = nil
	var have *specs.LinuxResources
	if c.Spec.Linux != nil {
		have = c.Spec.Linux.Resources
	}
	if have == nil {
		return r
	}
	if r.Memory != nil && have.Memory != nil && r.Memory.Swap != nil && r.Memory.Limit == nil {
		r.Memory.Limit = have.Memory.Limit
	}
	if r.CPU != nil && have.CPU != nil {
		if r.CPU.Quota != nil && r.CPU.Period == nil {
			r.CPU.Period = have.CPU.Period
		}
		if r.CPU.Period != nil && r.CPU.Quota == nil {
			r.CPU.Quota = have.CPU.Quota
		}
	}
	return r
}

func readResources(file string, r *specs.LinuxResources) error {
	b, err := []byte(nil), error(nil)
	if file == "-" {
		b, err = io.ReadAll(io.LimitReader(os.Stdin, 16<<20))
	} else {
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, r); err != nil {
		return errdefs.Newf(errdefs.Invalid, "read", file, "%w", err)
	}
	return nil
}

// merge keeps the new limits in the record.
func (c *container) merge(r *specs.LinuxResources) error {
	if c.Spec.Linux == nil {
		return nil
	}
	if c.Spec.Linux.Resources == nil {
		c.Spec.Linux.Resources = &specs.LinuxResources{}
	}
	have := c.Spec.Linux.Resources
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	// Decoding onto what is there changes only what is named.
	if err := json.Unmarshal(b, have); err != nil {
		return err
	}
	c.Config, err = json.Marshal(c.Spec)
	return err
}
