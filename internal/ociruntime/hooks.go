package ociruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"runtime"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// RunHooks runs hooks one after the other with the container's state on their
// standard input. The first that does not succeed ends it.
func RunHooks(ctx context.Context, kind string, hooks []specs.Hook, state *specs.State) error {
	return runHooks(ctx, kind, hooks, state)
}

// RunHooksIn runs hooks in the namespaces of the container's process: its mount
// namespace before the root is entered for createContainer, all of its for
// startContainer.
func RunHooksIn(ctx context.Context, kind string, hooks []specs.Hook, state *specs.State) error {
	if len(hooks) == 0 {
		return nil
	}
	done := make(chan error, 1)
	go func() {
		// The thread keeps the namespaces and is thrown away with them.
		runtime.LockOSThread()
		if err := linux.JoinNamespaces(state.Pid, "mnt", "net", "ipc", "uts"); err != nil {
			done <- errdefs.New(errdefs.Internal, "run", kind+" hooks", err)
			return
		}
		done <- runHooks(ctx, kind, hooks, state)
	}()
	return <-done
}

func runHooks(ctx context.Context, kind string, hooks []specs.Hook, state *specs.State) error {
	input, err := json.Marshal(state)
	if err != nil {
		return err
	}
	for _, h := range hooks {
		if err := runHook(ctx, h, input); err != nil {
			return errdefs.New(errdefs.Internal, "run", fmt.Sprintf("%s hook %s", kind, h.Path), err)
		}
	}
	return nil
}

func runHook(ctx context.Context, h specs.Hook, input []byte) error {
	if h.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, h.Path)
	cmd.Args = h.Args
	if len(cmd.Args) == 0 {
		cmd.Args = []string{h.Path}
	}
	cmd.Env = h.Env
	if cmd.Env == nil {
		cmd.Env = []string{} // nothing of ours (CVE-2025-23266)
	}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), &out, &out
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	switch {
	case err == nil:
		return nil
	case ctx.Err() == context.DeadlineExceeded:
		return fmt.Errorf("it took longer than its time-out of %d s", *h.Timeout)
	}
	text := strings.TrimSpace(out.String())
	if len(text) > 1000 {
		text = "…" + text[len(text)-1000:]
	}
	if text != "" {
		return fmt.Errorf("%w: %s", err, text)
	}
	return err
}
