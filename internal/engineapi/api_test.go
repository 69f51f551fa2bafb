package engineapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	containertypes "github.com/moby/moby/api/types/container"
	networktypes "github.com/moby/moby/api/types/network"

	"github.com/onggi/onggi/internal/api"
	"github.com/onggi/onggi/internal/container"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
)

// fakeContainers is a service of one container that echoes its input.
type fakeContainers struct {
	Containers // what a test does not reach is nil
	created    container.CreateRequest
	exit       chan struct{}
	startErr   error
}

func (f *fakeContainers) Create(_ context.Context, q container.CreateRequest) (string, []string, error) {
	if q.Config.Image == "missing" {
		return "", nil, &container.MissingImageError{Ref: "missing", Err: errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "", "", "No such image: missing"), "pull it")}
	}
	f.created = q
	return "abc", []string{"careful"}, nil
}
func (f *fakeContainers) Start(context.Context, string, container.StartOptions) error {
	return f.startErr
}
func (f *fakeContainers) Stop(_ context.Context, ref string, _ container.StopOptions) error {
	return errdefs.Newf(errdefs.NotModified, "stop", ref, "it is not running")
}
func (f *fakeContainers) Wait(string, containertypes.WaitCondition) (func(context.Context) (container.WaitResult, error), error) {
	return func(ctx context.Context) (container.WaitResult, error) { return container.WaitResult{ExitCode: 3}, nil }, nil
}
func (f *fakeContainers) Inspect(_ context.Context, ref string, _ bool) (containertypes.InspectResponse, error) {
	if ref != "abc" {
		return containertypes.InspectResponse{}, errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "", "", "No such container: %s", ref), "onggi ps -a")
	}
	return containertypes.InspectResponse{ID: ref, Config: &containertypes.Config{}, NetworkSettings: &containertypes.NetworkSettings{
		Networks: map[string]*networktypes.EndpointSettings{"bridge": {IPAddress: netip.MustParseAddr("172.17.0.2"), IPPrefixLen: 16}},
	}}, nil
}
func (f *fakeContainers) List(_ context.Context, o container.ListOptions) ([]containertypes.Summary, error) {
	return []containertypes.Summary{{ID: "abc", Names: []string{"/" + strings.Join(o.Filters["name"], "+")}}}, nil
}
func (f *fakeContainers) Attach(_ context.Context, _ string, o container.AttachOptions, ready func() (container.Stream, error)) error {
	st, err := ready()
	if err != nil {
		return err
	}
	go func() {
		if f.startErr == nil {
			in, _ := io.ReadAll(io.LimitReader(st.Input, 5))
			api.WriteFrame(st.Conn, 1, append([]byte("echo "), in...))
		}
		if st.End != nil {
			st.End(container.Ended)
			return
		}
		st.Conn.Close()
	}()
	return nil
}

type testServer struct {
	*httptest.Server
	client *api.Client
	sock   string
	bus    *events.Bus
}

func serve(t *testing.T, f *fakeContainers) *testServer {
	t.Helper()
	bus := events.New()
	s := New(Options{Containers: f, Events: bus, Engine: EngineInfo{Version: "test"}})
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	hs := httptest.NewUnstartedServer(s)
	hs.Listener.Close()
	hs.Listener = l
	hs.Start()
	t.Cleanup(hs.Close)
	c, err := api.New(api.Options{Host: "unix://" + sock})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &testServer{hs, c, sock, bus}
}

