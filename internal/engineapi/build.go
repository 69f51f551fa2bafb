package engineapi

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"math"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	buildtypes "github.com/moby/moby/api/types/build"
	containertypes "github.com/moby/moby/api/types/container"
	registrytypes "github.com/moby/moby/api/types/registry"

	"github.com/onggi/onggi/internal/build"
	"github.com/onggi/onggi/internal/errdefs"
)

func (s *Server) builder() (Builder, error) {
	if s.o.Builder == nil {
		return nil, errdefs.Newf(errdefs.Unsupported, "", "", "this engine cannot build images")
	}
	return s.o.Builder, nil
}

func (s *Server) build(c *call) error {
	b, err := s.builder()
	if err != nil {
		return err
	}
	q, err := c.buildRequest()
	if err != nil {
		return err
	}
	out := c.progress()
	err = b.Classic(c.ctx(), q, func(m build.Message) error {
		out.send(m)
		return c.ctx().Err()
	})
	if err != nil && c.began {
		return nil // told as the stream's last message
	}
	return err
}

func (c *call) buildRequest() (q build.ClassicRequest, err error) {
	v := c.r.URL.Query()
	q = build.ClassicRequest{
		Remote: v.Get("remote"), Dockerfile: v.Get("dockerfile"), Tags: v["t"], Target: v.Get("target"), Platform: v.Get("platform"), NetworkMode: v.Get("networkmode"),
		CgroupParent: v.Get("cgroupparent"), NoCache: c.boolean("nocache"), Pull: truth(v.Get("pull")), Squash: c.boolean("squash"), Quiet: c.boolean("q"),
		Version: v.Get("version"), SessionID: v.Get("session"), BuildID: v.Get("buildid"),
	}
	if q.Version == "" {
		q.Version = "1"
	}
	if q.Version != "1" && q.Version != "2" {
		return q, invalid("invalid version %.20q: want 1 or 2", q.Version)
	}
	if q.Remote == "" {
		q.Tar = c.r.Body
	}
	for key, to := range map[string]any{"buildargs": &q.BuildArgs, "labels": &q.Labels, "cachefrom": &q.CacheFrom, "outputs": &q.Outputs} {
		if err := jsonQuery(v.Get(key), key, to); err != nil {
			return q, err
		}
	}
	for _, hosts := range v["extrahosts"] { // clients repeat it, the documentation has a list
		if hosts != "" {
			q.ExtraHosts = append(q.ExtraHosts, strings.Split(hosts, ",")...)
		}
	}
	if len(v["securityopt"]) > 0 {
		return q, invalid("security options are not supported on linux")
	}
	if _, err := parsePlatform(q.Platform); err != nil && !strings.Contains(q.Platform, ",") { // BuildKit takes lists
		return q, err
	}
	if i := v.Get("isolation"); i != "" && i != "default" {
		return q, invalid("unsupported isolation: %.20q", i)
	}
	if q.Resources, err = c.buildResources(); err != nil {
		return q, err
	}
	if q.ShmSize, err = c.number("shmsize", 0, 0, math.MaxInt64); err != nil {
		return q, err
	}
	var limits []*containertypes.Ulimit
	if err := jsonQuery(v.Get("ulimits"), "ulimits", &limits); err != nil {
		return q, err
	}
	for _, l := range limits {
		if l != nil {
			q.Ulimits = append(q.Ulimits, l.String())
		}
	}
	if h := c.r.Header.Get("X-Registry-Config"); h != "" {
		raw, err := base64.URLEncoding.DecodeString(h)
		if err != nil {
			return q, invalid("X-Registry-Config: not base64")
		}
		var accounts map[string]registrytypes.AuthConfig
		if err := json.Unmarshal(raw, &accounts); err != nil {
			return q, invalid("X-Registry-Config: %v", err)
		}
		q.Accounts = map[string]build.Account{}
		for host, a := range accounts {
			q.Accounts[host] = build.Account{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		}
	}
	return q, nil
}

// buildResources are the limits that a request sets for the build's steps.
func (c *call) buildResources() (map[string]string, error) {
	out := map[string]string{}
	for _, key := range []string{"memory", "memswap", "cpushares", "cpuperiod", "cpuquota"} {
		n, err := c.number(key, 0, -1, math.MaxInt64)
		if err != nil {
			return nil, err
		}
		if n > 0 || n < 0 && key == "memswap" {
			out[key] = strconv.FormatInt(n, 10)
		}
	}
	for _, key := range []string{"cpusetcpus", "cpusetmems"} {
		if s := c.query(key); s != "" {
			out[key] = s
		}
	}
	return out, nil
}

func jsonQuery(v, key string, to any) error {
	if v == "" {
		return nil
	}
	if err := checkDepth([]byte(v)); err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(v), to); err != nil {
		return invalid("%s: %v", key, err)
	}
	return nil
}

