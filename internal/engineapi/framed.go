package engineapi

import (
	"encoding/json"
	"errors"
	"io"
	"net"
	"sync"

	"github.com/onggi/onggi/internal/api"
	"github.com/onggi/onggi/internal/container"
	"github.com/onggi/onggi/internal/errdefs"
)

// framed is the connection of a one-request run or exec: output, events and
// what the client asks for go in frames.
type framed struct {
	conn net.Conn
	in   io.Reader

	mu   sync.Mutex // makes frames whole
	once sync.Once
}

func (f *framed) send(ev api.RunEvent) {
	b, err := json.Marshal(ev)
	if err != nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	api.WriteFrame(f.conn, api.FrameEvent, b)
}

func (f *framed) fail(err error) {
	e := &api.RunError{Message: err.Error(), Hint: errdefs.HintOf(err), Status: statusOf(err), ExitCode: 125}
	if se, ok := errors.AsType[*container.StartError](err); ok && (se.Code == 126 || se.Code == 127) {
		e.ExitCode = se.Code
	}
	if m, ok := errors.AsType[*container.MissingImageError](err); ok {
		e.MissingImage = m.Ref
	}
	f.finish(api.RunEvent{Error: e})
}

// finish sends the last event and ends the connection.
func (f *framed) finish(ev api.RunEvent) {
	f.once.Do(func() {
		f.send(ev)
		if w, ok := f.conn.(interface{ CloseWrite() error }); ok {
			w.CloseWrite()
		}
		f.conn.Close()
	})
}

// drop ends the connection without a word.
func (f *framed) drop() { f.once.Do(func() { f.conn.Close() }) }

// controls reads the client's frames until the connection ends: input goes to
// stdin, the rest to do.
func (f *framed) controls(stdin *io.PipeWriter, do func(api.RunControl)) {
	buf := make([]byte, 512) // most clients send nothing
	var err error
	for {
		var stream byte
		var p []byte
		if stream, p, err = api.ReadFrame(f.in, buf); err != nil {
			break
		}
		if cap(p) > len(buf) {
			buf = p[:cap(p)]
		}
		switch stream {
		case api.FrameStdin:
			stdin.Write(p) // fails when nobody reads any more; then it is for nobody
		case api.FrameControl:
			var ctl api.RunControl
			if json.Unmarshal(p, &ctl) != nil {
				continue
			}
			if ctl.CloseStdin {
				stdin.Close()
			} else {
				do(ctl)
			}
		}
	}
	stdin.CloseWithError(err) // the end of input, or what broke it
}
