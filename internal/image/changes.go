package image

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
)

// applyChanges changes a configuration by the Dockerfile instructions that
// import and commit allow.
func applyChanges(c *ocispec.ImageConfig, changes []string) error {
	for _, line := range changes {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		if err := applyChange(c, strings.ToUpper(word), strings.TrimSpace(rest)); err != nil {
			return errdefs.New(errdefs.Invalid, "change", strconv.Quote(line), err)
		}
	}
	return nil
}

func applyChange(c *ocispec.ImageConfig, word, rest string) error {
	bad := func(format string, args ...any) error {
		return errdefs.Newf(errdefs.Invalid, "", "", format, args...)
	}
	if rest == "" && word != "CMD" && word != "ENTRYPOINT" {
		return bad("%s needs an argument", word)
	}
	switch word {
	case "ENV", "LABEL", "EXPOSE", "VOLUME", "USER", "WORKDIR", "STOPSIGNAL":
		rest = expand(rest, c.Env)
	}
	switch word {
	case "CMD":
		c.Cmd = command(rest, c.Shell)
		c.ArgsEscaped = false
	case "ENTRYPOINT":
		c.Entrypoint = command(rest, c.Shell)
	case "SHELL":
		list, ok := jsonList(rest)
		if !ok {
			return bad("SHELL takes a JSON list")
		}
		c.Shell = list
	case "ENV", "LABEL":
		pairs, err := parsePairs(rest)
		if err != nil {
			return err
		}
		for _, p := range pairs {
			if word == "LABEL" {
				c.Labels = put(c.Labels, p[0], p[1])
				continue
			}
			c.Env = slices.Clone(c.Env)
			if i := slices.IndexFunc(c.Env, func(e string) bool { return strings.HasPrefix(e, p[0]+"=") }); i >= 0 {
				c.Env[i] = p[0] + "=" + p[1]
			} else {
				c.Env = append(c.Env, p[0]+"="+p[1])
			}
		}
	case "EXPOSE":
		for p := range strings.FieldsSeq(rest) {
			port, proto, ok := strings.Cut(p, "/")
			if !ok {
				proto = "tcp"
			}
			from, to, isRange := strings.Cut(port, "-")
			if !isRange {
				to = from
			}
			a, err1 := strconv.ParseUint(from, 10, 16)
			b, err2 := strconv.ParseUint(to, 10, 16)
			proto = strings.ToLower(proto)
			if err1 != nil || err2 != nil || b < a || proto != "tcp" && proto != "udp" && proto != "sctp" {
				return bad("%q is not a port", p)
			}
			for n := a; n <= b; n++ {
				c.ExposedPorts = put(c.ExposedPorts, strconv.FormatUint(n, 10)+"/"+proto, struct{}{})
			}
		}
	case "VOLUME":
		list, ok := jsonList(rest)
		if !ok {
			list = strings.Fields(rest)
		}
		for _, v := range list {
			if v == "" {
				return bad("a volume without a path")
			}
			c.Volumes = put(c.Volumes, v, struct{}{})
		}
	case "USER":
		c.User = unquote(rest)
	case "WORKDIR":
		dir := unquote(rest)
		if !strings.HasPrefix(dir, "/") {
			dir = strings.TrimSuffix(c.WorkingDir, "/") + "/" + dir
		}
		c.WorkingDir = dir
	case "STOPSIGNAL":
		c.StopSignal = unquote(rest)
	case "ONBUILD":
		inner, _, _ := strings.Cut(rest, " ")
		switch strings.ToUpper(inner) {
		case "ONBUILD", "MAINTAINER", "FROM":
			return bad("%s is not allowed as an ONBUILD trigger", strings.ToUpper(inner))
		}
		c.OnBuild = append(slices.Clone(c.OnBuild), rest)
	case "HEALTHCHECK":
		h, err := parseHealthcheck(rest)
		if err != nil {
			return err
		}
		c.Healthcheck = h
	default:
		return bad("%s is not a valid change command", word)
	}
	return nil
}

// put adds to a map that others may have, too.
func put[V any](m map[string]V, k string, v V) map[string]V {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]V{}
	}
	m[k] = v
	return m
}

func jsonList(s string) ([]string, bool) {
	if !strings.HasPrefix(s, "[") {
		return nil, false
	}
	var list []string
	if err := json.Unmarshal([]byte(s), &list); err != nil {
		return nil, false
	}
	return list, true
}

// command reads the exec form, or wraps the shell form.
func command(s string, shell []string) []string {
	if list, ok := jsonList(s); ok {
		return list
	}
	if s == "" {
		return nil
	}
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(slices.Clone(shell), s)
}

func unquote(s string) string {
	words, err := splitWords(s)
	if err != nil || len(words) != 1 {
		return s
	}
	return words[0]
}

