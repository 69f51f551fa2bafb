package initproc

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

//go:embed onggi-init-amd64
var initAMD64 []byte

// Stdio is what the app gets as standard streams; nil is /dev/null. A program
// with a terminal ignores it.
type Stdio struct{ Stdin, Stdout, Stderr *os.File }

// A StepError is a step of the set-up that did not work.
type StepError struct {
	Step  int    // number of the step; -1 = the process could not be started
	Name  string // what it was doing
	Errno syscall.Errno
}

func (e *StepError) Error() string { return e.Name + ": " + e.Errno.Error() }
func (e *StepError) Unwrap() error { return e.Errno }

// ExecStep begins the name of the step that becomes the app.
const ExecStep = "exec "

// IsExec reports whether the app itself could not be executed.
func (e *StepError) IsExec() bool {
	return len(e.Name) >= len(ExecStep) && e.Name[:len(ExecStep)] == ExecStep
}

// ExitCode is what a shell would say: 127 for a missing program, 126 for one
// that cannot be run, 125 for a set-up that did not work.
func (e *StepError) ExitCode() int {
	switch {
	case !e.IsExec():
		return 125
	case e.Errno == syscall.ENOENT || e.Errno == syscall.ENOTDIR:
		return 127
	}
	return 126
}

var sealed struct {
	sync.Mutex
	f *os.File
}

// WriteInit writes onggi-init to a new file, for a container that another runtime
// makes: "onggi-init -- APP ARG..." reaps in front of APP.
func WriteInit(file string) error {
	image, err := embedded()
	if err != nil {
		return err
	}
	return os.WriteFile(file, image, 0o755)
}

func embedded() ([]byte, error) {
	if runtime.GOARCH != "amd64" {
		return nil, fmt.Errorf("onggi-init is not built for %s yet", runtime.GOARCH)
	}
	return initAMD64, nil
}

// Binary is onggi-init in a sealed file in memory, made once.
func Binary() (*os.File, error) {
	sealed.Lock()
	defer sealed.Unlock()
	if sealed.f != nil {
		return sealed.f, nil
	}
	image, err := embedded()
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("onggi-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("onggi-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), "onggi-init")
	if _, err := f.Write(image); err != nil {
		f.Close()
		return nil, err
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, os.NewSyscallError("seal onggi-init", err)
	}
	sealed.f = f
	return f, nil
}

// A Process is onggi-init, and later the app.
type Process struct {
	PID     int
	PidFD   *os.File
	Stages  func(stage int) error // called for each stage, when set, before the process goes on
	steps   []string
	sock    *os.File
	console *os.File
	seccomp *os.File
	forks   bool
	first   int // pid of the process that forks
	ready   bool
	foreign bool // not a child
}

// Start clones and execs onggi-init. files become the program's files. The
// caller keeps its descriptors, and reaps the process.
func Start(p *Program, files []*os.File, s Stdio) (proc *Process, err error) {
	bin, err := Binary()
	if err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	ours := os.NewFile(uintptr(pair[0]), "onggi-init socket")
	defer unix.Close(pair[1])
	defer func() {
		if err != nil {
			ours.Close()
		}
	}()
	code, err := codeFile(p.Code)
	if err != nil {
		return nil, err
	}
	defer unix.Close(code)
	null := -1
	stdio := [3]uintptr{}
	for i, f := range []*os.File{s.Stdin, s.Stdout, s.Stderr} {
		if f != nil && !p.Terminal {
			stdio[i] = rawFD(f)
			continue
		}
		if null < 0 {
			if null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
				return nil, os.NewSyscallError("open /dev/null", err)
			}
			defer unix.Close(null)
		}
		stdio[i] = uintptr(null)
	}
	fds := append([]uintptr{}, stdio[:]...)
	fds = append(fds, uintptr(pair[1]), uintptr(code))
	for _, f := range files {
		fds = append(fds, rawFD(f))
	}
	pidfd := -1
	attr := &syscall.ProcAttr{Files: fds, Sys: &syscall.SysProcAttr{Cloneflags: uintptr(p.Clone), PidFD: &pidfd}}
	if len(p.UIDMap) > 0 {
		attr.Sys.UidMappings, attr.Sys.GidMappings = idMaps(p.UIDMap), idMaps(p.GIDMap)
		attr.Sys.GidMappingsEnableSetgroups = true
		// A user without a place in the map would lose all rights by the exec.
		attr.Sys.Credential = &syscall.Credential{Uid: p.UIDMap[0].Container, Gid: p.GIDMap[0].Container}
		for _, m := range p.UIDMap {
			if m.Container == 0 {
				attr.Sys.Credential.Uid = 0
			}
		}
		for _, m := range p.GIDMap {
			if m.Container == 0 {
				attr.Sys.Credential.Gid = 0
			}
		}
	}
	if i, ok := p.cgroupFile(); ok && i < len(files) {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(rawFD(files[i]))
	}
	// The binary is one more descriptor of the child, since its own number may be
	// taken there. (A high number for it would not do: growing the table of
	// descriptors of a process with threads waits for RCU, ten milliseconds.)
	path := fmt.Sprintf("/proc/self/fd/%d", len(fds))
	attr.Files = append(fds, rawFD(bin))
	pid, err := syscall.ForkExec(path, []string{"onggi-init"}, attr)
	runtime.KeepAlive(files)
	runtime.KeepAlive(s)
	if err != nil {
		errno, _ := errors.AsType[syscall.Errno](err)
		return nil, &StepError{Step: -1, Name: "create the namespaces", Errno: errno}
	}
	proc = &Process{PID: pid, first: pid, steps: p.Steps, sock: ours, forks: p.Forks}
	if pidfd < 0 {
		if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
			proc.abandon()
			return nil, os.NewSyscallError("pidfd_open", err)
		}
	}
	proc.PidFD = os.NewFile(uintptr(pidfd), "pidfd")
	return proc, nil
}

