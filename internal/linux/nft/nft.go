// Package nft keeps one table of nftables: masquerading, published ports, and
// what may be forwarded.
//
// # Model
//
// Rules are made from the list of networks, and made anew, in one transaction,
// when that list changes. Published ports are elements of two maps (one for
// ports on all addresses, one for ports on a certain address), so that their
// number changes neither the rules nor the time that a packet takes.
//
// # Guarantees
//
// Every change is one transaction: there is no moment in which half of it holds.
// Only our own table is touched.
//
// # Concurrency
//
// A Table may be used from many goroutines.
//
// # Not here
//
// Which ports and networks there are (package network). Other tables of the
// host can still drop what this one lets through.
package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
)

// A Network is what the rules need to know of one.
type Network struct {
	Bridge   string
	Subnets  []netip.Prefix
	Internal bool // no way in or out
	NoICC    bool // its containers do not reach each other
	NoNAT    bool // addresses are routed as they are
}

// A Port is a published port.
type Port struct {
	Proto    uint8      // IPPROTO_*
	HostIP   netip.Addr // unspecified = every address
	HostPort uint16
	Target   netip.AddrPort
}

// Table is our table.
type Table struct {
	name string

	mu    sync.Mutex
	nets  []Network        // guarded by mu
	ports map[portKey]Port // guarded by mu
}

type portKey struct {
	proto uint8
	ip    netip.Addr
	port  uint16
	v6    bool
}

func keyOf(p Port) portKey { return portKey{p.Proto, p.HostIP, p.HostPort, p.Target.Addr().Is6()} }

// New names the table; nothing is made yet.
func New(name string) *Table { return &Table{name: name, ports: map[portKey]Port{}} }

// r0 is the first register of 32 bits (NFT_REG32_00).
const r0 = 8

type family struct {
	v6         bool
	nfproto    byte
	suffix     string
	addr       nftables.SetDatatype
	size       uint32 // of an address
	daddrOff   uint32
	saddrOff   uint32
	protoConst uint32
}

var families = []family{
	{false, syscall.AF_INET, "4", nftables.TypeIPAddr, 4, 16, 12, syscall.AF_INET},
	{true, syscall.AF_INET6, "6", nftables.TypeIP6Addr, 16, 24, 8, syscall.AF_INET6},
}

// Sync makes the table as the networks and all published ports want it.
func (t *Table) Sync(nets []Network) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nets = nets
	return t.syncLocked()
}

func (t *Table) syncLocked() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: t.name}
	// Deleting what is not there is an error, adding what is there is none.
	c.AddTable(table)
	c.DelTable(table)
	c.AddTable(table)
	sets := map[string]*nftables.Set{}
	for _, f := range families {
		for _, any := range []bool{true, false} {
			s := portSet(table, f, any)
			var elems []nftables.SetElement
			for _, p := range t.ports {
				if p.Target.Addr().Is6() == f.v6 && p.HostIP.IsUnspecified() == any {
					elems = append(elems, element(p))
				}
			}
			if err := c.AddSet(s, elems); err != nil {
				return fmt.Errorf("nftables: map %s: %w", s.Name, err)
			}
			sets[s.Name] = s
		}
	}
	t.rules(c, table, sets)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: table %s: %w", t.name, err)
	}
	return nil
}

func setName(f family, any bool) string {
	if any {
		return "ports_any" + f.suffix
	}
	return "ports_at" + f.suffix
}

// portSet is protocol . port → address . port, with the host's address in front
// where the port is published on one.
func portSet(table *nftables.Table, f family, any bool) *nftables.Set {
	key := []nftables.SetDatatype{nftables.TypeInetProto, nftables.TypeInetService}
	if !any {
		key = append([]nftables.SetDatatype{f.addr}, key...)
	}
	return &nftables.Set{Table: table, Name: setName(f, any), IsMap: true, Concatenation: true,
		KeyType: nftables.MustConcatSetType(key...), DataType: nftables.MustConcatSetType(f.addr, nftables.TypeInetService)}
}

func padded(n uint16) []byte { return append(binary.BigEndian.AppendUint16(nil, n), 0, 0) }

func element(p Port) nftables.SetElement {
	var key []byte
	if !p.HostIP.IsUnspecified() {
		key = append(key, p.HostIP.AsSlice()...)
	}
	key = append(key, p.Proto, 0, 0, 0)
	key = append(key, padded(p.HostPort)...)
	return nftables.SetElement{Key: key, Val: append(p.Target.Addr().AsSlice(), padded(p.Target.Port())...)}
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
func verdict(k expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: k} }

func inFrom(bridge string) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyIIFNAME, 1), eq(1, ifname(bridge))}
}
func outTo(bridge string) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyOIFNAME, 1), eq(1, ifname(bridge))}
}
func notInFrom(bridge string) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyIIFNAME, 1), neq(1, ifname(bridge))}
}
func notOutTo(bridge string) []expr.Any {
	return []expr.Any{meta(expr.MetaKeyOIFNAME, 1), neq(1, ifname(bridge))}
}

func (f family) is() []expr.Any {
	return []expr.Any{meta(expr.MetaKeyNFPROTO, 1), eq(1, []byte{f.nfproto})}
}

// saddrIn matches a source in a subnet.
func (f family) addrIn(offset uint32, p netip.Prefix) []expr.Any {
	mask := make([]byte, f.size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(f.is(), &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.size, Mask: mask, Xor: make([]byte, f.size)}, eq(1, p.Masked().Addr().AsSlice()))
}

func familyOf(p netip.Prefix) family {
	if p.Addr().Is6() {
		return families[1]
	}
	return families[0]
}

func join(parts ...[]expr.Any) []expr.Any {
	var out []expr.Any
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// ctStatusDNAT matches connections that a published port let in.
func ctStatusDNAT() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(0x20), Xor: make([]byte, 4)},
		neq(1, make([]byte, 4))}
}

func (t *Table) rules(c *nftables.Conn, table *nftables.Table, sets map[string]*nftables.Set) {
	accept := nftables.ChainPolicyAccept
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, prio nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: &prio, Policy: &accept})
	}
	add := func(ch *nftables.Chain, exprs ...[]expr.Any) {
		c.AddRule(&nftables.Rule{Table: table, Chain: ch, Exprs: join(exprs...)})
	}
	drop, ok := []expr.Any{verdict(expr.VerdictDrop)}, []expr.Any{verdict(expr.VerdictAccept)}

	// Loopback addresses are routed to containers, for ports published there:
	// nobody else may use that way (CVE-2020-8558).
	raw := chain("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, -300)
	lo := families[0].addrIn(families[0].daddrOff, netip.MustParsePrefix("127.0.0.0/8"))
	add(raw, notInFrom("lo"), lo, drop)
	// A container's address is reached through its bridge or a published port.
	for _, n := range t.nets {
		for _, s := range n.Subnets {
			f := familyOf(s)
			add(raw, notInFrom(n.Bridge), notInFrom("lo"), f.addrIn(f.daddrOff, s),
				[]expr.Any{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, neq(1, binaryutil.NativeEndian.PutUint32(2))}, drop)
		}
	}

	pre := chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, -100)
	out := chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, -100)
	for _, ch := range []*nftables.Chain{pre, out} {
		for _, f := range families {
			for _, any := range []bool{false, true} {
				add(ch, f.dnat(sets[setName(f, any)], any))
			}
		}
	}

	post := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, 100)
	masq := []expr.Any{&expr.Masq{}}
	for _, n := range t.nets {
		add(post, outTo(n.Bridge), families[0].addrIn(families[0].saddrOff, netip.MustParsePrefix("127.0.0.0/8")), masq)
		for _, s := range n.Subnets {
			f := familyOf(s)
			if !n.NoNAT && !n.Internal {
				add(post, f.addrIn(f.saddrOff, s), notOutTo(n.Bridge), masq)
			}
			// A container that uses a port published by its neighbour.
			add(post, outTo(n.Bridge), f.addrIn(f.saddrOff, s), ctStatusDNAT(), masq)
		}
	}

	fwd := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, 0)
	established := []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED), Xor: make([]byte, 4)},
		neq(1, make([]byte, 4))}
	add(fwd, established, ok)
	for _, n := range t.nets {
		if n.Internal {
			add(fwd, inFrom(n.Bridge), notOutTo(n.Bridge), drop)
			add(fwd, outTo(n.Bridge), notInFrom(n.Bridge), drop)
		}
		if n.NoICC {
			add(fwd, inFrom(n.Bridge), outTo(n.Bridge), ctStatusDNAT(), ok)
			add(fwd, inFrom(n.Bridge), outTo(n.Bridge), drop)
		}
	}
	for _, n := range t.nets {
		add(fwd, outTo(n.Bridge), inFrom(n.Bridge), ok)
		add(fwd, outTo(n.Bridge), ctStatusDNAT(), ok)
		if !n.NoNAT {
			add(fwd, outTo(n.Bridge), drop)
		}
	}
}

// dnat sends what comes for a published port to its container.
func (f family) dnat(s *nftables.Set, any bool) []expr.Any {
	exprs := append(f.is(),
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, eq(1, binaryutil.NativeEndian.PutUint32(2))) // RTN_LOCAL
	key := uint32(r0)
	next := key
	if !any {
		exprs = append(exprs, &expr.Payload{DestRegister: next, Base: expr.PayloadBaseNetworkHeader, Offset: f.daddrOff, Len: f.size})
		next += f.size / 4
	}
	exprs = append(exprs, meta(expr.MetaKeyL4PROTO, next),
		&expr.Payload{DestRegister: next + 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: key, DestRegister: r0, IsDestRegSet: true, SetName: s.Name, SetID: s.ID},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: f.protoConst, RegAddrMin: r0, RegProtoMin: r0 + f.size/4, Specified: true})
	return exprs
}

// AddPorts publishes ports.
func (t *Table) AddPorts(ports []Port) error { return t.change(ports, true) }

// RemovePorts takes ports back; those not there are no error.
func (t *Table) RemovePorts(ports []Port) error { return t.change(ports, false) }

func (t *Table) change(ports []Port, add bool) error {
	if len(ports) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: t.name}
	for _, p := range ports {
		f := families[0]
		if p.Target.Addr().Is6() {
			f = families[1]
		}
		_, have := t.ports[keyOf(p)]
		s := portSet(table, f, p.HostIP.IsUnspecified())
		switch {
		case add:
			t.ports[keyOf(p)] = p
			err = c.SetAddElements(s, []nftables.SetElement{element(p)})
		case have:
			delete(t.ports, keyOf(p))
			err = c.SetDeleteElements(s, []nftables.SetElement{element(p)})
		}
		if err != nil {
			return err
		}
	}
	err = c.Flush()
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.EEXIST) {
		return t.syncLocked() // somebody flushed our table
	}
	if err != nil {
		return fmt.Errorf("nftables: table %s: %w", t.name, err)
	}
	return nil
}

// Remove deletes the table.
func (t *Table) Remove() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: t.name}
	c.AddTable(table)
	c.DelTable(table)
	return c.Flush()
}
