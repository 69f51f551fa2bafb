package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/netlink"
	"github.com/onggi/onggi/internal/linux/nft"
)

// Options of the bridge driver, by Docker's names.
const (
	optionName      = "com.docker.network.bridge.name"
	optionDefault   = "com.docker.network.bridge.default_bridge"
	optionICC       = "com.docker.network.bridge.enable_icc"
	optionMasq      = "com.docker.network.bridge.enable_ip_masquerade"
	optionBinding4  = "com.docker.network.bridge.host_binding_ipv4"
	optionBinding6  = "com.docker.network.bridge.host_binding_ipv6"
	optionMode4     = "com.docker.network.bridge.gateway_mode_ipv4"
	optionMode6     = "com.docker.network.bridge.gateway_mode_ipv6"
	optionTrusted   = "com.docker.network.bridge.trusted_host_interfaces"
	optionSource4   = "com.docker.network.host_ipv4"
	optionSource6   = "com.docker.network.host_ipv6"
	optionMTU       = "com.docker.network.driver.mtu"
	optionInterface = "com.docker.network.container_iface_prefix"
	optionInhibit   = "com.docker.network.bridge.inhibit_ipv4"
	optionForeign   = "com.onggi.network.bridge.foreign" // the host's own: never removed
	optionEnable4   = "com.docker.network.enable_ipv4"
	optionEnable6   = "com.docker.network.enable_ipv6"
)

// settings are the bridge driver's options, read.
type settings struct {
	mode     [2]nft.Mode // by family: IPv4, IPv6
	isolated [2]bool     // the host has no address on the bridge, and containers no gateway
	inhibit  bool        // the host has no IPv4 address on the bridge
	noICC    bool
	noMasq   bool
	binding  [2]netip.Addr // default host address of published ports
	source   [2]netip.Addr // address that containers' connections come from
	trusted  []string
	prefix   string // of interfaces' names in containers
	mtu      int
}

