// Package netlink makes bridges, and puts containers on them.
//
// # Model
//
// A bridge is a link of the host. An endpoint is a veth pair: one end on the
// bridge, the other made directly in the container's network namespace; or one
// link there that shares an interface of the host (macvlan, ipvlan).
//
// # Guarantees
//
// A pair is made in place by one message, because moving a link into a namespace
// costs 10 ms or more. Nothing is deleted on the way of a stop: a namespace takes
// its links with it.
//
// # Concurrency
//
// Every function may be called from many goroutines.
//
// # Not here
//
// Packet filters (nft), addresses' bookkeeping (network).
package netlink

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"

	"github.com/onggi/onggi/internal/linux"
)

// A Bridge is what a network's device should be.
type Bridge struct {
	Name     string
	Gateways []netip.Prefix // addresses of the host on it
	MTU      int
}

// EnsureBridge makes the bridge, or brings it to the state asked for.
func EnsureBridge(b Bridge) (index int, err error) {
	link, err := netlink.LinkByName(b.Name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU = b.Name, b.MTU
		// Without an address of its own a bridge takes the lowest of its ports', and
		// whoever has cached the old one loses packets when a port comes or goes.
		attrs.HardwareAddr = RandomMAC()
		if err = netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err == nil || errors.Is(err, os.ErrExist) {
			link, err = netlink.LinkByName(b.Name)
		}
		if err == nil {
			err = askForMembers(link)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	if link.Type() != "bridge" {
		return 0, fmt.Errorf("the link %s is there already, and is a %s", b.Name, link.Type())
	}
	for _, g := range b.Gateways {
		addr := &netlink.Addr{IPNet: ipNet(g)}
		if g.Addr().Is6() {
			addr.Flags = syscall.IFA_F_NODAD
		}
		if err := netlink.AddrAdd(link, addr); err != nil && !errors.Is(err, os.ErrExist) {
			return 0, fmt.Errorf("bridge %s: address %s: %w", b.Name, g, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("bridge %s: %w", b.Name, err)
	}
	return link.Attrs().Index, nil
}

// askForMembers makes the bridge ask its ports which multicast groups they are in:
// only then, and ten seconds later, it sends what is meant for a group to its
// members alone. What containers tell of their IPv6 addresses as they start would
// go to all others, and takes more time than the starts where there are a thousand.
func askForMembers(bridge netlink.Link) error {
	q, _ := linkRequest(syscall.RTM_NEWLINK, syscall.NLM_F_ACK, bridge.Attrs().Index)
	info := nl.NewRtAttr(syscall.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("bridge"))
	info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_BR_MCAST_QUERIER, []byte{1})
	q.AddData(info)
	s, err := openRoute(nil)
	if err != nil {
		return err
	}
	defer s.close()
	_, err = s.do(request{"queries for members", q})
	return err
}

// BridgeAddrs are the host's addresses on a bridge.
func BridgeAddrs(name string) (out []netip.Prefix, err error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, err
	}
	if link.Type() != "bridge" {
		return nil, fmt.Errorf("the link %s is a %s", name, link.Type())
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			ones, _ := a.Mask.Size()
			out = append(out, netip.PrefixFrom(ip.Unmap(), ones))
		}
	}
	return out, err
}

// BridgePorts counts what is plugged into each bridge of the host, by its name.
func BridgePorts() (map[string]int, error) {
	all, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	ports := map[int]int{} // of a link with that index
	for _, l := range all {
		ports[l.Attrs().MasterIndex]++
	}
	out := map[string]int{}
	for _, l := range all {
		if l.Type() == "bridge" {
			out[l.Attrs().Name] = ports[l.Attrs().Index]
		}
	}
	return out, nil
}

// MaxPorts is how many ports a bridge of Linux has (BR_MAX_PORTS less one).
const MaxPorts = 1023

// dummy is an address that nobody has (RFC 7600): an interface without any takes
// no packets from addresses behind others where rp_filter is 2.
var dummy = netip.MustParsePrefix("192.0.0.8/32")

// ExtendBridge makes a further bridge and plugs it into the first, so that both
// are one network. link begins the names of the cable's ends.
func ExtendBridge(first int, name, link string, mtu int) (index int, err error) {
	index, err = EnsureBridge(Bridge{Name: name, Gateways: []netip.Prefix{dummy}, MTU: mtu})
	if err != nil {
		return 0, err
	}
	if _, err := netlink.LinkByName(link + "a"); err == nil {
		return index, nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.Flags, attrs.MTU = link+"a", first, net.FlagUp, mtu
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: link + "b", PeerMTU: uint32(max(mtu, 0))}); err != nil {
		return 0, fmt.Errorf("bridge %s: make its cable: %w", name, err)
	}
	peer, err := netlink.LinkByName(link + "b")
	if err == nil {
		err = errors.Join(netlink.LinkSetMasterByIndex(peer, index), netlink.LinkSetUp(peer))
	}
	if err != nil {
		return 0, fmt.Errorf("bridge %s: plug its cable in: %w", name, err)
	}
	return index, nil
}

