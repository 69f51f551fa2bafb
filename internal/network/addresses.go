package network

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"slices"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux/netlink"
)

// gatewayNames are the auxiliary addresses that say where containers' default
// routes go, where that is not the host.
var gatewayNames = [2]string{"DefaultGatewayIPv4", "DefaultGatewayIPv6"}

// pools completes what was asked for to one pool per family, or more for those
// who share an interface.
func (s *Service) pools(n *live, asked []Pool) ([]Pool, error) {
	var ours, taken []netip.Prefix
	for _, x := range s.list() {
		for _, p := range x.IPAM {
			taken = append(taken, p.Subnet)
			if x.Driver == "bridge" {
				ours = append(ours, p.Subnet)
			}
		}
	}
	if host, err := netlink.Taken(); err == nil {
		taken = append(taken, host...)
	}
	invalid := func(format string, args ...any) error {
		return errdefs.Newf(errdefs.Invalid, "create", object(n.Name), format, args...)
	}
	enabled := [2]bool{n.EnableIPv4, n.EnableIPv6}
	var out []Pool
	have := [2]bool{}
	for _, p := range asked {
		if !p.Subnet.IsValid() {
			if p.Gateway.IsValid() || p.IPRange.IsValid() || len(p.AuxAddresses) > 0 {
				return nil, invalid("a gateway, range or auxiliary address needs a subnet")
			}
			continue
		}
		family := familyIndex(p.Subnet.Addr())
		if !enabled[family] {
			if family == 0 && !n.shares() {
				return nil, invalid("the subnet %s is given, but IPv4 is switched off", p.Subnet)
			}
			continue
		}
		var err error
		if p.Subnet, err = s.completeSubnet(p.Subnet, taken); err != nil {
			return nil, err
		}
		if err := checkPool(p); err != nil {
			return nil, errdefs.New(errdefs.Invalid, "create", object(n.Name), err)
		}
		if i := slices.IndexFunc(ours, p.Subnet.Overlaps); i >= 0 && n.Driver == "bridge" {
			return nil, errdefs.WithHint(errdefs.Newf(errdefs.Forbidden, "create", object(n.Name), "the subnet %s overlaps %s of another network (Pool overlaps with other one on this address space)", p.Subnet, ours[i]), "onggi network ls")
		}
		if slices.ContainsFunc(out, func(o Pool) bool { return o.Subnet.Overlaps(p.Subnet) }) {
			return nil, invalid("the subnet %s overlaps another one of the same request", p.Subnet)
		}
		if have[family] && n.Driver == "bridge" {
			return nil, invalid("%s is a second subnet of the same family: one network has one", p.Subnet)
		}
		have[family] = true
		out = append(out, p)
	}
	for family, want := range enabled {
		if !want || have[family] {
			continue
		}
		subnet, err := nextSubnet(s.familyPools(family == 1), taken)
		if err != nil {
			return nil, err
		}
		out = append(out, Pool{Subnet: subnet})
	}
	o := n.settings()
	for i, p := range out {
		if p.Gateway.IsValid() || n.Driver != "bridge" || o.isolated[familyIndex(p.Subnet.Addr())] {
			continue
		}
		used := map[netip.Addr]bool{}
		for _, a := range p.AuxAddresses {
			used[a] = true
		}
		gw, err := nextAddr(p.Subnet, p.Subnet, used)
		if err != nil {
			return nil, err
		}
		out[i].Gateway = gw
	}
	slices.SortStableFunc(out, func(a, b Pool) int { return familyIndex(a.Subnet.Addr()) - familyIndex(b.Subnet.Addr()) })
	return out, nil
}

// gatewayOf is where the default route of containers goes; invalid: nowhere.
func (n *Network) gatewayOf(p Pool) netip.Addr {
	if a, ok := p.AuxAddresses[gatewayNames[familyIndex(p.Subnet.Addr())]]; ok {
		return a
	}
	if n.shares() && n.closed() || n.settings().isolated[familyIndex(p.Subnet.Addr())] {
		return netip.Addr{}
	}
	return p.Gateway
}

// usedLocked are the addresses of a pool that nobody can be given: networks on
// interfaces of the host may overlap, and are one network then.
func (s *Service) usedLocked(n *live, p Pool) map[netip.Addr]bool {
	used := map[netip.Addr]bool{}
	add := func(a netip.Addr) {
		if a.IsValid() && p.Subnet.Contains(a) {
			used[a] = true
		}
	}
	first := p.Subnet.Masked().Addr()
	if p.Subnet.Bits() < first.BitLen()-1 { // a link between two has neither
		add(first)
		add(broadcast(p.Subnet))
	}
	same := func(x *live) bool { return x != nil && (x.ID == n.ID || n.shares() && x.Driver == n.Driver) }
	for _, x := range s.nets {
		if !same(x) {
			continue
		}
		for _, y := range x.IPAM {
			add(y.Gateway)
			for _, a := range y.AuxAddresses {
				add(a)
			}
		}
	}
	for _, b := range s.sandboxes {
		for _, e := range b.Endpoints {
			if e.NetworkID == n.ID || same(s.nets[e.NetworkID]) {
				add(e.IPv4.Addr())
				add(e.IPv6.Addr())
			}
		}
	}
	return used
}

