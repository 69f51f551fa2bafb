package main

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"

	"github.com/onggi/onggi/internal/build"
)

// builderConfig is the key "builder" of the configuration file, as dockerd has
// it.
type builderConfig struct{ policy build.Policy }

func (b *builderConfig) UnmarshalJSON(raw []byte) error {
	var f struct {
		GC struct {
			Enabled                                                                            *bool
			Policy                                                                             []gcRule
			DefaultReservedSpace, DefaultKeepStorage, DefaultMaxUsedSpace, DefaultMinFreeSpace space
		}
		Entitlements struct {
			NetworkHost      *bool `json:"network-host"`
			SecurityInsecure *bool `json:"security-insecure"`
			Device           *bool
		}
		History struct {
			MaxAge     age
			MaxEntries int
		}
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return err
	}
	no := func(p *bool) bool { return p != nil && !*p }
	b.policy = build.Policy{
		NoCollection: no(f.GC.Enabled), NoHostNet: no(f.Entitlements.NetworkHost), NoInsecure: no(f.Entitlements.SecurityInsecure),
		Reserved: f.GC.DefaultReservedSpace.or(f.GC.DefaultKeepStorage), MaxUsed: build.Space(f.GC.DefaultMaxUsedSpace), MinFree: build.Space(f.GC.DefaultMinFreeSpace),
		History: f.History.MaxEntries, HistoryAge: time.Duration(f.History.MaxAge),
	}
	for _, r := range f.GC.Policy {
		b.policy.Rules = append(b.policy.Rules, r.Rule)
	}
	return nil
}

// gcRule is one of builder.gc.policy.
type gcRule struct{ build.Rule }

func (r *gcRule) UnmarshalJSON(raw []byte) error {
	var f struct {
		All                                                    bool
		Filter                                                 filterList
		ReservedSpace, KeepStorage, MaxUsedSpace, MinFreeSpace space
		KeepDuration                                           age
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return err
	}
	r.Rule = build.Rule{All: f.All, Unused: time.Duration(f.KeepDuration), Reserved: f.ReservedSpace.or(f.KeepStorage),
		MaxUsed: build.Space(f.MaxUsedSpace), MinFree: build.Space(f.MinFreeSpace)}
	var match []string
	for _, kv := range f.Filter {
		k, v, _ := strings.Cut(kv, "=")
		switch k = strings.ToLower(strings.TrimSpace(k)); k {
		case "until", "unused-for":
			var err error
			if r.Unused, err = time.ParseDuration(v); err != nil {
				return fmt.Errorf("filter %s=%q: want a duration such as 24h", k, v)
			}
		case "id":
			match = append(match, k+"~="+v)
		case "parent", "type", "description":
			match = append(match, k+"=="+v)
		case "inuse", "shared", "private", "mutable", "immutable":
			match = append(match, k)
		default:
			return fmt.Errorf("filter %q: there is none of this name", k)
		}
	}
	if len(match) > 0 {
		r.Filters = []string{strings.Join(match, ",")} // all of them have to match
	}
	return nil
}

// filterList is ["key=value"], or dockerd's older {"key": {"value": true}}.
type filterList []string

func (l *filterList) UnmarshalJSON(raw []byte) error {
	if json.Unmarshal(raw, (*[]string)(l)) == nil {
		return nil
	}
	var m map[string]map[string]bool
	if err := json.Unmarshal(raw, &m); err != nil {
		return fmt.Errorf("want a list of key=value")
	}
	for k, vs := range m {
		for v := range vs {
			*l = append(*l, k+"="+v)
		}
	}
	return nil
}

// space is "20GB" or "10%".
type space build.Space

func (s *space) UnmarshalJSON(raw []byte) (err error) {
	var v string
	if err := json.Unmarshal(raw, &v); err != nil {
		return json.Unmarshal(raw, &s.Bytes)
	}
	if p, ok := strings.CutSuffix(v, "%"); ok {
		if s.Percent, err = strconv.Atoi(p); err != nil || s.Percent < 0 || s.Percent > 100 {
			return fmt.Errorf("%q is not from 0%% to 100%%", v)
		}
		return nil
	}
	s.Bytes, err = units.RAMInBytes(v)
	return err
}

// or is s, or t where s is not given.
func (s space) or(t space) build.Space {
	if s == (space{}) {
		return build.Space(t)
	}
	return build.Space(s)
}

// age is "48h", or seconds.
type age time.Duration

func (a *age) UnmarshalJSON(raw []byte) error {
	var v string
	if json.Unmarshal(raw, &v) != nil {
		v = string(raw) + "s"
	}
	d, err := time.ParseDuration(v)
	*a = age(d)
	return err
}