// splitWords splits at blanks, as a shell does with quotes and backslashes.
func splitWords(s string) ([]string, error) {
	var out []string
	var b strings.Builder
	in, quote := false, byte(0)
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			if quote == '"' && s[i] != '"' && s[i] != '\\' && s[i] != '$' {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
			in = true
		case quote != 0:
			if c == quote {
				quote = 0
			} else {
				b.WriteByte(c)
			}
		case c == '"' || c == '\'':
			quote, in = c, true
		case c == ' ' || c == '\t':
			if in {
				out = append(out, b.String())
				b.Reset()
				in = false
			}
		default:
			b.WriteByte(c)
			in = true
		}
	}
	if quote != 0 {
		return nil, errdefs.Newf(errdefs.Invalid, "", "", "a quote is not closed")
	}
	if in {
		out = append(out, b.String())
	}
	return out, nil
}

// expand puts in variables as a Dockerfile does: $name, ${name}, ${name:-word}
// and ${name:+word}, but not within single quotes or after a backslash.
func expand(s string, env []string) string {
	value := func(name string) string {
		for _, e := range env {
			if v, ok := strings.CutPrefix(e, name+"="); ok {
				return v
			}
		}
		return ""
	}
	nameEnd := func(s string) int {
		i := 0
		for i < len(s) && (s[i] == '_' || s[i] >= 'a' && s[i] <= 'z' || s[i] >= 'A' && s[i] <= 'Z' || i > 0 && s[i] >= '0' && s[i] <= '9') {
			i++
		}
		return i
	}
	var out strings.Builder
	quoted, double := false, false
	for i := 0; i < len(s); i++ {
		rest := s[i+1:]
		switch {
		case s[i] == '\\' && rest != "" && !quoted:
			if rest[0] != '$' {
				out.WriteByte('\\')
			}
			out.WriteByte(rest[0])
			i++
		case s[i] == '\'' && !double:
			quoted = !quoted
			out.WriteByte('\'')
		case s[i] == '"' && !quoted:
			double = !double
			out.WriteByte('"')
		case s[i] == '$' && !quoted && nameEnd(rest) > 0:
			n := nameEnd(rest)
			out.WriteString(value(rest[:n]))
			i += n
		case s[i] == '$' && !quoted && strings.HasPrefix(rest, "{") && strings.Contains(rest, "}"):
			inner, _, _ := strings.Cut(rest[1:], "}")
			n := nameEnd(inner)
			v, op := value(inner[:n]), inner[n:]
			if word, ok := strings.CutPrefix(op, ":-"); ok && v == "" {
				v = word
			} else if word, ok := strings.CutPrefix(op, ":+"); ok && v != "" {
				v = word
			}
			out.WriteString(v)
			i += len(inner) + 2
		default:
			out.WriteByte(s[i])
		}
	}
	return out.String()
}

// parsePairs reads key=value…, or the old form "key value".
func parsePairs(s string) ([][2]string, error) {
	words, err := splitWords(s)
	if err != nil {
		return nil, err
	}
	if first, rest, _ := strings.Cut(s, " "); len(words) > 0 && !strings.Contains(words[0], "=") {
		if rest == "" {
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "want key=value")
		}
		return [][2]string{{first, strings.TrimSpace(rest)}}, nil
	}
	var out [][2]string
	for _, w := range words {
		k, v, ok := strings.Cut(w, "=")
		if !ok || k == "" {
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "want key=value, got %q", w)
		}
		out = append(out, [2]string{k, v})
	}
	return out, nil
}

func parseHealthcheck(s string) (*ocispec.Healthcheck, error) {
	h := &ocispec.Healthcheck{}
	for strings.HasPrefix(s, "--") {
		flag, rest, _ := strings.Cut(s, " ")
		s = strings.TrimSpace(rest)
		key, v, _ := strings.Cut(flag[2:], "=")
		if key == "retries" {
			n, err := strconv.Atoi(v)
			if err != nil || n < 0 {
				return nil, errdefs.Newf(errdefs.Invalid, "", "", "--retries=%s is not a number", v)
			}
			h.Retries = n
			continue
		}
		into := map[string]*time.Duration{"interval": &h.Interval, "timeout": &h.Timeout, "start-period": &h.StartPeriod, "start-interval": &h.StartInterval}[key]
		d, err := time.ParseDuration(v)
		if into == nil || err != nil || d != 0 && d < time.Millisecond {
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "%s is not an option of HEALTHCHECK", flag)
		}
		*into = d
	}
	word, rest, _ := strings.Cut(s, " ")
	switch strings.ToUpper(word) {
	case "NONE":
		h.Test = []string{"NONE"}
	case "CMD":
		rest = strings.TrimSpace(rest)
		if list, ok := jsonList(rest); ok && len(list) > 0 {
			h.Test = append([]string{"CMD"}, list...)
		} else if rest != "" {
			h.Test = []string{"CMD-SHELL", rest}
		} else {
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "CMD without a command")
		}
	default:
		return nil, errdefs.Newf(errdefs.Invalid, "", "", "HEALTHCHECK takes CMD or NONE")
	}
	return h, nil
}
