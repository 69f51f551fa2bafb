package main

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
)

// shareDirectories hands descriptors of the local directories to an engine on
// this machine, which then reads files itself instead of having them sent. The
// returned function takes them back. Where that does not work, the session
// sends the files.
func (o *options) shareDirectories(ctx context.Context, opt *client.SolveOpt) (stop func(), err error) {
	stop = func() {}
	if opt.SharedSession, err = session.NewSession(context.WithoutCancel(ctx), opt.SharedKey); err != nil {
		return stop, err
	}
	if len(o.dirs) == 0 || !strings.HasPrefix(engineHost(), "unix://") || os.Getenv("ONGGI_REMOTE") != "" {
		return stop, nil
	}
	q := struct {
		Session string
		Names   []string
	}{Session: opt.SharedSession.ID()}
	var fds []int
	for name, dir := range o.dirs {
		f, err := os.Open(dir)
		if err != nil {
			return stop, err
		}
		defer f.Close()
		q.Names = append(q.Names, name)
		fds = append(fds, int(f.Fd()))
	}
	msg, err := json.Marshal(q)
	if err != nil {
		return stop, err
	}
	conn, err := dialUpgrade(ctx, "/onggi/v1/build/directories", "onggi-directories")
	if err != nil {
		return stop, ctx.Err() // an engine that cannot
	}
	u := conn.(*buffered).Conn.(*net.UnixConn)
	stop = func() { u.Close() }
	if _, _, err := u.WriteMsgUnix(msg, syscall.UnixRights(fds...), nil); err != nil {
		return stop, nil
	}
	// Until the engine has them, it would ask the session.
	if _, err := conn.Read(make([]byte, 64)); err != nil {
		return stop, errors.Join(ctx.Err())
	}
	return stop, nil
}
