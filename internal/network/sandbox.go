package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/netlink"
	"github.com/onggi/onggi/internal/linux/nft"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/undo"
)

// EndpointRequest asks for a place on a network.
type EndpointRequest struct {
	Network    string
	IPv4, IPv6 netip.Addr
	MAC        string
	Aliases    []string
	DriverOpts map[string]string
	GwPriority int
}

// PortRequest asks for a published port. HostPort 0 is any free one; with
// HostPortEnd it is the first free one of a range.
type PortRequest struct {
	Port                  uint16
	Proto                 string
	HostIP                netip.Addr // invalid: the default
	HostPort, HostPortEnd uint16
}

// SandboxRequest asks for a container's whole network.
type SandboxRequest struct {
	ContainerID, Name, Hostname, Domainname string
	NetNS                                   *os.File
	Endpoints                               []EndpointRequest
	Ports                                   []PortRequest
	DNS, DNSSearch, DNSOptions, ExtraHosts  []string
}

// Endpoint is a place on a network.
type Endpoint struct {
	NetworkID, NetworkName, EndpointID string
	IPv4, IPv6                         netip.Prefix `json:",omitzero"`
	Gateway4, Gateway6                 netip.Addr   `json:",omitzero"`
	MAC                                string
	Aliases, DNSNames                  []string
	Interface                          string // in the container
}

// PortBinding is a published port.
type PortBinding struct {
	Port     uint16
	Proto    string
	HostIP   netip.Addr
	HostPort uint16
}

// Sandbox is a container's network.
type Sandbox struct {
	Endpoints         []Endpoint
	Ports             []PortBinding
	ResolvConf, Hosts []byte
}

// sandbox is the record of one.
type sandbox struct {
	Name      string
	Hostname  string
	Endpoints []Endpoint
	Ports     []PortBinding
	ns        *os.File // our descriptor of the namespace; nil = unknown
}

// keep holds a namespace for later connections. Preconditions: s.mu is held, or
// nobody else has the sandbox.
func (b *sandbox) keep(ns *os.File) {
	if ns == nil {
		return
	}
	if fd, err := linux.DupFD(int(linux.RawFD(ns))); err == nil {
		b.ns = os.NewFile(uintptr(fd), "netns")
	}
}

type hostPort struct {
	proto string
	ip    netip.Addr
	port  uint16
}

func container(name string) string { return fmt.Sprintf("container %q", strings.TrimPrefix(name, "/")) }

// Attach builds a container's network in its namespace.
func (s *Service) Attach(ctx context.Context, r SandboxRequest) (out Sandbox, err error) {
	var u undo.Stack
	defer func() { u.Run(ctx, &err) }()
	b := &sandbox{Name: strings.TrimPrefix(r.Name, "/"), Hostname: r.Hostname}
	b.keep(r.NetNS)
	s.mu.Lock()
	if s.sandboxes[r.ContainerID] != nil {
		s.mu.Unlock()
		if err := s.Release(ctx, r.ContainerID); err != nil {
			return out, err
		}
		s.mu.Lock()
	}
	s.sandboxes[r.ContainerID] = b
	s.mu.Unlock()
	u.Push(func(ctx context.Context) error { return s.Release(ctx, r.ContainerID) })

	reqs := slices.Clone(r.Endpoints)
	slices.SortStableFunc(reqs, func(a, c EndpointRequest) int { return c.GwPriority - a.GwPriority })
	first := true
	for i, q := range reqs {
		n, err := s.find(q.Network)
		if err != nil {
			return out, err
		}
		if n.Driver != "bridge" {
			continue
		}
		if _, err := s.connect(r, n, q, b, i, first); err != nil {
			return out, err
		}
		first = false
	}
	if first && r.NetNS != nil {
		if err := netlink.LoopbackUp(r.NetNS); err != nil {
			return out, errdefs.New(errdefs.Internal, "connect", container(r.Name), err)
		}
	}
	if err := s.publish(r, b); err != nil {
		return out, err
	}
	if err := s.save(r.ContainerID, b); err != nil {
		return out, err
	}
	u.Disarm()
	s.mu.Lock()
	out = Sandbox{Endpoints: slices.Clone(b.Endpoints), Ports: slices.Clone(b.Ports)}
	s.mu.Unlock()
	out.ResolvConf, out.Hosts = s.files(r, out.Endpoints)
	return out, nil
}

