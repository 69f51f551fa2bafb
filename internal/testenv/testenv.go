// Package testenv says what a test needs from the machine, and skips with a
// reason where it is not there.
//
// # Guarantees
//
// With ONGGI_TEST_STRICT=1 (as `make test` sets it) a missing need fails the
// test instead of skipping it, so that a lane cannot go green by doing nothing.
package testenv

import (
	"os"
	"os/exec"
	"testing"
)

// Strict reports whether missing needs fail the test.
func Strict() bool { return os.Getenv("ONGGI_TEST_STRICT") == "1" }

// NeedRoot skips the test unless it runs as root.
func NeedRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root")
	}
}

// NeedProgram returns the path of a program, and skips the test where it is
// not installed.
func NeedProgram(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		missing(t, "the program "+name)
	}
	return p
}

func missing(t testing.TB, what string) {
	t.Helper()
	if Strict() {
		t.Fatalf("needs %s", what)
	}
	t.Skipf("needs %s", what)
}
