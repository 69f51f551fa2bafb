package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
)

// mobyClient does with moby's Go client what Go programs do.
func mobyClient(t *testing.T, e *engine) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c, err := client.New(client.WithHost("unix://" + e.sock))
	no(t, err)
	defer c.Close()
	p, err := c.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true})
	no(t, err)
	if p.APIVersion != "1.56" || p.OSType != "linux" {
		t.Errorf("ping: %+v", p)
	}
	ev := c.Events(ctx, client.EventsListOptions{Filters: client.Filters{}.Add("type", "container")})
	seen := make(chan events.Action, 100)
	go func() {
		for m := range ev.Messages {
			seen <- m.Action
		}
	}()

	net, err := c.NetworkCreate(ctx, "net", client.NetworkCreateOptions{Labels: map[string]string{"a": "b"}})
	no(t, err)
	init := true
	made, err := c.ContainerCreate(ctx, client.ContainerCreateOptions{
		Name:   "life",
		Config: &container.Config{Image: "busybox", OpenStdin: true, StdinOnce: true, Cmd: []string{"sh", "-c", "echo out; echo err >&2; read x; echo got $x; exit 4"}},
		// A network that is asked for replaces the default one.
		HostConfig:       &container.HostConfig{Init: &init},
		NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{"net": {Aliases: []string{"also"}}}},
	})
	no(t, err)
	io1, err := c.ContainerAttach(ctx, "life", client.ContainerAttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
	no(t, err)
	waited := c.ContainerWait(ctx, "life", client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	_, err = c.ContainerStart(ctx, "life", client.ContainerStartOptions{})
	no(t, err)
	in, err := c.ContainerInspect(ctx, "life", client.ContainerInspectOptions{})
	no(t, err)
	if n := in.Container.NetworkSettings.Networks; len(n) != 1 || n["net"] == nil || n["net"].NetworkID != net.ID || !slices.Contains(n["net"].DNSNames, "also") {
		t.Errorf("networks: %+v", n)
	}
	// An exec with input, output and status.
	ex, err := c.ExecCreate(ctx, "life", client.ExecCreateOptions{AttachStdin: true, AttachStdout: true, AttachStderr: true, Cmd: []string{"sh", "-c", "cat; exit 5"}})
	no(t, err)
	es, err := c.ExecAttach(ctx, ex.ID, client.ExecAttachOptions{})
	no(t, err)
	io.WriteString(es.Conn, "into exec")
	es.CloseWrite()
	if out, _ := streams(t, es.Reader); out != "into exec" {
		t.Errorf("exec said %q", out)
	}
	es.Close()
	if x, err := c.ExecInspect(ctx, ex.ID, client.ExecInspectOptions{}); err != nil || x.ExitCode != 5 {
		t.Errorf("exec ended with %+v, %v", x, err)
	}
	// Files in and out.
	var files bytes.Buffer
	w := tar.NewWriter(&files)
	w.WriteHeader(&tar.Header{Name: "f", Mode: 0o600, Size: 4})
	io.WriteString(w, "file")
	w.Close()
	_, err = c.CopyToContainer(ctx, "life", client.CopyToContainerOptions{DestinationPath: "/tmp", Content: &files})
	no(t, err)
	back, err := c.CopyFromContainer(ctx, "life", client.CopyFromContainerOptions{SourcePath: "/tmp/f"})
	no(t, err)
	r := tar.NewReader(back.Content)
	if _, err := r.Next(); err != nil || back.Stat.Size != 4 {
		t.Errorf("copied %+v: %v", back.Stat, err)
	}
	back.Content.Close()
	stats, err := c.ContainerStats(ctx, "life", client.ContainerStatsOptions{})
	no(t, err)
	var st container.StatsResponse
	no(t, json.NewDecoder(stats.Body).Decode(&st))
	stats.Body.Close()
	if st.MemoryStats.Usage == 0 || len(st.Networks) == 0 {
		t.Errorf("stats: %+v", st.MemoryStats)
	}
	_, err = c.ContainerRemove(ctx, "life", client.ContainerRemoveOptions{})
	kind(t, err, cerrdefs.IsConflict)

	io.WriteString(io1.Conn, "typed\n")
	out, errs := streams(t, io1.Reader)
	if out != "out\ngot typed\n" || errs != "err\n" {
		t.Errorf("attached: %q, %q", out, errs)
	}
	io1.Close()
	select {
	case s := <-waited.Result:
		if s.StatusCode != 4 {
			t.Errorf("status %d", s.StatusCode)
		}
	case err := <-waited.Error:
		t.Error(err)
	}
	logs, err := c.ContainerLogs(ctx, "life", client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Tail: "1"})
	no(t, err)
	if out, _ := streams(t, logs); out != "got typed\n" {
		t.Errorf("logs: %q", out)
	}
	logs.Close()
	com, err := c.ContainerCommit(ctx, "life", client.ContainerCommitOptions{Reference: "committed:v1"})
	no(t, err)
	img, err := c.ImageInspect(ctx, "committed:v1")
	no(t, err)
	if img.ID != com.ID {
		t.Errorf("committed %s, found %s", com.ID, img.ID)
	}
	all, err := c.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("exited", "4")})
	no(t, err)
	if len(all.Items) != 1 || all.Items[0].ID != made.ID {
		t.Errorf("list: %+v", all.Items)
	}
	df, err := c.DiskUsage(ctx, client.DiskUsageOptions{Containers: true, Images: true, Volumes: true, BuildCache: true})
	no(t, err)
	if df.Images.TotalCount != 2 || df.Containers.TotalCount != 1 {
		t.Errorf("disk usage: %+v", df)
	}

	// Kinds of errors, which programs decide by.
	_, err = c.ContainerInspect(ctx, "nothing", client.ContainerInspectOptions{})
	kind(t, err, cerrdefs.IsNotFound)
	_, err = c.ContainerCreate(ctx, client.ContainerCreateOptions{Name: "life", Image: "busybox"})
	kind(t, err, cerrdefs.IsConflict)
	_, err = c.ContainerCreate(ctx, client.ContainerCreateOptions{Image: "nothing"})
	kind(t, err, cerrdefs.IsNotFound)
	_, err = c.ContainerCreate(ctx, client.ContainerCreateOptions{Name: "a b", Image: "busybox"})
	kind(t, err, cerrdefs.IsInvalidArgument)
	_, err = c.NetworkConnect(ctx, "nothing", client.NetworkConnectOptions{Container: "life"})
	kind(t, err, cerrdefs.IsNotFound)
	_, err = c.ContainerRemove(ctx, "life", client.ContainerRemoveOptions{RemoveVolumes: true})
	no(t, err)
	for _, want := range []events.Action{"create", "attach", "start", "exec_create: sh -c cat; exit 5", "exec_die", "die", "commit", "destroy"} {
		for got := range seen { // in this order
			if got == want {
				break
			}
		}
	}
}

func no(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func kind(t *testing.T, err error, is func(error) bool) {
	t.Helper()
	if !is(err) {
		t.Errorf("another kind of error: %v", err)
	}
}

func streams(t *testing.T, r io.Reader) (string, string) {
	t.Helper()
	var out, errs strings.Builder
	if _, err := stdcopy.StdCopy(&out, &errs, r); err != nil {
		t.Error(err)
	}
	return out.String(), errs.String()
}
