package network

import (
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/nft"
)

// localServer is where a name server in a container's namespace is.
var localServer = netip.MustParseAddr("127.0.0.11")

// bridgeNames is the name server of a bridge. It answers each container for all
// networks that the container is on.
func (s *Service) bridgeNames(n *live) *nameServer {
	id := n.ID
	return &nameServer{
		log:      s.log.With("network", n.Name),
		lookup:   func(client netip.Addr, name string) []netip.Addr { return s.lookup(s.asker(id, client), id, name) },
		reverse:  func(client, a netip.Addr) string { return s.reverse(s.asker(id, client), id, a) },
		upstream: func(client netip.Addr) upstream { return s.upstream(s.asker(id, client), n) },
	}
}

// names starts a name server in the container's namespace, where none of its
// networks has one that it reaches.
func (s *Service) names(b *sandbox) error {
	s.mu.Lock()
	need := b.dns == nil && b.ns != nil && s.needsOwnNamesLocked(b)
	ns := b.ns
	s.mu.Unlock()
	if !need {
		return nil
	}
	server := &nameServer{
		log:      s.log.With("container", b.Request.Name),
		lookup:   func(_ netip.Addr, name string) []netip.Addr { return s.lookup(b, "", name) },
		reverse:  func(_, a netip.Addr) string { return s.reverse(b, "", a) },
		upstream: func(netip.Addr) upstream { return s.upstream(b, nil) },
	}
	var at netip.AddrPort
	err := linux.InNetNS(ns, func() (err error) {
		at, err = server.serve(&net.ListenConfig{}, localServer)
		return err
	})
	if err == nil {
		err = nft.RedirectNames(ns, at)
	}
	if err != nil {
		server.stop()
		return err
	}
	s.mu.Lock()
	b.dns = server
	s.mu.Unlock()
	return nil
}

func (s *Service) needsOwnNamesLocked(b *sandbox) bool {
	named := false
	for _, e := range b.Endpoints {
		n := s.nets[e.NetworkID]
		if n == nil || n.Driver == "host" || n.Driver == "null" {
			continue
		}
		if len(n.bound) > 0 {
			return false
		}
		named = true
	}
	return named
}

// asker is the container that has an address on a network; nil: none has.
func (s *Service) asker(networkID string, client netip.Addr) *sandbox {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.sandboxes {
		if slices.ContainsFunc(b.Endpoints, func(e Endpoint) bool {
			return e.NetworkID == networkID && (e.IPv4.Addr() == client || e.IPv6.Addr() == client)
		}) {
			return b
		}
	}
	return nil
}

// lookup answers a name for a container (nil: for whoever is on the network), in
// an order that changes.
func (s *Service) lookup(b *sandbox, networkID, name string) (out []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b == nil {
		return s.lookupLocked(networkID, name)
	}
	for _, e := range s.rankedLocked(b) {
		target, links := name, e.Links // names of one network
		if e.NetworkName == "bridge" {
			links = slices.Concat(links, b.Request.Links)
		}
		for _, l := range links {
			if strings.EqualFold(l.Alias, name) {
				target = l.Target
			}
		}
		if out = s.lookupLocked(e.NetworkID, target); len(out) > 0 {
			return out
		}
	}
	return nil
}

func (s *Service) lookupLocked(networkID, name string) (out []netip.Addr) {
	for id, b := range s.sandboxes { // a map's order is random: that spreads the load
		for _, e := range b.Endpoints {
			if e.NetworkID != networkID || !answers(e, name) && id != name {
				continue
			}
			for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
				if p.IsValid() {
					out = append(out, p.Addr())
				}
			}
		}
	}
	return out
}

func answers(e Endpoint, name string) bool {
	name = strings.TrimSuffix(name, "."+strings.ToLower(e.NetworkName))
	same := func(n string) bool { return strings.EqualFold(n, name) }
	return slices.ContainsFunc(e.DNSNames, same) || slices.ContainsFunc(e.Aliases, same)
}

// reverse names an address of a network that a container is on.
func (s *Service) reverse(asker *sandbox, networkID string, a netip.Addr) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.sandboxes {
		for _, e := range b.Endpoints {
			known := e.NetworkID == networkID || asker != nil && asker.on(e.NetworkID) >= 0
			if known && (e.IPv4.Addr() == a || e.IPv6.Addr() == a) {
				return b.Request.Name + "." + e.NetworkName
			}
		}
	}
	return ""
}