// connect reserves addresses on a network and makes the interface.
func (s *Service) connect(r SandboxRequest, n *live, q EndpointRequest, b *sandbox, i int, first bool) (Endpoint, error) {
	ep := Endpoint{NetworkID: n.ID, NetworkName: n.Name, EndpointID: newID(), Interface: fmt.Sprintf("eth%d", i)}
	if i > 0 {
		ep.Interface = s.freeInterface(b)
	}
	ep.Aliases = slices.Clone(q.Aliases)
	ep.DNSNames = []string{b.Name}
	if len(r.ContainerID) >= 12 {
		ep.DNSNames = append(ep.DNSNames, r.ContainerID[:12])
	}
	if r.Hostname != "" && !slices.Contains(ep.DNSNames, r.Hostname) {
		ep.DNSNames = append(ep.DNSNames, r.Hostname)
	}
	s.mu.Lock()
	if n.index == 0 {
		s.mu.Unlock()
		return ep, errdefs.Newf(errdefs.Unavailable, "connect", container(r.Name), "the network %s has no bridge", n.Name)
	}
	if err := s.addressesLocked(n, q, &ep); err != nil {
		s.mu.Unlock()
		return ep, errdefs.New(errdefs.KindOf(err), "connect", container(r.Name)+" to "+object(n.Name), err)
	}
	b.Endpoints = append(b.Endpoints, ep)
	index := n.index
	s.mu.Unlock()

	x := netlink.Endpoint{HostName: "og" + ep.EndpointID[:10], Bridge: index, Name: ep.Interface, MTU: n.mtu(s.o.MTU), NoIPv6: !n.EnableIPv6}
	mac, err := net.ParseMAC(ep.MAC)
	if err != nil {
		return ep, errdefs.Newf(errdefs.Invalid, "connect", container(r.Name), "the MAC address %q: %v", ep.MAC, err)
	}
	x.MAC = mac
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if p.IsValid() {
			x.Addrs = append(x.Addrs, p)
		}
	}
	if first && !n.Internal {
		for _, g := range []netip.Addr{ep.Gateway4, ep.Gateway6} {
			if g.IsValid() {
				x.Gateways = append(x.Gateways, g)
			}
		}
	}
	if err := netlink.Attach(r.NetNS, x, first); err != nil {
		return ep, errdefs.New(errdefs.Internal, "connect", container(r.Name)+" to "+object(n.Name), err)
	}
	return ep, nil
}

func (s *Service) freeInterface(b *sandbox) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; ; i++ {
		name := fmt.Sprintf("eth%d", i)
		if !slices.ContainsFunc(b.Endpoints, func(e Endpoint) bool { return e.Interface == name }) {
			return name
		}
	}
}

// addressesLocked chooses addresses that nobody has.
func (s *Service) addressesLocked(n *live, q EndpointRequest, ep *Endpoint) error {
	used := map[netip.Addr]bool{}
	for _, b := range s.sandboxes {
		for _, e := range b.Endpoints {
			if e.NetworkID == n.ID {
				used[e.IPv4.Addr()], used[e.IPv6.Addr()] = true, true
			}
		}
	}
	for _, p := range n.IPAM {
		used[p.Gateway] = true
		for _, a := range p.AuxAddresses {
			used[a] = true
		}
		want := q.IPv4
		if p.Subnet.Addr().Is6() {
			want = q.IPv6
		}
		a := want
		switch {
		case !want.IsValid():
			var err error
			if a, err = nextAddr(p.Subnet, p.IPRange, used); err != nil {
				return err
			}
		case !p.Subnet.Contains(want):
			return errdefs.Newf(errdefs.Invalid, "reserve", "the address "+want.String(), "it is not in the subnet %s", p.Subnet)
		case used[want]:
			return errdefs.Newf(errdefs.Conflict, "reserve", "the address "+want.String(), "Address already in use")
		}
		at := netip.PrefixFrom(a, p.Subnet.Bits())
		if a.Is4() {
			ep.IPv4, ep.Gateway4 = at, p.Gateway
		} else {
			ep.IPv6, ep.Gateway6 = at, p.Gateway
		}
	}
	if ep.MAC = q.MAC; ep.MAC == "" {
		a := ep.IPv4.Addr()
		if !a.IsValid() {
			a = ep.IPv6.Addr()
		}
		mac := macFor(a, ep.EndpointID)
		ep.MAC = net.HardwareAddr(mac[:]).String()
	}
	return nil
}

