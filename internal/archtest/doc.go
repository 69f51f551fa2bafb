// Package archtest holds, as tests, the few rules that keep the house up, each
// with its reason.
//
// # Model
//
// Families of packages have a layer; imports go to strictly lower layers. One
// family talks to the kernel. Every package explains itself.
//
// # Not here
//
// Style. Sizes worth a look are printed by `go test -v`, and never fail.
package archtest