func familyIndex(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// readSettings reads the options. Those that are not the bridge driver's are
// ignored, as they are by Docker.
func readSettings(o map[string]string, internal bool) (s settings, err error) {
	s.prefix = "eth"
	fail := func(k, want string) error { return fmt.Errorf("the option %s=%q: want %s", k, o[k], want) }
	for k, v := range o {
		family := 0
		if strings.HasSuffix(k, "ipv6") {
			family = 1
		}
		switch k {
		case optionICC, optionMasq, optionInhibit:
			on, err := strconv.ParseBool(v)
			if err != nil {
				return s, fail(k, "true or false")
			}
			switch k {
			case optionICC:
				s.noICC = !on
			case optionMasq:
				s.noMasq = !on
			default:
				s.inhibit = on
			}
		case optionMode4, optionMode6:
			switch v {
			case "", "nat":
			case "nat-unprotected":
				s.mode[family] = nft.Unprotected
			case "routed":
				s.mode[family] = nft.Routed
			case "isolated":
				if !internal {
					return s, fmt.Errorf("the gateway mode isolated is for internal networks (--internal)")
				}
				s.isolated[family] = true
			default:
				return s, fail(k, "nat, nat-unprotected, routed or isolated")
			}
		case optionBinding4, optionBinding6, optionSource4, optionSource6:
			a, err := netip.ParseAddr(v)
			if err != nil || familyIndex(a) != family {
				return s, fail(k, "an address of that family")
			}
			if k == optionSource4 || k == optionSource6 {
				s.source[family] = a
			} else {
				s.binding[family] = a
			}
		case optionTrusted:
			for _, name := range strings.Split(v, ":") {
				if !interfaceName(name) {
					return s, fail(k, "names of interfaces with : between")
				}
				s.trusted = append(s.trusted, name)
			}
		case optionMTU, "mtu":
			if s.mtu, err = strconv.Atoi(v); err != nil || s.mtu < 68 || s.mtu > 65535 {
				return s, fail(k, "a number from 68 to 65535")
			}
		case optionInterface:
			if !interfaceName(v+"000") || strings.ContainsAny(v, "%") {
				return s, fail(k, "at most twelve characters of an interface's name")
			}
			s.prefix = v
		case optionName:
			if v != "" && !interfaceName(v) {
				return s, fail(k, "an interface's name: at most 15 bytes, without space, slash and colon")
			}
		}
	}
	s.isolated[0] = s.isolated[0] || s.inhibit && internal
	return s, nil
}

// interfaceName reports whether the kernel takes the name (dev_valid_name).
func interfaceName(n string) bool {
	return n != "" && len(n) <= 15 && n != "." && n != ".." && !strings.ContainsAny(n, "/: \t\r\n\v\f\x00%")
}

// settings of a network whose options were accepted when it was made.
func (n *Network) settings() settings {
	s, _ := readSettings(n.Options, n.Internal)
	return s
}

func (n *Network) bridge() string {
	if b := n.Options[optionName]; b != "" {
		return b
	}
	return "br-" + n.ID[:12] // as Docker names them: firewalls have patterns for that
}

func (n *Network) mtu(otherwise int) int {
	if m := n.settings().mtu; m > 0 {
		return m
	}
	return otherwise
}

// hostAddrs are the host's own addresses on the bridge.
func (n *Network) hostAddrs() (out []netip.Prefix) {
	s := n.settings()
	for _, p := range n.IPAM {
		if i := familyIndex(p.Subnet.Addr()); !s.isolated[i] && !(i == 0 && s.inhibit) {
			out = append(out, netip.PrefixFrom(p.Gateway, p.Subnet.Bits()))
		}
	}
	return out
}

// up makes what a network is in the kernel.
func (s *Service) up(n *live) error {
	switch {
	case n.Driver == "bridge":
		return s.upBridge(n)
	case n.shares():
		return s.upShare(n)
	}
	return nil
}

// raise brings a network up that has a record, unless somebody else got its subnet
// while its bridge was away.
func (s *Service) raise(n *live) error {
	n.raising.Lock()
	defer n.raising.Unlock()
	if n.Driver != "bridge" {
		return s.up(n)
	}
	if n.index != 0 {
		return nil
	}
	links, err := netlink.Links(n.bridge())
	problem := s.contested(n)
	if problem == nil || err == nil && slices.Contains(links, n.bridge()) { // containers may be on it
		if err := s.up(n); err != nil {
			problem = err
		}
	}
	s.mu.Lock()
	n.problem = problem
	s.mu.Unlock()
	return problem
}

// contested reports that an interface or a route of the host's has the network's
// subnet, or a part of it.
func (s *Service) contested(n *live) error {
	if n.Name == "bridge" || n.Options[optionForeign] == "true" {
		return nil
	}
	uses, err := netlink.Uses()
	if err != nil {
		return err
	}
	for _, a := range n.hostAddrs() {
		for _, u := range uses {
			if u.Prefix.Bits() < a.Bits() || u.Prefix.IsSingleIP() || !a.Overlaps(u.Prefix) {
				continue
			}
			if name := netlink.LinkName(u.Link); name != n.bridge() {
				return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "use", object(n.Name), "its subnet %s is not free: the interface %s has %s", a.Masked(), name, u.Prefix),
					"free it (ip addr, ip route), or onggi network rm "+n.Name+" and onggi network create it with another --subnet")
			}
		}
	}
	return nil
}

// down removes it.
func (s *Service) down(n *live) error {
	switch {
	case n.Driver == "bridge":
		return n.downBridge()
	case n.shares():
		return s.downShare(n)
	}
	return nil
}