var protocols = map[string]uint8{"tcp": syscall.IPPROTO_TCP, "udp": syscall.IPPROTO_UDP, "sctp": 132}

// publish reserves host ports and sends them to the container.
func (s *Service) publish(r SandboxRequest, b *sandbox) error {
	if len(r.Ports) == 0 {
		return nil
	}
	var v4, v6 netip.Addr
	for _, e := range b.Endpoints {
		if n, err := s.find(e.NetworkID); err == nil && n.Internal {
			continue
		}
		if e.IPv4.IsValid() && !v4.IsValid() {
			v4 = e.IPv4.Addr()
		}
		if e.IPv6.IsValid() && !v6.IsValid() {
			v6 = e.IPv6.Addr()
		}
	}
	for _, p := range r.Ports {
		if _, ok := protocols[p.Proto]; !ok {
			return errdefs.Newf(errdefs.Invalid, "publish", fmt.Sprintf("port %d", p.Port), "the protocol %q is not tcp, udp or sctp", p.Proto)
		}
		ips := []netip.Addr{p.HostIP}
		if !p.HostIP.IsValid() {
			ips = nil
			if s.o.PublishIP != "" {
				if a, err := netip.ParseAddr(s.o.PublishIP); err == nil && !a.IsUnspecified() {
					ips = []netip.Addr{a}
				}
			}
			if ips == nil {
				ips = []netip.Addr{netip.IPv4Unspecified()}
				if v6.IsValid() {
					ips = append(ips, netip.IPv6Unspecified())
				}
			}
		}
		port := uint16(0)
		for _, ip := range ips {
			target := v4
			if ip.Is6() {
				target = v6
			}
			if !target.IsValid() {
				if ip.Is6() && v4.IsValid() {
					return errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "publish", fmt.Sprintf("port %d on %s", p.Port, ip), "the container has no IPv6 address"), "a network made with --ipv6")
				}
				continue
			}
			q := p
			if port != 0 { // the same number on both families
				q.HostPort, q.HostPortEnd = port, 0
			}
			bound, err := s.reserve(r, b, ip, q)
			if err != nil {
				return err
			}
			port = bound.HostPort
		}
	}
	return s.table.AddPorts(s.targets(b))
}

// targets are the elements of the table for a sandbox's ports.
func (s *Service) targets(b *sandbox) (out []nft.Port) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range b.Ports {
		for _, e := range b.Endpoints {
			a := e.IPv4
			if p.HostIP.Is6() {
				a = e.IPv6
			}
			if n := s.nets[e.NetworkID]; a.IsValid() && (n == nil || !n.Internal) {
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
func (s *Service) reserve(r SandboxRequest, b *sandbox, ip netip.Addr, p PortRequest) (PortBinding, error) {
	lo, hi := p.HostPort, max(p.HostPort, p.HostPortEnd)
	if lo == 0 {
		lo, hi = firstFree, lastFree
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var why error
	for n := uint32(lo); n <= uint32(hi); n++ {
		k := hostPort{p.Proto, ip, uint16(n)}
		if owner := s.ownerLocked(k); owner != "" {
			why = errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "publish", fmt.Sprintf("port %d of %s", p.Port, container(r.Name)), "Bind for %s failed: port is already allocated by container %q",
				netip.AddrPortFrom(ip, k.port), owner), "another host port, or onggi rm -f "+owner)
			continue
		}
		c, err := hold(k)
		if err != nil {
			why = portError(r, p, k, err)
			continue
		}
		s.held[k] = c
		pb := PortBinding{Port: p.Port, Proto: p.Proto, HostIP: ip, HostPort: k.port}
		b.Ports = append(b.Ports, pb)
		return pb, nil
	}
	return PortBinding{}, why
}

// ownerLocked names the container that has a host port; one on all addresses
// and one on a certain address exclude each other.
func (s *Service) ownerLocked(k hostPort) string {
	for _, b := range s.sandboxes {
		for _, p := range b.Ports {
			if p.Proto == k.proto && p.HostPort == k.port && p.HostIP.Is4() == k.ip.Is4() && (p.HostIP == k.ip || p.HostIP.IsUnspecified() || k.ip.IsUnspecified()) {
				return b.Name
			}
		}
	}
	return ""
}

func portError(r SandboxRequest, p PortRequest, k hostPort, err error) error {
	kind, hint := errdefs.Internal, ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		kind, hint = errdefs.Conflict, fmt.Sprintf("another host port, or end what listens there: ss -lptu 'sport = :%d'", k.port)
		err = errors.New("another program of the host uses it (address already in use)")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		kind, hint = errdefs.Invalid, "an address of this host: ip address"
		err = fmt.Errorf("the host has no address %s", k.ip)
	}
	return errdefs.WithHint(errdefs.Newf(kind, "publish", fmt.Sprintf("port %d of %s", p.Port, container(r.Name)), "host port %s/%s: %w", netip.AddrPortFrom(k.ip, k.port), k.proto, err), hint)
}

// hold binds a socket to the port, so that nobody else takes it. Nothing is
// accepted there: packets are redirected before they come to it.
func hold(k hostPort) (io.Closer, error) {
	at := netip.AddrPortFrom(k.ip, k.port).String()
	fam := "4"
	if k.ip.Is6() {
		fam = "6"
	}
	switch k.proto {
	case "tcp":
		return net.Listen("tcp"+fam, at)
	case "udp":
		return net.ListenPacket("udp"+fam, at)
	}
	return io.NopCloser(nil), nil
}

func (s *Service) save(id string, b *sandbox) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.o.DB.Update(func(tx *metadb.Tx) error { return tx.Put(sandboxesBucket, id, b) })
}

