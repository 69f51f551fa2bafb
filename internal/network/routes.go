package network

import (
	"cmp"
	"slices"

	"github.com/onggi/onggi/internal/linux/netlink"
)

// leads reports whether the world is reached by an endpoint, by family.
func (s *Service) leadsLocked(e Endpoint) (v4, v6 bool) {
	n := s.nets[e.NetworkID]
	if n == nil || n.closed() {
		return false, false
	}
	direct := n.layer3()
	return e.IPv4.IsValid() && (direct || e.Gateway4.IsValid()), e.IPv6.IsValid() && (direct || e.Gateway6.IsValid())
}

// rankedLocked are the endpoints in the order in which they are used for what
// needs one of them: by the priority asked for, then those of both families,
// then by the network's name.
func (s *Service) rankedLocked(b *sandbox) []*Endpoint {
	var out []*Endpoint
	for i := range b.Endpoints {
		out = append(out, &b.Endpoints[i])
	}
	families := func(e *Endpoint) (n int) {
		v4, v6 := s.leadsLocked(*e)
		for _, has := range []bool{v4, v6} {
			if has {
				n++
			}
		}
		return n
	}
	slices.SortStableFunc(out, func(x, y *Endpoint) int {
		return cmp.Or(cmp.Compare(y.GwPriority, x.GwPriority), cmp.Compare(families(y), families(x)), cmp.Compare(x.NetworkName, y.NetworkName))
	})
	return out
}

// routeLocked chooses the endpoints that default routes go by.
func (s *Service) routeLocked(b *sandbox) {
	var have4, have6 bool
	for _, e := range s.rankedLocked(b) {
		v4, v6 := s.leadsLocked(*e)
		e.Default4, e.Default6 = v4 && !have4, v6 && !have6
		have4, have6 = have4 || v4, have6 || v6
	}
}

func (b *sandbox) hasDefaults() (v4, v6 bool) {
	for _, e := range b.Endpoints {
		v4, v6 = v4 || e.Default4, v6 || e.Default6
	}
	return v4, v6
}

// defaults are the default routes that go by an endpoint.
func (e Endpoint) defaults(replace bool) (out []netlink.DefaultRoute) {
	if e.Default4 {
		out = append(out, netlink.DefaultRoute{Gateway: e.Gateway4, Replace: replace})
	}
	if e.Default6 {
		out = append(out, netlink.DefaultRoute{Gateway: e.Gateway6, IPv6: true, Replace: replace})
	}
	return out
}
