package refs

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/moby/buildkit/client"
)

// entry is a node as it is shown and judged.
type entry struct {
	n      *node
	info   *client.UsageInfo
	leaf   bool // nothing lies on it and nobody holds it
	unused bool // nor holds anything that lies on it
}

// entries lists the nodes, without what shares another's data. Sizes that
// are not known are measured.
func (s *Store) entries(ctx context.Context) []entry {
	s.mu.Lock()
	var out []entry
	busy := map[*node]bool{}
	for _, n := range s.nodes {
		if n.handles > 0 {
			for p := n; p != nil && !busy[p]; p = p.parent {
				busy[p] = true
			}
		}
	}
	for _, n := range s.nodes {
		// Of a mutable and its twin only one is shown: the twin when it is in
		// use, else the mutable, which owns the data.
		if n.twin != nil {
			imm := n
			if n.rec.Mutable {
				imm = n.twin
			}
			if n.rec.Mutable == (imm.handles > 0) {
				continue
			}
		}
		e := entry{n: n, info: n.infoLocked()}
		twinHeld := n.twin != nil && n.twin.handles > 0
		e.leaf = n.handles == 0 && !twinHeld && n.children == 0
		e.unused = !busy[n] && !twinHeld
		e.info.InUse = !e.unused
		out = append(out, e)
	}
	s.mu.Unlock()
	for _, e := range out {
		e.info.Size = e.n.size(ctx)
	}
	return out
}

// infoLocked is the node's usage record. Preconditions: s.mu is held.
func (n *node) infoLocked() *client.UsageInfo {
	r := &n.rec
	u := &client.UsageInfo{
		ID: r.ID, Mutable: r.Mutable, Size: r.Size, CreatedAt: r.Created,
		UsageCount: r.Uses, Description: r.Description, RecordType: r.Type,
	}
	if u.Description == "" && n.twin != nil {
		u.Description = n.twin.rec.Description
	}
	if u.RecordType == "" {
		u.RecordType = client.UsageRecordTypeRegular
	}
	if !r.LastUsed.IsZero() {
		t := r.LastUsed
		u.LastUsedAt = &t
	}
	if r.Parent != "" {
		u.Parents = []string{r.Parent}
	}
	if r.Chain != "" && n.s.o.Shared != nil {
		u.Shared = n.s.o.Shared(r.Chain.String())
	}
	return u
}