// upBridge makes the bridge and its name server.
func (s *Service) upBridge(n *live) error {
	addrs := n.hostAddrs()
	index, err := netlink.EnsureBridge(netlink.Bridge{Name: n.bridge(), Gateways: addrs, MTU: n.mtu(s.o.MTU)})
	if err != nil {
		return err
	}
	if n.settings().noICC {
		if !seesBridges() { // links need it
			if err := s.o.LoadModule("br_netfilter"); err != nil {
				s.log.Info("the kernel's module br_netfilter was not loaded: on networks whose containers do not reach each other, links open nothing", "network", n.Name, "error", err)
			}
		}
		if seesBridges() {
			netlink.FilterBridge(n.bridge())
		}
	}
	s.forwarding(n)
	ns := s.bridgeNames(n)
	bound := ns.start(n.bridge(), addrs)
	s.mu.Lock()
	n.index, n.dns, n.bound = index, ns, bound
	most := 0 // of the segments that containers are on already
	for _, b := range s.sandboxes {
		for _, e := range b.Endpoints {
			if e.NetworkID == n.ID {
				most = max(most, e.Segment)
			}
		}
	}
	s.mu.Unlock()
	_, err = s.segment(n, most)
	return err
}

// downBridge removes the bridges.
func (n *live) downBridge() error {
	for _, prefix := range []string{"ogc", "ogs"} { // cables and segments
		names, err := netlink.Links(prefix + n.ID[:8])
		for _, name := range names {
			err = errors.Join(err, netlink.RemoveLink(name))
		}
		if err != nil {
			return err
		}
	}
	if n.Options[optionForeign] == "true" {
		return nil
	}
	return netlink.RemoveLink(n.bridge())
}

// forwarding lets the host route for this bridge, and its own loopback
// connections reach published ports on it.
func (s *Service) forwarding(n *live) {
	set := func(path, v string) {
		if err := linux.SetNetSysctl(path, v); err != nil {
			s.log.Warn("a setting of the kernel was not made", "network", n.Name, "setting", "net/"+path, "error", err)
		}
	}
	off := func(path string) bool {
		data, err := os.ReadFile("/proc/sys/net/" + path)
		return err == nil && strings.TrimSpace(string(data)) == "0"
	}
	set("ipv4/conf/"+n.bridge()+"/route_localnet", "1")
	if hasIPv6() {
		set("ipv6/conf/"+n.bridge()+"/accept_ra", "0")
		if !n.EnableIPv6 {
			set("ipv6/conf/"+n.bridge()+"/disable_ipv6", "1")
		}
	}
	if n.Internal {
		return
	}
	if off("ipv4/ip_forward") {
		set("ipv4/ip_forward", "1")
	}
	if n.EnableIPv6 && off("ipv6/conf/all/forwarding") {
		// A router forgets the default routes it was told of, but for interfaces that
		// are said to listen all the same (2): the host's own would be lost.
		list, _ := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
		for _, p := range list {
			if data, err := os.ReadFile(p); err == nil && strings.TrimSpace(string(data)) == "1" {
				set(strings.TrimPrefix(p, "/proc/sys/net/"), "2")
			}
		}
		set("ipv6/conf/all/forwarding", "1")
	}
}

// openable refuses links that nothing can open: between the ports of a bridge
// that keeps them apart itself.
func (s *Service) openable(b *sandbox) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range b.Request.Links {
		for _, n := range s.nets {
			if target := s.sandboxes[l.Target]; target != nil && n.Driver == "bridge" && b.on(n.ID) >= 0 && target.on(n.ID) >= 0 && n.settings().noICC && !seesBridges() {
				return errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "link", b.object(), "on the network %s containers do not reach each other, and the kernel opens links between them only with the module br_netfilter", n.Name),
					"modprobe br_netfilter, sysctl net.bridge.bridge-nf-call-iptables=1 net.bridge.bridge-nf-call-ip6tables=1 and restart the engine; or a network without the option "+optionICC+"=false")
			}
		}
	}
	return nil
}

// seesBridges reports whether packets between ports of a bridge pass the rules.
// Then those keep containers apart; else the bridge does, which would also stop
// what goes to a neighbour's published port where it is redirected on the bridge.
func seesBridges() bool {
	for _, f := range []string{"iptables", "ip6tables"} {
		if on, err := linux.NetSysctl("bridge/bridge-nf-call-" + f); err != nil || on != "1" {
			return false
		}
	}
	return true
}

