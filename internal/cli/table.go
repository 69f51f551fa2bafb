package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A row is one line of a list: column name → text. The names are those that
// Docker's --format knows ("ID", "Names").
type row map[string]string

// A list is what a listing command shows.
type list struct {
	columns []string // shown by default, in order
	titles  map[string]string
	quiet   string // column that -q shows
	rows    []row
}

// title of a column: "RunningFor" → "RUNNING FOR" unless given.
func (l *list) title(col string) string {
	if t, ok := l.titles[col]; ok {
		return t
	}
	var b strings.Builder
	for i, r := range col {
		if i > 0 && r >= 'A' && r <= 'Z' && col[i-1] >= 'a' && col[i-1] <= 'z' {
			b.WriteByte(' ')
		}
		b.WriteRune(r)
	}
	return strings.ToUpper(b.String())
}

// show prints the list as --format and -q ask.
func (e *env) show(l *list, format string, quiet bool) error {
	switch {
	case quiet && (format == "" || format == "table"):
		for _, r := range l.rows {
			fmt.Fprintln(e.out, r[l.quiet])
		}
		return nil
	case format == "" || format == "table":
		printTable(e.out, l, l.columns)
		return nil
	case format == "json":
		for _, r := range l.rows {
			data, _ := json.Marshal(r)
			fmt.Fprintf(e.out, "%s\n", data)
		}
		return nil
	}
	if t, ok := strings.CutPrefix(format, "table "); ok {
		if cols, ok := columnsOf(t); ok {
			for _, c := range cols {
				if !l.known(c) {
					return unknownField(c)
				}
			}
			printTable(e.out, l, cols)
			return nil
		}
		return e.templateTable(l, t)
	}
	items := make([]any, len(l.rows))
	for i, r := range l.rows {
		items[i] = r
	}
	return e.template(format, items)
}

func (l *list) known(col string) bool {
	if len(l.rows) == 0 {
		return true
	}
	_, ok := l.rows[0][col]
	return ok
}

func unknownField(name string) error {
	return &hinted{fmt.Errorf("--format: there is no field %q here", name), "--format json, which shows all fields"}
}

// columnsOf takes "{{.ID}}\t{{.Names}}" apart; ok is false for more than that.
func columnsOf(t string) ([]string, bool) {
	t = strings.ReplaceAll(t, `\t`, "\t")
	var cols []string
	for _, part := range strings.Split(t, "\t") {
		part = strings.TrimSpace(part)
		name, ok := strings.CutPrefix(part, "{{")
		name, ok2 := strings.CutSuffix(name, "}}")
		name = strings.TrimSpace(name)
		name, ok3 := strings.CutPrefix(name, ".")
		if !ok || !ok2 || !ok3 || strings.ContainsAny(name, " {}.|()\"") {
			return nil, false
		}
		cols = append(cols, name)
	}
	return cols, true
}

// printTable aligns columns as Docker does: at least ten wide, three apart.
func printTable(w io.Writer, l *list, cols []string) {
	widths := make([]int, len(cols))
	for i, c := range cols {
		widths[i] = utf8.RuneCountInString(l.title(c))
		for _, r := range l.rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(r[c]))
		}
		widths[i] = max(widths[i]+3, 10)
	}
	var b bytes.Buffer
	total := 1
	for _, n := range widths {
		total += n
	}
	b.Grow((len(l.rows) + 1) * total)
	line := func(cell func(string) string) {
		for i, c := range cols {
			s := cell(c)
			b.WriteString(s)
			if i < len(cols)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(s)))
			}
		}
		b.WriteByte('\n')
	}
	line(l.title)
	for _, r := range l.rows {
		line(func(c string) string { return r[c] })
	}
	w.Write(b.Bytes())
}

func (e *env) templateTable(l *list, t string) error {
	items := make([]any, 0, len(l.rows)+1)
	titles := row{}
	for _, r := range l.rows {
		for c := range r {
			titles[c] = l.title(c)
		}
	}
	items = append(items, titles)
	for _, r := range l.rows {
		items = append(items, r)
	}
	return e.format([]string{"--table"}, t, items)
}

// template prints every item with a Go template. Plain fields are done here;
// the rest is the work of onggi-format, because linking Go's templates would
// make every command slower.
func (e *env) template(t string, items []any) error {
	t = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(t)
	pieces, simple := simpleTemplate(t)
	if !simple {
		return e.format(nil, t, items)
	}
	for _, item := range items {
		var b bytes.Buffer
		for _, p := range pieces {
			if p.path == nil {
				b.WriteString(p.text)
				continue
			}
			v, ok := lookup(item, p.path)
			if !ok {
				return e.format(nil, t, items)
			}
			if p.json {
				enc := json.NewEncoder(&b)
				enc.SetEscapeHTML(false)
				if err := enc.Encode(v); err != nil {
					return err
				}
				b.Truncate(b.Len() - 1) // the encoder's newline
				continue
			}
			if raw, isRaw := v.(json.RawMessage); isRaw {
				if err := decode(raw, &v); err != nil {
					return err
				}
			}
			s, ok := plain(v)
			if !ok {
				return e.format(nil, t, items)
			}
			b.WriteString(s)
		}
		fmt.Fprintln(e.out, b.String())
	}
	return nil
}

