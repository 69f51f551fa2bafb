// Package executor runs the steps of a build in our runtime, as children of
// the engine: a step's life ends with its build, so the monitor has no part
// in it.
//
// # Model
//
// A step is a root file system (a ref), mounts, and a process. The executor
// decides an OCI spec (specOf, pure), opens the root as a detached mount,
// makes a control group and a network, and has ociruntime's program run by
// onggi-init. Cancelling kills the whole control group. A gateway container
// (a frontend that runs as an image, a debugger's shell) is a step that others
// are executed in.
//
// # Guarantees
//
// When Run returns, no process of the step lives, its control group is gone,
// and nothing is mounted for it in the host's mount namespace. Mount points
// that were made for the step's mounts, and that are still empty, are removed
// from its result. Every path of an image is resolved inside the image, and
// then used by descriptor.
//
// # Not here
//
// Which mounts a RUN has, secrets and ssh: BuildKit's operations prepare them.
package executor
