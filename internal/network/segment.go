package network

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/netlink"
)

// A bridge of Linux has 1,023 ports. A network that needs more gets further
// bridges (segments), each plugged into the first, which keeps some ports for
// them. Addresses, names and rules know the first only.

// portsOf is how many containers a segment takes.
func portsOf(segment int) int {
	const cables = 63
	if segment == 0 {
		return netlink.MaxPorts - cables
	}
	return netlink.MaxPorts - 1
}

func (n *Network) segmentName(i int) string {
	if i == 0 {
		return n.bridge()
	}
	return fmt.Sprintf("ogs%s-%d", n.ID[:8], i)
}

// chooseSegment is the first with a free port. taken counts the ports in use.
func chooseSegment(taken []int) int {
	for i, n := range taken {
		if n < portsOf(i) {
			return i
		}
	}
	return len(taken)
}

// segmentLocked reserves a place on a segment of the network.
func (s *Service) segmentLocked(n *live) int {
	taken := make([]int, len(n.segments)+1)
	all := 0
	for _, b := range s.sandboxes {
		for _, e := range b.Endpoints {
			all++
			if e.NetworkID == n.ID && e.Segment < len(taken) {
				taken[e.Segment]++
			}
		}
	}
	if all%256 == 255 {
		rememberNeighbours(all * 64)
	}
	return chooseSegment(taken)
}

// segment gives the index of a segment's bridge, and makes it.
func (s *Service) segment(n *live, i int) (index int, err error) {
	if i == 0 {
		return n.index, nil
	}
	n.extending.Lock()
	defer n.extending.Unlock()
	for len(n.segments) < i {
		k := len(n.segments) + 1
		cable := fmt.Sprintf("ogc%s%d", n.ID[:8], k)
		index, err := netlink.ExtendBridge(n.index, n.segmentName(k), cable, n.mtu(s.o.MTU))
		if err != nil {
			return 0, err
		}
		if n.settings().noICC && !seesBridges() {
			if err := netlink.Isolate(cable + "a"); err != nil {
				return 0, err
			}
		}
		// The host answers for its addresses on the first bridge only.
		if err := linux.SetNetSysctl("ipv4/conf/"+n.segmentName(k)+"/arp_ignore", "8"); err != nil {
			return 0, err
		}
		letRoute(n.segmentName(k), n.EnableIPv6)
		s.mu.Lock()
		n.segments = append(n.segments, index)
		s.mu.Unlock()
		if err := s.syncRules(); err != nil { // where bridges pass their packets to the rules
			return 0, err
		}
	}
	return n.segments[i-1], nil
}

// segmentsRoute reports whether the host can take packets on a segment from
// addresses that are behind the first bridge, unless the kernel is told to be
// strict about that on all interfaces.
func segmentsRoute() bool {
	data, err := os.ReadFile("/proc/sys/net/ipv4/conf/all/rp_filter")
	return err == nil && strings.TrimSpace(string(data)) != "1"
}

// letRoute prepares a segment's bridge for what is redirected on it.
func letRoute(name string, v6 bool) {
	linux.SetNetSysctl("ipv4/conf/"+name+"/rp_filter", "0")
	if !hasIPv6() {
		return
	}
	for _, kv := range [][2]string{{"disable_ipv6", "1"}, {"accept_ra", "0"}, {"addr_gen_mode", "1"}, {"disable_ipv6", "0"}} {
		if v6 || kv[1] != "0" {
			linux.SetNetSysctl("ipv6/conf/"+name+"/"+kv[0], kv[1])
		}
	}
}

// rememberNeighbours lets the kernel know that many addresses of containers: its
// table is one for the whole machine, and holds 1,024 unless told.
func rememberNeighbours(want int) {
	for _, family := range []string{"ipv4", "ipv6"} {
		for i, name := range []string{"gc_thresh3", "gc_thresh2", "gc_thresh1"} {
			path := family + "/neigh/default/" + name
			data, err := os.ReadFile("/proc/sys/net/" + path)
			if have, perr := strconv.Atoi(strings.TrimSpace(string(data))); err == nil && perr == nil && have < want>>i {
				linux.SetNetSysctl(path, strconv.Itoa(want>>i))
			}
		}
	}
}
