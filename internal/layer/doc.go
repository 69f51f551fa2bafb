// Package layer turns tars into trees and trees into tars: the layers of
// images, and the archives that people copy in and out of containers.
//
// # Model
//
//	blob ─Decompress─▶ tar ─Apply──▶ directory for overlay (whiteouts are nodes)
//	                    ▲  ◀─Tar───
//	                    ├─Record/Assemble: the tar's exact bytes again
//	                    └─Extract/Archive: plain trees, a path in a root
//
// Apply makes the upper directory of one layer. Whiteouts of the OCI
// (".wh.name", ".wh..wh..opq") become what overlayfs understands: a character
// device 0:0, and trusted.overlay.opaque=y.
//
// # Guarantees
//
// Nothing outside the given root is read or changed, whatever is in the archive
// and whoever changes the tree meanwhile: paths are resolved in the root, by
// descriptor, and the last name of a path is never followed. Where an entry
// says how something is, it is made anew; it is never changed through a link.
// Names that lead out ("..") are errdefs.Invalid. Of extended attributes
// security.capability and user.* are kept, those of overlayfs and of security
// modules are not. Everything has a limit (Limits). No program is executed.
//
// Tar is deterministic: the same tree gives the same bytes.
//
// Apply does not sync: package snapshot makes many layers durable by one
// syncfs.
//
// # Concurrency
//
// Any number of calls may run, each on a tree of its own. A call works in the
// calling goroutine, and one or two that it waits for.
//
// # Not here
//
// Where trees are kept: package snapshot. Digests of blobs: package content
// and the registry's client.
package layer
