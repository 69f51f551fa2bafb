package build

import (
	"context"
	"net/netip"
	"os"

	"github.com/onggi/onggi/internal/build/executor"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/netlink"
	"github.com/onggi/onggi/internal/network"
)

// Steps connects the steps of builds to the default network.
func Steps(n *network.Service) executor.Network { return steps{n} }

type steps struct{ n *network.Service }

// Attach implements executor.Network.
func (s steps) Attach(ctx context.Context, id, hostname string) (*executor.Sandbox, error) {
	ns, err := linux.NewNetNS()
	if err != nil {
		return nil, err
	}
	id = "build-" + id
	b, err := s.n.Attach(ctx, network.SandboxRequest{ContainerID: id, Name: id, Hostname: hostname, NetNS: ns, Endpoints: []network.EndpointRequest{{Network: "bridge"}}})
	if err != nil {
		ns.Close()
		return nil, err
	}
	return &executor.Sandbox{NetNS: ns, ResolvConf: b.ResolvConf, Release: func(ctx context.Context) error {
		return s.n.Release(ctx, id)
	}}, nil
}

// Empty implements executor.Network.
func (s steps) Empty() (*os.File, error) {
	ns, err := linux.NewNetNS()
	if err != nil {
		return nil, err
	}
	if err := netlink.LoopbackUp(ns); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// HostGateway finds what build steps reach the host by: the gateway of the
// default network.
func HostGateway(n *network.Service) func() netip.Addr {
	return func() netip.Addr {
		b, err := n.Get("bridge")
		if err != nil || len(b.IPAM) == 0 {
			return netip.Addr{}
		}
		return b.IPAM[0].Gateway
	}
}
