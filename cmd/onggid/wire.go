package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	containertypes "github.com/moby/moby/api/types/container"

	"github.com/onggi/onggi/internal/build"
	"github.com/onggi/onggi/internal/container"
	"github.com/onggi/onggi/internal/content"
	"github.com/onggi/onggi/internal/engineapi"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/monitor"
	"github.com/onggi/onggi/internal/network"
	"github.com/onggi/onggi/internal/registry"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/volume"
)

// services are the parts of the engine, in the order in which they are made.
type services struct {
	db         *metadb.DB
	content    *content.Store
	snapshots  *snapshot.Store
	registry   *registry.Client
	images     *image.Service
	networks   *network.Service
	volumes    *volume.Service
	monitor    *monitor.Client
	containers *container.Service
	builder    *build.Service
	api        *engineapi.Server
}

// wire makes all services. Nothing here decides anything.
func wire(ctx context.Context, c *config, m *machine, log *slog.Logger) (s *services, err error) {
	s = &services{}
	defer func() {
		if err != nil {
			s.close(log)
		}
	}()
	bus := events.New()
	part := func(name string) *slog.Logger { return log.With("part", name) }
	if s.db, err = metadb.Open(filepath.Join(c.dataRoot, "meta"), metadb.Options{Logger: part("metadb"), Salvage: c.salvage}); err != nil {
		return s, err
	}
	if s.content, err = content.Open(filepath.Join(c.dataRoot, "content")); err != nil {
		return s, err
	}
	if s.snapshots, err = snapshot.Open(filepath.Join(c.dataRoot, "snapshots"), s.db, snapshot.Options{Logger: part("snapshot")}); err != nil {
		return s, err
	}
	registries := registry.Options{
		Insecure: c.insecure, Mirrors: map[string][]string{"docker.io": c.mirrors},
		CertDirs: []string{"/etc/onggi/certs.d", "/etc/docker/certs.d"}, RealmsFile: filepath.Join(c.dataRoot, "realms.json"),
		UserAgent: "onggi/" + version, Logger: part("registry"),
	}
	s.registry = registry.New(registries)
	s.images, err = image.New(image.Options{
		Dir: filepath.Join(c.dataRoot, "image"), DB: s.db, Content: s.content, Snapshots: s.snapshots, Registry: s.registry, Events: bus, Logger: part("image"),
	})
	if err != nil {
		return s, err
	}
	if s.networks, err = network.Open(ctx, networkOptions(c, s.db, bus, part("network"))); err != nil {
		return s, err
	}
	if s.volumes, err = volume.Open(filepath.Join(c.dataRoot, "volumes"), s.db, bus); err != nil {
		return s, err
	}
	if s.monitor, err = monitor.Connect(ctx, monitor.Options{ExecRoot: c.execRoot, Logger: part("monitor")}); err != nil {
		return s, err
	}
	s.containers, err = container.New(container.Options{
		Root: filepath.Join(c.dataRoot, "containers"), ExecRoot: c.execRoot, DB: s.db, Snapshots: s.snapshots, Images: s.images,
		Networks: s.networks, Volumes: s.volumes, Monitor: s.monitor, Events: bus, Logger: part("container"),
		Defaults: defaults(c, m), CgroupOptions: cgroup.Options{Systemd: c.systemdCgroups()}, CDIDirs: c.cdiDirs, Socket: socketOf(c.hosts),
	})
	if err != nil {
		return s, err
	}
	if err = s.containers.Restore(ctx); err != nil {
		return s, err
	}
	s.builder = build.New(build.Options{
		Root: filepath.Join(c.dataRoot, "build"), Run: filepath.Join(c.execRoot, "build"), DB: s.db, Snapshots: s.snapshots, Images: s.images, Network: build.Steps(s.networks),
		Registry: registries, CgroupParent: buildGroup(c), HostGateway: build.HostGateway(s.networks), Policy: c.builder.policy, Building: heap.building,
		Logger: part("build"),
	})
	s.api = engineapi.New(engineapi.Options{
		Containers: s.containers, Images: s.images, Networks: s.networks, Volumes: s.volumes, Registry: s.registry, Builder: s.builder,
		Events: bus, Engine: engineInfo(c, m), Hosts: c.apiHosts, Logger: part("api"),
	})
	return s, nil
}

// socketOf is the first Unix socket among the addresses.
func socketOf(hosts []string) string {
	for _, h := range hosts {
		if p, ok := strings.CutPrefix(h, "unix://"); ok {
			return p
		}
	}
	return ""
}

