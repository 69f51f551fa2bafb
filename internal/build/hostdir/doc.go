// Package hostdir is the source of a build's local files where client and
// engine share a machine: the client hands over a descriptor of its directory,
// and the engine reads the files itself.
//
// # Model
//
//	client ──SCM_RIGHTS──▶ Dirs (session, name → directory)
//	                         │
//	          Source ── walks by descriptor, with the patterns of .dockerignore;
//	             │      from the moment it is given, if the last build tells what for
//	             │
//	          index: path → (inode, times, size, mode) and digest
//	             │ what differs
//	          a kept ref: copied and hashed in one pass
//	             │ COPY
//	          a layer: moved
//
// The ref and BuildKit's content hashes are those of the session's file sync,
// so a build over one way finds the cache of a build over the other. Where a
// session has handed over nothing, BuildKit's own source does the work.
//
// # Guarantees
//
// A descriptor proves that the client could open the directory; no path is
// taken from it. No link is followed, so nothing outside of the directory is
// ever read. A digest is of the bytes that were stored: a file is hashed while
// it is copied, and is used from the copy only. A file that was changed in the
// two seconds before it was read is read again by the next build, since its
// times could not tell a further change.
//
// A plain COPY moves files out of the kept ref into its layer (Kept). They are
// fetched back, and compared with their digest, before anybody looks at the
// ref's directory.
package hostdir
