// Package linux is the one door to the kernel: system calls that Go's standard
// library does not have, as functions over owned descriptors.
//
// # Model
//
// One file for each topic: mounts and detached mount trees, paths resolved
// inside a root, processes by descriptor, packets that carry descriptors,
// terminals, pipes. Control groups, netlink, nftables and seccomp are packages
// of their own below this one.
//
// # Guarantees
//
// Every descriptor that is made is closed at exec. An error names the call, and
// wraps the errno. A path that an image, a container or a Dockerfile can
// influence is opened with OpenInRoot and then used by descriptor.
//
// Linux 5.14 is the oldest kernel that is meant: openat2, the mount API with
// mount_setattr and idmapped mounts, close_range, pidfds, CLONE_INTO_CGROUP.
// What is newer is probed where it is used, and has a fallback or an error that
// says so.
//
// # Concurrency
//
// Functions may be called from any goroutine, unless they change the calling
// thread, which they say. Nothing here starts a goroutine.
//
// # Not here
//
// Policy: what to mount, whom to signal, what a container is.
package linux
