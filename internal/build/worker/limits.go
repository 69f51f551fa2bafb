package worker

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/onggi/onggi/internal/errdefs"
)

// The frontend runs in the engine, so a Dockerfile must not make it grow
// without end.
const (
	maxDockerfile = 1 << 20
	maxContinued  = 10_000   // lines of one instruction, since they are joined one by one
	maxExpanded   = 16 << 20 // of one instruction, its variables expanded
	maxBraces     = 100      // how deep ${a:-${b:-…}} goes
	unknownValue  = 4 << 10  // taken to be the size of a variable from outside
)

// checkDockerfile refuses what the frontend could choke on. What it cannot
// read it leaves to the frontend, which words that better.
func checkDockerfile(b []byte) error {
	if len(b) > maxDockerfile {
		return tooMuch("it is larger than %d bytes", maxDockerfile)
	}
	continued := 0
	for line := range bytes.Lines(b) {
		line = bytes.TrimRight(line, " \t\r\n")
		if bytes.HasSuffix(line, []byte("\\")) || bytes.HasSuffix(line, []byte("`")) || len(line) == 0 {
			continued++
		} else {
			continued = 0
		}
		if continued > maxContinued {
			return tooMuch("an instruction has more than %d lines", maxContinued)
		}
	}
	if !bytes.ContainsRune(b, '$') {
		return nil
	}
	r, err := parser.Parse(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	sizes := sizes{}
	for _, n := range r.AST.Children {
		if err := sizes.instruction(n); err != nil {
			return err
		}
	}
	return nil
}

// checkTriggers does the same for the ONBUILD instructions of an image.
func checkTriggers(lines []string) error {
	if len(lines) == 0 {
		return nil
	}
	return checkDockerfile([]byte(strings.Join(lines, "\n") + "\n"))
}

func tooMuch(format string, args ...any) error {
	return errdefs.Newf(errdefs.Invalid, "read", "Dockerfile", format, args...)
}

// sizes are how long variables can be at most. Stages are not told apart: one
// may begin from another.
type sizes map[string]int

// instruction looks at what an instruction expands to, and what it sets.
func (s sizes) instruction(n *parser.Node) error {
	total, err := s.of(n.Original)
	for _, h := range n.Heredocs {
		more, herr := s.of(h.Content)
		if herr != nil {
			err = herr
		}
		total += more
	}
	if err == nil && total > maxExpanded {
		err = fmt.Errorf("it expands to more than %d bytes", maxExpanded)
	}
	switch {
	case strings.EqualFold(n.Value, "run"), strings.EqualFold(n.Value, "cmd"), strings.EqualFold(n.Value, "entrypoint"), strings.EqualFold(n.Value, "healthcheck"):
		return nil // the shell expands them, in the container
	case err != nil:
		return tooMuch("line %d: %w", n.StartLine, err)
	}
	set := sizes{}
	switch strings.ToLower(n.Value) {
	case "env": // name, value, separator
		for w := n.Next; w != nil && w.Next != nil; {
			set[w.Value], _ = s.of(w.Next.Value)
			if w = w.Next.Next; w != nil {
				w = w.Next
			}
		}
	case "arg":
		for w := n.Next; w != nil; w = w.Next {
			if name, value, ok := strings.Cut(w.Value, "="); ok {
				size, _ := s.of(value)
				set[name] = max(size, unknownValue) // a client may set it
			}
		}
	}
	for name, size := range set {
		s[name] = max(s[name], size)
	}
	return nil
}

// of is how long a word can get when its variables are expanded.
func (s sizes) of(word string) (int, error) {
	w := expansion{sizes: s, rest: word}
	n := w.until("", 0)
	if w.deep {
		return n, fmt.Errorf("it nests more than %d variables", maxBraces)
	}
	return n, nil
}

func (s sizes) variable(name string) int {
	if n, ok := s[name]; ok {
		return n
	}
	return unknownValue
}

// expansion reads a word once, from left to right.
type expansion struct {
	sizes
	rest string
	deep bool
}

// until adds up what comes before one of the stops, which it also takes.
func (w *expansion) until(stops string, depth int) (n int) {
	for w.rest != "" {
		c := w.rest[0]
		w.rest = w.rest[1:]
		switch {
		case strings.IndexByte(stops, c) >= 0:
			return n
		case c != '$':
			n++
		case strings.HasPrefix(w.rest, "{"):
			w.rest = w.rest[1:]
			if depth >= maxBraces {
				w.deep, w.rest = true, ""
				return n
			}
			n += w.braces(depth + 1)
		default:
			if name := w.name(); name != "" {
				n += w.variable(name)
			} else {
				n++
			}
		}
		n = min(n, maxExpanded+1)
	}
	return n
}

// braces reads what is behind ${.
func (w *expansion) braces(depth int) int {
	size := w.variable(w.name())
	switch {
	case strings.HasPrefix(w.rest, "#"), strings.HasPrefix(w.rest, "%"):
		return size + w.match(size, w.until("}", depth))
	case !strings.HasPrefix(w.rest, "/"):
		return size + w.until("}", depth)
	}
	w.rest = w.rest[1:]
	all := strings.HasPrefix(w.rest, "/")
	if all {
		w.rest = w.rest[1:]
	}
	pattern := w.until("/}", depth)
	by := w.match(size, pattern) + w.until("}", depth)
	if !all {
		return size + by
	}
	return min((size+1)*(by+1), maxExpanded+1)
}

// match counts what it takes to match a pattern, where that is much.
func (w *expansion) match(size, pattern int) int {
	if work := size * pattern; work > maxExpanded {
		return work
	}
	return 0
}

// name reads a variable's name.
func (w *expansion) name() string {
	i := 0
	for i < len(w.rest) && (w.rest[i] == '_' || w.rest[i] >= '0' && w.rest[i] <= '9' || w.rest[i]|0x20 >= 'a' && w.rest[i]|0x20 <= 'z') {
		i++
	}
	name := w.rest[:i]
	w.rest = w.rest[i:]
	return name
}
