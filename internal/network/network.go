// Package network connects containers: networks, their addresses and names, and
// published ports.
//
// # Model
//
// A network is a bridge with one subnet per family, an interface of the host that
// containers share (macvlan, ipvlan), "host" or "none". A sandbox is a container's
// network namespace with an endpoint on each of its networks. Names and aliases of
// endpoints are answered by a DNS server on the gateway of each bridge; where the
// host has no address on any of a container's networks, by one in its namespace.
//
// # On disk
//
// Records in the buckets "networks" and "sandboxes" of the database. Everything
// in the kernel can be made anew from them.
//
// # Guarantees
//
// Networks do not reach each other, nor does anybody outside reach a port that
// is not published. A host port belongs to one container; it is also held with a
// bound socket, so that no other program takes it meanwhile. Release deletes
// nothing in the kernel that would have to be waited for.
//
// # Concurrency
//
// Every method may be called from many goroutines. mu guards the bookkeeping and
// is not held while links are made.
//
// # Not here
//
// Netlink and nftables themselves (internal/linux/netlink, internal/linux/nft).
package network

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/linux/netlink"
	"github.com/onggi/onggi/internal/linux/nft"
	"github.com/onggi/onggi/internal/metadb"
)

const (
	networksBucket  = "networks"
	sandboxesBucket = "sandboxes"
)

// Options of a Service.
type Options struct {
	DB                         *metadb.DB
	ExecRoot                   string // tells this engine's table from another's
	BridgeName                 string // of the default network; "" = onggi0, or one of this engine alone where its ExecRoot is not the usual
	HostBridge                 bool   // that bridge is the host's: it is used as it is
	NoBridge                   bool   // there is no default network: who wants it gets none
	BIP, BIP6                  string // address and subnet of the default network's bridge
	FixedCIDR, FixedCIDR6      string // range of its containers
	MTU                        int
	IPv6, NoICC                bool
	DNS, DNSSearch, DNSOptions []string
	PublishIP                  string // default address of published ports
	Logger                     *slog.Logger
	Pools                      []AddressPool
	LoadModule                 func(name string) error // modprobe
	ResolvConf                 string                  // of the host; "" = /etc/resolv.conf
	Ending                     bool                    // only Cleanup will follow: no network is made or changed
	Events                     *events.Bus
	Defaults                   map[string]map[string]string // options of new networks, by driver
}

// Pool is a subnet of a network.
type Pool struct {
	Subnet       netip.Prefix          `json:"subnet"`
	IPRange      netip.Prefix          `json:"range,omitzero"`
	Gateway      netip.Addr            `json:"gateway,omitzero"`
	AuxAddresses map[string]netip.Addr `json:"aux,omitempty"`
}

// CreateRequest asks for a network.
type CreateRequest struct {
	Name, Driver                 string
	EnableIPv4, EnableIPv6       *bool
	Internal, Attachable         bool
	Options, Labels, IPAMOptions map[string]string
	IPAM                         []Pool
	ConfigOnly                   bool
	ConfigFrom                   string // a network to take the settings of
}

// Network describes a network.
type Network struct {
	Name                                         string    `json:"name"`
	ID                                           string    `json:"id"`
	Driver                                       string    `json:"driver"`
	Created                                      time.Time `json:"created"`
	EnableIPv4, EnableIPv6, Internal, Attachable bool
	Options                                      map[string]string `json:"options,omitempty"`
	Labels                                       map[string]string `json:"labels,omitempty"`
	IPAMOptions                                  map[string]string `json:"ipam,omitempty"`
	IPAM                                         []Pool            `json:"pools,omitempty"`
	ParentMade                                   bool              `json:",omitempty"` // its parent interface is ours to remove
	ConfigOnly                                   bool              `json:",omitempty"` // it only lends its settings to others
	ConfigFrom                                   string            `json:",omitempty"`
	Problem                                      string            `json:"-"` // why it is not as it should be; "" = it is
}

// live is a network with what it has in the kernel.
type live struct {
	Network
	index int // of the bridge
	dns   *nameServer
	bound []netip.AddrPort // where the name server listens

	raising   sync.Mutex // held while the network is brought up
	problem   error      // why it is not as it should be; guarded by the service's mu
	extending sync.Mutex // held while a segment is made
	segments  []int      // further bridges, by index; written under extending and the service's mu
}

