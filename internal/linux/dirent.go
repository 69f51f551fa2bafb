package linux

import (
	"bytes"
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// appendEntries parses struct linux_dirent64: inode, offset, record length,
// type, name.
func appendEntries(out []Entry, b []byte) []Entry {
	const head = 19
	for len(b) >= head {
		reclen := int(binary.NativeEndian.Uint16(b[16:]))
		if reclen < head || reclen > len(b) {
			break
		}
		name := b[head:reclen]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if s := string(name); s != "." && s != ".." {
			out = append(out, Entry{s, uint32(b[18]) << 12})
		}
		b = b[reclen:]
	}
	return out
}

// futimens is utimensat without a path.
func futimens(fd int, ts *[2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
