package linux

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// An Overlay is a stack of directories to be mounted as one tree.
type Overlay struct {
	Dir      string   // directory that holds the others, for short names
	Lowers   []string // read-only directories, top first
	Upper    string   // what is written; "" = nothing is
	Work     string   // beside Upper, on the same file system
	Volatile bool     // never sync (Linux 5.10)
}

// overlayOptions are set whatever the kernel's defaults are: what is written
// must mean the same on any other machine and stack.
var overlayOptions = []string{"redirect_dir=off", "metacopy=off", "index=off", "xino=off"}

// forceLegacy is set by tests.
var forceLegacy atomic.Bool

// MountOverlay makes a detached overlay mount.
func MountOverlay(o Overlay) (*os.File, error) {
	if forceLegacy.Load() || !appendsLowers() {
		return mountOverlayLegacy(o)
	}
	return mountOverlay(o)
}

// appendsLowers reports whether overlay takes its lower directories one by one
// ("lowerdir+", Linux 6.8). Before Linux 6.5 any option at all is taken, and
// refused only when the file system is made.
var appendsLowers = sync.OnceValue(func() bool {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if unix.FsconfigSetFlag(fd, "onggi-no-such-option") == nil {
		return false
	}
	return unix.FsconfigSetString(fd, "lowerdir+", "/") == nil
})

// maxString is what fsconfig takes as one string (256 with the end).
const maxString = 255

func mountOverlay(o Overlay) (*os.File, error) {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("overlayfs: %w", err)
	}
	defer unix.Close(fd)
	dir, err := os.Open(o.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	name := func(p string) string {
		if len(p) <= maxString {
			return p
		}
		rel, err := filepath.Rel(o.Dir, p)
		if err != nil {
			return p
		}
		return fmt.Sprintf("/proc/self/fd/%d/%s", RawFD(dir), rel)
	}
	for _, l := range o.Lowers {
		if err := unix.FsconfigSetString(fd, "lowerdir+", name(l)); err != nil {
			return nil, fmt.Errorf("lower directory %s: %w%s", l, err, fsLog(fd))
		}
	}
	opts := append([]string{}, overlayOptions...)
	if o.Upper != "" {
		opts = append(opts, "upperdir="+name(o.Upper), "workdir="+name(o.Work))
	}
	for _, opt := range opts {
		k, v, _ := strings.Cut(opt, "=")
		if err := unix.FsconfigSetString(fd, k, v); err != nil {
			return nil, fmt.Errorf("option %s: %w%s", opt, err, fsLog(fd))
		}
	}
	if o.Volatile && o.Upper != "" {
		if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil {
			return nil, fmt.Errorf("option volatile: %w", err)
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return nil, fmt.Errorf("overlayfs: %w%s", err, fsLog(fd))
	}
	attr := 0
	if o.Upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	return os.NewFile(uintptr(m), "overlay"), nil
}

// mountOverlayLegacy mounts with mount(2) in a thread of its own, in a mount
// namespace of its own, and keeps a clone: older kernels take all directories as
// one string, of 4 KiB there, of 256 bytes in fsconfig.
func mountOverlayLegacy(o Overlay) (*os.File, error) {
	type result struct {
		f   *os.File
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		f, err := mountOverlayHere(o)
		done <- result{f, err}
	}()
	r := <-done
	return r.f, r.err
}

func mountOverlayHere(o Overlay) (*os.File, error) {
	if err := PrivateMounts(); err != nil {
		return nil, err
	}
	if err := unix.Chdir(o.Dir); err != nil {
		return nil, os.NewSyscallError("chdir", err)
	}
	name := func(p string) string {
		if rel, err := filepath.Rel(o.Dir, p); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
		return p
	}
	var lowers []string
	for _, l := range o.Lowers {
		lowers = append(lowers, name(l))
	}
	opts := append([]string{"lowerdir=" + strings.Join(lowers, ":")}, overlayOptions...)
	var flags uintptr
	if o.Upper != "" {
		opts = append(opts, "upperdir="+name(o.Upper), "workdir="+name(o.Work))
		if o.Volatile {
			opts = append(opts, "volatile")
		}
	} else {
		flags = unix.MS_RDONLY
	}
	data := strings.Join(opts, ",")
	if len(data) >= os.Getpagesize() {
		return nil, fmt.Errorf("%d layers are too many for one mount on this kernel (Linux 6.8 lifts the limit)", len(o.Lowers))
	}
	if len(o.Lowers) == 1 && o.Upper == "" {
		return CloneTree(nil, o.Lowers[0], false)
	}
	// Any directory will do as the place: nobody else sees this namespace.
	if err := unix.Mount("overlay", "/proc", "overlay", flags, data); err != nil {
		return nil, fmt.Errorf("overlayfs: %w", err)
	}
	return CloneTree(nil, "/proc", false)
}

// ForceLegacyOverlay makes MountOverlay do as on an older kernel, until the
// returned function is called. For tests.
func ForceLegacyOverlay() func() {
	old := forceLegacy.Swap(true)
	return func() { forceLegacy.Store(old) }
}
