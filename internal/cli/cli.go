// Package cli is Onggi's command line: Docker's verbs, flags, output and exit
// codes.
//
// # Model
//
// A table holds every command. Only the invoked command's flags are made, and
// nothing that costs start-up time is linked: the builder's client and Go's
// templates are programs beside this one, started when they are needed.
//
// # Guarantees
//
// Exit codes are Docker's: the container's own for run, exec and attach; 125
// when Onggi could not do it, 126 and 127 when the command could not be run; 1
// for other commands. Errors say what was being done, and what to try.
//
// # Not here
//
// The API client (internal/api), the build client (cmd/onggi-build).
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sort"
	"strings"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

// A command is one row of the table.
type command struct {
	paths []string // "run", "container run": the first is the name shown
	args  string   // "[OPTIONS] IMAGE [COMMAND] [ARG...]"
	short string
	min   int  // least number of arguments
	max   int  // most; -1 = any
	exit  int  // exit code when it could not be done; 0 = 1
	raw   bool // flags are not parsed: they belong to another program
	stop  bool // parsing ends at the first argument: the rest is a command
	setup func(e *env, f *pflag.FlagSet) func(ctx context.Context, args []string) error
}

// env is what a command works with.
type env struct {
	in       *os.File
	out, err io.Writer
	host     string
	context  string // name of the one that host came from
	tls      *tlsFiles
	client   *api.Client
	cfg      *configFile
	self     string // path of this program
}

// exitCode ends the program silently with a code.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// usageError is a mistake on the command line.
type usageError struct {
	cmd  *command
	text string
	hint string
}

func (e *usageError) Error() string { return e.text }

// Main runs the command line and returns the exit code.
func Main(args []string) int {
	// There is nothing to do side by side: more threads would only cost their start.
	runtime.GOMAXPROCS(1)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	e := &env{in: os.Stdin, out: os.Stdout, err: os.Stderr, host: os.Getenv("ONGGI_HOST")}
	e.self, _ = os.Executable()
	cmd, rest, err := e.global(args)
	if err == nil && cmd != nil {
		err = e.run(ctx, cmd, rest)
	}
	return e.report(ctx, cmd, err)
}

// globalFlags are the flags before the command.
func (e *env) globalFlags() (*pflag.FlagSet, *globals) {
	f := pflag.NewFlagSet("onggi", pflag.ContinueOnError)
	f.SetInterspersed(false)
	f.Usage = func() {}
	g := &globals{}
	f.StringVarP(&g.host, "host", "H", "", "the engine's address: unix:///path, tcp://address:port or ssh://host")
	f.StringVarP(&g.context, "context", "c", "", "context that names the engine (see onggi context)")
	f.StringVar(&g.config, "config", "", "directory of config.json")
	f.BoolVarP(&g.version, "version", "v", false, "print the version")
	f.BoolP("debug", "D", false, "more detail in errors")
	f.StringP("log-level", "l", "info", "accepted for Docker's sake")
	tlsFlags(f)
	f.BoolVarP(&g.help, "help", "h", false, "this text")
	return f, g
}

type globals struct {
	host, context, config string
	version, help         bool
}

// global parses the flags before the command and finds the command.
func (e *env) global(args []string) (*command, []string, error) {
	f, g := e.globalFlags()
	if err := f.Parse(args); err != nil {
		return nil, nil, &usageError{text: err.Error(), hint: "onggi --help"}
	}
	e.cfg = &configFile{dir: g.config}
	rest := f.Args()
	if g.version {
		fmt.Fprintf(e.out, "Onggi version %s, build %s\n", Version, Commit)
		return nil, nil, nil
	}
	if g.help || len(rest) == 0 {
		overview(e.out)
		return nil, nil, nil
	}
	if rest[0] == "help" {
		rest = append(rest[1:], "--help")
		if len(rest) == 1 {
			overview(e.out)
			return nil, nil, nil
		}
	}
	if g.host != "" && g.context != "" {
		return nil, nil, &usageError{text: "--host and --context exclude each other", hint: "onggi --help"}
	}
	t := tlsOf(f)
	if err := e.choose(g, t, rest[0] == "context"); err != nil {
		return nil, nil, err
	}
	e.tls = t
	if err := e.connectWith(t); err != nil {
		return nil, nil, err
	}
	return e.find(rest)
}

// find returns the command that the words name, and its arguments.
func (e *env) find(words []string) (*command, []string, error) {
	table := commands()
	for n := min(2, len(words)); n > 0; n-- {
		name := strings.Join(words[:n], " ")
		for i := range table {
			for _, p := range table[i].paths {
				if p == name {
					return &table[i], words[n:], nil
				}
			}
		}
	}
	if p := e.pluginPath(words[0]); p != "" {
		return pluginCommand(words[0], p), words[1:], nil
	}
	if group(table, words[0]) {
		if len(words) == 1 || strings.HasPrefix(words[1], "-") {
			groupHelp(e.out, table, words[0])
			return nil, nil, nil
		}
		return nil, nil, &usageError{text: fmt.Sprintf("onggi %s has no command %q", words[0], words[1]),
			hint: nearest(words[0]+" "+words[1], table, "onggi "+words[0]+" --help")}
	}
	if why, ok := absent[words[0]]; ok {
		return nil, nil, &usageError{text: fmt.Sprintf("onggi has no %q: %s", words[0], why), hint: "onggi --help"}
	}
	return nil, nil, &usageError{text: fmt.Sprintf("%q is not a command of onggi", words[0]), hint: nearest(words[0], table, "onggi --help")}
}

// run parses the command's flags and does it.
func (e *env) run(ctx context.Context, cmd *command, args []string) error {
	f := newFlags(cmd)
	do := cmd.setup(e, f)
	if cmd.raw {
		return do(ctx, args)
	}
	help := f.Bool("help", false, "this text")
	if err := f.Parse(args); err != nil {
		return &usageError{cmd: cmd, text: err.Error(), hint: nearestFlag(err.Error(), f, cmd)}
	}
	if *help {
		commandHelp(e.out, cmd, f)
		return nil
	}
	args = f.Args()
	if len(args) < cmd.min || cmd.max >= 0 && len(args) > cmd.max {
		want := fmt.Sprintf("at least %d argument%s", cmd.min, plural(cmd.min))
		if cmd.max == cmd.min {
			want = fmt.Sprintf("%d argument%s", cmd.min, plural(cmd.min))
			if cmd.min == 0 {
				want = "no arguments"
			}
		} else if len(args) > cmd.max && cmd.max >= 0 {
			want = fmt.Sprintf("at most %d argument%s", cmd.max, plural(cmd.max))
		}
		return &usageError{cmd: cmd, text: fmt.Sprintf("onggi %s takes %s, got %d", cmd.paths[0], want, len(args))}
	}
	return do(ctx, args)
}

func newFlags(cmd *command) *pflag.FlagSet {
	f := pflag.NewFlagSet(cmd.paths[0], pflag.ContinueOnError)
	f.SortFlags = true
	f.Usage = func() {}
	f.SetInterspersed(!cmd.stop)
	return f
}

// report prints what went wrong, and turns it into an exit code.
func (e *env) report(ctx context.Context, cmd *command, err error) int {
	if err == nil {
		return 0
	}
	if code, ok := errors.AsType[exitCode](err); ok {
		return int(code)
	}
	code := 1
	if cmd != nil && cmd.exit != 0 {
		code = cmd.exit
	}
	if ctx.Err() != nil {
		return 130
	}
	if u, ok := errors.AsType[*usageError](err); ok {
		fmt.Fprintf(e.err, "onggi: %s\n", u.text)
		if u.cmd != nil {
			fmt.Fprintf(e.err, "usage: onggi %s %s\n", u.cmd.paths[0], u.cmd.args)
		}
		if u.hint != "" {
			fmt.Fprintf(e.err, "try:   %s\n", u.hint)
		}
		return 125
	}
	fmt.Fprintf(e.err, "onggi: %s\n", err)
	if hint := hintOf(err); hint != "" {
		fmt.Fprintf(e.err, "try:   %s\n", hint)
	}
	if r, ok := errors.AsType[*api.RunError](err); ok && r.ExitCode != 0 {
		return r.ExitCode
	}
	return code
}

// hinted is an error with something to try.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

func hintOf(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	if r, ok := errors.AsType[*api.RunError](err); ok {
		return r.Hint
	}
	if a, ok := errors.AsType[*api.Error](err); ok {
		return a.Hint
	}
	return ""
}

// sibling returns the path of a program that is installed beside this one.
func (e *env) sibling(name string) string {
	p := filepath.Join(filepath.Dir(e.self), name)
	if _, err := os.Stat(p); err == nil {
		return p
	}
	return name
}

// each does f for every argument and goes on after an error, as Docker does.
func (e *env) each(args []string, f func(string) error) error {
	failed := false
	for _, a := range args {
		if err := f(a); err != nil {
			failed = true
			fmt.Fprintf(e.err, "onggi: %s\n", err)
			if h := hintOf(err); h != "" {
				fmt.Fprintf(e.err, "try:   %s\n", h)
			}
		}
	}
	if failed {
		return exitCode(1)
	}
	return nil
}

func overview(w io.Writer) {
	fmt.Fprint(w, "Usage:  onggi [OPTIONS] COMMAND\n\nBuild, ship and run containers.\n")
	table := commands()
	sort.SliceStable(table, func(i, j int) bool { return table[i].paths[0] < table[j].paths[0] })
	var single, groups []string
	for _, c := range table {
		if strings.HasPrefix(c.paths[0], "__") {
			continue
		}
		if g, _, ok := strings.Cut(c.paths[0], " "); ok {
			if len(groups) == 0 || groups[len(groups)-1] != g {
				groups = append(groups, g)
			}
			continue
		}
		single = append(single, fmt.Sprintf("  %-11s %s", c.paths[0], c.short))
	}
	for _, g := range []string{"container", "image"} {
		groups = append(groups, g)
	}
	sort.Strings(groups)
	fmt.Fprintf(w, "\nCommands:\n%s\n\nGroups of commands:\n", strings.Join(single, "\n"))
	last := ""
	for _, g := range groups {
		if g != last {
			fmt.Fprintf(w, "  %s\n", g)
		}
		last = g
	}
	fmt.Fprint(w, "\nOptions:\n  -H, --host     the engine's address (or ONGGI_HOST)\n      --config   directory of config.json\n  -v, --version  print the version\n\nonggi COMMAND --help tells more.\n")
}

func group(table []command, name string) bool {
	for _, c := range table {
		for _, p := range c.paths {
			if g, _, ok := strings.Cut(p, " "); ok && g == name {
				return true
			}
		}
	}
	return false
}

func groupHelp(w io.Writer, table []command, name string) {
	fmt.Fprintf(w, "Usage:  onggi %s COMMAND\n\nCommands:\n", name)
	var lines []string
	for _, c := range table {
		for _, p := range c.paths {
			if g, sub, ok := strings.Cut(p, " "); ok && g == name {
				lines = append(lines, fmt.Sprintf("  %-11s %s", sub, c.short))
			}
		}
	}
	sort.Strings(lines)
	fmt.Fprintln(w, strings.Join(lines, "\n"))
}

func commandHelp(w io.Writer, cmd *command, f *pflag.FlagSet) {
	fmt.Fprintf(w, "Usage:  onggi %s %s\n\n%s\n", cmd.paths[0], cmd.args, cmd.short)
	if len(cmd.paths) > 1 {
		fmt.Fprintf(w, "\nAliases:  onggi %s\n", strings.Join(cmd.paths, ", onggi "))
	}
	if s := f.FlagUsages(); s != "" {
		fmt.Fprintf(w, "\nOptions:\n%s", s)
	}
}

func plural(n int) string {
	if n == 1 {
		return ""
	}
	return "s"
}

// nearest suggests the command that a mistyped one may have meant.
// absent are Docker's commands that are not here, and why.
var absent = map[string]string{
	"swarm": noSwarm, "service": noSwarm, "stack": noSwarm, "node": noSwarm, "secret": noSwarm, "config": noSwarm,
	"plugin":     "the engine has no plugins",
	"checkpoint": "containers cannot be checkpointed",
	"trust":      "Docker's content trust is not supported",
	"manifest":   "a manifest list is made by onggi build --platform, and by docker manifest",
}

const noSwarm = "there is no swarm mode (secrets and configs of onggi compose work)"

func nearest(word string, table []command, otherwise string) string {
	best, dist := "", 3
	for _, c := range table {
		for _, p := range c.paths {
			if d := distance(word, p); d < dist {
				best, dist = p, d
			}
		}
	}
	if best == "" {
		return otherwise
	}
	return "onggi " + best
}

func nearestFlag(msg string, f *pflag.FlagSet, cmd *command) string {
	_, word, ok := strings.Cut(msg, "unknown flag: --")
	if !ok {
		return "onggi " + cmd.paths[0] + " --help"
	}
	best, dist := "", 3
	f.VisitAll(func(fl *pflag.Flag) {
		if d := distance(word, fl.Name); d < dist {
			best, dist = fl.Name, d
		}
	})
	if best == "" {
		return "onggi " + cmd.paths[0] + " --help"
	}
	return "--" + best
}

// distance is the number of letters to change, add or drop.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		prev := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := prev
			if a[i] != b[j] {
				cost = min(prev, row[j], row[j+1]) + 1
			}
			prev, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// isNotFound reports whether err is the engine's "no such object".
func isNotFound(err error) bool { return api.StatusOf(err) == 404 }
