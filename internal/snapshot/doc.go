// Package snapshot keeps the root file systems of images and containers as
// directories that overlayfs puts together.
//
// # Model
//
//	Prepare("c1", "app") ─▶ active c1 ──Commit("v2","c1")──▶ committed v2
//	                          │ lies on
//	                          ▼
//	   committed "app" ──▶ committed "debian" ──▶ nothing
//
// A snapshot has a name. Behind a committed name is a layer: a directory that
// never changes, and the layer it lies on. A layer may have several names
// (Alias), and a directory may be in several layers (Stack). A layer lives as
// long as it has a name, and its last name cannot be removed while something
// lies on it. An active snapshot has a directory to write to; a view has none.
//
// # On disk
//
//	<dir>/d/<n>     the directories; their names are short, since the kernel
//	<dir>/d/w<n>    takes few bytes of them. w: overlayfs's work directory
//	<dir>/trash/    directories on their way out
//
// Names and layers are records in metadb (buckets "snapshot" and
// "snapshot-layer").
//
// # Guarantees
//
// Every operation happens entirely or not at all, whenever the process is
// killed. Remove is quick: directories are deleted in the background, those of
// layers after a move to the trash.
//
// A committed layer is durable after Sync, and without it soon after Commit: a
// syncfs in the background covers all layers committed until then; few large
// files are synced by themselves. After an unclean boot (another boot id, and no
// clean Close) layers that were not yet durable are dropped, with what lies on
// them; an active snapshot on one is kept, and works again once a snapshot of its
// parent's name is there.
//
// MountFD gives a mount that is attached nowhere, and so is gone with its last
// descriptor. It works with hundreds of layers.
//
// # Concurrency
//
// Every method may be called from many goroutines. Store.mu is held for work in
// memory and for metadb's Update (order: Store.mu → metadb's locks), not for
// work on directories.
//
// # Not here
//
// What is in the directories: package layer. Which snapshots an image or
// container needs: those packages' records.
package snapshot
