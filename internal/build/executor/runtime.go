package executor

import (
	"context"
	"os"

	"github.com/onggi/onggi/internal/ociruntime"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// OCI starts steps by package ociruntime, as children of this process.
type OCI struct{}

var _ Runtime = OCI{}

// Start implements Runtime.
func (OCI) Start(_ context.Context, r StartRequest) (*Process, error) {
	prog, files, err := ociruntime.Compile(r.Spec, ociruntime.Options{
		RootFS: r.Root, NetNS: r.NetNS, Cgroup: r.Group, MountFDs: r.Mounts,
	})
	if err != nil {
		return nil, err
	}
	keep := []*os.File{r.Root, r.NetNS}
	for _, f := range r.Mounts {
		keep = append(keep, f)
	}
	return start(prog, files, keep, r)
}

// Exec implements Runtime.
func (OCI) Exec(_ context.Context, in *Process, r StartRequest) (*Process, error) {
	prog, files, err := ociruntime.CompileExec(r.Spec.Process, r.Spec, ociruntime.ExecOptions{PidFD: in.PidFD, Cgroup: r.Group})
	if err != nil {
		return nil, err
	}
	return start(prog, files, []*os.File{in.PidFD}, r)
}

// start runs a program until its app is executed. Files that are not to be
// kept were opened for the program.
func start(prog *initproc.Program, files, keep []*os.File, r StartRequest) (*Process, error) {
	defer func() {
	next:
		for _, f := range files {
			for _, k := range keep {
				if f == k {
					continue next
				}
			}
			f.Close()
		}
	}()
	p, err := initproc.Start(prog, files, initproc.Stdio{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr})
	if err != nil {
		return nil, err
	}
	if err := p.WaitReady(); err != nil {
		return nil, err
	}
	if r.Ready != nil {
		r.Ready()
	}
	if err := p.Release(); err != nil {
		return nil, err
	}
	if err := p.WaitExec(); err != nil {
		return nil, err
	}
	return &Process{PID: p.PID, PidFD: p.PidFD, Console: p.Console()}, nil
}