func (s *Server) buildCancel(c *call) error {
	b, err := s.builder()
	if err != nil {
		return err
	}
	id := c.query("id")
	if id == "" {
		return invalid("build ID not provided")
	}
	if err := b.Cancel(id); err != nil {
		return err
	}
	return c.done(http.StatusOK)
}

func (s *Server) buildPrune(c *call) error {
	b, err := s.builder()
	if err != nil {
		return err
	}
	f, err := c.filters()
	if err != nil {
		return err
	}
	q := build.PruneRequest{All: c.boolean("all")}
	var match []string
	for key, vs := range f {
		for _, v := range vs {
			switch key {
			case "until", "unused-for":
				d, err := time.ParseDuration(v)
				if err != nil {
					return invalid("filter %s=%.50q: want a duration such as 24h", key, v)
				}
				q.KeepDuration = d
			case "id":
				match = append(match, "id~="+v)
			case "parent", "type", "description", "inuse", "shared", "private":
				if key == "inuse" || key == "shared" || key == "private" {
					match = append(match, key)
				} else {
					match = append(match, key+"=="+v)
				}
			default:
				return invalid("invalid filter '%.50s'", key)
			}
		}
	}
	if len(match) > 0 {
		q.Filters = []string{strings.Join(match, ",")} // all of them have to match
	}
	for _, n := range []struct {
		keys []string
		to   *int64
	}{{[]string{"reserved-space", "keep-storage"}, &q.ReservedSpace}, {[]string{"max-used-space"}, &q.MaxUsedSpace}, {[]string{"min-free-space"}, &q.MinFreeSpace}} {
		for _, k := range n.keys {
			v, err := c.number(k, 0, 0, math.MaxInt64)
			if err != nil {
				return err
			}
			if v != 0 {
				*n.to = v
			}
		}
	}
	p, err := b.Prune(c.ctx(), q)
	if err != nil {
		return err
	}
	if p.IDs == nil {
		p.IDs = []string{}
	}
	return c.json(http.StatusOK, buildtypes.CachePruneReport{CachesDeleted: p.IDs, SpaceReclaimed: uint64(p.SpaceReclaimed)})
}

// earlyConn is a connection whose first bytes were read already.
type earlyConn struct {
	net.Conn
	r io.Reader
}

func (e earlyConn) Read(p []byte) (int, error) { return e.r.Read(p) }

func (s *Server) session(c *call) error {
	b, err := s.builder()
	if err != nil {
		return err
	}
	conn, in, err := c.hijackAs("h2c")
	if err != nil {
		return err
	}
	return b.HandleSession(c.ctx(), earlyConn{conn, in}, c.r.Header)
}

func (s *Server) grpcUpgrade(c *call) error {
	b, err := s.builder()
	if err != nil {
		return err
	}
	conn, in, err := c.hijackAs("h2c")
	if err != nil {
		return err
	}
	return b.ServeGRPC(c.ctx(), earlyConn{conn, in})
}

// buildWhy explains a build.
func (s *Server) buildWhy(c *call) error {
	b, err := s.builder()
	if err != nil {
		return err
	}
	w, err := b.Why(c.ctx(), c.query("ref"))
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, w)
}

// buildDirectories takes descriptors from a client on this machine.
func (s *Server) buildDirectories(c *call) error {
	b, err := s.builder()
	if err != nil {
		return err
	}
	if local, ok := c.r.Context().Value(http.LocalAddrContextKey).(net.Addr); !ok || local.Network() != "unix" {
		return errdefs.Newf(errdefs.Unsupported, "take over", "build directories", "descriptors come over a unix socket only")
	}
	conn, _, err := c.hijackAs("onggi-directories")
	if err != nil {
		return err
	}
	u, ok := conn.(*net.UnixConn)
	if !ok {
		conn.Close()
		return nil
	}
	return b.TakeDirectories(c.ctx(), u)
}

// hijackAs switches to a protocol, which the client has to ask for.
func (c *call) hijackAs(proto string) (net.Conn, io.Reader, error) {
	switch asked := c.r.Header.Get("Upgrade"); asked {
	case proto:
	case "":
		return nil, nil, invalid("no upgrade proto in request: want %s", proto)
	default:
		return nil, nil, invalid("protocol %.20q not supported: want %s", asked, proto)
	}
	h, ok := c.w.(http.Hijacker)
	if !ok {
		return nil, nil, invalid("this stream needs HTTP/1.1")
	}
	conn, buf, err := h.Hijack()
	if err != nil {
		return nil, nil, err
	}
	c.began = true
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+proto+"\r\n\r\n"); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, buffered(conn, buf.Reader), nil
}

// grpc serves HTTP/2 requests of BuildKit's API on the socket itself.
func (s *Server) grpc(w http.ResponseWriter, r *http.Request) {
	b, err := s.builder()
	if err == nil {
		if srv, e := b.GRPC(r.Context()); e == nil {
			srv.ServeHTTP(w, r)
			return
		} else {
			err = e
		}
	}
	s.fail(&call{w: w, r: r}, err)
}
