package engineapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
	containertypes "github.com/moby/moby/api/types/container"
	networktypes "github.com/moby/moby/api/types/network"

	"github.com/onggi/onggi/internal/container"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/reference"
)

func (s *Server) containerList(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	limit, err := c.number("limit", 0, -1, math.MaxInt32)
	if err != nil {
		return err
	}
	// Parameters of the oldest clients.
	for _, k := range []string{"since", "before"} {
		if v := c.query(k); v != "" {
			f = putFilter(f, k, v)
		}
	}
	brief := c.boolean("onggi-brief") // our client asks for it where it shows no more
	list, err := s.o.Containers.List(c.ctx(), container.ListOptions{All: c.boolean("all"), Size: c.boolean("size"), Brief: brief, Limit: int(limit), Filters: f})
	if err != nil {
		return err
	}
	if brief {
		return c.json(http.StatusOK, briefSummaries(list))
	}
	return c.json(http.StatusOK, compatSummaries(list, c.version))
}

// briefSummary is what a table of containers shows. With a thousand of them the
// whole answer has a megabyte, which takes client and engine longer than all else.
type briefSummary struct {
	ID         string `json:"Id"`
	Names      []string
	Image      string
	Command    string
	Created    int64
	Ports      []containertypes.PortSummary `json:",omitempty"`
	SizeRw     int64                        `json:",omitempty"`
	SizeRootFs int64                        `json:",omitempty"`
	State      containertypes.ContainerState
	Status     string
}

func briefSummaries(list []containertypes.Summary) []briefSummary {
	out := make([]briefSummary, len(list))
	for i, c := range list {
		out[i] = briefSummary{c.ID, c.Names, c.Image, c.Command, c.Created, c.Ports, c.SizeRw, c.SizeRootFs, c.State, c.Status}
	}
	return out
}

func putFilter(f map[string][]string, k, v string) map[string][]string {
	if f == nil {
		f = map[string][]string{}
	}
	f[k] = append(f[k], v)
	return f
}

// createBody is the body of a create, with what older clients put elsewhere.
type createBody struct {
	*containertypes.Config // nil = the request has none of its fields
	HostConfig             *containertypes.HostConfig
	NetworkingConfig       *networktypes.NetworkingConfig
	MacAddress             string // before 1.44
}

func (b *createBody) request(name, platform string) (container.CreateRequest, error) {
	q := container.CreateRequest{Name: name, Platform: platform, Config: b.Config, HostConfig: b.HostConfig}
	if b.Config == nil {
		return q, invalid("config cannot be empty in order to create a container")
	}
	if q.HostConfig == nil {
		q.HostConfig = &containertypes.HostConfig{}
	}
	if b.NetworkingConfig != nil {
		q.Networks = b.NetworkingConfig.EndpointsConfig
	}
	if b.MacAddress != "" {
		var mac networktypes.HardwareAddr
		if err := mac.UnmarshalText([]byte(b.MacAddress)); err != nil {
			return q, invalid("invalid MAC address %.50q", b.MacAddress)
		}
		mode := q.HostConfig.NetworkMode
		if mode.IsContainer() || mode.IsHost() {
			return q, invalid("conflicting options: mac-address and the network mode")
		}
		n := mode.NetworkName()
		if n == "" || n == networktypes.NetworkDefault {
			n = networktypes.NetworkBridge
		}
		if q.Networks == nil {
			q.Networks = map[string]*networktypes.EndpointSettings{}
		}
		if q.Networks[n] == nil {
			q.Networks[n] = &networktypes.EndpointSettings{}
		}
		if len(q.Networks[n].MacAddress) == 0 {
			q.Networks[n].MacAddress = mac
		}
	}
	return q, nil
}

func (s *Server) containerCreate(c *call) error {
	var b createBody
	if err := c.decode(&b); err != nil {
		return err
	}
	q, err := b.request(c.query("name"), c.query("platform"))
	if err != nil {
		return err
	}
	if err := compatCreate(&q, c.version, s.o.Engine.CgroupVersion == "2"); err != nil {
		return err
	}
	var unbound []string
	if c.version >= 52 && b.HostConfig != nil {
		for port, bindings := range b.HostConfig.PortBindings {
			if len(bindings) == 0 {
				unbound = append(unbound, port.String())
			}
		}
		slices.Sort(unbound)
	}
	id, warnings, err := s.o.Containers.Create(c.ctx(), q)
	if err != nil {
		return err
	}
	if len(unbound) > 0 {
		warnings = append(warnings, "Following container port(s) have an empty list of port-bindings: "+strings.Join(unbound, ", ")+". Such bindings will be discarded in a future version.")
	}
	if warnings == nil {
		warnings = []string{}
	}
	return c.json(http.StatusCreated, containertypes.CreateResponse{ID: id, Warnings: warnings})
}

