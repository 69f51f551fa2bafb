package container

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/ociruntime"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
)

// A Runtime is another OCI runtime's command.
type Runtime struct {
	Path string   `json:"path"`
	Args []string `json:"runtimeArgs"`
}

// otherRuntimes are used by name where they are installed.
var otherRuntimes = []string{"runc", "crun", "runsc", "youki"}

// ownNames also mean our own runtime: who names it so wants "the usual one".
var ownNames = []string{runtimeName, "io.containerd.runc.v2", "runc"}

// AllRuntimes lists the runtimes by name; ours has no path.
func (d Defaults) AllRuntimes() map[string]Runtime {
	out := map[string]Runtime{runtimeName: {}}
	for _, name := range otherRuntimes {
		if p := ociruntime.Installed(name); p != "" {
			out[name] = Runtime{Path: p}
		}
	}
	maps.Copy(out, d.Runtimes)
	return out
}

// FindRuntime resolves the name of a runtime, "" for the default, to one of
// AllRuntimes.
func (d Defaults) FindRuntime(name string) (string, error) {
	if name = cmpOr(name, d.Runtime, runtimeName); name == runtimeName {
		return name, nil
	}
	all := d.AllRuntimes()
	if _, ok := all[name]; ok {
		return name, nil
	}
	if slices.Contains(ownNames, name) {
		return runtimeName, nil
	}
	return "", errdefs.WithHint(invalid("unknown or invalid runtime name: %s", clip(name)), "the runtimes are "+strings.Join(slices.Sorted(maps.Keys(all)), ", ")+"; onggid --add-runtime adds one")
}

// A foreign is a container of another runtime: its command stays in the
// foreground as the process that the monitor watches, with the container's
// streams, and ends with the container's exit status.
type foreign struct {
	Runtime
	id     string
	bundle string // directory of its configuration
	state  string // the runtime's own
	pid    int    // of the container's first process
}

// foreignOf is nil for a container of our own runtime.
func (s *Service) foreignOf(rec *Record) *foreign {
	name := rec.HostConfig.Runtime
	if name == runtimeName {
		return nil
	}
	rt, ok := s.o.Defaults.AllRuntimes()[name]
	if !ok {
		return nil
	}
	return &foreign{Runtime: rt, id: rec.ID, bundle: filepath.Join(s.o.ExecRoot, "bundles", rec.ID), state: filepath.Join(s.o.ExecRoot, "runtimes", name)}
}

func (f *foreign) file(name string) string { return filepath.Join(f.bundle, name) }

// command is the runtime's command line.
func (f *foreign) command(words ...string) []string {
	head := append([]string{f.Path, "--root", f.state, "--log", f.file("log"), "--log-format", "json"}, f.Args...)
	return append(head, words...)
}

// prepare lays the bundle out, and says what the monitor is to run.
func (f *foreign) prepare(spec *specs.Spec, root, netns *os.File, mounts map[int]*os.File, r *run, init bool) (*initproc.Program, []*os.File, error) {
	f.drop() // what a crash left
	for _, dir := range []string{f.bundle, f.file("rootfs"), f.state} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, nil, err
		}
	}
	if err := linux.AttachMount(root, f.file("rootfs")); err != nil {
		return nil, nil, err
	}
	out := *spec
	out.Version = "1.0.2" // nothing newer is used, and older runtimes refuse what they do not know
	out.Root = &specs.Root{Path: f.file("rootfs"), Readonly: spec.Root.Readonly}
	out.Mounts = slices.Clone(spec.Mounts)
	for i, mnt := range mounts {
		at := f.file("mount-" + strconv.Itoa(i))
		if err := placeFor(mnt, at); err != nil {
			return nil, nil, err
		}
		if err := linux.AttachMount(mnt, at); err != nil {
			return nil, nil, err
		}
		out.Mounts[i].Source = at
	}
	for i, m := range out.Mounts { // crun 1.8 takes the target of rro for a directory; beside it there is ro
		if !slices.Contains(m.Options, "rro") {
			continue
		}
		if fi, err := os.Stat(m.Source); err == nil && !fi.IsDir() {
			out.Mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "rro" })
		}
	}
	if init {
		if err := f.addInit(&out); err != nil {
			return nil, nil, err
		}
	}
	lin := *spec.Linux
	lin.Namespaces = slices.Clone(spec.Linux.Namespaces)
	out.Linux = &lin
	if netns != nil {
		at := f.file("netns")
		if err := placeFor(netns, at); err != nil {
			return nil, nil, err
		}
		if err := linux.BindFile(netns, at); err != nil {
			return nil, nil, err
		}
		for i := range lin.Namespaces {
			if lin.Namespaces[i].Type == specs.NetworkNamespace {
				lin.Namespaces[i].Path = at
			}
		}
	}
	data, err := json.Marshal(&out)
	if err != nil {
		return nil, nil, err
	}
	if err := os.WriteFile(f.file("config.json"), data, 0o600); err != nil {
		return nil, nil, err
	}
	run := f.command("run", "--bundle", f.bundle, "--pid-file", f.file("pid"), f.id)
	if filepath.Base(f.Path) == "crun" {
		return ociruntime.CompileHost(run, spec.Process.Terminal, nil, crunDislikes()...)
	}
	return ociruntime.CompileHost(run, spec.Process.Terminal, r.group.UnifiedPart())
}