func codeFile(code []byte) (int, error) {
	fd, err := unix.MemfdCreate("onggi-program", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.MemfdCreate("onggi-program", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	for len(code) > 0 {
		n, err := unix.Write(fd, code)
		if err != nil {
			unix.Close(fd)
			return -1, os.NewSyscallError("write the program", err)
		}
		code = code[n:]
	}
	return fd, nil
}

func idMaps(maps []IDMap) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, m := range maps {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.Container), HostID: int(m.Host), Size: int(m.Size)})
	}
	return out
}

// rawFD does not change the blocking mode, as File.Fd does.
func rawFD(f *os.File) uintptr {
	c, err := f.SyscallConn()
	if err != nil {
		return f.Fd()
	}
	var out uintptr
	c.Control(func(fd uintptr) { out = fd })
	return out
}

type message struct {
	kind, step uint32
	value      int64
}

// receive reads one message; ok is false at the end of the stream, which the
// exec of the app brings.
func (p *Process) receive() (m message, ok bool, err error) {
	var buf [16]byte
	oob := make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	for {
		n, oobn, _, _, err = unix.Recvmsg(int(rawFD(p.sock)), buf[:], oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if errors.Is(err, unix.ECONNRESET) {
		n, err = 0, nil
	}
	if err != nil {
		return m, false, os.NewSyscallError("recvmsg", err)
	}
	if n < 16 {
		return m, false, nil
	}
	m = message{binary.LittleEndian.Uint32(buf[:]), binary.LittleEndian.Uint32(buf[4:]), int64(binary.LittleEndian.Uint64(buf[8:]))}
	if m.kind == msgFD && oobn > 0 {
		if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(msgs) > 0 {
			if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) > 0 {
				p.keep(os.NewFile(uintptr(fds[0]), "sent"), m.value)
			}
		}
	}
	return m, true, nil
}

// keep takes a descriptor that the process has sent.
func (p *Process) keep(f *os.File, what int64) {
	to := &p.console
	if what == fdSeccomp {
		to = &p.seccomp
	}
	if *to != nil {
		(*to).Close()
	}
	*to = f
}

// next handles messages until one that the caller waits for. A process that
// forks and its child write at the same time: that the child is ready may be
// heard before who it is.
func (p *Process) next() (m message, ok bool, err error) {
	early := false
	for {
		if early {
			if err := p.awaitPID(); err != nil {
				return m, true, err
			}
		}
		m, ok, err = p.receive()
		if err != nil || !ok {
			return m, ok, err
		}
		switch m.kind {
		case msgError:
			e := &StepError{Step: int(m.step), Name: "set up the container", Errno: syscall.Errno(m.value)}
			if int(m.step) < len(p.steps) {
				e.Name = p.steps[m.step]
			}
			return m, true, e
		case msgPID:
			if err := p.adopt(int(m.value)); err != nil {
				return m, true, err
			}
			if early {
				return message{kind: msgReady}, true, nil
			}
		case msgReady:
			if !p.forks || p.PID != p.first {
				return m, true, nil
			}
			early = true
		case msgStage:
			if p.Stages != nil {
				if err := p.Stages(int(m.value)); err != nil {
					return m, true, err
				}
			}
			if err := p.goOn(); err != nil {
				return m, true, err
			}
		case msgFD:
		default:
			return m, true, nil
		}
	}
}

// awaitPID returns when there is a message to read, or with an error when the
// process that forks has ended without one.
func (p *Process) awaitPID() error {
	fds := []unix.PollFd{{Fd: int32(rawFD(p.sock)), Events: unix.POLLIN}, {Fd: int32(rawFD(p.PidFD)), Events: unix.POLLIN}}
	for timeout := -1; ; timeout = 0 {
		n, err := unix.Poll(fds, timeout)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return os.NewSyscallError("poll", err)
		case fds[0].Revents != 0:
			return nil
		case n == 0 || timeout == 0:
			return errors.New("onggi-init was killed while it forked")
		}
	}
}

