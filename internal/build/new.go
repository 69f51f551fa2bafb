package build

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/util/resolver/config"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/build/executor"
	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/linux/seccomp"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/registry"
	"github.com/onggi/onggi/internal/snapshot"
)

// Options of a Service.
type Options struct {
	Root         string // <data-root>/build
	Run          string // directory of this boot, for files of running steps; below Root where empty
	DB           *metadb.DB
	Snapshots    *snapshot.Store
	Images       *image.Service
	Network      executor.Network  // nil: builds have no network but none and host
	Registry     registry.Options  // where registries are, and how they are spoken to
	CgroupParent string            // "/onggi/build" where empty
	MaxProcesses int64             // of one build step; 32768 where 0
	HostGateway  func() netip.Addr // what clients call host-gateway; may be nil
	Policy       Policy
	Building     func() (done func()) // told of each build; may be nil
	Logger       *slog.Logger
}

// New returns a service that has done nothing yet: what it is made of is made
// by the first request that needs it.
func New(o Options) *Service {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Run == "" {
		o.Run = filepath.Join(o.Root, "run")
	}
	return &Service{make: func(ctx context.Context) (*core, error) {
		exec, err := executor.New(executor.Options{
			Root: o.Run, CgroupParent: o.CgroupParent, Runtime: executor.OCI{}, Network: o.Network, MaxProcesses: o.MaxProcesses, Logger: o.Logger,
			Seccomp: func(caps []string) *specs.LinuxSeccomp { return seccomp.Default(caps, "") },
		})
		if err != nil {
			return nil, err
		}
		p := parts{
			root:      o.Root,
			records:   func(b string) refs.Records { return bucket{o.DB, b} },
			snapshots: snapshots{o.Snapshots},
			layers:    layers{},
			mounter:   mounter{},
			executor:  exec,
			hosts:     registryHosts(o.Registry),
			gateway:   o.HostGateway,
			policy:    o.Policy,
			building:  o.Building,
			disk:      diskOf(o.Root),
			unpack:    unpackContext,
			logger:    o.Logger,
		}
		if o.Images != nil {
			p.images = images{o.Images}
		}
		return newCore(ctx, p)
	}}
}

// registryHosts tells BuildKit's resolver what ours knows: mirrors, hosts
// without TLS, certificates.
func registryHosts(o registry.Options) docker.RegistryHosts {
	return func(domain string) ([]docker.RegistryHost, error) {
		all := map[string]config.RegistryConfig{domain: hostConfig(o, domain)}
		c := all[domain]
		for _, m := range append(slices.Clone(o.Mirrors[domain]), o.Mirrors["*"]...) {
			bare, plain := strings.CutPrefix(m, "http://")
			bare = strings.TrimPrefix(bare, "https://")
			c.Mirrors = append(c.Mirrors, bare)
			host, _, _ := strings.Cut(bare, "/")
			hc := hostConfig(o, host)
			if plain {
				hc.PlainHTTP = &plain
			}
			all[host] = hc
		}
		all[domain] = c
		return resolver.NewRegistryConfig(all)(domain)
	}
}

// hostConfig is how one host is spoken to.
func hostConfig(o registry.Options, host string) config.RegistryConfig {
	var c config.RegistryConfig
	if isInsecure(o.Insecure, host) {
		yes := true
		c.Insecure, c.PlainHTTP = &yes, &yes
	}
	for _, d := range o.CertDirs {
		c.TLSConfigDir = append(c.TLSConfigDir, filepath.Join(d, host))
	}
	return c
}

// isInsecure reports whether the host, or its address, is in the list.
func isInsecure(list []string, host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	addr, err := netip.ParseAddr(name)
	for _, s := range list {
		if s == host || s == name {
			return true
		}
		if p, perr := netip.ParsePrefix(s); perr == nil && err == nil && p.Contains(addr.Unmap()) {
			return true
		}
	}
	return false
}
