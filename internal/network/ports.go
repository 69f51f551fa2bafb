package network

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"syscall"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/netlink"
	"github.com/onggi/onggi/internal/linux/nft"
)

var protocols = map[string]uint8{"tcp": syscall.IPPROTO_TCP, "udp": syscall.IPPROTO_UDP, "sctp": 132}

// A way in is where published ports lead, for one family.
type wayIn struct {
	target  netip.Addr
	routed  bool       // no port of the host is used
	binding netip.Addr // the network's default host address
}

// waysIn are the endpoints that published ports of a sandbox lead to.
func (s *Service) waysIn(b *sandbox) (ways [2]wayIn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.rankedLocked(b) {
		n := s.nets[e.NetworkID]
		if n == nil || n.Internal || n.Driver != "bridge" {
			continue
		}
		o := n.settings()
		for i, p := range []netip.Prefix{e.IPv4, e.IPv6} {
			if p.IsValid() && !ways[i].target.IsValid() {
				ways[i] = wayIn{p.Addr(), o.mode[i] == nft.Routed, o.binding[i]}
			}
		}
	}
	return ways
}

// bindings are the host addresses that a request publishes on, one for each
// family at most.
func bindings(asked netip.Addr, standard string, ways [2]wayIn) (out []netip.Addr) {
	if asked.IsValid() {
		return []netip.Addr{asked.Unmap()}
	}
	if a, err := netip.ParseAddr(standard); err == nil && !a.IsUnspecified() {
		return []netip.Addr{a}
	}
	for i, any := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		switch {
		case ways[i].binding.IsValid():
			out = append(out, ways[i].binding)
		case ways[i].target.IsValid():
			out = append(out, any)
		}
	}
	return out
}

// publish reserves the host ports that were asked for and that nothing led to
// yet, and sends them to the container.
func (s *Service) publish(b *sandbox) error {
	if len(b.Request.Ports) == 0 {
		return nil
	}
	ways := s.waysIn(b)
	for _, p := range b.Request.Ports {
		if _, ok := protocols[p.Proto]; !ok {
			return errdefs.Newf(errdefs.Invalid, "publish", fmt.Sprintf("port %d", p.Port), "the protocol %q is not tcp, udp or sctp", p.Proto)
		}
		ips := bindings(p.HostIP, s.o.PublishIP, ways)
		s.mu.Lock()
		for _, have := range b.Ports {
			if have.Port == p.Port && have.Proto == p.Proto && (p.HostPort == 0 || have.HostPort >= p.HostPort && have.HostPort <= max(p.HostPort, p.HostPortEnd)) && slices.Contains(ips, have.HostIP) {
				ips = slices.DeleteFunc(ips, func(a netip.Addr) bool { return a == have.HostIP })
				p.HostPort, p.HostPortEnd = have.HostPort, 0 // one number on all addresses
			}
		}
		s.mu.Unlock()
		if err := s.publishOne(b, p, ips, ways); err != nil {
			return err
		}
	}
	targets := s.targets(b)
	if err := s.table.AddPorts(targets); err != nil {
		return err
	}
	s.forgetFlows(targets)
	return nil
}

func (s *Service) publishOne(b *sandbox, p PortRequest, ips []netip.Addr, ways [2]wayIn) error {
	var mapped []netip.Addr
	for _, ip := range ips {
		w := ways[familyIndex(ip)]
		switch {
		case !w.target.IsValid() && ip.Is6() && ways[0].target.IsValid():
			return errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "publish", fmt.Sprintf("port %d on %s", p.Port, ip), "the container has no IPv6 address"), "a network made with --ipv6")
		case !w.target.IsValid(): // nothing to lead to: no network, or internal ones
		case w.routed:
			s.mu.Lock()
			b.Ports = append(b.Ports, PortBinding{Port: p.Port, Proto: p.Proto, HostIP: ip})
			s.mu.Unlock()
		default:
			mapped = append(mapped, ip)
		}
	}
	if len(mapped) == 0 {
		return nil
	}
	// One number for all addresses: the first that is free on each.
	lo, hi := p.HostPort, max(p.HostPort, p.HostPortEnd)
	if lo == 0 {
		lo, hi = firstFree, lastFree
	}
	var why error
	for n := uint32(lo); n <= uint32(hi); n++ {
		taken := 0
		for _, ip := range mapped {
			if why = s.reserve(b, p, hostPort{p.Proto, ip, uint16(n)}); why != nil {
				break
			}
			taken++
		}
		if why == nil {
			return nil
		}
		s.mu.Lock()
		for _, pb := range b.Ports[len(b.Ports)-taken:] {
			s.releaseLocked(hostPort{pb.Proto, pb.HostIP, pb.HostPort})
		}
		b.Ports = b.Ports[:len(b.Ports)-taken]
		s.mu.Unlock()
		if !errdefs.Is(why, errdefs.Conflict) {
			return why
		}
	}
	return why
}

