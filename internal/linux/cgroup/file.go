package cgroup

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// Control group files are read and written by plain system calls: os.File
// would add a stat and a poller registration to each, and the start path has
// a dozen of them.

func writeFile(path, value string) error {
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = retry(func() (int, error) { return unix.Write(fd, []byte(value)) })
	return err
}

func readFile(path string) (string, error) {
	fd, err := retry(func() (int, error) { return unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0) })
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var out []byte
	buf := make([]byte, 4096)
	for {
		n, err := retry(func() (int, error) { return unix.Read(fd, buf) })
		if err != nil {
			return "", err
		}
		if n == 0 {
			return string(out), nil
		}
		out = append(out, buf[:n]...)
		if len(out) > 16<<20 {
			return "", unix.EFBIG
		}
	}
}

// readWord is readFile without the newline.
func readWord(path string) (string, error) {
	s, err := readFile(path)
	return strings.TrimSpace(s), err
}

// readUint reads one number; "max" is the largest.
func readUint(path string) (uint64, error) {
	s, err := readWord(path)
	if err != nil {
		return 0, err
	}
	return parseUint(s)
}

func parseUint(s string) (uint64, error) {
	if s == "max" {
		return ^uint64(0), nil
	}
	// A v1 counter may go below zero by races of the kernel's own batching.
	if strings.HasPrefix(s, "-") {
		if _, err := strconv.ParseInt(s, 10, 64); err != nil {
			return 0, err
		}
		return 0, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

func exists(path string) bool { return unix.Access(path, unix.F_OK) == nil }

func retry(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// kindOf maps what the kernel said of a control group file to a kind.
func kindOf(err error) errdefs.Kind {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EOPNOTSUPP):
		return errdefs.Unsupported
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return errdefs.Forbidden
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE):
		return errdefs.Invalid
	case errors.Is(err, unix.EBUSY):
		return errdefs.Conflict
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EAGAIN):
		return errdefs.Exhausted
	}
	return errdefs.Internal
}
