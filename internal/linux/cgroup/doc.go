// Package cgroup makes, limits, watches, kills and removes control groups.
//
// # Model
//
// A Group is one path in every hierarchy that matters: on a machine with
// control groups v2 that is one directory; on v1 it is one directory for each
// mounted controller; on a hybrid machine it is the v1 directories and one in
// the unified hierarchy, which gives cgroup.kill and lends the controllers
// that its owner has enabled there.
//
//	OCI resources ──plan──▶ []setting ──apply──▶ control group files
//
// What has to be written is decided by pure functions (plan) for each version;
// applying is a loop of writes.
//
// A path is "/onggi/web", from the root of the hierarchies; or "web", below
// the caller's own groups; or, with the systemd driver, "slice:prefix:name".
//
// # Guarantees
//
// A limit that cannot be set is an error that names the controller; nothing is
// dropped silently except what the kernel no longer has and no longer needs
// (kernel memory limits). Create leaves nothing behind when it does not
// succeed. Delete succeeds when the group is gone already. Every loop that
// waits for the kernel is bounded.
//
// # Concurrency
//
// A Group is immutable, and all methods may be called from any goroutine; the
// kernel orders concurrent writes.
//
// # Not here
//
// Mounting the hierarchies, and the view that a container gets of them
// (internal/ociruntime). D-Bus (the systemd sub-package). Device filters of v2
// are built by internal/linux/devicefilter.
package cgroup
