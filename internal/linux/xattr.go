package linux

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// procPath names an entry of a directory through our descriptor of the
// directory, for the calls that have no variant with one.
func procPath(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", RawFD(dir), name)
}

// XattrsAt reads all extended attributes of name itself. A file system without
// any has none.
func XattrsAt(dir *os.File, name string) (map[string]string, error) {
	p := procPath(dir, name)
	defer runtime.KeepAlive(dir)
	buf := make([]byte, 1024)
	n, err := unix.Llistxattr(p, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10)
		n, err = unix.Llistxattr(p, buf)
	}
	if errors.Is(err, unix.ENOTSUP) || n == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, &os.PathError{Op: "listxattr", Path: name, Err: err}
	}
	out := map[string]string{}
	for _, key := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		v, err := getXattr(p, key)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "getxattr " + key, Path: name, Err: err}
		}
		out[key] = v
	}
	return out, nil
}

func getXattr(p, key string) (string, error) {
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(p, key, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, 64<<10)
		n, err = unix.Lgetxattr(p, key, buf)
	}
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// SetXattrAt sets an attribute of name itself.
func SetXattrAt(dir *os.File, name, key, value string) error {
	err := unix.Lsetxattr(procPath(dir, name), key, []byte(value), 0)
	runtime.KeepAlive(dir)
	if err != nil {
		return &os.PathError{Op: "setxattr " + key, Path: name, Err: err}
	}
	return nil
}

// IsNotSupported reports whether the file system cannot do it.
func IsNotSupported(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}

// IsOpaque reports whether the directory f of an overlay's upper layer hides
// what lies below it.
func IsOpaque(f *os.File) bool {
	buf := make([]byte, 8)
	n, err := unix.Fgetxattr(int(RawFD(f)), "trusted.overlay.opaque", buf)
	runtime.KeepAlive(f)
	return err == nil && n == 1 && buf[0] == 'y'
}
