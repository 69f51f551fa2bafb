// Package errdefs names the few kinds of failure that cross a package
// boundary, and is the only place that maps a kind to an HTTP status or an
// exit status.
//
// # Model
//
// An Error says what was being done (Op), to which object (On), of which kind
// the failure is, and what a person may try next (Hint). Its message is
// "Op On: cause".
//
// # Guarantees
//
// KindOf and HintOf look through any number of wrappings; the outermost Error
// that says something wins. Errors of context cancellation keep their identity
// for errors.Is.
//
// # Not here
//
// Texts. A package that fails words its own message.
package errdefs

import (
	"errors"
	"fmt"
	"syscall"
)

// A Kind classifies a failure by what the caller can do about it.
type Kind uint8

const (
	Internal     Kind = iota // a bug or a broken host; the caller can only report it
	NotFound                 // the named object does not exist
	Conflict                 // the object is in the wrong state; retry after changing it
	Invalid                  // the request can never succeed as written
	Unsupported              // this kernel or build lacks the feature
	Unauthorized             // the registry or peer refused our credentials
	Forbidden                // policy or permission says no
	Unavailable              // try again later
	NotModified              // the object is already in the wanted state
	Exhausted                // a resource (disk, addresses, ports, memory) is used up
	kinds                    // number of kinds
)

// table holds, for each kind, its name, the status of the Engine API, and the
// exit status of a command that could not do its work.
var table = [kinds]struct {
	name string
	http int
	exit int
}{
	Internal:     {"internal", 500, 125},
	NotFound:     {"not found", 404, 125},
	Conflict:     {"conflict", 409, 125},
	Invalid:      {"invalid", 400, 125},
	Unsupported:  {"unsupported", 501, 125},
	Unauthorized: {"unauthorized", 401, 125},
	Forbidden:    {"forbidden", 403, 125},
	Unavailable:  {"unavailable", 503, 125},
	NotModified:  {"not modified", 304, 0},
	Exhausted:    {"exhausted", 500, 125},
}

func (k Kind) String() string {
	if k < kinds {
		return table[k].name
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Error is an operation that did not succeed on an object.
type Error struct {
	Kind Kind
	Op   string // "start", "pull": a verb the user typed or an API names
	On   string // the object: `container "web"`
	Hint string // what to try next; shown to people only
	Err  error  // the cause, never nil
}

func (e *Error) Error() string {
	switch {
	case e.Op == "" && e.On == "":
		return e.Err.Error()
	case e.On == "":
		return e.Op + ": " + e.Err.Error()
	case e.Op == "":
		return e.On + ": " + e.Err.Error()
	}
	return e.Op + " " + e.On + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// New makes an Error of the kind. A nil cause is replaced by the kind's name.
func New(kind Kind, op, on string, cause error) error {
	if cause == nil {
		cause = errors.New(kind.String())
	}
	return &Error{Kind: kind, Op: op, On: on, Err: cause}
}

// Newf is New with a cause made by fmt.Errorf, so %w works.
func Newf(kind Kind, op, on, format string, args ...any) error {
	return &Error{Kind: kind, Op: op, On: on, Err: fmt.Errorf(format, args...)}
}

// WithHint adds what a person may try next. A nil err stays nil.
func WithHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Hint: hint, Err: err}
}

// KindOf reports the kind of the outermost Error in err's chain, and Internal
// where there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is of the kind. A nil err is of no kind.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// HintOf returns the outermost hint in err's chain, or "". A full disk has one
// of its own, since every write may meet it.
func HintOf(err error) string {
	cause := err
	for err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			break
		}
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	if errors.Is(cause, syscall.ENOSPC) || errors.Is(cause, syscall.EDQUOT) {
		return "make room: onggi system df shows what Onggi uses, onggi system prune removes what nothing needs"
	}
	return ""
}

// HTTPStatus is the status that the Engine API sends for err.
func HTTPStatus(err error) int { return table[KindOf(err)].http }

// ExitCode is the exit status of a command that stopped with err.
func ExitCode(err error) int { return table[KindOf(err)].exit }
