package engineapi

import (
	"context"
	"io"
	"net"

	"github.com/coder/websocket"

	"github.com/onggi/onggi/internal/container"
)

// containerAttachWS is attach over a websocket: binary frames, the bare output.
func (s *Server) containerAttachWS(c *call) error {
	o, _, err := s.attachOptions(c)
	if err != nil {
		return err
	}
	o.Mux = false
	done := make(chan struct{})
	err = s.o.Containers.Attach(c.ctx(), c.path["id"], o, func() (container.Stream, error) {
		ws, err := websocket.Accept(c.w, c.r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // guard has looked at the origin
		c.began = true
		if err != nil {
			return container.Stream{}, err
		}
		conn := &messages{Conn: websocket.NetConn(context.WithoutCancel(c.ctx()), ws, websocket.MessageBinary), ws: ws}
		return container.Stream{Conn: conn, Input: conn, End: func(container.Ending) { ws.Close(websocket.StatusNormalClosure, ""); close(done) }}, nil
	})
	if err != nil {
		return err
	}
	<-done
	return nil
}

// messages is a connection that reads what messages of either kind hold:
// clients send keys as text, too.
type messages struct {
	net.Conn
	ws *websocket.Conn
	r  io.Reader // the message that is being read
}

func (m *messages) Read(p []byte) (int, error) {
	for {
		if m.r == nil {
			_, r, err := m.ws.Reader(context.Background())
			if websocket.CloseStatus(err) == websocket.StatusNormalClosure || websocket.CloseStatus(err) == websocket.StatusGoingAway {
				return 0, io.EOF
			}
			if err != nil {
				return 0, err
			}
			m.r = r
		}
		n, err := m.r.Read(p)
		if err == io.EOF {
			m.r, err = nil, nil
			if n == 0 {
				continue
			}
		}
		return n, err
	}
}
