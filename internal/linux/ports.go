package linux

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// HoldPort binds a socket that neither listens nor receives, so that nobody else
// gets the port: connections to it are refused.
func HoldPort(proto string, at netip.AddrPort) (io.Closer, error) {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(at.Port())}
	if at.Addr().Is6() {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	} else {
		sa.(*unix.SockaddrInet4).Addr = at.Addr().As4()
	}
	if proto == "udp" {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if family == unix.AF_INET6 {
		unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if kind == unix.SOCK_STREAM {
		// Connections of the port's last owner that are not forgotten yet (TIME_WAIT)
		// do not matter; programs that would share it do.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	} else {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0) // the kernel's least
	}
	err = unix.Bind(fd, sa)
	if err == nil && kind == unix.SOCK_STREAM {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0)
	}
	if err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("bind", err)
	}
	return heldPort(fd), nil
}

type heldPort int

func (p heldPort) Close() error { return unix.Close(int(p)) }

// PortOwner finds the process that has a port bound, on the address or on one
// that excludes it. Pid 0: nobody was found.
func PortOwner(proto string, ip netip.Addr, port uint16) (pid int, name string) {
	var inodes []string
	for _, f := range []string{proto, proto + "6"} {
		data, err := os.Open("/proc/net/" + f)
		if err != nil {
			continue
		}
		inodes = append(inodes, socketsAt(data, proto == "tcp", ip, port)...)
		data.Close()
	}
	want := map[string]bool{}
	for _, i := range inodes {
		want["socket:["+i+"]"] = true
	}
	if len(want) == 0 {
		return 0, ""
	}
	fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && want[to] {
			pid, _ := strconv.Atoi(strings.Split(fd, "/")[2])
			comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			return pid, strings.TrimSpace(string(comm))
		}
	}
	return 0, ""
}

// socketsAt reads the inodes of sockets that have a port from a table of
// /proc/net. Of TCP only those that listen, or are bound and no more.
func socketsAt(r io.Reader, tcp bool, ip netip.Addr, port uint16) (inodes []string) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 10 || tcp && f[3] != "0A" && f[3] != "07" {
			continue
		}
		addr, p, ok := strings.Cut(f[1], ":")
		n, err := strconv.ParseUint(p, 16, 16)
		if !ok || err != nil || uint16(n) != port {
			continue
		}
		a := procAddr(addr)
		if a == ip || a.IsUnspecified() || ip.IsUnspecified() {
			inodes = append(inodes, f[9])
		}
	}
	return inodes
}

// procAddr reads an address as /proc/net writes it: words of the host's order.
func procAddr(s string) netip.Addr {
	b, err := hex.DecodeString(s)
	if err != nil || len(b)%4 != 0 {
		return netip.Addr{}
	}
	for i := 0; i < len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	a, _ := netip.AddrFromSlice(b)
	return a.Unmap()
}