func (s *Server) containerInspect(c *call) error {
	v, err := s.o.Containers.Inspect(c.ctx(), c.path["id"], c.boolean("size"))
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, compatInspect(v, c.version))
}

func (s *Server) containerTop(c *call) error {
	args := c.query("ps_args")
	if args == "" {
		args = "-ef"
	}
	v, err := s.o.Containers.Top(c.path["id"], args)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, v)
}

func (s *Server) containerChanges(c *call) error {
	v, err := s.o.Containers.Changes(c.ctx(), c.path["id"])
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, v)
}

func (s *Server) containerStart(c *call) error {
	// Docker once took a HostConfig here; a body is refused as it is today.
	if c.r.ContentLength > 2 {
		return invalid("starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24")
	}
	if id := c.query("checkpoint"); id != "" {
		if !container.ValidName(id) {
			return invalid("invalid checkpoint ID %.50q, only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", id)
		}
		return s.noCheckpoints(c)
	}
	if err := s.o.Containers.Start(c.ctx(), c.path["id"], container.StartOptions{}); err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (c *call) stopOptions() (o container.StopOptions, err error) {
	o.Signal = c.query("signal")
	if c.version < 42 {
		o.Signal = ""
	}
	if c.r.URL.Query().Has("t") && c.query("t") != "" {
		n, err := c.number("t", 0, math.MinInt32, math.MaxInt32)
		if err != nil {
			return o, err
		}
		t := int(n)
		o.Timeout = &t
	}
	return o, nil
}

func (s *Server) containerStop(c *call) error {
	o, err := c.stopOptions()
	if err != nil {
		return err
	}
	// A client that goes away leaves the container stopping.
	if err := s.o.Containers.Stop(context.WithoutCancel(c.ctx()), c.path["id"], o); err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (s *Server) containerRestart(c *call) error {
	o, err := c.stopOptions()
	if err != nil {
		return err
	}
	if err := s.o.Containers.Restart(context.WithoutCancel(c.ctx()), c.path["id"], o); err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (s *Server) containerKill(c *call) error {
	if err := s.o.Containers.Kill(c.ctx(), c.path["id"], c.query("signal")); err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (s *Server) containerPause(c *call) error {
	if err := s.o.Containers.Pause(c.ctx(), c.path["id"]); err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (s *Server) containerUnpause(c *call) error {
	if err := s.o.Containers.Unpause(c.ctx(), c.path["id"]); err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (s *Server) containerRename(c *call) error {
	if err := s.o.Containers.Rename(c.ctx(), c.path["id"], c.query("name")); err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (s *Server) containerUpdate(c *call) error {
	var u containertypes.UpdateConfig
	if err := c.decode(&u); err != nil {
		return err
	}
	if c.version < 40 {
		u.PidsLimit = nil
	}
	w, err := s.o.Containers.Update(c.ctx(), c.path["id"], u)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, containertypes.UpdateResponse{Warnings: w})
}

func (s *Server) containerRemove(c *call) error {
	if c.boolean("link") {
		if err := s.o.Containers.Unlink(c.ctx(), c.path["id"]+"/"+c.path["alias"]); err != nil {
			return err
		}
		return c.done(http.StatusNoContent)
	}
	if c.path["alias"] != "" {
		return errdefs.Newf(errdefs.NotFound, "", "", "No such container: %s/%s", c.path["id"], c.path["alias"])
	}
	if err := s.o.Containers.Remove(c.ctx(), c.path["id"], container.RemoveOptions{Force: c.boolean("force"), Volumes: c.boolean("v")}); err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (s *Server) containerPrune(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	r, err := s.o.Containers.Prune(c.ctx(), f)
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, r)
}

func (s *Server) containerWait(c *call) error {
	cond := containertypes.WaitCondition(c.query("condition"))
	if c.version < 30 {
		cond = containertypes.WaitConditionNotRunning
	}
	wait, err := s.o.Containers.Wait(c.path["id"], cond)
	if err != nil {
		return err
	}
	// The client starts the container only when it knows that it is waited for.
	out := c.flushing(types.MediaTypeJSON)
	if c.version >= 30 {
		out.begin()
	}
	res, err := wait(c.ctx())
	if err != nil {
		return err
	}
	answer := containertypes.WaitResponse{StatusCode: int64(res.ExitCode)}
	if res.Error != "" {
		answer.Error = &containertypes.WaitExitError{Message: res.Error}
	}
	return json.NewEncoder(out).Encode(answer)
}

func (s *Server) containerResize(c *call) error {
	h, w, err := c.size()
	if err != nil {
		return err
	}
	if err := s.o.Containers.Resize(c.ctx(), c.path["id"], h, w); err != nil {
		return err
	}
	return c.done(http.StatusOK)
}

func (s *Server) containerAttach(c *call) error {
	c.rawErrors = c.r.Header.Get("Upgrade") == "" // such clients, old ones, read a stream and nothing else
	o, tty, err := s.attachOptions(c)
	if err != nil {
		return err
	}
	return s.o.Containers.Attach(c.ctx(), c.path["id"], o, func() (container.Stream, error) {
		conn, in, err := c.hijack(c.streamType(tty))
		return container.Stream{Conn: conn, Input: in}, err
	})
}

func (s *Server) attachOptions(c *call) (o container.AttachOptions, tty bool, err error) {
	v, err := s.o.Containers.Inspect(c.ctx(), c.path["id"], false)
	if err != nil {
		return o, false, err
	}
	tty = v.Config.Tty
	o = container.AttachOptions{
		Stdin: c.boolean("stdin"), Stdout: c.boolean("stdout"), Stderr: c.boolean("stderr"), Logs: c.boolean("logs"), Follow: c.boolean("stream"), Mux: !tty,
	}
	if k := c.query("detachKeys"); k != "" {
		o.DetachKeys, err = container.ReadDetachKeys(k)
	}
	return o, tty, err
}

func (s *Server) containerLogs(c *call) error {
	o := container.LogOptions{
		Stdout: c.boolean("stdout"), Stderr: c.boolean("stderr"), Follow: c.boolean("follow"), Timestamps: c.boolean("timestamps"), Details: c.boolean("details"),
		Restarts: c.query("follow") == "restarts", // our own client's
	}
	if !o.Stdout && !o.Stderr {
		return invalid("Bad parameters: must specify at least one of 'stdout' or 'stderr'")
	}
	var err error
	for _, t := range []struct {
		key string
		to  *time.Time
	}{{"since", &o.Since}, {"until", &o.Until}} {
		if v := c.query(t.key); v != "" && v != "0" {
			if *t.to, err = container.ParseTime(v, time.Now()); err != nil {
				return invalid("%s: %v", t.key, err)
			}
		}
	}
	if tail := c.query("tail"); tail != "" && tail != "all" {
		n, err := strconv.Atoi(tail)
		switch {
		case err != nil: // Docker shows everything
		case n == 0:
			o.Tail = -1
		case n > 0:
			o.Tail = n
		}
	}
	tty, err := s.o.Containers.LogsTTY(c.path["id"])
	if err != nil {
		return err
	}
	out := c.flushing(c.streamType(tty))
	out.begin()
	return s.o.Containers.Logs(c.ctx(), c.path["id"], o, out)
}

func (s *Server) containerStats(c *call) error {
	stream := c.booleanOr("stream", true)
	oneShot := c.boolean("one-shot")
	if stream && oneShot {
		return invalid("cannot have stream=true and one-shot=true")
	}
	if _, err := s.o.Containers.Inspect(c.ctx(), c.path["id"], false); err != nil {
		return err
	}
	out := c.flushing(types.MediaTypeJSON)
	if stream {
		out.begin()
	}
	return s.o.Containers.Stats(c.ctx(), c.path["id"], stream, oneShot, func(v containertypes.StatsResponse) bool {
		return json.NewEncoder(out).Encode(v) == nil
	})
}

func (s *Server) containerExport(c *call) error {
	write, closer, err := s.o.Containers.Export(c.ctx(), c.path["id"])
	if err != nil {
		return err
	}
	defer closer()
	return c.tar(write)
}

// tar answers with an archive. A failure in the middle breaks the connection
// off: the client must not take half for the whole.
func (c *call) tar(write func(io.Writer) error) error {
	c.w.Header().Set("Content-Type", "application/x-tar")
	out := &began{c}
	if err := write(out); err != nil {
		if c.began {
			panic(http.ErrAbortHandler)
		}
		return err
	}
	return nil
}

type began struct{ c *call }

func (b *began) Write(p []byte) (int, error) { b.c.began = true; return b.c.w.Write(p) }

const statHeader = "X-Docker-Container-Path-Stat"

func (c *call) setStat(st containertypes.PathStat) error {
	b, err := json.Marshal(st)
	if err == nil {
		c.w.Header().Set(statHeader, base64.StdEncoding.EncodeToString(b))
	}
	return err
}

func (c *call) archivePath() (string, error) {
	p := c.query("path")
	if p == "" {
		return "", invalid("bad parameter: empty path")
	}
	if strings.IndexByte(p, 0) >= 0 || len(p) > 4096 {
		return "", invalid("bad parameter: path %.100q", p)
	}
	if !path.IsAbs(p) {
		p = "/" + p
	}
	return p, nil
}

func (s *Server) archiveHead(c *call) error {
	p, err := c.archivePath()
	if err != nil {
		return err
	}
	st, err := s.o.Containers.StatPath(c.ctx(), c.path["id"], p)
	if err != nil {
		return err
	}
	if err := c.setStat(st); err != nil {
		return err
	}
	return c.done(http.StatusOK)
}

func (s *Server) archiveGet(c *call) error {
	p, err := c.archivePath()
	if err != nil {
		return err
	}
	st, write, closer, err := s.o.Containers.ArchivePath(c.ctx(), c.path["id"], p)
	if err != nil {
		return err
	}
	defer closer()
	if err := c.setStat(st); err != nil {
		return err
	}
	return c.tar(write)
}

func (s *Server) archivePut(c *call) error {
	p, err := c.archivePath()
	if err != nil {
		return err
	}
	o := container.ExtractOptions{NoOverwriteDirNonDir: c.boolean("noOverwriteDirNonDir"), CopyUIDGID: c.boolean("copyUIDGID")}
	if err := s.o.Containers.ExtractPath(c.ctx(), c.path["id"], p, o, c.r.Body); err != nil {
		return err
	}
	return c.done(http.StatusOK)
}

func (s *Server) execCreate(c *call) error {
	var q containertypes.ExecCreateRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	if q.ConsoleSize != nil && c.version < 42 {
		q.ConsoleSize = nil
	}
	id, err := s.o.Containers.ExecCreate(c.ctx(), c.path["id"], q)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, containertypes.ExecCreateResponse{ID: id})
}

func (s *Server) execStart(c *call) error {
	var q containertypes.ExecStartRequest
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxBody)
	if err := c.decodeOptional(&q); err != nil {
		return err
	}
	id := c.path["id"]
	if q.Detach {
		if err := s.o.Containers.ExecStart(c.ctx(), id, q, nil); err != nil {
			return err
		}
		return c.done(http.StatusOK)
	}
	if c.version < 42 || !q.Tty {
		q.ConsoleSize = nil
	}
	return s.o.Containers.ExecStart(c.ctx(), id, q, func() (container.Stream, error) {
		conn, in, err := c.hijack(c.streamType(q.Tty))
		return container.Stream{Conn: conn, Input: in, Mux: !q.Tty}, err
	})
}

func (s *Server) execResize(c *call) error {
	h, w, err := c.size()
	if err != nil {
		return err
	}
	if err := s.o.Containers.ExecResize(c.ctx(), c.path["id"], h, w); err != nil {
		return err
	}
	return c.done(http.StatusOK)
}

func (s *Server) execInspect(c *call) error {
	v, err := s.o.Containers.ExecInspect(c.path["id"])
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, v)
}

func (s *Server) commit(c *call) error {
	var cfg *containertypes.Config
	if c.r.ContentLength != 0 {
		cfg = &containertypes.Config{}
		if err := c.decodeOptional(cfg); err != nil {
			return err
		}
	}
	ref, err := repoTag(c.query("repo"), c.query("tag"))
	if err != nil {
		return err
	}
	id, err := s.o.Containers.Commit(c.ctx(), c.query("container"), container.CommitOptions{
		Ref: ref, Author: c.query("author"), Comment: c.query("comment"), Changes: c.r.URL.Query()["changes"], Config: cfg, Pause: c.booleanOr("pause", true),
	})
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, containertypes.CommitResponse{ID: id})
}

// repoTag reads the two halves in which old operations name an image; nil
// without a name.
func repoTag(repo, tag string) (*reference.Ref, error) {
	if repo == "" {
		return nil, nil
	}
	ref, err := reference.Parse(repo)
	if err != nil {
		return nil, err
	}
	if ref.Digest != "" {
		return nil, invalid("cannot import digest reference")
	}
	if tag != "" {
		if ref, err = ref.WithTag(tag); err != nil {
			return nil, err
		}
	}
	ref = ref.OrLatest()
	return &ref, nil
}

func (s *Server) noCheckpoints(c *call) error {
	return errdefs.Newf(errdefs.Unsupported, "", "", "checkpoint and restore of containers are not supported")
}
