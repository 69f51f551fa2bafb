// Command onggi-compose is Docker's Compose, as its own main program is, but
// that it builds without Docker's buildx: where that is not installed and the
// engine is on this machine, Compose is given onggi-build in its place.
package main

import (
	"os"
	"path/filepath"
	"strings"

	dockercli "github.com/docker/cli/cli"
	"github.com/docker/cli/cli-plugins/metadata"
	"github.com/docker/cli/cli-plugins/plugin"
	"github.com/docker/cli/cli/command"
	"github.com/docker/cli/cli/config"
	"github.com/docker/compose/v5/cmd/cmdtrace"
	"github.com/docker/compose/v5/cmd/compatibility"
	commands "github.com/docker/compose/v5/cmd/compose"
	"github.com/docker/compose/v5/cmd/prompt"
	"github.com/docker/compose/v5/pkg/compose"
	"github.com/sirupsen/logrus"
	"github.com/spf13/cobra"
)

var version = "dev" // set by the linker

func main() {
	if plugin.RunningStandalone() {
		os.Args = append([]string{"docker"}, compatibility.Convert(os.Args[1:])...)
	}
	plugin.Run(root, metadata.Metadata{SchemaVersion: "0.1.0", Vendor: "Docker Inc.", Version: version}, command.WithUserAgent("compose/"+version))
}

func root(cli command.Cli) *cobra.Command {
	cmd := commands.RootCommand(cli, &commands.BackendOptions{
		Options: []compose.Option{compose.WithPrompt(prompt.NewPrompt(cli.In(), cli.Out()).Confirm)},
	})
	cmd.AddCommand(commands.HooksCommand())
	before := cmd.PersistentPreRunE
	cmd.PersistentPreRunE = func(cmd *cobra.Command, args []string) error {
		if err := plugin.PersistentPreRunE(cmd, args); err != nil {
			return err
		}
		if err := cmdtrace.Setup(cmd, cli, os.Args[1:]); err != nil {
			logrus.Debugf("failed to enable tracing: %v", err)
		}
		if err := offerBuilder(cli); err != nil {
			logrus.Debugf("builds go without onggi-build: %v", err)
		}
		if before != nil {
			return before(cmd, args)
		}
		return nil
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error {
		return dockercli.StatusError{StatusCode: 1, Status: err.Error()}
	})
	return cmd
}

// offerBuilder lets Compose find onggi-build by the name of the plugin that it
// builds with.
func offerBuilder(cli command.Cli) error {
	const buildx = "docker-buildx"
	cfg := cli.ConfigFile()
	if !strings.HasPrefix(cli.DockerEndpoint().Host, "unix://") {
		return nil
	}
	for _, dir := range append([]string{filepath.Join(config.Dir(), "cli-plugins"), "/usr/local/lib/docker/cli-plugins", "/usr/local/libexec/docker/cli-plugins", "/usr/lib/docker/cli-plugins", "/usr/libexec/docker/cli-plugins"}, cfg.CLIPluginsExtraDirs...) {
		if _, err := os.Stat(filepath.Join(dir, buildx)); err == nil {
			return nil
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	builder := filepath.Join(filepath.Dir(self), "onggi-build")
	if _, err := os.Stat(builder); err != nil {
		return err
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, "onggi", "compose-plugins")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	link := filepath.Join(dir, buildx)
	if at, err := os.Readlink(link); err != nil || at != builder {
		os.Remove(link)
		if err := os.Symlink(builder, link); err != nil && !os.IsExist(err) {
			return err
		}
	}
	cfg.CLIPluginsExtraDirs = append(cfg.CLIPluginsExtraDirs, dir)
	return nil
}