// Isolate keeps a port of a bridge apart from its other isolated ports.
func Isolate(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetIsolated(l, true)
	}
	if err != nil {
		return fmt.Errorf("isolate the interface %s: %w", name, err)
	}
	return nil
}

// FilterBridge sends packets between the ports of a bridge through the rules of
// nftables, whatever becomes of the setting for all bridges.
func FilterBridge(name string) {
	for _, f := range []string{"nf_call_iptables", "nf_call_ip6tables"} {
		os.WriteFile("/sys/class/net/"+name+"/bridge/"+f, []byte("1"), 0)
	}
}

// RandomMAC is a unicast, locally administered address.
func RandomMAC() net.HardwareAddr {
	mac := make(net.HardwareAddr, 6)
	rand.Read(mac)
	mac[0] = mac[0]&^1 | 2
	return mac
}

// RemoveLink deletes a link; none is no error.
func RemoveLink(name string) error { return removeLink(&netlink.Handle{}, name) }

func removeLink(h *netlink.Handle, name string) error {
	link, err := h.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = h.LinkDel(link)
	}
	if err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("remove link %s: %w", name, err)
	}
	return nil
}

// Links lists the names of links with a prefix.
func Links(prefix string) ([]string, error) {
	all, err := whole(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var out []string
	for _, l := range all {
		if n := l.Attrs().Name; len(n) >= len(prefix) && n[:len(prefix)] == prefix {
			out = append(out, n)
		}
	}
	return out, nil
}

// whole reads a list again that changed while it was read (NLM_F_DUMP_INTR).
func whole[T any](list func() ([]T, error)) (all []T, err error) {
	for range 100 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// An Endpoint is one interface of a container.
type Endpoint struct {
	HostName string // of the end on the bridge
	Bridge   int    // index
	Share    *Share // instead of a bridge: an interface of the host
	Name     string // in the container: "eth0"
	MAC      net.HardwareAddr
	Addrs    []netip.Prefix
	MTU      int
	NoIPv6   bool
	Isolated bool     // it reaches the bridge, but not the bridge's other ports
	Hairpin  bool     // the bridge sends back to it what it has sent itself
	Sysctls  []string // net/…=value, with IFNAME for the interface
	Routes   []DefaultRoute
}

// Attach makes the endpoint in the namespace. first also brings the loopback
// interface up.
func Attach(ns *os.File, e Endpoint, first bool) error {
	if err := makeLink(ns, e); err != nil {
		return err
	}
	if e.NoIPv6 || len(e.Sysctls) > 0 {
		if err := linux.InNetNS(ns, func() error { return setUpSysctls(e) }); err != nil {
			return err
		}
	}
	s, err := openRoute(ns)
	if err != nil {
		return err
	}
	defer s.close()
	what := "the interface " + e.Name
	index, err := s.indexOf(e.Name)
	if err != nil {
		return err
	}
	var all []request
	if first {
		all = append(all, bringUp("the loopback interface", loopback))
	}
	for _, a := range e.Addrs {
		all = append(all, newAddress(what, index, a))
	}
	up := bringUp(what, index)
	if e.Share == nil {
		all = append(all, up)
	} else {
		if _, err := s.do(all...); err != nil {
			return err
		}
		if _, err := s.do(up); err != nil && !errors.Is(err, syscall.ENETDOWN) { // it comes up with its parent
			return err
		}
		all = nil
	}
	for _, r := range e.Routes {
		all = append(all, newDefaultRoute(what, index, r))
	}
	_, err = s.do(all...)
	return err
}

// makeLink makes the interface, in place.
func makeLink(ns *os.File, e Endpoint) error {
	if e.Share != nil {
		return e.Share.attach(ns, e)
	}
	if err := makeVeth(ns, e); err != nil {
		return fmt.Errorf("make the interface %s: %w", e.Name, err)
	}
	port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: e.HostName}}
	if e.Hairpin {
		if err := netlink.LinkSetHairpin(port, true); err != nil {
			return fmt.Errorf("hairpin mode of %s: %w", e.HostName, err)
		}
	}
	if e.Isolated {
		if err := netlink.LinkSetIsolated(port, true); err != nil {
			return fmt.Errorf("isolate the interface %s: %w", e.Name, err)
		}
	}
	return nil
}