// format hands the work to onggi-format: template as argument, items as JSON.
func (e *env) format(flags []string, t string, items []any) error {
	data, err := json.Marshal(items)
	if err != nil {
		return err
	}
	cmd := exec.Command(e.sibling("onggi-format"), append(flags, t)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(data), e.out, e.err
	if err := cmd.Run(); err != nil {
		if _, ok := err.(*exec.ExitError); ok {
			return exitCode(1)
		}
		return &hinted{fmt.Errorf("--format: %w", err), "install onggi-format beside onggi"}
	}
	return nil
}

type piece struct {
	text string
	path []string // of a field; empty but not nil: the item
	json bool
}

// simpleTemplate takes a template apart that has nothing but text, {{.A.B}} and
// {{json .A}}.
func simpleTemplate(t string) ([]piece, bool) {
	var out []piece
	for t != "" {
		text, rest, ok := strings.Cut(t, "{{")
		if text != "" {
			out = append(out, piece{text: text})
		}
		if !ok {
			return out, true
		}
		action, after, ok := strings.Cut(rest, "}}")
		if !ok {
			return nil, false
		}
		t = after
		action = strings.TrimSpace(action)
		p := piece{path: []string{}}
		if a, ok := strings.CutPrefix(action, "json "); ok {
			p.json, action = true, strings.TrimSpace(a)
		}
		name, ok := strings.CutPrefix(action, ".")
		if !ok || strings.ContainsAny(name, " |()\"`$-") {
			return nil, false
		}
		if name != "" {
			p.path = strings.Split(name, ".")
		} else if !p.json {
			return nil, false
		}
		out = append(out, p)
	}
	return out, true
}

// lookup follows a path of fields. What it finds in a raw message stays raw, so
// that it is printed in the engine's order.
func lookup(v any, path []string) (any, bool) {
	for _, name := range path {
		var ok bool
		switch m := v.(type) {
		case row:
			v, ok = field(m, name)
		case map[string]any:
			v, ok = field(m, name)
		case json.RawMessage:
			var fields map[string]json.RawMessage
			if json.Unmarshal(m, &fields) == nil {
				v, ok = field(fields, name)
			}
		}
		if !ok {
			return nil, false
		}
	}
	return v, true
}

// field finds a field also by a name that differs in case: Docker's client knows
// "Id" as ID, and "Dns" as DNS, too.
func field[V any](m map[string]V, name string) (V, bool) {
	v, ok := m[name]
	for k := range m {
		if !ok && strings.EqualFold(k, name) {
			return m[k], true
		}
	}
	return v, ok
}

// plain prints what Go's templates print alike.
func plain(v any) (string, bool) {
	switch v := v.(type) {
	case string:
		return v, true
	case bool:
		return strconv.FormatBool(v), true
	case json.Number:
		return v.String(), true
	}
	return "", false
}

// ago says how long something takes or was, as Docker does.
func ago(d time.Duration) string {
	n := func(v int, unit string) string { return strconv.Itoa(v) + " " + unit }
	s := int(d.Seconds())
	switch m, h := s/60, int(d.Hours()+0.5); {
	case s < 1:
		return "Less than a second"
	case s == 1:
		return "1 second"
	case s < 60:
		return n(s, "seconds")
	case m == 1:
		return "About a minute"
	case m < 60:
		return n(m, "minutes")
	case h == 1:
		return "About an hour"
	case h < 48:
		return n(h, "hours")
	case h < 24*7*2:
		return n(h/24, "days")
	case h < 24*30*2:
		return n(h/24/7, "weeks")
	case h < 24*365*2:
		return n(h/24/30, "months")
	default:
		return n(h/24/365, "years")
	}
}

// size in decimal units with at most four digits: 1.23MB.
func humanSize(n int64) string {
	return units(float64(n), 1000, []string{"B", "kB", "MB", "GB", "TB", "PB"})
}

// sizeOf in binary units: 1.23MiB.
func binarySize(n uint64) string {
	return units(float64(n), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"})
}

func units(f, base float64, names []string) string {
	i := 0
	for f >= base && i < len(names)-1 {
		f /= base
		i++
	}
	return strconv.FormatFloat(f, 'g', precision(f), 64) + names[i]
}

func precision(f float64) int {
	if f >= 1000 {
		return 4
	}
	return 3
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	if len(id) > 12 {
		id = id[:12]
	}
	return id
}

func ellipsis(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	r := []rune(s)
	return string(r[:n-1]) + "…"
}