// Service is the networks of one engine.
type Service struct {
	o     Options
	log   *slog.Logger
	table *nft.Table

	mu        sync.Mutex
	nets      map[string]*live       // by id; guarded by mu
	sandboxes map[string]*sandbox    // by container id; guarded by mu
	held      map[hostPort]io.Closer // guarded by mu
	rules     sync.Mutex             // held while the table is made anew
	choosing  sync.Mutex             // held while a new network's name and subnets are chosen and stored

	background sync.WaitGroup // what nobody waits for but Close
}

// Open reads the records and makes the default network.
func Open(ctx context.Context, o Options) (*Service, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.BridgeName == "" {
		o.BridgeName = bridgeName(o.ExecRoot)
	}
	if o.LoadModule == nil {
		o.LoadModule = func(string) error { return errors.ErrUnsupported }
	}
	if o.ResolvConf == "" {
		o.ResolvConf = "/etc/resolv.conf"
	}
	if len(o.Pools) == 0 {
		o.Pools = defaultPools
	}
	s := &Service{o: o, log: o.Logger, table: nft.New(tableName(o.ExecRoot)), nets: map[string]*live{}, sandboxes: map[string]*sandbox{}, held: map[hostPort]io.Closer{}}
	if err := s.load(); err != nil {
		return nil, errdefs.New(errdefs.Internal, "open", "networks", err)
	}
	if o.Ending {
		return s, nil
	}
	if err := s.meetOthers(); err != nil {
		return nil, err
	}
	if err := s.defaults(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// meetOthers sees to it that no rules of another engine drop what is ours. Those
// of one that is gone, with nobody on its bridges, are removed.
func (s *Service) meetOthers() error {
	others, err := s.table.Others()
	if err != nil {
		return errdefs.New(errdefs.Internal, "read", "the rules of other engines", err)
	}
	if len(others) == 0 {
		return nil
	}
	ports, err := netlink.BridgePorts()
	if err != nil {
		return errdefs.New(errdefs.Internal, "read", "the bridges of the host", err)
	}
	ours := map[string]bool{s.o.BridgeName: !s.o.NoBridge}
	for _, n := range s.list() {
		if n.Driver == "bridge" {
			ours[n.bridge()] = true
		}
	}
	for _, o := range others {
		shared, inUse, there := "", o.Owned, false
		for _, b := range o.Bridges {
			n, exists := ports[b]
			there, inUse = there || exists, inUse || n > 0
			if ours[b] {
				shared = b
			}
		}
		switch {
		case shared != "" && inUse:
			return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "use", "bridge "+shared, "another engine has it (nftables table %s), which runs, or whose containers do", o.Name),
				"another --bridge-name; or end that engine and its containers with onggid --cleanup and its other flags")
		case shared != "" || !there && !o.Owned && len(o.Bridges) > 0:
			if err := nft.New(o.Name).Remove(); err != nil {
				return errdefs.New(errdefs.Internal, "remove", "the rules of an engine that is gone", err)
			}
			s.log.Warn("an engine that is gone had left its rules: they are removed", "table", o.Name, "bridges", o.Bridges)
		}
	}
	return nil
}

// tableName and bridgeName keep engines that run side by side out of each other's
// rules and addresses.
func tableName(execRoot string) string { return nft.Prefix + suffix(execRoot) }

func bridgeName(execRoot string) string {
	if s := suffix(execRoot); s != "" {
		return "onggi" + s // 14 characters; a link's name has up to 15
	}
	return "onggi0"
}

func suffix(execRoot string) string {
	if execRoot == "" || execRoot == "/run/onggi" {
		return ""
	}
	sum := sha256.Sum256([]byte(execRoot))
	return "-" + hex.EncodeToString(sum[:4])
}

func (s *Service) load() error {
	return s.o.DB.View(func(tx *metadb.Tx) error {
		err := tx.Each(networksBucket, func(id string, raw json.RawMessage) error {
			n := &live{}
			if err := json.Unmarshal(raw, &n.Network); err != nil {
				return fmt.Errorf("record of network %s: %w", id, err)
			}
			s.nets[id] = n
			return nil
		})
		if err != nil {
			return err
		}
		return tx.Each(sandboxesBucket, func(id string, raw json.RawMessage) error {
			b := &sandbox{}
			if err := json.Unmarshal(raw, b); err != nil {
				return fmt.Errorf("record of the network of container %s: %w", id, err)
			}
			s.sandboxes[id] = b
			return nil
		})
	})
}

