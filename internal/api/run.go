package api

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"sync"
)

// RunPath and ExecPath are Onggi's one-request run and exec.
const (
	RunPath  = "/onggi/v1/run"
	ExecPath = "/onggi/v1/exec"
)

// The streams of a frame. A frame is Docker's: one byte of stream, three of
// zero, four of length (big endian), then the payload.
const (
	FrameStdin   = 0 // client → engine
	FrameStdout  = 1 // engine → client
	FrameStderr  = 2
	FrameFailure = 3 // text of an error while the stream was running
	FrameEvent   = 4 // engine → client: RunEvent
	FrameControl = 5 // client → engine: RunControl
)

// MaxFrame bounds a frame's payload.
const MaxFrame = 1 << 20

// RunRequest creates, attaches to, starts and waits for a container.
type RunRequest struct {
	Name       string          `json:"name,omitempty"`
	Platform   string          `json:"platform,omitempty"`
	Create     json.RawMessage `json:"create"` // body of POST /containers/create
	Attach     RunAttach       `json:"attach"`
	Detach     bool            `json:"detach,omitempty"`
	TTYSize    [2]uint16       `json:"ttySize,omitzero"` // width, height
	DetachKeys string          `json:"detachKeys,omitempty"`
	Files      []byte          `json:"files,omitempty"` // archive that is unpacked at / before the start
}

// ExecRequest creates, attaches to, starts and waits for a process in a
// running container.
type ExecRequest struct {
	Container string          `json:"container"`        // its name or id
	Create    json.RawMessage `json:"create"`           // body of POST /containers/{id}/exec
	Detach    bool            `json:"detach,omitempty"` // started is enough
}

// RunAttach chooses the streams.
type RunAttach struct {
	Stdin  bool `json:"stdin,omitempty"`
	Stdout bool `json:"stdout,omitempty"`
	Stderr bool `json:"stderr,omitempty"`
	Logs   bool `json:"logs,omitempty"`
}

// RunEvent is what the engine says beside the output. One field is set.
type RunEvent struct {
	ID       string    `json:"id,omitempty"`      // the container exists
	Warning  string    `json:"warning,omitempty"` //
	Started  bool      `json:"started,omitempty"` // the application runs
	Exit     *int      `json:"exit,omitempty"`    // the last event of an attached run or exec
	Detached bool      `json:"detached,omitempty"`
	Error    *RunError `json:"error,omitempty"` // the last event of a run that went wrong
}

// RunError is why there is no container, or no running one.
type RunError struct {
	Message      string `json:"message"`
	Hint         string `json:"hint,omitempty"`
	Status       int    `json:"status"`                 // HTTP status of the same failure
	ExitCode     int    `json:"exitCode,omitempty"`     // 125, 126, 127 as `docker run` has them
	MissingImage string `json:"missingImage,omitempty"` // pull this and try again
}

func (e *RunError) Error() string { return e.Message }

// RunControl is what the client asks for during a run. One field is set.
type RunControl struct {
	Resize     *[2]uint16 `json:"resize,omitempty"` // width, height
	Signal     string     `json:"signal,omitempty"` // "TERM"
	CloseStdin bool       `json:"closeStdin,omitempty"`
}

// A Run is a run or an exec in progress. One goroutine reads; any may write.
type Run struct {
	s  *Stream
	mu sync.Mutex // makes frames whole
}

// Run starts one. The first frame tells whether it worked.
func (c *Client) Run(ctx context.Context, q RunRequest) (*Run, error) {
	return c.run(ctx, RunPath, q)
}

// Exec runs a process in a container that runs. An error is that of its
// creation; whether it started is told by the output and the exit code.
func (c *Client) Exec(ctx context.Context, q ExecRequest) (*Run, error) {
	return c.run(ctx, ExecPath, q)
}

func (c *Client) run(ctx context.Context, path string, q any) (*Run, error) {
	s, err := c.Hijack(ctx, Request{Method: "POST", Path: path, JSON: q})
	if err != nil {
		return nil, err
	}
	return &Run{s: s}, nil
}

// Next returns the next frame; io.EOF after the last.
func (r *Run) Next(buf []byte) (stream byte, payload []byte, err error) { return ReadFrame(r.s, buf) }

// Stdin sends input.
func (r *Run) Stdin(p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return WriteFrame(r.s, FrameStdin, p)
}

// Control sends a request.
func (r *Run) Control(ctl RunControl) error {
	b, err := json.Marshal(ctl)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return WriteFrame(r.s, FrameControl, b)
}

// Close ends the connection; the container goes on.
func (r *Run) Close() error { return r.s.Close() }

// ReadFrame reads one frame into buf, which grows where it must.
func ReadFrame(r io.Reader, buf []byte) (stream byte, payload []byte, err error) {
	var h [8]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[4:])
	if n > MaxFrame {
		return 0, nil, fmt.Errorf("frame of %d bytes: at most %d are allowed", n, MaxFrame)
	}
	if cap(buf) < int(n) {
		buf = make([]byte, n)
	}
	payload = buf[:n]
	if _, err := io.ReadFull(r, payload); err != nil {
		return 0, nil, io.ErrUnexpectedEOF
	}
	return h[0], payload, nil
}

// WriteFrame writes p as one frame, or as several where it is long.
func WriteFrame(w io.Writer, stream byte, p []byte) error {
	for {
		part := p
		if len(part) > MaxFrame {
			part = part[:MaxFrame]
		}
		b := make([]byte, 8+len(part))
		b[0] = stream
		binary.BigEndian.PutUint32(b[4:], uint32(len(part)))
		copy(b[8:], part)
		if _, err := w.Write(b); err != nil {
			return err
		}
		if p = p[len(part):]; len(p) == 0 {
			return nil
		}
	}
}
