package engineapi

import (
	containertypes "github.com/moby/moby/api/types/container"
	networktypes "github.com/moby/moby/api/types/network"
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
	if ver >= 52 || v.NetworkSettings == nil {
		return v
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
