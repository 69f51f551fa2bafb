// Package seccomp compiles OCI seccomp profiles to filter programs.
//
// # Model
//
//	profile ──rules──▶ verdict of each system call ──assemble──▶ program
//
// For each architecture of the profile, every number of a system call has a
// verdict: an action, or a list of conditions on arguments. Numbers in a row
// with one verdict are a range, and the ranges of an architecture are a
// balanced binary tree of comparisons, so that a call costs about eight
// instructions whatever its number.
//
// # What a profile means
//
// A profile means what it means to those who run it with runc and libseccomp,
// where the OCI specification leaves a choice:
//
//   - conditions of one entry must all hold, unless two are about the same
//     argument: then each is a rule of its own;
//   - an entry without conditions wins over all entries with some, in any
//     order, and the first of those without conditions wins;
//   - an entry whose action is the default one is nothing;
//   - names that no architecture knows are ignored, and a name applies to
//     every architecture that knows it;
//   - the native architecture is always among those of the profile; a call by
//     any other one kills the thread;
//   - on 32 bit architectures the lower half of arguments is compared;
//   - calls with numbers above all that the profile names are answered ENOSYS,
//     if the default action would refuse them: programs then fall back to an
//     older call, where EPERM would be the end.
//
// Of several entries with conditions that a call fulfils, the first wins.
//
// # Concurrency
//
// All functions may be called from any goroutine. A Filter is immutable.
//
// # Not here
//
// Loading a filter (onggi-init does it, as its last act before exec), and
// answering notifications.
package seccomp
