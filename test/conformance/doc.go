// Package conformance holds onggi-runtime to the OCI runtime specification and
// to runc's command line, by running containers with it.
//
// # Model
//
// Every test makes a bundle with busybox as its root, changes the usual
// configuration in one respect, and looks at the container from inside (what
// it prints) or outside (state, control groups, /proc).
//
// # The oracle
//
// ONGGI_ORACLE=runc runs the same tests with that program instead. What it
// does differently on purpose is skipped there, with the reason.
//
// # Not here
//
// What the runtime is made of: internal/ociruntime and internal/linux have
// tests of their own.
package conformance
