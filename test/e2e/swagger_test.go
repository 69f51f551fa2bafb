package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/onggi/onggi/internal/testenv"
)

// schema is what of a schema of moby's published API description is held.
type schema struct {
	Ref        string             `yaml:"$ref"`
	Type       string             `yaml:"type"`
	Properties map[string]*schema `yaml:"properties"`
	Required   []string           `yaml:"required"`
	AllOf      []*schema          `yaml:"allOf"`
	Items      *schema            `yaml:"items"`
	Additional yaml.Node          `yaml:"additionalProperties"` // a schema, or a boolean
	NotNull    *bool              `yaml:"x-nullable"`
}

type description struct {
	Definitions map[string]*schema `yaml:"definitions"`
	Paths       map[string]map[string]struct {
		Responses map[string]struct {
			Schema *schema `yaml:"schema"`
		} `yaml:"responses"`
	} `yaml:"paths"`
}

func readDescription(t *testing.T) *description {
	t.Helper()
	dir, err := exec.Command(testenv.NeedProgram(t, "go"), "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Skipf("go list: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "swagger.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	d := &description{}
	if err := yaml.Unmarshal(b, d); err != nil {
		t.Fatal(err)
	}
	return d
}

// members collects the properties of an object, those it includes too. any: it
// may have others, of the schema that is returned.
func (d *description) members(s *schema) (props map[string]*schema, required []string, others *schema, any bool) {
	props = map[string]*schema{}
	var walk func(*schema)
	walk = func(s *schema) {
		if name, ok := strings.CutPrefix(s.Ref, "#/definitions/"); ok {
			s = d.Definitions[name]
		}
		maps.Copy(props, s.Properties)
		required = append(required, s.Required...)
		switch s.Additional.Kind {
		case yaml.MappingNode:
			others = &schema{}
			s.Additional.Decode(others)
			any = true
		case yaml.ScalarNode:
			any = any || s.Additional.Value == "true"
		}
		for _, part := range s.AllOf {
			walk(part)
		}
	}
	walk(s)
	return props, required, others, any || len(props) == 0
}

// check says what of a value is not as its schema wants it.
func (d *description) check(at string, v any, s *schema) (wrong []string) {
	if name, ok := strings.CutPrefix(s.Ref, "#/definitions/"); ok {
		if d.Definitions[name] == nil {
			return []string{at + ": no definition " + name}
		}
		return d.check(at, v, d.Definitions[name])
	}
	bad := func(format string, args ...any) { wrong = append(wrong, at+": "+fmt.Sprintf(format, args...)) }
	switch v := v.(type) {
	case nil:
		if s.NotNull != nil && !*s.NotNull {
			bad("null")
		}
	case map[string]any:
		if s.Type != "" && s.Type != "object" {
			bad("an object, want %s", s.Type)
			break
		}
		props, required, others, any := d.members(s)
		for _, k := range slices.Sorted(maps.Keys(v)) {
			switch p := props[k]; {
			case p != nil:
				wrong = append(wrong, d.check(at+"."+k, v[k], p)...)
			case others != nil:
				wrong = append(wrong, d.check(at+"."+k, v[k], others)...)
			case !any:
				bad("%s is not published", k)
			}
		}
		for _, k := range required {
			if _, ok := v[k]; !ok {
				bad("%s is missing", k)
			}
		}
	case []any:
		if s.Type != "array" {
			bad("a list, want %s", s.Type)
			break
		}
		for i, x := range v {
			wrong = append(wrong, d.check(fmt.Sprintf("%s[%d]", at, i), x, s.Items)...)
		}
	case string:
		if s.Type != "string" && s.Type != "" {
			bad("%q, want %s", v, s.Type)
		}
	case bool:
		if s.Type != "boolean" {
			bad("a boolean, want %s", s.Type)
		}
	case json.Number:
		if strings.ContainsAny(v.String(), ".eE") && s.Type == "integer" || s.Type != "integer" && s.Type != "number" {
			bad("%s, want %s", v, s.Type)
		}
	}
	return wrong
}

// notPublished are members of answers that the description does not have.
var notPublished = map[string]string{
	".hint is not published": "ours: what to try next",
}

// Answers of a real engine have the shape that the description publishes.
func TestAnswersAgainstSwagger(t *testing.T) {
	d := readDescription(t)
	e := newEngine(t)
	e.busybox()
	ask := func(status int, method, path, template, body string) any {
		t.Helper()
		got, answer := e.request(method, "/v1.56"+path, body)
		if got != status {
			t.Errorf("%s %s: %d %.300s", method, path, got, answer)
			return nil
		}
		s := d.Paths[template][strings.ToLower(method)].Responses[fmt.Sprint(status)].Schema
		if s == nil {
			t.Fatalf("%s %s is not described for %d", method, template, status)
		}
		dec := json.NewDecoder(strings.NewReader(answer))
		dec.UseNumber()
		var first any
		for n := 0; dec.More(); n++ { // streams have several
			var v any
			if err := dec.Decode(&v); err != nil {
				t.Fatalf("%s %s: %v in %.300s", method, path, err, answer)
			}
			if n == 0 {
				first = v
			}
			for _, w := range d.check("", v, s) {
				if notPublished[w] == "" && notPublished["."+strings.TrimPrefix(w, ": ")] == "" {
					t.Errorf("%s %s%s", method, path, w)
				}
			}
		}
		return first
	}
	id := func(v any, key string) string {
		m, _ := v.(map[string]any)
		s, _ := m[key].(string)
		return s
	}

	ask(201, "POST", "/volumes/create", "/volumes/create", `{"Name":"vol","Labels":{"a":"b"}}`)
	ask(201, "POST", "/networks/create", "/networks/create", `{"Name":"net","Labels":{"a":"b"}}`)
	ask(201, "POST", "/containers/create?name=web", "/containers/create", `{"Image":"busybox","Cmd":["sh","-c","touch /new; sleep 1000"],
		"Healthcheck":{"Test":["CMD","true"],"Interval":1000000000},"ExposedPorts":{"80/tcp":{}},"Labels":{"a":"b"},
		"HostConfig":{"Memory":67108864,"Binds":["vol:/data","/tmp:/host:ro"],"PortBindings":{"80/tcp":[{"HostIp":"127.0.0.1","HostPort":""}]},
			"Tmpfs":{"/cache":"size=1m"},"Ulimits":[{"Name":"nofile","Soft":10,"Hard":20}]},
		"NetworkingConfig":{"EndpointsConfig":{"net":{"Aliases":["x"]}}}}`)
	if got, answer := e.request("POST", "/v1.56/containers/web/start", ""); got != 204 {
		t.Fatalf("start: %d %s", got, answer)
	}
	x := ask(201, "POST", "/containers/web/exec", "/containers/{id}/exec", `{"Cmd":["true"],"AttachStdout":true}`)
	for _, r := range []struct{ path, template string }{
		{"/version", "/version"}, {"/info", "/info"},
		{"/containers/json?all=1&size=1", "/containers/json"}, {"/containers/web/json?size=1", "/containers/{id}/json"},
		{"/containers/web/top", "/containers/{id}/top"}, {"/containers/web/changes", "/containers/{id}/changes"},
		{"/containers/web/stats?stream=0&one-shot=1", "/containers/{id}/stats"}, {"/exec/" + id(x, "Id") + "/json", "/exec/{id}/json"},
		{"/images/json?all=1&shared-size=1", "/images/json"}, {"/images/busybox/json", "/images/{name}/json"}, {"/images/busybox/history", "/images/{name}/history"},
		{"/networks", "/networks"}, {"/networks/net", "/networks/{id}"}, {"/volumes", "/volumes"}, {"/volumes/vol", "/volumes/{name}"},
		{"/system/df?verbose=1", "/system/df"}, {"/plugins", "/plugins"},
	} {
		ask(200, "GET", r.path, r.template, "")
	}
	ask(404, "GET", "/containers/nothing/json", "/containers/{id}/json", "")
	ask(400, "POST", "/containers/create", "/containers/create", `{"Image":`)
	ask(503, "GET", "/services", "/services", "")
	ask(200, "POST", "/containers/web/update", "/containers/{id}/update", `{"CpuShares":512}`)
	ask(201, "POST", "/commit?container=web&repo=made", "/commit", "")
	if got, answer := e.request("POST", "/v1.56/containers/web/kill", ""); got != 204 {
		t.Fatalf("kill: %d %s", got, answer)
	}
	ask(200, "POST", "/containers/web/wait", "/containers/{id}/wait", "")
	ask(200, "POST", "/containers/prune", "/containers/prune", "")
	ask(200, "DELETE", "/images/made", "/images/{name}", "")
	ask(200, "POST", "/images/prune", "/images/prune", "")
	ask(200, "POST", "/volumes/prune?filters=%7B%22all%22:%5B%22true%22%5D%7D", "/volumes/prune", "")
	ask(200, "POST", "/networks/prune", "/networks/prune", "")
	ask(200, "POST", "/build/prune", "/build/prune", "")
	ask(200, "GET", fmt.Sprintf("/events?since=0&until=%d", time.Now().Unix()), "/events", "")
}
