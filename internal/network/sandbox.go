package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

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
	LinkLocal  []netip.Addr      // further addresses
	Links      map[string]string // names that only this endpoint knows, and the IDs of their containers
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
	Interface                          string            // in the container
	Segment                            int               `json:",omitempty"` // of the network's bridges
	Default4, Default6                 bool              `json:",omitempty"` // the default route goes here
	Links                              map[string]string `json:",omitempty"`
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
	DNS       []string `json:",omitempty"` // name servers of its own
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
	b := &sandbox{Name: strings.TrimPrefix(r.Name, "/"), Hostname: r.Hostname, DNS: slices.Clone(r.DNS)}
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
	for _, q := range reqs {
		n, err := s.find(q.Network)
		if err != nil {
			return out, err
		}
		if n.Driver != "bridge" {
			continue
		}
		if _, err := s.connect(r, n, q, b, first); err != nil {
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
	out = Sandbox{Endpoints: slices.Clone(b.Endpoints), Ports: slices.DeleteFunc(slices.Clone(b.Ports), func(p PortBinding) bool { return p.HostPort == 0 })}
	s.mu.Unlock()
	out.ResolvConf, out.Hosts = s.files(r, out.Endpoints)
	return out, nil
}

// connect reserves addresses on a network and makes the interface.
func (s *Service) connect(r SandboxRequest, n *live, q EndpointRequest, b *sandbox, first bool) (Endpoint, error) {
	o := n.settings()
	ep := Endpoint{NetworkID: n.ID, NetworkName: n.Name, EndpointID: newID(), Interface: s.freeInterface(b, o.prefix)}
	ep.Aliases, ep.Links = slices.Clone(q.Aliases), q.Links
	ep.DNSNames = dnsNames(r.ContainerID, b)
	s.mu.Lock()
	if n.index == 0 {
		s.mu.Unlock()
		return ep, errdefs.Newf(errdefs.Unavailable, "connect", container(r.Name), "the network %s has no bridge", n.Name)
	}
	if err := s.addressesLocked(n, q, &ep); err != nil {
		s.mu.Unlock()
		return ep, errdefs.New(errdefs.KindOf(err), "connect", container(r.Name)+" to "+object(n.Name), err)
	}
	if !n.Internal {
		has := func(is func(Endpoint) bool) bool { return slices.ContainsFunc(b.Endpoints, is) }
		ep.Default4 = ep.Gateway4.IsValid() && !has(func(e Endpoint) bool { return e.Default4 })
		ep.Default6 = ep.Gateway6.IsValid() && !has(func(e Endpoint) bool { return e.Default6 })
	}
	ep.Segment = s.segmentLocked(n)
	b.Endpoints = append(b.Endpoints, ep)
	s.mu.Unlock()
	index, err := s.segment(n, ep.Segment)
	if err != nil {
		return ep, errdefs.New(errdefs.Internal, "connect", container(r.Name)+" to "+object(n.Name), err)
	}

	x := netlink.Endpoint{HostName: "og" + ep.EndpointID[:10], Bridge: index, Name: ep.Interface, MTU: n.mtu(s.o.MTU), NoIPv6: !n.EnableIPv6, Isolated: o.noICC && (ep.Segment > 0 || !seesBridges()), Gateways: ep.defaults()}
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
	for _, a := range q.LinkLocal {
		if !a.IsLinkLocalUnicast() {
			return ep, errdefs.Newf(errdefs.Invalid, "connect", container(r.Name), "%s is not a link-local address", a)
		}
		bits := 64
		if a.Is4() {
			bits = 16
		}
		x.Addrs = append(x.Addrs, netip.PrefixFrom(a, bits))
	}
	if err := netlink.Attach(r.NetNS, x, first); err != nil {
		return ep, errdefs.New(errdefs.Internal, "connect", container(r.Name)+" to "+object(n.Name), err)
	}
	return ep, nil
}

// dnsNames are what a container is called on each of its networks.
func dnsNames(id string, b *sandbox) []string {
	names := []string{b.Name}
	if len(id) >= 12 {
		names = append(names, id[:12])
	}
	if b.Hostname != "" && !slices.Contains(names, b.Hostname) {
		names = append(names, b.Hostname)
	}
	return names
}

// Rename gives a container another name on its networks.
func (s *Service) Rename(containerID, name string) error {
	s.mu.Lock()
	b := s.sandboxes[containerID]
	if b == nil {
		s.mu.Unlock()
		return nil
	}
	b.Name = strings.TrimPrefix(name, "/")
	for i := range b.Endpoints {
		b.Endpoints[i].DNSNames = dnsNames(containerID, b)
	}
	s.mu.Unlock()
	return s.save(containerID, b)
}

// defaults are the gateways that default routes of an endpoint go to.
func (e Endpoint) defaults() (out []netip.Addr) {
	if e.Default4 {
		out = append(out, e.Gateway4)
	}
	if e.Default6 {
		out = append(out, e.Gateway6)
	}
	return out
}

func (s *Service) freeInterface(b *sandbox, prefix string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s%d", prefix, i)
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
		case !want.IsValid() && p.Subnet.Addr().Is6() && ep.IPv4.IsValid() && !p.IPRange.IsValid() && p.Subnet.Bits() <= 96 && !used[sibling(ep.IPv4.Addr(), n.IPAM[0].Subnet, p.Subnet)]:
			a = sibling(ep.IPv4.Addr(), n.IPAM[0].Subnet, p.Subnet)
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
		mac := macFor(a)
		ep.MAC = net.HardwareAddr(mac[:]).String()
	}
	return nil
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
	// A short name is one of a container before it is one of a search domain.
	if len(eps) > 0 && !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		options = append(slices.Clone(options), "ndots:0")
	}
	var gateway netip.Addr
	var servers []string
	for _, e := range eps {
		s.mu.Lock()
		n := s.nets[e.NetworkID]
		if n != nil {
			for _, a := range n.bound {
				servers = append(servers, a.Addr().String())
			}
		}
		s.mu.Unlock()
		if !gateway.IsValid() {
			gateway = e.Gateway4
		}
	}
	switch {
	case len(r.DNS) > 0 && (len(servers) == 0 || !slices.Equal(reachable(r.DNS), r.DNS)):
		servers = r.DNS // nobody asks for it, or it is in the container itself
	case len(servers) == 0 && len(eps) == 0:
		servers = host.servers // the host's network, or none
	case len(servers) == 0:
		if servers = s.o.DNS; len(servers) == 0 {
			servers = reachable(host.servers)
		}
	}
	// More than three are not read (resolv.conf(5)).
	return resolvConf(servers[:min(3, len(servers))], search, options), hostsFile(r, eps, gateway)
}

