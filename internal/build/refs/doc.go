// Package refs keeps the results of build steps, as BuildKit's solver wants
// them, on our own snapshots.
//
// # Model
//
// A ref is a handle on a node; a node is one file system: a snapshot on top of
// its parent's. A mutable node is being written (a step runs, a context
// arrives, a cache mount lies idle) and has at most one handle; Commit gives
// it an immutable twin. The twin shares the mutable's snapshot until Finalize,
// which commits the snapshot and ends the mutable. So a build context can be
// taken up again and only its changes be sent.
//
//	New ──▶ mutable ──Commit──▶ immutable (twin) ──Finalize──▶ immutable
//	           ▲                      │
//	           └──────GetMutable──────┘   (nobody holds the twin)
//
// A committed node is one image layer: its own directory, the digest of that
// directory as a tar (DiffID, computed when first asked for), and the blob it
// came from, where it came from one. A node made from a blob is lazy: the blob
// is fetched and unpacked when something mounts the node.
//
// Merge and Diff make no special nodes: the layers in question are stacked
// anew (Snapshots.Stack), which copies nothing.
//
// # On disk
//
// One record per node in the database, bucket "build-refs"; a snapshot
// "build-<id>" per node; larger metadata (the content hashes of a tree) in
// files ext/<id>/<key> under the root. Nothing is synced: what is lost in a
// power cut is a cache, and Open drops every node whose snapshot is gone.
//
// # Concurrency
//
// Lock order: node.work, then Store.mu. No file system work is done under
// Store.mu. node.work serialises Finalize, unpacking and digesting of a node.
//
// # Not here
//
// Which steps can be reused: that is the solver's cache of keys.
package refs
