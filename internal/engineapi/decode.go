package engineapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
)

func invalid(format string, args ...any) error {
	return errdefs.Newf(errdefs.Invalid, "", "", format, args...)
}

// decode reads the request's body, which must be one JSON value.
func (c *call) decode(v any) error {
	ct := c.r.Header.Get("Content-Type")
	if mt, _, err := mime.ParseMediaType(ct); ct != "" && (err != nil || mt != "application/json") || ct == "" && c.r.ContentLength != 0 {
		return invalid("unsupported Content-Type header (%.100s): must be 'application/json'", ct)
	}
	return decodeBody(c.r.Body, v)
}

// decodeOptional is decode for a body that may be missing.
func (c *call) decodeOptional(v any) error {
	if c.r.ContentLength == 0 || c.r.Body == http.NoBody {
		return nil
	}
	err := c.decode(v)
	if c.r.ContentLength < 0 && errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func decodeBody(r io.Reader, v any) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return &statusError{http.StatusRequestEntityTooLarge, fmt.Sprintf("request body: larger than %d bytes", maxBody)}
		}
		return errdefs.New(errdefs.Invalid, "", "request body", err)
	}
	if len(strings.TrimSpace(string(raw))) == 0 {
		return errdefs.Newf(errdefs.Invalid, "", "", "invalid JSON: EOF while reading the request body%w", silent{io.EOF})
	}
	if err := checkDepth(raw); err != nil {
		return err
	}
	if err := oneValue(raw); err != nil {
		return err
	}
	err = json.Unmarshal(raw, v)
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		// Old clients may send a command as one string.
		if fixed, changed := listOfString(raw); changed {
			if json.Unmarshal(fixed, v) == nil {
				return nil
			}
		}
		return invalid("invalid JSON: field %s cannot be %s", te.Field, te.Value)
	}
	if err != nil {
		return invalid("invalid JSON: %v", err)
	}
	return nil
}

// oneValue refuses what follows the JSON value.
func oneValue(raw []byte) error {
	dec := json.NewDecoder(newBytes(raw))
	var v json.RawMessage
	if dec.Decode(&v) == nil && len(strings.TrimSpace(string(raw[dec.InputOffset():]))) > 0 {
		return invalid("unexpected content after JSON")
	}
	return nil
}

// silent keeps an error findable without repeating its words.
type silent struct{ err error }

func (s silent) Error() string { return "" }
func (s silent) Unwrap() error { return s.err }

const maxDepth = 64

// checkDepth refuses nesting that no request needs.
func checkDepth(raw []byte) error {
	depth, inString, escaped := 0, false, false
	for _, b := range raw {
		switch {
		case escaped:
			escaped = false
		case inString:
			escaped = b == '\\'
			inString = b != '"'
		case b == '"':
			inString = true
		case b == '{' || b == '[':
			if depth++; depth > maxDepth {
				return invalid("invalid JSON: nested deeper than %d", maxDepth)
			}
		case b == '}' || b == ']':
			depth--
		}
	}
	return nil
}

func listOfString(raw []byte) (fixed []byte, changed bool) {
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return nil, false
	}
	for _, k := range []string{"Cmd", "Entrypoint", "Shell"} {
		var s string
		if v, ok := m[k]; ok && json.Unmarshal(v, &s) == nil && string(v) != "null" {
			m[k], _ = json.Marshal([]string{s})
			changed = true
		}
	}
	fixed, err := json.Marshal(m)
	return fixed, changed && err == nil
}

// boolean reads a flag of the query by Docker's rule: everything but nothing,
// 0, no, false and none is yes.
func (c *call) boolean(key string) bool { return truth(c.r.URL.Query().Get(key)) }

func truth(s string) bool {
	switch strings.ToLower(strings.TrimSpace(s)) {
	case "", "0", "no", "false", "none":
		return false
	}
	return true
}

// booleanOr is boolean with another meaning of nothing.
func (c *call) booleanOr(key string, def bool) bool {
	if !c.r.URL.Query().Has(key) {
		return def
	}
	return c.boolean(key)
}

func (c *call) query(key string) string { return c.r.URL.Query().Get(key) }

// number reads an integer of the query.
func (c *call) number(key string, def, lo, hi int64) (int64, error) {
	v := c.query(key)
	if v == "" {
		return def, nil
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < lo || n > hi {
		return 0, invalid("%s=%.50q: want a number from %d to %d", key, v, lo, hi)
	}
	return n, nil
}

// size reads h and w of a terminal.
func (c *call) size() (h, w uint16, err error) {
	for _, d := range []struct {
		key, what string
		to        *uint16
	}{{"h", "height", &h}, {"w", "width", &w}} {
		v := c.query(d.key)
		n, err := strconv.ParseInt(v, 10, 64)
		if err == nil && (n < 0 || n > math.MaxUint32) {
			err = strconv.ErrRange
		}
		if ne, ok := errors.AsType[*strconv.NumError](err); ok {
			err = ne.Err
		}
		if err != nil {
			return 0, 0, invalid("invalid resize %s %q: %w", d.what, v, err)
		}
		*d.to = uint16(min(n, math.MaxUint16)) // the kernel's limit
	}
	return h, w, nil
}

const (
	maxFilters      = 128
	maxFilterValues = 1024
)

// filters reads the query's filters in both forms that clients send:
// {"label":{"a":true}} and {"label":["a"]}.
func (c *call) filters() (map[string][]string, error) { return parseFilters(c.r.URL.Query()) }

func parseFilters(q url.Values) (map[string][]string, error) {
	s := q.Get("filters")
	if s == "" {
		return nil, nil
	}
	if err := checkDepth([]byte(s)); err != nil {
		return nil, err
	}
	var sets map[string]map[string]bool
	if json.Unmarshal([]byte(s), &sets) == nil {
		out := map[string][]string{}
		for k, vs := range sets {
			for v, on := range vs {
				if on {
					out[k] = append(out[k], v)
				}
			}
		}
		return out, checkFilters(out)
	}
	var lists map[string][]string
	if err := json.Unmarshal([]byte(s), &lists); err != nil {
		return nil, invalid("invalid filters %.200q: want {\"name\":[\"value\"]}", s)
	}
	return lists, checkFilters(lists)
}

func checkFilters(f map[string][]string) error {
	if len(f) > maxFilters {
		return invalid("%d filters: at most %d are allowed", len(f), maxFilters)
	}
	for k, v := range f {
		if len(v) > maxFilterValues {
			return invalid("filter %.50q: %d values, at most %d are allowed", k, len(v), maxFilterValues)
		}
	}
	return nil
}

// onlyKeys refuses filters that an operation does not know.
func onlyKeys(f map[string][]string, keys ...string) error {
	for k := range f {
		ok := false
		for _, x := range keys {
			ok = ok || k == x
		}
		if !ok {
			return errdefs.WithHint(invalid("invalid filter '%.50s'", k), "the filters are "+strings.Join(keys, ", "))
		}
	}
	return nil
}
