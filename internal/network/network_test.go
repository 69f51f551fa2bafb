package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/netlink"
	"github.com/onggi/onggi/internal/linux/nft"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/testenv"
)

var ctx = context.Background()

// As root all tests run in a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv("ONGGI_NETNS") == "1" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "ONGGI_NETNS=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
}

func service(t testing.TB, dir string, o Options) *Service {
	t.Helper()
	testenv.NeedRoot(t)
	db, err := metadb.Open(filepath.Join(dir, "meta"), metadb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o.DB, o.ExecRoot = db, dir
	if o.BridgeName == "" {
		o.BridgeName = "ogtest0"
	}
	s, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Cleanup(ctx); err != nil {
			t.Error(err)
		}
		db.Close()
	})
	return s
}

func netns(t testing.TB) *os.File {
	t.Helper()
	ns, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func attach(t testing.TB, s *Service, name string, change func(*SandboxRequest)) (Sandbox, *os.File) {
	t.Helper()
	r := SandboxRequest{ContainerID: fmt.Sprintf("%064s", name), Name: name, Hostname: name, NetNS: netns(t), Endpoints: []EndpointRequest{{Network: "bridge"}}}
	if change != nil {
		change(&r)
	}
	b, err := s.Attach(ctx, r)
	if err != nil {
		t.Fatalf("attach %s: %v", name, err)
	}
	return b, r.NetNS
}

// serve answers every TCP connection to port with text, inside a namespace.
func serve(t testing.TB, ns *os.File, port int, text string) {
	t.Helper()
	answer(t, ns, port, func(net.Conn) string { return text })
}

func answer(t testing.TB, ns *os.File, port int, text func(net.Conn) string) {
	t.Helper()
	for _, family := range []string{"4", "6"} {
		err := linux.InNetNS(ns, func() error {
			l, err := net.Listen("tcp"+family, fmt.Sprintf(":%d", port))
			if errors.Is(err, syscall.EAFNOSUPPORT) {
				return nil // IPv6 is switched off
			}
			if err != nil {
				return err
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					c.Write([]byte(text(c)))
					c.Close()
				}
			}()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// reaches returns what is served at an address, from a namespace (nil: ours). It
// has patience for what should be there, and little for what should not: a
// dropped packet is waited for in vain. A neighbour whose interface the kernel
// has not made ready yet, which it does on the side, does not exist for IPv6.
func reaches(ns *os.File, addr, want string) (got string) {
	if want == "no" {
		return dialFor(ns, addr, 150*time.Millisecond)
	}
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if got = dialFor(ns, addr, time.Until(end)); got != "no" {
			break
		}
	}
	return got
}

func dialFor(ns *os.File, addr string, patience time.Duration) (out string) {
	f := func() error {
		c, err := net.DialTimeout("tcp", addr, patience)
		if err != nil {
			out = "no"
			return nil
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 100)
		n, _ := c.Read(buf)
		out = string(buf[:n])
		return nil
	}
	if ns == nil {
		f()
	} else {
		linux.InNetNS(ns, f)
	}
	return out
}

func TestPublishedPortsAndIsolation(t *testing.T) {
	s := service(t, t.TempDir(), Options{BIP: "10.99.1.1/24"})
	if err := linux.SetNetSysctl("ipv4/ip_forward", "1"); err != nil {
		t.Fatal(err)
	}
	// lo of the test's own namespace
	host, _ := os.Open("/proc/self/ns/net")
	defer host.Close()
	if err := netlink.LoopbackUp(host); err != nil {
		t.Fatal(err)
	}
	web, ns := attach(t, s, "web", func(r *SandboxRequest) {
		r.Ports = []PortRequest{{Port: 80, Proto: "tcp", HostPort: 8080}, {Port: 80, Proto: "tcp", HostIP: netip.MustParseAddr("127.0.0.1")}}
	})
	serve(t, ns, 80, "web")
	serve(t, ns, 81, "hidden")
	ip := web.Endpoints[0].IPv4.Addr().String()
	if got := reaches(nil, ip+":80", "web"); got != "web" {
		t.Errorf("from the host to the container: %q", got)
	}
	if got := reaches(nil, "10.99.1.1:8080", "web"); got != "web" {
		t.Errorf("to the published port: %q", got)
	}
	local := web.Ports[1]
	if got := reaches(nil, fmt.Sprintf("127.0.0.1:%d", local.HostPort), "web"); got != "web" {
		t.Errorf("to the port published on loopback: %q", got)
	}

	if _, err := s.Create(ctx, CreateRequest{Name: "other"}); err != nil {
		t.Fatal(err)
	}
	_, peer := attach(t, s, "peer", nil)
	_, stranger := attach(t, s, "stranger", func(r *SandboxRequest) { r.Endpoints[0].Network = "other" })
	for _, c := range []struct {
		from       *os.File
		addr, want string
	}{
		{peer, ip + ":81", "hidden"}, {peer, "10.99.1.1:8080", "web"}, {ns, "10.99.1.1:8080", "web"}, // hairpin
		{stranger, ip + ":80", "no"}, {stranger, ip + ":81", "no"}, {stranger, "10.99.1.1:8080", "web"},
	} {
		if got := reaches(c.from, c.addr, c.want); got != c.want {
			t.Errorf("to %s: %q, want %q", c.addr, got, c.want)
		}
	}

	_, err := s.Attach(ctx, SandboxRequest{ContainerID: "second", Name: "second", NetNS: netns(t), Endpoints: []EndpointRequest{{Network: "bridge"}}, Ports: []PortRequest{{Port: 1, Proto: "tcp", HostPort: 8080}}})
	if !errdefs.Is(err, errdefs.Conflict) || !strings.Contains(err.Error(), `"web"`) {
		t.Errorf("a port in use: %v", err)
	}
	if err := s.Release(ctx, fmt.Sprintf("%064s", "web")); err != nil {
		t.Fatal(err)
	}
	if got := reaches(nil, "10.99.1.1:8080", "no"); got != "no" {
		t.Errorf("after the release: %q", got)
	}
	attach(t, s, "third", func(r *SandboxRequest) { r.Ports = []PortRequest{{Port: 1, Proto: "tcp", HostPort: 8080}} })
}

// Where containers do not reach each other, a link opens what its target exposes,
// and nothing else.
func TestLinksWithoutICC(t *testing.T) {
	s := service(t, t.TempDir(), Options{NoICC: true, IPv6: true})
	if !seesBridges() {
		t.Skip("the kernel has no br_netfilter")
	}
	id := func(name string) string { return fmt.Sprintf("%064s", name) }
	web := func() (Sandbox, *os.File) {
		return attach(t, s, "web", func(r *SandboxRequest) { r.Exposed = []PortRequest{{Port: 80, Proto: "tcp"}} })
	}
	box, ns := web()
	serve(t, ns, 80, "web")
	serve(t, ns, 81, "hidden")
	_, linked := attach(t, s, "linked", func(r *SandboxRequest) {
		r.Links = []Link{{Target: id("web"), Alias: "a"}, {Target: id("web"), Alias: "b"}}
	})
	_, other := attach(t, s, "other", nil)
	const want = "web"
	check := func(want string) {
		t.Helper()
		for _, a := range []netip.Prefix{box.Endpoints[0].IPv4, box.Endpoints[0].IPv6} {
			for _, c := range []struct {
				from *os.File
				port uint16
				want string
			}{{linked, 80, want}, {linked, 81, "no"}, {other, 80, "no"}} {
				if got := reaches(c.from, netip.AddrPortFrom(a.Addr(), c.port).String(), c.want); got != c.want {
					t.Errorf("%s port %d: %q, want %q", a, c.port, got, c.want)
				}
			}
		}
	}
	check(want)
	if err := s.Release(ctx, id("web")); err != nil { // and started again
		t.Fatal(err)
	}
	box, ns = web()
	serve(t, ns, 80, "web")
	check(want)
	if _, err := s.SetLinks(ctx, id("linked"), nil); err != nil {
		t.Fatal(err)
	}
	check("no")
	// Where the bridge itself keeps them apart, nothing can be opened.
	if err := linux.SetNetSysctl("bridge/bridge-nf-call-iptables", "0"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { linux.SetNetSysctl("bridge/bridge-nf-call-iptables", "1") })
	_, err := s.Attach(ctx, SandboxRequest{ContainerID: id("late"), Name: "late", NetNS: netns(t), Endpoints: []EndpointRequest{{Network: "bridge"}}, Links: []Link{{Target: id("web"), Alias: "a"}}})
	if !errdefs.Is(err, errdefs.Unsupported) || !strings.Contains(err.Error(), "br_netfilter") {
		t.Errorf("a link that nothing can open: %v", err)
	}
	// The module is loaded where it is missing.
	s.o.LoadModule = func(name string) error { return linux.SetNetSysctl("bridge/bridge-nf-call-iptables", "1") }
	if _, err := s.Create(ctx, CreateRequest{Name: "loads", Options: map[string]string{optionICC: "false"}}); err != nil || !seesBridges() {
		t.Errorf("the module was not loaded: %v", err)
	}
}

// A subnet that somebody took while the bridge was away is not taken back.
func TestDefaultSubnetTaken(t *testing.T) {
	dir := t.TempDir()
	s := service(t, dir, Options{})
	old := s.byName("bridge").IPAM[0]
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RemoveLink("ogtest0"); err != nil {
		t.Fatal(err)
	}
	if _, err := netlink.EnsureBridge(netlink.Bridge{Name: "somebody", Gateways: []netip.Prefix{netip.PrefixFrom(old.Gateway, 24)}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.RemoveLink("somebody") })
	again, err := Open(ctx, s.o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { again.Cleanup(ctx) })
	if n := again.byName("bridge"); n.IPAM[0].Subnet.Overlaps(old.Subnet) || n.index == 0 {
		t.Errorf("%+v", n.Network)
	}
}

// A network whose subnet somebody took while its bridge was away is told of, and
// is there again once the subnet is free.
func TestSubnetTaken(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	if _, err := s.Create(ctx, CreateRequest{Name: "mine", IPAM: []Pool{{Subnet: netip.MustParsePrefix("10.201.1.0/24")}}}); err != nil {
		t.Fatal(err)
	}
	restart := func() {
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		var err error
		if s, err = Open(ctx, s.o); err != nil {
			t.Fatal(err)
		}
		last := s
		t.Cleanup(func() { last.Cleanup(ctx) })
	}
	problem := func() string {
		n, _ := s.Get("mine")
		return n.Problem
	}
	start := func() error {
		_, err := s.Attach(ctx, SandboxRequest{ContainerID: fmt.Sprintf("%064s", "c"), Name: "c", NetNS: netns(t), Endpoints: []EndpointRequest{{Network: "mine"}}})
		return err
	}
	take := func(addr string) {
		t.Helper()
		if _, err := netlink.EnsureBridge(netlink.Bridge{Name: "somebody", Gateways: []netip.Prefix{netip.MustParsePrefix(addr)}}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { netlink.RemoveLink("somebody") })
	}
	take("10.201.0.1/16") // a larger one is no harm: the smaller wins
	if err := netlink.RemoveLink(s.byName("mine").bridge()); err != nil {
		t.Fatal(err)
	}
	restart()
	if p := problem(); p != "" {
		t.Errorf("with a larger subnet beside: %s", p)
	}
	take("10.201.1.129/25")
	restart() // its bridge is there, and stays
	if p := problem(); !strings.Contains(p, "somebody") || s.byName("mine").index == 0 {
		t.Errorf("taken while the bridge is there: %q", p)
	}
	if err := netlink.RemoveLink(s.byName("mine").bridge()); err != nil {
		t.Fatal(err)
	}
	restart()
	if err := start(); !errdefs.Is(err, errdefs.Conflict) || !strings.Contains(err.Error(), "the interface somebody has 10.201.1.128/25") || !strings.Contains(errdefs.HintOf(err), "network rm mine") {
		t.Errorf("start: %v", err)
	}
	if p := problem(); !strings.Contains(p, "somebody") {
		t.Errorf("taken: %q", p)
	}
	if err := netlink.RemoveLink("somebody"); err != nil {
		t.Fatal(err)
	}
	if err := start(); err != nil || problem() != "" {
		t.Errorf("free again: %v, %q", err, problem())
	}
}

// Two engines with one bridge would drop each other's packets: the second is
// refused while the first or a container of it runs, and else removes its rules.
func TestTwoEnginesOneBridge(t *testing.T) {
	first := service(t, t.TempDir(), Options{})
	lives, _ := attach(t, first, "lives", nil)
	other := first.o
	other.ExecRoot = t.TempDir()
	var err error
	if other.DB, err = metadb.Open(filepath.Join(other.ExecRoot, "meta"), metadb.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { other.DB.Close() })
	refused := func(when string) {
		t.Helper()
		if _, err := Open(ctx, other); !errdefs.Is(err, errdefs.Conflict) || !strings.Contains(err.Error(), "ogtest0") || !strings.Contains(errdefs.HintOf(err), "--bridge-name") {
			t.Errorf("%s: %v", when, err)
		}
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var major, minor int
	fmt.Sscanf(string(release), "%d.%d", &major, &minor)
	owners := major > 6 || major == 6 && minor >= 9
	if left, err := nft.New("onggi-other").Others(); err != nil || len(left) != 1 || left[0].Owned != owners || !slices.Contains(left[0].Bridges, "ogtest0") {
		t.Errorf("%+v, %v", left, err)
	}
	refused("both run")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	refused("a container lives")
	if first, err = Open(ctx, first.o); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(first.Release(ctx, fmt.Sprintf("%064s", "lives")), first.Close(), netlink.RemoveLink("og"+lives.Endpoints[0].EndpointID[:10])); err != nil {
		t.Fatal(err)
	}
	second, err := Open(ctx, other)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { second.Cleanup(ctx) })
	if left, err := second.table.Others(); err != nil || len(left) != 0 {
		t.Errorf("rules are left: %v, %v", left, err)
	}
	box, ns := attach(t, second, "web", nil)
	serve(t, ns, 80, "web")
	_, peer := attach(t, second, "peer", nil)
	if got := reaches(peer, box.Endpoints[0].IPv4.Addr().String()+":80", "web"); got != "web" {
		t.Errorf("between containers of the second: %q", got)
	}
}

func ask(t *testing.T, ns *os.File, server, name string, kind uint16) (answers []string, rcode int) {
	t.Helper()
	linux.InNetNS(ns, func() error {
		c := &dns.Client{Timeout: 3 * time.Second}
		m := new(dns.Msg)
		m.SetQuestion(dns.Fqdn(name), kind)
		r, _, err := c.Exchange(m, net.JoinHostPort(server, "53"))
		if err != nil {
			t.Errorf("ask for %s: %v", name, err)
			return nil
		}
		rcode = r.Rcode
		for _, rr := range r.Answer {
			f := strings.Fields(rr.String())
			answers = append(answers, f[len(f)-1])
		}
		return nil
	})
	return answers, rcode
}

func TestNamesAndSeveralNetworks(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	if _, err := s.Create(ctx, CreateRequest{Name: "team", EnableIPv6: new(true)}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Create(ctx, CreateRequest{Name: "shut", Internal: true}); err != nil {
		t.Fatal(err)
	}
	one, _ := attach(t, s, "one", func(r *SandboxRequest) {
		r.Endpoints = []EndpointRequest{{Network: "team", Aliases: []string{"eins"}}, {Network: "shut"}}
	})
	if len(one.Endpoints) != 2 || !one.Endpoints[0].IPv6.IsValid() {
		t.Fatalf("endpoints %+v", one.Endpoints)
	}
	two, ns := attach(t, s, "two", func(r *SandboxRequest) { r.Endpoints = []EndpointRequest{{Network: "team"}} })
	gw := two.Endpoints[0].Gateway4.String()
	if !strings.Contains(string(two.ResolvConf), "nameserver "+gw+"\n") {
		t.Errorf("resolv.conf:\n%s", two.ResolvConf)
	}
	want := one.Endpoints[0].IPv4.Addr().String()
	for _, name := range []string{"one", "eins", "ONE", "one.team"} {
		if got, _ := ask(t, ns, gw, name, dns.TypeA); len(got) != 1 || got[0] != want {
			t.Errorf("%s is %v, want %s", name, got, want)
		}
	}
	if got, _ := ask(t, ns, gw, "one", dns.TypeAAAA); len(got) != 1 || got[0] != one.Endpoints[0].IPv6.Addr().String() {
		t.Errorf("AAAA of one: %v", got)
	}
	rev, _ := dns.ReverseAddr(want)
	if got, _ := ask(t, ns, gw, rev, dns.TypePTR); len(got) != 1 || got[0] != "one.team." {
		t.Errorf("the name of %s: %v", want, got)
	}
	// An internal network tells nobody outside what is asked for.
	three, ns3 := attach(t, s, "three", func(r *SandboxRequest) { r.Endpoints = []EndpointRequest{{Network: "shut"}} })
	if _, rcode := ask(t, ns3, three.Endpoints[0].Gateway4.String(), "example.org", dns.TypeA); rcode != dns.RcodeServerFailure {
		t.Errorf("an outside name on an internal network: %s", dns.RcodeToString[rcode])
	}

	if _, err := s.Connect(ctx, fmt.Sprintf("%064s", "three"), EndpointRequest{Network: "team", Aliases: []string{"late"}}); err != nil {
		t.Fatal(err)
	}
	if got, _ := ask(t, ns, gw, "late", dns.TypeA); len(got) != 1 {
		t.Errorf("an alias after connecting: %v", got)
	}
	if err := s.Remove(ctx, "team"); !errdefs.Is(err, errdefs.Forbidden) || !strings.Contains(err.Error(), "three") {
		t.Errorf("removing one in use: %v", err)
	}
	if _, err := s.Disconnect(ctx, fmt.Sprintf("%064s", "three"), "team", false); err != nil {
		t.Fatal(err)
	}
	if got, _ := ask(t, ns, gw, "late", dns.TypeA); len(got) != 0 {
		t.Errorf("an alias after disconnecting: %v", got)
	}
}

func TestRestoring(t *testing.T) {
	dir := t.TempDir()
	s := service(t, dir, Options{BIP: "10.99.2.1/24"})
	_, ns := attach(t, s, "web", func(r *SandboxRequest) { r.Ports = []PortRequest{{Port: 80, Proto: "tcp", HostPort: 8081}} })
	attach(t, s, "gone", func(r *SandboxRequest) { r.Ports = []PortRequest{{Port: 80, Proto: "tcp", HostPort: 8082}} })
	serve(t, ns, 80, "web")
	s.Close()
	again, err := Open(ctx, Options{DB: s.o.DB, ExecRoot: dir, BridgeName: "ogtest0", BIP: "10.99.2.1/24"})
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.Restore(ctx, []SandboxRequest{{ContainerID: fmt.Sprintf("%064s", "web"), Name: "web", NetNS: ns}}); err != nil {
		t.Fatal(err)
	}
	if got := reaches(nil, "10.99.2.1:8081", "web"); got != "web" {
		t.Errorf("after a restart: %q", got)
	}
	if l := len(again.sandboxes); l != 1 {
		t.Errorf("%d sandboxes", l)
	}
	_, err = again.Attach(ctx, SandboxRequest{ContainerID: "x", Name: "x", NetNS: netns(t), Endpoints: []EndpointRequest{{Network: "bridge"}}, Ports: []PortRequest{{Port: 1, Proto: "tcp", HostPort: 8081}}})
	if !errdefs.Is(err, errdefs.Conflict) {
		t.Errorf("a restored port was given out: %v", err)
	}
	again.Cleanup(ctx)
}

// Networks that are made at one time have subnets of their own, and of those
// with one name there is one.
func TestCreateTogether(t *testing.T) {
	s := service(t, t.TempDir(), Options{BIP: "10.99.8.1/24"})
	const many = 16
	errs := make([]error, 2*many)
	var wg sync.WaitGroup
	for i := range errs {
		name := "same"
		if i < many {
			name = fmt.Sprintf("net%d", i)
		}
		wg.Go(func() { _, errs[i] = s.Create(ctx, CreateRequest{Name: name}) })
	}
	wg.Wait()
	made := 0
	for i, err := range errs {
		switch {
		case err == nil:
			made++
		case i < many || !errdefs.Is(err, errdefs.Conflict):
			t.Error(err)
		}
	}
	if made != many+1 {
		t.Errorf("%d networks were made, want %d", made, many+1)
	}
	list, err := s.List(map[string][]string{"driver": {"bridge"}})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range list {
		for _, x := range list[:i] {
			if n.Name == x.Name || n.IPAM[0].Subnet.Overlaps(x.IPAM[0].Subnet) {
				t.Errorf("%s has %s, %s has %s", n.Name, n.IPAM[0].Subnet, x.Name, x.IPAM[0].Subnet)
			}
		}
	}
}

// Cleaning up needs no flags: what was stored says what there is to remove.
func TestCleanupKnowsItsBridge(t *testing.T) {
	dir := t.TempDir()
	s := service(t, dir, Options{BridgeName: "ogtest1", BIP: "10.99.7.1/24"})
	s.Close()
	end, err := Open(ctx, Options{DB: s.o.DB, ExecRoot: dir, BridgeName: "ogtest2", Ending: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := end.Cleanup(ctx); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"ogtest1", "ogtest2"} {
		if _, err := net.InterfaceByName(name); err == nil {
			t.Errorf("the bridge %s is there", name)
		}
	}
}

func TestAddresses(t *testing.T) {
	sub := netip.MustParsePrefix("10.0.0.0/29")
	used := map[netip.Addr]bool{}
	var got []string
	for {
		a, err := nextAddr(sub, netip.Prefix{}, used)
		if err != nil {
			break
		}
		used[a] = true
		got = append(got, a.String())
	}
	if s := strings.Join(got, " "); s != "10.0.0.1 10.0.0.2 10.0.0.3 10.0.0.4 10.0.0.5 10.0.0.6" {
		t.Errorf("addresses %s", s)
	}
	var taken []netip.Prefix
	for range 300 {
		p, err := nextSubnet(defaultPools, taken)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range taken {
			if p.Overlaps(x) {
				t.Fatalf("%s overlaps %s", p, x)
			}
		}
		taken = append(taken, p)
	}
}

func TestSubnetsOfOtherSizes(t *testing.T) {
	pools := []AddressPool{{netip.MustParsePrefix("fd00::/48"), 120}, {netip.MustParsePrefix("10.0.0.0/24"), 26}}
	for _, c := range []struct{ taken, want string }{
		{"", "fd00::/120"},
		{"fd00::/64", "fd00:0:0:1::/120"}, // one that is larger than what is looked for
		{"fd00::/64 fd00:0:0:1::/120 fd00:0:0:1::1ff/128", "fd00:0:0:1::200/120"},
		{"fd00::/48", "10.0.0.0/26"},
		{"fd00::/40 10.0.0.0/25 10.0.0.128/27", "10.0.0.192/26"},
		{"fd00::/40 10.0.0.0/8", "none"},
	} {
		var taken []netip.Prefix
		for _, p := range strings.Fields(c.taken) {
			taken = append(taken, netip.MustParsePrefix(p))
		}
		got := "none"
		if p, err := nextSubnet(pools, taken); err == nil {
			got = p.String()
		}
		if got != c.want {
			t.Errorf("beside %q: %s, want %s", c.taken, got, c.want)
		}
	}
}

func FuzzFiles(f *testing.F) {
	f.Add("host", "dom", "a:1.2.3.4", "1.1.1.1")
	f.Add("x\n1.2.3.4 evil", "d\te", "n\n:1.1.1.1", "8.8.8.8\nnameserver 6.6.6.6")
	f.Fuzz(func(t *testing.T, host, domain, extra, server string) {
		r := SandboxRequest{Hostname: host, Domainname: domain, ExtraHosts: []string{extra}}
		eps := []Endpoint{{IPv4: netip.MustParsePrefix("10.0.0.2/24")}}
		lines := strings.Split(strings.TrimSuffix(string(hostsFile(r, eps, []netip.Addr{{}}, []hostLine{{netip.MustParseAddr("10.0.0.3"), []string{host, domain}}})), "\n"), "\n")
		if len(lines) > 9 {
			t.Errorf("%d lines", len(lines))
		}
		for _, l := range lines {
			addr, _, _ := strings.Cut(l, "\t")
			if _, err := netip.ParseAddr(addr); err != nil {
				t.Errorf("line %q", l)
			}
		}
		if n := strings.Count(string(resolvConf([]string{server}, []string{domain}, []string{host})), "\n"); n > 3 {
			t.Errorf("%d lines of resolv.conf", n)
		}
	})
}

func BenchmarkAttachRelease(b *testing.B) {
	s := service(b, b.TempDir(), Options{})
	for i := 0; b.Loop(); i++ {
		ns, err := linux.NewNetNS()
		if err != nil {
			b.Fatal(err)
		}
		id := fmt.Sprint(i)
		if _, err := s.Attach(ctx, SandboxRequest{ContainerID: id, Name: id, NetNS: ns, Endpoints: []EndpointRequest{{Network: "bridge"}}}); err != nil {
			b.Fatal(err)
		}
		s.Release(ctx, id)
		ns.Close()
	}
}

// Engines that run side by side share no device and no table.
func TestNamesOfEngines(t *testing.T) {
	for _, usual := range []string{"", "/run/onggi"} {
		if b, n := bridgeName(usual), tableName(usual); b != "onggi0" || n != "onggi" {
			t.Errorf("the usual engine has the bridge %q and the table %q", b, n)
		}
	}
	one, two := bridgeName("/run/one"), bridgeName("/run/two")
	if one == two || one == "onggi0" || len(one) > 15 {
		t.Errorf("two engines have the bridges %q and %q", one, two)
	}
	if tableName("/run/one") == tableName("/run/two") {
		t.Error("two engines have one table")
	}
}

func BenchmarkPublish1000(b *testing.B) {
	s := service(b, b.TempDir(), Options{})
	r := SandboxRequest{ContainerID: fmt.Sprintf("%064s", "c"), Name: "c", NetNS: netns(b), Endpoints: []EndpointRequest{{Network: "bridge"}}}
	for i := range uint16(1000) {
		r.Ports = append(r.Ports, PortRequest{Port: i + 1, Proto: "tcp", HostPort: 21000 + i})
	}
	for b.Loop() {
		if _, err := s.Attach(ctx, r); err != nil {
			b.Fatal(err)
		}
		if err := netlink.RemoveLinkIn(r.NetNS, "eth0"); err != nil {
			b.Fatal(err)
		}
		if err := s.Release(ctx, r.ContainerID); err != nil {
			b.Fatal(err)
		}
	}
}