// files are the container's resolv.conf and hosts.
func (s *Service) files(r SandboxRequest, eps []Endpoint) (resolv, hosts []byte) {
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
	var gateway netip.Addr
	var servers []string
	for _, e := range eps {
		s.mu.Lock()
		n := s.nets[e.NetworkID]
		if n != nil {
			for _, a := range n.bound {
				servers = append(servers, a.String())
			}
		}
		s.mu.Unlock()
		if !gateway.IsValid() {
			gateway = e.Gateway4
		}
	}
	switch {
	case len(r.DNS) > 0:
		// Names of containers come from our server; it is asked first.
		servers = append(servers[:min(1, len(servers))], r.DNS...)
		if len(eps) > 0 && eps[0].NetworkName == "bridge" || len(eps) == 0 {
			servers = r.DNS
		}
	case len(servers) == 0 && len(eps) == 0:
		servers = host.servers // the host's network, or none
	case len(servers) == 0:
		if servers = s.o.DNS; len(servers) == 0 {
			servers = reachable(host.servers)
		}
	}
	return resolvConf(servers, search, options), hostsFile(r, eps, gateway)
}

// Release takes everything back that a container's network took. What is in the
// container's namespace goes with the namespace.
func (s *Service) Release(ctx context.Context, containerID string) error {
	s.mu.Lock()
	b := s.sandboxes[containerID]
	s.mu.Unlock()
	if b == nil {
		return nil
	}
	err := s.table.RemovePorts(s.targets(b))
	s.mu.Lock()
	for _, p := range b.Ports {
		k := hostPort{p.Proto, p.HostIP, p.HostPort}
		if c := s.held[k]; c != nil {
			c.Close()
			delete(s.held, k)
		}
	}
	delete(s.sandboxes, containerID)
	ns := b.ns
	b.ns = nil
	s.mu.Unlock()
	if ns != nil {
		ns.Close()
	}
	return errors.Join(err, s.o.DB.Update(func(tx *metadb.Tx) error { return tx.Delete(sandboxesBucket, containerID) }))
}

