package network

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/netlink"
)

var neighbours atomic.Int32

// neighbour makes a machine on a network beside the host (192.0.2.1, fd00:2::1),
// which sends everything to the host.
func neighbour(t *testing.T) *os.File {
	t.Helper()
	host, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if err := netlink.LoopbackUp(host); err != nil {
		t.Fatal(err)
	}
	index, err := netlink.EnsureBridge(netlink.Bridge{Name: "lan0", Gateways: []netip.Prefix{netip.MustParsePrefix("192.0.2.1/24"), netip.MustParsePrefix("fd00:2::1/64")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.RemoveLink("lan0") })
	ns := netns(t)
	err = netlink.Attach(ns, netlink.Endpoint{HostName: fmt.Sprintf("lan-%d", neighbours.Add(1)), Bridge: index, Name: "eth0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9},
		Addrs:  []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("fd00:2::2/64")},
		Routes: []netlink.DefaultRoute{{Gateway: netip.MustParseAddr("192.0.2.1")}, {Gateway: netip.MustParseAddr("fd00:2::1")}}}, true)
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func TestNeighboursReachOnlyWhatIsPublished(t *testing.T) {
	s := service(t, t.TempDir(), Options{IPv6: true})
	lan := neighbour(t)
	web, ns := attach(t, s, "web", func(r *SandboxRequest) {
		r.Ports = []PortRequest{{Port: 80, Proto: "tcp", HostPort: 8080}, {Port: 80, Proto: "tcp", HostPort: 8081, HostIP: netip.MustParseAddr("127.0.0.1")},
			{Port: 80, Proto: "tcp", HostPort: 8082, HostIP: netip.MustParseAddr("192.0.2.1")}, {Port: 80, Proto: "tcp", HostPort: 8083, HostIP: netip.MustParseAddr("::1")}}
	})
	serve(t, ns, 80, "web")
	serve(t, ns, 81, "hidden")
	e := web.Endpoints[0]
	if !e.IPv6.IsValid() || !e.IPv6.Addr().IsPrivate() {
		t.Fatalf("not dual stack: %+v", e)
	}
	v4, v6 := e.IPv4.Addr().String(), e.IPv6.Addr().String()
	serve(t, lan, 99, "outside")
	for _, c := range []struct {
		from       *os.File
		addr, want string
	}{
		{lan, "192.0.2.1:8080", "web"}, {lan, "[fd00:2::1]:8080", "web"}, {lan, "192.0.2.1:8082", "web"},
		{lan, v4 + ":80", "no"}, {lan, v4 + ":81", "no"}, {lan, "[" + v6 + "]:80", "no"}, {lan, "[" + v6 + "]:81", "no"},
		{lan, "192.0.2.1:8081", "no"}, {lan, "[fd00:2::1]:8083", "no"}, {lan, e.Gateway4.String() + ":53", "no"}, {lan, "[" + e.Gateway6.String() + "]:53", "no"},
		{nil, "127.0.0.1:8080", "web"}, {nil, "127.0.0.1:8081", "web"}, {nil, "[::1]:8080", "web"}, {nil, "[::1]:8083", "web"},
		{nil, v4 + ":81", "hidden"}, {nil, "[" + v6 + "]:81", "hidden"},
		{ns, "192.0.2.2:99", "outside"}, {ns, "[fd00:2::2]:99", "outside"}, // what goes out comes back
	} {
		if got := reaches(c.from, c.addr, c.want); got != c.want {
			t.Errorf("to %s: %q, want %q", c.addr, got, c.want)
		}
	}
	loopbackFrames(t, lan)
}

// loopbackFrames sends frames to 127.0.0.1 by hand, which no routing table would,
// and then one to a published port. Answers come in that order.
func loopbackFrames(t *testing.T, lan *os.File) {
	hw, err := net.InterfaceByName("lan0")
	if err != nil {
		t.Fatal(err)
	}
	err = linux.InNetNS(lan, func() error {
		ifi, err := net.InterfaceByName("eth0")
		if err != nil {
			return err
		}
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, syscall.ETH_P_ALL))
		fd, err := syscall.Socket(syscall.AF_PACKET, syscall.SOCK_RAW, int(all))
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		at := &syscall.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}
		if err := syscall.Bind(fd, at); err != nil {
			return err
		}
		frame := func(src, dst string, port uint16) {
			f := append(append([]byte{}, hw.HardwareAddr...), ifi.HardwareAddr...)
			f = append(f, 8, 0)
			f = append(f, synPacket(netip.MustParseAddr(src), netip.MustParseAddr(dst), port)...)
			if err := syscall.Sendto(fd, f, 0, at); err != nil {
				t.Error(err)
			}
		}
		frame("192.0.2.2", "127.0.0.1", 8081)
		frame("192.0.2.2", "127.0.0.2", 8080)
		frame("127.0.0.1", "192.0.2.1", 8080)
		frame("192.0.2.2", "192.0.2.1", 8080)
		syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_RCVTIMEO, &syscall.Timeval{Sec: 10})
		buf := make([]byte, 2000)
		for {
			n, _, err := syscall.Recvfrom(fd, buf, 0)
			if err != nil {
				return fmt.Errorf("no answer from the published port: %w", err)
			}
			p := buf[14:max(n, 14)]
			if n < 54 || buf[12] != 8 || buf[13] != 0 || p[9] != 6 || p[33]&0x12 != 0x12 {
				continue
			}
			src := netip.AddrFrom4([4]byte(p[12:16]))
			if src.String() == "192.0.2.1" {
				return nil
			}
			t.Errorf("an answer from %s", src)
		}
	})
	if err != nil {
		t.Error(err)
	}
}

