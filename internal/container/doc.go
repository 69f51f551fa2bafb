// Package container owns the life of a container: what it is made of, when it
// runs, who is attached to it, how it ends and what stays behind.
//
// # Model
//
// Three things describe one container and are converted explicitly: a Record
// on disk (what was asked for, in normal form, and how it last stood), a
// Container in memory (its state, its waiters, its running execs), and the API
// types that a client sees.
//
// What may happen next is a pure function, [Next]; the code that touches the
// kernel carries out the Actions it returns. What a container is started with
// is another pure function, buildSpec.
//
//	created ─start─▶ starting ─▶ running ◀─▶ paused
//	   │                │           │ exit
//	   │                ▼           ▼
//	   └──remove──▶ removing ◀── exited ◀── restarting (waits, then starts)
//
// # On disk
//
// metadb bucket "container" (the request, written at create, rename, update and
// connect) and "container-state" (small, written at every change of state).
// <data-root>/containers/<id>/ holds log files and the hostname, hosts and
// resolv.conf files that are mounted into the container.
//
// # Guarantees
//
// A record is written before an effect that would need undoing. The records
// survive kill -9 of the engine at once and a power cut within a second. After
// a restart of the engine, Restore makes memory agree with the monitor: what
// lives is adopted, what ended meanwhile has its true status and time.
//
// # Concurrency
//
// Lock order: Service.mu → Container.mu. Neither is held across a call that can
// block: no kernel call beyond plain file I/O, no call of another service.
// Operations that change one container's state exclude each other by a token,
// which is waited for with the caller's context; listing, inspecting, logs and
// signals never take it, so a container that is stuck blocks nobody.
//
// # Not here
//
// The kernel: ociruntime (what onggi-init does), monitor (parenthood, stdio,
// logs), network, volume, snapshot. HTTP: engineapi.
package container
