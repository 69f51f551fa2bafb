package engineapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types"

	"github.com/onggi/onggi/internal/container"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
)

// The versions that are served.
const (
	MinVersion = "1.24"
	MaxVersion = "1.56"
)

const (
	maxBody       = 8 << 20
	headerTimeout = 10 * time.Second
	maxHeader     = 64 << 10 // X-Registry-Auth is the longest
)

// Options of a Server: the services it serves, and what it says of the engine.
type Options struct {
	Containers Containers
	Images     Images
	Networks   Networks
	Volumes    Volumes
	Registry   Registry
	Builder    Builder // nil = this engine cannot build
	Events     *events.Bus
	Engine     EngineInfo
	Hosts      []string // Host headers accepted on TCP beside addresses
	Logger     *slog.Logger
}

// EngineInfo is what GET /info and /version say that no service knows.
type EngineInfo struct {
	ID, Name, Root string
	Version        string
	Commit         string
	BuildTime      string
	Debug          bool
	Labels         []string
	LogDriver      string
	CgroupDriver   string
	CgroupVersion  string
	SeccompProfile string   // of containers that name none
	NoNewPrivs     bool     // of containers, unless they say otherwise
	ClassicBuilder bool     // what clients are told to build with
	Controllers    []string // control group controllers of this machine
	Mirrors        []string
	Insecure       []string
	InitBinary     string
	CDIDirs        []string
	Runtimes       map[string]container.Runtime
	DefaultRuntime string
	Warnings       []string
	AddressPools   [][2]string
}

// Server answers requests.
type Server struct {
	o    Options
	log  *slog.Logger
	tree *tree
}

// New makes a Server.
func New(o Options) *Server {
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return &Server{o: o, log: o.Logger, tree: newTree(routes)}
}

// HTTP is an http.Server that serves s, over HTTP/1.1 and unencrypted HTTP/2
// (for gRPC).
func (s *Server) HTTP() *http.Server {
	p := new(http.Protocols)
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true)
	p.SetHTTP2(true)
	return &http.Server{
		Handler: s, Protocols: p, ReadHeaderTimeout: headerTimeout, MaxHeaderBytes: maxHeader, IdleTimeout: 5 * time.Minute,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
}

// call is one request on its way to a handler.
type call struct {
	w       http.ResponseWriter
	r       *http.Request
	path    map[string]string
	version version
	began   bool // the answer's head is written

	rawErrors bool // the client reads text, not JSON
}

func (c *call) ctx() context.Context { return c.r.Context() }

// version is an API version; the major number is always 1.
type version int

func parseVersion(s string) (version, bool) {
	minor, ok := strings.CutPrefix(s, "1.")
	n, err := strconv.ParseUint(minor, 10, 16)
	return version(n), ok && err == nil && strconv.FormatUint(n, 10) == minor
}

func (v version) String() string { return "1." + strconv.Itoa(int(v)) }

func mustVersion(s string) version {
	v, ok := parseVersion(s)
	if !ok {
		panic("engineapi: version " + s)
	}
	return v
}

// ServeHTTP answers one request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := &call{w: w, r: r}
	h := w.Header()
	h.Set("Api-Version", MaxVersion)
	h.Set("Docker-Experimental", "false")
	h.Set("Ostype", runtime.GOOS)
	h.Set("Server", "Onggi/"+s.o.Engine.Version+" ("+runtime.GOOS+")")
	if err := s.guard(r); err != nil {
		s.fail(c, err)
		return
	}
	if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		s.grpc(w, r)
		return
	}
	rt, err := s.route(c)
	if err != nil {
		s.fail(c, err)
		return
	}
	if !rt.stream {
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
	}
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			if p == http.ErrAbortHandler {
				panic(p)
			}
			buf := make([]byte, 16<<10)
			s.log.Error("request panicked", "method", r.Method, "path", r.URL.Path, "panic", p, "stack", string(buf[:runtime.Stack(buf, false)]))
			s.fail(c, errdefs.Newf(errdefs.Internal, "", "", "the engine made a mistake; its log has the details"))
		}
		s.log.Debug("request", "method", r.Method, "path", r.URL.Path, "took", time.Since(start))
	}()
	if err := rt.handle(s, c); err != nil {
		s.fail(c, err)
	}
}

