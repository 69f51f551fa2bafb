// Package containers uses testcontainers for Go in front of an engine, as
// people's tests do. It is a module of its own: what testcontainers needs is no
// part of Onggi.
package containers

import (
	"context"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

// Its Ryuk, an image that cannot be had here, is switched off, as its
// documentation says.
func TestMain(m *testing.M) {
	os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	os.Exit(m.Run())
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// reaped gives an init: without one, a shell as PID 1 does not stop when asked to.
func reaped(h *container.HostConfig) { init := true; h.Init = &init }

func get(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url)
	check(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	check(t, err)
	return string(body)
}

func TestBuiltAndJoined(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	check(t, os.WriteFile(dir+"/Dockerfile", []byte("FROM busybox\nARG WHO\nRUN mkdir /www && echo $WHO >/www/index.html\nEXPOSE 80\nCMD [\"sh\", \"-c\", \"echo ready; exec httpd -f -h /www\"]\n"), 0o644))
	who := "me"
	net, err := network.New(ctx)
	testcontainers.CleanupNetwork(t, net)
	check(t, err)
	web, err := testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{Started: true, ContainerRequest: testcontainers.ContainerRequest{
		FromDockerfile:     testcontainers.FromDockerfile{Context: dir, BuildArgs: map[string]*string{"WHO": &who}},
		ExposedPorts:       []string{"80/tcp"},
		HostConfigModifier: reaped,
		Networks:           []string{net.Name},
		NetworkAliases:     map[string][]string{net.Name: {"web"}},
		Files:              []testcontainers.ContainerFile{{Reader: strings.NewReader("copied"), ContainerFilePath: "/www/copied", FileMode: 0o644}},
		WaitingFor:         wait.ForAll(wait.ForListeningPort("80/tcp"), wait.ForLog("ready"), wait.ForHTTP("/"), wait.ForExec([]string{"test", "-e", "/www/copied"})),
	}})
	testcontainers.CleanupContainer(t, web)
	check(t, err)
	at, err := web.PortEndpoint(ctx, "80/tcp", "http")
	check(t, err)
	if got := get(t, at) + get(t, at+"/copied"); got != "me\ncopied" {
		t.Errorf("the pages say %q", got)
	}
	code, out, err := web.Exec(ctx, []string{"sh", "-c", "echo out; exit 3"}, exec.Multiplexed())
	check(t, err)
	if text, _ := io.ReadAll(out); code != 3 || string(text) != "out\n" {
		t.Errorf("exec: %d, %q", code, text)
	}
	file, err := web.CopyFileFromContainer(ctx, "/www/copied")
	check(t, err)
	if text, _ := io.ReadAll(file); string(text) != "copied" {
		t.Errorf("the file says %q", text)
	}

	peer, err := testcontainers.Run(ctx, "busybox", network.WithNetwork(nil, net), testcontainers.WithHostConfigModifier(reaped),
		testcontainers.WithEnv(map[string]string{"A": "b"}), testcontainers.WithTmpfs(map[string]string{"/t": "rw"}),
		testcontainers.WithCmd("sh", "-c", "echo $A; exec sleep 1000"), testcontainers.WithWaitStrategy(wait.ForLog("b\n")))
	testcontainers.CleanupContainer(t, peer)
	check(t, err)
	_, out, err = peer.Exec(ctx, []string{"wget", "-qO-", "http://web/"}, exec.Multiplexed())
	check(t, err)
	if text, _ := io.ReadAll(out); string(text) != "me\n" {
		t.Errorf("the peer sees %q", text)
	}
	second := time.Second
	check(t, peer.Stop(ctx, &second))
	check(t, peer.Start(ctx))
	if s, err := peer.State(ctx); err != nil || !s.Running {
		t.Errorf("it does not run again: %+v %v", s, err)
	}
}

type said struct{ lines chan string }

func (s said) Accept(l testcontainers.Log) { s.lines <- string(l.Content) }

func TestLogsAreFollowed(t *testing.T) {
	heard := said{make(chan string, 10)}
	c, err := testcontainers.GenericContainer(t.Context(), testcontainers.GenericContainerRequest{Started: true, ContainerRequest: testcontainers.ContainerRequest{
		HostConfigModifier: reaped, Image: "busybox", Cmd: []string{"sh", "-c", "echo one; echo two; exec sleep 1000"},
		LogConsumerCfg: &testcontainers.LogConsumerConfig{Consumers: []testcontainers.LogConsumer{heard}},
	}})
	testcontainers.CleanupContainer(t, c)
	check(t, err)
	for _, want := range []string{"one\n", "two\n"} {
		if got := <-heard.lines; got != want {
			t.Errorf("heard %q, want %q", got, want)
		}
	}
}

func TestWhatNeverGetsReady(t *testing.T) {
	for name, req := range map[string]testcontainers.ContainerRequest{
		"exits":    {Image: "busybox", Cmd: []string{"sh", "-c", "exit 9"}, WaitingFor: wait.ForLog("never").WithStartupTimeout(time.Minute)},
		"no image": {Image: os.Getenv("REGISTRY") + "/nothing"},
	} {
		c, err := testcontainers.GenericContainer(context.Background(), testcontainers.GenericContainerRequest{Started: true, ContainerRequest: req})
		testcontainers.CleanupContainer(t, c)
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