// Connect adds a running container to a network.
func (s *Service) Connect(ctx context.Context, containerID string, q EndpointRequest) (Endpoint, error) {
	n, err := s.find(q.Network)
	if err != nil {
		return Endpoint{}, err
	}
	s.mu.Lock()
	b := s.sandboxes[containerID]
	if b == nil || b.ns == nil {
		s.mu.Unlock()
		return Endpoint{}, errdefs.Newf(errdefs.Conflict, "connect", fmt.Sprintf("container %.12s", containerID), "it is not running, or has no network namespace of its own")
	}
	r := SandboxRequest{ContainerID: containerID, Name: b.Name, Hostname: b.Hostname, NetNS: b.ns}
	count := len(b.Endpoints)
	have := slices.ContainsFunc(b.Endpoints, func(e Endpoint) bool { return e.NetworkID == n.ID })
	s.mu.Unlock()
	switch {
	case n.Driver != "bridge":
		return Endpoint{}, errdefs.Newf(errdefs.Forbidden, "connect", container(b.Name), "container cannot be connected to the network %s", n.Name)
	case have:
		return Endpoint{}, errdefs.Newf(errdefs.Forbidden, "connect", container(b.Name), "endpoint with name %s already exists in network %s", b.Name, n.Name)
	}
	ep, err := s.connect(r, n, q, b, count+1, count == 0)
	if err != nil {
		s.drop(b, n.ID)
		return Endpoint{}, err
	}
	return ep, s.save(containerID, b)
}

func (s *Service) drop(b *sandbox, networkID string) (ep Endpoint, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(b.Endpoints, func(e Endpoint) bool { return e.NetworkID == networkID })
	if i < 0 {
		return ep, false
	}
	ep = b.Endpoints[i]
	b.Endpoints = slices.Delete(b.Endpoints, i, i+1)
	return ep, true
}

// Disconnect takes a container off a network.
func (s *Service) Disconnect(ctx context.Context, containerID, network string, force bool) error {
	n, err := s.find(network)
	if err != nil {
		return err
	}
	s.mu.Lock()
	b := s.sandboxes[containerID]
	s.mu.Unlock()
	if b == nil {
		return nil
	}
	before := s.targets(b)
	ep, ok := s.drop(b, n.ID)
	if !ok {
		return errdefs.Newf(errdefs.Forbidden, "disconnect", container(b.Name), "container is not connected to network %s", n.Name)
	}
	after := s.targets(b)
	gone := slices.DeleteFunc(slices.Clone(before), func(p nft.Port) bool { return slices.Contains(after, p) })
	if err := s.table.RemovePorts(gone); err != nil {
		return err
	}
	if err := s.table.AddPorts(slices.DeleteFunc(after, func(p nft.Port) bool { return slices.Contains(before, p) })); err != nil {
		return err
	}
	if err := netlink.RemoveLink("og" + ep.EndpointID[:10]); err != nil {
		return err
	}
	return s.save(containerID, b)
}

// Restore adopts what running containers have, after an engine's restart, and
// takes back what belonged to others.
func (s *Service) Restore(ctx context.Context, running []SandboxRequest) error {
	alive := map[string]bool{}
	s.mu.Lock()
	for _, r := range running {
		alive[r.ContainerID] = true
		if b := s.sandboxes[r.ContainerID]; b != nil && b.ns == nil {
			b.keep(r.NetNS)
		}
	}
	var gone []string
	for id, b := range s.sandboxes {
		if !alive[id] {
			gone = append(gone, id)
			continue
		}
		for _, p := range b.Ports {
			k := hostPort{p.Proto, p.HostIP, p.HostPort}
			if c, err := hold(k); err == nil {
				s.held[k] = c
			} else {
				s.log.Warn("a published port is used by another program too", "container", b.Name, "port", p.HostPort, "error", err)
			}
		}
	}
	for _, id := range gone {
		delete(s.sandboxes, id)
	}
	var ports []nft.Port
	live := make([]*sandbox, 0, len(s.sandboxes))
	for _, b := range s.sandboxes {
		live = append(live, b)
	}
	s.mu.Unlock()
	for _, b := range live {
		ports = append(ports, s.targets(b)...)
	}
	err := s.table.AddPorts(ports)
	return errors.Join(err, s.o.DB.Update(func(tx *metadb.Tx) error {
		for _, id := range gone {
			if err := tx.Delete(sandboxesBucket, id); err != nil {
				return err
			}
		}
		return nil
	}))
}

// lookup answers a name on a network, in an order that changes.
func (s *Service) lookup(networkID, name string) (out []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.sandboxes { // a map's order is random: that spreads the load
		for _, e := range b.Endpoints {
			if e.NetworkID != networkID || !answers(e, name) {
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

func (s *Service) reverse(networkID string, a netip.Addr) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.sandboxes {
		for _, e := range b.Endpoints {
			if e.NetworkID == networkID && (e.IPv4.Addr() == a || e.IPv6.Addr() == a) {
				return b.Name + "." + e.NetworkName
			}
		}
	}
	return ""
}
