// Package ociruntime turns an OCI configuration into a program for onggi-init.
//
// # Model
//
// Compile reads a runtime-spec document (version 1.3, Linux) and writes, step
// by step, what has to be done inside the new namespaces: join control groups
// and namespaces, mount, make devices, change the root, drop privileges, become
// the app. CompileExec does so for a further process in a running container.
// Neither does anything itself; package initproc does.
//
// The order of the set-up: control groups, namespaces, names, propagation, root,
// mounts, devices, terminal, [stage hooks], pivot_root, read-only root, masked
// and read-only paths, sysctls, limits, user, capabilities, seccomp, [ready],
// exec.
//
// # Guarantees
//
// Paths of the configuration that lie in the container are resolved inside its
// root by descriptor (openat2, RESOLVE_IN_ROOT), so that no link of an image
// leads out (CVE-2021-30465, CVE-2024-45310). /dev/null for masked paths is the
// host's, taken before the root is entered (CVE-2025-31133). Sysctls are
// written through a procfs of our own (CVE-2025-52881). The working directory is
// checked to lie inside (CVE-2024-21626).
//
// Linux 5.14 is needed: openat2, the mount API with mount_setattr, close_range,
// pidfds.
//
// # Not here
//
// Control groups (internal/linux/cgroup), seccomp's compiler
// (internal/linux/seccomp), the command line (cmd/onggi-runtime).
package ociruntime
