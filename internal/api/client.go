// Package api is a light client of the Docker Engine API and of Onggi's
// extension to it, for our own command line.
//
// # Model
//
// A Client speaks HTTP/1.1 itself, over a unix socket or TCP: requests with
// JSON or streamed bodies, answers of known length, chunked or until the
// connection ends, and connections taken over ("hijacked") for stdio. The
// types hold only what the command line shows; the engine's own are moby's.
//
// # Guarantees
//
// An answer of 400 and above becomes an *Error with the engine's message and
// hint. A cancelled context closes the connection, so no call outlives it.
// Header and line lengths are bounded.
//
// # Concurrency
//
// A Client may be used from many goroutines; it keeps at most one idle
// connection. A Stream belongs to one reader and one writer.
//
// # Not here
//
// net/http, which costs the command line half its start-up time; TLS, which is
// passed in as Options.Dial; retries, and starting the engine (cli).
package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"strings"
	"sync"
)

// DefaultSocket is where the engine listens unless told otherwise.
const DefaultSocket = "/run/onggi/onggi.sock"

// Version is the newest API version that this client speaks.
const Version = "1.56"

// limits of an answer's head
const (
	maxLine    = 64 << 10
	maxHeaders = 128
)

// Options says where the engine is.
type Options struct {
	Host      string                                      // "unix:///path", "tcp://host:port"; "" = DefaultSocket
	Name      string                                      // the Host header; "" = that of Host
	Version   string                                      // "" = Version; "none" = paths without a version
	UserAgent string                                      //
	Headers   map[string]string                           // sent with every request
	Dial      func(ctx context.Context) (net.Conn, error) // replaces the connection to Host (TLS, ssh)
}

// Client is a connection to one engine.
type Client struct {
	o      Options
	host   string // Host header
	prefix string // "/v1.56"

	mu   sync.Mutex
	idle *conn // guarded by mu
}

type conn struct {
	net.Conn
	r *bufio.Reader
}

// New checks the host's form; it does not connect.
func New(o Options) (*Client, error) {
	if o.Host == "" {
		o.Host = "unix://" + DefaultSocket
	}
	c := &Client{o: o, host: "onggi"}
	scheme, addr, ok := strings.Cut(o.Host, "://")
	if !ok || addr == "" {
		return nil, fmt.Errorf("host %q: want unix:///path, tcp://host:port or ssh://user@host", o.Host)
	}
	var network string
	switch scheme {
	case "unix":
		network = "unix"
	case "tcp", "http", "https":
		network, addr = "tcp", strings.TrimSuffix(addr, "/")
		c.host = addr
	default:
		if o.Dial == nil {
			return nil, fmt.Errorf("host %q: %s is not supported here", o.Host, scheme)
		}
	}
	if c.o.Dial == nil {
		c.o.Dial = func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		}
	}
	if o.Name != "" {
		c.host = o.Name
	}
	switch o.Version {
	case "none":
	case "":
		c.prefix = "/v" + Version
	default:
		c.prefix = "/v" + strings.TrimPrefix(o.Version, "v")
	}
	return c, nil
}

// Close drops the idle connection.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle == nil {
		return nil
	}
	err := c.idle.Close()
	c.idle = nil
	return err
}

// An Error is the engine's refusal.
type Error struct {
	Status  int    // HTTP status
	Message string // what the engine said
	Hint    string // what to try, "" where the engine did not say
}

func (e *Error) Error() string { return e.Message }

// StatusOf is the HTTP status of an *Error in err's chain, or 0.
func StatusOf(err error) int {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Status
	}
	return 0
}

// IsUnreachable reports whether err means that no engine answered: no socket,
// nobody listening, or no permission to connect.
func IsUnreachable(err error) bool {
	e, ok := errors.AsType[*net.OpError](err)
	return ok && e.Op == "dial"
}

