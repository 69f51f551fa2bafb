package linux

import "golang.org/x/sys/unix"

// MaxOpenFiles is the hard limit of open files where this process cannot raise
// it for its children (without CAP_SYS_RESOURCE), and 0 where it can.
func MaxOpenFiles() uint64 {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	// Setting a limit to more than it is needs the capability; setting it to
	// what it is changes nothing.
	more := unix.Rlimit{Cur: l.Cur, Max: l.Max + 1}
	if l.Max == ^uint64(0) {
		return 0
	}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &more) == nil {
		unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
		return 0
	}
	return l.Max
}
