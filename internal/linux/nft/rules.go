package nft

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// A ruleset is a transaction that makes the whole table.
type ruleset struct {
	c     *nftables.Conn
	table *nftables.Table
	sets  map[string]*nftables.Set
	err   error
}

func (b *ruleset) chain(name string) *nftables.Chain {
	return b.c.AddChain(&nftables.Chain{Table: b.table, Name: name})
}

func (b *ruleset) base(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return b.c.AddChain(&nftables.Chain{Table: b.table, Name: name, Type: kind, Hooknum: hook, Priority: &prio, Policy: &accept})
}

func (b *ruleset) rule(ch *nftables.Chain, parts ...[]expr.Any) {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	b.c.AddRule(&nftables.Rule{Table: b.table, Chain: ch, Exprs: all})
}

func (b *ruleset) set(s *nftables.Set, elems []nftables.SetElement) {
	if err := b.c.AddSet(s, nil); err != nil && b.err == nil {
		b.err = fmt.Errorf("map %s: %w", s.Name, err)
	}
	eachPart(elems, func(part []nftables.SetElement) {
		if err := b.c.SetAddElements(s, part); err != nil && b.err == nil {
			b.err = fmt.Errorf("map %s: %w", s.Name, err)
		}
	})
	b.sets[s.Name] = s
}

// jumps is a map from what key says to a chain.
func (b *ruleset) jumps(name string, key nftables.SetDatatype, interval bool, elems []nftables.SetElement) {
	b.set(&nftables.Set{Table: b.table, Name: name, IsMap: true, Interval: interval, KeyType: key, DataType: nftables.TypeVerdict,
		KeyByteOrder: byteOrder(key)}, elems)
}

// byteOrder lets nft show the keys of a map as they are meant.
func byteOrder(key nftables.SetDatatype) binaryutil.ByteOrder {
	if key == nftables.TypeIFName {
		return binaryutil.NativeEndian
	}
	return binaryutil.BigEndian
}

func jump(key []byte, chain string) nftables.SetElement {
	return nftables.SetElement{Key: key, VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// interval is a subnet as the two elements that a map of ranges wants.
func interval(p netip.Prefix, chain string) []nftables.SetElement {
	first := jump(p.Masked().Addr().AsSlice(), chain)
	end := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(end)*8; i++ {
		end[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(end)
	return []nftables.SetElement{first, {Key: a.Next().AsSlice(), IntervalEnd: true}}
}

// portSets are where published ports are kept: protocol . port → address . port,
// with the host's address in front where the port is published on one; and the
// open ports of containers that are reached by their own address.
func portSets(table *nftables.Table, f family) []*nftables.Set {
	set := func(name string, isMap bool, key ...nftables.SetDatatype) *nftables.Set {
		s := &nftables.Set{Table: table, Name: name + f.suffix, IsMap: isMap, Concatenation: true, KeyType: nftables.MustConcatSetType(key...)}
		if isMap {
			s.DataType = nftables.MustConcatSetType(f.addr, nftables.TypeInetService)
		}
		return s
	}
	return []*nftables.Set{
		set("ports_at", true, f.addr, nftables.TypeInetProto, nftables.TypeInetService),
		set("ports_any", true, nftables.TypeInetProto, nftables.TypeInetService),
		set("open", false, f.addr, nftables.TypeInetProto, nftables.TypeInetService),
	}
}

func padded(n uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, n), 0, 0) }

// element is a port, and the map that it belongs to.
func element(p Port) (set string, e nftables.SetElement) {
	f := familyOf(p.Target.Addr())
	proto := []byte{p.Proto, 0, 0, 0}
	if p.HostPort == 0 {
		return "open" + f.suffix, nftables.SetElement{Key: concat(p.Target.Addr().AsSlice(), proto, padded(p.Target.Port()))}
	}
	e = nftables.SetElement{Key: concat(proto, padded(p.HostPort)), Val: concat(p.Target.Addr().AsSlice(), padded(p.Target.Port()))}
	if p.HostIP.IsUnspecified() {
		return "ports_any" + f.suffix, e
	}
	e.Key = concat(p.HostIP.AsSlice(), e.Key)
	return "ports_at" + f.suffix, e
}

func concat(parts ...[]byte) (out []byte) {
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

func ifname(n string) []byte {
	b := make([]byte, 16)
	copy(b, n)
	return b
}

// load and compare
func meta(k expr.MetaKey, r uint32) expr.Any { return &expr.Meta{Key: k, Register: r} }
func eq(r uint32, data []byte) expr.Any      { return &expr.Cmp{Op: expr.CmpOpEq, Register: r, Data: data} }
func neq(r uint32, data []byte) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: r, Data: data}
}
func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func inFrom(bridge string) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyIIFNAME, 1), eq(1, ifname(bridge))}
}
func outTo(bridge string) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyOIFNAME, 1), eq(1, ifname(bridge))}
}
func notOutTo(bridge string) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyOIFNAME, 1), neq(1, ifname(bridge))}
}

