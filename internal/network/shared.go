package network

import (
	"cmp"
	"errors"
	"fmt"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux/netlink"
)

// Networks of the drivers macvlan and ipvlan put containers directly on the
// network of an interface of the host, the parent. The host itself does not reach
// them there: their names are answered inside of each container.

// Options of these drivers, by Docker's names.
const (
	optionParent      = "parent"
	optionMacvlanMode = "macvlan_mode"
	optionIPvlanMode  = "ipvlan_mode"
	optionIPvlanFlag  = "ipvlan_flag"
)

// shares reports whether containers share an interface of the host.
func (n *Network) shares() bool { return n.Driver == "macvlan" || n.Driver == "ipvlan" }

// share is how a container gets its interface.
func (n *Network) share() netlink.Share {
	s := netlink.Share{Driver: n.Driver, Parent: n.Options[optionParent], Mode: n.Options[optionMacvlanMode]}
	if n.Driver == "ipvlan" {
		s.Mode, s.Flag = n.Options[optionIPvlanMode], n.Options[optionIPvlanFlag]
	}
	if s.Parent == "" { // one that leads nowhere
		s.Parent = map[string]string{"macvlan": "dm-", "ipvlan": "di-"}[n.Driver] + n.ID[:12]
	}
	return s
}

// layer3 reports whether the network is routed without knowing neighbours.
func (n *Network) layer3() bool {
	mode := n.Options[optionIPvlanMode]
	return n.Driver == "ipvlan" && (mode == "l3" || mode == "l3s")
}

// closed reports whether nothing outside is reached by the network.
func (n *Network) closed() bool {
	return n.Internal || n.Driver == "host" || n.Driver == "null" || n.shares() && n.Options[optionParent] == ""
}

// ensureParent makes the parent interface where it is missing.
func (n *Network) ensureParent() (made bool, err error) {
	return netlink.EnsureParent(n.share().Parent, n.Options[optionParent] == "")
}

// checkShare reports what keeps a network of these drivers from being made.
func (s *Service) checkShare(n *live) error {
	sh := n.share()
	if err := sh.Check(); err != nil {
		return errdefs.New(errdefs.Invalid, "create", object(n.Name), err)
	}
	if sh.Parent == "lo" {
		return errdefs.Newf(errdefs.Invalid, "create", object(n.Name), "the loopback interface cannot be the parent of a %s", n.Driver)
	}
	if err := sh.Supported(); err != nil {
		return errdefs.WithHint(errdefs.New(errdefs.Unsupported, "create", object(n.Name), err), "modprobe "+n.Driver+", or the driver bridge")
	}
	for _, x := range s.list() {
		if !x.shares() || x.share().Parent != sh.Parent {
			continue
		}
		y := x.share()
		if x.Driver != n.Driver || sh.Mode == "passthru" || y.Mode == "passthru" {
			return errdefs.Newf(errdefs.Conflict, "create", object(n.Name), "network %s is already using parent interface %s, and the %s %s does not share it", x.Name, sh.Parent, x.Driver, cmp.Or(y.Mode, "network"))
		}
		n.ParentMade = n.ParentMade || x.ParentMade
	}
	return nil
}

// upShare makes what the network needs.
func (s *Service) upShare(n *live) error {
	made, err := n.ensureParent()
	if made && !n.ParentMade {
		n.ParentMade = true
		err = errors.Join(err, s.put(n))
	}
	if err != nil {
		return fmt.Errorf("network %s: %w", n.Name, err)
	}
	return nil
}

// downShare removes a parent interface of our own that no other network uses.
func (s *Service) downShare(n *live) error {
	if !n.ParentMade {
		return nil
	}
	for _, x := range s.list() {
		if x.ID != n.ID && x.shares() && x.share().Parent == n.share().Parent {
			return nil
		}
	}
	return netlink.RemoveLink(n.share().Parent)
}