// A Request is one call. Path is without the version prefix; a path that
// starts with "/onggi/" or "/_ping" never gets one.
type Request struct {
	Method string
	Path   string
	Query  url.Values
	Header map[string]string
	JSON   any       // body, encoded; or
	Body   io.Reader // body, streamed in chunks
}

// A Response is the engine's answer. Close Body.
type Response struct {
	Status int
	Header map[string]string // keys in lower case
	Body   io.ReadCloser
}

// Do sends a request and returns the answer when its head has arrived.
func (c *Client) Do(ctx context.Context, q Request) (*Response, error) {
	cn, reused, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { cn.Close() })
	resp, err := c.exchange(ctx, cn, q)
	if err != nil && reused && q.Body == nil && ctx.Err() == nil {
		// The engine closed the idle connection meanwhile (it may have been
		// restarted); nothing was answered, so try once more on a new one.
		stop()
		cn.Close()
		if cn, err = c.dial(ctx); err != nil {
			return nil, err
		}
		stop = context.AfterFunc(ctx, func() { cn.Close() })
		resp, err = c.exchange(ctx, cn, q)
	}
	if err != nil {
		stop()
		cn.Close()
		return nil, cause(ctx, err)
	}
	keep := resp.Header["connection"] != "close"
	body := bodyOf(q.Method, resp, cn.r)
	if body == nil {
		body, keep = &untilEOF{cn.r}, false
	}
	resp.Body = &respBody{client: c, conn: cn, r: body, keep: keep, ctxErr: ctx.Err, stop: stop}
	if resp.Status >= 400 {
		defer resp.Body.Close()
		return nil, readError(resp)
	}
	return resp, nil
}

func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (c *Client) exchange(ctx context.Context, cn *conn, q Request) (*Response, error) {
	werr := c.write(cn, q, "")
	if werr != nil && q.Body == nil {
		return nil, werr
	}
	// The engine may refuse before it has read a streamed body: its answer says
	// more than the broken pipe.
	for {
		resp, err := readHead(cn.r)
		if err != nil {
			return nil, errors.Join(werr, err)
		}
		if resp.Status != 100 {
			return resp, nil
		}
	}
}

// Call sends JSON (in may be nil) and decodes the answer into out (may be nil).
func (c *Client) Call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	resp, err := c.Do(ctx, Request{Method: method, Path: path, Query: query, JSON: in})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if out != nil && resp.Status != 204 && resp.Status != 304 {
		if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
			return fmt.Errorf("%s %s: answer: %w", method, path, err)
		}
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return err
}

// A Stream is a connection taken over after the request: what is written goes
// to the engine, what is read comes from it.
type Stream struct {
	Header map[string]string
	cn     *conn
	stop   func() bool
}

func (s *Stream) Read(p []byte) (int, error)  { return s.cn.r.Read(p) }
func (s *Stream) Write(p []byte) (int, error) { return s.cn.Write(p) }

// CloseWrite tells the engine that no more input comes.
func (s *Stream) CloseWrite() error {
	if w, ok := s.cn.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Close ends the stream.
func (s *Stream) Close() error { s.stop(); return s.cn.Close() }

// Hijack sends a request with "Upgrade: tcp" and takes the connection over.
func (c *Client) Hijack(ctx context.Context, q Request) (*Stream, error) {
	cn, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { cn.Close() })
	fail := func(err error) (*Stream, error) {
		stop()
		cn.Close()
		return nil, cause(ctx, err)
	}
	if err := c.write(cn, q, "tcp"); err != nil {
		return fail(err)
	}
	resp, err := readHead(cn.r)
	if err != nil {
		return fail(err)
	}
	if resp.Status != 101 && resp.Status != 200 {
		resp.Body = io.NopCloser(cn.r)
		if b := bodyOf(q.Method, resp, cn.r); b != nil {
			resp.Body = io.NopCloser(b)
		}
		return fail(readError(resp))
	}
	return &Stream{Header: resp.Header, cn: cn, stop: stop}, nil
}

