// Package build builds images: BuildKit's solver, control API and Dockerfile
// frontend on our snapshots, our runtime and our image store.
//
// # Model
//
//	buildx, docker, onggi-build ──gRPC over the API's socket──▶ Control
//	POST /build with a tar ──▶ Classic ──in memory──▶ Control
//	                     │
//	Control (BuildKit) ──▶ solver (BuildKit) ──▶ worker
//	                                              ├── refs      results as snapshots
//	                                              ├── executor  RUN, in our runtime
//	                                              └── exporter  snapshots become an image's layers
//
// A Service is cheap until it is used: BuildKit's parts are made by the first
// request that needs them.
//
// # On disk
//
// Under Root: cache.db (the solver's keys), history.db, blobs/ (manifests and
// compressed layers), ext/ and mounts/ (see package refs), and boot (the boot
// of the kernel that last used it). Nothing of it is synced: after an unclean
// boot the solver's keys, the history and the blobs are dropped, and refs whose
// snapshots are gone with them. It is a cache; what was built is in the image
// store, which is durable.
//
// # Guarantees
//
// A cancelled or failed build leaves no process, mount, network namespace or
// control group. Typed errors of BuildKit (where in the Dockerfile, which exit
// status) pass to clients whole.
//
// # Concurrency
//
// Every method may be called from many goroutines.
//
// # Not here
//
// HTTP: engineapi hands over connections and bodies. Registry access and the
// image store: package image.
package build
