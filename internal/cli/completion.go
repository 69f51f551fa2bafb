package cli

import (
	"context"
	"fmt"
	"net/url"
	"sort"
	"strings"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

func completionCommands() []command {
	return []command{
		{paths: []string{"completion"}, args: "bash|zsh|fish", short: "Print the script that completes commands in a shell", min: 1, max: 1, setup: setupCompletion},
		{paths: []string{"__complete"}, raw: true, max: -1, setup: setupComplete},
	}
}

const bashCompletion = `_onggi() {
	local IFS=$'\n'
	COMPREPLY=($(onggi __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
	[[ ${#COMPREPLY[@]} = 1 && ${COMPREPLY[0]} = */ ]] && compopt -o nospace
	[[ ${#COMPREPLY[@]} = 0 ]] && compopt -o default
}
complete -F _onggi onggi
`

const zshCompletion = `#compdef onggi
_onggi() {
	local -a found
	found=(${(f)"$(onggi __complete "${(@)words[2,CURRENT]}" 2>/dev/null)"})
	if (( ${#found} )); then compadd -a found; else _files; fi
}
compdef _onggi onggi
`

const fishCompletion = `complete -c onggi -a '(onggi __complete (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'
`

func setupCompletion(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		script, ok := map[string]string{"bash": bashCompletion, "zsh": zshCompletion, "fish": fishCompletion}[args[0]]
		if !ok {
			return &usageError{text: fmt.Sprintf("there is no completion for the shell %q", args[0]), hint: "onggi completion bash, zsh or fish"}
		}
		fmt.Fprint(e.out, script)
		return nil
	}
}

// setupComplete prints what the last word may become, a line each.
func setupComplete(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, words []string) error {
		if len(words) == 0 {
			words = []string{""}
		}
		last := words[len(words)-1]
		for _, c := range e.candidates(ctx, words[:len(words)-1], last) {
			if strings.HasPrefix(c, last) {
				fmt.Fprintln(e.out, c)
			}
		}
		return nil
	}
}

func (e *env) candidates(ctx context.Context, before []string, last string) []string {
	table := commands()
	if len(before) > 0 && before[0] == "compose" {
		return e.pluginWords(ctx, "compose", e.sibling("onggi-compose"), before[1:], last)
	}
	for n := min(2, len(before)); n > 0; n-- {
		name := strings.Join(before[:n], " ")
		for i := range table {
			for _, p := range table[i].paths {
				if p == name {
					return e.words(ctx, &table[i], last)
				}
			}
		}
	}
	if len(before) > 0 {
		if p := e.pluginPath(before[0]); p != "" {
			return e.pluginWords(ctx, before[0], p, before[1:], last)
		}
	}
	set := map[string]bool{}
	for _, c := range table {
		for _, p := range c.paths {
			parts := strings.Split(p, " ")
			switch {
			case strings.HasPrefix(p, "__"):
			case len(before) == 0:
				set[parts[0]] = true
			case len(before) == 1 && len(parts) == 2 && parts[0] == before[0]:
				set[parts[1]] = true
			}
		}
	}
	var out []string
	for w := range set {
		out = append(out, w)
	}
	sort.Strings(out)
	return out
}

// words are flags, or names of the objects that the command takes.
func (e *env) words(ctx context.Context, cmd *command, last string) []string {
	var out []string
	if strings.HasPrefix(last, "-") {
		fl := newFlags(cmd)
		cmd.setup(e, fl)
		if cmd.raw {
			return nil
		}
		fl.VisitAll(func(f *pflag.Flag) { out = append(out, "--"+f.Name) })
		return out
	}
	switch name := cmd.paths[0]; {
	case strings.HasPrefix(name, "context"):
		all, _ := e.cfg.contexts()
		for _, m := range all {
			out = append(out, m.Name)
		}
	case strings.HasPrefix(name, "network"):
		var nets []api.NetworkSummary
		e.client.Call(ctx, "GET", "/networks", nil, nil, &nets)
		for _, n := range nets {
			out = append(out, n.Name)
		}
	case strings.HasPrefix(name, "volume"):
		var vs struct{ Volumes []api.Volume }
		e.client.Call(ctx, "GET", "/volumes", nil, nil, &vs)
		for _, v := range vs.Volumes {
			out = append(out, v.Name)
		}
	case strings.Contains(cmd.args, "IMAGE") || name == "pull" || name == "push" || name == "images":
		var images []api.ImageSummary
		e.client.Call(ctx, "GET", "/images/json", nil, nil, &images)
		for _, im := range images {
			out = append(out, im.RepoTags...)
		}
	case strings.Contains(cmd.args, "CONTAINER") || strings.Contains(cmd.args, "NAME|ID"):
		cs, _ := e.client.Containers(ctx, url.Values{"all": {"1"}, "onggi-brief": {"1"}})
		for _, c := range cs {
			for _, n := range c.Names {
				out = append(out, strings.TrimPrefix(n, "/"))
			}
		}
	}
	return out
}
