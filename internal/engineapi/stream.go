package engineapi

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"

	"github.com/moby/moby/api/types"

	"github.com/onggi/onggi/internal/errdefs"
)

// maxUnread is the most that is read of a body which nobody asked for.
const maxUnread = 1 << 20

// hijack takes the connection over and answers: 101 where the client asked to
// upgrade, and the 200 of old clients where it did not. The reader begins with
// what the client sent already.
func (c *call) hijack(contentType string) (net.Conn, io.Reader, error) {
	h, ok := c.w.(http.Hijacker)
	if !ok {
		return nil, nil, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "this stream needs HTTP/1.1"), "do not use HTTP/2 for attach, exec and session")
	}
	// A body of a declared length is no part of the stream: dockerode sends the
	// options of attach as one.
	if c.r.ContentLength > 0 {
		if _, err := io.Copy(io.Discard, io.LimitReader(c.r.Body, maxUnread)); err != nil {
			return nil, nil, err
		}
	}
	conn, buf, err := h.Hijack()
	if err != nil {
		return nil, nil, err
	}
	c.began = true
	head := "HTTP/1.1 200 OK\r\nContent-Type: " + contentType + "\r\n\r\n"
	if c.r.Header.Get("Upgrade") != "" {
		head = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + contentType + "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
		for _, k := range []string{"Api-Version", "Server"} {
			head += k + ": " + c.w.Header().Get(k) + "\r\n"
		}
		head += "\r\n"
	}
	if _, err := io.WriteString(conn, head); err != nil {
		conn.Close()
		return nil, nil, err
	}
	return conn, buffered(conn, buf.Reader), nil
}

// buffered reads what is in the buffer first, and then from the connection
// itself, so that no read is copied twice.
func buffered(conn net.Conn, r *bufio.Reader) io.Reader {
	n := r.Buffered()
	if n == 0 {
		return conn
	}
	early := make([]byte, n)
	io.ReadFull(r, early)
	return io.MultiReader(newBytes(early), conn)
}

type bytesReader struct{ b []byte }

func newBytes(b []byte) io.Reader { return &bytesReader{b} }

func (r *bytesReader) Read(p []byte) (int, error) {
	if len(r.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, r.b)
	r.b = r.b[n:]
	return n, nil
}

// streamType is the content type of a container's output.
func (c *call) streamType(tty bool) string {
	if !tty && c.version >= 42 {
		return types.MediaTypeMultiplexedStream
	}
	return types.MediaTypeRawStream
}

// flushed writes and flushes at once.
type flushed struct {
	c  *call
	rc *http.ResponseController
}

func (c *call) flushing(contentType string) *flushed {
	if contentType != "" {
		c.w.Header().Set("Content-Type", contentType)
	}
	return &flushed{c, http.NewResponseController(c.w)}
}

func (f *flushed) Write(p []byte) (int, error) {
	f.c.began = true
	n, err := f.c.w.Write(p)
	if err == nil {
		err = f.rc.Flush()
	}
	return n, err
}

// begin sends the head now.
func (f *flushed) begin() {
	if !f.c.began {
		f.c.began = true
		f.c.w.WriteHeader(http.StatusOK)
	}
	f.rc.Flush()
}

// progress writes the messages of a pull, push, load or import. It may be used
// from several goroutines.
type progress struct {
	mu sync.Mutex
	f  *flushed
}

func (c *call) progress() *progress { return &progress{f: c.flushing(types.MediaTypeJSON)} }

// message is one line of a progress stream.
type message struct {
	Stream   string          `json:"stream,omitempty"`
	Status   string          `json:"status,omitempty"`
	Progress *progressDetail `json:"progressDetail,omitempty"`
	Bar      string          `json:"progress,omitempty"`
	ID       string          `json:"id,omitempty"`
	Error    *errorDetail    `json:"errorDetail,omitempty"`
	Text     string          `json:"error,omitempty"`
	Aux      any             `json:"aux,omitempty"`
}

type progressDetail struct {
	Current int64 `json:"current,omitempty"`
	Total   int64 `json:"total,omitempty"`
}

type errorDetail struct {
	Code    int    `json:"code,omitempty"`
	Message string `json:"message"`
	Hint    string `json:"hint,omitempty"`
}

func (p *progress) send(m any) {
	b, err := marshal(m)
	if err != nil {
		return
	}
	b = append(b[:len(b)-1], '\r', '\n')
	p.mu.Lock()
	defer p.mu.Unlock()
	p.f.Write(b)
}

// step reports as Docker words it; a step without numbers has empty details.
func (p *progress) step(id, status string, current, total int64) {
	m := message{Status: status, ID: id}
	if id != "" || current > 0 || total > 0 {
		m.Progress = &progressDetail{current, total}
	}
	p.send(m)
}

// end closes the stream: with an error as its last message if the stream has
// begun, else as the answer itself.
func (p *progress) end(err error) error {
	if err == nil || !p.f.c.began {
		return err
	}
	if errors.Is(err, errSilent) {
		return nil
	}
	d := &errorDetail{Message: err.Error(), Hint: errdefs.HintOf(err)}
	if code := statusOf(err); code != 500 {
		d.Code = code
	}
	p.send(message{Error: d, Text: err.Error()})
	return nil
}

// errSilent is an error that the client has been told of already.
var errSilent = errors.New("told already")