// addressesLocked chooses addresses that nobody has.
func (s *Service) addressesLocked(n *live, q EndpointRequest, ep *Endpoint) error {
	for family, want := range []netip.Addr{q.IPv4, q.IPv6} {
		var pools []Pool
		for _, p := range n.IPAM {
			if familyIndex(p.Subnet.Addr()) == family && (!want.IsValid() || p.Subnet.Contains(want)) {
				pools = append(pools, p)
			}
		}
		if len(pools) == 0 && want.IsValid() {
			return errdefs.Newf(errdefs.Invalid, "reserve", "the address "+want.String(), "it is in no subnet of the network (no configured subnet contains IP address %s)", want)
		}
		var err error
		for _, p := range pools {
			if err = s.addressLocked(n, p, want, ep); err == nil || want.IsValid() {
				break
			}
		}
		if err != nil {
			return err
		}
	}
	if ep.MAC = q.MAC; ep.MAC == "" {
		mac := macFor(ep.IPv4.Addr())
		switch {
		case !ep.IPv4.IsValid() && !ep.IPv6.IsValid():
			ep.MAC = netlink.RandomMAC().String()
			return nil
		case !ep.IPv4.IsValid():
			mac = macFor(ep.IPv6.Addr())
		}
		ep.MAC = net.HardwareAddr(mac[:]).String()
	}
	return nil
}

// addressLocked takes an address of one pool.
func (s *Service) addressLocked(n *live, p Pool, want netip.Addr, ep *Endpoint) (err error) {
	used := s.usedLocked(n, p)
	a := want
	switch {
	case want.IsValid() && used[want]:
		return errdefs.Newf(errdefs.Conflict, "reserve", "the address "+want.String(), "Address already in use")
	case !want.IsValid() && p.Subnet.Addr().Is6() && n.Driver == "bridge" && ep.IPv4.IsValid() && (!p.IPRange.IsValid() || p.IPRange == p.Subnet) && p.Subnet.Bits() <= 96 && !used[sibling(ep.IPv4.Addr(), ep.IPv4.Masked(), p.Subnet)]:
		a = sibling(ep.IPv4.Addr(), ep.IPv4.Masked(), p.Subnet)
	case !want.IsValid():
		if a, err = nextAddr(p.Subnet, p.IPRange, used); err != nil {
			return err
		}
	}
	at := netip.PrefixFrom(a, p.Subnet.Bits())
	if a.Is4() {
		ep.IPv4, ep.Gateway4 = at, n.gatewayOf(p)
	} else {
		ep.IPv6, ep.Gateway6 = at, n.gatewayOf(p)
	}
	return nil
}

// SubnetStatus counts the addresses of a subnet.
type SubnetStatus struct {
	InUse     uint64 // reserved ones included
	Available uint64 // that can be given out to whoever asks for none; at most 2⁶⁴-1
}

// Status counts the addresses of a network.
func (s *Service) Status(nameOrID string) (map[netip.Prefix]SubnetStatus, error) {
	n, err := s.find(nameOrID)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[netip.Prefix]SubnetStatus{}
	for _, p := range n.IPAM {
		used := s.usedLocked(n, p)
		within := p.IPRange
		if !within.IsValid() {
			within = p.Subnet
		}
		var inside uint64
		for a := range used {
			if within.Contains(a) {
				inside++
			}
		}
		x := SubnetStatus{InUse: uint64(len(used)), Available: math.MaxUint64}
		switch bits := within.Addr().BitLen() - within.Bits(); {
		case bits < 64:
			x.Available = 1<<bits - inside
		case bits == 64 && inside > 0:
			x.Available = -inside // 2⁶⁴ is 0
		}
		out[p.Subnet] = x
	}
	return out, nil
}

func checkPool(p Pool) error {
	switch {
	case p.Gateway.IsValid() && !p.Subnet.Contains(p.Gateway):
		return fmt.Errorf("the gateway %s is not in the subnet %s", p.Gateway, p.Subnet)
	case p.IPRange.IsValid() && (!p.Subnet.Contains(p.IPRange.Addr()) || p.IPRange.Bits() < p.Subnet.Bits()):
		return fmt.Errorf("the range %s is not in the subnet %s", p.IPRange, p.Subnet)
	}
	for name, a := range p.AuxAddresses {
		if !p.Subnet.Contains(a) {
			return fmt.Errorf("the auxiliary address %s=%s is not in the subnet %s", name, a, p.Subnet)
		}
	}
	return nil
}