// Attributes of linux/if_link.h that package syscall lacks.
const (
	iflaAFSpec      = 26
	iflaNetNSFD     = 28
	iflaExtMask     = 29
	iflaNumTxQueues = 31
	iflaNumRxQueues = 32

	iflaInet6AddrGenMode = 8
	in6AddrGenModeNone   = 1

	rtextFilterSkipStats = 1 << 3
)

// makeVeth makes a pair, one end up on the bridge and the other in the namespace,
// in one packet: netlink.LinkAdd needs four. One queue each, as the sending side
// takes no lock; the kernel makes one for every processor (Linux 5.17).
func makeVeth(ns *os.File, e Endpoint) error {
	q := nl.NewNetlinkRequest(syscall.RTM_NEWLINK, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL|syscall.NLM_F_ACK)
	q.AddData(nl.NewIfInfomsg(syscall.AF_UNSPEC))
	q.AddData(nl.NewRtAttr(syscall.IFLA_IFNAME, nl.ZeroTerminated(e.HostName)))
	q.AddData(nl.NewRtAttr(syscall.IFLA_MASTER, nl.Uint32Attr(uint32(e.Bridge))))
	info := nl.NewRtAttr(syscall.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, syscall.AF_UNSPEC)
	peer.AddRtAttr(syscall.IFLA_IFNAME, nl.ZeroTerminated(e.Name))
	peer.AddRtAttr(iflaNetNSFD, nl.Uint32Attr(uint32(linux.RawFD(ns))))
	if len(e.MAC) > 0 {
		peer.AddRtAttr(syscall.IFLA_ADDRESS, e.MAC)
	}
	peer.AddRtAttr(iflaNumTxQueues, nl.Uint32Attr(1))
	peer.AddRtAttr(iflaNumRxQueues, nl.Uint32Attr(1))
	if e.MTU > 0 {
		peer.AddRtAttr(syscall.IFLA_MTU, nl.Uint32Attr(uint32(e.MTU)))
		q.AddData(nl.NewRtAttr(syscall.IFLA_MTU, nl.Uint32Attr(uint32(e.MTU))))
	}
	q.AddData(nl.NewRtAttr(iflaNumTxQueues, nl.Uint32Attr(1)))
	q.AddData(nl.NewRtAttr(iflaNumRxQueues, nl.Uint32Attr(1)))
	q.AddData(info)
	s, err := openRoute(nil)
	if err != nil {
		return err
	}
	defer s.close()
	up, msg := linkRequest(syscall.RTM_SETLINK, 0, 0)
	msg.Flags, msg.Change = syscall.IFF_UP, syscall.IFF_UP
	up.AddData(nl.NewRtAttr(syscall.IFLA_IFNAME, nl.ZeroTerminated(e.HostName)))
	_, err = s.do(request{"make it", q}, noLinkLocal(e.HostName), request{"bring it up", up})
	if errors.Is(err, syscall.EAFNOSUPPORT) { // a kernel without IPv6
		return nil
	}
	return err
}

