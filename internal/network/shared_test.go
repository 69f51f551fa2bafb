package network

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/netlink"
)

func create(t *testing.T, s *Service, r CreateRequest) Network {
	t.Helper()
	n, err := s.Create(ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func on(names ...string) func(*SandboxRequest) {
	return func(r *SandboxRequest) {
		r.Endpoints = nil
		for _, n := range names {
			r.Endpoints = append(r.Endpoints, EndpointRequest{Network: n})
		}
	}
}

// lan is a pool of the network beside the host (see neighbour).
func lan(within string) []Pool {
	return []Pool{{Subnet: netip.MustParsePrefix("192.0.2.0/24"), IPRange: netip.MustParsePrefix(within), Gateway: netip.MustParseAddr("192.0.2.1")}}
}

func TestSharedInterfaces(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	machine := neighbour(t)
	serve(t, machine, 80, "machine")
	for mode, within := range map[string]string{"bridge": "192.0.2.64/28", "private": "192.0.2.80/28"} {
		create(t, s, CreateRequest{Name: "lan-" + mode, Driver: "macvlan", Options: map[string]string{"parent": "lan0", "macvlan_mode": mode}, IPAM: lan(within)})
		one, ns := attach(t, s, mode+"1", on("lan-"+mode))
		two, ns2 := attach(t, s, mode+"2", on("lan-"+mode))
		e := two.Endpoints[0]
		if !netip.MustParsePrefix(within).Contains(e.IPv4.Addr()) || e.IPv6.IsValid() || e.Gateway4.String() != "192.0.2.1" || !e.Default4 {
			t.Errorf("endpoint %+v", e)
		}
		serve(t, ns2, 80, "two")
		if got := reaches(ns, "192.0.2.2:80", "machine"); got != "machine" {
			t.Errorf("%s: the machine on the same network: %q", mode, got)
		}
		want := map[string]string{"bridge": "two", "private": "no"}[mode]
		if got := reaches(ns, e.IPv4.Addr().String()+":80", want); got != want {
			t.Errorf("%s: a neighbour: %q, want %q", mode, got, want)
		}
		if got := reaches(machine, e.IPv4.Addr().String()+":80", "two"); got != "two" {
			t.Errorf("%s: from the machine: %q", mode, got)
		}
		// Names are answered within the container, and port 53 is left to it.
		if !strings.Contains(string(one.ResolvConf), "nameserver 127.0.0.11\n") {
			t.Errorf("resolv.conf:\n%s", one.ResolvConf)
		}
		serve(t, ns, 53, "its own")
		if got, _ := ask(t, ns, "127.0.0.11", mode+"2", dns.TypeA); len(got) != 1 || got[0] != e.IPv4.Addr().String() {
			t.Errorf("%s: the name of a neighbour: %v", mode, got)
		}
		if got := reaches(machine, one.Endpoints[0].IPv4.Addr().String()+":53", "its own"); got != "its own" {
			t.Errorf("%s: port 53 of the container: %q", mode, got)
		}
	}
	// Both networks are one: no address is given out twice.
	_, err := s.Attach(ctx, SandboxRequest{ContainerID: "twice", Name: "twice", NetNS: netns(t), Endpoints: []EndpointRequest{{Network: "lan-private", IPv4: netip.MustParseAddr("192.0.2.64")}}})
	if !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("an address of the other network: %v", err)
	}

	for _, c := range []struct {
		kind errdefs.Kind
		r    CreateRequest
	}{
		{errdefs.Conflict, CreateRequest{Name: "x", Driver: "macvlan", Options: map[string]string{"parent": "lan0", "macvlan_mode": "passthru"}}},
		{errdefs.Invalid, CreateRequest{Name: "x", Driver: "macvlan", Options: map[string]string{"parent": "lan0", "macvlan_mode": "nonsense"}}},
		{errdefs.Invalid, CreateRequest{Name: "x", Driver: "macvlan", Options: map[string]string{"parent": "lo"}}},
		{errdefs.Internal, CreateRequest{Name: "x", Driver: "macvlan", Options: map[string]string{"parent": "nosuchlink"}}},
	} {
		if _, err := s.Create(ctx, c.r); !errdefs.Is(err, c.kind) {
			t.Errorf("%v: %v", c.r.Options, err)
		}
	}
	if _, err := s.Get("x"); err == nil {
		t.Error("a network was made that could not be")
	}
}

func TestSharedInterfaceOfItsOwn(t *testing.T) {
	s := service(t, t.TempDir(), Options{DNS: []string{"192.0.2.2"}})
	drivers := []string{"macvlan"}
	if err := (netlink.Share{Driver: "ipvlan"}).Supported(); err == nil {
		drivers = append(drivers, "ipvlan")
	} else if _, err := s.Create(ctx, CreateRequest{Name: "x", Driver: "ipvlan"}); !errdefs.Is(err, errdefs.Unsupported) || !strings.Contains(err.Error(), "ipvlan") {
		t.Errorf("ipvlan, which the kernel has not: %v", err)
	}
	for _, driver := range drivers {
		n := create(t, s, CreateRequest{Name: driver, Driver: driver, EnableIPv6: new(true)})
		one, ns := attach(t, s, driver+"1", on(driver))
		two, ns2 := attach(t, s, driver+"2", on(driver))
		e := two.Endpoints[0]
		if one.Endpoints[0].Default4 || one.Endpoints[0].Gateway4.IsValid() {
			t.Errorf("%s: one that leads nowhere has a gateway: %+v", driver, one.Endpoints[0])
		}
		serve(t, ns2, 80, "two")
		for _, a := range []netip.Addr{e.IPv4.Addr(), e.IPv6.Addr()} {
			if got := reaches(ns, netip.AddrPortFrom(a, 80).String(), "two"); got != "two" {
				t.Errorf("%s: to %s: %q", driver, a, got)
			}
		}
		if _, rcode := ask(t, ns, "127.0.0.11", "example.org", dns.TypeA); rcode != dns.RcodeServerFailure {
			t.Errorf("%s: an outside name: %s", driver, dns.RcodeToString[rcode])
		}
		for _, name := range []string{driver + "1", driver + "2"} {
			if err := s.Release(ctx, fmt.Sprintf("%064s", name)); err != nil {
				t.Fatal(err)
			}
		}
		parent := n.share().Parent
		if l, err := netlink.Links(parent); err != nil || len(l) != 1 {
			t.Errorf("%s: its interface: %v, %v", driver, l, err)
		}
		if err := s.Remove(ctx, driver); err != nil {
			t.Fatal(err)
		}
		if l, err := netlink.Links(parent); err != nil || len(l) != 0 {
			t.Errorf("%s: left behind: %v, %v", driver, l, err)
		}
	}
}

func TestIsolatedNetworkHasNames(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	create(t, s, CreateRequest{Name: "shut", Internal: true, EnableIPv6: new(false), Options: map[string]string{optionMode4: "isolated"},
		IPAM: []Pool{{Subnet: netip.MustParsePrefix("198.51.100.0/31")}}}) // two addresses, both for containers
	_, ns := attach(t, s, "one", on("shut"))
	two, ns2 := attach(t, s, "two", on("shut"))
	serve(t, ns2, 80, "two")
	got, _ := ask(t, ns, "127.0.0.11", "two", dns.TypeA)
	if len(got) != 1 || got[0] != two.Endpoints[0].IPv4.Addr().String() {
		t.Fatalf("the name of a neighbour: %v", got)
	}
	if got := reaches(ns, got[0]+":80", "two"); got != "two" {
		t.Errorf("a neighbour: %q", got)
	}
	// After a disconnection from the network whose server it asked, too.
	create(t, s, CreateRequest{Name: "team"})
	attach(t, s, "three", on("team"))
	if err := s.Release(ctx, fmt.Sprintf("%064s", "one")); err != nil {
		t.Fatal(err)
	}
	both, ns4 := attach(t, s, "four", on("team", "shut"))
	if strings.Contains(string(both.ResolvConf), "127.0.0.11") {
		t.Errorf("resolv.conf:\n%s", both.ResolvConf)
	}
	after, err := s.Disconnect(ctx, fmt.Sprintf("%064s", "four"), "team", false)
	if err != nil {
		t.Fatal(err)
	}
	if got, _ := ask(t, ns4, "127.0.0.11", "two", dns.TypeA); len(got) != 1 || !strings.Contains(string(after.ResolvConf), "nameserver 127.0.0.11\n") {
		t.Errorf("after a disconnection: %v\n%s", got, after.ResolvConf)
	}
}

// defaultBy are the interfaces of default routes.
func defaultBy(b Sandbox) string {
	out := ""
	for _, e := range b.Endpoints {
		if e.Default4 {
			out += "4:" + e.Interface + " "
		}
		if e.Default6 {
			out += "6:" + e.Interface + " "
		}
	}
	return strings.TrimSpace(out)
}

func TestGatewayPriority(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	for i, name := range []string{"b0", "b1", "b2"} {
		create(t, s, CreateRequest{Name: name, IPAM: []Pool{{Subnet: netip.MustParsePrefix(fmt.Sprintf("198.51.%d.0/24", i))}}})
	}
	neighbour(t)
	id := fmt.Sprintf("%064s", "c")
	got, ns := attach(t, s, "c", func(r *SandboxRequest) {
		r.Endpoints = []EndpointRequest{{Network: "b1"}}
		r.Ports = []PortRequest{{Port: 80, Proto: "tcp", HostPort: 8090}}
	})
	serve(t, ns, 80, "c")
	check := func(want string, port bool) {
		t.Helper()
		if by := defaultBy(got); by != want {
			t.Errorf("default routes %q, want %q", by, want)
		}
		if len(got.Ports) > 0 != port {
			t.Errorf("ports %v", got.Ports)
		}
		if text := map[bool]string{true: "c", false: "no"}[port]; reaches(nil, "192.0.2.1:8090", text) != text {
			t.Errorf("the published port does not answer %q", text)
		}
	}
	connect := func(name string, priority int) {
		t.Helper()
		var err error
		if got, err = s.Connect(ctx, id, EndpointRequest{Network: name, GwPriority: priority}); err != nil {
			t.Fatal(err)
		}
	}
	disconnect := func(name string) {
		t.Helper()
		var err error
		if got, err = s.Disconnect(ctx, id, name, false); err != nil {
			t.Fatal(err)
		}
	}
	check("4:eth0 6:eth0", true)
	connect("b2", -1)
	check("4:eth0 6:eth0", true)
	connect("b0", 0) // the first by name
	check("4:eth2 6:eth2", true)
	disconnect("b0")
	check("4:eth0 6:eth0", true)
	disconnect("b1")
	check("4:eth1 6:eth1", true)
	disconnect("b2")
	check("", false)
	connect("b1", 0)
	check("4:eth0 6:eth0", true)

	// One that cannot be connected leaves nothing.
	if err := netlink.RemoveLinkIn(ns, "eth0"); err != nil {
		t.Fatal(err)
	}
	disconnect("b1")
	create(t, s, CreateRequest{Name: "shut", Internal: true})
	connect("shut", 0)
	if err := netlink.SetDefaultRoute(ns, "eth0", netlink.DefaultRoute{Gateway: got.Endpoints[0].Gateway4}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Connect(ctx, id, EndpointRequest{Network: "b1"}); err == nil || !strings.Contains(err.Error(), "failed to set gateway: file exists") {
		t.Errorf("with a default route of its own: %v", err)
	}
	if b, _ := s.Sandbox(id); len(b.Endpoints) != 1 || len(b.Ports) != 0 {
		t.Errorf("left of a connection that failed: %+v", b)
	}
}

func TestNamesOfAllNetworks(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	create(t, s, CreateRequest{Name: "a"})
	create(t, s, CreateRequest{Name: "b"})
	web, _ := attach(t, s, "web", on("b"))
	db, _ := attach(t, s, "db", on("bridge"))
	ask1 := func(b Sandbox, name string) []string {
		t.Helper()
		got, _ := ask(t, s.sandboxes[fmt.Sprintf("%064s", "c")].ns, b.Endpoints[0].Gateway4.String(), name, dns.TypeA)
		return got
	}
	c, _ := attach(t, s, "c", func(r *SandboxRequest) {
		r.Endpoints = []EndpointRequest{{Network: "a", Links: []Link{{Target: "web", Alias: "Front"}}}, {Network: "bridge"}}
		r.Links = []Link{{Target: fmt.Sprintf("%064s", "db"), Alias: "store"}}
	})
	line := db.Endpoints[0].IPv4.Addr().String() + "\tstore db\n"
	if !strings.Contains(string(c.Hosts), line) {
		t.Errorf("no line %q of a link in hosts:\n%s", line, c.Hosts)
	}
	if got := ask1(c, "web"); len(got) != 0 {
		t.Errorf("a name of a network that it is not on: %v", got)
	}
	id := fmt.Sprintf("%064s", "c")
	if _, err := s.Connect(ctx, id, EndpointRequest{Network: "b", Links: []Link{{Target: "web", Alias: "front"}}}); err != nil {
		t.Fatal(err)
	}
	want := web.Endpoints[0].IPv4.Addr().String()
	for _, name := range []string{"web", "front", "web.b"} { // asked of the server of the first network
		if got := ask1(c, name); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if got := ask1(c, "store"); len(got) != 1 || got[0] != db.Endpoints[0].IPv4.Addr().String() {
		t.Errorf("store: %v", got)
	}
	// A link is of one network, also where both meet on another.
	dbID := fmt.Sprintf("%064s", "db")
	if _, err := s.Connect(ctx, dbID, EndpointRequest{Network: "b"}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Disconnect(ctx, dbID, "bridge", false); err != nil {
		t.Fatal(err)
	}
	if got := ask1(c, "store"); len(got) != 0 {
		t.Errorf("a link of the default network answers for another: %v", got)
	}
	if _, err := s.Connect(ctx, dbID, EndpointRequest{Network: "bridge"}); err != nil {
		t.Fatal(err)
	}
	if rev, _ := dns.ReverseAddr(want); true {
		if got, _ := ask(t, s.sandboxes[id].ns, c.Endpoints[0].Gateway4.String(), rev, dns.TypePTR); len(got) != 1 || got[0] != "web.b." {
			t.Errorf("the name of %s: %v", want, got)
		}
	}
	if b, err := s.Rename(ctx, fmt.Sprintf("%064s", "web"), "/site"); err != nil || b.Endpoints[0].DNSNames[0] != "site" {
		t.Errorf("rename: %+v, %v", b, err)
	}
	if got := ask1(c, "site"); len(got) != 1 {
		t.Errorf("after a rename: %v", got)
	}
	if b, err := s.SetLinks(ctx, id, nil); err != nil || strings.Contains(string(b.Hosts), "store") || len(ask1(c, "store")) != 0 {
		t.Errorf("a link that was removed is there (%v):\n%s", err, b.Hosts)
	}
}

// A container's own server on a loopback address is asked there, for what the
// networks do not have.
func TestServerOfTheContainer(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	create(t, s, CreateRequest{Name: "a"})
	c, ns := attach(t, s, "c", func(r *SandboxRequest) {
		r.Endpoints[0].Network = "a"
		r.DNS = []string{"127.0.0.11", "127.0.0.1"} // the first would be ourselves
	})
	linux.InNetNS(ns, func() error {
		pc, err := net.ListenPacket("udp", "127.0.0.1:53")
		if err != nil {
			t.Error(err)
			return nil
		}
		server := &dns.Server{PacketConn: pc, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
			m := new(dns.Msg).SetReply(q)
			rr, _ := dns.NewRR(q.Question[0].Name + " 1 IN A 198.51.100.77")
			m.Answer = []dns.RR{rr}
			w.WriteMsg(m)
		})}
		go server.ActivateAndServe()
		t.Cleanup(func() { pc.Close() })
		return nil
	})
	gw := c.Endpoints[0].Gateway4.String()
	if !strings.Contains(string(c.ResolvConf), "nameserver "+gw+"\n") {
		t.Errorf("resolv.conf:\n%s", c.ResolvConf)
	}
	for name, want := range map[string]string{"example.org": "198.51.100.77", "c": c.Endpoints[0].IPv4.Addr().String()} {
		if got, _ := ask(t, ns, gw, name, dns.TypeA); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestEndpointOptions(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	create(t, s, CreateRequest{Name: "a"})
	b, ns := attach(t, s, "c", func(r *SandboxRequest) {
		r.Endpoints = []EndpointRequest{{Network: "bridge"}, {Network: "a", DriverOpts: map[string]string{optionIfname: "eth0", optionSysctls: "net.ipv4.conf.IFNAME.log_martians=1,net.ipv4.conf.ifname.forwarding=0"}}}
	})
	if b.Endpoints[0].Interface != "eth1" || b.Endpoints[1].Interface != "eth0" {
		t.Fatalf("interfaces %+v", b.Endpoints)
	}
	linux.InNetNS(ns, func() error {
		if v, err := linux.NetSysctl("ipv4/conf/eth0/log_martians"); v != "1" {
			t.Errorf("log_martians is %q, %v", v, err)
		}
		return nil
	})
	create(t, s, CreateRequest{Name: "b"})
	for opt, want := range map[string]string{optionIfname + "=eth1": "file exists", optionIfname + "=a/b": "interface's name", optionSysctls + "=net.ipv4.conf.../../../kernel.x=1": "IFNAME", optionSysctls + "=net.ipv4.conf.IFNAME=1": "IFNAME"} {
		k, v, _ := strings.Cut(opt, "=")
		if _, err := s.Connect(ctx, fmt.Sprintf("%064s", "c"), EndpointRequest{Network: "b", DriverOpts: map[string]string{k: v}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", opt, err)
		}
	}
}

func TestSettingsLentAndDefault(t *testing.T) {
	bus := events.New()
	_, sub := bus.Subscribe(time.Time{}, events.Filter{})
	s := service(t, t.TempDir(), Options{Events: bus, Defaults: map[string]map[string]string{"bridge": {optionMTU: "1400", optionEnable6: "false"}}})
	if n := s.byName("bridge"); n == nil || n.Options[optionMTU] != "" {
		t.Errorf("the default network with default options: %+v", n)
	}
	create(t, s, CreateRequest{Name: "conf", ConfigOnly: true, EnableIPv6: new(true), Options: map[string]string{optionICC: "false"}, IPAM: []Pool{{Subnet: netip.MustParsePrefix("198.51.100.0/24")}}})
	n := create(t, s, CreateRequest{Name: "user", ConfigFrom: "conf"})
	if n.Options[optionICC] != "false" || n.Options[optionMTU] != "1400" || n.IPAM[0].Subnet.String() != "198.51.100.0/24" || !n.EnableIPv6 || n.ConfigFrom != "conf" {
		t.Errorf("with borrowed settings: %+v", n)
	}
	if n := create(t, s, CreateRequest{Name: "plain"}); n.EnableIPv6 || n.Options[optionEnable6] != "false" {
		t.Errorf("with default options: %+v", n)
	}
	if n := create(t, s, CreateRequest{Name: "small", Options: map[string]string{optionMTU: "1200", optionEnable6: ""}}); n.EnableIPv6 {
		t.Errorf("IPv6 with too small packets: %+v", n)
	}
	if n := create(t, s, CreateRequest{Name: "six", EnableIPv6: new(true)}); !n.EnableIPv6 || n.Options[optionEnable6] != "" {
		t.Errorf("against default options: %+v", n)
	}
	if err := s.Remove(ctx, "conf"); !errdefs.Is(err, errdefs.Forbidden) {
		t.Errorf("removing settings in use: %v", err)
	}
	attach(t, s, "c", on("user"))
	s.Release(ctx, fmt.Sprintf("%064s", "c"))
	for _, name := range []string{"user", "conf"} {
		if err := s.Remove(ctx, name); err != nil {
			t.Error(err)
		}
	}
	var got []string
	for len(got) < 9 {
		m := <-sub.C
		got = append(got, string(m.Action)+" "+m.Actor.Attributes["name"])
	}
	want := "create conf, create user, create plain, create small, create six, connect user, disconnect user, destroy user, destroy conf"
	if text := strings.Join(got, ", "); text != want {
		t.Errorf("events %s", text)
	}
}

func TestStatus(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	create(t, s, CreateRequest{Name: "n", EnableIPv6: new(true), IPAM: []Pool{
		{Subnet: netip.MustParsePrefix("198.51.100.0/24"), IPRange: netip.MustParsePrefix("198.51.100.64/31"), Gateway: netip.MustParseAddr("198.51.100.1"),
			AuxAddresses: map[string]netip.Addr{"in": netip.MustParseAddr("198.51.100.65"), "out": netip.MustParseAddr("198.51.100.128")}},
		{Subnet: netip.MustParsePrefix("2001:db8::/56")}}})
	check := func(used4, free4, used6 uint64) {
		t.Helper()
		st, err := s.Status("n")
		if err != nil {
			t.Fatal(err)
		}
		if got := st[netip.MustParsePrefix("198.51.100.0/24")]; got != (SubnetStatus{used4, free4}) {
			t.Errorf("IPv4: %+v", got)
		}
		if got := st[netip.MustParsePrefix("2001:db8::/56")]; got != (SubnetStatus{used6, 1<<64 - 1}) {
			t.Errorf("IPv6: %+v", got)
		}
	}
	check(5, 1, 2)
	attach(t, s, "a", on("n"))
	check(6, 0, 3)
	if _, err := s.Attach(ctx, SandboxRequest{ContainerID: "x", Name: "x", NetNS: netns(t), Endpoints: []EndpointRequest{{Network: "n"}}}); !errdefs.Is(err, errdefs.Exhausted) || errdefs.HintOf(err) == "" {
		t.Errorf("beyond the range: %v", err)
	}
	attach(t, s, "b", func(r *SandboxRequest) {
		r.Endpoints = []EndpointRequest{{Network: "n", IPv4: netip.MustParseAddr("198.51.100.200")}}
	})
	check(7, 0, 4)
}
