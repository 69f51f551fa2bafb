package network

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Connections to ::1 cannot be redirected into a container as those to 127.0.0.1
// are: the kernel sends nothing from ::1 out of an interface. They are accepted
// here and copied, as long as the engine runs.

// A loopback is the listener that holds a TCP port of an IPv6 address.
type loopback struct {
	l net.Listener
	s *Service
	k hostPort
}

func (s *Service) listenLoopback(k hostPort) (io.Closer, error) {
	l, err := net.Listen("tcp6", netip.AddrPortFrom(k.ip, k.port).String())
	if err != nil {
		return nil, err
	}
	p := &loopback{l, s, k}
	go p.serve()
	return l, nil
}

func (p *loopback) serve() {
	for {
		c, err := p.l.Accept()
		if err != nil {
			return
		}
		local, _ := netip.ParseAddrPort(c.LocalAddr().String())
		to := p.s.targetOf(p.k)
		// Whoever comes to another address was not redirected: our rules are gone.
		if !local.Addr().IsLoopback() || !to.IsValid() {
			c.Close()
			continue
		}
		go carry(c.(*net.TCPConn), to)
	}
}

// targetOf is where a published port leads.
func (s *Service) targetOf(k hostPort) netip.AddrPort {
	s.mu.Lock()
	var owner *sandbox
	for _, b := range s.sandboxes {
		for _, p := range b.Ports {
			if (hostPort{p.Proto, p.HostIP, p.HostPort}) == k {
				owner = b
			}
		}
	}
	s.mu.Unlock()
	if owner != nil {
		for _, t := range s.targets(owner) {
			if t.HostIP == k.ip && t.HostPort == k.port && t.Proto == protocols[k.proto] {
				return t.Target
			}
		}
	}
	return netip.AddrPort{}
}

// carry copies both ways until both have ended.
func carry(c *net.TCPConn, to netip.AddrPort) {
	defer c.Close()
	d, err := net.DialTimeout("tcp", to.String(), 10*time.Second)
	if err != nil {
		c.SetLinger(0) // as if nobody listened
		return
	}
	out := d.(*net.TCPConn)
	defer out.Close()
	var both sync.WaitGroup
	for _, way := range [][2]*net.TCPConn{{c, out}, {out, c}} {
		both.Go(func() {
			io.Copy(way[1], way[0])
			way[1].CloseWrite()
		})
	}
	both.Wait()
}