// upstream says whom to ask for names that a container's networks do not have;
// without a container, those of a network.
func (s *Service) upstream(b *sandbox, n *live) (up upstream) {
	host := func() upstream {
		if len(s.o.DNS) > 0 {
			return upstream{servers: s.o.DNS}
		}
		return upstream{servers: readHostResolver(s.o.ResolvConf).servers}
	}
	if b == nil {
		if n.Internal {
			return up
		}
		return host()
	}
	s.mu.Lock()
	if b.dns != nil { // the host may not reach what the container does
		up.ns = b.ns
	}
	up.servers, up.own = b.Request.DNS, b.ns
	eps := slices.Clone(b.Endpoints)
	open := slices.ContainsFunc(eps, func(e Endpoint) bool { x := s.nets[e.NetworkID]; return x != nil && !x.closed() })
	s.mu.Unlock()
	switch {
	case !open: // what is outside does not even hear of questions
		up.servers = slices.DeleteFunc(slices.Clone(up.servers), func(server string) bool {
			a, err := netip.ParseAddr(server)
			return err != nil || !slices.ContainsFunc(eps, func(e Endpoint) bool {
				return e.IPv4.IsValid() && e.IPv4.Masked().Contains(a) || e.IPv6.IsValid() && e.IPv6.Masked().Contains(a)
			})
		})
	case len(b.Request.DNS) == 0:
		return host()
	}
	up.servers = slices.DeleteFunc(slices.Clone(up.servers), func(server string) bool { return server == localServer.String() }) // ourselves
	return up
}

// files are the container's resolv.conf and hosts.
func (s *Service) files(b *sandbox) (resolv, hosts []byte) {
	r := b.Request
	host := readHostResolver(s.o.ResolvConf)
	search, options := r.DNSSearch, r.DNSOptions
	if len(search) == 0 {
		if search = s.o.DNSSearch; len(search) == 0 {
			search = host.search
		}
	}
	if len(options) == 0 {
		if options = s.o.DNSOptions; len(options) == 0 {
			options = host.options
		}
	}
	s.mu.Lock()
	eps := slices.Clone(b.Endpoints)
	var servers []string
	named := false // by a network that is not the default
	for _, e := range s.rankedLocked(b) {
		if n := s.nets[e.NetworkID]; n != nil {
			named = named || n.Name != "bridge"
			for _, a := range n.bound {
				servers = append(servers, a.Addr().String())
			}
		}
	}
	if b.dns != nil && len(servers) == 0 {
		servers = []string{localServer.String()}
	}
	gateways, links := s.hostGatewaysLocked(b), s.linesLocked(b)
	s.mu.Unlock()
	// A short name is one of a container before it is one of a search domain.
	if len(servers) > 0 && !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		options = append(slices.Clone(options), "ndots:0")
	}
	switch {
	case len(r.DNS) > 0 && (len(servers) == 0 || !named && !slices.Equal(reachable(r.DNS), r.DNS)):
		servers = r.DNS // nobody asks for it, or it is in the container itself
	case len(servers) == 0 && !slices.ContainsFunc(eps, func(e Endpoint) bool { return e.Interface != "" }):
		servers = host.servers // the host's network, or none
	case len(servers) == 0:
		if servers = s.o.DNS; len(servers) == 0 {
			servers = reachable(host.servers)
		}
	}
	// More than three are not read (resolv.conf(5)).
	return resolvConf(servers[:min(3, len(servers))], search, options), hostsFile(r, eps, gateways, links)
}

// hostGatewaysLocked are the host's addresses that a container reaches it by.
func (s *Service) hostGatewaysLocked(b *sandbox) (out []netip.Addr) {
	of := func(n *live) []netip.Addr {
		for _, p := range n.hostAddrs() {
			out = append(out, p.Addr())
		}
		return out
	}
	for _, e := range s.rankedLocked(b) {
		if n := s.nets[e.NetworkID]; n != nil && n.Driver == "bridge" && len(of(n)) > 0 {
			return out
		}
	}
	for _, n := range s.nets {
		if n.Name == "bridge" {
			return of(n)
		}
	}
	return nil
}

// linesLocked are the links of a container, for its hosts file.
func (s *Service) linesLocked(b *sandbox) (out []hostLine) {
	for _, l := range b.Request.Links {
		target := s.sandboxes[l.Target]
		if target == nil {
			continue
		}
		names := []string{l.Alias}
		for _, n := range []string{target.Request.Hostname, target.Request.Name} {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
		for _, e := range target.Endpoints {
			if e.NetworkName != "bridge" || b.on(e.NetworkID) < 0 {
				continue
			}
			for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
				if p.IsValid() {
					out = append(out, hostLine{p.Addr(), names})
				}
			}
		}
	}
	return out
}
