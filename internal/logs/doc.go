// Package logs writes what a container prints to disk, and reads it back.
//
// # Model
//
// A log is a file of entries and its older generations: path, path.1, path.2 …
// (or path.1.gz). An entry is a line of one stream with the time it arrived, or
// a piece of MaxLine bytes of a longer line. Two drivers store entries: "json-file"
// byte for byte as Docker does, and "local", the same under another name; "none"
// stores nothing.
//
// A Writer is fed from the head of a stream: Cut tells how many bytes form whole
// entries, Write appends those. Nothing is held back in memory, so that the
// bytes that are not yet entries can stay where they came from, in a pipe.
//
// # Guarantees
//
// One Write is one write(2) at a known offset, so it can be repeated after a
// crash, byte for byte, over what part of it had arrived. An entry never spans
// two files. A log never takes more than (MaxFiles × MaxSize) plus one batch.
// When the disk is full a batch is dropped as a whole and counted, and a note in
// the log tells so once there is room.
//
// Read yields each entry once and in order, also while the log is written and
// rotated; what is not yet a whole line on disk is not an entry.
//
// # Durability
//
// Logs are not fsynced: they survive every kill -9, not a power cut.
//
// # Not here
//
// Who reads the container's pipes: internal/monitor. Sending logs elsewhere: the
// sub-package sink, apart so that the monitor links none of it.
package logs
