package cli

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

// dockerCommand is a command in the recorded table of Docker's client.
type dockerCommand struct {
	names []string
	flags []dockerFlag
}

type dockerFlag struct{ short, name, value string }

func dockerTable(t *testing.T) []dockerCommand {
	t.Helper()
	f, err := os.Open("testdata/docker-29.9.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []dockerCommand
	for s := bufio.NewScanner(f); s.Scan(); {
		switch line := s.Text(); {
		case strings.HasPrefix(line, "#"):
		case !strings.HasPrefix(line, "\t"):
			out = append(out, dockerCommand{names: strings.Split(line, ", ")})
		default:
			var fl dockerFlag
			for _, w := range strings.Fields(line) {
				switch {
				case strings.HasPrefix(w, "--"):
					fl.name = w[2:]
				case strings.HasPrefix(w, "-"):
					fl.short = w[1:]
				default:
					fl.value = w
				}
			}
			c := &out[len(out)-1]
			c.flags = append(c.flags, fl)
		}
	}
	if len(out) < 80 {
		t.Fatalf("the recorded table has %d commands only", len(out))
	}
	return out
}

// exceptions are what Docker's client has and onggi has not, with the reason:
// "command", "command --flag" or "--flag" of any command.
var exceptions = map[string]string{
	"--isolation":                        "Windows containers only",
	"build --security-opt":               "of the classic builder on Windows; BuildKit's steps have --allow security.insecure",
	"builder build --security-opt":       "of the classic builder on Windows; BuildKit's steps have --allow security.insecure",
	"image build --security-opt":         "of the classic builder on Windows; BuildKit's steps have --allow security.insecure",
	"buildx build --policy":              "policies in Rego are checked by Docker's buildx, in the client",
	"buildx b --policy":                  "policies in Rego are checked by Docker's buildx, in the client",
	"--checkpoint-dir":                   "checkpoints are not there yet",
	"volume create --availability":       swarmWhy,
	"volume create --group":              swarmWhy,
	"volume create --limit-bytes":        swarmWhy,
	"volume create --required-bytes":     swarmWhy,
	"volume create --scope":              swarmWhy,
	"volume create --secret":             swarmWhy,
	"volume create --sharing":            swarmWhy,
	"volume create --topology-preferred": swarmWhy,
	"volume create --topology-required":  swarmWhy,
	"volume create --type":               swarmWhy,
	"--cluster":                          swarmWhy,
	"volume update":                      swarmWhy,
	"buildx bake":                        pluginWhy,
	"buildx f":                           pluginWhy,
	"buildx create":                      pluginWhy,
	"buildx dap build":                   pluginWhy,
	"buildx dial-stdio":                  pluginWhy,
	"buildx inspect":                     pluginWhy,
	"buildx ls":                          pluginWhy,
	"buildx rm":                          pluginWhy,
	"buildx stop":                        pluginWhy,
	"buildx use":                         pluginWhy,
	"buildx version":                     pluginWhy,
	"buildx history *":                   pluginWhy,
	"buildx imagetools *":                pluginWhy,
	"buildx policy *":                    pluginWhy,
	"buildx replay *":                    pluginWhy,
}

const pluginWhy = "done by Docker's buildx, which onggi runs where it is installed"

const swarmWhy = "cluster volumes, which need a swarm"

func TestEveryCommandAndFlagOfDocker(t *testing.T) {
	used := map[string]bool{}
	excused := func(names ...string) bool {
		for _, n := range names {
			if exceptions[n] != "" {
				used[n] = true
				return true
			}
		}
		return false
	}
	table := commands()
	byPath := map[string]*command{}
	for i := range table {
		for _, p := range table[i].paths {
			byPath[p] = &table[i]
		}
	}
	for _, d := range dockerTable(t) {
		for _, name := range d.names {
			group, _, _ := strings.Cut(name, " ")
			if words := strings.Fields(name); len(words) > 1 {
				group = strings.Join(words[:2], " ")
			}
			flags := pflag.NewFlagSet("", pflag.ContinueOnError)
			if name == "docker" {
				flags, _ = (&env{}).globalFlags()
			} else if c := byPath[name]; c == nil {
				if !excused(name, group+" *") {
					t.Errorf("there is no command %q", name)
				}
				continue
			} else {
				flags = allFlags(t, c)
			}
			for _, want := range d.flags {
				f := flags.Lookup(want.name)
				switch {
				case f == nil:
					if !excused(name+" --"+want.name, "--"+want.name) {
						t.Errorf("%s has no flag --%s", name, want.name)
					}
				case f.Shorthand != want.short:
					t.Errorf("%s --%s has the shorthand %q, not %q", name, want.name, f.Shorthand, want.short)
				case (f.NoOptDefVal == "") != (want.value != ""):
					t.Errorf("%s --%s: takes a value: %v, Docker's: %v", name, want.name, f.NoOptDefVal == "", want.value != "")
				}
			}
		}
	}
	for n := range exceptions {
		if !used[n] {
			t.Errorf("the exception %q is not needed", n)
		}
	}
}

// allFlags are a command's flags; those of build belong to onggi-build, and are
// read from its source.
func allFlags(t *testing.T, c *command) *pflag.FlagSet {
	t.Helper()
	f := newFlags(c)
	c.setup(&env{cfg: &configFile{}}, f)
	f.Bool("help", false, "this text")
	if c.paths[0] != "build" {
		return f
	}
	file, err := parser.ParseFile(token.NewFileSet(), "../../cmd/onggi-build/flags.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok || !strings.HasSuffix(sel.Sel.Name, "Var") && !strings.HasSuffix(sel.Sel.Name, "VarP") && sel.Sel.Name != "Bool" && sel.Sel.Name != "StringArray" {
			return true
		}
		var words []string
		for _, a := range call.Args {
			if l, ok := a.(*ast.BasicLit); ok && l.Kind == token.STRING {
				s, _ := strconv.Unquote(l.Value)
				words = append(words, s)
			}
		}
		if len(words) < 2 || f.Lookup(words[0]) != nil {
			return true
		}
		short := ""
		if strings.HasSuffix(sel.Sel.Name, "P") {
			short = words[1]
		}
		usage := words[len(words)-1]
		if strings.HasPrefix(sel.Sel.Name, "Bool") {
			f.BoolP(words[0], short, false, usage)
		} else {
			f.StringP(words[0], short, "", usage)
		}
		return true
	})
	for _, n := range []string{"rm", "force-rm", "compress"} {
		f.Bool(n, false, "accepted for Docker's sake")
	}
	return f
}