// raw sends bytes and returns the status line's code and the body.
func (s *testServer) raw(t *testing.T, request string) (int, string) {
	t.Helper()
	c, err := net.Dial("unix", s.sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	io.WriteString(c, request)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatalf("%.60q: %v", request, err)
	}
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func post(path, contentType, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", path, contentType, len(body), body)
}

// What makes no sense is refused at once, with a message in Docker's form.
func TestRefusals(t *testing.T) {
	s := serve(t, &fakeContainers{})
	get := func(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" }
	const create = "/v1.50/containers/create"
	for name, c := range map[string]struct {
		request string
		status  int
		words   string
	}{
		"unknown path":      {get("/v1.50/nothing"), 404, "page not found"},
		"too new":           {get("/v1.99/containers/json"), 400, "too new. Maximum supported API version is 1.56"},
		"too old":           {get("/v1.10/containers/json"), 400, "too old. Minimum supported API version is 1.24"},
		"no version":        {get("/v1.x/containers/json"), 400, "API version"},
		"not yet there":     {get("/v1.24/configs"), 400, "requires API version 1.30"},
		"method":            {"PATCH /v1.50/containers/json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 405, "not allowed"},
		"empty body":        {post(create, "application/json", ""), 400, "EOF"},
		"cut body":          {post(create, "application/json", `{"Image":"a`), 400, "invalid JSON"},
		"two values":        {post(create, "application/json", `{} {}`), 400, "unexpected content after JSON"},
		"no config":         {post(create, "application/json", `{}`), 400, "config cannot be empty"},
		"checkpoint":        {post("/v1.50/containers/abc/start?checkpoint=../x", "", ""), 400, "invalid checkpoint ID"},
		"an array":          {post(create, "application/json", `[]`), 400, "invalid JSON"},
		"wrong type":        {post(create, "application/json", `{"Image":5}`), 400, "Image"},
		"wrong type deep":   {post(create, "application/json", `{"Image":"a","HostConfig":{"Memory":"lots"}}`), 400, "Memory"},
		"too deep":          {post(create, "application/json", `{"Image":`+strings.Repeat("[", 1000)+strings.Repeat("]", 1000)+`}`), 400, "nested"},
		"content type":      {post(create, "text/plain", `{"Image":"a"}`), 400, "unsupported Content-Type"},
		"too large":         {post(create, "application/json", `{"Image":"`+strings.Repeat("a", maxBody)+`"}`), 413, "larger"},
		"filters":           {get("/v1.50/containers/json?filters=nonsense"), 400, "filters"},
		"limit":             {get("/v1.50/containers/json?limit=many"), 400, "limit"},
		"not found":         {get("/v1.50/containers/zzz/json"), 404, "No such container"},
		"web page":          {"GET /_ping HTTP/1.1\r\nHost: x\r\nOrigin: http://evil\r\nConnection: close\r\n\r\n", 403, "web pages"},
		"web page fetch":    {"GET /_ping HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: cross-site\r\nConnection: close\r\n\r\n", 403, "web pages"},
		"swarm":             {get("/v1.50/services"), 503, "not a swarm manager"},
		"events since":      {get("/v1.50/events?since=5&until=1"), 400, "cannot be after"},
		"events filter":     {get("/v1.50/events?filters={%22bogus%22:[%22x%22]}"), 400, "invalid filter"},
		"resize":            {post("/v1.50/containers/abc/resize?h=x&w=1", "application/json", ""), 400, `invalid resize height "x": invalid syntax`},
		"resize nothing":    {post("/v1.50/containers/abc/resize?h=1", "application/json", ""), 400, `invalid resize width "": invalid syntax`},
		"resize negative":   {post("/v1.50/exec/abc/resize?h=1&w=-1", "application/json", ""), 400, `invalid resize width "-1": value out of range`},
		"resize too far":    {post("/v1.50/exec/abc/resize?h=4294967296&w=1", "application/json", ""), 400, "value out of range"},
		"two networks":      {post("/v1.43/containers/create", "application/json", `{"Image":"a","NetworkingConfig":{"EndpointsConfig":{"a":{},"b":{}}}}`), 400, "multiple network endpoints: a, b"},
		"build without one": {post("/v1.50/build", "application/x-tar", ""), 501, "cannot build"},
	} {
		status, body := s.raw(t, c.request)
		var e struct{ Message string }
		if status != c.status || json.Unmarshal([]byte(body), &e) != nil || !strings.Contains(e.Message, c.words) {
			t.Errorf("%s: %d %.200s, want %d %q", name, status, body, c.status, c.words)
		}
	}
	if status, body := s.raw(t, post("/v1.50/containers/zzz/attach", "", "")); status != 404 || body != "No such container: zzz\r\n" {
		t.Errorf("attach without upgrade: %d %q", status, body)
	}
	if status, body := s.raw(t, post("/v1.50/containers/abc/stop", "", "")); status != 304 || body != "" {
		t.Errorf("stop of a stopped container: %d %q", status, body)
	}
}

// What a build's requests cannot mean is refused before the builder sees it.
func TestBuildRefusals(t *testing.T) {
	s := New(Options{Builder: struct{ Builder }{}})
	for _, c := range []struct{ path, upgrade, words string }{
		{"/v1.50/build?platform=foobar", "", "unknown operating system or architecture"},
		{"/v1.50/session", "", "no upgrade proto in request"},
		{"/v1.50/session", "foo", "not supported"},
		{"/v1.50/grpc", "foo", "not supported"},
	} {
		r := httptest.NewRequest("POST", c.path, nil)
		r.Header.Set("Upgrade", c.upgrade)
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != 400 || !strings.Contains(w.Body.String(), c.words) {
			t.Errorf("%s %q: %d %s, want %q", c.path, c.upgrade, w.Code, w.Body, c.words)
		}
	}
}

func TestPing(t *testing.T) {
	s := serve(t, &fakeContainers{})
	for _, m := range []string{"GET", "HEAD"} {
		resp, err := s.client.Do(context.Background(), api.Request{Method: m, Path: "/_ping"})
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		for k, want := range map[string]string{"api-version": MaxVersion, "ostype": "linux", "docker-experimental": "false"} {
			if resp.Header[k] != want {
				t.Errorf("%s %s: %q", m, k, resp.Header[k])
			}
		}
		if want := map[string]string{"GET": "OK", "HEAD": ""}[m]; string(b) != want {
			t.Errorf("%s: %q", m, b)
		}
	}
}

// What a version before 1.52 gets of a container's networks, and one after not.
func TestLegacyInspect(t *testing.T) {
	s := serve(t, &fakeContainers{})
	for v, want := range map[string]bool{"1.24": true, "1.51": true, "1.52": false, "1.56": false} {
		var out struct{ NetworkSettings map[string]any }
		_, body := s.raw(t, "GET /v"+v+"/containers/abc/json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		if err := json.Unmarshal([]byte(body), &out); err != nil {
			t.Fatal(err)
		}
		if ip, has := out.NetworkSettings["IPAddress"]; has != want || want && ip != "172.17.0.2" {
			t.Errorf("%s: IPAddress %v", v, ip)
		}
		if out.NetworkSettings["Networks"] == nil {
			t.Errorf("%s: no networks", v)
		}
	}
}

// Both forms of filters mean the same, and a command may be one string.
func TestDecoding(t *testing.T) {
	f := &fakeContainers{}
	s := serve(t, f)
	for _, q := range []string{`{"name":["web"]}`, `{"name":{"web":true}}`} {
		var out []api.ContainerSummary
		if err := s.client.Call(context.Background(), "GET", "/containers/json", map[string][]string{"filters": {q}}, nil, &out); err != nil || out[0].Names[0] != "/web" {
			t.Errorf("%s: %v %v", q, out, err)
		}
	}
	var created struct {
		ID       string `json:"Id"`
		Warnings []string
	}
	body := map[string]any{"Image": "a", "Cmd": "one string", "MacAddress": "02:42:ac:11:00:02", "HostConfig": map[string]any{"NetworkMode": "mine"}}
	if err := s.client.Call(context.Background(), "POST", "/containers/create", map[string][]string{"name": {"web"}}, body, &created); err != nil || created.ID != "abc" || len(created.Warnings) != 1 {
		t.Fatalf("%+v %v", created, err)
	}
	if f.created.Name != "web" || len(f.created.Config.Cmd) != 1 || f.created.Networks["mine"].MacAddress.String() != "02:42:ac:11:00:02" {
		t.Errorf("%+v", f.created)
	}
}

// A brief list has what a table shows, and nothing else.
func TestBriefList(t *testing.T) {
	s := serve(t, &fakeContainers{})
	var full, brief []map[string]any
	for q, out := range map[string]any{"": &full, "1": &brief} {
		if err := s.client.Call(context.Background(), "GET", "/containers/json", map[string][]string{"onggi-brief": {q}}, nil, out); err != nil {
			t.Fatal(err)
		}
	}
	if len(full) == 0 || len(full) != len(brief) {
		t.Fatalf("%v, %v", full, brief)
	}
	for _, k := range []string{"Id", "Names", "Image", "Command", "Created", "State", "Status"} {
		if !reflect.DeepEqual(brief[0][k], full[0][k]) {
			t.Errorf("%s: %v, %v", k, brief[0][k], full[0][k])
		}
	}
	for _, k := range []string{"Labels", "NetworkSettings", "Mounts", "HostConfig"} {
		if _, there := brief[0][k]; there {
			t.Errorf("brief: %s", k)
		}
	}
}

func TestEventsStream(t *testing.T) {
	s := serve(t, &fakeContainers{})
	before := time.Now().Add(-time.Second)
	s.bus.Emit(events.Container, "create", "old", nil)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	resp, err := s.client.Do(ctx, api.Request{Method: "GET", Path: "/events", Query: map[string][]string{"since": {fmt.Sprint(before.Unix())}, "filters": {`{"type":["container"]}`}}})
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s.bus.Emit(events.Image, "pull", "ignored", nil)
	s.bus.Emit(events.Container, "start", "new", nil)
	d := json.NewDecoder(resp.Body)
	for _, want := range []string{"old", "new"} {
		var m api.Event
		if err := d.Decode(&m); err != nil || m.Actor.ID != want {
			t.Fatalf("%+v %v, want %s", m, err, want)
		}
	}
}

// One request runs a container: its output and its exit status come in frames.
func TestRun(t *testing.T) {
	f := &fakeContainers{}
	s := serve(t, f)
	create := json.RawMessage(`{"Image":"a","Tty":false}`)
	r, err := s.client.Run(context.Background(), api.RunRequest{Name: "web", Create: create, Attach: api.RunAttach{Stdin: true, Stdout: true}})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if err := r.Stdin([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	var got []string
	for {
		stream, p, err := r.Next(nil)
		if err != nil {
			break
		}
		got = append(got, fmt.Sprintf("%d:%s", stream, p))
	}
	want := `4:{"id":"abc"} 4:{"warning":"careful"} 1:echo hello 4:{"exit":3}`
	if strings.Join(got, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(got, " "), want)
	}
}

func TestRunFailures(t *testing.T) {
	f := &fakeContainers{}
	s := serve(t, f)
	last := func(q api.RunRequest) (ev api.RunEvent) {
		t.Helper()
		r, err := s.client.Run(context.Background(), q)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		for {
			stream, p, err := r.Next(nil)
			if err != nil {
				return ev
			}
			if stream == api.FrameEvent {
				ev = api.RunEvent{}
				json.Unmarshal(p, &ev)
			}
		}
	}
	ev := last(api.RunRequest{Create: json.RawMessage(`{"Image":"missing"}`)})
	if ev.Error == nil || ev.Error.MissingImage != "missing" || ev.Error.Status != 404 || ev.Error.Hint != "pull it" {
		t.Errorf("missing image: %+v", ev.Error)
	}
	f.startErr = &container.StartError{Code: 127, Err: errdefs.Newf(errdefs.Invalid, "", "", "not found in $PATH")}
	ev = last(api.RunRequest{Create: json.RawMessage(`{"Image":"a"}`), Attach: api.RunAttach{Stdout: true}})
	if ev.Error == nil || ev.Error.ExitCode != 127 {
		t.Errorf("start error: %+v", ev.Error)
	}
	f.startErr = nil
	if ev = last(api.RunRequest{Create: json.RawMessage(`{"Image":"a"}`), Detach: true}); !ev.Detached {
		t.Errorf("detached: %+v", ev)
	}
	if _, err := s.client.Run(context.Background(), api.RunRequest{Create: json.RawMessage(`5`)}); api.StatusOf(err) != 400 {
		t.Errorf("malformed: %v", err)
	}
}

// No body makes the decoder panic, or accept what is not one value.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"Image":"a","Cmd":"x","HostConfig":{"PortBindings":{"80/tcp":[{"HostIp":"","HostPort":"1"}]}}}`))
	f.Add([]byte(`{"MacAddress":"x"}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var b createBody
		if err := decodeBody(newBytes(raw), &b); err == nil {
			b.request("", "")
		}
	})
}
