package linux

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Device is a device node of the host.
type Device struct {
	Path         string
	Type         string // "c" or "b"
	Major, Minor int64
	Mode         os.FileMode // permission bits
	UID, GID     uint32
}

// StatDevice describes one node.
func StatDevice(path string) (Device, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Device{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	d := Device{
		Path: path, Major: int64(unix.Major(uint64(st.Rdev))), Minor: int64(unix.Minor(uint64(st.Rdev))),
		Mode: os.FileMode(st.Mode & 0o777), UID: st.Uid, GID: st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return Device{}, fmt.Errorf("%s is not a device node", path)
	}
	return d, nil
}

// DevicesAt describes a node, or all nodes in a directory.
func DevicesAt(path string) ([]Device, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		d, err := StatDevice(path)
		return []Device{d}, err
	}
	var out []Device
	err = filepath.WalkDir(path, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			if p == path {
				return err
			}
			return nil // a node that came or went meanwhile
		}
		if e.IsDir() {
			switch strings.TrimPrefix(p, "/dev/") {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				return fs.SkipDir
			}
			return nil
		}
		if e.Type()&os.ModeDevice == 0 {
			return nil
		}
		if d, err := StatDevice(p); err == nil {
			out = append(out, d)
		}
		return nil
	})
	return out, err
}
