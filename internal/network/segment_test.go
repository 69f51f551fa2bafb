package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/netlink"
)

func TestChooseSegment(t *testing.T) {
	full0, full := portsOf(0), portsOf(1)
	for _, c := range []struct {
		taken []int
		want  int
	}{{nil, 0}, {[]int{0}, 0}, {[]int{full0 - 1}, 0}, {[]int{full0}, 1}, {[]int{full0, 3}, 1}, {[]int{full0, full}, 2}, {[]int{5, full}, 0}} {
		if got := chooseSegment(c.taken); got != c.want {
			t.Errorf("%v: %d, want %d", c.taken, got, c.want)
		}
	}
	if n := portsOf(0); n+63 > netlink.MaxPorts {
		t.Errorf("%d containers leave no room for cables", n)
	}
}

// Containers on different bridges of one network are on one network, with and
// without communication between them.
func TestSegments(t *testing.T) {
	s := service(t, t.TempDir(), Options{IPv6: true})
	host, _ := os.Open("/proc/self/ns/net")
	defer host.Close()
	if err := netlink.LoopbackUp(host); err != nil {
		t.Fatal(err)
	}
	for _, icc := range []string{"true", "false"} {
		if icc == "false" { // as some distributions set it
			linux.SetNetSysctl("ipv4/conf/all/rp_filter", "2")
		}
		name := "icc-" + icc
		if _, err := s.Create(ctx, CreateRequest{Name: name, Options: map[string]string{optionICC: icc}}); err != nil {
			t.Fatal(err)
		}
		n := s.byName(name)
		// The first bridge is said to be full by containers that are records only.
		s.mu.Lock()
		for i := range portsOf(0) - 1 {
			s.sandboxes[fmt.Sprint(name, i)] = &sandbox{Request: SandboxRequest{Name: "record"}, Endpoints: []Endpoint{{NetworkID: n.ID, IPv4: netip.MustParsePrefix("198.51.100.1/24")}}}
		}
		s.mu.Unlock()
		var boxes [3]Sandbox
		var ns [3]*os.File
		for i := range 3 {
			boxes[i], ns[i] = attach(t, s, fmt.Sprint(name, "-c", i), func(r *SandboxRequest) {
				r.Endpoints[0].Network = name
				if i == 1 {
					r.Ports = []PortRequest{{Port: 80, Proto: "tcp", HostPort: 8060 + uint16(len(icc))}}
				}
			})
			serve(t, ns[i], 80, fmt.Sprint("c", i))
			if want := min(i, 1); boxes[i].Endpoints[0].Segment != want {
				t.Fatalf("container %d is on segment %d", i, boxes[i].Endpoints[0].Segment)
			}
		}
		gw := boxes[0].Endpoints[0].Gateway4.String()
		for i := range 3 {
			for j := range 3 {
				want := fmt.Sprint("c", j)
				if i == j {
					continue
				}
				if icc == "false" {
					want = "no"
				}
				for _, a := range []netip.Prefix{boxes[j].Endpoints[0].IPv4, boxes[j].Endpoints[0].IPv6} {
					if got := reaches(ns[i], netip.AddrPortFrom(a.Addr(), 80).String(), want); got != want {
						t.Errorf("icc %s: from %d to %d (%s): %q", icc, i, j, a, got)
					}
				}
			}
			if got, _ := ask(t, ns[i], gw, name+"-c2", dns.TypeA); len(got) != 1 {
				t.Errorf("icc %s: names on segment %d: %v", icc, i, got)
			}
			for _, a := range []netip.Addr{boxes[0].Endpoints[0].Gateway4, boxes[0].Endpoints[0].Gateway6} {
				if got := reaches(ns[i], netip.AddrPortFrom(a, 8060+uint16(len(icc))).String(), "c1"); got != "c1" {
					t.Errorf("icc %s: from %d to the published port of %s: %q", icc, i, a, got)
				}
			}
		}
		for _, a := range []string{"127.0.0.1", gw} {
			if got := reaches(nil, fmt.Sprint(a, ":", 8060+len(icc)), "c1"); got != "c1" {
				t.Errorf("icc %s: from the host to the published port of %s: %q", icc, a, got)
			}
		}
	}
	if l, err := netlink.Links("ogs"); err != nil || len(l) != 2 {
		t.Errorf("segments %v, %v", l, err)
	}
}

// TestManyContainers is a soak test: ONGGI_SOAK=1500 puts that many on one bridge
// network, and each must reach others on both segments.
func TestManyContainers(t *testing.T) {
	var count int
	if fmt.Sscan(os.Getenv("ONGGI_SOAK"), &count); count == 0 {
		t.Skip("ONGGI_SOAK is not set to a number of containers")
	}
	s := service(t, t.TempDir(), Options{IPv6: true})
	if _, err := s.Create(ctx, CreateRequest{Name: "big", IPAM: []Pool{{Subnet: netip.MustParsePrefix("10.77.0.0/16")}}}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	boxes, ns := make([]Sandbox, count), make([]*os.File, count)
	for i := range count {
		boxes[i], ns[i] = attach(t, s, fmt.Sprint("m", i), func(r *SandboxRequest) { r.Endpoints[0].Network = "big" })
		err := linux.InNetNS(ns[i], func() error {
			pc, err := net.ListenPacket("udp4", ":7")
			if err != nil {
				return err
			}
			t.Cleanup(func() { pc.Close() })
			go func() {
				buf := make([]byte, 100)
				for {
					n, from, err := pc.ReadFrom(buf)
					if err != nil {
						return
					}
					pc.WriteTo(buf[:n], from)
				}
			}()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d containers attached in %v", count, time.Since(began).Round(time.Millisecond))
	began = time.Now()
	lost, asked := 0, 0
	for i := range count {
		linux.InNetNS(ns[i], func() error {
			// Neighbours at all distances, so that every pair of segments is tried.
			for d := 1; d < count; d *= 2 {
				asked++
				if !echoes(boxes[(i+d)%count].Endpoints[0].IPv4.Addr()) {
					lost++
				}
			}
			return nil
		})
	}
	t.Logf("%d pairs in %v, %d without an answer", asked, time.Since(began).Round(time.Millisecond), lost)
	if lost > 0 {
		t.Error("some containers do not reach others")
	}
	began = time.Now()
	for i := range count {
		if err := s.Release(context.Background(), fmt.Sprintf("%064s", fmt.Sprint("m", i))); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("released in %v", time.Since(began).Round(time.Millisecond))
}

func echoes(a netip.Addr) bool {
	c, err := net.Dial("udp4", netip.AddrPortFrom(a, 7).String())
	if err != nil {
		return false
	}
	defer c.Close()
	for range 5 {
		c.Write([]byte("echo"))
		c.SetReadDeadline(time.Now().Add(2 * time.Second))
		if n, err := c.Read(make([]byte, 10)); err == nil && n == 4 {
			return true
		}
	}
	return false
}
