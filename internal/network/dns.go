package network

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/onggi/onggi/internal/linux"
)

// maxInFlight bounds the questions of one network that are being forwarded.
const maxInFlight = 1000

// A nameServer answers on the gateway address of one network, or within one
// container.
type nameServer struct {
	lookup   func(client netip.Addr, name string) []netip.Addr // addresses of containers
	reverse  func(client, a netip.Addr) string
	upstream func(client netip.Addr) upstream // whom to ask for everything else
	log      *slog.Logger
	inFlight chan struct{}

	mu      sync.Mutex
	servers []*dns.Server // guarded by mu
}

// start listens on the addresses, for questions that come by the device only. It
// takes any free port, and packets for port 53 are sent there by the rules, so
// that port 53 is left to the host and to published ports. It returns where it
// listens.
func (n *nameServer) start(device string, addrs []netip.Prefix) (bound []netip.AddrPort) {
	lc := net.ListenConfig{Control: linux.OnDevice(device)}
	for _, p := range addrs {
		at, err := n.serve(&lc, p.Addr())
		if err != nil {
			n.log.Warn("no name server on this network", "address", p.Addr(), "error", err)
			continue
		}
		bound = append(bound, at)
	}
	return bound
}

// serve listens on any free port of an address.
func (n *nameServer) serve(lc *net.ListenConfig, a netip.Addr) (netip.AddrPort, error) {
	pc, l, err := listenBoth(lc, a)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inFlight == nil {
		n.inFlight = make(chan struct{}, maxInFlight)
	}
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: n}, {Listener: l, Handler: n, ReadTimeout: 10 * time.Second}} {
		n.servers = append(n.servers, s)
		go s.ActivateAndServe()
	}
	return netip.AddrPortFrom(a, uint16(l.Addr().(*net.TCPAddr).Port)), nil
}

// listenBoth takes a port that is free for UDP and TCP.
func listenBoth(lc *net.ListenConfig, a netip.Addr) (pc net.PacketConn, l net.Listener, err error) {
	for range 20 {
		if pc, err = lc.ListenPacket(context.Background(), "udp", netip.AddrPortFrom(a, 0).String()); err != nil {
			return nil, nil, err
		}
		if l, err = lc.Listen(context.Background(), "tcp", pc.LocalAddr().String()); err == nil {
			return pc, l, nil
		}
		pc.Close()
	}
	return nil, nil, err
}

func (n *nameServer) stop() {
	n.mu.Lock()
	servers := n.servers
	n.servers = nil
	n.mu.Unlock()
	for _, s := range servers {
		// A server that has not begun to serve yet has only its socket.
		if s.PacketConn != nil {
			s.PacketConn.Close()
		}
		if s.Listener != nil {
			s.Listener.Close()
		}
	}
}

// ServeDNS answers one question.
func (n *nameServer) ServeDNS(w dns.ResponseWriter, q *dns.Msg) {
	defer w.Close()
	if len(q.Question) != 1 || q.Opcode != dns.OpcodeQuery {
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNotImplemented))
		return
	}
	from, _ := netip.ParseAddrPort(w.RemoteAddr().String())
	client := from.Addr().Unmap()
	if m := n.local(client, q); m != nil {
		w.WriteMsg(m)
		return
	}
	select {
	case n.inFlight <- struct{}{}:
		defer func() { <-n.inFlight }()
	default:
		w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeServerFailure))
		return
	}
	w.WriteMsg(forward(q, w.LocalAddr().Network(), n.upstream(client)))
}

// local answers for containers; nil: it is not about one.
func (n *nameServer) local(client netip.Addr, q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	name := strings.TrimSuffix(strings.ToLower(question.Name), ".")
	m := new(dns.Msg).SetReply(q)
	m.RecursionAvailable = true
	head := dns.RR_Header{Name: question.Name, Rrtype: question.Qtype, Class: dns.ClassINET, Ttl: 600}
	switch question.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		addrs := n.lookup(client, name)
		if len(addrs) == 0 {
			return nil
		}
		for _, a := range addrs {
			switch {
			case a.Is4() && question.Qtype == dns.TypeA:
				m.Answer = append(m.Answer, &dns.A{Hdr: head, A: a.AsSlice()})
			case a.Is6() && question.Qtype == dns.TypeAAAA:
				m.Answer = append(m.Answer, &dns.AAAA{Hdr: head, AAAA: a.AsSlice()})
			}
		}
		return m
	case dns.TypePTR:
		a, ok := reverseAddr(name)
		if !ok {
			return nil
		}
		host := n.reverse(client, a)
		if host == "" {
			return nil
		}
		m.Answer = append(m.Answer, &dns.PTR{Hdr: head, Ptr: dns.Fqdn(host)})
		return m
	}
	if len(n.lookup(client, name)) > 0 {
		return m // the name is there, of another type
	}
	return nil
}

// reverseAddr reads 4.3.2.1.in-addr.arpa and its long counterpart.
func reverseAddr(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		p := strings.Split(s, ".")
		if len(p) != 4 {
			return netip.Addr{}, false
		}
		a, err := netip.ParseAddr(p[3] + "." + p[2] + "." + p[1] + "." + p[0])
		return a, err == nil
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	p := strings.Split(s, ".")
	if !ok || len(p) != 32 {
		return netip.Addr{}, false
	}
	var b strings.Builder
	for i := 31; i >= 0; i-- {
		b.WriteString(p[i])
		if i%4 == 0 && i > 0 {
			b.WriteByte(':')
		}
	}
	a, err := netip.ParseAddr(b.String())
	return a, err == nil
}

// An upstream is where questions go that are not about containers.
type upstream struct {
	servers []string // none: nobody is to hear of them
	ns      *os.File // the namespace to ask from; nil = the host's
	own     *os.File // the namespace that servers on loopback addresses are in
}

// forward asks the servers one after the other.
func forward(q *dns.Msg, network string, up upstream) *dns.Msg {
	id := q.Id
	ask := q.Copy()
	ask.Id = dns.Id()
	for i, server := range up.servers {
		ns := up.ns
		if a, err := netip.ParseAddr(server); err == nil && a.IsLoopback() && up.own != nil {
			ns = up.own
		}
		m, err := exchange(ask, network, server, ns)
		if err != nil {
			continue
		}
		truncated := m.Truncated && network == "udp" && q.IsEdns0() == nil // the client comes again over TCP
		if truncated || m.Rcode != dns.RcodeServerFailure && m.Rcode != dns.RcodeRefused || i == len(up.servers)-1 {
			m.Id = id
			return m
		}
	}
	return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
}

// exchange asks one server.
func exchange(q *dns.Msg, network, server string, ns *os.File) (m *dns.Msg, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	c := &dns.Client{Net: network, Timeout: 4 * time.Second}
	if network == "udp" {
		c.UDPSize = 4096
	}
	at := net.JoinHostPort(server, "53")
	if ns == nil {
		m, _, err = c.ExchangeContext(ctx, q, at)
		return m, err
	}
	var conn *dns.Conn
	if err := linux.InNetNS(ns, func() (err error) { conn, err = c.DialContext(ctx, at); return err }); err != nil {
		return nil, err
	}
	defer conn.Close()
	m, _, err = c.ExchangeWithConnContext(ctx, q, conn)
	return m, err
}
