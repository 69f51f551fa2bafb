// Command onggi-runtime runs OCI bundles behind runc's command line, so that
// containerd, Podman and Kubernetes can use Onggi's runtime, and conformance
// suites can test it.
//
// # Model
//
//	create ─▶ created ─start─▶ running ⇄ paused ─▶ stopped ─delete─▶ gone
//
// A container is a directory below --root: state.json, and start.sock, on which
// the container's first process listens until it is started.
//
// # Guarantees
//
// A container whose creation did not succeed leaves nothing behind. A process is
// signalled only if it is still the one that was started.
//
// # Not here
//
// What a container is made of: internal/ociruntime.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
)

// version is set by the linker.
var version = "0.1.0-dev"

const specVersion = "1.3.0"

// global holds the options before the command.
type global struct {
	root      string
	log       string
	logFormat string
	debug     bool
	systemd   bool
	rootless  string
}

// A command is one verb. args is its usage, checked by count.
type command struct {
	name     string
	args     string
	min, max int // number of arguments; max -1 = any
	flags    func(*flag.FlagSet) func(*global, []string) error
}

// exitStatus ends the program with the status of a container's process.
type exitStatus int

func (e exitStatus) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

func main() {
	debug.SetGCPercent(-1) // one call: it ends before a collection would pay
	debug.SetMemoryLimit(64 << 20)
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	var g global
	fs := flag.NewFlagSet("onggi-runtime", flag.ContinueOnError)
	fs.Usage = func() {}
	fs.SetOutput(io.Discard)
	fs.StringVar(&g.root, "root", "", "")
	fs.StringVar(&g.log, "log", "", "")
	fs.StringVar(&g.logFormat, "log-format", "text", "")
	fs.BoolVar(&g.debug, "debug", false, "")
	fs.BoolVar(&g.systemd, "systemd-cgroup", false, "")
	fs.StringVar(&g.rootless, "rootless", "auto", "")
	showVersion := both(fs.BoolVar, "version", "v")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		usage(os.Stdout)
		return 0
	case err != nil:
		return g.fail(err)
	}
	if *showVersion {
		printVersion(os.Stdout)
		return 0
	}
	if g.root == "" {
		g.root = defaultRoot()
	}
	name := fs.Arg(0)
	if name == "" || name == "help" {
		usage(os.Stdout)
		return 0
	}
	for _, c := range commands() {
		if c.name == name {
			return g.command(c, fs.Args()[1:])
		}
	}
	usage(os.Stderr)
	return g.fail(fmt.Errorf("there is no command %q", name))
}

// both defines a boolean flag by its long and its short name.
func both(def func(*bool, string, bool, string), names ...string) *bool {
	v := new(bool)
	for _, n := range names {
		def(v, n, false, "")
	}
	return v
}

// text defines a flag with a value by its long and its short name.
func text(fs *flag.FlagSet, names ...string) *string {
	v := new(string)
	for _, n := range names {
		fs.StringVar(v, n, "", "")
	}
	return v
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func texts(fs *flag.FlagSet, names ...string) *list {
	v := new(list)
	for _, n := range names {
		fs.Var(v, n, "")
	}
	return v
}

func (g *global) command(c command, args []string) int {
	fs := flag.NewFlagSet(c.name, flag.ContinueOnError)
	fs.Usage = func() {}
	fs.SetOutput(io.Discard)
	act := c.flags(fs)
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Printf("usage: onggi-runtime %s [options] %s\n", c.name, c.args)
		fs.VisitAll(func(f *flag.Flag) { fmt.Printf("   --%s\n", f.Name) })
		return 0
	case err != nil:
		return g.fail(fmt.Errorf("%s: %w", c.name, err))
	}
	// runc accepts options behind the container's name where no command follows.
	rest := fs.Args()
	if c.max == 1 && len(rest) > 1 && strings.HasPrefix(rest[1], "-") {
		if err := fs.Parse(append(rest[1:], rest[0])); err != nil {
			return g.fail(fmt.Errorf("%s: %w", c.name, err))
		}
		rest = fs.Args()
	}
	if n := len(rest); n < c.min || c.max >= 0 && n > c.max {
		return g.fail(fmt.Errorf("%s: wrong number of arguments; usage: onggi-runtime %s [options] %s", c.name, c.name, c.args))
	}
	err := act(g, rest)
	if code, ok := errors.AsType[exitStatus](err); ok {
		return int(code)
	}
	if err != nil {
		return g.fail(err)
	}
	return 0
}

// fail says what went wrong on standard error, and in the log where one is
// asked for: containerd and conmon read it there.
func (g *global) fail(err error) int {
	msg := err.Error()
	if hint := errdefs.HintOf(err); hint != "" {
		msg += " (try: " + hint + ")"
	}
	if g.log == "" || g.logFormat != "json" {
		fmt.Fprintln(os.Stderr, "onggi-runtime: "+msg)
	}
	g.logLine("error", msg)
	if e, ok := errors.AsType[interface {
		error
		ExitCode() int
	}](err); ok && e.ExitCode() != 125 {
		return e.ExitCode()
	}
	return 1
}

func (g *global) warn(format string, a ...any) {
	msg := fmt.Sprintf(format, a...)
	if g.log == "" {
		fmt.Fprintln(os.Stderr, "onggi-runtime: warning: "+msg)
		return
	}
	g.logLine("warning", msg)
}

func (g *global) debugf(format string, a ...any) {
	if g.debug {
		g.logLine("debug", fmt.Sprintf(format, a...))
	}
}

func (g *global) logLine(level, msg string) {
	if g.log == "" {
		return
	}
	f, err := os.OpenFile(g.log, os.O_WRONLY|os.O_APPEND|os.O_CREATE|os.O_SYNC, 0o644)
	if err != nil {
		return
	}
	defer f.Close()
	now := time.Now().UTC().Format(time.RFC3339)
	if g.logFormat == "json" {
		line, _ := json.Marshal(struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
			Time  string `json:"time"`
		}{level, msg, now})
		f.Write(append(line, '\n'))
		return
	}
	fmt.Fprintf(f, "time=%q level=%s msg=%q\n", now, level, msg)
}

func printVersion(w io.Writer) {
	commit := "unknown"
	if bi, ok := debug.ReadBuildInfo(); ok {
		for _, s := range bi.Settings {
			if s.Key == "vcs.revision" {
				commit = s.Value
			}
		}
	}
	fmt.Fprintf(w, "onggi-runtime version %s\ncommit: %s\nspec: %s\ngo: %s\n", version, commit, specVersion, runtime.Version())
}

func usage(w io.Writer) {
	fmt.Fprint(w, `onggi-runtime runs OCI bundles.

usage: onggi-runtime [global options] command [options] [arguments]

global options:
   --root DIR             where states of containers live (`+defaultRoot()+`)
   --log FILE             also write errors and warnings there
   --log-format FORMAT    text or json
   --debug                say more in the log
   --systemd-cgroup       let systemd make control groups; cgroupsPath is slice:prefix:name
   --rootless VALUE       true, false or auto
   --version, -v

commands:
`)
	for _, c := range commands() {
		fmt.Fprintf(w, "   %-9s %s\n", c.name, c.args)
	}
}

func defaultRoot() string {
	if os.Geteuid() != 0 {
		if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" {
			return dir + "/onggi-runtime"
		}
	}
	return "/run/onggi-runtime"
}

func commands() []command {
	return []command{
		{"create", "ID", 1, 1, createFlags},
		{"start", "ID", 1, 1, startFlags},
		{"run", "ID", 1, 1, runFlags},
		{"state", "ID", 1, 1, stateFlags},
		{"kill", "ID [SIGNAL]", 1, 2, killFlags},
		{"delete", "ID", 1, 1, deleteFlags},
		{"exec", "ID COMMAND [ARG...]", 1, -1, execFlags},
		{"ps", "ID [PS OPTION...]", 1, -1, psFlags},
		{"list", "", 0, 0, listFlags},
		{"pause", "ID", 1, 1, pauseFlags},
		{"resume", "ID", 1, 1, resumeFlags},
		{"update", "ID", 1, 1, updateFlags},
		{"events", "ID", 1, 1, eventsFlags},
		{"spec", "", 0, 0, specFlags},
		{"features", "", 0, 0, featuresFlags},
	}
}
