package engineapi

import (
	"maps"
	"slices"
	"strings"

	containertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	networktypes "github.com/moby/moby/api/types/network"

	"github.com/onggi/onggi/internal/container"
)

// legacyNetworkSettings are the fields that 1.52 removed: those of the default
// bridge, beside the list of networks.
type legacyNetworkSettings struct {
	*containertypes.NetworkSettings
	Bridge                 string
	HairpinMode            bool
	LinkLocalIPv6Address   string
	LinkLocalIPv6PrefixLen int
	SecondaryIPAddresses   []string
	SecondaryIPv6Addresses []string
	EndpointID             string
	Gateway                string
	GlobalIPv6Address      string
	GlobalIPv6PrefixLen    int
	IPAddress              string
	IPPrefixLen            int
	IPv6Gateway            string
	MacAddress             string
}

type legacyInspect struct {
	containertypes.InspectResponse
	NetworkSettings *legacyNetworkSettings
	Config          any `json:",omitempty"`
}

// legacyConfig has the MAC address that 1.44 moved to the endpoints.
type legacyConfig struct {
	*containertypes.Config
	MacAddress string `json:",omitempty"`
}

func compatInspect(v containertypes.InspectResponse, ver version) any {
	if ver < 48 {
		v.ImageManifestDescriptor = nil
	}
	if ver >= 52 || v.NetworkSettings == nil {
		return v
	}
	if ver < 45 { // later it is among the DNS names alone
		for name, ep := range v.NetworkSettings.Networks {
			if !containertypes.NetworkMode(name).IsUserDefined() || len(v.ID) < 12 {
				continue
			}
			ep.Aliases = append(slices.Clone(ep.Aliases), v.ID[:12])
		}
	}
	n := &legacyNetworkSettings{NetworkSettings: v.NetworkSettings}
	if ep := v.NetworkSettings.Networks[networktypes.NetworkBridge]; ep != nil {
		n.EndpointID = ep.EndpointID
		if ep.Gateway.IsValid() {
			n.Gateway = ep.Gateway.String()
		}
		if ep.IPAddress.IsValid() {
			n.IPAddress, n.IPPrefixLen = ep.IPAddress.String(), ep.IPPrefixLen
		}
		if ep.GlobalIPv6Address.IsValid() {
			n.GlobalIPv6Address, n.GlobalIPv6PrefixLen = ep.GlobalIPv6Address.String(), ep.GlobalIPv6PrefixLen
		}
		if ep.IPv6Gateway.IsValid() {
			n.IPv6Gateway = ep.IPv6Gateway.String()
		}
		if len(ep.MacAddress) > 0 {
			n.MacAddress = ep.MacAddress.String()
		}
	}
	out := legacyInspect{InspectResponse: v, NetworkSettings: n, Config: v.Config}
	if ver < 44 {
		out.Config = legacyConfig{Config: v.Config}
	}
	return out
}

func compatSummaries(list []containertypes.Summary, ver version) []containertypes.Summary {
	if ver < 52 {
		for i := range list {
			list[i].Health = nil
		}
	}
	if ver < 48 {
		for i := range list {
			list[i].ImageManifestDescriptor = nil
		}
	}
	return list
}

// compatCreate gives a request of an older version the meaning it had then:
// fields that came later are ignored, or refused where ignoring them would be
// unsafe, and defaults are those of the time.
func compatCreate(q *container.CreateRequest, ver version, cgroupV2 bool) error {
	h := q.HostConfig
	if ver < 40 && h.IpcMode == "" {
		h.IpcMode = containertypes.IPCModeShareable
	}
	if ver < 41 {
		q.Platform = ""
		if h.CgroupnsMode == "" && !cgroupV2 {
			h.CgroupnsMode = containertypes.CgroupnsModeHost
		}
	}
	if ver < 42 {
		h.ConsoleSize = [2]uint{}
		if h.PidsLimit != nil && *h.PidsLimit <= 0 {
			h.PidsLimit = nil
		}
	}
	if ver < 43 {
		h.Annotations = nil
	}
	if ver < 44 {
		if q.Config != nil && q.Config.Healthcheck != nil {
			q.Config.Healthcheck.StartInterval = 0
		}
		q.ShallowReadOnly = true
		if len(q.Networks) > 1 {
			return invalid("Container cannot be created with multiple network endpoints: %s", strings.Join(slices.Sorted(maps.Keys(q.Networks)), ", "))
		}
	}
	if ver < 48 {
		for _, ep := range q.Networks {
			if ep != nil {
				ep.GwPriority = 0
			}
		}
	}
	for i := range h.Mounts {
		if err := compatMount(&h.Mounts[i], ver); err != nil {
			return err
		}
	}
	return nil
}

func compatMount(m *mount.Mount, ver version) error {
	bind := m.BindOptions
	if ver < 40 && bind != nil {
		bind.NonRecursive = false
	}
	if ver < 42 {
		if bind != nil {
			bind.CreateMountpoint = false
		}
		if m.Type != mount.TypeVolume {
			m.VolumeOptions = nil
		}
		if m.Type != mount.TypeTmpfs {
			m.TmpfsOptions = nil
		}
	}
	switch {
	case ver < 44 && bind != nil && bind.ReadOnlyForceRecursive:
		return invalid("BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer")
	case ver < 45 && m.VolumeOptions != nil && m.VolumeOptions.Subpath != "":
		return invalid("VolumeOptions.Subpath needs API v1.45 or newer")
	case ver < 48 && m.Type == mount.TypeImage:
		return invalid(`Mount type "Image" needs API v1.48 or newer`)
	}
	return nil
}