// DiskUsage lists what the build cache holds.
func (s *Store) DiskUsage(ctx context.Context, o client.DiskUsageInfo) ([]*client.UsageInfo, error) {
	f, err := filters.ParseAll(o.Filter...)
	if err != nil {
		return nil, fmt.Errorf("reading the filters %v: %w", o.Filter, err)
	}
	cut := time.Now().Add(-o.AgeLimit)
	var out []*client.UsageInfo
	for _, e := range s.entries(ctx) {
		if !f.Match(adapt(e.info)) || o.AgeLimit > 0 && e.info.LastUsedAt != nil && e.info.LastUsedAt.After(cut) {
			continue
		}
		out = append(out, e.info)
	}
	slices.SortFunc(out, func(a, b *client.UsageInfo) int {
		if c := a.CreatedAt.Compare(b.CreatedAt); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

// Prune removes what nobody uses, by each of the rules in turn.
func (s *Store) Prune(ctx context.Context, ch chan client.UsageInfo, rules ...client.PruneInfo) error {
	s.pruning.Lock()
	defer s.pruning.Unlock()
	for _, r := range rules {
		if err := s.prune(ctx, ch, r); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) prune(ctx context.Context, ch chan client.UsageInfo, r client.PruneInfo) error {
	f, err := filters.ParseAll(r.Filter...)
	if err != nil {
		return fmt.Errorf("reading the filters %v: %w", r.Filter, err)
	}
	limited := r.MaxUsedSpace != 0 || r.ReservedSpace != 0 || r.MinFreeSpace != 0
	var keep int64
	for round := 0; ; round++ {
		all := s.entries(ctx)
		var total int64
		for _, e := range all {
			if !e.info.Shared {
				total += e.info.Size
			}
		}
		if limited && round == 0 {
			if keep, err = s.keepBytes(total, r); err != nil {
				return err
			}
		}
		if limited && total <= keep {
			return nil
		}
		victims := s.victims(all, r, f)
		// The least used goes first; only then is it known what its parent's
		// turn is.
		removed := 0
		for _, e := range victims {
			if err := ctx.Err(); err != nil {
				return context.Cause(ctx)
			}
			if limited && total <= keep {
				return nil
			}
			if !s.remove(e.n) {
				continue
			}
			removed++
			if !e.info.Shared {
				total -= e.info.Size
			}
			if ch != nil {
				ch <- *e.info
			}
		}
		if removed == 0 {
			return nil
		}
	}
}

// victims are the entries that the rule allows to remove now, best first.
func (s *Store) victims(all []entry, r client.PruneInfo, f filters.Filter) []entry {
	cut := time.Now().Add(-r.KeepDuration)
	var out []entry
	for _, e := range all {
		switch {
		case !e.leaf:
		case !r.All && (e.info.Shared || e.info.RecordType == client.UsageRecordTypeInternal || e.info.RecordType == client.UsageRecordTypeFrontend):
		case r.KeepDuration != 0 && e.info.LastUsedAt != nil && e.info.LastUsedAt.After(cut):
		case !f.Match(adapt(e.info)):
		default:
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b entry) int {
		if c := lastUse(a.info).Compare(lastUse(b.info)); c != 0 {
			return c
		}
		return a.info.UsageCount - b.info.UsageCount
	})
	return out
}

func lastUse(u *client.UsageInfo) time.Time {
	if u.LastUsedAt != nil {
		return *u.LastUsedAt
	}
	return u.CreatedAt
}

// remove drops a node if it still is a leaf.
func (s *Store) remove(n *node) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.dead || n.children > 0 || n.locked() {
		return false
	}
	twin := n.twin
	n.twin = nil
	if twin != nil {
		if twin.children > 0 {
			n.twin = twin
			return false
		}
		twin.twin = nil
		// Whichever of the two owns the snapshot takes it along.
		twin.drop(twin.rec.Mutable)
	}
	n.drop(n.rec.Mutable || twin == nil)
	return true
}

// keepBytes is how much the rule lets the cache hold.
func (s *Store) keepBytes(total int64, r client.PruneInfo) (int64, error) {
	keep := total
	if r.MaxUsedSpace != 0 {
		keep = min(keep, r.MaxUsedSpace)
	} else if r.MinFreeSpace == 0 {
		keep = r.ReservedSpace
	}
	if r.MinFreeSpace != 0 && s.o.Free != nil {
		free, err := s.o.Free()
		if err != nil {
			return 0, err
		}
		if short := r.MinFreeSpace - free; short > 0 {
			keep = min(keep, total-short)
		}
	}
	return max(keep, r.ReservedSpace), nil
}

// adapt lets a filter look at a record; the field names are BuildKit's.
func adapt(u *client.UsageInfo) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		flag := func(b bool) (string, bool) { return "", b } // present or not
		switch path[0] {
		case "id":
			return u.ID, u.ID != ""
		case "parents":
			return strings.Join(u.Parents, ";"), len(u.Parents) > 0
		case "description":
			return u.Description, u.Description != ""
		case "type":
			return string(u.RecordType), u.RecordType != ""
		case "inuse":
			return flag(u.InUse)
		case "mutable":
			return flag(u.Mutable)
		case "immutable":
			return flag(!u.Mutable)
		case "shared":
			return flag(u.Shared)
		case "private":
			return flag(!u.Shared)
		}
		return "", false
	})
}
