package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	// It takes our place, and with it the terminal and the signals.
	found, err := exec.LookPath(path)
	if err == nil {
		err = syscall.Exec(found, append([]string{path, name}, args...), env)
	}
	return &hinted{fmt.Errorf("start %s: %w", name, err), "install " + filepath.Base(path) + " beside onggi"}
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