// adopt takes over the process that the first one forked, and reaps the first.
func (p *Process) adopt(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	p.PidFD.Close()
	p.PID, p.PidFD = pid, os.NewFile(uintptr(fd), "pidfd")
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(p.first, &ws, 0, nil); err != unix.EINTR {
			return nil
		}
	}
}

// WaitReady returns when the set-up is done. After an error the process is gone
// and reaped.
func (p *Process) WaitReady() error {
	if p.ready {
		return nil
	}
	m, ok, err := p.next()
	switch {
	case err != nil:
	case !ok:
		err = errors.New("onggi-init ended during the set-up; it may have been killed for want of memory (is the memory limit too low?)")
	case m.kind != msgReady:
		err = fmt.Errorf("onggi-init sent message %d during the set-up", m.kind)
	default:
		p.ready = true
		return nil
	}
	p.abandon()
	return err
}

// Console is the master of the terminal, where the program has made one.
func (p *Process) Console() *os.File { return p.console }

// Seccomp is the listener of a filter that notifies, after WaitExec.
func (p *Process) Seccomp() *os.File { return p.seccomp }

// Release lets the process exec the app.
func (p *Process) Release() error { return p.goOn() }

func (p *Process) goOn() error {
	_, err := p.sock.Write([]byte{1})
	return err
}

// WaitExec returns nil once the app runs.
func (p *Process) WaitExec() error {
	m, ok, err := p.next()
	switch {
	case err != nil:
		p.abandon()
		return err
	case ok:
		p.abandon()
		return fmt.Errorf("onggi-init sent message %d instead of becoming the app", m.kind)
	}
	return p.sock.Close()
}

// abandon kills and reaps what was started.
func (p *Process) abandon() {
	if p.foreign {
		p.sock.Close()
		return
	}
	if p.PidFD != nil {
		unix.PidfdSendSignal(int(rawFD(p.PidFD)), unix.SIGKILL, nil, 0)
	}
	pids := []int{p.PID}
	if p.first != p.PID {
		pids = append(pids, p.first)
	}
	for _, pid := range pids {
		unix.Kill(pid, unix.SIGKILL)
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
				break
			}
		}
	}
	p.sock.Close()
	if p.PidFD != nil {
		p.PidFD.Close()
	}
	if p.console != nil {
		p.console.Close()
	}
}

// Resume is the other end of ReadyFor: the launcher of a process that another
// program made. It cannot reap the process. WaitExec runs the stage and returns
// once the app runs.
func Resume(sock *os.File, steps []string) *Process {
	return &Process{sock: sock, steps: steps, ready: true, foreign: true}
}

// Leave lets go of a process that waits for another launcher.
func (p *Process) Leave() { p.sock.Close() }

// Kill ends a process that was not released.
func (p *Process) Kill() { p.abandon() }

// Handover gives up the socket of a process that waits to be released, so that
// another process can release it: by writing one byte to it.
func (p *Process) Handover() *os.File { return p.sock }

// errnoName is the constant's name.
func errnoName(e syscall.Errno) string {
	if n := unix.ErrnoName(e); n != "" {
		return n
	}
	return fmt.Sprint(int(e))
}