// synPacket is an IPv4 packet that opens a TCP connection.
func synPacket(src, dst netip.Addr, port uint16) []byte {
	ip := []byte{0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0}
	ip = append(append(ip, src.AsSlice()...), dst.AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], checksum(ip))
	tcp := []byte{0x9c, 0x40, byte(port >> 8), byte(port), 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff, 0, 0, 0, 0}
	pseudo := append(append(append([]byte{}, ip[12:20]...), 0, 6, 0, 20), tcp...)
	binary.BigEndian.PutUint16(tcp[16:], checksum(pseudo))
	return append(ip, tcp...)
}

func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// Five networks: nobody reaches another's containers, by either family.
func TestNetworksAreIsolatedPairwise(t *testing.T) {
	s := service(t, t.TempDir(), Options{IPv6: true})
	type place struct {
		ns     *os.File
		v4, v6 string
	}
	var places []place
	for i := range 5 {
		name := fmt.Sprint("net", i)
		r := CreateRequest{Name: name, Internal: i == 3}
		if i == 4 {
			r.Options = map[string]string{optionMode4: "nat-unprotected", optionMode6: "routed"}
		}
		if _, err := s.Create(ctx, r); err != nil {
			t.Fatal(err)
		}
		b, ns := attach(t, s, "in-"+name, func(r *SandboxRequest) { r.Endpoints[0].Network = name })
		serve(t, ns, 80, name)
		places = append(places, place{ns, b.Endpoints[0].IPv4.Addr().String(), b.Endpoints[0].IPv6.Addr().String()})
	}
	for i, from := range places {
		if i == 3 { // it has no way out: let it try
			_, gw, _ := strings.Cut("x"+from.v4[:strings.LastIndex(from.v4, ".")]+".1", "x")
			if err := netlink.SetDefaultRoute(from.ns, "eth0", netlink.DefaultRoute{Gateway: netip.MustParseAddr(gw), Replace: true}); err != nil {
				t.Fatal(err)
			}
		}
		for j, to := range places {
			want := "no"
			if i == j {
				want = fmt.Sprint("net", i)
			}
			for _, a := range []string{to.v4 + ":80", "[" + to.v6 + "]:80"} {
				if got := reaches(from.ns, a, want); got != want {
					t.Errorf("from net%d to net%d (%s): %q", i, j, a, got)
				}
			}
			if i != j && reaches(from.ns, to.v4[:strings.LastIndex(to.v4, ".")]+".1:53", "no") != "no" {
				t.Errorf("from net%d the name server of net%d answers", i, j)
			}
		}
	}
}

