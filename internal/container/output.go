package container

import (
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/logs"
)

// LogOptions choose log lines and how they are written.
type LogOptions struct {
	Stdout, Stderr bool
	Since, Until   time.Time
	Tail           int // 0 = all, negative = none
	Follow         bool
	Restarts       bool // follow over restarts, too, until the restart policy makes no more
	Timestamps     bool
	Details        bool
}

// LogsTTY tells whether a container's log is the bare output of a terminal.
func (s *Service) LogsTTY(ref string) (bool, error) {
	c, err := s.find("logs", ref)
	if err != nil {
		return false, err
	}
	rec, _ := c.view()
	if rec.HostConfig.LogConfig.Type == logs.None {
		return false, errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "", "", "configured logging driver does not support reading"), "start it with --log-driver json-file or local")
	}
	return rec.Config.Tty, nil
}

// Logs writes a container's log, in Docker's frames unless it has a terminal.
func (s *Service) Logs(ctx context.Context, ref string, o LogOptions, w io.Writer) error {
	c, err := s.find("logs", ref)
	if err != nil {
		return err
	}
	rec, now := c.view()
	ended := make(chan struct{})
	if o.Follow {
		// Follow to the end of the current run; a container that was never started is
		// followed until it is started and ends, or the client leaves. What a restart
		// writes is for whoever asks again: Compose does, and would show it twice.
		fctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go func() {
			defer close(ended)
			c.until(fctx, func() bool {
				restarted := c.st.State == Restarting || !now.StartedAt.IsZero() && !c.st.StartedAt.Equal(now.StartedAt)
				return restarted && !o.Restarts || slices.Contains([]State{Exited, Gone, Dead, Removing}, c.st.State)
			})
		}()
	}
	return logs.Read(ctx, s.logSpec(rec), logs.ReadOptions{
		Since: o.Since, Until: o.Until, Tail: o.Tail, Follow: o.Follow, Ended: ended, Stdout: o.Stdout, Stderr: o.Stderr,
	}, func(e logs.Entry) error {
		line := e.Line
		var head strings.Builder
		if o.Timestamps {
			head.WriteString(e.Time.UTC().Format("2006-01-02T15:04:05.000000000Z07:00"))
			head.WriteByte(' ')
		}
		if o.Details {
			for i, k := range slices.Sorted(maps.Keys(e.Attrs)) {
				if i > 0 {
					head.WriteByte(',')
				}
				head.WriteString(k + "=" + e.Attrs[k])
			}
			head.WriteByte(' ')
		}
		if head.Len() > 0 {
			line = append([]byte(head.String()), line...)
		}
		if rec.Config.Tty {
			_, err := w.Write(line)
			return err
		}
		_, err := w.Write(frame(e.Stream, line))
		return err
	})
}