// crunDislikes are files of the host that crun must not read. On a machine with
// both versions of control groups it uses v1, and places its container in v2 by
// itself, but only where v2 has no controllers.
func crunDislikes() []string {
	const controllers = "/sys/fs/cgroup/unified/cgroup.controllers"
	if data, _ := os.ReadFile(controllers); len(bytes.TrimSpace(data)) > 0 {
		return []string{controllers}
	}
	return nil
}

// initPath is where Docker has the init of a container.
const initPath = "/sbin/docker-init"

// addInit puts our init in front of the app. Each container has a file of its
// own, so that one that can write to it has nobody else's.
func (f *foreign) addInit(spec *specs.Spec) error {
	if err := initproc.WriteInit(f.file("init")); err != nil {
		return err
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: initPath, Type: "bind", Source: f.file("init"), Options: []string{"bind", "ro", "exec"}})
	p := *spec.Process
	p.Args = append([]string{initPath, "--"}, p.Args...)
	spec.Process = &p
	return nil
}

// placeFor makes the file or directory that f is mounted on.
func placeFor(f *os.File, at string) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if fi.IsDir() {
		return os.MkdirAll(at, 0o700)
	}
	return os.WriteFile(at, nil, 0o600)
}

// await waits until the runtime has made the container, or has ended instead.
func (f *foreign) await(ctx context.Context, c *Container) error {
	for {
		if data, err := os.ReadFile(f.file("pid")); err == nil {
			if pid, err := strconv.Atoi(strings.TrimSpace(string(data))); err == nil {
				f.pid = pid
				return nil
			}
		}
		c.mu.Lock()
		over := c.early != nil
		c.mu.Unlock()
		if over {
			return f.failure()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(2 * time.Millisecond): // another program's file
		}
	}
}

// failure is what the runtime wrote of why it ended.
func (f *foreign) failure() error {
	data, _ := os.ReadFile(f.file("log"))
	text := "it ended without a word"
	for line := range bytes.Lines(data) {
		var m struct{ Level, Msg string }
		if json.Unmarshal(line, &m) == nil && m.Level == "error" {
			text = m.Msg
		}
	}
	code := 128
	switch {
	case strings.Contains(text, "executable file") && strings.Contains(text, "not found"), strings.Contains(text, "no such file or directory"):
		code = 127
	case strings.Contains(text, "ermission denied"):
		code = 126
	}
	return &StartError{Code: code, Err: errdefs.Newf(errdefs.Invalid, "", "", "failed to create task for container: %s: %s", filepath.Base(f.Path), text)}
}

// runtimePatience bounds one command of a runtime.
const runtimePatience = 30 * time.Second

func (f *foreign) do(ctx context.Context, words ...string) error {
	ctx, cancel := context.WithTimeout(ctx, runtimePatience)
	defer cancel()
	if out, err := ociruntime.RunHost(ctx, f.command(words...)); err != nil {
		return errdefs.Newf(errdefs.Conflict, "run", filepath.Base(f.Path)+" "+words[0], "%w: %s", err, clip(out))
	}
	return nil
}

func (f *foreign) signal(ctx context.Context, sig int) error {
	return f.do(ctx, "kill", f.id, strconv.Itoa(sig))
}

// exec says what the monitor is to run for a further process.
func (f *foreign) exec(p *specs.Process, key string) (*initproc.Program, []*os.File, error) {
	data, err := json.Marshal(p)
	if err != nil {
		return nil, nil, err
	}
	file := f.file("exec-" + key + ".json")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return nil, nil, err
	}
	return ociruntime.CompileHost(f.command("exec", "--process", file, f.id), p.Terminal, nil)
}

// release removes the container from the runtime, and the bundle. It succeeds
// when they are gone.
func (f *foreign) release(ctx context.Context) error {
	if _, err := os.Stat(f.bundle); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	f.do(ctx, "delete", "--force", f.id) // mostly it is gone with the foreground
	return f.drop()
}

func (f *foreign) drop() error {
	found, _ := os.ReadDir(f.bundle)
	for _, e := range found {
		if n := e.Name(); n == "rootfs" || n == "netns" || strings.HasPrefix(n, "mount-") {
			if err := linux.DetachMount(f.file(n)); err != nil {
				return err
			}
			// Never what is mounted there, should it still be.
			if err := os.Remove(f.file(n)); err != nil {
				return err
			}
		}
	}
	return os.RemoveAll(f.bundle)
}