func TestGatewayModes(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	lan := neighbour(t)
	modes := []string{"nat", "nat-unprotected", "routed"}
	want := map[string][4]string{ // own address published, own address not published, host's port, out
		"nat": {"no", "no", "web", "masked"}, "nat-unprotected": {"web", "hidden", "web", "masked"}, "routed": {"web", "no", "no", "own"},
	}
	serveSource(t, lan)
	for i, mode := range modes {
		if _, err := s.Create(ctx, CreateRequest{Name: mode, Options: map[string]string{optionMode4: mode, optionMode6: mode}}); err != nil {
			t.Fatal(err)
		}
		port := uint16(8090 + i)
		web, ns := attach(t, s, "web-"+mode, func(r *SandboxRequest) {
			r.Endpoints[0].Network = mode
			r.Ports = []PortRequest{{Port: 80, Proto: "tcp", HostPort: port}}
		})
		serve(t, ns, 80, "web")
		serve(t, ns, 81, "hidden")
		e := web.Endpoints[0]
		for f, c := range []struct{ own, host, out string }{{e.IPv4.Addr().String(), "192.0.2.1", "192.0.2.2"}, {"[" + e.IPv6.Addr().String() + "]", "[fd00:2::1]", "[fd00:2::2]"}} {
			source := "own"
			if got := reaches(ns, c.out+":97", ""); got == []string{"192.0.2.1", "fd00:2::1"}[f] {
				source = "masked"
			} else if got != strings.Trim(c.own, "[]") {
				t.Errorf("%s: outside %q is seen", mode, got)
			}
			w := want[mode]
			got := [4]string{reaches(lan, c.own+":80", w[0]), reaches(lan, c.own+":81", w[1]), reaches(lan, fmt.Sprintf("%s:%d", c.host, port), w[2]), source}
			if got != w {
				t.Errorf("%s, IPv%d: %v, want %v", mode, 4+2*f, got, w)
			}
		}
		if mode == "routed" && len(web.Ports) != 0 {
			t.Errorf("routed: ports of the host %v", web.Ports)
		}
	}
	if _, err := s.Create(ctx, CreateRequest{Name: "x", Options: map[string]string{optionMode4: "isolated"}}); err == nil {
		t.Error("isolated without internal was accepted")
	}
	if _, err := s.Create(ctx, CreateRequest{Name: "apart", Internal: true, Options: map[string]string{optionMode4: "isolated", optionMode6: "isolated"}}); err != nil {
		t.Fatal(err)
	}
	a, one := attach(t, s, "one", func(r *SandboxRequest) { r.Endpoints[0].Network = "apart" })
	_, two := attach(t, s, "two", func(r *SandboxRequest) { r.Endpoints[0].Network = "apart" })
	serve(t, one, 80, "one")
	ip := a.Endpoints[0].IPv4.Addr().String()
	if got := reaches(two, ip+":80", "one"); got != "one" {
		t.Errorf("isolated: between containers: %q", got)
	}
	if got := reaches(nil, ip+":80", "no"); got != "no" {
		t.Errorf("isolated: from the host: %q", got)
	}
}

// serveSource tells who connects, on port 97.
func serveSource(t *testing.T, ns *os.File) {
	t.Helper()
	answer(t, ns, 97, func(c net.Conn) string {
		from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
		return from.Addr().Unmap().String()
	})
}

// Without communication between containers they still reach the world, names,
// and each other's published ports.
func TestNoICC(t *testing.T) {
	s := service(t, t.TempDir(), Options{IPv6: true})
	lan := neighbour(t)
	if _, err := s.Create(ctx, CreateRequest{Name: "apart", Options: map[string]string{optionICC: "false"}}); err != nil {
		t.Fatal(err)
	}
	on := func(r *SandboxRequest) { r.Endpoints[0].Network = "apart" }
	one, ns := attach(t, s, "one", func(r *SandboxRequest) {
		on(r)
		r.Ports = []PortRequest{{Port: 80, Proto: "tcp", HostPort: 8070}}
	})
	_, two := attach(t, s, "two", on)
	serve(t, ns, 80, "one")
	serve(t, lan, 99, "outside")
	e := one.Endpoints[0]
	for addr, want := range map[string]string{e.IPv4.Addr().String() + ":80": "no", "[" + e.IPv6.Addr().String() + "]:80": "no", e.Gateway4.String() + ":8070": "one", "192.0.2.2:99": "outside"} {
		if got := reaches(two, addr, want); got != want {
			t.Errorf("to %s: %q, want %q", addr, got, want)
		}
	}
	if got, _ := ask(t, two, e.Gateway4.String(), "one", dns.TypeA); len(got) != 1 {
		t.Errorf("the name: %v", got)
	}
}

// The kernel here has no SCTP sockets: a packet made by hand must arrive.
func TestSCTP(t *testing.T) {
	s := service(t, t.TempDir(), Options{})
	lan := neighbour(t)
	_, ns := attach(t, s, "sctp", func(r *SandboxRequest) { r.Ports = []PortRequest{{Port: 5000, Proto: "sctp", HostPort: 5001}} })
	var in net.PacketConn
	err := linux.InNetNS(ns, func() (err error) {
		in, err = net.ListenPacket("ip4:132", "0.0.0.0")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	// INIT: ports, tag, checksum (not checked before a socket), one chunk.
	init := []byte{0x30, 0x39, 0x13, 0x89, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0xff, 0xff, 0, 1, 0, 1, 0, 0, 0, 1}
	binary.LittleEndian.PutUint32(init[8:], crc32c(init))
	err = linux.InNetNS(lan, func() error {
		c, err := net.Dial("ip4:132", "192.0.2.1")
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(init)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	in.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	n, _, err := in.ReadFrom(buf)
	if err != nil || n < 4 || binary.BigEndian.Uint16(buf[2:]) != 5000 {
		t.Errorf("%d bytes, %v: % x", n, err, buf[:n])
	}
}

func crc32c(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }
