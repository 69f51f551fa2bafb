// Package nft keeps one table of nftables: masquerading, published ports, and
// what may be forwarded.
//
// # Model
//
// Rules are made from the list of networks, and made anew, in one transaction,
// when that list changes. A packet finds its network by maps (interface name or
// address → chain), and published ports are elements of maps too, so that the
// number of neither changes the time that a packet takes.
//
// # Guarantees
//
// Every change is one transaction: there is no moment in which half of it holds.
// Only our own table is touched. Where the kernel can (6.9), the table belongs to
// our socket: nobody else's flush empties it, and it stays when we end. Elsewhere
// Watch makes it anew when somebody has.
//
// # Concurrency
//
// A Table may be used from many goroutines.
//
// # Not here
//
// Which ports and networks there are (package network). Other tables of the
// host can still drop what this one lets through: Droppers names them.
package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/mdlayher/netlink"
)

// A Mode says how the world reaches the containers of a subnet.
type Mode int

const (
	NAT         Mode = iota // by published ports of the host only
	Unprotected             // also by their own addresses, on every port
	Routed                  // by their own addresses, on published ports; no NAT
)

// A Subnet is one family of a network.
type Subnet struct {
	Prefix       netip.Prefix
	Gateway      netip.Addr // the host's address there; invalid = it has none
	Mode         Mode
	NoMasquerade bool
	SourceIP     netip.Addr     // what goes out comes from here; invalid = masquerade
	NameServer   netip.AddrPort // what is asked of port 53 there goes here; invalid = nobody
}

// A Network is what the rules need to know of one.
type Network struct {
	Bridge   string
	Segments []string // further bridges that are plugged into it
	Routing  bool     // the host takes packets to itself on those, too
	Subnets  []Subnet
	Internal bool     // no way in or out
	NoICC    bool     // its containers do not reach each other
	Links    []Link   // but so
	Trusted  []string // interfaces from which containers' own addresses may be reached
}

// A Link lets one container use a port of another.
type Link struct {
	From  netip.Addr
	To    netip.AddrPort
	Proto uint8 // IPPROTO_*
}

// A Port is a published port. Without HostPort it is opened on the target's own
// address.
type Port struct {
	Proto    uint8      // IPPROTO_*
	HostIP   netip.Addr // unspecified = every address
	HostPort uint16
	Target   netip.AddrPort
}

// Prefix begins the names of the tables of all engines.
const Prefix = "onggi"

// Table is our table.
type Table struct {
	name string

	mu    sync.Mutex
	conn  *nftables.Conn   // guarded by mu; it owns the table
	pid   uint32           // of conn's socket; guarded by mu
	plain bool             // the kernel has no owners of tables that stay; guarded by mu
	nets  []Network        // guarded by mu
	ports map[portKey]Port // guarded by mu
	watch *watch           // guarded by mu
}

type portKey struct {
	proto  uint8
	ip     netip.Addr
	port   uint16
	target netip.AddrPort // of an open port only
	v6     bool
}

func keyOf(p Port) portKey {
	k := portKey{proto: p.Proto, ip: p.HostIP, port: p.HostPort, v6: p.Target.Addr().Is6()}
	if p.HostPort == 0 {
		k.ip, k.target = netip.Addr{}, p.Target
	}
	return k
}

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
	icmp       byte
}

var families = []family{
	{false, syscall.AF_INET, "4", nftables.TypeIPAddr, 4, 16, 12, syscall.AF_INET, syscall.IPPROTO_ICMP},
	{true, syscall.AF_INET6, "6", nftables.TypeIP6Addr, 16, 24, 8, syscall.AF_INET6, syscall.IPPROTO_ICMPV6},
}

func familyOf(a netip.Addr) family {
	if a.Is6() {
		return families[1]
	}
	return families[0]
}

// openLocked gives the connection, and makes one.
func (t *Table) openLocked() (*nftables.Conn, error) {
	if t.conn != nil {
		return t.conn, nil
	}
	var socket *netlink.Conn
	c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(nl *netlink.Conn) error {
		socket = nl
		// One transaction may hold ten thousand ports, and is answered for each message.
		if err := errors.Join(nl.SetWriteBuffer(16<<20), nl.SetReadBuffer(4<<20)); err != nil {
			return err
		}
		raw, err := nl.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) {
			if sa, err := syscall.Getsockname(int(fd)); err == nil {
				if nl, ok := sa.(*syscall.SockaddrNetlink); ok {
					t.pid = nl.Pid
				}
			}
		})
	}))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	if t.watch != nil {
		err = t.watch.ignore(t.pid)
	}
	if err == nil {
		err = t.own(socket)
	}
	if err != nil {
		c.CloseLasting()
		return nil, fmt.Errorf("nftables: table %s: %w", t.name, err)
	}
	t.conn = c
	return c, nil
}

// own makes the table ours, as new or as our predecessor left it.
func (t *Table) own(socket *netlink.Conn) error {
	for again := range 2 {
		if t.plain {
			return nil
		}
		err := claim(socket, t.name)
		if !errors.Is(err, syscall.EOPNOTSUPP) {
			return err
		}
		// One without an owner cannot be taken over; an old kernel has no owners.
		if again == 1 {
			t.plain = true
		} else if err := t.delete(); err != nil {
			return err
		}
	}
	return nil
}

// flushLocked sends the transaction. After an error answers to it may be left on
// the socket: it is not used again.
func (t *Table) flushLocked() error {
	err := t.conn.Flush()
	if err != nil {
		t.conn.CloseLasting()
		t.conn = nil
	}
	return err
}

// Sync makes the table as the networks and all published ports want it.
func (t *Table) Sync(nets []Network) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.nets = nets
	return t.syncLocked()
}

func (t *Table) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: t.name}
}

