package container

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	netapi "github.com/moby/moby/api/types/network"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/network"
)

// Links name other containers: in the name server, and on the default network also
// in the hosts file and by variables of the environment. A record has them as
// ID:ALIAS.

// linksOf are the container's links.
func linksOf(rec *Record) (out []network.Link) {
	for _, l := range rec.HostConfig.Links {
		id, alias, _ := strings.Cut(l, ":")
		out = append(out, network.Link{Target: id, Alias: alias})
	}
	return out
}

// linkNames are the links as Docker shows them: /child:/parent/alias.
func (s *Service) linkNames(rec *Record) (out []string) {
	for _, l := range linksOf(rec) {
		name := l.Target
		if c, err := s.find("inspect", l.Target); err == nil {
			r, _ := c.view()
			name = r.Name
		}
		out = append(out, "/"+name+":/"+rec.Name+"/"+l.Alias)
	}
	return out
}

// linkEnvironment tells a container of those that it is linked to.
func (s *Service) linkEnvironment(rec *Record) (env []string, err error) {
	if rec.HostConfig.NetworkMode != netapi.NetworkBridge {
		return nil, nil
	}
	for _, l := range linksOf(rec) {
		c, err := s.find("start", l.Target)
		if err != nil {
			continue // removed since
		}
		target, st := c.view()
		if !st.State.HasProcess() {
			return nil, errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "Cannot link to a non running container: /%s AS /%s/%s", target.Name, rec.Name, l.Alias), "onggi start "+target.Name)
		}
		addr := ""
		for _, e := range st.Sandbox.Endpoints {
			if e.NetworkName == netapi.NetworkBridge && e.IPv4.IsValid() {
				addr = e.IPv4.Addr().String()
			}
		}
		if addr == "" && target.HostConfig.NetworkMode.IsContainer() {
			continue // it has no address of its own
		}
		if addr == "" {
			return nil, errdefs.Newf(errdefs.Conflict, "", "", "Cannot link to /%s, as it does not belong to the default network", target.Name)
		}
		env = append(env, linkVariables(rec.Name, l.Alias, addr, target.Config)...)
	}
	return env, nil
}

func linkVariables(name, alias, addr string, target *Config) []string {
	prefix := strings.ToUpper(strings.ReplaceAll(alias, "-", "_"))
	var ports []netapi.Port
	for p := range target.ExposedPorts {
		ports = append(ports, p)
	}
	slices.SortFunc(ports, func(a, b netapi.Port) int {
		return cmp.Or(cmp.Compare(a.Num(), b.Num()), cmp.Compare(a.Proto(), b.Proto()))
	})
	var env []string
	for i, p := range ports {
		port, proto := strconv.Itoa(int(p.Num())), string(p.Proto())
		url := proto + "://" + addr + ":" + port
		if i == 0 {
			env = append(env, prefix+"_PORT="+url)
		}
		one := prefix + "_PORT_" + port + "_" + strings.ToUpper(proto)
		env = append(env, one+"="+url, one+"_ADDR="+addr, one+"_PORT="+port, one+"_PROTO="+proto)
	}
	env = append(env, prefix+"_NAME=/"+name+"/"+alias)
	for _, e := range target.Env {
		if k, _, ok := strings.Cut(e, "="); ok && k != "HOME" && k != "PATH" {
			env = append(env, prefix+"_ENV_"+e)
		}
	}
	return env
}

// Unlink removes a link, named CONTAINER/ALIAS.
func (s *Service) Unlink(ctx context.Context, ref string) error {
	name, alias, ok := strings.Cut(strings.TrimPrefix(ref, "/"), "/")
	if !ok || alias == "" {
		return invalid("Conflict, cannot remove the default link name of the container")
	}
	c, err := s.find("remove link", name)
	if err != nil {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	rec, _ := c.view()
	r, h := *rec, *rec.HostConfig
	h.Links = slices.DeleteFunc(slices.Clone(h.Links), func(l string) bool { _, a, _ := strings.Cut(l, ":"); return a == alias })
	if len(h.Links) == 0 {
		h.Links = nil
	}
	if len(h.Links) == len(rec.HostConfig.Links) {
		return errdefs.Newf(errdefs.NotFound, "remove link", quote("container", rec.Name), "it has no link %s", alias)
	}
	r.HostConfig = &h
	if err := s.replaceRecord(c, &r); err != nil {
		return err
	}
	s.expectEtc(c)
	if !h.NetworkMode.IsUserDefined() {
		if _, err := s.o.Networks.SetLinks(ctx, c.id, linksOf(&r)); err != nil {
			return err
		}
	}
	return s.refreshEtc(c)
}

// tellLinked lets the containers that are linked to one know its new address.
func (s *Service) tellLinked(id string) {
	for _, c := range s.all() {
		rec, st := c.view()
		if st.State.HasProcess() && slices.ContainsFunc(rec.HostConfig.Links, func(l string) bool { return strings.HasPrefix(l, id+":") }) {
			if err := s.refreshEtc(c); err != nil {
				s.log.Warn("the hosts file of a linked container is not up to date", "container", c.id, "error", err)
			}
		}
	}
}

// expectEtc notes what the container's files hold, before they change, where an
// earlier engine wrote them.
func (s *Service) expectEtc(c *Container) {
	box, ok := s.o.Networks.Sandbox(c.id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if ok && c.etc == nil {
		c.etc = map[string][]byte{"hosts": box.Hosts, "resolv.conf": box.ResolvConf}
	}
}

// refreshEtc writes the container's files anew, but for those that somebody else
// has changed.
func (s *Service) refreshEtc(c *Container) error {
	rec, _ := c.view()
	box, ok := s.o.Networks.Sandbox(c.id)
	if !ok || rec.HostConfig.NetworkMode.IsHost() {
		return nil
	}
	c.mu.Lock()
	have := c.etc
	c.mu.Unlock()
	for name, data := range map[string][]byte{"hosts": box.Hosts, "resolv.conf": box.ResolvConf} {
		p := filepath.Join(s.etcDir(c.id), name)
		// What a container has written may be of any size.
		if fi, err := os.Stat(p); err != nil || fi.Size() != int64(len(have[name])) {
			continue
		}
		if now, err := os.ReadFile(p); err != nil || string(now) != string(have[name]) {
			continue
		}
		if err := os.WriteFile(p, data, 0o644); err != nil {
			return errdefs.New(errdefs.KindOf(err), "write", name+" of "+quote("container", rec.Name), err)
		}
		have[name] = data
	}
	return nil
}

// Connect joins a container to a network: now if it runs, else at its start.
func (s *Service) Connect(ctx context.Context, ref, networkName string, ep *netapi.EndpointSettings) error {
	c, err := s.find("connect", ref)
	if err != nil {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	rec, st := c.view()
	mode := rec.HostConfig.NetworkMode
	if ep == nil {
		ep = &netapi.EndpointSettings{}
	}
	if err := checkEndpoint(networkName, ep); err != nil {
		return err
	}
	switch {
	case mode.IsContainer():
		return errdefs.Newf(errdefs.Conflict, "", "", "container sharing network namespace with another container or host cannot be connected to any other network")
	case mode.IsHost() || networkName == netapi.NetworkHost:
		return errdefs.Newf(errdefs.Forbidden, "", "", "cannot connect container to host network - container must be created in host network mode")
	case mode.IsNone() || networkName == netapi.NetworkNone:
		return errdefs.Newf(errdefs.Forbidden, "", "", "container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	if _, ok := rec.Networks[networkName]; ok {
		return errdefs.Newf(errdefs.Conflict, "", "", "endpoint with name %s already exists in network %s", rec.Name, networkName)
	}
	if st.State.HasProcess() {
		s.expectEtc(c)
		box, err := s.o.Networks.Connect(ctx, c.id, endpointRequest(networkName, ep, rec))
		if err != nil {
			return err
		}
		if err := s.changedNetwork(c, box); err != nil {
			return err
		}
	}
	r := *rec
	r.Networks = maps.Clone(rec.Networks)
	if r.Networks == nil {
		r.Networks = map[string]*netapi.EndpointSettings{}
	}
	r.Networks[networkName] = ep.Copy()
	return s.replaceRecord(c, &r)
}

// changedNetwork records a running container's network and rewrites its files.
func (s *Service) changedNetwork(c *Container, box network.Sandbox) error {
	c.mu.Lock()
	c.st.Sandbox = sandboxStatus(box)
	c.mu.Unlock()
	return errors.Join(s.save(c), s.refreshEtc(c))
}

// Disconnect takes a container off a netapi. id is the network's ID.
func (s *Service) Disconnect(ctx context.Context, ref, networkName, id string, force bool) error {
	c, err := s.find("disconnect", ref)
	if err != nil {
		return err
	}
	unlock, err := c.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	rec, st := c.view()
	_, asked := rec.Networks[networkName]
	at := slices.IndexFunc(st.Sandbox.Endpoints, func(e EndpointStatus) bool { return e.NetworkID == id || e.NetworkName == networkName })
	if !asked && at < 0 {
		return errdefs.Newf(errdefs.Forbidden, "", "", "container %s is not connected to network %s", c.id, networkName)
	}
	if rec.HostConfig.NetworkMode.IsHost() {
		return errdefs.Newf(errdefs.Forbidden, "", "", "cannot disconnect container from host network - container was created in host network mode")
	}
	if st.State.HasProcess() && at >= 0 {
		s.expectEtc(c)
		box, err := s.o.Networks.Disconnect(ctx, c.id, networkName, force)
		if err != nil {
			return err
		}
		if err := s.changedNetwork(c, box); err != nil {
			return err
		}
	}
	r := *rec
	r.Networks = maps.Clone(rec.Networks)
	delete(r.Networks, networkName)
	return s.replaceRecord(c, &r)
}
