// Package initproc starts onggi-init with a program of system calls.
//
// # Model
//
// A Builder puts a program together: system calls whose arguments are numbers,
// data, or results of earlier calls, with jumps on errnos. Start clones a
// process into new namespaces, execs onggi-init from a sealed file in memory,
// and hands it the program. The process sets itself up, says that it is ready,
// waits to be released, and execs the app.
//
//	Start ─▶ WaitReady ─▶ Release ─▶ WaitExec
//
// # Guarantees
//
// A step that does not work is reported as a *StepError with the step's name.
// The container never sees a path to, or a writable descriptor of, a binary of
// ours (CVE-2019-5736): the file in memory is sealed. The app inherits standard
// streams only.
//
// # Concurrency
//
// Start may be called from many goroutines. A Process belongs to one, but for
// Release.
//
// # Not here
//
// What a container is made of: that is package ociruntime's. This package is
// linked by onggi-monitor, and knows no OCI documents.
package initproc
