package container

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	netapi "github.com/moby/moby/api/types/network"
)

func TestCheckEndpoint(t *testing.T) {
	v4, v6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	for _, c := range []struct {
		network string
		ip      netapi.EndpointIPAMConfig
		aliases []string
		want    string
	}{
		{"mine", netapi.EndpointIPAMConfig{IPv4Address: v4, IPv6Address: v6}, []string{"a"}, ""},
		{"bridge", netapi.EndpointIPAMConfig{}, []string{"a"}, ""}, // the default network has names too
		{"bridge", netapi.EndpointIPAMConfig{IPv4Address: v4}, nil, "user-defined networks only"},
		{"none", netapi.EndpointIPAMConfig{IPv6Address: v6}, nil, "user-defined networks only"},
		{"host", netapi.EndpointIPAMConfig{}, []string{"a"}, "only supported for user-defined networks"},
		{"mine", netapi.EndpointIPAMConfig{IPv4Address: v6}, nil, "invalid IPv4 address"},
		{"mine", netapi.EndpointIPAMConfig{IPv6Address: v4}, nil, "invalid IPv6 address"},
		{"mine", netapi.EndpointIPAMConfig{IPv6Address: netip.AddrFrom16(v4.As16())}, nil, "invalid IPv6 address"},
	} {
		err := checkEndpoint(c.network, &netapi.EndpointSettings{IPAMConfig: &c.ip, Aliases: c.aliases})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %+v %v: %v", c.network, c.ip, c.aliases, err)
		}
	}
}

func TestLinkVariables(t *testing.T) {
	target := &Config{Env: []string{"A=1", "HOME=/x", "PATH=/y", "B"}, ExposedPorts: netapi.PortSet{netapi.MustParsePort("53/udp"): {}, netapi.MustParsePort("8080/tcp"): {}}}
	got := linkVariables("me", "my-db", "192.0.2.1", target)
	want := []string{"MY_DB_PORT=udp://192.0.2.1:53",
		"MY_DB_PORT_53_UDP=udp://192.0.2.1:53", "MY_DB_PORT_53_UDP_ADDR=192.0.2.1", "MY_DB_PORT_53_UDP_PORT=53", "MY_DB_PORT_53_UDP_PROTO=udp",
		"MY_DB_PORT_8080_TCP=tcp://192.0.2.1:8080", "MY_DB_PORT_8080_TCP_ADDR=192.0.2.1", "MY_DB_PORT_8080_TCP_PORT=8080", "MY_DB_PORT_8080_TCP_PROTO=tcp",
		"MY_DB_NAME=/me/my-db", "MY_DB_ENV_A=1"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}