// defaults makes bridge, host and none, and brings every bridge up.
func (s *Service) defaults(ctx context.Context) error {
	for _, name := range []string{"host", "none"} {
		if s.byName(name) == nil {
			if err := s.put(&live{Network: Network{Name: name, ID: newID(), Driver: map[string]string{"host": "host", "none": "null"}[name], Created: time.Now().UTC(), EnableIPv4: true}}); err != nil {
				return err
			}
		}
	}
	pools, err := s.defaultPools()
	if err != nil {
		return err
	}
	if n := s.byName("bridge"); s.o.NoBridge {
		if n != nil && len(s.users(n.ID)) == 0 {
			s.forget(n)
			if err := s.down(n); err != nil {
				return err
			}
		}
	} else if n == nil || !s.fits(n, pools) || n.bridge() != s.o.BridgeName || n.EnableIPv6 != (s.o.IPv6 && hasIPv6()) && len(s.users(n.ID)) == 0 || s.lost(n) {
		if n != nil {
			s.forget(n)
			if len(s.users(n.ID)) == 0 && n.bridge() != s.o.BridgeName {
				s.down(n)
			}
		}
		if err := s.makeDefault(ctx, pools); err != nil {
			return err
		}
	}
	// Containers that run on keep their ports from the first moment.
	for _, b := range s.sandboxes {
		s.table.Expect(s.targets(b))
	}
	for _, n := range s.list() {
		if n.index != 0 {
			continue
		}
		if err := s.raise(n); err != nil {
			s.log.Error("network is not usable", "network", n.Name, "error", err, "try", errdefs.HintOf(err))
		}
	}
	if err := s.syncRules(); err != nil {
		err = errdefs.New(errdefs.Internal, "make", "the rules of networks", err)
		if errors.Is(err, fs.ErrPermission) { // the table has an owner
			err = errdefs.WithHint(err, "another engine has these rules: end it, or start this one with an --exec-root of its own; nft list ruleset shows them")
		}
		return err
	}
	s.warnOfDroppers()
	err = s.table.Watch(func(err error) {
		s.log.Warn("somebody removed rules of ours: they are made anew", "error", err)
	})
	if err != nil {
		return errdefs.New(errdefs.Internal, "watch", "the rules of networks", err)
	}
	return nil
}

func newID() string {
	var id [32]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

func (s *Service) list() []*live {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := slices.Collect(maps.Values(s.nets))
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (s *Service) byName(name string) *live {
	for _, n := range s.list() {
		if n.Name == name {
			return n
		}
	}
	return nil
}

func (s *Service) byBridge(device string) *live {
	for _, n := range s.list() {
		if n.Driver == "bridge" && n.bridge() == device {
			return n
		}
	}
	return nil
}

func (s *Service) put(n *live) error {
	if err := s.o.DB.Update(func(tx *metadb.Tx) error { return tx.Put(networksBucket, n.ID, n.Network) }); err != nil {
		return err
	}
	s.mu.Lock()
	s.nets[n.ID] = n
	s.mu.Unlock()
	return nil
}

func (s *Service) forget(n *live) {
	s.o.DB.Update(func(tx *metadb.Tx) error { return tx.Delete(networksBucket, n.ID) })
	s.mu.Lock()
	delete(s.nets, n.ID)
	s.mu.Unlock()
	if n.dns != nil {
		n.dns.stop()
	}
}

func object(name string) string { return fmt.Sprintf("network %q", name) }

// Create makes a network.
func (s *Service) Create(ctx context.Context, r CreateRequest) (Network, error) {
	if strings.TrimSpace(r.Name) == "" || strings.ContainsAny(r.Name, " \t\r\n\x00/") {
		return Network{}, errdefs.Newf(errdefs.Invalid, "create", object(r.Name), "the name is empty, or has a space or slash")
	}
	if slices.Contains([]string{"bridge", "host", "none", "default"}, r.Name) {
		return Network{}, errdefs.Newf(errdefs.Forbidden, "create", object(r.Name), "operation is not permitted on predefined %s network", r.Name)
	}
	switch r.Driver {
	case "", "default":
		r.Driver = "bridge"
	case "bridge", "macvlan", "ipvlan":
	case "host", "null":
		return Network{}, errdefs.Newf(errdefs.Forbidden, "create", object(r.Name), "only one instance of %q network is allowed", r.Driver)
	default:
		return Network{}, errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "create", object(r.Name), "could not find plugin %s in v1 plugin registry: plugin not found (there is no network driver of that name)", r.Driver), "the drivers are bridge, macvlan and ipvlan")
	}
	n, err := s.create(ctx, r)
	if err != nil {
		return Network{}, err
	}
	if n.Driver == "bridge" {
		if err := s.syncRules(); err != nil {
			s.forget(n)
			netlink.RemoveLink(n.bridge())
			return Network{}, errdefs.New(errdefs.Internal, "create", object(r.Name), err)
		}
	}
	s.tell("create", n, "")
	return n.Network, nil
}

