package engineapi

import (
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	networktypes "github.com/moby/moby/api/types/network"
	volumetypes "github.com/moby/moby/api/types/volume"

	"github.com/onggi/onggi/internal/container"
	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/network"
	"github.com/onggi/onggi/internal/volume"
)

func (s *Server) networkList(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	dangling, err := takeBool(f, "dangling")
	if err != nil {
		return err
	}
	list, err := s.o.Networks.List(f)
	if err != nil {
		return err
	}
	used := s.o.Containers.Endpoints()
	out := []any{}
	for _, n := range list {
		if dangling != nil && *dangling != (len(used[n.ID]) == 0 && !predefined(n.Name)) {
			continue
		}
		v := networkSummary(n)
		if c.version < 28 { // the list held what inspect holds
			out = append(out, networkInspect(n, used[n.ID]))
			continue
		}
		if c.version >= 52 {
			out = append(out, v)
			continue
		}
		out = append(out, withEmptyContainers{v, map[string]any{}})
	}
	return c.json(http.StatusOK, out)
}

// takeBool removes a filter that is true or false; nil: it is not there.
func takeBool(f map[string][]string, key string) (*bool, error) {
	v, ok := f[key]
	delete(f, key)
	if !ok || len(v) == 0 {
		return nil, nil
	}
	on, err := strconv.ParseBool(v[0])
	if err != nil || len(v) > 1 {
		return nil, errdefs.Newf(errdefs.Invalid, "", "", "invalid filter '%s=%s'", key, v)
	}
	return &on, nil
}

func predefined(name string) bool { return slices.Contains([]string{"bridge", "host", "none"}, name) }

// withEmptyContainers keeps a field that clients of lists still decode.
type withEmptyContainers struct {
	networktypes.Summary
	Containers map[string]any
}

func networkSummary(n network.Network) networktypes.Summary {
	v := networktypes.Network{
		Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: n.Driver, EnableIPv4: n.EnableIPv4, EnableIPv6: n.EnableIPv6,
		Internal: n.Internal, Attachable: n.Attachable, Options: n.Options, Labels: n.Labels,
		ConfigOnly: n.ConfigOnly, ConfigFrom: networktypes.ConfigReference{Network: n.ConfigFrom},
		IPAM: networktypes.IPAM{Driver: "default", Options: n.IPAMOptions, Config: []networktypes.IPAMConfig{}},
	}
	for _, p := range n.IPAM {
		v.IPAM.Config = append(v.IPAM.Config, networktypes.IPAMConfig{Subnet: p.Subnet, IPRange: p.IPRange, Gateway: p.Gateway, AuxAddress: p.AuxAddresses})
	}
	if v.Options == nil {
		v.Options = map[string]string{}
	}
	if n.Problem != "" {
		v.Options = maps.Clone(v.Options)
		v.Options["com.onggi.network.problem"] = n.Problem
	}
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	return networktypes.Summary{Network: v}
}

func networkInspect(n network.Network, used []container.EndpointView) networktypes.Inspect {
	v := networktypes.Inspect{Network: networkSummary(n).Network, Containers: map[string]networktypes.EndpointResource{}}
	for _, e := range used {
		r := networktypes.EndpointResource{Name: e.Name, EndpointID: e.EndpointID, IPv4Address: e.IPv4, IPv6Address: e.IPv6}
		r.MacAddress.UnmarshalText([]byte(e.MAC))
		v.Containers[e.ContainerID] = r
	}
	return v
}

func (s *Server) networkInspect(c *call) error {
	if scope := c.query("scope"); scope != "" && scope != "local" {
		return errdefs.Newf(errdefs.NotFound, "", "", "network %s not found in scope %.20s", c.path["id"], scope)
	}
	n, err := s.o.Networks.Get(c.path["id"])
	if err != nil {
		return err
	}
	v := networkInspect(n, s.o.Containers.Endpoints()[n.ID])
	if c.version >= 52 {
		subnets, err := s.o.Networks.Status(n.ID)
		if err != nil {
			return err
		}
		v.Status = &networktypes.Status{IPAM: networktypes.IPAMStatus{Subnets: networktypes.SubnetStatuses{}}}
		for p, x := range subnets {
			v.Status.IPAM.Subnets[p] = networktypes.SubnetStatus{IPsInUse: x.InUse, DynamicIPsAvailable: x.Available}
		}
	}
	return c.json(http.StatusOK, v)
}

