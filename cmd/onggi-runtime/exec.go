package main

import (
	"encoding/json"
	"flag"
	"os"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/ociruntime"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// execution is the options of exec.
type execution struct {
	console, cwd, user, process, pidFile, label, apparmor, sub *string
	env, groups, caps                                          *list
	tty, detach, noNewPrivs, ignorePaused                      *bool
	preserve                                                   *int
}

func execFlags(fs *flag.FlagSet) func(*global, []string) error {
	o := execution{
		console: text(fs, "console-socket"), cwd: text(fs, "cwd"), user: text(fs, "user", "u"), process: text(fs, "process", "p"),
		pidFile: text(fs, "pid-file"), label: text(fs, "process-label"), apparmor: text(fs, "apparmor"), sub: text(fs, "cgroup"),
		env: texts(fs, "env", "e"), groups: texts(fs, "additional-gids", "g"), caps: texts(fs, "cap", "c"),
		tty: both(fs.BoolVar, "tty", "t"), detach: both(fs.BoolVar, "detach", "d"),
		noNewPrivs: fs.Bool("no-new-privs", false, ""), ignorePaused: fs.Bool("ignore-paused", false, ""), preserve: fs.Int("preserve-fds", 0, ""),
	}
	fs.Bool("no-subreaper", false, "")
	return func(g *global, args []string) error {
		code, err := g.exec(args, o)
		if err != nil {
			// runc ends with 255, which callers tell from the command's own status.
			g.fail(err)
			return exitStatus(255)
		}
		return exitStatus(code)
	}
}

func (g *global) exec(args []string, o execution) (int, error) {
	c, err := g.load(args[0])
	if err != nil {
		return 0, err
	}
	switch st := c.status(); st {
	case specs.StateStopped:
		return 0, errdefs.Newf(errdefs.Conflict, "", "", "cannot exec in a stopped container")
	case "paused":
		if !*o.ignorePaused {
			return 0, errdefs.Newf(errdefs.Conflict, "", "", "cannot exec in a paused container (use --ignore-paused to override)")
		}
	}
	p, err := o.make(c.Spec.Process, args[1:])
	if err != nil {
		return 0, err
	}
	if err := checkConsole(p, *o.console, *o.detach); err != nil {
		return 0, err
	}
	pidfd, err := c.pidfd()
	if err != nil {
		return 0, err
	}
	defer pidfd.Close()
	group, err := c.execGroup(*o.sub)
	if err != nil {
		return 0, err
	}
	preserve, err := preserved(*o.preserve)
	if err != nil {
		return 0, err
	}
	prog, files, err := ociruntime.CompileExec(p, c.Spec, ociruntime.ExecOptions{PidFD: pidfd, InitPID: c.PID, Cgroup: group, Preserve: preserve, Warn: g.warn})
	if err != nil {
		return 0, err
	}
	defer closeFiles(files)
	proc, err := initproc.Start(prog, files, stdio(prog.Terminal))
	if err != nil {
		return 0, err
	}
	if err := proc.WaitReady(); err != nil {
		return 0, err
	}
	return g.finishExec(proc, o)
}

// finishExec runs what was set up, and waits for it unless it is detached.
func (g *global) finishExec(proc *initproc.Process, o execution) (int, error) {
	err := g.handConsole(proc, *o.console)
	if err == nil && *o.pidFile != "" {
		err = writePID(*o.pidFile, proc.PID)
	}
	if err != nil {
		proc.Kill()
		return 0, err
	}
	var f *foreground
	if !*o.detach {
		f = listen()
		defer f.close()
		f.attach(proc)
	}
	if err := proc.Release(); err != nil {
		proc.Kill()
		return 0, err
	}
	if err := proc.WaitExec(); err != nil {
		return 0, err
	}
	if *o.detach {
		return 0, nil
	}
	return f.wait(proc.PID), nil
}

// execGroup is the group that a further process joins: the container's, or one
// below it, given as "name" or "controller:name".
func (c *container) execGroup(sub string) (*cgroup.Group, error) {
	if len(c.Cgroups) == 0 {
		return nil, nil
	}
	if sub == "" {
		g, err := c.group()
		if err != nil {
			return nil, err
		}
		if g.Mode() == cgroup.V2 {
			// A container may have moved its processes below its own group, which
			// can hold none then.
			if own, err := cgroup.OfProcess(c.PID); err == nil {
				return own, nil
			}
		}
		return g, nil
	}
	controller, name, found := strings.Cut(sub, ":")
	if !found {
		controller, name = "", sub
	}
	paths := map[string]string{}
	for k, p := range c.Cgroups {
		if controller == "" || strings.Contains(","+controller+",", ","+k+",") {
			p += "/" + strings.Trim(name, "/")
			if strings.Contains(p, "/../") || strings.HasSuffix(p, "/..") {
				return nil, errdefs.Newf(errdefs.Invalid, "", "", "--cgroup %q leads out of the container's group", sub)
			}
		}
		paths[k] = p
	}
	return cgroup.OpenPaths(paths, cgroup.Options{})
}

// make builds the process: from a file, or as a variation of the container's.
func (o *execution) make(of *specs.Process, args []string) (*specs.Process, error) {
	if *o.process != "" {
		b, err := os.ReadFile(*o.process)
		if err != nil {
			return nil, err
		}
		p := &specs.Process{}
		if err := json.Unmarshal(b, p); err != nil {
			return nil, errdefs.Newf(errdefs.Invalid, "read", *o.process, "%w", err)
		}
		return p, nil
	}
	if len(args) == 0 {
		return nil, errdefs.Newf(errdefs.Invalid, "", "", "exec: a command, or --process, is needed")
	}
	p := *of
	p.Args, p.Terminal = args, *o.tty
	if *o.cwd != "" {
		p.Cwd = *o.cwd
	}
	if *o.label != "" {
		p.SelinuxLabel = *o.label
	}
	if *o.apparmor != "" {
		p.ApparmorProfile = *o.apparmor
	}
	p.NoNewPrivileges = p.NoNewPrivileges || *o.noNewPrivs
	p.Env = append(append([]string{}, p.Env...), *o.env...)
	if len(*o.caps) > 0 {
		p.Capabilities = withCaps(p.Capabilities, *o.caps)
	}
	if err := setUser(&p, *o.user, *o.groups); err != nil {
		return nil, err
	}
	return &p, nil
}

// withCaps adds capabilities as runc does: not to the ambient set, so that they
// are not handed to what the command starts as another user.
func withCaps(c *specs.LinuxCapabilities, add []string) *specs.LinuxCapabilities {
	n := specs.LinuxCapabilities{}
	if c != nil {
		n = *c
	}
	for _, set := range []*[]string{&n.Bounding, &n.Effective, &n.Permitted} {
		*set = append(append([]string{}, *set...), add...)
	}
	return &n
}

// setUser reads "uid[:gid]": numbers alone, never names (CVE-2024-40635).
func setUser(p *specs.Process, user string, groups []string) error {
	if user != "" {
		u, g, hasGroup := strings.Cut(user, ":")
		uid, err := strconv.ParseUint(u, 10, 31)
		if err != nil {
			return errdefs.Newf(errdefs.Invalid, "", "", "--user %q: want UID or UID:GID", user)
		}
		p.User.UID = uint32(uid)
		if hasGroup {
			gid, err := strconv.ParseUint(g, 10, 31)
			if err != nil {
				return errdefs.Newf(errdefs.Invalid, "", "", "--user %q: want UID or UID:GID", user)
			}
			p.User.GID = uint32(gid)
		}
	}
	for _, s := range groups {
		gid, err := strconv.ParseUint(s, 10, 31)
		if err != nil {
			return errdefs.Newf(errdefs.Invalid, "", "", "--additional-gids %q is not a number", s)
		}
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(gid))
	}
	return nil
}