// tell emits an event of a network.
func (s *Service) tell(action events.Action, n *live, containerID string) {
	if s.o.Events == nil {
		return
	}
	attrs := map[string]string{"name": n.Name, "type": n.Driver}
	if containerID != "" {
		attrs["container"] = containerID
	}
	s.o.Events.Emit(events.Network, action, n.ID, attrs)
}

func (s *Service) create(ctx context.Context, r CreateRequest) (*live, error) {
	n, err := s.choose(r)
	if err != nil {
		return nil, err
	}
	if err := s.up(n); err != nil {
		s.forget(n)
		if n.Driver == "bridge" {
			netlink.RemoveLink(n.bridge())
		}
		return nil, errdefs.New(errdefs.Internal, "create", object(r.Name), err)
	}
	return n, nil
}

// choose stores a new network, with a name and subnets that no other has.
func (s *Service) choose(r CreateRequest) (*live, error) {
	s.choosing.Lock()
	defer s.choosing.Unlock()
	if n := s.byName(r.Name); n != nil {
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "network with name %s already exists", r.Name), "another name, or onggi network rm "+r.Name)
	}
	if r.ConfigFrom != "" {
		if err := s.borrow(&r); err != nil {
			return nil, err
		}
	}
	n := &live{Network: Network{Name: r.Name, ID: newID(), Driver: r.Driver, Created: time.Now().UTC(), EnableIPv4: true, Internal: r.Internal, Attachable: r.Attachable,
		Options: maps.Clone(r.Options), Labels: maps.Clone(r.Labels), IPAMOptions: maps.Clone(r.IPAMOptions), ConfigOnly: r.ConfigOnly, ConfigFrom: r.ConfigFrom}}
	n.EnableIPv6 = n.Driver == "bridge" && !n.ConfigOnly && hasIPv6()
	if r.ConfigOnly {
		n.Driver = "null"
	}
	if r.EnableIPv6 == nil && n.Driver == "bridge" && slices.ContainsFunc(r.IPAM, func(p Pool) bool { return p.Subnet.IsValid() && p.Subnet.Addr().Is6() }) {
		r.EnableIPv6 = new(true)
	}
	defaults := s.o.Defaults[n.Driver]
	if n.Options[optionDefault] == "true" {
		defaults = nil // the default network has flags of its own
	}
	for _, f := range []struct {
		asked  *bool
		option string
		on     *bool
	}{{r.EnableIPv4, optionEnable4, &n.EnableIPv4}, {r.EnableIPv6, optionEnable6, &n.EnableIPv6}} {
		given := n.Options[f.option]
		if given == "" && f.asked == nil {
			given = defaults[f.option]
		}
		if given != "" {
			on, err := strconv.ParseBool(given)
			if err != nil {
				return nil, errdefs.Newf(errdefs.Invalid, "create", object(r.Name), "the option %s=%q: want true or false", f.option, given)
			}
			*f.on = on
		}
		if f.asked != nil {
			*f.on = *f.asked
		}
	}
	for k, v := range defaults {
		asked := k == optionEnable4 && r.EnableIPv4 != nil || k == optionEnable6 && r.EnableIPv6 != nil
		if _, have := n.Options[k]; !have && !asked {
			if n.Options == nil {
				n.Options = map[string]string{}
			}
			n.Options[k] = v
		}
	}
	if mtu := n.mtu(s.o.MTU); mtu > 0 && mtu < 1280 && r.EnableIPv6 == nil && n.Options[optionEnable6] == "" {
		n.EnableIPv6 = false // its packets would not fit (RFC 8200)
	}
	switch {
	case n.ConfigOnly:
		n.IPAM = r.IPAM
		return n, s.put(n)
	case !n.EnableIPv4 && !n.EnableIPv6 && !n.shares():
		return nil, errdefs.Newf(errdefs.Invalid, "create", object(r.Name), "IPv4 or IPv6 must be enabled")
	case n.EnableIPv6 && !hasIPv6():
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.Unavailable, "create", object(r.Name), "IPv6 is switched off on this host"), "sysctl net.ipv6.conf.all.disable_ipv6")
	}
	if _, err := readSettings(n.Options, n.Internal); err != nil {
		return nil, errdefs.New(errdefs.Invalid, "create", object(r.Name), err)
	}
	if n.shares() {
		if err := s.checkShare(n); err != nil {
			return nil, err
		}
	} else if x := s.byBridge(n.bridge()); x != nil {
		return nil, errdefs.Newf(errdefs.Conflict, "create", object(r.Name), "the bridge %s belongs to the network %s", n.bridge(), x.Name)
	}
	pools, err := s.pools(n, r.IPAM)
	if err != nil {
		return nil, err
	}
	n.IPAM = pools
	if err := s.put(n); err != nil {
		return nil, errdefs.New(errdefs.KindOf(err), "create", object(r.Name), err)
	}
	return n, nil
}

