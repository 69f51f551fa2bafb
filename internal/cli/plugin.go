package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

// Plugins are the programs that Docker's client runs for further commands:
// docker-NAME in cli-plugins. onggi runs them as docker does, and tells them
// where its engine is. Compose is one, and comes with Onggi (cmd/onggi-compose).

func pluginCommands() []command {
	compose := *pluginCommand("compose", "onggi-compose")
	compose.args, compose.short = "[OPTIONS] COMMAND", "Run an application of several containers (Docker's Compose)"
	return []command{compose}
}

func pluginCommand(name, path string) *command {
	return &command{paths: []string{name}, raw: true, max: -1, setup: func(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
		return func(ctx context.Context, args []string) error { return e.runPlugin(ctx, name, path, args) }
	}}
}

// pluginPath finds Docker's plugin of that name; "" where there is none.
func (e *env) pluginPath(name string) string {
	if strings.ContainsAny(name, "/.") || strings.HasPrefix(name, "-") {
		return ""
	}
	for _, dir := range []string{filepath.Join(configDir(e.cfg.dir), "cli-plugins"), "/usr/local/lib/docker/cli-plugins", "/usr/local/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins", "/usr/libexec/docker/cli-plugins"} {
		p := filepath.Join(dir, "docker-"+name)
		if fi, err := os.Stat(p); err == nil && fi.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

func (e *env) runPlugin(ctx context.Context, name, path string, args []string) error {
	if !filepath.IsAbs(path) {
		path = e.sibling(path)
	}
	if needsEngine(args) { // plugins start none
		if err := e.call(ctx, "GET", "/_ping", nil, nil, nil); err != nil {
			return err
		}
	}
	// It takes our place, and with it the terminal and the signals.
	found, err := exec.LookPath(path)
	if err == nil {
		err = syscall.Exec(found, append([]string{path, name}, args...), e.pluginEnv())
	}
	return &hinted{fmt.Errorf("start %s: %w", name, err), "install " + filepath.Base(path) + " beside onggi"}
}

// pluginEnv tells a plugin where the engine is.
func (e *env) pluginEnv() []string {
	host := e.host
	if host == "" {
		host = "unix://" + api.DefaultSocket
	}
	// What a plugin calls back is the client that started it.
	env := append(os.Environ(), "DOCKER_HOST="+host, "DOCKER_CONFIG="+configDir(e.cfg.dir), "DOCKER_CONTEXT=", "DOCKER_CLI_PLUGIN_ORIGINAL_CLI_COMMAND="+e.self)
	if e.tls.on {
		env = append(env, "DOCKER_CERT_PATH="+filepath.Dir(e.tls.cert))
		if e.tls.verify {
			env = append(env, "DOCKER_TLS_VERIFY=1")
		}
	}
	return env
}

// pluginWords asks a plugin what its last word may become.
func (e *env) pluginWords(ctx context.Context, name, path string, before []string, last string) []string {
	cmd := exec.CommandContext(ctx, path, slices.Concat([]string{"__complete", name}, before, []string{last})...)
	cmd.Env = e.pluginEnv()
	text, _ := cmd.Output()
	var out []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, ":") { // what the shell may add: the end
			break
		}
		word, _, _ := strings.Cut(strings.TrimSpace(line), "\t")
		out = append(out, word)
	}
	return out
}

// needsEngine is false for what works without one: help and versions.
func needsEngine(args []string) bool {
	for _, a := range args {
		switch a {
		case "--help", "-h", "help", "version", "--version", "config", "convert":
			return false
		}
	}
	return len(args) > 0
}
