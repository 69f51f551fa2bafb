package monitor

import (
	"github.com/onggi/onggi/internal/linux"
)

// What is kept of a process by everybody who may have to save it.
const (
	keptPidFD  = iota
	keptStdin  // where its input is written
	keptStdout // where its output is read
	keptStderr
	keptConsole // its terminal's master
	keptBuffer  // what was read from the terminal and is not yet logged
	keptKinds
)

// keptFDs are descriptors by kind, -1 where there is none.
type keptFDs [keptKinds]int

func noFDs() keptFDs { return keptFDs{-1, -1, -1, -1, -1, -1} }

// list gives the descriptors there are and a mask of their kinds.
func (k *keptFDs) list() (mask uint64, fds []int) {
	for i, fd := range k {
		if fd >= 0 {
			mask |= 1 << i
			fds = append(fds, fd)
		}
	}
	return mask, fds
}

// keptOf is the opposite of list. It takes the descriptors over, and closes those
// that mask does not name.
func keptOf(mask uint64, fds []int) keptFDs {
	k := noFDs()
	for i := range k {
		if mask&(1<<i) != 0 && len(fds) > 0 {
			k[i], fds = fds[0], fds[1:]
		}
	}
	linux.CloseFDs(fds)
	return k
}

// trim closes the kinds in mask.
func (k *keptFDs) trim(mask uint64) {
	for i := range k {
		if mask&(1<<i) != 0 {
			linux.CloseFD(k[i])
			k[i] = -1
		}
	}
}

func (k *keptFDs) close() { k.trim(^uint64(0)) }