// borrow completes a request with the settings of a network that lends them.
func (s *Service) borrow(r *CreateRequest) error {
	from, err := s.find(r.ConfigFrom)
	switch {
	case err != nil:
		return err
	case !from.ConfigOnly:
		return errdefs.Newf(errdefs.Invalid, "create", object(r.Name), "the network %s is no configuration: it was made without --config-only", from.Name)
	case len(r.IPAM) > 0 || len(r.Options) > 0 || r.EnableIPv6 != nil || r.Internal:
		return errdefs.Newf(errdefs.Invalid, "create", object(r.Name), "user-specified configurations are not supported if the network depends on a configuration network")
	}
	r.ConfigFrom = from.Name
	r.IPAM, r.Options, r.IPAMOptions, r.Internal = from.IPAM, from.Options, from.IPAMOptions, from.Internal
	r.EnableIPv4, r.EnableIPv6 = new(from.EnableIPv4), nil
	if from.EnableIPv6 {
		r.EnableIPv6 = new(true)
	}
	return nil
}

// find returns a network by id, name, or the beginning of an id.
func (s *Service) find(nameOrID string) (*live, error) {
	if nameOrID == "default" || nameOrID == "" {
		nameOrID = "bridge"
	}
	var prefix []*live
	list := s.list()
	for _, same := range []func(*live) bool{func(n *live) bool { return n.ID == nameOrID }, func(n *live) bool { return n.Name == nameOrID }} {
		if i := slices.IndexFunc(list, same); i >= 0 {
			return list[i], nil
		}
	}
	for _, n := range list {
		if strings.HasPrefix(n.ID, nameOrID) {
			prefix = append(prefix, n)
		}
	}
	switch len(prefix) {
	case 1:
		return prefix[0], nil
	case 0:
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "", "", "network %s not found", nameOrID), "onggi network ls")
	}
	return nil, errdefs.Newf(errdefs.Invalid, "", "", "network %s is ambiguous (%d matches found on ID prefix)", nameOrID, len(prefix))
}

// Get describes a network.
func (s *Service) Get(nameOrID string) (Network, error) {
	n, err := s.find(nameOrID)
	if err != nil {
		return Network{}, err
	}
	return s.describeNetwork(n), nil
}

func (s *Service) describeNetwork(n *live) Network {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := n.Network
	if n.problem != nil {
		out.Problem = n.problem.Error()
	}
	return out
}

// List describes the networks that match filters: driver, id, name, label,
// scope, type, dangling.
func (s *Service) List(filters map[string][]string) ([]Network, error) {
	for k := range filters {
		if !slices.Contains([]string{"driver", "id", "name", "label", "scope", "type", "dangling"}, k) {
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "invalid filter '%s'", k)
		}
	}
	var out []Network
	for _, n := range s.list() {
		if s.matches(n, filters) {
			out = append(out, s.describeNetwork(n))
		}
	}
	return out, nil
}

func (s *Service) matches(n *live, f map[string][]string) bool {
	any := func(key string, ok func(string) bool) bool {
		return len(f[key]) == 0 || slices.ContainsFunc(f[key], ok)
	}
	builtin := slices.Contains([]string{"bridge", "host", "none"}, n.Name)
	return any("driver", func(v string) bool { return n.Driver == v }) &&
		any("id", func(v string) bool { return strings.HasPrefix(n.ID, v) }) &&
		any("name", func(v string) bool { return strings.Contains(n.Name, v) }) &&
		any("scope", func(v string) bool { return v == "local" }) &&
		any("type", func(v string) bool { return (v == "builtin") == builtin }) &&
		any("dangling", func(v string) bool { return (v == "true" || v == "1") == (!builtin && len(s.users(n.ID)) == 0) }) &&
		hasLabels(n.Labels, f["label"])
}