func (t *Table) syncLocked() error {
	c, err := t.openLocked()
	if err != nil {
		return err
	}
	table := t.table()
	if err := t.clear(c, table); err != nil {
		return fmt.Errorf("nftables: table %s: %w", t.name, err)
	}
	b := &ruleset{c: c, table: table, sets: map[string]*nftables.Set{}}
	b.make(t.nets, t.ports)
	if b.err != nil {
		t.conn.CloseLasting()
		t.conn = nil
		return fmt.Errorf("nftables: table %s: %w", t.name, b.err)
	}
	if err := t.flushLocked(); err != nil {
		return fmt.Errorf("nftables: table %s: %w", t.name, err)
	}
	return nil
}

// clear begins a transaction with the removal of all that is there.
func (t *Table) clear(c *nftables.Conn, table *nftables.Table) error {
	if t.plain {
		// Deleting what is not there is an error, adding what is there is none.
		c.AddTable(table)
		c.DelTable(table)
		c.AddTable(table)
		return nil
	}
	// An owned table is not made again without letting it go first: it is emptied,
	// rules first, then the maps that they use, then the chains that maps lead to.
	chains, err := c.ListChainsOfTableFamily(table.Family)
	if err != nil {
		return err
	}
	sets, err := c.GetSets(table)
	if err != nil {
		return err
	}
	c.FlushTable(table)
	for _, s := range sets {
		s.Table = table
		c.DelSet(s)
	}
	for _, ch := range chains {
		if ch.Table.Name == t.name {
			ch.Table = table
			c.DelChain(ch)
		}
	}
	return nil
}

// AddPorts publishes ports.
func (t *Table) AddPorts(ports []Port) error { return t.change(ports, true) }

// RemovePorts takes ports back; those not there are no error.
func (t *Table) RemovePorts(ports []Port) error { return t.change(ports, false) }

// Expect notes ports for the next Sync.
func (t *Table) Expect(ports []Port) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range ports {
		t.ports[keyOf(p)] = p
	}
}

func (t *Table) change(ports []Port, add bool) error {
	if len(ports) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.openLocked()
	if err != nil {
		return err
	}
	elems := map[string][]nftables.SetElement{}
	for _, p := range ports {
		old, have := t.ports[keyOf(p)]
		name, e := element(p)
		switch {
		case add && have && old == p:
			continue
		case add:
			t.ports[keyOf(p)] = p
		case !have:
			continue
		default:
			delete(t.ports, keyOf(p))
		}
		elems[name] = append(elems[name], e)
	}
	for _, f := range families {
		for _, s := range portSets(t.table(), f) {
			eachPart(elems[s.Name], func(part []nftables.SetElement) {
				if err != nil {
					return
				}
				if add {
					err = c.SetAddElements(s, part)
				} else {
					err = c.SetDeleteElements(s, part)
				}
			})
		}
	}
	if err == nil {
		err = t.flushLocked()
	}
	if err != nil {
		return t.syncLocked() // somebody changed our table: it is made anew, with these
	}
	return nil
}

// eachPart cuts a list: an attribute of netlink holds no more than 64 KiB.
func eachPart(list []nftables.SetElement, f func([]nftables.SetElement)) {
	const most = 256
	for len(list) > 0 {
		n := min(most, len(list))
		f(list[:n])
		list = list[n:]
	}
}

// Remove deletes the table.
func (t *Table) Remove() error {
	t.Close()
	if err := t.delete(); err != nil {
		return fmt.Errorf("nftables: remove the table %s: %w", t.name, err)
	}
	return nil
}

// delete deletes a table that nobody owns; none is no error.
func (t *Table) delete() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.DelTable(t.table())
	if err := c.Flush(); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	return nil
}

// Close lets the table go, and leaves it as it is.
func (t *Table) Close() {
	t.mu.Lock()
	w := t.watch
	t.watch = nil
	if t.conn != nil {
		t.conn.CloseLasting()
		t.conn = nil
	}
	t.mu.Unlock()
	w.end()
}

// An Other is the table of another engine. It stays when that one ends, since
// its containers do.
type Other struct {
	Name    string
	Bridges []string // that it has rules about
	Owned   bool     // its engine runs; never said by kernels without owners of tables
}

// Others lists them.
func (t *Table) Others() (out []Other, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list the chains of nftables: %w", err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("list the tables of nftables: %w", err)
	}
	for _, x := range tables {
		if x.Name == t.name || x.Name != Prefix && !strings.HasPrefix(x.Name, Prefix+"-") {
			continue
		}
		o := Other{Name: x.Name, Owned: binary.BigEndian.Uint32(binaryutil.NativeEndian.PutUint32(x.Flags))&flagOwner != 0}
		for _, ch := range chains {
			if bridge, ok := strings.CutPrefix(ch.Name, "guard-"); ok && ch.Table.Name == x.Name {
				o.Bridges = append(o.Bridges, bridge)
			}
		}
		out = append(out, o)
	}
	return out, nil
}

// Droppers names the chains of other tables that drop what no rule of theirs
// accepts, by hook: "forward" and "input".
func (t *Table) Droppers() (forward, input []string, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, nil, err
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, nil, fmt.Errorf("list the chains of nftables: %w", err)
	}
	families := map[nftables.TableFamily]string{nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6"}
	for _, ch := range chains {
		fam, ok := families[ch.Table.Family]
		if !ok || ch.Hooknum == nil || ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop || ch.Table.Name == t.name {
			continue
		}
		switch name := fam + " " + ch.Table.Name + " " + ch.Name; *ch.Hooknum {
		case *nftables.ChainHookForward:
			forward = append(forward, name)
		case *nftables.ChainHookInput:
			input = append(input, name)
		}
	}
	return forward, input, nil
}
