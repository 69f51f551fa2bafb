package linux

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// WithoutResource calls f without CAP_SYS_RESOURCE, whose owner no quota stops.
// An overlay that f mounts writes with the rights that f has.
func WithoutResource(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var had [2]unix.CapUserData
	if err := unix.Capget(&head, &had[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	less := had
	less[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(&head, &less[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	defer unix.Capset(&head, &had[0])
	return f()
}
