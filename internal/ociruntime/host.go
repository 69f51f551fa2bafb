package ociruntime

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// Installed is the path of another runtime's program, "" where there is none.
func Installed(name string) string {
	p, err := exec.LookPath(name)
	if err != nil {
		return ""
	}
	return p
}

// HostEnv is what another runtime gets of our environment.
var HostEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// RunHost runs a command of another runtime to its end, and returns what it said.
func RunHost(ctx context.Context, args []string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env, cmd.WaitDelay = HostEnv, time.Second
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// CompileHost writes the program of a process of the host, as root and with
// everything root has: another runtime's command, in front of its container. The
// files named in empty, each at the root of a file system, are empty to it alone.
func CompileHost(args []string, terminal bool, group *cgroup.Group, empty ...string) (*initproc.Program, []*os.File, error) {
	p := &specs.Process{Args: args, Env: HostEnv, Terminal: terminal, Cwd: "/"}
	c := &compiler{Builder: initproc.NewBuilder(), spec: &specs.Spec{Process: p, Linux: &specs.Linux{}}, proc: p, o: Options{Cgroup: group}}
	c.Step("begin")
	c.Call("umask", unix.SYS_UMASK, 0o022)
	c.Call("setsid", unix.SYS_SETSID).Ignore(unix.EPERM)
	if err := c.cgroups(); err != nil {
		return nil, nil, err
	}
	if terminal {
		c.Step("make the terminal")
		c.openTerminal(func(fl int) (initproc.Reg, initproc.Call) {
			r := c.NewReg()
			return r, c.Call("openat", unix.SYS_OPENAT, unix.AT_FDCWD, c.Str("/dev/ptmx"), fl|unix.O_CLOEXEC, 0).Into(r)
		})
	}
	for i, file := range empty {
		c.Step("hide %s", file)
		if i == 0 {
			c.Call("unshare", unix.SYS_UNSHARE, unix.CLONE_NEWNS)
		}
		c.Call("mount", unix.SYS_MOUNT, 0, c.Str(filepath.Dir(file)), 0, unix.MS_PRIVATE, 0)
		c.Call("mount", unix.SYS_MOUNT, c.Str("/dev/null"), c.Str(file), 0, unix.MS_BIND, 0)
	}
	c.Ready()
	c.Step("close what the program must not see")
	c.Call("close_range", unix.SYS_CLOSE_RANGE, 3, 0xffffffff, unix.CLOSE_RANGE_CLOEXEC)
	if err := c.exec(); err != nil {
		return nil, nil, err
	}
	prog, err := c.Program()
	if err != nil {
		return nil, nil, err
	}
	prog.Terminal = terminal
	return prog, c.files, nil
}
