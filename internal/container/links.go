package container

import (
	"slices"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
	netsvc "github.com/onggi/onggi/internal/network"
)

// setLinks gives endpoints the names that the container calls others by.
func (s *Service) setLinks(eps []netsvc.EndpointRequest, rec *Record) error {
	for i := range eps {
		links := slices.Clone(rec.HostConfig.Links)
		if ep := rec.Networks[eps[i].Network]; ep != nil {
			links = append(links, ep.Links...)
		}
		var err error
		if eps[i].Links, err = s.linkIDs(rec, links); err != nil {
			return err
		}
	}
	return nil
}

// linkIDs reads "container:alias".
func (s *Service) linkIDs(rec *Record, links []string) (map[string]string, error) {
	out := map[string]string{}
	for _, l := range links {
		name, alias, _ := strings.Cut(l, ":")
		c, err := s.find("start", name)
		if err != nil {
			return nil, err
		}
		alias = cmpOr(alias, strings.TrimPrefix(name, "/"))
		other, st := c.view()
		if !st.State.HasProcess() && !rec.HostConfig.NetworkMode.IsUserDefined() {
			return nil, errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "Cannot link to a non running container: /%s AS /%s/%s", other.Name, rec.Name, alias), "onggi start "+other.Name)
		}
		out[strings.ToLower(alias)] = c.id
	}
	return out, nil
}

// linkNames are the links as Docker shows them: /child:/parent/alias.
func (s *Service) linkNames(rec *Record) []string {
	var out []string
	for _, l := range rec.HostConfig.Links {
		id, alias, _ := strings.Cut(l, ":")
		name := id
		if c, err := s.find("inspect", id); err == nil {
			r, _ := c.view()
			name = r.Name
		}
		out = append(out, "/"+name+":/"+rec.Name+"/"+alias)
	}
	return out
}
