// Package engineapi serves the Docker Engine API, and Onggi's one-request run.
//
// # Model
//
// The operations are a table of data: method, path, the version that has it
// first, and its handler. A request is brought to the table without its version
// prefix; a handler decodes, calls one service, and encodes moby's own types.
// What older clients expect in an older form is converted at the edge, in
// compat.go.
//
// # Guarantees
//
// Every failure before the answer began is {"message": …, "hint": …} with
// Docker's status; after that it is the stream's last message. A body is at
// most maxBody unless it is a stream; header reading is bounded in time; a
// name, filter or number that makes no sense is a 400 that says so. A browser
// is refused: an Origin header, or a Host that is not ours on TCP.
//
// # Concurrency
//
// Handlers share nothing but the services. A connection that was taken over
// (attach, exec, run) outlives its handler and ends with its process.
//
// # Not here
//
// Decisions: the services make them. Listening, TLS and wiring: cmd/onggid.
package engineapi