func (s *Server) networkCreate(c *call) error {
	var b struct {
		networktypes.CreateRequest
		CheckDuplicate bool // before 1.44; always checked
	}
	if err := c.decode(&b); err != nil {
		return err
	}
	if c.version < 47 { // always on
		b.EnableIPv4 = nil
	}
	q := network.CreateRequest{
		Name: b.Name, Driver: b.Driver, EnableIPv4: b.EnableIPv4, EnableIPv6: b.EnableIPv6, Internal: b.Internal, Attachable: b.Attachable, Options: b.Options, Labels: b.Labels,
		ConfigOnly: b.ConfigOnly,
	}
	if b.ConfigFrom != nil {
		q.ConfigFrom = b.ConfigFrom.Network
	}
	switch {
	case b.Ingress, b.Scope == "swarm":
		return errdefs.Newf(errdefs.Unavailable, "", "", "This node is not a swarm manager: swarm networks need one")
	}
	if b.IPAM != nil {
		if b.IPAM.Driver != "" && b.IPAM.Driver != "default" {
			return errdefs.Newf(errdefs.Unsupported, "", "", "IPAM driver %.50q is not supported: want default", b.IPAM.Driver)
		}
		q.IPAMOptions = b.IPAM.Options
		for _, p := range b.IPAM.Config {
			q.IPAM = append(q.IPAM, network.Pool{Subnet: p.Subnet, IPRange: p.IPRange, Gateway: p.Gateway, AuxAddresses: p.AuxAddress})
		}
	}
	n, err := s.o.Networks.Create(c.ctx(), q)
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, networktypes.CreateResponse{ID: n.ID})
}

func (s *Server) networkRemove(c *call) error {
	n, err := s.o.Networks.Get(c.path["id"])
	if err != nil {
		return err
	}
	if used := s.o.Containers.Endpoints()[n.ID]; len(used) > 0 && !predefined(n.Name) {
		var names []string
		for _, e := range used {
			names = append(names, e.Name)
		}
		return errdefs.WithHint(errdefs.Newf(errdefs.Forbidden, "", "", "error while removing network: network %s id %s has active endpoints (%s)", n.Name, n.ID, strings.Join(names, ", ")), "stop or disconnect these containers first")
	}
	if err := s.o.Networks.Remove(c.ctx(), n.ID); err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (s *Server) networkPrune(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if err := onlyKeys(f, "until", "label", "label!"); err != nil {
		return err
	}
	names, err := s.o.Networks.Prune(c.ctx(), f)
	if err != nil {
		return err
	}
	if names == nil {
		names = []string{}
	}
	return c.json(http.StatusOK, networktypes.PruneReport{NetworksDeleted: names})
}

func (s *Server) networkConnect(c *call) error {
	var q networktypes.ConnectRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	n, err := s.o.Networks.Get(c.path["id"])
	if err != nil {
		return err
	}
	if err := s.o.Containers.Connect(c.ctx(), q.Container, n.Name, q.EndpointConfig); err != nil {
		return err
	}
	return c.done(http.StatusOK)
}

func (s *Server) networkDisconnect(c *call) error {
	var q networktypes.DisconnectRequest
	if err := c.decode(&q); err != nil {
		return err
	}
	n, err := s.o.Networks.Get(c.path["id"])
	if errdefs.Is(err, errdefs.NotFound) && q.Force { // a stopped container may have one that is gone
		n, err = network.Network{Name: c.path["id"], ID: c.path["id"]}, nil
	}
	if err != nil {
		return err
	}
	if err := s.o.Containers.Disconnect(c.ctx(), q.Container, n.Name, n.ID, q.Force); err != nil {
		return err
	}
	return c.done(http.StatusOK)
}

func apiVolume(v volume.Volume) volumetypes.Volume {
	out := volumetypes.Volume{Name: v.Name, Driver: v.Driver, Mountpoint: v.Mountpoint, Labels: v.Labels, Options: v.Options, Scope: "local"}
	if !v.Created.IsZero() {
		out.CreatedAt = v.Created.UTC().Format("2006-01-02T15:04:05Z07:00")
	}
	if len(out.Labels) == 0 {
		out.Labels = nil
	}
	return out
}

func (s *Server) volumeList(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if err := onlyKeys(f, "dangling", "driver", "label", "name"); err != nil {
		return err
	}
	dangling, err := takeBool(f, "dangling")
	if err != nil {
		return err
	}
	list, err := s.o.Volumes.List(f)
	if err != nil {
		return err
	}
	out := volumetypes.ListResponse{Volumes: []volumetypes.Volume{}}
	used := s.o.Containers.VolumeUsers()
	for _, v := range list {
		if dangling != nil && *dangling != (used[v.Name] == 0) {
			continue
		}
		out.Volumes = append(out.Volumes, apiVolume(v))
	}
	return c.json(http.StatusOK, out)
}

func (s *Server) volumeInspect(c *call) error {
	v, err := s.o.Volumes.Get(c.path["name"])
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, apiVolume(v))
}

