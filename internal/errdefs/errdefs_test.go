package errdefs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
)

func TestMessageNamesOperationAndObject(t *testing.T) {
	err := Newf(Conflict, "start", `container "web"`, "port %d is in use", 8080)
	if got, want := err.Error(), `start container "web": port 8080 is in use`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestKindAndHintSurviveWrapping(t *testing.T) {
	err := WithHint(New(NotFound, "run", `image "x"`, nil), "onggi pull x")
	err = fmt.Errorf("while testing: %w", err)
	if KindOf(err) != NotFound || HTTPStatus(err) != 404 {
		t.Errorf("kind %v, status %d", KindOf(err), HTTPStatus(err))
	}
	if HintOf(err) != "onggi pull x" {
		t.Errorf("hint %q", HintOf(err))
	}
}

func TestAFullDiskHasAHint(t *testing.T) {
	err := New(Internal, "write", "x", &os.PathError{Op: "write", Path: "/x", Err: syscall.ENOSPC})
	if !strings.Contains(HintOf(err), "system prune") {
		t.Errorf("hint %q", HintOf(err))
	}
	if got := HintOf(WithHint(err, "other")); got != "other" {
		t.Errorf("hint %q", got)
	}
}

func TestCancellationKeepsItsIdentity(t *testing.T) {
	if err := New(Unavailable, "pull", "x", context.Canceled); !errors.Is(err, context.Canceled) {
		t.Error("context.Canceled was lost")
	}
}

func TestPlainErrorsAreInternal(t *testing.T) {
	if HTTPStatus(errors.New("x")) != 500 || HintOf(errors.New("x")) != "" || Is(nil, Internal) {
		t.Error("a plain error must be internal, without a hint; nil is of no kind")
	}
}

func TestEveryKindHasARow(t *testing.T) {
	for k := Kind(0); k < kinds; k++ {
		if table[k].name == "" || table[k].http == 0 {
			t.Errorf("kind %d has no row", k)
		}
	}
}
