package netlink

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/onggi/onggi/internal/linux"
)

// A Share is a container's own link on an interface of the host.
type Share struct {
	Driver string // "macvlan" or "ipvlan"
	Parent string
	Mode   string // "" = the driver's first
	Flag   string // of ipvlan
}

var (
	macvlanModes = map[string]netlink.MacvlanMode{"": netlink.MACVLAN_MODE_BRIDGE, "bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE,
		"vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU}
	ipvlanModes = map[string]netlink.IPVlanMode{"": netlink.IPVLAN_MODE_L2, "l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S}
	ipvlanFlags = map[string]netlink.IPVlanFlag{"": netlink.IPVLAN_FLAG_BRIDGE, "bridge": netlink.IPVLAN_FLAG_BRIDGE, "private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA}
)

// Check reports what no link could be made from.
func (s Share) Check() error {
	_, macvlan := macvlanModes[s.Mode]
	_, ipvlan := ipvlanModes[s.Mode]
	_, flag := ipvlanFlags[s.Flag]
	switch {
	case s.Driver == "macvlan" && !macvlan:
		return fmt.Errorf("the mode %q: want bridge, private, vepa or passthru", s.Mode)
	case s.Driver == "ipvlan" && !ipvlan:
		return fmt.Errorf("the mode %q: want l2, l3 or l3s", s.Mode)
	case s.Driver == "ipvlan" && !flag:
		return fmt.Errorf("the flag %q: want bridge, private or vepa", s.Flag)
	}
	return nil
}

func (s Share) link(attrs netlink.LinkAttrs) netlink.Link {
	if s.Driver == "macvlan" {
		return &netlink.Macvlan{LinkAttrs: attrs, Mode: macvlanModes[s.Mode]}
	}
	return &netlink.IPVlan{LinkAttrs: attrs, Mode: ipvlanModes[s.Mode], Flag: ipvlanFlags[s.Flag]}
}

func (s Share) attach(ns *os.File, e Endpoint) error {
	parent, err := netlink.LinkByName(s.Parent)
	if err != nil {
		return fmt.Errorf("the parent interface %s: %w", s.Parent, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.MTU, attrs.Namespace = e.Name, parent.Attrs().Index, e.MTU, netlink.NsFd(linux.RawFD(ns))
	if s.Driver == "macvlan" { // the links of ipvlan have their parent's address
		attrs.HardwareAddr = e.MAC
	}
	if err := netlink.LinkAdd(s.link(attrs)); err != nil {
		if errors.Is(err, syscall.EOPNOTSUPP) {
			err = fmt.Errorf("the kernel has no %s (module %s): %w", s.Driver, s.Driver, err)
		}
		return fmt.Errorf("make the interface %s on %s: %w", e.Name, s.Parent, err)
	}
	return nil
}

// Supported tries whether the kernel has the driver.
func (s Share) Supported() error {
	name := "ogt" + strconv.FormatInt(int64(os.Getpid()), 36)
	parent, err := addSink(name + "p")
	if err != nil {
		return nil // cannot be tried
	}
	defer netlink.LinkDel(parent)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name+"c", parent.Attrs().Index
	child := s.link(attrs)
	err = netlink.LinkAdd(child)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return fmt.Errorf("the kernel has no %s (module %s): %w", s.Driver, s.Driver, err)
	}
	if err == nil {
		netlink.LinkDel(child)
	}
	return nil
}

// addSink makes an interface that leads nowhere: a dummy, or where the kernel has
// none, a pair of which the other end is not used.
func addSink(name string) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags = name, net.FlagUp
	err := netlink.LinkAdd(&netlink.Dummy{LinkAttrs: attrs})
	if errors.Is(err, syscall.EOPNOTSUPP) {
		other := "ogn" + strings.TrimPrefix(strings.TrimPrefix(name, "dm-"), "di-")
		if err = netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: other}); err == nil {
			var peer netlink.Link
			if peer, err = netlink.LinkByName(other); err == nil {
				err = netlink.LinkSetUp(peer)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return netlink.LinkByName(name)
}

// EnsureParent makes the interface that links share, where it is missing: NAME.ID
// is the VLAN ID of the interface NAME; one that leads nowhere if sink is set.
func EnsureParent(name string, sink bool) (made bool, err error) {
	_, err = netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if err == nil || !errors.As(err, &missing) {
		return false, err
	}
	if sink {
		if _, err := addSink(name); err != nil {
			return false, fmt.Errorf("make the interface %s: %w", name, err)
		}
		return true, nil
	}
	base, id, ok := cutLast(name, ".")
	vlan, err := strconv.Atoi(id)
	if !ok || err != nil || vlan < 1 || vlan > 4094 {
		return false, fmt.Errorf("the host has no interface %s; NAME.ID, with an ID from 1 to 4094, would be a VLAN of the interface NAME", name)
	}
	parent, err := netlink.LinkByName(base)
	if err != nil {
		return false, fmt.Errorf("the interface %s of the VLAN %s: %w", base, name, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, parent.Attrs().Index
	link := &netlink.Vlan{LinkAttrs: attrs, VlanId: vlan, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	if err := netlink.LinkAdd(link); err != nil {
		if errors.Is(err, syscall.EOPNOTSUPP) {
			err = fmt.Errorf("the kernel has no VLANs (module 8021q): %w", err)
		}
		return false, fmt.Errorf("make the interface %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil && !errors.Is(err, syscall.ENETDOWN) {
		return true, fmt.Errorf("bring the interface %s up: %w", name, err)
	}
	return true, nil
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}
