package network

import (
	"context"
	"net/netip"
	"slices"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux/netlink"
)

// defaultPools are the default network's subnets, as far as options or addresses
// that its bridge has already say them.
func (s *Service) defaultPools() (out []Pool, err error) {
	if s.o.NoBridge {
		return nil, nil
	}
	have, err := netlink.BridgeAddrs(s.o.BridgeName)
	if err != nil && s.o.HostBridge {
		return nil, errdefs.WithHint(errdefs.New(errdefs.NotFound, "use", "bridge "+s.o.BridgeName, err), "ip link add "+s.o.BridgeName+" type bridge, or --bridge-name for one that the engine makes")
	}
	for _, q := range []defaultRequest{{family: 0, bip: s.o.BIP, fixed: s.o.FixedCIDR}, {family: 1, bip: s.o.BIP6, fixed: s.o.FixedCIDR6}} {
		if q.family == 1 && !(s.o.IPv6 && hasIPv6()) {
			continue
		}
		q.foreign = s.o.HostBridge
		p, warning, err := q.pool(have)
		if err != nil {
			return nil, errdefs.New(errdefs.Invalid, "make", "the default network", err)
		}
		if warning != nil {
			s.log.Warn("the range of the default network is not used", "bridge", s.o.BridgeName, "reason", warning)
		}
		if p.Subnet.IsValid() {
			out = append(out, p)
		}
	}
	return out, nil
}

// defaultRequest is what is asked of the default network's subnet of one family.
type defaultRequest struct {
	family     int
	bip, fixed string // as given with --bip and --fixed-cidr
	foreign    bool   // the bridge is the host's
}

// flags are the names of the options.
func (q *defaultRequest) flags() (bip, fixed string) {
	if q.family == 1 {
		return "--bip6", "--fixed-cidr-v6"
	}
	return "--bip", "--fixed-cidr"
}

// pool decides as Docker does, so that its configuration means here what it meant
// there. The zero pool: nothing is asked for. A range that cannot be is a warning
// with IPv4, since Docker starts with one.
func (q *defaultRequest) pool(have []netip.Prefix) (p Pool, warning, err error) {
	bipFlag, fixedFlag := q.flags()
	fixed, err := q.parse(q.fixed, fixedFlag)
	if err != nil {
		return Pool{}, nil, err
	}
	at, err := q.parse(q.bip, bipFlag)
	if err != nil {
		return Pool{}, nil, err
	}
	if !at.IsValid() {
		at = q.own(have, fixed)
	}
	if at.IsValid() {
		p.Subnet, p.Gateway = at.Masked(), at.Addr()
	}
	if !fixed.IsValid() {
		return p, nil, nil
	}
	p.IPRange = fixed.Masked()
	switch {
	case !p.Subnet.IsValid():
		p.Subnet = p.IPRange
	case q.foreign && (!p.Subnet.Contains(fixed.Addr()) || fixed.Bits() < p.Subnet.Bits()):
		err := errdefs.Newf(errdefs.Invalid, "", "", "%s %s is not in the subnet %s of the bridge", fixedFlag, q.fixed, p.Subnet)
		if q.family == 1 {
			return Pool{}, nil, err
		}
		p.IPRange, warning = netip.Prefix{}, err
	}
	return p, warning, nil
}

func (q *defaultRequest) parse(v, flag string) (netip.Prefix, error) {
	if v == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(v)
	if err != nil || familyIndex(p.Addr()) != q.family {
		return p, errdefs.Newf(errdefs.Invalid, "", "", "%s %q is not an address with a prefix length, such as %s", flag, v, [2]string{"172.30.0.1/24", "fd00:30::1/64"}[q.family])
	}
	return p, nil
}

// linkLocal is where the kernel's own addresses of links are.
var linkLocal = netip.MustParsePrefix("fe80::/64")

// own is the bridge's address that goes with the range, if any: best one whose
// subnet has it, else one in it.
func (q *defaultRequest) own(have []netip.Prefix, fixed netip.Prefix) netip.Prefix {
	var at netip.Prefix
	for _, a := range have {
		if familyIndex(a.Addr()) != q.family || linkLocal.Contains(a.Addr()) && !linkLocal.Contains(fixed.Addr()) {
			continue
		}
		if fixed.IsValid() && a.Contains(fixed.Addr()) {
			at = a
			break
		}
		if !at.IsValid() || fixed.IsValid() && fixed.Contains(a.Addr()) && !fixed.Contains(at.Addr()) {
			at = a
		}
	}
	if q.foreign || !at.IsValid() || !fixed.IsValid() {
		return at
	}
	if !at.Contains(fixed.Addr()) {
		return netip.Prefix{} // the option has changed
	}
	return netip.PrefixFrom(at.Addr(), min(at.Bits(), fixed.Bits()))
}

// fits reports that the default network is as it is asked for. Addresses of its
// own bridge ask for nothing: it has them from the network.
func (s *Service) fits(n *live, pools []Pool) bool {
	for _, p := range pools {
		family := familyIndex(p.Subnet.Addr())
		bip := s.o.HostBridge || [2]string{s.o.BIP, s.o.BIP6}[family] != ""
		fixed := [2]string{s.o.FixedCIDR, s.o.FixedCIDR6}[family] != ""
		if (bip || fixed) && !slices.ContainsFunc(n.IPAM, func(o Pool) bool {
			return o.Subnet == p.Subnet && (!fixed || o.IPRange == p.IPRange) && (!bip || o.Gateway == p.Gateway)
		}) {
			return false
		}
	}
	return true
}

// lost reports that the default network's subnet, which nobody has asked for, went
// to somebody else while its bridge was away, as after a boot.
func (s *Service) lost(n *live) bool {
	links, err := netlink.Links(n.bridge())
	if err != nil || slices.Contains(links, n.bridge()) || s.o.BIP+s.o.BIP6+s.o.FixedCIDR+s.o.FixedCIDR6 != "" || len(s.users(n.ID)) > 0 {
		return false
	}
	taken, err := netlink.Taken()
	for _, p := range n.IPAM {
		if i := slices.IndexFunc(taken, p.Subnet.Overlaps); err == nil && i >= 0 {
			s.log.Warn("the default network gets another subnet: somebody else has its own", "subnet", p.Subnet, "taken", taken[i], "to choose one", "--bip")
			return true
		}
	}
	return false
}

// makeDefault makes the default network.
func (s *Service) makeDefault(ctx context.Context, pools []Pool) error {
	r := CreateRequest{Name: "bridge", Driver: "bridge", IPAM: pools, Options: map[string]string{optionName: s.o.BridgeName, optionDefault: "true"}}
	if s.o.NoICC {
		r.Options[optionICC] = "false"
	}
	if s.o.HostBridge {
		r.Options[optionForeign] = "true"
	}
	r.EnableIPv6 = new(s.o.IPv6 && hasIPv6())
	_, err := s.create(ctx, r)
	return err
}
