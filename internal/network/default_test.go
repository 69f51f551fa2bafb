package network

import (
	"net/netip"
	"strings"
	"testing"
)

// The default network's subnet, from options and the addresses of its bridge.
func TestDefaultPool(t *testing.T) {
	for _, c := range []struct {
		name, bip, fixed, have   string
		foreign                  bool
		subnet, ipRange, gateway string
		warning, err             string
	}{
		{name: "nothing"},
		{name: "address", bip: "10.1.0.7/24", subnet: "10.1.0.0/24", gateway: "10.1.0.7"},
		{name: "no address", bip: "10.1.0.7", err: `--bip "10.1.0.7" is not an address with a prefix length`},
		{name: "other family", bip: "fd00::1/64", err: "--bip"},
		{name: "range", fixed: "10.1.2.0/24", subnet: "10.1.2.0/24", ipRange: "10.1.2.0/24"},
		{name: "range in address", bip: "10.1.0.7/16", fixed: "10.1.2.0/24", have: "10.9.9.9/24", subnet: "10.1.0.0/16", ipRange: "10.1.2.0/24", gateway: "10.1.0.7"},
		{name: "the bridge has one", have: "10.1.0.7/16 fe80::2/64", subnet: "10.1.0.0/16", gateway: "10.1.0.7"},
		{name: "range in the bridge's", have: "10.1.0.7/16", fixed: "10.1.2.0/24", subnet: "10.1.0.0/16", ipRange: "10.1.2.0/24", gateway: "10.1.0.7"},
		{name: "range became larger", have: "10.1.0.7/24", fixed: "10.1.0.0/16", subnet: "10.1.0.0/16", ipRange: "10.1.0.0/16", gateway: "10.1.0.7"},
		{name: "range went elsewhere", have: "10.1.0.7/24", fixed: "10.2.0.0/16", subnet: "10.2.0.0/16", ipRange: "10.2.0.0/16"},
		{name: "host's, the one with the range", foreign: true, have: "10.0.0.1/16 10.1.0.1/16 10.2.0.1/16", fixed: "10.1.3.0/24", subnet: "10.1.0.0/16", ipRange: "10.1.3.0/24", gateway: "10.1.0.1"},
		{name: "host's, range too large", foreign: true, have: "10.1.0.7/24", fixed: "10.1.0.0/16", subnet: "10.1.0.0/24", gateway: "10.1.0.7", warning: "10.1.0.0/16 is not in the subnet 10.1.0.0/24"},
		{name: "host's, range elsewhere", foreign: true, have: "10.1.0.7/24", fixed: "10.2.0.0/24", subnet: "10.1.0.0/24", gateway: "10.1.0.7", warning: "--fixed-cidr"},
		{name: "6", have: "10.1.0.7/24 fe80::2/64 fd00:1::8/64", subnet: "fd00:1::/64", gateway: "fd00:1::8"},
		{name: "6 link-local alone", have: "fe80::2/64"},
		{name: "6 link-local wanted", have: "fe80::2/64", fixed: "fe80::/64", subnet: "fe80::/64", ipRange: "fe80::/64", gateway: "fe80::2"},
		{name: "6 range", bip: "fd00:1::8/56", fixed: "fd00:1:0:3::/64", subnet: "fd00:1::/56", ipRange: "fd00:1:0:3::/64", gateway: "fd00:1::8"},
		{name: "6 host's, range too large", foreign: true, have: "fd00:1::8/64", fixed: "fd00:1::/60", err: "--fixed-cidr-v6 fd00:1::/60 is not in the subnet fd00:1::/64"},
	} {
		q := defaultRequest{bip: c.bip, fixed: c.fixed, foreign: c.foreign}
		if strings.HasPrefix(c.name, "6") {
			q.family = 1
		}
		var have []netip.Prefix
		for _, a := range strings.Fields(c.have) {
			have = append(have, netip.MustParsePrefix(a))
		}
		p, warning, err := q.pool(have)
		text := func(v interface{ IsValid() bool }, s string) string {
			if !v.IsValid() {
				return ""
			}
			return s
		}
		if got := [3]string{text(p.Subnet, p.Subnet.String()), text(p.IPRange, p.IPRange.String()), text(p.Gateway, p.Gateway.String())}; err == nil && got != [3]string{c.subnet, c.ipRange, c.gateway} {
			t.Errorf("%s: %v, want %v", c.name, got, [3]string{c.subnet, c.ipRange, c.gateway})
		}
		says := func(err error, want string) bool {
			return (err == nil) == (want == "") && (err == nil || strings.Contains(err.Error(), want))
		}
		if !says(warning, c.warning) || !says(err, c.err) {
			t.Errorf("%s: warning %v, error %v", c.name, warning, err)
		}
	}
}
