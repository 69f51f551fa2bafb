package container

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/onggi/onggi/internal/image"
)

type oneImage struct{ Images }

func (oneImage) Get(string) (image.Image, error) { return image.Image{ID: "sha256:1"}, nil }

func listed(n int) *Service {
	s := &Service{byID: map[string]*Container{}, o: Options{Images: oneImage{}}}
	now := time.Now()
	for i := range n {
		id := fmt.Sprintf("%064x", i)
		r := &Record{
			ID: id, Name: fmt.Sprintf("web-%d", i), Created: now.Add(-time.Duration(i*7919%n) * time.Second), ImageID: "sha256:1",
			Config: &Config{Image: "busybox", Cmd: []string{"sleep", "100000"}, Labels: map[string]string{"com.example": "a"}}, HostConfig: &HostConfig{NetworkMode: "bridge"},
			Networks: map[string]*network.EndpointSettings{"bridge": {}},
		}
		st := Status{State: Running, PID: 100 + i, StartedAt: now}
		a := netip.AddrFrom4([4]byte{10, 190, byte(i >> 8), byte(i)})
		st.Sandbox.Endpoints = []EndpointStatus{{
			NetworkName: "bridge", NetworkID: id, EndpointID: id, IPv4: netip.PrefixFrom(a, 16), IPv6: netip.MustParsePrefix("fd00::1/64"),
			Gateway4: netip.MustParseAddr("10.190.0.1"), Gateway6: netip.MustParseAddr("fd00::1"), MAC: "02:42:ac:11:00:02", DNSNames: []string{r.Name, id[:12]},
		}}
		st.Sandbox.Ports = []PortStatus{{Port: 80, Proto: "tcp", HostIP: netip.IPv4Unspecified(), HostPort: uint16(i)}}
		s.byID[id] = newContainer(r, st)
	}
	return s
}

// The newest come first, and a limit counts what matches, of any state.
func TestListOrder(t *testing.T) {
	s := listed(20)
	s.byID[fmt.Sprintf("%064x", 0)].st.State = Exited // the newest
	for _, c := range []struct {
		o    ListOptions
		want int
	}{{ListOptions{}, 19}, {ListOptions{All: true}, 20}, {ListOptions{Limit: 3}, 3}, {ListOptions{Limit: 3, Filters: map[string][]string{"status": {"running"}}}, 3}, {ListOptions{Filters: map[string][]string{"name": {"nothing"}}}, 0}} {
		for _, brief := range []bool{false, true} {
			c.o.Brief = brief
			got, err := s.List(t.Context(), c.o)
			if err != nil || got == nil || len(got) != c.want {
				t.Fatalf("%+v: %d %v", c.o, len(got), err)
			}
			if !slices.IsSortedFunc(got, func(a, b container.Summary) int { return cmp.Compare(b.Created, a.Created) }) {
				t.Errorf("%+v: %v", c.o, got)
			}
			newest := c.o.All || c.o.Limit > 0 && c.o.Filters == nil
			if c.want > 0 && (got[0].Names[0] == "/web-0") != newest {
				t.Errorf("%+v: first is %s", c.o, got[0].Names[0])
			}
		}
	}
}

// A port is exposed or published, not both; a container at rest has none.
func TestListPorts(t *testing.T) {
	r := &Record{Config: &Config{ExposedPorts: network.PortSet{network.MustParsePort("80/tcp"): {}, network.MustParsePort("80/udp"): {}, network.MustParsePort("9/tcp"): {}}}}
	st := Status{State: Running, PID: 1}
	for _, a := range []string{"::", "0.0.0.0"} {
		st.Sandbox.Ports = append(st.Sandbox.Ports, PortStatus{Port: 80, Proto: "tcp", HostIP: netip.MustParseAddr(a), HostPort: 8080})
	}
	want := []container.PortSummary{
		{PrivatePort: 9, Type: "tcp"},
		{IP: netip.IPv4Unspecified(), PrivatePort: 80, PublicPort: 8080, Type: "tcp"}, {IP: netip.IPv6Unspecified(), PrivatePort: 80, PublicPort: 8080, Type: "tcp"},
		{PrivatePort: 80, Type: "udp"},
	}
	if got := portSummaries(r, st); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	st.State = Exited
	if got := portSummaries(r, st); got == nil || len(got) != 0 {
		t.Errorf("at rest: %v", got)
	}
}

func BenchmarkList1000(b *testing.B) {
	s := listed(1000)
	for name, o := range map[string]ListOptions{"full": {}, "brief": {Brief: true}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				list, err := s.List(b.Context(), o)
				if err != nil || len(list) != 1000 {
					b.Fatal(len(list), err)
				}
			}
		})
	}
}
