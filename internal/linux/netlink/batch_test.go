package netlink

import (
	"errors"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/testenv"
)

func TestRequestsTogether(t *testing.T) {
	testenv.NeedRoot(t)
	ns, err := linux.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	s, err := openRoute(ns)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if data, err := s.do(); data != nil || err != nil {
		t.Errorf("nothing to do: %v, %v", data, err)
	}
	addr := newAddress("lo", loopback, netip.MustParsePrefix("10.0.0.1/24"))
	again := newAddress("lo", loopback, netip.MustParsePrefix("10.0.0.1/24"))
	// The third is refused as well, but it is not the first.
	_, err = s.do(bringUp("lo", loopback), addr, again, bringUp("nobody", 99))
	if !errors.Is(err, syscall.EEXIST) || !strings.Contains(err.Error(), "address 10.0.0.1/24 of lo") {
		t.Errorf("an address twice: %v", err)
	}
	// What was left of the answers does not disturb the next.
	if i, err := s.indexOf("lo"); i != loopback || err != nil {
		t.Errorf("lo is number %d, %v", i, err)
	}
	if _, err := s.indexOf("nobody"); !errors.Is(err, syscall.ENODEV) || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a link that is not there: %v", err)
	}
	if _, err := s.do(newDefaultRoute("lo", loopback, DefaultRoute{Gateway: netip.MustParseAddr("10.0.0.2")}), bringUp("lo", loopback)); err != nil {
		t.Error(err)
	}
}
