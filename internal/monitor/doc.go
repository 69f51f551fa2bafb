// Package monitor starts processes of containers, is their parent, and outlives
// the engine: the programs of cmd/onggi-monitor, and the engine's client of it.
//
// # Model
//
// Two small processes serve all containers of one exec-root. The worker starts
// programs, reads their output, writes logs, feeds attached clients and records
// exits. The keeper is the worker's parent; it holds a duplicate of every
// descriptor that the worker must not lose, is the sub-reaper of the tree, and
// owns the listening socket. It starts a new worker when the worker dies; when
// the keeper dies the worker becomes the keeper (by exec, so it stays the
// parent of what it started) and starts a new worker. The engine's Client holds
// a third set of duplicates and starts a new keeper when both are gone.
//
// A process is named by its Key. It has a record on disk from before its program
// runs until its exit has been acknowledged; the exit is on disk before anybody
// is told.
//
// # Guarantees
//
// kill -9 of any one of engine, keeper and worker, or of any two, at any time,
// loses no container, no exit status and no byte of a log. When all three are
// killed a container with pipes lives on, since its output pipe is unbreakable
// (linux.UnbreakablePipe); one with a terminal or an open standard input sees a
// hang-up. An exit status that nobody was there to see is reported as unknown.
//
// Output is taken out of a pipe only after it is in the log. The order is: look
// at the pipe's head with tee(2); note in shared memory where in the log the
// batch goes, and its time; write the log; move the batch to a staging pipe;
// empty that. Whoever finds the notes can finish the batch, and repeating it
// gives the same bytes at the same place. A line that is not whole yet stays in
// the pipe.
//
// A client that is attached gets output as it arrives. One that does not read
// holds the process back, in one buffer of at most 64 KiB for each process, and
// for AttachSpec.Patience at most; then it is dropped.
//
// A process has exited when its first process has. What is in the pipes then is
// logged and sent before the exit is told. If others hold the pipes open after
// that, their output counts for two seconds more; then it is read and dropped,
// so that they do not block.
//
// # Concurrency
//
// Client is safe for use by many goroutines. In the worker all input and output
// of one process belongs to one loop, so it needs no lock; requests are served
// by a goroutine each. Lock order: server.mu is innermost, held across no call
// that can block.
//
// # Durability
//
// Records live in exec-root/monitor, a tmpfs that lasts as long as the boot, as
// the processes do; they are not fsynced.
//
// # Not here
//
// What a program does before it runs the application: internal/ociruntime. What
// follows from an exit: internal/container. Keys that detach a client: whoever
// gives the monitor the connection.
package monitor
