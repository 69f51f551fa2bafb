package network

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/onggi/onggi/internal/errdefs"
)

// AddressPool is a range that networks get their subnets from.
type AddressPool struct {
	Base netip.Prefix
	Size int // bits of each subnet
}

// defaultPools hold 4,096 networks: a /24 is room enough for a bridge, and the
// /16 that others hand out are used up after thirty networks.
var defaultPools = []AddressPool{
	{netip.MustParsePrefix("172.17.0.0/16"), 24}, {netip.MustParsePrefix("172.18.0.0/15"), 24}, {netip.MustParsePrefix("172.20.0.0/14"), 24},
	{netip.MustParsePrefix("172.24.0.0/13"), 24}, {netip.MustParsePrefix("10.192.0.0/11"), 24},
}

// nextSubnet is the first subnet of the pools that overlaps nothing taken.
func nextSubnet(pools []AddressPool, taken []netip.Prefix) (netip.Prefix, error) {
	for _, p := range pools {
		s := subnetAt(p.Base, p.Size, 0)
		for range 1 << 16 {
			i := slices.IndexFunc(taken, s.Overlaps)
			if i < 0 {
				return s, nil
			}
			// Behind what is in the way, which may be larger than what is looked for.
			bits := min(p.Size, taken[i].Bits())
			s = subnetAt(netip.PrefixFrom(s.Addr(), bits), bits, 1)
			if s = netip.PrefixFrom(s.Addr(), p.Size); !p.Base.Contains(s.Addr()) {
				break
			}
		}
	}
	return netip.Prefix{}, errdefs.WithHint(errdefs.Newf(errdefs.Exhausted, "find", "a subnet", "all %d address pools are used up", len(pools)),
		"onggi network prune, or --subnet with a range of your own")
}

// subnetAt is the i-th subnet of base with that many bits.
func subnetAt(base netip.Prefix, bits, i int) netip.Prefix {
	a := base.Masked().Addr().As16()
	shift := base.Addr().BitLen() - bits
	hi, lo := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	if shift >= 64 {
		hi += uint64(i) << (shift - 64)
	} else {
		lo += uint64(i) << shift
		if shift > 0 {
			hi += uint64(i) >> (64 - shift)
		}
	}
	binary.BigEndian.PutUint64(a[:8], hi)
	binary.BigEndian.PutUint64(a[8:], lo)
	addr := netip.AddrFrom16(a)
	if base.Addr().Is4() {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, bits)
}

// uniqueLocal is the prefix that an engine's IPv6 subnets come from: stable, and
// another one on every machine (RFC 4193).
func uniqueLocal(machine, engine string) netip.Prefix {
	sum := sha256.Sum256([]byte("onggi networks\x00" + machine + "\x00" + engine))
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], sum[:5])
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}

// nextAddr is the first address of the range that is free: not the network's
// own, not the broadcast address, not used.
func nextAddr(subnet, within netip.Prefix, used map[netip.Addr]bool) (netip.Addr, error) {
	if !within.IsValid() {
		within = subnet
	}
	last := broadcast(subnet)
	a := within.Masked().Addr()
	for n := 0; within.Contains(a) && n < 1<<20; n, a = n+1, a.Next() {
		if a == subnet.Masked().Addr() && subnet.Bits() < a.BitLen()-1 || a == last || used[a] {
			continue
		}
		return a, nil
	}
	return netip.Addr{}, errdefs.WithHint(errdefs.Newf(errdefs.Exhausted, "find", "an address", "all addresses of %s are in use", within),
		"remove containers, or use a larger network: onggi network create --subnet 10.123.0.0/16 NAME")
}

// broadcast is the last address of an IPv4 subnet; none for IPv6.
func broadcast(p netip.Prefix) netip.Addr {
	if !p.Addr().Is4() || p.Bits() >= 31 {
		return netip.Addr{}
	}
	a := p.Masked().Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	binary.BigEndian.PutUint32(a[:], n)
	return netip.AddrFrom4(a)
}

// sibling is the IPv6 address that has the same number in its subnet as an IPv4
// address has in its own.
func sibling(v4 netip.Addr, in4, in6 netip.Prefix) netip.Addr {
	host := binary.BigEndian.Uint32(v4.AsSlice()) - binary.BigEndian.Uint32(in4.Masked().Addr().AsSlice())
	a := in6.Masked().Addr().As16()
	binary.BigEndian.PutUint32(a[12:], binary.BigEndian.Uint32(a[12:])+host)
	return netip.AddrFrom16(a)
}

// macFor derives a local MAC address from the network address: whoever gets an
// address anew is found by those who remember the one before.
func macFor(a netip.Addr) [6]byte {
	mac := [6]byte{0x02, 0x6f}
	if a.Is4() {
		copy(mac[2:], a.AsSlice())
	} else {
		sum := sha256.Sum256(a.AsSlice())
		copy(mac[2:], sum[:4])
	}
	return mac
}