// close ends the services in reverse. Containers run on.
func (s *services) close(log *slog.Logger) {
	report := func(part string, err error) {
		if err != nil {
			log.Error("shut down", "part", part, "error", err)
		}
	}
	if s.builder != nil {
		report("build", s.builder.Close())
	}
	if s.containers != nil {
		s.containers.Close()
	}
	if s.monitor != nil {
		report("monitor", s.monitor.Close())
	}
	if s.networks != nil {
		report("network", s.networks.Close())
	}
	if s.snapshots != nil {
		report("snapshot", s.snapshots.Close())
	}
	if s.db != nil {
		report("metadb", s.db.Close())
	}
}

func networkOptions(c *config, db *metadb.DB, bus *events.Bus, log *slog.Logger) network.Options {
	o := network.Options{
		DB: db, ExecRoot: c.execRoot, BridgeName: c.bridgeName, BIP: c.bip, BIP6: c.bip6, FixedCIDR: c.fixedCIDR, FixedCIDR6: c.fixedCIDR6, MTU: c.mtu, IPv6: c.ipv6, NoICC: !c.icc,
		DNS: c.dns, DNSSearch: c.dnsSearch, DNSOptions: c.dnsOptions, PublishIP: c.publishIP, Logger: log, Ending: c.cleanup,
		Events: bus, Defaults: c.networkOpts, LoadModule: func(name string) error { return exec.Command("modprobe", name).Run() },
	}
	switch c.bridge {
	case "":
	case "none":
		o.NoBridge = true
	default:
		o.BridgeName, o.HostBridge = c.bridge, true
	}
	for _, p := range c.pools {
		o.Pools = append(o.Pools, network.AddressPool{Base: p.Base, Size: p.Size})
	}
	return o
}

func defaults(c *config, m *machine) container.Defaults {
	return container.Defaults{
		MaxNoFile: linux.MaxOpenFiles(),
		LogType:   c.logDriver, LogOpts: c.logOpts, Ulimits: c.ulimits, ShmSize: c.shmSize, CgroupParent: c.cgroups(),
		IpcMode: containertypes.IpcMode(c.ipcMode), CgroupnsMode: containertypes.CgroupnsMode(c.cgroupnsMode),
		Init: c.initByDefault, NoNewPrivs: c.noNewPrivs, Seccomp: c.seccomp, StopTimeout: c.stopTimeout, PidsLimit: int64(c.pidsLimit),
		CgroupV2: m.cgroups == cgroup.V2, HostGateway: c.hostGateway, Runtime: c.defaultRuntime, Runtimes: c.runtimes,
	}
}

func engineInfo(c *config, m *machine) engineapi.EngineInfo {
	name, _ := os.Hostname()
	e := engineapi.EngineInfo{
		ID: m.id, Name: name, Root: c.dataRoot, Version: version, Commit: commit, BuildTime: buildTime, Debug: c.debug, Labels: c.labels,
		LogDriver: c.logDriver, SeccompProfile: c.seccompProfile, NoNewPrivs: c.noNewPrivs, CgroupDriver: "cgroupfs", CgroupVersion: "1", Controllers: m.controllers,
		Mirrors: c.mirrors, Insecure: c.insecure, InitBinary: "onggi-init", CDIDirs: c.cdiDirs, Runtimes: defaults(c, m).AllRuntimes(), DefaultRuntime: c.defaultRuntime, Warnings: m.warnings,
	}
	if on, said := c.features["buildkit"]; said && !on {
		e.ClassicBuilder = true
	}
	if c.systemdCgroups() {
		e.CgroupDriver = "systemd"
	}
	if m.cgroups == cgroup.V2 {
		e.CgroupVersion = "2"
	}
	return e
}

// cgroups is the control group above all containers of this engine. Engines
// side by side have one each, so that one can be cleaned up without the other.
func (c *config) cgroups() string {
	switch {
	case c.cgroupParent != "" || c.systemdCgroups():
		return c.cgroupParent
	case c.execRoot == "/run/onggi":
		return "/onggi"
	}
	return "/onggi-" + filepath.Base(c.dataRoot) + "-" + shortHash(c.execRoot)
}

func buildGroup(c *config) string {
	if c.cgroupParent == "" && !c.systemdCgroups() {
		return c.cgroups() + "/build"
	}
	return "/onggi-build"
}

// shortHash tells directories apart in names that the kernel keeps short.
func shortHash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:4])
}