func (c *Client) connect(ctx context.Context) (cn *conn, reused bool, err error) {
	c.mu.Lock()
	cn, c.idle = c.idle, nil
	c.mu.Unlock()
	if cn != nil {
		return cn, true, nil
	}
	cn, err = c.dial(ctx)
	return cn, false, err
}

// Dial opens a connection of the caller's own.
func (c *Client) Dial(ctx context.Context) (net.Conn, error) { return c.o.Dial(ctx) }

func (c *Client) dial(ctx context.Context) (*conn, error) {
	nc, err := c.o.Dial(ctx)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: nc, r: bufio.NewReaderSize(nc, 32<<10)}, nil
}

func (c *Client) release(cn *conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle == nil && cn.r.Buffered() == 0 {
		c.idle = cn
		return
	}
	cn.Close()
}

// write sends the request's head and body.
func (c *Client) write(w io.Writer, q Request, upgrade string) error {
	var b bytes.Buffer
	path := q.Path
	if !strings.HasPrefix(path, "/onggi/") && path != "/_ping" {
		path = c.prefix + path
	}
	if len(q.Query) > 0 {
		path += "?" + q.Query.Encode()
	}
	if strings.ContainsAny(path, " \r\n") || strings.ContainsAny(q.Method, " \r\n") {
		return fmt.Errorf("request path %q: not allowed in a request", path)
	}
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", q.Method, path, c.host)
	if c.o.UserAgent != "" {
		header(&b, "User-Agent", c.o.UserAgent)
	}
	for k, v := range c.o.Headers {
		header(&b, k, v)
	}
	for k, v := range q.Header {
		header(&b, k, v)
	}
	if upgrade != "" {
		b.WriteString("Connection: Upgrade\r\nUpgrade: " + upgrade + "\r\n")
	}
	switch {
	case q.JSON != nil:
		j, err := json.Marshal(q.JSON)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n", len(j))
		b.Write(j)
	case q.Body != nil:
		b.WriteString("Transfer-Encoding: chunked\r\n\r\n")
		if _, err := w.Write(b.Bytes()); err != nil {
			return err
		}
		return writeChunks(w, q.Body)
	case q.Method == "GET" || q.Method == "HEAD":
		b.WriteString("\r\n")
	default:
		b.WriteString("Content-Length: 0\r\n\r\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}

func header(b *bytes.Buffer, k, v string) {
	clean := strings.NewReplacer("\r", "", "\n", "")
	fmt.Fprintf(b, "%s: %s\r\n", clean.Replace(k), clean.Replace(v))
}

func writeChunks(w io.Writer, body io.Reader) error {
	buf := make([]byte, 64<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, werr := fmt.Fprintf(w, "%x\r\n%s\r\n", n, buf[:n]); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			_, err = io.WriteString(w, "0\r\n\r\n")
			return err
		}
		if err != nil {
			return err
		}
	}
}

var errHead = errors.New("not an HTTP answer: is that the engine's socket?")

func readLine(r *bufio.Reader) (string, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			return strings.TrimRight(string(line), "\r\n"), nil
		}
		if err == io.EOF && len(line) > 0 {
			return "", io.ErrUnexpectedEOF
		}
		if err != bufio.ErrBufferFull {
			return "", err
		}
		if len(line) > maxLine {
			return "", errHead
		}
	}
}

func readHead(r *bufio.Reader) (*Response, error) {
	line, err := readLine(r)
	if err != nil {
		return nil, err
	}
	proto, rest, ok := strings.Cut(line, " ")
	code, _, _ := strings.Cut(rest, " ")
	status, aerr := strconv.Atoi(code)
	if !ok || !strings.HasPrefix(proto, "HTTP/1.") || aerr != nil || status < 100 || status > 999 {
		return nil, errHead
	}
	resp := &Response{Status: status, Header: map[string]string{}}
	for range maxHeaders {
		line, err := readLine(r)
		if err != nil {
			return nil, err
		}
		if line == "" {
			return resp, nil
		}
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			return nil, errHead
		}
		resp.Header[strings.ToLower(strings.TrimSpace(k))] = strings.TrimSpace(v)
	}
	return nil, errHead
}