func (s *Server) volumeCreate(c *call) error {
	var q volumetypes.CreateRequest
	if err := c.decodeOptional(&q); err != nil {
		return err
	}
	if q.ClusterVolumeSpec != nil {
		return errdefs.Newf(errdefs.Unavailable, "", "", "cluster volumes need a swarm")
	}
	v, err := s.o.Volumes.Create(c.ctx(), volume.CreateRequest{Name: q.Name, Driver: q.Driver, Options: q.DriverOpts, Labels: q.Labels})
	if err != nil {
		return err
	}
	return c.json(http.StatusCreated, apiVolume(v))
}

func (s *Server) volumeUpdate(c *call) error {
	if _, err := s.o.Volumes.Get(c.path["name"]); err != nil {
		return err
	}
	return errdefs.Newf(errdefs.Unavailable, "", "", "only cluster volumes can be updated, and this engine is not part of a swarm")
}

func (s *Server) volumeRemove(c *call) error {
	name := c.path["name"]
	v, err := s.o.Volumes.Get(name)
	if err != nil {
		if c.boolean("force") && errdefs.KindOf(err) == errdefs.NotFound {
			return c.done(http.StatusNoContent)
		}
		return err
	}
	if n := s.o.Containers.VolumeUsers()[v.Name]; n > 0 {
		list, _ := s.o.Containers.List(c.ctx(), container.ListOptions{All: true, Filters: map[string][]string{"volume": {v.Name}}})
		var ids []string
		for _, x := range list {
			ids = append(ids, x.ID)
		}
		return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "remove %s: volume is in use - [%s]", v.Name, strings.Join(ids, ", ")), "remove these containers first")
	}
	if err := s.o.Volumes.Remove(c.ctx(), name, c.boolean("force")); err != nil {
		return err
	}
	return c.done(http.StatusNoContent)
}

func (s *Server) volumePrune(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if err := onlyKeys(f, "label", "label!", "all"); err != nil {
		return err
	}
	if c.version < 42 { // named volumes were pruned too
		f = putFilter(f, "all", "true")
	}
	used := s.o.Containers.VolumeUsers()
	names, freed, err := s.o.Volumes.Prune(c.ctx(), volume.PruneOptions{Filters: f, InUse: func(name string) bool { return used[name] > 0 }})
	if err != nil {
		return err
	}
	if names == nil {
		names = []string{}
	}
	return c.json(http.StatusOK, volumetypes.PruneReport{VolumesDeleted: names, SpaceReclaimed: uint64(max(freed, 0))})
}
