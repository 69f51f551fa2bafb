package engineapi

import "strings"

// A tree finds routes. Patterns are of literal segments, {name} for one
// segment, and {name...} for one or more, of which a pattern has at most one:
// names of images contain slashes.
type tree struct {
	byHead map[string][]*pattern // by first segment
}

type pattern struct {
	segs  []string
	route *route
}

func newTree(routes []route) *tree {
	t := &tree{byHead: map[string][]*pattern{}}
	for i := range routes {
		p := &pattern{segs: segments(routes[i].path), route: &routes[i]}
		t.byHead[p.segs[0]] = append(t.byHead[p.segs[0]], p)
	}
	return t
}

func segments(path string) []string { return strings.Split(strings.Trim(path, "/"), "/") }

// find returns the route and the values of its wildcards. known tells that the
// path exists with another method. Literal segments win over wildcards.
func (t *tree) find(method, path string) (r *route, values map[string]string, known bool) {
	segs := segments(path)
	best := -1
	for _, p := range t.byHead[segs[0]] {
		v, literals, ok := p.match(segs)
		if !ok {
			continue
		}
		if p.route.method != method {
			known = true
			continue
		}
		if literals > best {
			r, values, best = p.route, v, literals
		}
	}
	return r, values, known
}

func (p *pattern) match(segs []string) (values map[string]string, literals int, ok bool) {
	extra := len(segs) - len(p.segs)
	j := 0
	for _, s := range p.segs {
		if j >= len(segs) {
			return nil, 0, false
		}
		switch {
		case strings.HasSuffix(s, "...}"):
			if extra < 0 {
				return nil, 0, false
			}
			v := strings.Join(segs[j:j+extra+1], "/")
			if v == "" {
				return nil, 0, false
			}
			values = put(values, s[1:len(s)-4], v)
			j += extra + 1
			continue
		case strings.HasPrefix(s, "{"):
			if segs[j] == "" {
				return nil, 0, false
			}
			values = put(values, s[1:len(s)-1], segs[j])
		case s != segs[j]:
			return nil, 0, false
		default:
			literals++
		}
		j++
	}
	return values, literals, j == len(segs)
}

func put(m map[string]string, k, v string) map[string]string {
	if m == nil {
		m = map[string]string{}
	}
	m[k] = v
	return m
}
