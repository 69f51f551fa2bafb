package ociruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// RunHooks runs hooks one after the other with the container's state on their
// standard input. The first that does not succeed ends it.
func RunHooks(ctx context.Context, kind string, hooks []specs.Hook, state *specs.State) error {
	return runHooks(ctx, kind, hooks, state)
}

// RunHooksIn runs hooks of the host in the namespaces of the container's
// process, before the root is entered: those of createContainer.
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

// RunStartHooks runs the startContainer hooks. They are programs of the
// container's file system, which nobody trusts: each is a process of the
// container, with the app's user, capabilities and filter.
func RunStartHooks(ctx context.Context, spec *specs.Spec, state *specs.State, group *cgroup.Group) error {
	if spec.Hooks == nil {
		return nil
	}
	input, err := json.Marshal(state)
	if err != nil {
		return err
	}
	for _, h := range spec.Hooks.StartContainer {
		if err := runInside(ctx, spec, h, state.Pid, input, group); err != nil {
			return errdefs.New(errdefs.Internal, "run", "startContainer hook "+h.Path, err)
		}
	}
	return nil
}

func runInside(ctx context.Context, spec *specs.Spec, h specs.Hook, pid int, input []byte, group *cgroup.Group) error {
	p := *spec.Process
	p.Args, p.Env, p.Terminal, p.Cwd = append([]string{h.Path}, hookArgs(h)[1:]...), h.Env, false, "/"
	prog, files, err := CompileExec(&p, spec, ExecOptions{InitPID: pid, Cgroup: group})
	if err != nil {
		return err
	}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	in, err := linux.MemoryFile("onggi-hook", input)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := linux.MemoryFile("onggi-hook", nil)
	if err != nil {
		return err
	}
	defer out.Close()
	proc, err := initproc.Start(prog, files, initproc.Stdio{Stdin: in, Stdout: out, Stderr: out})
	if err != nil {
		return err
	}
	if err := proc.WaitReady(); err != nil {
		return err
	}
	if err := proc.Release(); err != nil {
		proc.Kill()
		return err
	}
	if err := proc.WaitExec(); err != nil {
		return err
	}
	defer proc.PidFD.Close()
	fd := int(linux.RawFD(proc.PidFD))
	if h.Timeout != nil && !linux.WaitReadable(fd, time.Duration(*h.Timeout)*time.Second) {
		linux.SignalPidFD(fd, 9)
		linux.Reap(fd, true)
		return fmt.Errorf("it took longer than its time-out of %d s", *h.Timeout)
	}
	st, _, err := linux.Reap(fd, true)
	if err == nil && st.Code != 0 {
		text := make([]byte, 1000)
		n, _ := out.ReadAt(text, 0)
		err = fmt.Errorf("exit status %d: %s", st.Code, strings.TrimSpace(string(text[:n])))
	}
	return err
}

func hookArgs(h specs.Hook) []string {
	if len(h.Args) > 0 {
		return h.Args
	}
	return []string{h.Path}
}

func runHook(ctx context.Context, h specs.Hook, input []byte) error {
	if !filepath.IsAbs(h.Path) {
		return fmt.Errorf("its path is not absolute")
	}
	if h.Timeout != nil {
		if *h.Timeout <= 0 {
			return fmt.Errorf("its time-out is %d s, which is none", *h.Timeout)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*h.Timeout)*time.Second)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, h.Path)
	cmd.Args = hookArgs(h)
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
