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
	Links      []Link // names of others that this container alone uses
	DriverOpts map[string]string
	GwPriority int
	LinkLocal  []netip.Addr // further addresses
}

// A Link is another name for a container.
type Link struct{ Target, Alias string }

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
	NetNS                                   *os.File          `json:"-"`
	Endpoints                               []EndpointRequest `json:"-"`
	Ports                                   []PortRequest     `json:",omitempty"`
	DNS, DNSSearch, DNSOptions, ExtraHosts  []string          `json:",omitempty"`
	Links                                   []Link            `json:",omitempty"` // that are in the hosts file too; Target is an ID
	Exposed                                 []PortRequest     `json:",omitempty"` // what links to it open
}

// Endpoint is a place on a network.
type Endpoint struct {
	NetworkID, NetworkName, EndpointID string
	IPv4, IPv6                         netip.Prefix `json:",omitzero"`
	Gateway4, Gateway6                 netip.Addr   `json:",omitzero"`
	MAC                                string
	Aliases, DNSNames                  []string
	Links                              []Link `json:",omitempty"`
	Interface                          string // in the container
	Segment                            int    `json:",omitempty"` // of the network's bridges
	GwPriority                         int    `json:",omitempty"`
	Default4, Default6                 bool   `json:",omitempty"` // the default route goes here
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
	Request   SandboxRequest // what was asked for, but for the endpoints
	Endpoints []Endpoint
	Ports     []PortBinding
	ns        *os.File    // our descriptor of the namespace; nil = unknown, or the host's
	dns       *nameServer // in the namespace, where no network has one
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

func (b *sandbox) on(networkID string) int {
	return slices.IndexFunc(b.Endpoints, func(e Endpoint) bool { return e.NetworkID == networkID })
}

type hostPort struct {
	proto string
	ip    netip.Addr
	port  uint16
}

func container(name string) string { return fmt.Sprintf("container %q", strings.TrimPrefix(name, "/")) }

func (b *sandbox) object() string { return container(b.Request.Name) }

// Attach builds a container's network in its namespace.
func (s *Service) Attach(ctx context.Context, r SandboxRequest) (out Sandbox, err error) {
	var u undo.Stack
	defer func() { u.Run(ctx, &err) }()
	b := &sandbox{Request: r}
	b.Request.Name, b.Request.NetNS, b.Request.Endpoints = strings.TrimPrefix(r.Name, "/"), nil, nil
	b.keep(r.NetNS)
	if err := s.Release(ctx, r.ContainerID); err != nil { // of a start that was cut off
		return out, err
	}
	s.mu.Lock()
	s.sandboxes[r.ContainerID] = b
	s.mu.Unlock()
	u.Push(func(ctx context.Context) error { return s.Release(ctx, r.ContainerID) })

	var nets []*live
	for _, q := range r.Endpoints {
		if s.o.NoBridge && (q.Network == "bridge" || q.Network == "default") {
			q.Network = "none"
		}
		n, err := s.find(q.Network)
		if err == nil {
			err = s.usable(n)
		}
		if err == nil {
			err = s.reserveEndpoint(n, q, b, r.Endpoints)
		}
		if err != nil {
			return out, err
		}
		nets = append(nets, n)
	}
	if err := s.openable(b); err != nil {
		return out, err
	}
	s.mu.Lock()
	s.routeLocked(b)
	eps := slices.Clone(b.Endpoints)
	s.mu.Unlock()
	first := true
	for i, ep := range eps {
		if nets[i].Driver == "host" || nets[i].Driver == "null" {
			continue
		}
		if err := s.plug(b, nets[i], ep, r.Endpoints[i], ep.defaults(false), first); err != nil {
			return out, err
		}
		first = false
	}
	if first && r.NetNS != nil {
		if err := netlink.LoopbackUp(r.NetNS); err != nil {
			return out, errdefs.New(errdefs.Internal, "connect", b.object(), err)
		}
	}
	if err := s.publish(b); err != nil {
		return out, err
	}
	if err := s.relink(b.Request, b.Endpoints); err != nil {
		return out, err
	}
	if err := s.names(b); err != nil {
		return out, errdefs.New(errdefs.Internal, "connect", b.object(), err)
	}
	if err := s.save(r.ContainerID, b); err != nil {
		return out, err
	}
	u.Disarm()
	for i := range eps {
		s.tell("connect", nets[i], r.ContainerID)
	}
	return s.describe(b), nil
}

// describe is what the container shall see, and others of it.
func (s *Service) describe(b *sandbox) (out Sandbox) {
	s.mu.Lock()
	out = Sandbox{Endpoints: slices.Clone(b.Endpoints), Ports: slices.DeleteFunc(slices.Clone(b.Ports), func(p PortBinding) bool { return p.HostPort == 0 })}
	s.mu.Unlock()
	out.ResolvConf, out.Hosts = s.files(b)
	return out
}

// Sandbox describes a container's network as it is now; false: it has none.
func (s *Service) Sandbox(containerID string) (Sandbox, bool) {
	s.mu.Lock()
	b := s.sandboxes[containerID]
	s.mu.Unlock()
	if b == nil {
		return Sandbox{}, false
	}
	return s.describe(b), true
}

// reserveEndpoint gives a container a place on a network. all are the requests
// that come with this one.
// usable brings a network up that could not be when the engine started.
func (s *Service) usable(n *live) error {
	s.mu.Lock()
	down := n.Driver == "bridge" && n.index == 0
	s.mu.Unlock()
	if !down {
		return nil
	}
	if err := s.raise(n); err != nil {
		return err
	}
	return s.syncRules()
}

func (s *Service) reserveEndpoint(n *live, q EndpointRequest, b *sandbox, all []EndpointRequest) error {
	what := b.object() + " to " + object(n.Name)
	ep := Endpoint{NetworkID: n.ID, NetworkName: n.Name, EndpointID: newID(), Aliases: slices.Clone(q.Aliases), Links: slices.Clone(q.Links), GwPriority: q.GwPriority}
	ep.DNSNames = b.Request.dnsNames(ep.Aliases)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.Driver == "host" || n.Driver == "null" {
		b.Endpoints = append(b.Endpoints, ep)
		return nil
	}
	if n.Driver == "bridge" && n.index == 0 {
		return errdefs.Newf(errdefs.Unavailable, "connect", b.object(), "the network %s has no bridge", n.Name)
	}
	var err error
	if ep.Interface, err = freeInterface(b, n.settings().prefix, q, all); err != nil {
		return errdefs.New(errdefs.KindOf(err), "connect", what, err)
	}
	if err := s.addressesLocked(n, q, &ep); err != nil {
		return errdefs.New(errdefs.KindOf(err), "connect", what, err)
	}
	if n.Driver == "bridge" {
		ep.Segment = s.segmentLocked(n)
	}
	b.Endpoints = append(b.Endpoints, ep)
	return nil
}

// dnsNames are what an endpoint is known by, in Docker's order.
func (r SandboxRequest) dnsNames(aliases []string) (out []string) {
	names := append([]string{strings.TrimPrefix(r.Name, "/")}, aliases...)
	for _, name := range append(names, r.ContainerID[:min(12, len(r.ContainerID))], r.Hostname) {
		if name != "" && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}

// plug makes the interface of a reserved endpoint.
func (s *Service) plug(b *sandbox, n *live, ep Endpoint, q EndpointRequest, routes []netlink.DefaultRoute, first bool) error {
	fail := func(kind errdefs.Kind, err error) error {
		return errdefs.New(kind, "connect", b.object()+" to "+object(n.Name), err)
	}
	o := n.settings()
	x := netlink.Endpoint{Name: ep.Interface, MTU: n.mtu(s.o.MTU), NoIPv6: !n.EnableIPv6, Routes: routes}
	var err error
	if x.Sysctls, err = endpointSysctls(q.DriverOpts); err != nil {
		return fail(errdefs.Invalid, err)
	}
	if x.MAC, err = net.ParseMAC(ep.MAC); err != nil {
		return fail(errdefs.Invalid, fmt.Errorf("the MAC address %q: %w", ep.MAC, err))
	}
	for _, p := range []netip.Prefix{ep.IPv4, ep.IPv6} {
		if p.IsValid() {
			x.Addrs = append(x.Addrs, p)
		}
	}
	for _, a := range q.LinkLocal {
		if !a.IsLinkLocalUnicast() {
			return fail(errdefs.Invalid, fmt.Errorf("%s is not a link-local address", a))
		}
		x.Addrs = append(x.Addrs, netip.PrefixFrom(a, map[bool]int{true: 16, false: 64}[a.Is4()]))
	}
	if n.Driver == "bridge" {
		x.HostName, x.Isolated = "og"+ep.EndpointID[:10], o.noICC && (ep.Segment > 0 || !seesBridges())
		// To a port of its own: redirected on the bridge, it goes back where it came from.
		x.Hairpin = len(b.Request.Ports) > 0 && seesBridges()
		x.Bridge, err = s.segment(n, ep.Segment)
	} else {
		x.Share = new(n.share())
		_, err = n.ensureParent() // somebody may have removed it meanwhile
	}
	if err != nil {
		return fail(errdefs.Internal, err)
	}
	if err := netlink.Attach(b.ns, x, first); err != nil {
		return fail(errdefs.Internal, fmt.Errorf("failed to set up container networking: %w", err))
	}
	return nil
}

// Options of an endpoint, by Docker's names.
const (
	optionIfname  = "com.docker.network.endpoint.ifname"
	optionSysctls = "com.docker.network.endpoint.sysctls"
)

// freeInterface is the name of a container's next interface.
func freeInterface(b *sandbox, prefix string, q EndpointRequest, all []EndpointRequest) (string, error) {
	taken := func(name string) bool {
		return slices.ContainsFunc(b.Endpoints, func(e Endpoint) bool { return e.Interface == name })
	}
	if name := q.DriverOpts[optionIfname]; name != "" {
		if !interfaceName(name) || name == "lo" {
			return "", errdefs.Newf(errdefs.Invalid, "", "", "the option %s=%q: want an interface's name", optionIfname, name)
		}
		if taken(name) {
			return "", errdefs.Newf(errdefs.Conflict, "", "", "error renaming interface to %s: file exists: the container has an interface of that name", name)
		}
		return name, nil
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s%d", prefix, i)
		if !taken(name) && !slices.ContainsFunc(all, func(q EndpointRequest) bool { return q.DriverOpts[optionIfname] == name }) {
			return name, nil
		}
	}
}

// endpointSysctls reads the option: net.ipv4.conf.IFNAME.log_martians=1,…
func endpointSysctls(opts map[string]string) (out []string, err error) {
	if opts[optionSysctls] == "" {
		return nil, nil
	}
	for _, one := range strings.Split(opts[optionSysctls], ",") {
		key, value, ok := strings.Cut(one, "=")
		key = strings.Replace(key, ".ifname.", ".IFNAME.", 1) // Docker's client writes it so
		parts := strings.Split(key, ".")
		plain := !strings.ContainsFunc(key, func(c rune) bool {
			return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-')
		})
		if !ok || !plain || len(parts) < 5 || parts[0] != "net" || !slices.Contains([]string{"ipv4", "ipv6", "mpls"}, parts[1]) || parts[3] != "IFNAME" || slices.Contains(parts, "") {
			return nil, fmt.Errorf("the option %s has %q: want net.ipv4.conf.IFNAME.NAME=VALUE", optionSysctls, one)
		}
		out = append(out, key+"="+value)
	}
	return out, nil
}

func (s *Service) save(id string, b *sandbox) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.o.DB.Update(func(tx *metadb.Tx) error { return tx.Put(sandboxesBucket, id, b) })
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
	ns, dns := b.ns, b.dns
	b.ns, b.dns = nil, nil
	var nets []*live
	for _, e := range b.Endpoints {
		nets = append(nets, s.nets[e.NetworkID])
	}
	s.mu.Unlock()
	if dns != nil {
		dns.stop()
	}
	if ns != nil {
		ns.Close()
	}
	err = errors.Join(err, s.relink(b.Request, b.Endpoints), s.o.DB.Update(func(tx *metadb.Tx) error { return tx.Delete(sandboxesBucket, containerID) }))
	for _, n := range nets {
		if n != nil {
			s.tell("disconnect", n, containerID)
		}
	}
	return err
}

// Connect adds a running container to a network.
func (s *Service) Connect(ctx context.Context, containerID string, q EndpointRequest) (out Sandbox, err error) {
	n, err := s.find(q.Network)
	if err != nil {
		return out, err
	}
	s.mu.Lock()
	b := s.sandboxes[containerID]
	if b == nil || b.ns == nil {
		s.mu.Unlock()
		return out, errdefs.Newf(errdefs.Conflict, "connect", fmt.Sprintf("container %.12s", containerID), "it is not running, or has no network namespace of its own")
	}
	have := b.on(n.ID) >= 0
	first := len(b.Endpoints) == 0
	s.mu.Unlock()
	switch {
	case n.Driver == "host" || n.Driver == "null":
		return out, errdefs.Newf(errdefs.Forbidden, "connect", b.object(), "container cannot be connected to the network %s", n.Name)
	case have:
		return out, errdefs.Newf(errdefs.Forbidden, "connect", b.object(), "endpoint with name %s already exists in network %s", b.Request.Name, n.Name)
	}
	before := s.targets(b)
	if err := s.reserveEndpoint(n, q, b, nil); err != nil {
		return out, err
	}
	s.mu.Lock()
	had4, had6 := b.hasDefaults()
	s.routeLocked(b)
	ep := b.Endpoints[b.on(n.ID)]
	s.mu.Unlock()
	var u undo.Stack
	defer func() { u.Run(ctx, &err) }()
	u.Push(func(context.Context) error { return s.unplug(b, n, before) })
	routes := ep.defaults(false)
	for i := range routes {
		routes[i].Replace = !routes[i].IPv6 && had4 || routes[i].IPv6 && had6
	}
	if err := s.plug(b, n, ep, q, routes, first); err != nil {
		return out, err
	}
	if err := s.relink(b.Request, []Endpoint{ep}); err != nil {
		return out, err
	}
	if err := s.redirect(b, before); err != nil {
		return out, err
	}
	if err := s.publish(b); err != nil {
		return out, err
	}
	if err := s.save(containerID, b); err != nil {
		return out, err
	}
	u.Disarm()
	s.tell("connect", n, containerID)
	return s.describe(b), nil
}

// unplug takes an endpoint away: its interface, and what led by it.
func (s *Service) unplug(b *sandbox, n *live, before []nft.Port) error {
	s.mu.Lock()
	i := b.on(n.ID)
	if i < 0 {
		s.mu.Unlock()
		return nil
	}
	ep := b.Endpoints[i]
	b.Endpoints = slices.Delete(b.Endpoints, i, i+1)
	ns := b.ns
	s.routeLocked(b)
	left := slices.Clone(b.Endpoints)
	s.mu.Unlock()
	err := errors.Join(s.redirect(b, before), s.relink(b.Request, []Endpoint{ep}))
	switch {
	case n.Driver == "bridge":
		err = errors.Join(err, netlink.RemoveLink("og"+ep.EndpointID[:10]))
	case ns != nil && ep.Interface != "":
		err = errors.Join(err, netlink.RemoveLinkIn(ns, ep.Interface))
	}
	for _, e := range left {
		for _, r := range e.defaults(true) {
			if ns == nil || !ep.Default4 && !r.IPv6 || !ep.Default6 && r.IPv6 {
				continue
			}
			if rerr := netlink.SetDefaultRoute(ns, e.Interface, r); rerr != nil {
				s.log.Warn("no default route after a disconnection", "container", b.Request.Name, "error", rerr)
			}
		}
	}
	return err
}

// redirect sends published ports to where they lead now.
func (s *Service) redirect(b *sandbox, before []nft.Port) error {
	after := s.targets(b)
	without := func(list, other []nft.Port) []nft.Port {
		return slices.DeleteFunc(slices.Clone(list), func(p nft.Port) bool { return slices.Contains(other, p) })
	}
	if err := s.table.RemovePorts(without(before, after)); err != nil {
		return err
	}
	if len(after) == 0 && len(before) > 0 { // nothing left to lead to
		s.mu.Lock()
		s.letGoLocked(b)
		b.Ports = nil
		s.mu.Unlock()
	}
	return s.table.AddPorts(without(after, before))
}

// Disconnect takes a container off a network.
func (s *Service) Disconnect(ctx context.Context, containerID, network string, force bool) (Sandbox, error) {
	n, err := s.find(network)
	if err != nil {
		return Sandbox{}, err
	}
	s.mu.Lock()
	b := s.sandboxes[containerID]
	have := b != nil && b.on(n.ID) >= 0
	s.mu.Unlock()
	if b == nil {
		return Sandbox{}, nil
	}
	if !have {
		return Sandbox{}, errdefs.Newf(errdefs.Forbidden, "disconnect", b.object(), "container is not connected to network %s", n.Name)
	}
	if err := s.unplug(b, n, s.targets(b)); err != nil {
		return Sandbox{}, err
	}
	if err := s.names(b); err != nil {
		s.log.Warn("no name server after a disconnection", "container", b.Request.Name, "error", err)
	}
	if err := s.save(containerID, b); err != nil {
		return Sandbox{}, err
	}
	s.tell("disconnect", n, containerID)
	return s.describe(b), nil
}

// Rename gives a container's network another name for it; one without a network
// is no error.
func (s *Service) Rename(ctx context.Context, containerID, name string) (Sandbox, error) {
	return s.amend(containerID, func(b *sandbox) {
		b.Request.Name = strings.TrimPrefix(name, "/")
		for i := range b.Endpoints {
			b.Endpoints[i].DNSNames = b.Request.dnsNames(b.Endpoints[i].Aliases)
		}
	})
}

// SetLinks replaces a container's links.
func (s *Service) SetLinks(ctx context.Context, containerID string, links []Link) (Sandbox, error) {
	var before SandboxRequest
	var eps []Endpoint
	out, err := s.amend(containerID, func(b *sandbox) {
		before, eps = b.Request, slices.Clone(b.Endpoints)
		b.Request.Links = links
	})
	if err == nil {
		err = s.relink(before, eps)
	}
	return out, err
}

// relink makes the rules for links anew where a container's own, or those to it,
// open what a network keeps closed.
func (s *Service) relink(r SandboxRequest, eps []Endpoint) error {
	s.mu.Lock()
	matters := len(r.Links) > 0
	for _, other := range s.sandboxes {
		matters = matters || slices.ContainsFunc(other.Request.Links, func(l Link) bool { return l.Target == r.ContainerID })
	}
	matters = matters && slices.ContainsFunc(eps, func(e Endpoint) bool {
		n := s.nets[e.NetworkID]
		return n != nil && n.Driver == "bridge" && n.settings().noICC
	})
	s.mu.Unlock()
	if !matters {
		return nil
	}
	if err := s.syncRules(); err != nil {
		return errdefs.New(errdefs.Internal, "link", container(r.Name), err)
	}
	return nil
}

// linksLocked are the ways that links open on a network.
func (s *Service) linksLocked(n *live) (out []nft.Link) {
	for _, b := range s.sandboxes {
		for _, l := range b.Request.Links {
			target := s.sandboxes[l.Target]
			if target == nil || b.on(n.ID) < 0 || target.on(n.ID) < 0 {
				continue
			}
			from, to := b.Endpoints[b.on(n.ID)], target.Endpoints[target.on(n.ID)]
			for _, p := range target.Request.Exposed {
				for _, pair := range [][2]netip.Prefix{{from.IPv4, to.IPv4}, {from.IPv6, to.IPv6}} {
					if pair[0].IsValid() && pair[1].IsValid() {
						out = append(out, nft.Link{From: pair[0].Addr(), To: netip.AddrPortFrom(pair[1].Addr(), p.Port), Proto: protocols[p.Proto]})
					}
				}
			}
		}
	}
	return out
}

func (s *Service) amend(containerID string, change func(*sandbox)) (Sandbox, error) {
	s.mu.Lock()
	b := s.sandboxes[containerID]
	if b == nil {
		s.mu.Unlock()
		return Sandbox{}, nil
	}
	change(b)
	s.mu.Unlock()
	return s.describe(b), s.save(containerID, b)
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
				s.log.Warn("a published port is used by another program too", "container", b.Request.Name, "port", p.HostPort, "error", err)
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
		if err := s.names(b); err != nil {
			s.log.Warn("no name server for a container", "container", b.Request.Name, "error", err)
		}
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