func hasLabels(have map[string]string, want []string) bool {
	for _, l := range want {
		k, val, exact := strings.Cut(l, "=")
		got, ok := have[k]
		if !ok || exact && got != val {
			return false
		}
	}
	return true
}

// users are the containers on a network.
func (s *Service) users(id string) (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.sandboxes {
		for _, e := range b.Endpoints {
			if e.NetworkID == id {
				names = append(names, b.Request.Name)
			}
		}
	}
	sort.Strings(names)
	return names
}

// Remove removes a network that no container is on.
func (s *Service) Remove(ctx context.Context, nameOrID string) error {
	n, err := s.find(nameOrID)
	if err != nil {
		return err
	}
	if slices.Contains([]string{"bridge", "host", "none"}, n.Name) {
		return errdefs.Newf(errdefs.Forbidden, "remove", object(n.Name), "%s is a pre-defined network and cannot be removed", n.Name)
	}
	if users := s.users(n.ID); len(users) > 0 {
		return errdefs.WithHint(errdefs.Newf(errdefs.Forbidden, "remove", object(n.Name), "network %s has active endpoints: %s", n.Name, strings.Join(users, ", ")), "onggi network disconnect, or onggi rm -f the containers")
	}
	if i := slices.IndexFunc(s.list(), func(x *live) bool { return n.ConfigOnly && x.ConfigFrom == n.Name }); i >= 0 {
		return errdefs.Newf(errdefs.Forbidden, "remove", object(n.Name), "configuration network %q is in use by the network %s", n.Name, s.list()[i].Name)
	}
	s.forget(n)
	if n.Driver == "bridge" {
		if err := s.syncRules(); err != nil {
			s.log.Error("rules not updated", "error", err)
		}
	}
	if err := s.down(n); err != nil {
		return errdefs.New(errdefs.Internal, "remove", object(n.Name), err)
	}
	s.tell("destroy", n, "")
	return nil
}

// Prune removes the networks that nothing uses.
func (s *Service) Prune(ctx context.Context, filters map[string][]string) (names []string, err error) {
	var before time.Time
	for k, v := range filters {
		switch k {
		case "label", "label!":
		case "until":
			if before, err = until(v[0]); err != nil {
				return nil, err
			}
		default:
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "invalid filter '%s'", k)
		}
	}
	for _, n := range s.list() {
		if slices.Contains([]string{"bridge", "host", "none"}, n.Name) || len(s.users(n.ID)) > 0 || !hasLabels(n.Labels, filters["label"]) ||
			len(filters["label!"]) > 0 && hasLabels(n.Labels, filters["label!"]) || !before.IsZero() && n.Created.After(before) {
			continue
		}
		if err := s.Remove(ctx, n.ID); err == nil {
			names = append(names, n.Name)
		}
	}
	return names, nil
}

// until reads a duration back, a time, or seconds.
func until(v string) (time.Time, error) {
	if d, err := time.ParseDuration(v); err == nil {
		return time.Now().Add(-d), nil
	}
	if t, err := time.Parse(time.RFC3339, v); err == nil {
		return t, nil
	}
	if n, err := strconv.ParseFloat(v, 64); err == nil {
		return time.Unix(int64(n), 0), nil
	}
	return time.Time{}, errdefs.Newf(errdefs.Invalid, "", "", "invalid filter 'until=%s': neither a time nor a duration", v)
}

// Close stops the name servers and lets host ports go; containers keep their
// links and rules.
func (s *Service) Close() error {
	s.table.Close()
	s.background.Wait()
	for _, n := range s.list() {
		if n.dns != nil {
			n.dns.stop()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.sandboxes {
		if b.dns != nil {
			b.dns.stop()
		}
	}
	for k, c := range s.held {
		c.Close()
		delete(s.held, k)
	}
	return nil
}

// Cleanup removes everything from the kernel: bridges and rules.
func (s *Service) Cleanup(ctx context.Context) error {
	s.Close()
	var first error
	for _, n := range s.list() {
		if err := s.down(n); err != nil && first == nil {
			first = err
		}
	}
	if err := s.table.Remove(); err != nil && first == nil {
		first = err
	}
	return first
}
