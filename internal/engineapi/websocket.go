package engineapi

import (
	"context"

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
		conn := websocket.NetConn(context.WithoutCancel(c.ctx()), ws, websocket.MessageBinary)
		return container.Stream{Conn: conn, Input: conn, End: func(container.Ending) { ws.Close(websocket.StatusNormalClosure, ""); close(done) }}, nil
	})
	if err != nil {
		return err
	}
	<-done
	return nil
}