// toLocal matches packets to addresses of the host (RTN_LOCAL).
func toLocal() []expr.Any {
	return []expr.Any{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, eq(1, binaryutil.NativeEndian.PutUint32(2))}
}

// conntrack matches connections that have a bit.
func conntrack(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		neq(1, make([]byte, 4))}
}

// published matches connections that a published port let in (IPS_DST_NAT).
func published() []expr.Any { return conntrack(expr.CtKeySTATUS, 0x20) }

func (f family) is() []expr.Any {
	return []expr.Any{meta(expr.MetaKeyNFPROTO, 1), eq(1, []byte{f.nfproto})}
}

func (f family) load(offset, register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}
}

// hostPort loads the keys of published ports: of one address, and of all.
func (f family) hostPort() (at, any []expr.Any) {
	at = []expr.Any{f.load(f.daddrOff, r0), meta(expr.MetaKeyL4PROTO, r0+f.size/4), destPort(r0 + f.size/4 + 1)}
	return at, []expr.Any{meta(expr.MetaKeyL4PROTO, r0), destPort(r0 + 1)}
}

func destPort(register uint32) expr.Any {
	return &expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

// addrIn matches an address in a subnet.
func (f family) addrIn(offset uint32, p netip.Prefix) []expr.Any {
	mask := make([]byte, f.size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(f.is(), f.load(offset, 1), &expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.size, Mask: mask, Xor: make([]byte, f.size)},
		eq(1, p.Masked().Addr().AsSlice()))
}

func (b *ruleset) lookup(register uint32, set string) expr.Any {
	return &expr.Lookup{SourceRegister: register, SetName: set, SetID: b.sets[set].ID}
}

// go to the chain that a map has for what is in the register.
func (b *ruleset) dispatch(register uint32, set string) expr.Any {
	return &expr.Lookup{SourceRegister: register, IsDestRegSet: true, SetName: set, SetID: b.sets[set].ID}
}

func (b *ruleset) make(nets []Network, ports map[portKey]Port) {
	b.maps(nets, ports)
	b.raw(nets)
	b.nat(nets)
	b.forward(nets)
}

// maps makes all chains of networks, and then what points to them.
func (b *ruleset) maps(nets []Network, ports map[portKey]Port) {
	elems := map[string][]nftables.SetElement{}
	add := func(set string, e ...nftables.SetElement) { elems[set] = append(elems[set], e...) }
	for _, p := range ports {
		name, e := element(p)
		add(name, e)
	}
	for _, n := range nets {
		name := ifname(n.Bridge)
		for _, chain := range []string{"guard-", "from-", "to-", "hairpin-"} {
			b.chain(chain + n.Bridge)
		}
		add("from", jump(name, "from-"+n.Bridge))
		for _, segment := range n.Segments {
			add("from", jump(ifname(segment), "from-"+n.Bridge))
		}
		add("to", jump(name, "to-"+n.Bridge))
		add("hairpin", jump(name, "hairpin-"+n.Bridge))
		add("bridges", nftables.SetElement{Key: name})
		for _, l := range n.Links {
			add("linked"+familyOf(l.From).suffix, nftables.SetElement{Key: concat(l.From.AsSlice(), l.To.Addr().AsSlice(), []byte{l.Proto, 0, 0, 0}, padded(l.To.Port()))})
		}
		for _, s := range n.Subnets {
			f := familyOf(s.Prefix.Addr())
			if s.Mode == NAT || n.Internal {
				add("guard"+f.suffix, interval(s.Prefix, "guard-"+n.Bridge)...)
			}
			if s.Mode != Routed && !s.NoMasquerade && !n.Internal {
				b.chain("out" + f.suffix + "-" + n.Bridge)
				add("out"+f.suffix, interval(s.Prefix, "out"+f.suffix+"-"+n.Bridge)...)
			}
			if s.NameServer.IsValid() {
				at := s.NameServer
				add("names"+f.suffix, nftables.SetElement{Key: concat(name, at.Addr().AsSlice()), Val: concat(at.Addr().AsSlice(), padded(at.Port()))})
			}
		}
	}
	for _, m := range []string{"from", "to", "hairpin"} {
		b.jumps(m, nftables.TypeIFName, false, elems[m])
	}
	b.set(&nftables.Set{Table: b.table, Name: "bridges", KeyType: nftables.TypeIFName, KeyByteOrder: byteOrder(nftables.TypeIFName)}, elems["bridges"])
	for _, f := range families {
		b.set(&nftables.Set{Table: b.table, Name: "linked" + f.suffix, Concatenation: true,
			KeyType: nftables.MustConcatSetType(f.addr, f.addr, nftables.TypeInetProto, nftables.TypeInetService)}, elems["linked"+f.suffix])
		b.jumps("guard"+f.suffix, f.addr, true, elems["guard"+f.suffix])
		b.jumps("out"+f.suffix, f.addr, true, elems["out"+f.suffix])
		b.set(&nftables.Set{Table: b.table, Name: "names" + f.suffix, IsMap: true, Concatenation: true,
			KeyType: nftables.MustConcatSetType(nftables.TypeIFName, f.addr), DataType: nftables.MustConcatSetType(f.addr, nftables.TypeInetService)}, elems["names"+f.suffix])
		for _, s := range portSets(b.table, f) {
			b.set(s, elems[s.Name])
		}
	}
}

// raw drops what nobody may send, before anything else sees it.
func (b *ruleset) raw(nets []Network) {
	raw := b.base("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)
	b.rule(raw, inFrom("lo"), verdict(expr.VerdictReturn))
	// Loopback addresses are routed to containers, for ports published there:
	// nobody else may use that way (CVE-2020-8558), nor pretend to come from it.
	lo := netip.MustParsePrefix("127.0.0.0/8")
	b.rule(raw, families[0].addrIn(families[0].daddrOff, lo), verdict(expr.VerdictDrop))
	b.rule(raw, families[0].addrIn(families[0].saddrOff, lo), verdict(expr.VerdictDrop))
	b.segments(raw, nets)
	// A container's address is reached through its bridge or a published port.
	for _, f := range families {
		b.rule(raw, f.is(), []expr.Any{f.load(f.daddrOff, 1), b.dispatch(1, "guard"+f.suffix)})
	}
	for _, n := range nets {
		guard := &nftables.Chain{Table: b.table, Name: "guard-" + n.Bridge}
		for _, name := range append([]string{n.Bridge}, n.Trusted...) {
			b.rule(guard, inFrom(name), verdict(expr.VerdictReturn))
		}
		b.rule(guard, toLocal(), verdict(expr.VerdictReturn))
		b.rule(guard, verdict(expr.VerdictDrop))
	}
}

// neighbourPorts is the first port from which containers on segments reach their
// neighbours' published ports: above those that the host takes for itself (60999).
var neighbourPorts = binaryutil.BigEndian.PutUint16(61000)

// segments judges what is seen on a segment, where bridges pass their packets to
// us: it is seen again on the first bridge, and translated there. What goes to a
// published port is redirected at once, since that is routed; on the first bridge
// it would stay there, and a bridge sends nothing back by the cable that it came
// from. So are the answers, which neighbourPorts tells from answers to the host:
// translated here, those would come to the first bridge with the host's own address.
// The name server is on the first bridge only.
func (b *ruleset) segments(raw *nftables.Chain, nets []Network) {
	onward := append([]expr.Any{&expr.Notrack{}}, verdict(expr.VerdictAccept)...)
	for _, n := range nets {
		if len(n.Segments) == 0 {
			continue
		}
		ch := b.chain("segments-" + n.Bridge)
		for _, name := range n.Segments {
			b.rule(raw, inFrom(name), []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: ch.Name}})
		}
		for _, s := range n.Subnets {
			f := familyOf(s.Prefix.Addr())
			b.rule(ch, f.addrIn(f.daddrOff, s.Prefix), []expr.Any{destPort(1), eq(1, []byte{0, 53})}, onward)
		}
		for _, f := range families {
			at, port := f.hostPort()
			if n.Routing {
				b.rule(ch, f.is(), toLocal(), at, []expr.Any{b.find("ports_at" + f.suffix)}, verdict(expr.VerdictReturn))
				b.rule(ch, f.is(), toLocal(), port, []expr.Any{b.find("ports_any" + f.suffix)}, verdict(expr.VerdictReturn))
				b.rule(ch, f.is(), toLocal(), []expr.Any{destPort(1), &expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: neighbourPorts}}, verdict(expr.VerdictReturn))
			}
		}
		b.rule(ch, onward)
	}
}

