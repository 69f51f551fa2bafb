package build

import (
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
)

// Policy is what an administrator decides about builds. The zero value is the
// default.
type Policy struct {
	NoCollection bool   // the cache is cleaned by hand only
	Rules        []Rule // nil: the default ones, within the limits below
	Reserved     Space  // what the default rules leave alone
	MaxUsed      Space  // what they let the cache grow to
	MinFree      Space  // what they keep free on the disk
	NoHostNet    bool   // steps never get the host's network
	NoInsecure   bool   // steps never get all privileges
	History      int    // past builds that are kept; 50 where 0
	HistoryAge   time.Duration
}

// Rule is one rule of garbage collection.
type Rule struct {
	All                        bool     // also what is shared with images, and internal things
	Filters                    []string // in BuildKit's form; any of them matches
	Unused                     time.Duration
	Reserved, MaxUsed, MinFree Space
}

// Space is bytes, or a percentage of the disk.
type Space struct {
	Bytes   int64
	Percent int
}

func (s Space) of(total int64) int64 { return s.Bytes + total/100*int64(s.Percent) }

// historyEntries is how many past builds are kept.
const historyEntries = 50

func (p Policy) history() *config.HistoryConfig {
	n := int64(historyEntries)
	if p.History > 0 {
		n = int64(p.History)
	}
	return &config.HistoryConfig{MaxEntries: &n, MaxAge: config.Duration{Duration: p.HistoryAge}}
}

// entitlements are what a client may grant to its build.
func (p Policy) entitlements() (out []string) {
	if !p.NoHostNet {
		out = append(out, "network.host")
	}
	if !p.NoInsecure {
		out = append(out, "security.insecure")
	}
	return out
}

// gc is when the cache is cleaned of what, in order. By default: cheap things
// that lay idle for two days, anything that lay idle for 60 days, then the
// least used until the cache fits.
func (p Policy) gc(disk func() (total, free int64, err error)) []client.PruneInfo {
	if p.NoCollection || disk == nil {
		return nil
	}
	total, _, err := disk()
	if err != nil || total <= 0 {
		return nil
	}
	if p.Rules != nil {
		out := make([]client.PruneInfo, len(p.Rules))
		for i, r := range p.Rules {
			out[i] = client.PruneInfo{All: r.All, Filter: r.Filters, KeepDuration: r.Unused,
				ReservedSpace: r.Reserved.of(total), MaxUsedSpace: r.MaxUsed.of(total), MinFreeSpace: r.MinFree.of(total)}
		}
		return out
	}
	rule := client.PruneInfo{ReservedSpace: p.Reserved.of(total), MaxUsedSpace: p.MaxUsed.of(total), MinFreeSpace: p.MinFree.of(total)}
	if p.Reserved == (Space{}) && p.MaxUsed == (Space{}) && p.MinFree == (Space{}) {
		const gb = 1 << 30
		rule.ReservedSpace, rule.MaxUsedSpace, rule.MinFreeSpace = min(total/10, 10*gb), min(total*3/5, 100*gb), total/5
	}
	old, all := rule, rule
	old.KeepDuration = 60 * 24 * time.Hour
	all.All = true
	return []client.PruneInfo{
		{
			Filter:       []string{"type==source.local", "type==exec.cachemount", "type==source.git.checkout"},
			KeepDuration: 48 * time.Hour, MaxUsedSpace: 512 << 20,
		},
		old, rule, all,
	}
}