// guard refuses what only a browser, or a name that was bound to our address
// behind its back, would send.
func (s *Server) guard(r *http.Request) error {
	_, tcp := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	// Clients of websockets have to say an origin; on a unix socket none of them
	// is a web page.
	websocket := !tcp && strings.EqualFold(r.Header.Get("Upgrade"), "websocket")
	if o := r.Header.Get("Origin"); o != "" && !websocket {
		return errdefs.Newf(errdefs.Forbidden, "", "", "requests from web pages are refused (Origin: %.100q)", o)
	}
	if f := r.Header.Get("Sec-Fetch-Site"); f != "" && f != "none" {
		return errdefs.Newf(errdefs.Forbidden, "", "", "requests from web pages are refused")
	}
	if !tcp {
		return nil
	}
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if net.ParseIP(strings.Trim(host, "[]")) != nil || host == "localhost" || slices.Contains(s.o.Hosts, host) {
		return nil
	}
	return errdefs.WithHint(errdefs.Newf(errdefs.Forbidden, "", "", "the host name %.100q is not this engine's", host), "connect by address, or start the engine with this name in --api-host")
}

// route strips and checks the version, and finds the operation.
func (s *Server) route(c *call) (*route, error) {
	p := c.r.URL.Path
	c.version = mustVersion(MaxVersion)
	if rest, ok := strings.CutPrefix(p, "/v"); ok {
		vs, tail, _ := strings.Cut(rest, "/")
		if len(vs) > 0 && vs[0] >= '0' && vs[0] <= '9' {
			v, ok := parseVersion(vs)
			switch {
			case !ok:
				return nil, errdefs.Newf(errdefs.Invalid, "", "", "API version %.20q: want 1.%d to %s", vs, mustVersion(MinVersion), MaxVersion)
			case v > mustVersion(MaxVersion):
				return nil, errdefs.Newf(errdefs.Invalid, "", "", "client version %s is too new. Maximum supported API version is %s", v, MaxVersion)
			case v < mustVersion(MinVersion):
				return nil, errdefs.Newf(errdefs.Invalid, "", "", "client version %s is too old. Minimum supported API version is %s, please upgrade your client to a newer version", v, MinVersion)
			}
			c.version, p = v, "/"+tail
		}
	}
	rt, values, known := s.tree.find(c.r.Method, p)
	switch {
	case rt == nil && known:
		return nil, &statusError{http.StatusMethodNotAllowed, fmt.Sprintf("%s is not allowed for %.200s", c.r.Method, p)}
	case rt == nil:
		return nil, errdefs.Newf(errdefs.NotFound, "", "", "page not found")
	case c.version < mustVersion(rt.since):
		return nil, errdefs.Newf(errdefs.Invalid, "", "", "%s %s requires API version %s, but the request is for %s", rt.method, rt.path, rt.since, c.version)
	}
	c.path = values
	return rt, nil
}

// statusError is a failure that errdefs has no kind for.
type statusError struct {
	status int
	text   string
}

func (e *statusError) Error() string { return e.text }

func statusOf(err error) int {
	if e, ok := errors.AsType[*statusError](err); ok {
		return e.status
	}
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok && e != nil {
		return http.StatusRequestEntityTooLarge
	}
	if errors.Is(err, context.Canceled) {
		return 499
	}
	return errdefs.HTTPStatus(err)
}

// fail answers with an error, or ends a stream that began with one.
func (s *Server) fail(c *call, err error) {
	status := statusOf(err)
	if c.began {
		if !errors.Is(err, context.Canceled) {
			s.log.Debug("answer broken off", "path", c.r.URL.Path, "error", err)
		}
		return
	}
	if status >= 500 && status != 501 && status != 503 {
		s.log.Error("request failed", "method", c.r.Method, "path", c.r.URL.Path, "error", err)
	}
	if status == http.StatusNotModified {
		c.w.WriteHeader(status)
		return
	}
	h := c.w.Header()
	if c.rawErrors {
		h.Set("Content-Type", types.MediaTypeRawStream)
		c.w.WriteHeader(status)
		io.WriteString(c.w, err.Error()+"\r\n")
		return
	}
	h.Set("Content-Type", "application/json")
	c.w.WriteHeader(status)
	if c.r.Method == http.MethodHead {
		return
	}
	b, _ := marshal(struct {
		Message string `json:"message"`
		Hint    string `json:"hint,omitempty"`
	}{err.Error(), errdefs.HintOf(err)})
	c.w.Write(b)
}

// marshal encodes as Docker does: <, > and & stand for themselves, and a line
// break ends it.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(v)
	return b.Bytes(), err
}

// json answers with v.
func (c *call) json(status int, v any) error {
	b, err := marshal(v)
	if err != nil {
		return err
	}
	c.w.Header().Set("Content-Type", "application/json")
	c.w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	c.began = true
	c.w.WriteHeader(status)
	c.w.Write(b)
	return nil
}

// done answers without a body.
func (c *call) done(status int) error {
	c.began = true
	c.w.WriteHeader(status)
	return nil
}