// bodyOf frames the body; nil means that it ends with the connection.
func bodyOf(method string, resp *Response, r *bufio.Reader) io.Reader {
	if method == "HEAD" || resp.Status == 204 || resp.Status == 304 || resp.Status < 200 {
		return bytes.NewReader(nil)
	}
	if strings.EqualFold(resp.Header["transfer-encoding"], "chunked") {
		return &chunked{r: r}
	}
	if n, err := strconv.ParseInt(resp.Header["content-length"], 10, 64); err == nil && n >= 0 {
		return &exactly{r: r, left: n}
	}
	return nil
}

func readError(resp *Response) error {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	e := &Error{Status: resp.Status}
	var body struct{ Message, Hint string }
	if json.Unmarshal(raw, &body) == nil && body.Message != "" {
		e.Message, e.Hint = body.Message, body.Hint
		return e
	}
	e.Message = strings.TrimSpace(string(raw))
	if e.Message == "" {
		e.Message = "the engine answered with status " + strconv.Itoa(resp.Status)
		if err != nil {
			e.Message += ": " + err.Error()
		}
	}
	return e
}

// respBody gives the connection back once it was read to the end.
type respBody struct {
	client *Client
	conn   *conn
	r      io.Reader
	keep   bool
	done   bool
	ctxErr func() error
	stop   func() bool
}

func (b *respBody) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if err == io.EOF {
		b.done = true
	} else if err != nil && b.ctxErr() != nil {
		err = b.ctxErr()
	}
	return n, err
}

func (b *respBody) Close() error {
	if b.conn == nil {
		return nil
	}
	cn := b.conn
	b.conn = nil
	if !b.done {
		// A short rest is cheaper to read than a new connection.
		if n, _ := b.r.(interface{ rest() int64 }); n != nil && n.rest() == 0 {
			b.done = true
		}
	}
	if b.stop() && b.done && b.keep {
		b.client.release(cn)
		return nil
	}
	return cn.Close()
}

type untilEOF struct{ io.Reader }

type exactly struct {
	r    io.Reader
	left int64
}

func (e *exactly) rest() int64 { return e.left }

func (e *exactly) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	if int64(len(p)) > e.left {
		p = p[:e.left]
	}
	n, err := e.r.Read(p)
	e.left -= int64(n)
	if err == io.EOF && e.left > 0 {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

type chunked struct {
	r    *bufio.Reader
	left int64 // of the current chunk
	err  error
}

func (c *chunked) Read(p []byte) (int, error) {
	if c.err != nil {
		return 0, c.err
	}
	if c.left == 0 {
		if c.err = c.next(); c.err != nil {
			return 0, c.err
		}
	}
	if int64(len(p)) > c.left {
		p = p[:c.left]
	}
	n, err := c.r.Read(p)
	c.left -= int64(n)
	if err == nil && c.left == 0 {
		err = c.lineEnd()
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	c.err = err
	return n, err
}

// next reads a chunk's size; at the last one it reads the trailer too.
func (c *chunked) next() error {
	line, err := readLine(c.r)
	if err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	size, _, _ := strings.Cut(line, ";")
	n, err := strconv.ParseInt(strings.TrimSpace(size), 16, 63)
	if err != nil || n < 0 {
		return fmt.Errorf("answer: chunk size %q", size)
	}
	if n > 0 {
		c.left = n
		return nil
	}
	for range maxHeaders {
		if line, err = readLine(c.r); err != nil {
			return err
		}
		if line == "" {
			return io.EOF
		}
	}
	return errHead
}

func (c *chunked) lineEnd() error {
	line, err := readLine(c.r)
	if err == nil && line != "" {
		return errors.New("answer: chunk longer than announced")
	}
	return err
}
