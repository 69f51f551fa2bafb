package conformance

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/testenv"
)

// hook is a hook that runs a shell script of the host's busybox.
func hook(t *testing.T, script string) specs.Hook {
	return specs.Hook{Path: testenv.Busybox(t), Args: []string{"sh", "-c", script}, Env: []string{"PATH=/bin:/usr/bin:/sbin"}}
}

func TestHooksInOrder(t *testing.T) {
	better(t, "runc 1.1 runs poststart hooks before the process is started")
	b := open(t, "echo process")
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	add := func(name string) specs.Hook {
		return hook(t, "cat >"+dir+"/"+name+"; echo "+name+" >>"+log)
	}
	b.spec.Hooks = &specs.Hooks{
		Prestart:        []specs.Hook{add("prestart1"), add("prestart2")}, //nolint:staticcheck // it is in use
		CreateRuntime:   []specs.Hook{add("createRuntime")},
		CreateContainer: []specs.Hook{add("createContainer")},
		Poststart:       []specs.Hook{add("poststart")},
		Poststop:        []specs.Hook{add("poststop")},
	}
	b.create()
	text, _ := os.ReadFile(log)
	if got := strings.Fields(string(text)); strings.Join(got, " ") != "prestart1 prestart2 createRuntime createContainer" {
		t.Errorf("after create: %v", got)
	}
	pid := b.state().Pid
	b.good("start", b.id)
	b.becomes(specs.StateStopped)
	b.good("delete", b.id)
	text, _ = os.ReadFile(log)
	if got := strings.Fields(string(text)); strings.Join(got, " ") != "prestart1 prestart2 createRuntime createContainer poststart poststop" {
		t.Errorf("in the end: %v", got)
	}
	for name, want := range map[string][]specs.ContainerState{"prestart1": {"created", "creating"}, "createRuntime": {"creating", "created"},
		"poststart": {"running", "stopped"}, "poststop": {"stopped"}} {
		text, _ := os.ReadFile(filepath.Join(dir, name))
		var s specs.State
		if err := json.Unmarshal(text, &s); err != nil {
			t.Errorf("%s was given %q", name, text)
			continue
		}
		ok := false
		for _, w := range want {
			ok = ok || s.Status == w
		}
		if !ok || s.ID != b.id || s.Bundle != b.bundle || name != "poststop" && s.Pid != pid {
			t.Errorf("%s was given %+v", name, s)
		}
	}
}

func TestStartContainerHook(t *testing.T) {
	b := open(t, "cat /data/hook")
	b.spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo inside >/data/hook; cat >/dev/null"}, Env: []string{"PATH=/bin"}}}}
	if got := b.run(); got != "inside" {
		t.Errorf("got %q", got)
	}
}

func TestFailingHooks(t *testing.T) {
	for _, name := range []string{"prestart", "createRuntime", "createContainer"} {
		b := open(t, "touch /data/ran")
		h := []specs.Hook{hook(t, "echo because >&2; exit 3")}
		b.spec.Hooks = &specs.Hooks{}
		switch name {
		case "prestart":
			b.spec.Hooks.Prestart = h //nolint:staticcheck // it is in use
		case "createRuntime":
			b.spec.Hooks.CreateRuntime = h
		case "createContainer":
			b.spec.Hooks.CreateContainer = h
		}
		b.refused()
		if _, err := os.Stat(filepath.Join(b.rootfs, "data/ran")); err == nil {
			t.Errorf("%s: the process ran", name)
		}
	}
	// What fails after the process is over is told, and no more.
	b := open(t, "true")
	b.spec.Hooks = &specs.Hooks{Poststop: []specs.Hook{hook(t, "exit 3")}}
	b.up()
	b.becomes(specs.StateStopped)
	b.good("delete", b.id)
	b.bad("state", b.id)
}

func TestHookTimeout(t *testing.T) {
	b := open(t, "true")
	h := hook(t, "sleep 100")
	h.Timeout = ptr(1)
	b.spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{h}}
	b.refused()
}
