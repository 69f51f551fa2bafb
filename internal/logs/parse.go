package logs

import (
	"bytes"
	"errors"
	"time"
	"unicode/utf16"
	"unicode/utf8"
)

var errEntry = errors.New("not an entry of a log")

// parseEntry reads one line of a json-file, its newline included or not. It
// knows the fields that the format has and no others, which is several times
// quicker than encoding/json. The entry's Line is appended to buf.
func parseEntry(line, buf []byte) (e Entry, rest []byte, err error) {
	p := parser{b: bytes.TrimSuffix(line, []byte("\n"))}
	p.want('{')
	var sawLog, sawTime bool
	for first := true; p.err == nil && !p.next('}'); first = false {
		if !first {
			p.want(',')
		}
		switch key := string(p.rawString()); key {
		case "log":
			p.want(':')
			buf = p.appendString(buf[:0])
			e.Line, sawLog = buf, true
		case "stream":
			p.want(':')
			e.Stream = internStream(p.rawString())
		case "time":
			p.want(':')
			e.Time, sawTime = p.time(), true
		case "attrs":
			p.want(':')
			e.Attrs = p.attrs()
		default:
			p.fail()
		}
	}
	if p.err == nil && (len(p.b) > 0 || !sawLog || !sawTime) {
		p.fail()
	}
	if p.err != nil {
		return Entry{}, buf, p.err
	}
	e.Partial = len(e.Line) == 0 || e.Line[len(e.Line)-1] != '\n'
	return e, buf, nil
}

// entryTime reads an entry's time alone.
func entryTime(line []byte) (time.Time, bool) {
	i := bytes.LastIndex(line, []byte(`"time":"`))
	if i < 0 {
		return time.Time{}, false
	}
	p := parser{b: line[i+len(`"time":`):]}
	t := p.time()
	return t, p.err == nil
}

// internStream gives the names without a copy.
func internStream(b []byte) string {
	switch string(b) {
	case "stdout":
		return "stdout"
	case "stderr":
		return "stderr"
	}
	return string(b)
}

// A parser takes bytes off the front of b. After the first error b is empty.
type parser struct {
	b   []byte
	err error
}

func (p *parser) fail() { p.b, p.err = nil, errEntry }

func (p *parser) space() {
	for len(p.b) > 0 && (p.b[0] == ' ' || p.b[0] == '\t' || p.b[0] == '\r') {
		p.b = p.b[1:]
	}
}

func (p *parser) next(c byte) bool {
	p.space()
	if len(p.b) > 0 && p.b[0] == c {
		p.b = p.b[1:]
		return true
	}
	return false
}

func (p *parser) want(c byte) {
	if !p.next(c) {
		p.fail()
	}
}

// rawString is the inside of a string, escapes and all.
func (p *parser) rawString() []byte {
	p.want('"')
	for i := 0; i < len(p.b); i++ {
		switch p.b[i] {
		case '\\':
			i++
		case '"':
			s := p.b[:i]
			p.b = p.b[i+1:]
			return s
		}
	}
	p.fail()
	return nil
}

func (p *parser) time() time.Time {
	t, err := time.Parse(time.RFC3339Nano, string(p.rawString()))
	if err != nil {
		p.fail()
	}
	return t
}

func (p *parser) attrs() map[string]string {
	p.want('{')
	m := map[string]string{}
	for first := true; p.err == nil && !p.next('}'); first = false {
		if !first {
			p.want(',')
		}
		k := string(p.appendString(nil))
		p.want(':')
		m[k] = string(p.appendString(nil))
	}
	return m
}

// appendString decodes a string onto dst.
func (p *parser) appendString(dst []byte) []byte {
	s := p.rawString()
	for len(s) > 0 {
		i := bytes.IndexByte(s, '\\')
		if i < 0 {
			return append(dst, s...)
		}
		dst = append(dst, s[:i]...)
		if len(s) < i+2 {
			p.fail()
			return dst
		}
		c := s[i+1]
		s = s[i+2:]
		switch c {
		case '"', '\\', '/':
			dst = append(dst, c)
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'u':
			r := hex4(s)
			if r < 0 {
				p.fail()
				return dst
			}
			s = s[4:]
			if utf16.IsSurrogate(r) {
				low := rune(-1)
				if len(s) >= 6 && s[0] == '\\' && s[1] == 'u' {
					low = hex4(s[2:])
				}
				if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
					s = s[6:]
				}
			}
			dst = utf8.AppendRune(dst, r)
		default:
			p.fail()
			return dst
		}
	}
	return dst
}

// hex4 reads four hexadecimal digits, -1 if they are not.
func hex4(s []byte) rune {
	if len(s) < 4 {
		return -1
	}
	var r rune
	for _, c := range s[:4] {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'f':
			c -= 'a' - 10
		case c >= 'A' && c <= 'F':
			c -= 'A' - 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}
