package ociruntime

import (
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// CompileHost writes the program of a process of the host, as root and with
// everything root has: another runtime's command, in front of its container.
func CompileHost(args, env []string, terminal bool, group *cgroup.Group) (*initproc.Program, []*os.File, error) {
	p := &specs.Process{Args: args, Env: env, Terminal: terminal, Cwd: "/"}
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
