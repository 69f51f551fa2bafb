package linux

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// JoinNamespaces moves the calling thread, which must be locked and is to be
// thrown away, into namespaces of a process: "mnt", "net", "ipc", "uts".
func JoinNamespaces(pid int, kinds ...string) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	for _, k := range kinds {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, k))
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), 0)
		f.Close()
		if err != nil {
			return fmt.Errorf("join the %s namespace of process %d: %w", k, pid, err)
		}
	}
	return nil
}
