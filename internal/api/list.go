package api

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
)

// Containers lists containers. The parameter onggi-brief leaves out what a table
// does not show; Docker's engine ignores it.
func (c *Client) Containers(ctx context.Context, query url.Values) (list []ContainerSummary, err error) {
	resp, err := c.Do(ctx, Request{Method: "GET", Path: "/containers/json", Query: query})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var answer strings.Builder
	if n, err := strconv.Atoi(resp.Header["content-length"]); err == nil {
		answer.Grow(min(max(n, 0), 1<<20))
	}
	if _, err := io.Copy(&answer, resp.Body); err != nil {
		return nil, err
	}
	if query.Has("onggi-brief") {
		if list, ok := briefList(answer.String()); ok {
			return list, nil
		}
	}
	if err := json.Unmarshal([]byte(answer.String()), &list); err != nil {
		return nil, fmt.Errorf("GET /containers/json: answer: %w", err)
	}
	return list, nil
}

// briefList decodes what the engine answers to onggi-brief, in a fraction of the
// time of encoding/json, which with a thousand containers is a third of ps's. It is
// ok only where encoding/json says the same, and gives up at whatever the engine
// writes otherwise.
func briefList(s string) (list []ContainerSummary, ok bool) {
	p := &parser{s: strings.TrimSuffix(s, "\n")}
	list = make([]ContainerSummary, 0, len(s)/192)
	p.array(func() {
		list = append(list, ContainerSummary{})
		c := &list[len(list)-1]
		p.object(func(key string) {
			switch key {
			case "Id":
				c.ID = p.text()
			case "Names":
				p.bad = p.bad || c.Names != nil
				c.Names = []string{}
				p.array(func() { c.Names = append(c.Names, p.text()) })
			case "Image":
				c.Image = p.text()
			case "Command":
				c.Command = p.text()
			case "Created":
				c.Created = p.number(63)
			case "Ports":
				p.bad = p.bad || c.Ports != nil
				c.Ports = []Port{}
				p.array(func() { c.Ports = append(c.Ports, p.port()) })
			case "SizeRw":
				c.SizeRw = p.number(63)
			case "SizeRootFs":
				c.SizeRootFs = p.number(63)
			case "State":
				c.State = p.text()
			case "Status":
				c.Status = p.text()
			default:
				p.bad = true
			}
		})
	})
	return list, !p.bad && p.s == ""
}

func (p *parser) port() (out Port) {
	p.object(func(key string) {
		switch key {
		case "IP":
			out.IP = p.text()
		case "PrivatePort":
			out.PrivatePort = uint16(p.number(16))
		case "PublicPort":
			out.PublicPort = uint16(p.number(16))
		case "Type":
			out.Type = p.text()
		default:
			p.bad = true
		}
	})
	return out
}

// A parser takes JSON without spaces from the front of s, and is bad from the
// first thing that it does not know.
type parser struct {
	s   string
	bad bool
}

func (p *parser) skip(c byte) bool {
	if p.bad || p.s == "" || p.s[0] != c {
		return false
	}
	p.s = p.s[1:]
	return true
}

func (p *parser) need(c byte) { p.bad = !p.skip(c) || p.bad }

func (p *parser) array(element func()) {
	p.need('[')
	for first := true; !p.bad && !p.skip(']'); first = false {
		if !first {
			p.need(',')
		}
		element()
	}
}

func (p *parser) object(field func(key string)) {
	p.need('{')
	for first := true; !p.bad && !p.skip('}'); first = false {
		if !first {
			p.need(',')
		}
		key := p.text()
		p.need(':')
		field(key)
	}
}

func (p *parser) text() (out string) {
	p.need('"')
	for i := 0; i < len(p.s) && !p.bad; i++ {
		switch c := p.s[i]; {
		case c == '"':
			out, p.s = p.s[:i], p.s[i+1:]
			return out
		case c < ' ':
			p.bad = true
		case c == '\\' || c > '~':
			return p.quoted(i)
		}
	}
	p.bad = true
	return ""
}

// quoted is a text that has something beyond ASCII, or escaped, at i.
func (p *parser) quoted(i int) (out string) {
	for ; i < len(p.s) && p.s[i] != '"'; i++ {
		if p.s[i] == '\\' {
			i++
		}
	}
	if i >= len(p.s) || json.Unmarshal([]byte(`"`+p.s[:i+1]), &out) != nil {
		p.bad = true
		return ""
	}
	p.s = p.s[i+1:]
	return out
}

func (p *parser) number(bits int) int64 {
	i := 0
	for i < len(p.s) && p.s[i] >= '0' && p.s[i] <= '9' {
		i++
	}
	n, err := strconv.ParseUint(p.s[:i], 10, bits)
	p.bad = p.bad || err != nil || i > 1 && p.s[0] == '0'
	p.s = p.s[i:]
	return int64(n)
}
