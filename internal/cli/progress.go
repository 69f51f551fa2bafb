package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/api"
)

// showProgress prints a stream of messages: bars that stay in place on a
// terminal, a line for each change of state elsewhere.
func showProgress(r io.Reader, w io.Writer, aux func(json.RawMessage)) error {
	dec := json.NewDecoder(r)
	p := &progress{w: w, columns: width(w), line: map[string]int{}, last: map[string]string{}}
	for {
		var m api.Progress
		if err := dec.Decode(&m); err == io.EOF {
			return nil
		} else if err != nil {
			return fmt.Errorf("read the engine's progress: %w", err)
		}
		switch {
		case m.Error != nil:
			err := errors.New(m.Error.Message)
			if m.Error.Hint != "" {
				return &hinted{err, m.Error.Hint}
			}
			return err
		case m.Aux != nil:
			if aux != nil {
				aux(m.Aux)
			}
		case m.Stream != "":
			io.WriteString(w, m.Stream)
		default:
			p.show(m)
		}
	}
}

type progress struct {
	w       io.Writer
	columns int               // of the terminal; 0: none
	line    map[string]int    // id → line, counted from the top of our block
	last    map[string]string // id → state last printed
	began   time.Time
}

func (p *progress) show(m api.Progress) {
	if m.ID == "" {
		fmt.Fprintln(p.w, m.Status)
		if len(p.line) > 0 {
			p.line = map[string]int{}
		}
		return
	}
	if p.columns == 0 {
		if p.last[m.ID] != m.Status {
			p.last[m.ID] = m.Status
			if m.Progress == nil || m.Progress.Current == 0 {
				fmt.Fprintf(p.w, "%s: %s\n", m.ID, m.Status)
			}
		}
		return
	}
	text := m.ID + ": " + m.Status
	if b := bar(m, p.columns-len(text)); b != "" {
		text += " " + b
	}
	n, ok := p.line[m.ID]
	if !ok {
		n = len(p.line)
		p.line[m.ID] = n
		fmt.Fprintf(p.w, "\033[2K%s\n", text)
		return
	}
	up := len(p.line) - n
	fmt.Fprintf(p.w, "\033[%dA\r\033[2K%s\r\033[%dB", up, text, up)
}

func bar(m api.Progress, room int) string {
	d := m.Progress
	if d == nil || d.Current == 0 && d.Total == 0 {
		return ""
	}
	if d.Total <= 0 {
		return humanSize(d.Current)
	}
	cells := min(50, room-30)
	sizes := fmt.Sprintf("%s/%s", humanSize(d.Current), humanSize(d.Total))
	if cells < 5 {
		return sizes
	}
	full := int(min(d.Current, d.Total) * int64(cells) / d.Total)
	return "[" + strings.Repeat("=", full) + strings.Repeat(">", min(1, cells-full)) + strings.Repeat(" ", max(cells-full-1, 0)) + "] " + sizes
}
