package cli

import (
	"context"
	"fmt"
	"net/netip"
	"net/url"
	"sort"
	"strings"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

func networkCommands() []command {
	return []command{
		{paths: []string{"network ls", "network list"}, args: "[OPTIONS]", short: "List networks", max: 0, setup: setupNetworks},
		{paths: []string{"network create"}, args: "[OPTIONS] NETWORK", short: "Create a network", min: 1, max: 1, setup: setupNetworkCreate},
		{paths: []string{"network rm", "network remove"}, args: "NETWORK [NETWORK...]", short: "Remove networks", min: 1, max: -1, setup: setupNetworkRm},
		{paths: []string{"network inspect"}, args: "[OPTIONS] NETWORK [NETWORK...]", short: "Show everything about networks", min: 1, max: -1, setup: setupInspect("network")},
		{paths: []string{"network connect"}, args: "[OPTIONS] NETWORK CONTAINER", short: "Connect a container to a network", min: 2, max: 2, setup: setupConnect},
		{paths: []string{"network disconnect"}, args: "[OPTIONS] NETWORK CONTAINER", short: "Disconnect a container from a network", min: 2, max: 2, setup: setupDisconnect},
		{paths: []string{"network prune"}, args: "[OPTIONS]", short: "Remove networks that nothing uses", max: 0, setup: setupPrune("networks")},
	}
}

func joinLabels(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}

func setupNetworks(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	filter := f.StringArrayP("filter", "f", nil, "only those that match: driver=bridge")
	format := f.String("format", "", "table, json, or a Go template")
	noTrunc := f.Bool("no-trunc", false, "do not shorten")
	quiet := f.BoolP("quiet", "q", false, "ids only")
	return func(ctx context.Context, args []string) error {
		q, err := filters(*filter)
		if err != nil {
			return err
		}
		var nets []api.NetworkSummary
		if err := e.call(ctx, "GET", "/networks", q, nil, &nets); err != nil {
			return err
		}
		sort.Slice(nets, func(i, j int) bool { return nets[i].Name < nets[j].Name })
		l := &list{columns: []string{"ID", "Name", "Driver", "Scope"}, quiet: "ID", titles: map[string]string{"ID": "NETWORK ID"}}
		for _, n := range nets {
			id := n.ID
			if !*noTrunc {
				id = shortID(id)
			}
			l.rows = append(l.rows, row{"ID": id, "Name": n.Name, "Driver": n.Driver, "Scope": n.Scope, "CreatedAt": n.Created, "Internal": fmt.Sprint(n.Internal), "IPv6": fmt.Sprint(n.EnableIPv6), "Labels": joinLabels(n.Labels)})
		}
		return e.show(l, *format, *quiet)
	}
}

type ipamPool struct {
	Subnet     string            `json:",omitempty"`
	IPRange    string            `json:",omitempty"`
	Gateway    string            `json:",omitempty"`
	AuxAddress map[string]string `json:"AuxiliaryAddresses,omitempty"`
}

func setupNetworkCreate(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	attachable := f.Bool("attachable", false, "containers may attach by hand")
	aux := f.StringArray("aux-address", nil, "address that is taken: name=address")
	configFrom := f.String("config-from", "", "network to copy the configuration from")
	configOnly := f.Bool("config-only", false, "a configuration only")
	driver := f.StringP("driver", "d", "bridge", "driver")
	gateway := f.StringArray("gateway", nil, "address of the gateway")
	ingress := f.Bool("ingress", false, "swarm's routing mesh")
	internal := f.Bool("internal", false, "no way out")
	ipRange := f.StringArray("ip-range", nil, "part of the subnet that addresses come from")
	ipamDriver := f.String("ipam-driver", "default", "driver of addresses")
	ipamOpt := f.StringArray("ipam-opt", nil, "its options: key=value")
	ipv4 := f.Bool("ipv4", true, "IPv4 addresses")
	ipv6 := f.Bool("ipv6", false, "IPv6 addresses")
	label := f.StringArray("label", nil, "label: key=value")
	opt := f.StringArrayP("opt", "o", nil, "option of the driver: key=value")
	scope := f.String("scope", "", "scope")
	subnet := f.StringArray("subnet", nil, "subnet: 10.1.2.0/24")
	return func(ctx context.Context, args []string) error {
		body := map[string]any{"Name": args[0], "Driver": *driver, "Attachable": *attachable, "Ingress": *ingress, "Internal": *internal, "Scope": *scope, "ConfigOnly": *configOnly}
		if f.Changed("ipv4") {
			body["EnableIPv4"] = *ipv4
		}
		if f.Changed("ipv6") {
			body["EnableIPv6"] = *ipv6
		}
		if *configFrom != "" {
			body["ConfigFrom"] = map[string]string{"Network": *configFrom}
		}
		for key, set := range map[string][]string{"Labels": *label, "Options": *opt} {
			m, err := pairs(strings.ToLower(key), set)
			if err != nil {
				return err
			}
			body[key] = m
		}
		opts, err := pairs("ipam-opt", *ipamOpt)
		if err != nil {
			return err
		}
		pools := make([]ipamPool, max(len(*subnet), len(*gateway), len(*ipRange)))
		for i, s := range *subnet {
			if _, err := netip.ParsePrefix(s); err != nil {
				return flagError("subnet", s, "not an address range such as 172.30.0.0/16 or fd00:1::/64")
			}
			pools[i].Subnet = s
		}
		for i, s := range *gateway {
			if _, err := netip.ParseAddr(s); err != nil {
				return flagError("gateway", s, "not an address")
			}
			pools[i].Gateway = s
		}
		for i, s := range *ipRange {
			if _, err := netip.ParsePrefix(s); err != nil {
				return flagError("ip-range", s, "not an address range such as 172.30.1.0/24")
			}
			pools[i].IPRange = s
		}
		if len(*aux) > 0 {
			if len(pools) == 0 {
				return &usageError{text: "--aux-address needs --subnet"}
			}
			if pools[0].AuxAddress, err = pairs("aux-address", *aux); err != nil {
				return err
			}
		}
		body["IPAM"] = map[string]any{"Driver": *ipamDriver, "Options": opts, "Config": pools}
		var made struct {
			ID      string `json:"Id"`
			Warning string
		}
		if err := e.call(ctx, "POST", "/networks/create", nil, body, &made); err != nil {
			return err
		}
		if made.Warning != "" {
			fmt.Fprintf(e.err, "warning: %s\n", made.Warning)
		}
		fmt.Fprintln(e.out, made.ID)
		return nil
	}
}

func setupNetworkRm(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	force := f.BoolP("force", "f", false, "no error where there is none")
	return func(ctx context.Context, args []string) error {
		return e.each(args, func(name string) error {
			err := e.call(ctx, "DELETE", "/networks/"+url.PathEscape(name), nil, nil, nil)
			if *force && isNotFound(err) {
				return nil
			}
			if err == nil {
				fmt.Fprintln(e.out, name)
			}
			return err
		})
	}
}

func setupConnect(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	alias := f.StringArray("alias", nil, "further name on the network")
	opt := f.StringArray("driver-opt", nil, "option of the driver: key=value")
	gw := f.Int("gw-priority", 0, "the highest one is the default gateway")
	ip := f.String("ip", "", "IPv4 address")
	ip6 := f.String("ip6", "", "IPv6 address")
	link := f.StringArray("link", nil, "link to another container")
	local := f.StringArray("link-local-ip", nil, "link-local address")
	mac := f.String("mac-address", "", "MAC address")
	return func(ctx context.Context, args []string) error {
		ep := &endpoint{Aliases: *alias, Links: *link, GwPriority: *gw, MacAddress: *mac}
		var err error
		if ep.DriverOpts, err = pairs("driver-opt", *opt); err != nil {
			return err
		}
		if *ip != "" || *ip6 != "" || len(*local) > 0 {
			ipam(ep)
			ep.IPAMConfig.IPv4Address, ep.IPAMConfig.IPv6Address, ep.IPAMConfig.LinkLocalIPs = *ip, *ip6, *local
		}
		return e.call(ctx, "POST", "/networks/"+url.PathEscape(args[0])+"/connect", nil, map[string]any{"Container": args[1], "EndpointConfig": ep}, nil)
	}
}

func setupDisconnect(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	force := f.BoolP("force", "f", false, "also where the container is stuck")
	return func(ctx context.Context, args []string) error {
		return e.call(ctx, "POST", "/networks/"+url.PathEscape(args[0])+"/disconnect", nil, map[string]any{"Container": args[1], "Force": *force}, nil)
	}
}

func volumeCommands() []command {
	return []command{
		{paths: []string{"volume ls", "volume list"}, args: "[OPTIONS]", short: "List volumes", max: 0, setup: setupVolumes},
		{paths: []string{"volume create"}, args: "[OPTIONS] [VOLUME]", short: "Create a volume", max: 1, setup: setupVolumeCreate},
		{paths: []string{"volume rm", "volume remove"}, args: "[OPTIONS] VOLUME [VOLUME...]", short: "Remove volumes", min: 1, max: -1, setup: setupVolumeRm},
		{paths: []string{"volume inspect"}, args: "[OPTIONS] VOLUME [VOLUME...]", short: "Show everything about volumes", min: 1, max: -1, setup: setupInspect("volume")},
		{paths: []string{"volume prune"}, args: "[OPTIONS]", short: "Remove volumes that nothing uses", max: 0, setup: setupPrune("volumes")},
	}
}

func setupVolumes(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	filter := f.StringArrayP("filter", "f", nil, "only those that match: dangling=true")
	format := f.String("format", "", "table, json, or a Go template")
	quiet := f.BoolP("quiet", "q", false, "names only")
	return func(ctx context.Context, args []string) error {
		q, err := filters(*filter)
		if err != nil {
			return err
		}
		var answer struct {
			Volumes  []api.Volume
			Warnings []string
		}
		if err := e.call(ctx, "GET", "/volumes", q, nil, &answer); err != nil {
			return err
		}
		sort.Slice(answer.Volumes, func(i, j int) bool { return answer.Volumes[i].Name < answer.Volumes[j].Name })
		l := &list{columns: []string{"Driver", "Name"}, quiet: "Name", titles: map[string]string{"Name": "VOLUME NAME"}}
		for _, v := range answer.Volumes {
			l.rows = append(l.rows, row{"Driver": v.Driver, "Name": v.Name, "Mountpoint": v.Mountpoint, "Scope": v.Scope, "Labels": joinLabels(v.Labels), "Links": "N/A", "Size": "N/A"})
		}
		return e.show(l, *format, *quiet)
	}
}

func setupVolumeCreate(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	driver := f.StringP("driver", "d", "local", "driver")
	label := f.StringArray("label", nil, "label: key=value")
	opt := f.StringArrayP("opt", "o", nil, "option of the driver: key=value")
	return func(ctx context.Context, args []string) error {
		body := map[string]any{"Driver": *driver}
		if len(args) == 1 {
			body["Name"] = args[0]
		}
		for key, set := range map[string][]string{"Labels": *label, "DriverOpts": *opt} {
			m, err := pairs(strings.ToLower(key), set)
			if err != nil {
				return err
			}
			body[key] = m
		}
		var v api.Volume
		if err := e.call(ctx, "POST", "/volumes/create", nil, body, &v); err != nil {
			return err
		}
		fmt.Fprintln(e.out, v.Name)
		return nil
	}
}

func setupVolumeRm(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	force := f.BoolP("force", "f", false, "no error where there is none")
	return func(ctx context.Context, args []string) error {
		q := url.Values{}
		if *force {
			q.Set("force", "1")
		}
		return e.each(args, func(name string) error {
			err := e.call(ctx, "DELETE", "/volumes/"+url.PathEscape(name), q, nil, nil)
			if err == nil {
				fmt.Fprintln(e.out, name)
			}
			return err
		})
	}
}
