package monitor

import (
	"os"
	"syscall"

	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// launched is a process between its clone and its program: initproc.Process, or
// a test's.
type launched interface {
	WaitReady() error
	ids() (pid int, pidfd *os.File) // after WaitReady: a process that forks changes
	Console() *os.File
	Release() error
	WaitExec() error // after an error the process is gone
	Kill()           // instead of Release
}

// A launcher starts a program's set-up.
type launcher func(p *initproc.Program, files []*os.File, s initproc.Stdio) (launched, error)

type initProcess struct{ *initproc.Process }

func (p initProcess) ids() (int, *os.File) { return p.PID, p.PidFD }

// startInit is the launcher of production.
func startInit(p *initproc.Program, files []*os.File, s initproc.Stdio) (launched, error) {
	proc, err := initproc.Start(p, files, s)
	if err != nil {
		return nil, err
	}
	return initProcess{proc}, nil
}

func (e *enc) program(p *initproc.Program) {
	if p == nil {
		p = &initproc.Program{}
	}
	e.bytes(p.Code)
	e.u(p.Clone)
	e.maps(p.UIDMap)
	e.maps(p.GIDMap)
	e.strs(p.Steps)
	e.bool(p.Terminal)
	e.bool(p.Forks)
}

func (d *dec) program() *initproc.Program {
	// The code is copied: the packet's buffer is used again.
	return &initproc.Program{
		Code: append([]byte(nil), d.bytes()...), Clone: d.u(),
		UIDMap: d.maps(), GIDMap: d.maps(), Steps: d.strs(), Terminal: d.bool(), Forks: d.bool(),
	}
}

func (e *enc) stepError(err *initproc.StepError) {
	e.i(int64(err.Step))
	e.str(err.Name)
	e.u(uint64(err.Errno))
}

func (d *dec) stepError() error {
	return &initproc.StepError{Step: int(d.i()), Name: d.str(), Errno: syscall.Errno(d.u())}
}