// targets are the elements of the table for a sandbox's ports.
func (s *Service) targets(b *sandbox) (out []nft.Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(b.Ports) == 0 {
		return nil
	}
	ranked := s.rankedLocked(b)
	for _, p := range b.Ports {
		for _, e := range ranked {
			a := e.IPv4
			if p.HostIP.Is6() {
				a = e.IPv6
			}
			if n := s.nets[e.NetworkID]; a.IsValid() && n != nil && !n.Internal && n.Driver == "bridge" {
				out = append(out, nft.Port{Proto: protocols[p.Proto], HostIP: p.HostIP, HostPort: p.HostPort, Target: netip.AddrPortFrom(a.Addr(), p.Port)})
				break
			}
		}
	}
	return out
}

// Range of ports that are given out where none is asked for.
const firstFree, lastFree = 32768, 60999

// reserve takes one host port for the sandbox.
func (s *Service) reserve(b *sandbox, p PortRequest, k hostPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if owner := s.ownerLocked(k); owner != "" {
		return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "publish", fmt.Sprintf("port %d of %s", p.Port, b.object()), "Bind for %s failed: port is already allocated by container %q",
			netip.AddrPortFrom(k.ip, k.port), owner), "another host port, or onggi rm -f "+owner)
	}
	c, err := s.hold(k)
	if err != nil {
		return portError(b, p, k, err)
	}
	s.held[k] = c
	b.Ports = append(b.Ports, PortBinding{Port: p.Port, Proto: p.Proto, HostIP: k.ip, HostPort: k.port})
	return nil
}

// ownerLocked names the container that has a host port; one on all addresses
// and one on a certain address exclude each other.
func (s *Service) ownerLocked(k hostPort) string {
	for _, b := range s.sandboxes {
		for _, p := range b.Ports {
			if p.Proto == k.proto && p.HostPort == k.port && p.HostIP.Is4() == k.ip.Is4() && (p.HostIP == k.ip || p.HostIP.IsUnspecified() || k.ip.IsUnspecified()) {
				return b.Request.Name
			}
		}
	}
	return ""
}

func portError(b *sandbox, p PortRequest, k hostPort, err error) error {
	kind, hint := errdefs.Internal, ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		kind, hint = errdefs.Conflict, "another host port, or end what uses this one"
		err = fmt.Errorf("%s uses it (address already in use)", owner(k))
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		kind, hint = errdefs.Invalid, "an address of this host: ip address"
		err = fmt.Errorf("the host has no address %s", k.ip)
	}
	return errdefs.WithHint(errdefs.Newf(kind, "publish", fmt.Sprintf("port %d of %s", p.Port, b.object()), "host port %s/%s: %w", netip.AddrPortFrom(k.ip, k.port), k.proto, err), hint)
}

// owner says which program of the host has a port.
func owner(k hostPort) string {
	pid, name := linux.PortOwner(k.proto, k.ip, k.port)
	if pid == 0 {
		return "another program of the host"
	}
	return fmt.Sprintf("process %d (%s)", pid, name)
}

// hold binds a socket to the port, so that nobody else takes it. It does not
// listen: who comes there by no rule of ours is refused.
func (s *Service) hold(k hostPort) (io.Closer, error) {
	switch {
	case k.proto == "sctp": // most kernels have no such sockets: nobody can take it
		return nopCloser{}, nil
	case k.proto == "tcp" && k.ip.Is6() && (k.ip.IsUnspecified() || k.ip.IsLoopback()):
		return s.listenLoopback(k)
	}
	return linux.HoldPort(k.proto, netip.AddrPortFrom(k.ip, k.port))
}

type nopCloser struct{}

func (nopCloser) Close() error { return nil }

// releaseLocked lets one host port go.
func (s *Service) releaseLocked(k hostPort) {
	if c := s.held[k]; c != nil {
		c.Close()
		delete(s.held, k)
	}
}

// letGoLocked lets all host ports of a sandbox go.
func (s *Service) letGoLocked(b *sandbox) {
	for _, p := range b.Ports {
		s.releaseLocked(hostPort{p.Proto, p.HostIP, p.HostPort})
	}
}

// forgetFlows ends what the kernel remembers of datagrams to published ports:
// they go on to where they went before, whatever the rules say now.
func (s *Service) forgetFlows(ports []nft.Port) {
	udp := map[uint16]bool{}
	for _, p := range ports {
		if p.Proto == syscall.IPPROTO_UDP && p.HostPort != 0 {
			udp[p.HostPort] = true
		}
	}
	if len(udp) == 0 {
		return
	}
	s.background.Go(func() {
		if err := netlink.ForgetUDP(udp); err != nil {
			s.log.Debug("old datagram flows were not ended", "error", err)
		}
	})
}
