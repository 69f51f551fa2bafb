package cli

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// onggi runs a command line with a configuration of its own.
func onggi(t *testing.T, config string, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, w bytes.Buffer
	e := &env{in: os.Stdin, out: &o, err: &w}
	cmd, rest, err := e.global(append([]string{"--config", config}, args...))
	if err == nil && cmd != nil {
		err = e.run(context.Background(), cmd, rest)
	}
	code = e.report(context.Background(), cmd, err)
	return o.String(), w.String(), code
}

func TestContexts(t *testing.T) {
	for _, v := range []string{"ONGGI_HOST", "ONGGI_CONTEXT"} {
		t.Setenv(v, "")
	}
	dir := t.TempDir()
	ca := filepath.Join(dir, "my-ca")
	if err := os.WriteFile(ca, []byte("CERT"), 0o600); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(dir, "archive")
	for _, step := range []struct {
		args []string
		code int
		want string // in what is printed
	}{
		{[]string{"context", "show"}, 0, "default\n"},
		{[]string{"context", "create", "far", "--description", "there", "--docker", "host=tcp://far:2376,ca=" + ca}, 0, "far\n"},
		{[]string{"context", "create", "far", "--docker", "host=tcp://x:1"}, 1, `context "far" already exists`},
		{[]string{"context", "create", "bad", "--docker", "host=nothing"}, 1, "want unix:///path, tcp://host:port"},
		{[]string{"context", "create", "bad", "--docker", "hots=tcp://x:1"}, 125, `there is no key "hots"`},
		{[]string{"context", "create", "bad/name", "--docker", "host=tcp://x:1"}, 1, "letters, digits"},
		{[]string{"context", "create", "near", "--docker", "host=ssh://me@near:22/run/x.sock"}, 0, "near\n"},
		{[]string{"context", "use", "nothing"}, 1, "does not exist"},
		{[]string{"context", "use", "far"}, 0, "far\n"},
		{[]string{"context", "ls", "--format", "{{.Name}} {{.Current}} {{.DockerEndpoint}}"}, 0, "far true tcp://far:2376\nnear false ssh://me@near:22/run/x.sock\n"},
		{[]string{"context", "ls", "-q"}, 0, "default\nfar\nnear\n"},
		{[]string{"--context", "near", "context", "show"}, 0, "near\n"},
		{[]string{"--context", "near", "--host", "tcp://x:1", "ps"}, 125, "exclude each other"},
		{[]string{"--context", "nothing", "ps"}, 1, "does not exist"},
		{[]string{"context", "inspect", "-f", "{{.Name}} {{.Endpoints.docker.Host}} {{json .TLSMaterial}}"}, 0, `far tcp://far:2376 {"docker":["ca.pem"]}`},
		{[]string{"context", "update", "far", "--description", "elsewhere"}, 0, "far\n"},
		{[]string{"context", "export", "far", archive}, 0, "Written file"},
		{[]string{"context", "rm", "far"}, 1, "in use"},
		{[]string{"context", "rm", "-f", "far"}, 0, "far\n"},
		{[]string{"context", "show"}, 0, "default\n"},
		{[]string{"context", "import", "back", ca}, 1, "no context"},
		{[]string{"context", "import", "back", archive}, 0, "back\n"},
		{[]string{"context", "ls", "--format", "{{.Name}} {{.Description}}"}, 0, "back elsewhere\n"},
		{[]string{"context", "rm", "default"}, 1, "cannot be removed"},
	} {
		out, errs, code := onggi(t, dir, step.args...)
		if code != step.code || !strings.Contains(out+errs, step.want) {
			t.Errorf("%v: code %d, want %d and %q in:\n%s%s", step.args, code, step.code, step.want, out, errs)
		}
	}
	// As Docker's client writes and finds it: the directory is the name's SHA-256.
	if got := (&configFile{dir: dir}).contextDir("meta", "x1"); filepath.Base(got) != "ec31682fde561917952ff78a7a8adeffd0febc372dd26871916c46c630381b45" {
		t.Errorf("the directory of x1 is %s", got)
	}
}
