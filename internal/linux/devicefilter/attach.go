package devicefilter

import (
	"errors"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// name marks our programs among those of a group.
const name = "onggi_device"

// loaded are the programs the kernel has from us already. One program serves
// any number of groups, so that only the first container pays for the
// verifier. The rule lists in use are few; it is emptied when they are not.
var loaded struct {
	sync.Mutex
	fds map[string]int
}

const maxLoaded = 64

// Attach makes p the group's filter. dirfd is the group's directory, in a
// control group v2 file system.
func Attach(dirfd int, p *Program) error {
	loaded.Lock()
	defer loaded.Unlock()
	fd, ok := loaded.fds[string(p.code)]
	if !ok {
		var err error
		if fd, err = load(p); err != nil {
			return explain("load", err)
		}
		if loaded.fds == nil || len(loaded.fds) >= maxLoaded {
			for _, old := range loaded.fds {
				unix.Close(old)
			}
			loaded.fds = map[string]int{}
		}
		loaded.fds[string(p.code)] = fd
	}
	old, err := ours(dirfd)
	if err != nil && err != unix.EINVAL {
		return explain("query", err)
	}
	if old >= 0 {
		defer unix.Close(old)
		err = attach(dirfd, fd, unix.BPF_F_ALLOW_MULTI|unix.BPF_F_REPLACE, old)
		if err == unix.EINVAL { // a kernel before 5.6 cannot replace
			if err = attach(dirfd, fd, unix.BPF_F_ALLOW_MULTI, 0); err == nil {
				err = detach(dirfd, old)
			}
		}
		if err == unix.EEXIST {
			err = nil // the same program is there already
		}
	} else {
		err = attach(dirfd, fd, unix.BPF_F_ALLOW_MULTI, 0)
	}
	if err != nil {
		return explain("attach", err)
	}
	return nil
}

func explain(op string, err error) error {
	kind := errdefs.Internal
	hint := ""
	switch {
	case errors.Is(err, unix.EPERM):
		kind, hint = errdefs.Forbidden, "device filters need CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN"
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL):
		kind, hint = errdefs.Unsupported, "the kernel needs CONFIG_CGROUP_BPF"
	}
	return errdefs.WithHint(errdefs.New(kind, op, "device filter", err), hint)
}

// The parts of union bpf_attr that are used here.
type (
	loadAttr struct {
		progType, insnCnt      uint32
		insns, license         uint64
		logLevel, logSize      uint32
		logBuf                 uint64
		kernVersion, progFlags uint32
		progName               [16]byte
		_                      [8]byte
	}
	attachAttr struct {
		targetFD, attachBPFFD, attachType, attachFlags, replaceFD uint32
	}
	queryAttr struct {
		targetFD, attachType, queryFlags, attachFlags uint32
		progIDs                                       uint64
		progCnt                                       uint32
		_                                             uint32
	}
	idAttr   struct{ id, next, flags uint32 }
	infoAttr struct {
		fd, size uint32
		info     uint64
	}
	// progInfo is the start of struct bpf_prog_info, up to the name.
	progInfo struct {
		progType, id            uint32
		tag                     [8]byte
		jitedLen, xlatedLen     uint32
		jited, xlated, loadTime uint64
		createdByUID, nrMapIDs  uint32
		mapIDs                  uint64
		name                    [16]byte
	}
)

func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		n, _, e := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		if e == 0 {
			return int(n), nil
		}
		if e != unix.EINTR && e != unix.EAGAIN {
			return -1, e
		}
	}
}

func load(p *Program) (int, error) {
	license := new([8]byte)
	copy(license[:], "Apache2")
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(license)
	pin.Pin(unsafe.SliceData(p.code))
	a := loadAttr{
		progType: unix.BPF_PROG_TYPE_CGROUP_DEVICE,
		insnCnt:  uint32(p.Len()),
		insns:    uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p.code)))),
		license:  uint64(uintptr(unsafe.Pointer(&license[0]))),
	}
	copy(a.progName[:15], name)
	fd, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&a), unsafe.Sizeof(a))
	return fd, err // descriptors of bpf(2) are always close-on-exec
}

func attach(dirfd, prog int, flags uint32, replace int) error {
	a := attachAttr{uint32(dirfd), uint32(prog), unix.BPF_CGROUP_DEVICE, flags, uint32(replace)}
	_, err := bpf(unix.BPF_PROG_ATTACH, unsafe.Pointer(&a), unsafe.Sizeof(a))
	return err
}

func detach(dirfd, prog int) error {
	a := attachAttr{targetFD: uint32(dirfd), attachBPFFD: uint32(prog), attachType: unix.BPF_CGROUP_DEVICE}
	_, err := bpf(unix.BPF_PROG_DETACH, unsafe.Pointer(&a), unsafe.Sizeof(a))
	return err
}

// ours returns a descriptor of our program on the group, -1 if there is none.
func ours(dirfd int) (int, error) {
	// What the kernel is given the address of as a number must not move.
	var pin runtime.Pinner
	defer pin.Unpin()
	ids, info := new([64]uint32), new(progInfo)
	pin.Pin(ids)
	pin.Pin(info)
	q := queryAttr{targetFD: uint32(dirfd), attachType: unix.BPF_CGROUP_DEVICE,
		progIDs: uint64(uintptr(unsafe.Pointer(&ids[0]))), progCnt: uint32(len(ids))}
	_, err := bpf(unix.BPF_PROG_QUERY, unsafe.Pointer(&q), unsafe.Sizeof(q))
	if err != nil {
		return -1, err
	}
	for _, id := range ids[:min(int(q.progCnt), len(ids))] {
		a := idAttr{id: id}
		fd, err := bpf(unix.BPF_PROG_GET_FD_BY_ID, unsafe.Pointer(&a), unsafe.Sizeof(a))
		if err != nil {
			continue // it is being removed
		}
		i := infoAttr{fd: uint32(fd), size: uint32(unsafe.Sizeof(*info)), info: uint64(uintptr(unsafe.Pointer(info)))}
		_, err = bpf(unix.BPF_OBJ_GET_INFO_BY_FD, unsafe.Pointer(&i), unsafe.Sizeof(i))
		if err == nil && unix.ByteSliceToString(info.name[:]) == name {
			return fd, nil
		}
		unix.Close(fd)
	}
	return -1, nil
}
