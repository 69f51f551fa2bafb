package linux

import (
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// NewNetNS makes a network namespace. It lives as long as the descriptor, or a
// process in it; nothing is mounted.
//
// Preconditions: the caller is not in another namespace.
func NewNetNS() (ns *os.File, err error) {
	err = away(func() error { return os.NewSyscallError("unshare", unix.Unshare(unix.CLONE_NEWNET)) }, func() error {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

// InNetNS calls f on a thread in the network namespace.
func InNetNS(ns *os.File, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Setns(int(RawFD(ns)), unix.CLONE_NEWNET); err != nil {
			done <- os.NewSyscallError("setns", err)
			return
		}
		done <- f()
	}()
	err := <-done
	runtime.KeepAlive(ns)
	return err
}

// VisitNetNS calls f in the network namespace, on the caller's thread. It is for
// a few system calls: unlike InNetNS it costs no thread.
//
// Preconditions: the caller is not in another namespace.
func VisitNetNS(ns *os.File, f func() error) error {
	defer runtime.KeepAlive(ns)
	return away(func() error { return os.NewSyscallError("setns", unix.Setns(int(RawFD(ns)), unix.CLONE_NEWNET)) }, f)
}

// away goes to another namespace, calls f there, and comes back.
func away(gone, f func() error) error {
	runtime.LockOSThread()
	home, err := homeNetNS()
	if err == nil {
		err = gone()
	}
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f()
	if back := unix.Setns(int(RawFD(home)), unix.CLONE_NEWNET); back != nil {
		return os.NewSyscallError("setns", back) // still locked: the thread ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// homeNetNS is the namespace of whoever asks first. /proc/self would be the first
// thread's, which InNetNS may have left elsewhere.
var homeNetNS = sync.OnceValues(func() (*os.File, error) { return os.Open("/proc/thread-self/ns/net") })

// SetNetSysctl writes /proc/sys/net/… of the calling thread's namespace.
func SetNetSysctl(path, value string) error {
	return os.WriteFile("/proc/sys/net/"+path, []byte(value), 0)
}

// NetSysctl reads /proc/sys/net/… of the calling thread's namespace.
func NetSysctl(path string) (string, error) {
	data, err := os.ReadFile("/proc/sys/net/" + path)
	return strings.TrimSpace(string(data)), err
}

// OnDevice is the Control function of a net.ListenConfig whose sockets hear only
// what comes by a device.
func OnDevice(name string) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = os.NewSyscallError("setsockopt", unix.BindToDevice(int(fd), name)) }); cerr != nil {
			return cerr
		}
		return err
	}
}