// noLinkLocal keeps a port of a bridge from having an IPv6 address, which it would
// announce to all other ports. While the port is down nobody is told of the change,
// for which the kernel would look through all its routes of IPv6.
func noLinkLocal(port string) request {
	q, _ := linkRequest(syscall.RTM_SETLINK, 0, 0)
	q.AddData(nl.NewRtAttr(syscall.IFLA_IFNAME, nl.ZeroTerminated(port)))
	spec := nl.NewRtAttr(iflaAFSpec, nil)
	spec.AddRtAttr(syscall.AF_INET6, nil).AddRtAttr(iflaInet6AddrGenMode, []byte{in6AddrGenModeNone})
	q.AddData(spec)
	return request{"its addresses of IPv6", q}
}

// setUpSysctls makes the interface's settings, on a thread in its namespace.
func setUpSysctls(e Endpoint) error {
	if e.NoIPv6 {
		// Nothing but what the network gives: no link-local address either.
		linux.SetNetSysctl("ipv6/conf/"+e.Name+"/disable_ipv6", "1")
	}
	for _, s := range e.Sysctls {
		path, value, _ := strings.Cut(s, "=")
		path = strings.TrimPrefix(strings.ReplaceAll(path, ".", "/"), "net/")
		if err := linux.SetNetSysctl(strings.ReplaceAll(path, "IFNAME", e.Name), value); err != nil {
			return fmt.Errorf("setting %s of the interface %s: %w", s, e.Name, err)
		}
	}
	return nil
}

func handle(ns *os.File) (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(linux.RawFD(ns)), syscall.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("enter the network namespace: %w", err)
	}
	return h, nil
}

// A DefaultRoute goes by an interface to a gateway; without a valid one, to
// whoever is there. Replace puts it in the place of one that is there.
type DefaultRoute struct {
	Gateway       netip.Addr
	IPv6, Replace bool
}

// SetDefaultRoute makes the default route of a namespace by an interface.
func SetDefaultRoute(ns *os.File, name string, r DefaultRoute) error {
	s, err := openRoute(ns)
	if err != nil {
		return err
	}
	defer s.close()
	index, err := s.indexOf(name)
	if err != nil {
		return err
	}
	_, err = s.do(newDefaultRoute("the interface "+name, index, r))
	return err
}

// RemoveLinkIn deletes a link of a namespace; none is no error.
func RemoveLinkIn(ns *os.File, name string) error {
	h, err := handle(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	return removeLink(h, name)
}

// ForgetUDP removes what connection tracking knows of datagrams to ports.
func ForgetUDP(ports map[uint16]bool) error {
	for _, family := range []netlink.InetFamily{syscall.AF_INET, syscall.AF_INET6} {
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, udpTo(ports)); err != nil {
			return fmt.Errorf("connection tracking: %w", err)
		}
	}
	return nil
}

type udpTo map[uint16]bool

func (u udpTo) MatchConntrackFlow(f *netlink.ConntrackFlow) bool {
	return f.Forward.Protocol == syscall.IPPROTO_UDP && u[f.Forward.DstPort]
}

// LoopbackUp brings lo up in a namespace that gets no other interface.
func LoopbackUp(ns *os.File) error {
	s, err := openRoute(ns)
	if err != nil {
		return err
	}
	defer s.close()
	_, err = s.do(bringUp("the loopback interface", loopback))
	return err
}

// Taken lists the prefixes that the host's addresses and routes use.
func Taken() (out []netip.Prefix, err error) {
	uses, err := Uses()
	for _, u := range uses {
		out = append(out, u.Prefix)
	}
	return out, err
}

// A Use is a prefix that an address or a route of the host's uses.
type Use struct {
	Prefix netip.Prefix
	Link   int // index of the interface; 0 = none
}

// Uses lists them.
func Uses() ([]Use, error) {
	var out []Use
	add := func(n *net.IPNet, link int) {
		if n == nil {
			return
		}
		if a, ok := netip.AddrFromSlice(n.IP); ok {
			ones, _ := n.Mask.Size()
			if ones > 0 {
				out = append(out, Use{netip.PrefixFrom(a.Unmap(), ones).Masked(), link})
			}
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		add(r.Dst, r.LinkIndex)
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		add(a.IPNet, a.LinkIndex)
	}
	return out, nil
}

// LinkName is the name of an interface, "" where it is gone.
func LinkName(index int) string {
	if l, err := netlink.LinkByIndex(index); err == nil {
		return l.Attrs().Name
	}
	return ""
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
