package container

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/storage"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/logs"
	netsvc "github.com/onggi/onggi/internal/network"
	"github.com/onggi/onggi/internal/ocispec"
)

// apiState is the state's name in the API, which knows no "starting".
func apiState(st Status) container.ContainerState {
	switch st.State {
	case Running, Paused, Restarting, Removing, Dead, Created:
		return container.ContainerState(st.State.String())
	case Starting:
		if st.RestartCount > 0 {
			return container.StateRestarting
		}
	case Gone:
		return container.StateRemoving
	}
	if st.StartedAt.IsZero() {
		return container.StateCreated // it never ran, whatever kept it from running
	}
	return container.StateExited
}

func formatTime(t time.Time) string {
	if t.IsZero() {
		return "0001-01-01T00:00:00Z"
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// Inspect tells everything about a container.
func (s *Service) Inspect(ctx context.Context, ref string, size bool) (container.InspectResponse, error) {
	c, err := s.find("inspect", ref)
	if err != nil {
		return container.InspectResponse{}, err
	}
	c.mu.Lock()
	rec, st := c.rec, c.st
	var execs []string
	for id, e := range c.execs {
		if !e.hasEnded() {
			execs = append(execs, id)
		}
	}
	health := c.health.api()
	c.mu.Unlock()
	slices.Sort(execs)
	out := s.inspect(rec, st)
	out.ExecIDs, out.State.Health = execs, health
	if size {
		rw, root := s.sizes(ctx, rec)
		out.SizeRw, out.SizeRootFs = &rw, &root
	}
	return out, nil
}

func (s *Service) inspect(rec *Record, st Status) container.InspectResponse {
	args := commandLine(rec.Config)
	state := apiState(st)
	out := container.InspectResponse{
		ID: rec.ID, Created: formatTime(rec.Created), Path: args[0], Args: args[1:],
		State: &container.State{
			Status: state, Running: state == container.StateRunning || state == container.StatePaused || state == container.StateRestarting,
			Paused: state == container.StatePaused, Restarting: state == container.StateRestarting, OOMKilled: st.OOMKilled, Dead: state == container.StateDead,
			Pid: st.PID, ExitCode: st.ExitCode, Error: st.Error, StartedAt: formatTime(st.StartedAt), FinishedAt: formatTime(st.FinishedAt),
		},
		Image: rec.ImageID, Name: "/" + rec.Name, RestartCount: st.RestartCount, Driver: "overlay2", Platform: rec.Platform,
		HostConfig: rec.HostConfig, Config: rec.Config,
		Mounts:          s.mountPoints(rec),
		NetworkSettings: networkSettings(rec, st),
	}
	h := *rec.HostConfig
	out.HostConfig = &h
	h.DNS, h.DNSOptions, h.DNSSearch = orEmpty(h.DNS), orEmpty(h.DNSOptions), orEmpty(h.DNSSearch)
	if len(h.Links) > 0 {
		h.Links = s.linkNames(rec)
	}
	if h.PidsLimit != nil && *h.PidsLimit < 0 {
		h.PidsLimit = new(int64) // how Docker says "no limit"
	}
	if rec.HostConfig.LogConfig.Type == logs.JSONFile { // others' files are not for reading
		out.LogPath = s.logPath(rec)
	}
	out.ResolvConfPath, out.HostnamePath, out.HostsPath = s.etcFile(rec.ID, "resolv.conf"), s.etcFile(rec.ID, "hostname"), s.etcFile(rec.ID, "hosts")
	if d, err := s.o.Snapshots.Dirs(rec.ID); err == nil {
		out.GraphDriver = &storage.DriverData{Name: "overlay2", Data: map[string]string{
			"ID": rec.ID, "UpperDir": d.Upper, "WorkDir": d.Work, "LowerDir": strings.Join(d.Lowers, ":"), "MergedDir": filepath.Join(filepath.Dir(d.Upper), "merged"),
		}}
	}
	if m := rec.ImageManifest; m != nil {
		out.ImageManifestDescriptor = m.descriptor()
	}
	return out
}

func (s *Service) mountPoints(rec *Record) []container.MountPoint {
	out := []container.MountPoint{}
	for _, m := range rec.Mounts {
		if m.Type == mount.TypeTmpfs && !m.Options.Spec {
			continue // shown under HostConfig.Tmpfs, as Docker does
		}
		p := container.MountPoint{Type: m.Type, Name: m.Name, Source: m.Source, Destination: m.Destination, Driver: m.Driver, Mode: m.modeOf(), RW: !m.ReadOnly, Propagation: m.Propagation}
		if m.Type == mount.TypeVolume {
			if v, err := s.o.Volumes.Get(m.Name); err == nil {
				p.Source = v.Mountpoint
			}
		}
		out = append(out, p)
	}
	return out
}

func networkSettings(rec *Record, st Status) *container.NetworkSettings {
	out := &container.NetworkSettings{Ports: portMap(rec, st), Networks: endpoints(rec, st)}
	if st.State.HasProcess() {
		out.SandboxID = rec.ID
		out.SandboxKey = "/proc/" + strconv.Itoa(st.PID) + "/ns/net"
	}
	return out
}

// endpoints are what was asked of each network, and what a live container got.
func endpoints(rec *Record, st Status) map[string]*network.EndpointSettings {
	out := make(map[string]*network.EndpointSettings, len(rec.Networks))
	for name, ep := range rec.Networks {
		out[name] = ep.Copy()
	}
	if !st.State.HasProcess() {
		return out
	}
	for _, e := range st.Sandbox.Endpoints {
		// The request may have used the network's ID.
		ep := out[e.NetworkName]
		for name := range out {
			if ep == nil && e.NetworkID != "" && strings.HasPrefix(e.NetworkID, name) {
				ep = out[name]
				delete(out, name)
			}
		}
		if ep == nil {
			ep = &network.EndpointSettings{}
		}
		fillEndpoint(ep, e)
		out[e.NetworkName] = ep
	}
	return out
}

// portMap is what a live container exposes and publishes.
func portMap(rec *Record, st Status) network.PortMap {
	out := network.PortMap{}
	if !st.State.HasProcess() {
		return out
	}
	for port := range rec.Config.ExposedPorts {
		out[port] = nil
	}
	for _, p := range st.Sandbox.Ports {
		if port, ok := network.PortFrom(p.Port, network.IPProtocol(p.Proto)); ok {
			out[port] = append(out[port], network.PortBinding{HostIP: p.HostIP, HostPort: strconv.Itoa(int(p.HostPort))})
		}
	}
	return out
}

func fillEndpoint(ep *network.EndpointSettings, e EndpointStatus) {
	ep.NetworkID, ep.EndpointID = e.NetworkID, e.EndpointID
	ep.Gateway, ep.IPv6Gateway = e.Gateway4, e.Gateway6
	if e.IPv4.IsValid() {
		ep.IPAddress, ep.IPPrefixLen = e.IPv4.Addr(), e.IPv4.Bits()
	}
	if e.IPv6.IsValid() {
		ep.GlobalIPv6Address, ep.GlobalIPv6PrefixLen = e.IPv6.Addr(), e.IPv6.Bits()
	}
	ep.MacAddress.UnmarshalText([]byte(e.MAC))
	ep.DNSNames = e.DNSNames
}

func endpointStatus(e netsvc.Endpoint) EndpointStatus {
	return EndpointStatus{
		NetworkName: e.NetworkName, NetworkID: e.NetworkID, EndpointID: e.EndpointID, IPv4: e.IPv4, IPv6: e.IPv6,
		Gateway4: e.Gateway4, Gateway6: e.Gateway6, MAC: e.MAC, Aliases: e.Aliases, DNSNames: e.DNSNames,
	}
}

func endpointRequest(name string, ep *network.EndpointSettings, rec *Record) netsvc.EndpointRequest {
	e := netsvc.EndpointRequest{Network: name, Aliases: slices.Clone(ep.Aliases), DriverOpts: ep.DriverOpts, GwPriority: ep.GwPriority, MAC: ep.MacAddress.String()}
	if ip := ep.IPAMConfig; ip != nil {
		e.IPv4, e.IPv6, e.LinkLocal = ip.IPv4Address, ip.IPv6Address, ip.LinkLocalIPs
	}
	for _, l := range ep.Links {
		target, alias, _ := strings.Cut(l, ":")
		e.Links = append(e.Links, netsvc.Link{Target: strings.TrimPrefix(target, "/"), Alias: cmpOr(alias, target)})
	}
	if !slices.Contains(e.Aliases, rec.ID[:12]) {
		e.Aliases = append(e.Aliases, rec.ID[:12])
	}
	return e
}

// sizes are the bytes of the container's own layer and of all its layers.
func (s *Service) sizes(ctx context.Context, rec *Record) (rw, root int64) {
	rw, _, _ = s.o.Snapshots.Usage(ctx, rec.ID)
	root = rw
	if img, err := s.o.Images.Get(rec.ImageID); err == nil {
		root += img.Size
	}
	return rw, root
}

// ListOptions choose containers.
type ListOptions struct {
	All     bool
	Size    bool
	Brief   bool // without labels, mounts and networks
	Limit   int
	Filters map[string][]string
}

// List returns containers, the newest first.
func (s *Service) List(ctx context.Context, o ListOptions) ([]container.Summary, error) {
	match, all, err := s.listFilter(o.Filters)
	if err != nil {
		return nil, err
	}
	type entry struct {
		rec    *Record
		st     Status
		health *container.HealthSummary
	}
	found := s.all()
	list := make([]*entry, 0, len(found))
	for _, c := range found {
		c.mu.Lock()
		e := entry{rec: c.rec, st: c.st, health: c.health.summary()}
		c.mu.Unlock()
		list = append(list, &e)
	}
	slices.SortFunc(list, func(a, b *entry) int {
		return cmp.Or(b.rec.Created.Compare(a.rec.Created), strings.Compare(a.rec.ID, b.rec.ID))
	})
	linked := map[string][]string{}
	for _, e := range list {
		for _, l := range linksOf(e.rec) {
			linked[l.Target] = append(linked[l.Target], "/"+e.rec.Name+"/"+l.Alias)
		}
	}
	list = slices.DeleteFunc(list, func(e *entry) bool {
		if e.st.State == Gone {
			return true
		}
		if !o.All && !all && o.Limit <= 0 {
			switch apiState(e.st) {
			case container.StateRunning, container.StatePaused, container.StateRestarting:
			default:
				return true
			}
		}
		return !match(e.rec, e.st, e.health)
	})
	if o.Limit > 0 && len(list) > o.Limit {
		list = list[:o.Limit]
	}
	images := map[string][]string{} // what names mean now
	out := make([]container.Summary, len(list))
	for i, e := range list {
		sum := &out[i]
		*sum = s.summary(e.rec, e.st, e.health, o.Brief)
		sum.Names = append(sum.Names, linked[e.rec.ID]...)
		if _, known := images[sum.Image]; !known {
			img, _ := s.o.Images.Get(sum.Image)
			images[sum.Image] = append(img.Others, img.ID)
		}
		if !slices.Contains(images[sum.Image], sum.ImageID) {
			sum.Image = sum.ImageID // the name is another image's now, or nobody's
		}
		if o.Size {
			sum.SizeRw, sum.SizeRootFs = s.sizes(ctx, e.rec)
		}
	}
	return out, nil
}

// orEmpty is [] where clients would otherwise read null.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func (s *Service) summary(rec *Record, st Status, health *container.HealthSummary, brief bool) container.Summary {
	sum := container.Summary{
		ID: rec.ID, Names: []string{"/" + rec.Name}, Image: rec.Config.Image, ImageID: rec.ImageID, Command: shownCommand(rec.Config),
		Created: rec.Created.Unix(), Ports: portSummaries(rec, st), State: apiState(st), Status: statusText(st, health, time.Now()), Health: health,
	}
	if brief {
		return sum
	}
	sum.Labels, sum.Mounts = rec.Config.Labels, s.mountPoints(rec)
	sum.NetworkSettings = &container.NetworkSettingsSummary{Networks: endpoints(rec, st)}
	sum.HostConfig.NetworkMode = string(rec.HostConfig.NetworkMode)
	sum.HostConfig.Annotations = rec.HostConfig.Annotations
	if m := rec.ImageManifest; m != nil {
		sum.ImageManifestDescriptor = m.descriptor()
	}
	return sum
}

// portSummaries is portMap as a list has it.
func portSummaries(rec *Record, st Status) []container.PortSummary {
	out := []container.PortSummary{}
	if !st.State.HasProcess() {
		return out
	}
	published := map[network.Port]bool{}
	for _, p := range st.Sandbox.Ports {
		if port, ok := network.PortFrom(p.Port, network.IPProtocol(p.Proto)); ok {
			published[port] = true
			out = append(out, container.PortSummary{IP: p.HostIP, PrivatePort: p.Port, PublicPort: p.HostPort, Type: p.Proto})
		}
	}
	for port := range rec.Config.ExposedPorts {
		if !published[port] {
			out = append(out, container.PortSummary{PrivatePort: port.Num(), Type: string(port.Proto())})
		}
	}
	slices.SortFunc(out, func(a, b container.PortSummary) int {
		return cmpInts(int(a.PrivatePort)-int(b.PrivatePort), strings.Compare(a.Type, b.Type), int(a.PublicPort)-int(b.PublicPort), a.IP.Compare(b.IP))
	})
	return out
}

// shownCommand quotes what would not be one word in a shell.
func shownCommand(c *Config) string {
	args := commandLine(c)
	for i, a := range args {
		if i > 0 && strings.ContainsAny(a, " \t\n'\"") {
			args[i] = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
	}
	return strings.Join(args, " ")
}

// statusText is Docker's sentence about a container's state.
func statusText(st Status, health *container.HealthSummary, now time.Time) string {
	up := func() string { return "Up " + humanDuration(now.Sub(st.StartedAt)) }
	ago := func() string { return humanDuration(now.Sub(st.FinishedAt)) + " ago" }
	switch apiState(st) {
	case container.StatePaused:
		return up() + " (Paused)"
	case container.StateRunning:
		if health != nil && health.Status != container.NoHealthcheck {
			text := string(health.Status)
			if health.Status == container.Starting {
				text = "health: starting"
			}
			return up() + " (" + text + ")"
		}
		return up()
	case container.StateRestarting:
		return fmt.Sprintf("Restarting (%d) %s", st.ExitCode, ago())
	case container.StateRemoving:
		return "Removal In Progress"
	case container.StateDead:
		return "Dead"
	case container.StateCreated:
		return "Created"
	}
	if st.FinishedAt.IsZero() {
		return ""
	}
	return fmt.Sprintf("Exited (%d) %s", st.ExitCode, ago())
}

// humanDuration says about how long, as Docker words it. A clock that was set
// back must not show a negative time.
func humanDuration(d time.Duration) string {
	d = max(d, 0)
	n := func(v int, unit string) string { return strconv.Itoa(v) + " " + unit }
	switch s, m, h := int(d.Seconds()), int(d.Minutes()), int(d.Hours()+0.5); {
	case s < 1:
		return "Less than a second"
	case s == 1:
		return "1 second"
	case s < 60:
		return n(s, "seconds")
	case m == 1:
		return "About a minute"
	case m < 60:
		return n(m, "minutes")
	case h == 1:
		return "About an hour"
	case h < 48:
		return n(h, "hours")
	case h < 24*7*2:
		return n(h/24, "days")
	case h < 24*30*2:
		return n(h/24/7, "weeks")
	case h < 24*365*2:
		return n(h/24/30, "months")
	}
	return n(int(d.Hours())/24/365, "years")
}

type listMatch func(*Record, Status, *container.HealthSummary) bool

// listFilter turns the filters of a list into one predicate. all tells that a
// filter asks about states that are not shown otherwise.
func (s *Service) listFilter(filters map[string][]string) (match listMatch, all bool, err error) {
	var tests []listMatch
	for key, values := range filters {
		if len(values) == 0 {
			continue
		}
		t, anyState, err := s.listTest(key, values)
		if err != nil {
			return nil, false, err
		}
		all = all || anyState
		tests = append(tests, t)
	}
	return func(r *Record, st Status, h *container.HealthSummary) bool {
		for _, t := range tests {
			if !t(r, st, h) {
				return false
			}
		}
		return true
	}, all, nil
}

func (s *Service) listTest(key string, values []string) (t listMatch, all bool, err error) {
	some := func(f func(v string) bool) bool { return slices.ContainsFunc(values, f) }
	switch key {
	case "id":
		return func(r *Record, _ Status, _ *container.HealthSummary) bool {
			return some(func(v string) bool { return strings.HasPrefix(r.ID, v) || fuzzy(v, r.ID) })
		}, false, nil
	case "name":
		return func(r *Record, _ Status, _ *container.HealthSummary) bool {
			return some(func(v string) bool { return fuzzy(v, r.Name) || fuzzy(v, "/"+r.Name) })
		}, false, nil
	case "label":
		return func(r *Record, _ Status, _ *container.HealthSummary) bool {
			return labelsMatch(values, r.Config.Labels)
		}, false, nil
	case "label!":
		return func(r *Record, _ Status, _ *container.HealthSummary) bool {
			return !some(func(v string) bool { return labelsMatch([]string{v}, r.Config.Labels) })
		}, false, nil
	case "status":
		for _, v := range values {
			if err := container.ValidateContainerState(container.ContainerState(v)); err != nil {
				return nil, false, errdefs.WithHint(invalid("invalid filter 'status=%s'", clip(v)), "created, running, paused, restarting, removing, exited or dead")
			}
		}
		return func(_ *Record, st Status, _ *container.HealthSummary) bool {
			return slices.Contains(values, string(apiState(st)))
		}, true, nil
	case "exited":
		for _, v := range values {
			if _, err := strconv.Atoi(v); err != nil {
				return nil, false, invalid("invalid filter 'exited=%s'", clip(v))
			}
		}
		return func(_ *Record, st Status, _ *container.HealthSummary) bool {
			return apiState(st) == container.StateExited && slices.Contains(values, strconv.Itoa(st.ExitCode))
		}, true, nil
	case "health":
		for _, v := range values {
			if err := container.ValidateHealthStatus(container.HealthStatus(v)); err != nil {
				return nil, false, errdefs.WithHint(invalid("invalid filter 'health=%s'", clip(v)), "starting, healthy, unhealthy or none")
			}
		}
		return func(_ *Record, _ Status, h *container.HealthSummary) bool {
			status := container.NoHealthcheck
			if h != nil {
				status = h.Status
			}
			return slices.Contains(values, string(status))
		}, false, nil
	case "ancestor":
		ids := map[string]bool{}
		for _, v := range values {
			img, err := s.o.Images.Get(v)
			if err != nil {
				continue
			}
			all, err := s.o.Images.List(image.ListOptions{All: true})
			if err != nil {
				return nil, false, err
			}
			for _, other := range all {
				ids[other.ID] = ids[other.ID] || descends(other.Config, img.Config)
			}
			for _, id := range append(img.Others, img.ID) {
				ids[id] = true
			}
		}
		return func(r *Record, _ Status, _ *container.HealthSummary) bool {
			return ids[r.ImageID] || slices.Contains(values, r.Config.Image)
		}, false, nil
	case "before", "since":
		other, err := s.find("list", values[0])
		if err != nil {
			return nil, false, err
		}
		o, _ := other.view()
		return func(r *Record, _ Status, _ *container.HealthSummary) bool {
			if key == "before" {
				return r.Created.Before(o.Created)
			}
			return r.Created.After(o.Created)
		}, false, nil
	case "volume":
		return func(r *Record, _ Status, _ *container.HealthSummary) bool {
			return slices.ContainsFunc(r.Mounts, func(m Mount) bool {
				return slices.Contains(values, m.Name) || slices.Contains(values, m.Destination) || slices.Contains(values, m.Source)
			})
		}, false, nil
	case "network":
		return func(r *Record, st Status, _ *container.HealthSummary) bool {
			for name := range r.Networks {
				if slices.Contains(values, name) {
					return true
				}
			}
			return slices.ContainsFunc(st.Sandbox.Endpoints, func(e EndpointStatus) bool {
				return slices.Contains(values, e.NetworkName) || some(func(v string) bool { return v != "" && strings.HasPrefix(e.NetworkID, v) })
			})
		}, false, nil
	case "publish", "expose":
		return s.portTest(key, values)
	case "is-task":
		return func(*Record, Status, *container.HealthSummary) bool { return !slices.Contains(values, "true") }, false, nil
	case "isolation":
		return func(*Record, Status, *container.HealthSummary) bool { return slices.Contains(values, "default") }, false, nil
	}
	return nil, false, errdefs.WithHint(invalid("invalid filter '%s'", clip(key)), "containers can be filtered by id, name, label, status, exited, health, ancestor, before, since, volume, network, publish, expose")
}

// descends tells that an image was made from another: it has the other's layers
// and history, and more.
func descends(img, from ocispec.Image) bool {
	layers, h := from.RootFS.DiffIDs, from.History
	if len(img.RootFS.DiffIDs) < len(layers) || len(img.History) < len(h) || !slices.Equal(img.RootFS.DiffIDs[:len(layers)], layers) {
		return false
	}
	for i := range h {
		if img.History[i].CreatedBy != h[i].CreatedBy || img.History[i].EmptyLayer != h[i].EmptyLayer {
			return false
		}
	}
	return len(layers) > 0 && (len(img.RootFS.DiffIDs) > len(layers) || len(img.History) > len(h))
}

func (s *Service) portTest(key string, values []string) (listMatch, bool, error) {
	want := map[network.Port]bool{}
	for _, v := range values {
		r, err := network.ParsePortRange(v)
		if err != nil {
			return nil, false, invalid("invalid filter '%s=%s'", key, clip(v))
		}
		for p := range r.All() {
			want[p] = true
		}
	}
	return func(r *Record, st Status, _ *container.HealthSummary) bool {
		if key == "expose" {
			for p := range r.Config.ExposedPorts {
				if want[p] {
					return true
				}
			}
			return false
		}
		for _, p := range st.Sandbox.Ports {
			if port, ok := network.PortFrom(p.HostPort, network.IPProtocol(p.Proto)); ok && want[port] {
				return true
			}
		}
		return false
	}, false, nil
}

// fuzzy is Docker's match of names: a part of the name, or with anchors.
func fuzzy(pattern, s string) bool {
	head := strings.HasPrefix(pattern, "^")
	tail := strings.HasSuffix(pattern, "$")
	p := strings.TrimSuffix(strings.TrimPrefix(pattern, "^"), "$")
	switch {
	case head && tail:
		return s == p
	case head:
		return strings.HasPrefix(s, p)
	case tail:
		return strings.HasSuffix(s, p)
	}
	return strings.Contains(s, p)
}

func labelsMatch(want []string, labels map[string]string) bool {
	for _, w := range want {
		k, v, has := strings.Cut(w, "=")
		if got, ok := labels[k]; !ok || has && got != v {
			return false
		}
	}
	return true
}

// UsersOfImage names the containers made from an image, or mounting it.
func (s *Service) UsersOfImage(id string) []string {
	var out []string
	for _, c := range s.all() {
		if rec, st := c.view(); (rec.ImageID == id || s.mountsImage(rec, id)) && st.State != Gone {
			name := rec.ID[:12]
			if st.State.HasProcess() {
				name += " (running)"
			}
			out = append(out, name)
		}
	}
	return out
}

func (s *Service) mountsImage(rec *Record, id string) bool {
	return slices.ContainsFunc(rec.Mounts, func(m Mount) bool {
		if m.Type != mount.TypeImage {
			return false
		}
		img, err := s.o.Images.Get(m.Source)
		return err == nil && img.ID == id
	})
}

// IDsOfImage lists the containers made from an image.
func (s *Service) IDsOfImage(id string) []string {
	var out []string
	for _, c := range s.all() {
		if rec, st := c.view(); rec.ImageID == id && st.State != Gone {
			out = append(out, rec.ID)
		}
	}
	return out
}

// NamesOfImage tells how the containers made from an image named it.
func (s *Service) NamesOfImage(id string) []string {
	var out []string
	for _, c := range s.all() {
		if rec, st := c.view(); rec.ImageID == id && st.State != Gone {
			out = append(out, rec.Config.Image)
		}
	}
	return out
}

// Counts are for GET /info.
func (s *Service) Counts() (running, paused, stopped int) {
	for _, c := range s.all() {
		switch _, st := c.view(); st.State {
		case Running, Restarting:
			running++
		case Paused:
			paused++
		case Gone:
		default:
			stopped++
		}
	}
	return running, paused, stopped
}

// VolumeUsers counts the containers that refer to each volume.
func (s *Service) VolumeUsers() map[string]int {
	out := map[string]int{}
	for _, c := range s.all() {
		rec, _ := c.view()
		for _, m := range rec.Mounts {
			if m.Name != "" {
				out[m.Name]++
			}
		}
	}
	return out
}

// An EndpointView is a container's place in a network.
type EndpointView struct {
	ContainerID, Name string
	EndpointStatus
}

// Endpoints are the running containers of each network, by the network's ID.
func (s *Service) Endpoints() map[string][]EndpointView {
	out := map[string][]EndpointView{}
	for _, c := range s.all() {
		rec, st := c.view()
		if !st.State.HasProcess() {
			continue
		}
		for _, e := range st.Sandbox.Endpoints {
			out[e.NetworkID] = append(out[e.NetworkID], EndpointView{ContainerID: rec.ID, Name: rec.Name, EndpointStatus: e})
		}
	}
	return out
}