// upstream are the servers to ask for names that a network does not have, for
// one of its containers.
func (s *Service) upstream(n *live, client netip.Addr) []string {
	s.mu.Lock()
	var own []string
	for _, b := range s.sandboxes {
		if slices.ContainsFunc(b.Endpoints, func(e Endpoint) bool {
			return e.NetworkID == n.ID && (e.IPv4.Addr() == client || e.IPv6.Addr() == client)
		}) {
			own = b.DNS
		}
	}
	s.mu.Unlock()
	switch {
	case n.Internal: // what is outside does not even hear of questions
		return slices.DeleteFunc(slices.Clone(own), func(server string) bool {
			a, err := netip.ParseAddr(server)
			return err != nil || !slices.ContainsFunc(n.IPAM, func(p Pool) bool { return p.Subnet.Contains(a) })
		})
	case len(own) > 0:
		return own
	case len(s.o.DNS) > 0:
		return s.o.DNS
	}
	return readHostResolver(s.o.ResolvConf).servers
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
	targets := s.targets(b)
	err := s.table.RemovePorts(targets)
	s.forgetFlows(targets)
	s.mu.Lock()
	s.letGoLocked(b)
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
	ep, err := s.connect(r, n, q, b, count == 0)
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
	if err := s.reroute(b, ep); err != nil {
		s.log.Warn("no default route after a disconnection", "container", b.Name, "error", err)
	}
	return s.save(containerID, b)
}

// reroute finds other gateways for the default routes that went by an endpoint.
func (s *Service) reroute(b *sandbox, gone Endpoint) error {
	s.mu.Lock()
	ns := b.ns
	var name4, name6 string
	var to4, to6 netip.Addr
	for i := range b.Endpoints {
		e := &b.Endpoints[i]
		if n := s.nets[e.NetworkID]; n == nil || n.Internal {
			continue
		}
		if gone.Default4 && !to4.IsValid() && e.Gateway4.IsValid() {
			e.Default4, name4, to4 = true, e.Interface, e.Gateway4
		}
		if gone.Default6 && !to6.IsValid() && e.Gateway6.IsValid() {
			e.Default6, name6, to6 = true, e.Interface, e.Gateway6
		}
	}
	s.mu.Unlock()
	if ns == nil {
		return nil
	}
	var errs []error
	if to4.IsValid() {
		errs = append(errs, netlink.DefaultRoute(ns, name4, to4))
	}
	if to6.IsValid() {
		errs = append(errs, netlink.DefaultRoute(ns, name6, to6))
	}
	return errors.Join(errs...)
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
			if p.HostPort == 0 || s.held[k] != nil {
				continue
			}
			if c, err := s.hold(k); err == nil {
				s.held[k] = c
			} else {
				s.log.Warn("a published port is used by another program too", "container", b.Name, "port", p.HostPort, "error", err)
			}
		}
	}
	var ended []*sandbox
	for _, id := range gone {
		ended = append(ended, s.sandboxes[id])
		delete(s.sandboxes, id)
	}
	var ports, stale []nft.Port
	live := make([]*sandbox, 0, len(s.sandboxes))
	for _, b := range s.sandboxes {
		live = append(live, b)
	}
	s.mu.Unlock()
	for _, b := range ended {
		stale = append(stale, s.targets(b)...)
	}
	for _, b := range live {
		ports = append(ports, s.targets(b)...)
	}
	err := errors.Join(s.table.RemovePorts(stale), s.table.AddPorts(ports))
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
func (s *Service) lookup(networkID string, client netip.Addr, name string) (out []netip.Addr) {
	s.mu.Lock()
	defer s.mu.Unlock()
	linked := s.linkedLocked(networkID, client, name)
	for id, b := range s.sandboxes { // a map's order is random: that spreads the load
		for _, e := range b.Endpoints {
			if e.NetworkID != networkID || linked != "" && id != linked || linked == "" && !answers(e, name) {
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

// linkedLocked is the container that one of a network calls by a name of its
// own; "" if none.
func (s *Service) linkedLocked(networkID string, client netip.Addr, name string) string {
	for _, b := range s.sandboxes {
		for _, e := range b.Endpoints {
			if len(e.Links) > 0 && e.NetworkID == networkID && (e.IPv4.Addr() == client || e.IPv6.Addr() == client) {
				return e.Links[name]
			}
		}
	}
	return ""
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
