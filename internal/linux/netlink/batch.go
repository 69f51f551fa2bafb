package netlink

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"

	"github.com/onggi/onggi/internal/linux"
)

// A routeSocket speaks with the kernel about the links, addresses and routes of
// one network namespace. It sends requests together, where package netlink needs
// a packet and an answer for each.
type routeSocket struct {
	fd  int
	seq uint32
}

// openRoute opens a socket in a namespace; nil is the caller's. A socket stays
// where it was made.
func openRoute(ns *os.File) (s routeSocket, err error) {
	open := func() error {
		s.fd, err = syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, syscall.NETLINK_ROUTE)
		return os.NewSyscallError("socket", err)
	}
	if ns == nil {
		err = open()
	} else {
		err = linux.VisitNetNS(ns, open)
	}
	if err != nil {
		return s, fmt.Errorf("open a netlink socket: %w", err)
	}
	return s, nil
}

func (s *routeSocket) close() { syscall.Close(s.fd) }

// A request is one of several; what names it in an error.
type request struct {
	what string
	*nl.NetlinkRequest
}

var errCutOff = errors.New("an answer of the kernel is cut off")

// do has the kernel carry out all requests, one after the other, and gives the
// data of the last one's answer, if it asks for data. The first that goes wrong
// is the error; those after it were carried out.
func (s *routeSocket) do(all ...request) (data []byte, err error) {
	if len(all) == 0 {
		return nil, nil
	}
	var packet []byte
	first := s.seq + 1
	for i, q := range all {
		s.seq++
		q.Seq = s.seq
		// The kernel tells of errors in any case; the last one's answer tells that
		// there were none.
		q.Flags &^= syscall.NLM_F_ACK
		if i == len(all)-1 && q.Type != syscall.RTM_GETLINK {
			q.Flags |= syscall.NLM_F_ACK
		}
		packet = append(packet, q.Serialize()...)
		packet = append(packet, make([]byte, -len(packet)&(syscall.NLMSG_ALIGNTO-1))...)
	}
	if err := syscall.Sendto(s.fd, packet, 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return nil, os.NewSyscallError("sendto", err)
	}
	buf := make([]byte, 8<<10) // the kernel sends no more at once, but in dumps
	for {
		n, _, err := syscall.Recvfrom(s.fd, buf, 0)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		msgs, err := syscall.ParseNetlinkMessage(buf[:n])
		if err != nil {
			return nil, err
		}
		for _, m := range msgs {
			if m.Header.Seq < first || m.Header.Seq > s.seq {
				continue // an error of an earlier call that stopped at its first
			}
			if m.Header.Type != syscall.NLMSG_ERROR {
				return m.Data, nil
			}
			if len(m.Data) < 4 {
				return nil, errCutOff
			}
			if errno := int32(binary.NativeEndian.Uint32(m.Data)); errno != 0 {
				return nil, fmt.Errorf("%s: %w", all[m.Header.Seq-first].what, syscall.Errno(-errno))
			}
			if m.Header.Seq == s.seq {
				return nil, nil
			}
		}
	}
}

func linkRequest(typ, flags, index int) (*nl.NetlinkRequest, *nl.IfInfomsg) {
	q := nl.NewNetlinkRequest(typ, flags)
	msg := nl.NewIfInfomsg(syscall.AF_UNSPEC)
	msg.Index = int32(index)
	q.AddData(msg)
	return q, msg
}

func bringUp(what string, index int) request {
	q, msg := linkRequest(syscall.RTM_NEWLINK, 0, index)
	msg.Flags, msg.Change = syscall.IFF_UP, syscall.IFF_UP
	return request{"bring " + what + " up", q}
}

// loopback is what the kernel numbers lo in every namespace (LOOPBACK_IFINDEX).
const loopback = 1

// indexOf finds an interface.
func (s *routeSocket) indexOf(name string) (int, error) {
	q, _ := linkRequest(syscall.RTM_GETLINK, 0, 0)
	q.AddData(nl.NewRtAttr(syscall.IFLA_IFNAME, nl.ZeroTerminated(name)))
	q.AddData(nl.NewRtAttr(iflaExtMask, nl.Uint32Attr(rtextFilterSkipStats)))
	link, err := s.do(request{"find the interface " + name, q})
	if err != nil {
		return 0, err
	}
	if len(link) < syscall.SizeofIfInfomsg {
		return 0, errCutOff
	}
	return int(nl.DeserializeIfInfomsg(link).Index), nil
}

func newAddress(what string, index int, a netip.Prefix) request {
	q := nl.NewNetlinkRequest(syscall.RTM_NEWADDR, syscall.NLM_F_CREATE|syscall.NLM_F_EXCL)
	family := syscall.AF_INET
	if a.Addr().Is6() {
		family = syscall.AF_INET6
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Index, msg.Prefixlen = uint32(index), uint8(a.Bits())
	if family == syscall.AF_INET6 {
		msg.Flags = syscall.IFA_F_NODAD
	}
	q.AddData(msg)
	ip := a.Addr().AsSlice()
	q.AddData(nl.NewRtAttr(syscall.IFA_LOCAL, ip))
	q.AddData(nl.NewRtAttr(syscall.IFA_ADDRESS, ip))
	if family == syscall.AF_INET && a.Bits() < 31 { // RFC 3021: smaller ones have none
		last := slices.Clone(ip)
		for i, m := range net.CIDRMask(a.Bits(), 32) {
			last[i] |= ^m
		}
		q.AddData(nl.NewRtAttr(syscall.IFA_BROADCAST, last))
	}
	return request{fmt.Sprintf("address %s of %s", a, what), q}
}

func newDefaultRoute(what string, index int, r DefaultRoute) request {
	flags := syscall.NLM_F_CREATE
	if r.Replace {
		flags |= syscall.NLM_F_REPLACE
	} else {
		flags |= syscall.NLM_F_EXCL
	}
	q := nl.NewNetlinkRequest(syscall.RTM_NEWROUTE, flags)
	msg := nl.NewRtMsg()
	msg.Family = syscall.AF_INET
	if r.IPv6 || r.Gateway.Is6() {
		msg.Family = syscall.AF_INET6
	}
	q.AddData(msg)
	switch {
	case r.Gateway.IsValid():
		q.AddData(nl.NewRtAttr(syscall.RTA_GATEWAY, r.Gateway.AsSlice()))
	case !r.IPv6:
		msg.Scope = syscall.RT_SCOPE_LINK
	}
	q.AddData(nl.NewRtAttr(syscall.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return request{"default route by " + what + ": failed to set gateway", q} // clients look for these words
}
