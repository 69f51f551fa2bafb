package cli

import (
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

var rewrite = flag.Bool("rewrite", false, "write docs/reference/commands.md anew")

const referencePath = "../../docs/reference/commands.md"

// The reference is made from the table of commands: `make reference` writes it.
func TestReferenceIsUpToDate(t *testing.T) {
	for _, v := range []string{"DOCKER_CONFIG", "ONGGI_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "DOCKER_DEFAULT_PLATFORM", "BUILDKIT_PROGRESS"} {
		t.Setenv(v, "")
	}
	t.Setenv("HOME", "/home/you")
	want := reference(t)
	if *rewrite {
		if err := os.WriteFile(referencePath, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(referencePath)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/reference/commands.md is not what the commands say: make reference")
	}
}

func reference(t *testing.T) string {
	var b strings.Builder
	b.WriteString("# Commands of onggi\n\nMade from the table of commands by `make reference`.\n\n")
	b.WriteString("Exit codes are Docker's: the container's own for run, exec, start -a and attach; 125 when Onggi could not do it, 126 and 127 when the command could not be run; 1 for other commands; 130 after Ctrl-C.\n\n")
	table := commands()
	sort.SliceStable(table, func(i, j int) bool { return table[i].paths[0] < table[j].paths[0] })
	for _, c := range table {
		if !strings.HasPrefix(c.paths[0], "__") {
			fmt.Fprintf(&b, "- [%s](#%s): %s\n", c.paths[0], strings.ReplaceAll("onggi "+c.paths[0], " ", "-"), c.short)
		}
	}
	global, _ := (&env{}).globalFlags()
	fmt.Fprintf(&b, "\n## onggi\n\n```\nonggi [OPTIONS] COMMAND\n```\n\n%s", flagTable(global))
	for i := range table {
		c := &table[i]
		if strings.HasPrefix(c.paths[0], "__") {
			continue
		}
		fmt.Fprintf(&b, "\n## onggi %s\n\n%s.\n\n```\nonggi %s\n```\n", c.paths[0], c.short, strings.TrimSpace(c.paths[0]+" "+c.args))
		if len(c.paths) > 1 {
			fmt.Fprintf(&b, "\nAlso: `onggi %s`\n", strings.Join(c.paths[1:], "`, `onggi "))
		}
		switch flags := allFlags(t, c); {
		case c.paths[0] == "compose":
			b.WriteString("\nIts flags are those of Docker's Compose: `onggi compose --help`.\n")
		default:
			if text := flagTable(flags); text != "" {
				b.WriteString("\n" + text)
			}
		}
	}
	return b.String()
}

func flagTable(f *pflag.FlagSet) string {
	var b strings.Builder
	f.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Hidden {
			return
		}
		if b.Len() == 0 {
			b.WriteString("| flag | what |\n|---|---|\n")
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		usage := strings.ReplaceAll(f.Usage, "|", `\|`)
		if d := f.DefValue; d != "" && d != "false" && d != "[]" && d != "0" && d != "0s" && d != "<nil>" {
			usage += " (default `" + d + "`)"
		}
		fmt.Fprintf(&b, "| %s | %s |\n", name, usage)
	})
	return b.String()
}