func (b *ruleset) nat(nets []Network) {
	pre := b.base("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100)
	out := b.base("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, -100)
	for _, f := range families {
		for _, proto := range []byte{17, 6} {
			b.rule(pre, f.is(), []expr.Any{meta(expr.MetaKeyL4PROTO, 1), eq(1, []byte{proto}), destPort(1), eq(1, []byte{0, 53}),
				meta(expr.MetaKeyIIFNAME, r0), f.load(f.daddrOff, r0+4)}, b.dnat(f, "names"+f.suffix))
		}
	}
	// The kernel sends nothing from ::1 out of an interface: who holds the port answers.
	b.rule(out, families[1].addrIn(families[1].daddrOff, netip.MustParsePrefix("::1/128")), verdict(expr.VerdictReturn))
	for _, ch := range []*nftables.Chain{pre, out} {
		for _, f := range families {
			at, port := f.hostPort()
			b.rule(ch, f.is(), toLocal(), at, b.dnat(f, "ports_at"+f.suffix))
			b.rule(ch, f.is(), toLocal(), port, b.dnat(f, "ports_any"+f.suffix))
		}
	}

	post := b.base("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100)
	masquerade := []expr.Any{&expr.Masq{}}
	b.rule(post, []expr.Any{meta(expr.MetaKeyOIFNAME, 1), b.dispatch(1, "hairpin")})
	for _, f := range families {
		b.rule(post, f.is(), []expr.Any{f.load(f.saddrOff, 1), b.dispatch(1, "out"+f.suffix)})
	}
	for _, n := range nets {
		hairpin := &nftables.Chain{Table: b.table, Name: "hairpin-" + n.Bridge}
		b.rule(hairpin, families[0].addrIn(families[0].saddrOff, netip.MustParsePrefix("127.0.0.0/8")), masquerade)
		for _, s := range n.Subnets {
			f := familyOf(s.Prefix.Addr())
			// A container that uses a port published by its neighbour.
			neighbour := masquerade
			if n.Routing && len(n.Segments) > 0 && s.Gateway.IsValid() {
				b.rule(hairpin, f.addrIn(f.saddrOff, netip.PrefixFrom(s.Gateway, s.Gateway.BitLen())), published(), masquerade)
				neighbour = []expr.Any{&expr.Immediate{Register: 1, Data: s.Gateway.AsSlice()},
					&expr.Immediate{Register: 2, Data: neighbourPorts}, &expr.Immediate{Register: 3, Data: []byte{0xff, 0xff}},
					&expr.NAT{Type: expr.NATTypeSourceNAT, Family: f.protoConst, RegAddrMin: 1, RegProtoMin: 2, RegProtoMax: 3, Specified: true}}
			}
			b.rule(hairpin, f.addrIn(f.saddrOff, s.Prefix), published(), neighbour)
			if s.Mode == Routed || s.NoMasquerade || n.Internal {
				continue
			}
			leave := &nftables.Chain{Table: b.table, Name: "out" + f.suffix + "-" + n.Bridge}
			b.rule(leave, outTo(n.Bridge), verdict(expr.VerdictReturn))
			if s.SourceIP.IsValid() {
				b.rule(leave, []expr.Any{&expr.Immediate{Register: 1, Data: s.SourceIP.AsSlice()},
					&expr.NAT{Type: expr.NATTypeSourceNAT, Family: f.protoConst, RegAddrMin: 1}})
			} else {
				b.rule(leave, masquerade)
			}
		}
	}
}

// find looks the key in r0 up in a map, and leaves what is there in r0.
func (b *ruleset) find(set string) expr.Any {
	return &expr.Lookup{SourceRegister: r0, DestRegister: r0, IsDestRegSet: true, SetName: set, SetID: b.sets[set].ID}
}

// dnat sends a packet to what a map has for the key in the registers.
func (b *ruleset) dnat(f family, set string) []expr.Any {
	return []expr.Any{
		b.find(set),
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: f.protoConst, RegAddrMin: r0, RegProtoMin: r0 + f.size/4, Specified: true},
	}
}

func (b *ruleset) forward(nets []Network) {
	accept, drop := verdict(expr.VerdictAccept), verdict(expr.VerdictDrop)
	fwd := b.base("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, 0)
	b.rule(fwd, conntrack(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), accept)
	b.rule(fwd, []expr.Any{meta(expr.MetaKeyIIFNAME, 1), b.dispatch(1, "from")})
	b.rule(fwd, []expr.Any{meta(expr.MetaKeyOIFNAME, 1), b.dispatch(1, "to")})
	for _, n := range nets {
		from, to := &nftables.Chain{Table: b.table, Name: "from-" + n.Bridge}, &nftables.Chain{Table: b.table, Name: "to-" + n.Bridge}
		if n.Internal {
			b.rule(from, notOutTo(n.Bridge), drop)
		}
		b.rule(to, inFrom(n.Bridge), published(), accept)
		if len(n.Links) > 0 {
			for _, f := range families {
				at := r0 + f.size/2 // behind two addresses
				b.rule(to, inFrom(n.Bridge), f.is(), []expr.Any{f.load(f.saddrOff, r0), f.load(f.daddrOff, r0+f.size/4), meta(expr.MetaKeyL4PROTO, at), destPort(at + 1), b.lookup(r0, "linked"+f.suffix)}, accept)
			}
			b.rule(to, inFrom(n.Bridge), neighbours(), accept)
		}
		if n.NoICC { // seen here where bridges pass their packets to us (br_netfilter); ports are isolated besides
			b.rule(to, inFrom(n.Bridge), drop)
		}
		b.rule(to, inFrom(n.Bridge), accept)
		if !n.Internal {
			b.rule(to, published(), accept)
			for _, s := range n.Subnets {
				b.reach(to, s)
			}
			for _, name := range n.Trusted {
				b.rule(to, inFrom(name), accept)
			}
		}
		b.rule(to, drop)
	}
}

// neighbours matches the question for an IPv6 neighbour, and its answer.
func neighbours() []expr.Any {
	return append(families[1].is(), meta(expr.MetaKeyL4PROTO, 1), eq(1, []byte{families[1].icmp}),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpGte, Register: 1, Data: []byte{135}}, &expr.Cmp{Op: expr.CmpOpLte, Register: 1, Data: []byte{136}})
}

// reach lets in what may reach a subnet's own addresses.
func (b *ruleset) reach(to *nftables.Chain, s Subnet) {
	f := familyOf(s.Prefix.Addr())
	switch s.Mode {
	case Unprotected: // other networks still do not
		b.rule(to, f.is(), []expr.Any{meta(expr.MetaKeyIIFNAME, 1), b.lookup(1, "bridges")}, verdict(expr.VerdictDrop))
		b.rule(to, f.is(), verdict(expr.VerdictAccept))
	case Routed:
		b.rule(to, f.is(), []expr.Any{meta(expr.MetaKeyL4PROTO, 1), eq(1, []byte{f.icmp})}, verdict(expr.VerdictAccept))
		b.rule(to, f.is(), []expr.Any{f.load(f.daddrOff, r0), meta(expr.MetaKeyL4PROTO, r0+f.size/4), destPort(r0 + f.size/4 + 1), b.lookup(r0, "open"+f.suffix)}, verdict(expr.VerdictAccept))
	}
}