// hasIPv6 reports whether the host does IPv6 at all.
func hasIPv6() bool {
	for _, name := range []string{"all", "default"} {
		data, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + name + "/disable_ipv6")
		if err != nil || strings.TrimSpace(string(data)) != "0" {
			return false
		}
	}
	return true
}

// syncRules makes the table from all networks.
func (s *Service) syncRules() error {
	s.rules.Lock()
	defer s.rules.Unlock()
	var nets []nft.Network
	for _, n := range s.list() {
		if n.Driver == "bridge" {
			nets = append(nets, s.ruleOf(n))
		}
	}
	return s.table.Sync(nets)
}

func (s *Service) ruleOf(n *live) nft.Network {
	o := n.settings()
	x := nft.Network{Bridge: n.bridge(), Internal: n.Internal, NoICC: o.noICC, Trusted: o.trusted}
	s.mu.Lock()
	bound := n.bound
	if o.noICC {
		x.Links = s.linksLocked(n)
	}
	for i := range n.segments {
		x.Segments = append(x.Segments, n.segmentName(i+1))
	}
	x.Routing = segmentsRoute()
	s.mu.Unlock()
	for _, p := range n.IPAM {
		i := familyIndex(p.Subnet.Addr())
		y := nft.Subnet{Prefix: p.Subnet, Gateway: p.Gateway, Mode: o.mode[i], NoMasquerade: o.noMasq, SourceIP: o.source[i]}
		if at := slices.IndexFunc(bound, func(b netip.AddrPort) bool { return b.Addr() == p.Gateway }); at >= 0 {
			y.NameServer = bound[at]
		}
		x.Subnets = append(x.Subnets, y)
	}
	return x
}

// warnOfDroppers tells of rules of the host that stop what ours let through.
func (s *Service) warnOfDroppers() {
	forward, input, err := s.table.Droppers()
	if err != nil {
		s.log.Debug("the host's rules are not readable", "error", err)
		return
	}
	for _, ch := range forward {
		s.log.Warn("a chain of the host's firewall drops what it does not know: containers may reach nothing outside, and published ports may be closed",
			"chain", ch, "try", "nft insert rule "+ch+` iifname "`+s.o.BridgeName+`" accept; nft insert rule `+ch+` oifname "`+s.o.BridgeName+`" accept`)
	}
	for _, ch := range input {
		s.log.Warn("a chain of the host's firewall drops what it does not know: containers may not reach the name server",
			"chain", ch, "try", "nft insert rule "+ch+` iifname "`+s.o.BridgeName+`" ct status dnat accept`)
	}
}

// completeSubnet gives the subnet of a pool that asks for any of a size, as in
// 0.0.0.0/24.
func (s *Service) completeSubnet(p netip.Prefix, taken []netip.Prefix) (netip.Prefix, error) {
	if !p.Addr().IsUnspecified() || p.Bits() == 0 {
		return p.Masked(), nil
	}
	pools := slices.Clone(s.familyPools(p.Addr().Is6()))
	pools = slices.DeleteFunc(pools, func(a AddressPool) bool { return a.Base.Bits() > p.Bits() })
	for i := range pools {
		pools[i].Size = p.Bits()
	}
	return nextSubnet(pools, taken)
}

// familyPools are the pools of one family; for IPv6 always our own too.
func (s *Service) familyPools(v6 bool) (out []AddressPool) {
	for _, p := range s.o.Pools {
		if p.Base.Addr().Is6() == v6 {
			out = append(out, p)
		}
	}
	switch {
	case v6:
		out = append(out, AddressPool{uniqueLocal(machineID(), tableName(s.o.ExecRoot)), 64})
	case len(out) == 0:
		out = defaultPools
	}
	return out
}

// machineID tells this machine from others, and stays.
func machineID() string {
	for _, p := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if data, err := os.ReadFile(p); err == nil && len(strings.TrimSpace(string(data))) >= 32 {
			return strings.TrimSpace(string(data))
		}
	}
	name, _ := os.Hostname()
	return name
}
