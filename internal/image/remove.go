package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
)

// Remove takes a name away, and with its last name the image, of every
// platform, as Docker does: given a name, that name goes; given an ID, all
// names of one repository go. What a container uses stays, unless forced.
func (s *Service) Remove(ctx context.Context, nameOrID string, o RemoveOptions) ([]Removed, error) {
	if o.InUse == nil {
		o.InUse = func(string) []string { return nil }
	}
	s.mu.RLock()
	e, target, err := s.lookupLocked(nameOrID)
	var names, same, within []reference.Ref // of the image; of the target; of some of its images only
	var platforms, all []*entry
	behind := false
	if err == nil {
		behind = s.behindLocked(e)
		all = s.membersLocked(target)
		names, same, within = s.refsLocked(e), parseAll(s.of[target]), s.namesWithinLocked(all)
		platforms, err = exactly(all, o.Platforms, nameOrID)
	}
	s.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	if len(platforms) < len(all) {
		return s.removePlatforms(ctx, platforms, target, o)
	}
	if ref, ok := s.asName(nameOrID, e.id); ok {
		if users := usersOf(all, o); !o.Force && oneRepository(names) && len(tagsOf(names)) <= 1 && len(users) > 0 {
			return nil, errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "",
				"conflict: unable to remove repository reference %q (must force) - container %s is using its referenced image %s", nameOrID, strings.TrimSuffix(users[0], " (running)"), short(ocispec.Digest(e.id))),
				"onggi rm "+strings.TrimSuffix(users[0], " (running)")+", or rmi -f")
		}
		drop := []reference.Ref{ref}
		// With the last tag of a repository its digests go, too.
		for _, list := range [][]reference.Ref{same, within} {
			list = slices.DeleteFunc(list, func(n reference.Ref) bool { return n.Repository() != ref.Repository() || slices.Contains(drop, n) })
			if ref.Digest == "" && len(tagsOf(list)) == 0 {
				drop = append(drop, list...)
			}
		}
		out, err := s.untag(e.id, drop)
		if err != nil {
			return out, err
		}
		more, err := s.removeLoose(ctx, all, o)
		return append(out, more...), err
	}
	s.mu.RLock()
	group := s.groupLocked(e)
	s.mu.RUnlock()
	if len(group) > 1 && target == e.id && !strings.HasPrefix(e.id, "sha256:"+strings.TrimPrefix(nameOrID, "sha256:")) {
		// By the digest of its manifest, it is this platform that is meant.
		var out []Removed
		for _, from := range e.rec.origins() {
			index := from.Index.Digest.String()
			s.mu.RLock()
			alone := len(s.parts[index]) < 2
			s.mu.RUnlock()
			if alone {
				continue // there a name means nothing else
			}
			more, err := s.removePlatforms(ctx, []*entry{e}, index, o)
			if out = append(out, more...); err != nil {
				return out, err
			}
		}
		return out, nil
	}
	named := oneRepository(names)
	for _, m := range group {
		list := names
		if m.id != e.id {
			list = nil
		}
		if c := s.conflict(m.id, list, o, named); c != nil {
			return nil, c
		}
	}
	out, err := s.untag(e.id, names)
	if err != nil {
		return out, err
	}
	var more []Removed
	if behind {
		more, err = s.remove(ctx, e.id, nil, o, named) // this platform only
	} else {
		more, err = s.removeLoose(ctx, group, o)
	}
	return append(out, more...), err
}

// namesWithinLocked lists the names that mean images of the list, and no other.
// Preconditions: s.mu is held.
func (s *Service) namesWithinLocked(list []*entry) []reference.Ref {
	var out []string
	for _, e := range list {
		for _, n := range s.heldLocked(e) {
			other := func(m *entry) bool { return !slices.Contains(list, m) }
			if !slices.ContainsFunc(s.membersLocked(s.names[n]), other) {
				out = append(out, n)
			}
		}
	}
	slices.Sort(out)
	return parseAll(slices.Compact(out))
}

// usersOf lists the containers of any of the images.
func usersOf(list []*entry, o RemoveOptions) []string {
	var out []string
	for _, e := range list {
		out = append(out, o.InUse(e.id)...)
	}
	return out
}

// removeLoose deletes those of the images that have no name any more. The
// others leave the indexes that have none.
func (s *Service) removeLoose(ctx context.Context, list []*entry, o RemoveOptions) ([]Removed, error) {
	var out []Removed
	for _, e := range list {
		s.mu.RLock()
		held := len(s.heldLocked(e)) > 0
		s.mu.RUnlock()
		if held {
			for _, o := range e.rec.origins() {
				if err := s.leave(e.id, o.Index.Digest.String(), true); err != nil {
					return out, err
				}
			}
			continue
		}
		more, err := s.remove(ctx, e.id, nil, o, true)
		out = append(out, more...)
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// removePlatforms takes some images out of their index, whose names stay for
// the others.
func (s *Service) removePlatforms(ctx context.Context, list []*entry, index string, o RemoveOptions) ([]Removed, error) {
	for _, e := range list {
		if c := s.conflict(e.id, nil, o, true); c != nil {
			return nil, c
		}
	}
	for _, e := range list {
		if err := s.leave(e.id, index, false); err != nil {
			return nil, err
		}
	}
	s.mu.RLock()
	for i, e := range list {
		list[i] = s.images[e.id]
	}
	s.mu.RUnlock()
	return s.removeLoose(ctx, slices.DeleteFunc(list, func(e *entry) bool { return e == nil }), o)
}

// leave takes an image out of an index, or only if that has no name.
func (s *Service) leave(id, index string, nameless bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[id]
	if e == nil || nameless && len(s.of[index]) > 0 {
		return nil
	}
	left := *e
	left.rec.Also = nil
	for _, o := range e.rec.origins() {
		if d := o.Index.Digest; d.String() != index && d != e.rec.Index.Digest {
			left.rec.Also = append(left.rec.Also, o)
		}
	}
	if left.rec.Index.Digest.String() == index {
		left.rec.Index = ocispec.Descriptor{}
	}
	gone := ocispec.Digest(index)
	left.rec.Docs = slices.DeleteFunc(slices.Clone(e.rec.Docs), func(d ocispec.Digest) bool { return d == gone })
	drop := s.onlyOfLocked(id, []ocispec.Digest{gone})
	names := s.lastNamesLocked(id, index)
	err := s.o.DB.Update(func(tx *metadb.Tx) error {
		if err := errors.Join(deleteDocs(tx, drop), deleteNames(tx, names)); err != nil {
			return err
		}
		return tx.Put(bucketImage, id, left.rec)
	})
	if err != nil {
		return err
	}
	for _, n := range names {
		s.setNameLocked(n, "")
	}
	s.images[id] = &left
	s.leaveLocked(id, index)
	s.dropLargeDocs(drop)
	return nil
}

// lastNamesLocked lists the names of an index that mean nothing any more when
// an image leaves it. Preconditions: s.mu is held.
func (s *Service) lastNamesLocked(id, index string) []string {
	if list := s.parts[index]; len(list) == 1 && list[0] == id {
		return slices.Clone(s.of[index])
	}
	return nil
}

func deleteNames(tx *metadb.Tx, names []string) error {
	for _, n := range names {
		if err := tx.Delete(bucketName, n); err != nil {
			return err
		}
	}
	return nil
}

// onlyOfLocked lists which of the documents no other image has. Preconditions:
// s.mu is held.
func (s *Service) onlyOfLocked(id string, docs []ocispec.Digest) []ocispec.Digest {
	needed := map[ocispec.Digest]bool{}
	for other, e := range s.images {
		if other != id {
			for _, d := range e.rec.Docs {
				needed[d] = true
			}
		}
	}
	return slices.DeleteFunc(slices.Clone(docs), func(d ocispec.Digest) bool { return needed[d] })
}

func deleteDocs(tx *metadb.Tx, docs []ocispec.Digest) error {
	for _, d := range docs {
		if err := tx.Delete(bucketDoc, d.String()); err != nil {
			return err
		}
	}
	return nil
}

// dropLargeDocs deletes documents that were too large to be records.
func (s *Service) dropLargeDocs(docs []ocispec.Digest) {
	for _, d := range docs {
		if s.o.Content != nil {
			if err := s.o.Content.Delete(d); err != nil && !errdefs.Is(err, errdefs.NotFound) {
				s.log.Warn("document not removed", "digest", d, "error", err)
			}
		}
	}
}

// asName reports whether a person meant a name by what led to the image, and
// which.
func (s *Service) asName(nameOrID, id string) (reference.Ref, bool) {
	r, err := reference.Parse(nameOrID)
	if err != nil {
		return reference.Ref{}, false
	}
	if r.Digest != "" {
		r.Tag = ""
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	return r.OrLatest(), s.meansLocked(s.byNameLocked(r), id)
}

// refsLocked lists the names that mean an image where no platform is asked for.
// Preconditions: s.mu is held.
func (s *Service) refsLocked(e *entry) []reference.Ref {
	var names []string
	for _, t := range s.standsForLocked(e) {
		names = append(names, s.of[t]...)
	}
	slices.Sort(names)
	return parseAll(names)
}

func parseAll(names []string) []reference.Ref {
	var out []reference.Ref
	for _, n := range names {
		if r, err := reference.Parse(n); err == nil {
			out = append(out, r)
		}
	}
	return out
}

func tagsOf(names []reference.Ref) []reference.Ref {
	return slices.DeleteFunc(slices.Clone(names), func(n reference.Ref) bool { return n.Digest != "" })
}

// oneRepository reports whether names are one tag at most, with digests of the
// same repository.
func oneRepository(names []reference.Ref) bool {
	return len(names) > 0 && len(tagsOf(names)) <= 1 && !slices.ContainsFunc(names, func(n reference.Ref) bool { return n.Repository() != names[0].Repository() })
}

// untag takes names away.
func (s *Service) untag(id string, names []reference.Ref) ([]Removed, error) {
	s.mu.Lock()
	err := s.o.DB.Update(func(tx *metadb.Tx) error {
		for _, n := range names {
			if err := tx.Delete(bucketName, n.String()); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		for _, n := range names {
			s.setNameLocked(n.String(), "")
		}
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	var out []Removed
	for _, n := range names {
		out = append(out, Removed{Untagged: n.Familiar()})
		s.emit("untag", id, n.Familiar())
	}
	return out, nil
}

// conflict says why an image must stay. active: names do not count.
func (s *Service) conflict(id string, names []reference.Ref, o RemoveOptions, active bool) error {
	say := func(verb, hint, format string, args ...any) error {
		return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "conflict: unable to delete %s (%s) - %s", short(ocispec.Digest(id)), verb, fmt.Sprintf(format, args...)), hint)
	}
	if kids := s.children(id); len(kids) > 0 {
		return say("cannot be forced", "onggi rmi "+short(ocispec.Digest(kids[0]))+" first", "image has dependent child images")
	}
	var stopped string
	for _, u := range o.InUse(id) {
		if c, ok := strings.CutSuffix(u, " (running)"); ok {
			return say("cannot be forced", "onggi rm -f "+c, "image is being used by running container %s", c)
		}
		stopped = u
	}
	if o.Force {
		return nil
	}
	if len(names) > 1 && !active {
		return say("must be forced", "onggi rmi each name, or -f", "image is referenced in multiple repositories")
	}
	if stopped != "" {
		return say("must be forced", "onggi rm "+stopped+", or rmi -f", "image is being used by stopped container %s", stopped)
	}
	return nil
}

func (s *Service) children(id string) []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var out []string
	for _, e := range s.images {
		if e.rec.Parent == id {
			out = append(out, e.id)
		}
	}
	slices.Sort(out)
	return out
}

// remove deletes an image, its layers that no other has, and parents that
// thereby have neither name nor child.
func (s *Service) remove(ctx context.Context, id string, names []reference.Ref, o RemoveOptions, quiet bool) ([]Removed, error) {
	if c := s.conflict(id, names, o, quiet); c != nil {
		if quiet {
			return nil, nil // the name is gone, as was asked
		}
		return nil, c
	}
	out, err := s.untag(id, names)
	if err != nil {
		return out, err
	}
	s.mu.RLock()
	e := s.images[id]
	var chains []string
	var cfg ocispec.Image
	if e != nil {
		cfg, _ = e.config()
	}
	s.mu.RUnlock()
	if e == nil {
		return out, nil // another was quicker
	}
	for _, c := range ocispec.ChainIDs(cfg.RootFS.DiffIDs) {
		chains = append(chains, c.String())
	}
	s.emit("delete", id, id)
	if err := s.forget(id); err != nil {
		return out, err
	}
	out = append(out, Removed{Deleted: id})
	slices.Reverse(chains)
	for _, c := range chains {
		if s.dropLayer(ctx, c) {
			out = append(out, Removed{Deleted: c})
		}
	}
	if parent := e.rec.Parent; parent != "" && !o.NoPrune {
		s.mu.RLock()
		p := s.images[parent]
		named := p != nil && len(s.heldLocked(p)) > 0
		s.mu.RUnlock()
		if p != nil && !named {
			more, err := s.remove(ctx, parent, nil, RemoveOptions{InUse: o.InUse}, true)
			return append(out, more...), err
		}
	}
	return out, nil
}

// forget deletes the records of an image, and documents that only it has.
func (s *Service) forget(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.images[id]
	if e == nil {
		return nil
	}
	drop := s.onlyOfLocked(id, e.rec.Docs)
	names := slices.Clone(s.of[id])
	for _, o := range e.rec.origins() {
		names = append(names, s.lastNamesLocked(id, o.Index.Digest.String())...)
	}
	err := s.o.DB.Update(func(tx *metadb.Tx) error {
		if err := tx.Delete(bucketImage, id); err != nil {
			return err
		}
		return errors.Join(deleteDocs(tx, drop), deleteNames(tx, names))
	})
	if err != nil {
		return err
	}
	for _, n := range names {
		s.setNameLocked(n, "")
	}
	for _, o := range e.rec.origins() {
		s.leaveLocked(id, o.Index.Digest.String())
	}
	delete(s.images, id)
	s.dropLargeDocs(drop)
	return nil
}

// usedLocked lists the chain IDs that images have. Preconditions: s.mu is held.
func (s *Service) usedLocked() map[string]int {
	used := map[string]int{}
	for _, e := range s.images {
		for _, c := range e.chains() {
			used[c]++
		}
	}
	return used
}

// hasLocked reports whether an image has the chain ID. Preconditions: s.mu is
// held.
func (s *Service) hasLocked(chain string) bool {
	for _, e := range s.images {
		if slices.Contains(e.chains(), chain) {
			return true
		}
	}
	return false
}

// dropLayer removes a layer's record and its name in the snapshot store,
// unless an image has it. It reports whether it is gone.
func (s *Service) dropLayer(ctx context.Context, chain string) bool {
	if s.flights.busy(chain) {
		return false // a pull is just using it; it decides what becomes of it
	}
	leave, err := s.flights.enter(ctx, chain, nil)
	if err != nil {
		return false
	}
	defer leave()
	return s.dropLayerHeld(ctx, chain)
}

// dropLayerHeld is dropLayer for who works on the chain.
func (s *Service) dropLayerHeld(ctx context.Context, chain string) bool {
	s.mu.RLock()
	needed := s.layers[chain] == nil || s.pins[chain] > 0 || s.hasLocked(chain)
	s.mu.RUnlock()
	if needed {
		return false
	}
	// A container whose image was removed by force may still stand on it; then
	// it goes later (Collect).
	if err := s.o.Snapshots.Remove(context.WithoutCancel(ctx), chain); err != nil && !errdefs.Is(err, errdefs.NotFound) {
		if !errdefs.Is(err, errdefs.Conflict) {
			s.log.Error("layer not removed", "layer", chain, "error", err)
		}
		return false
	}
	s.mu.Lock()
	err := s.o.DB.Update(func(tx *metadb.Tx) error { return tx.Delete(bucketLayer, chain) })
	delete(s.layers, chain)
	s.mu.Unlock()
	if err != nil {
		s.log.Error("layer's record not removed", "layer", chain, "error", err)
	}
	if err := os.Remove(s.splitPath(chain)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("tar-split not removed", "layer", chain, "error", err)
	}
	return true
}

// Collect removes the layers that no image has, and nothing stands on any
// more. It is cheap where there are none.
func (s *Service) Collect(ctx context.Context) {
	for again := true; again; {
		again = false
		s.mu.RLock()
		var idle []string
		if used := s.usedLocked(); len(used) < len(s.layers) {
			for c := range s.layers {
				if used[c] == 0 && s.pins[c] == 0 {
					idle = append(idle, c)
				}
			}
		}
		s.mu.RUnlock()
		for _, c := range idle {
			again = s.dropLayer(ctx, c) || again
		}
	}
}

// Prune removes the images that nothing uses: those without a name, or with
// the filter dangling=false all.
func (s *Service) Prune(ctx context.Context, o PruneOptions) (PruneReport, error) {
	var rep PruneReport
	f, err := s.parseFilters(o.Filters)
	if err != nil {
		return rep, err
	}
	all := f.dangling != nil && !*f.dangling
	f.dangling = nil
	if o.InUse == nil {
		o.InUse = func(string) []string { return nil }
	}
	before := s.Usage(nil).Layers
	s.mu.RLock()
	var list []*entry
	for _, id := range slices.Sorted(maps.Keys(s.images)) {
		e := s.images[id]
		if names := parseAll(s.heldLocked(e)); !all && len(tagsOf(names)) > 0 || len(names) > 0 && s.behindLocked(e) {
			continue // it goes with what it is behind
		}
		if img, err := s.listedLocked(e); err == nil && f.match(img) {
			list = append(list, e)
		}
	}
	s.mu.RUnlock()
	// Children go before their parents.
	for round := 0; len(list) > 0 && round < 128; round++ {
		var later []*entry
		for _, e := range list {
			if ctx.Err() != nil {
				return rep, context.Cause(ctx)
			}
			s.mu.RLock()
			group := s.groupLocked(e)
			s.mu.RUnlock()
			if slices.ContainsFunc(group, func(m *entry) bool { return len(o.InUse(m.id)) > 0 }) {
				if all && o.UsedAs != nil {
					var usedAs []string
					for _, m := range group {
						usedAs = append(usedAs, o.UsedAs(m.id)...)
					}
					removed, err := s.untag(e.id, s.spare(e, usedAs))
					rep.Removed = append(rep.Removed, removed...)
					if err != nil {
						return rep, err
					}
				}
				continue
			}
			if len(s.children(e.id)) > 0 {
				later = append(later, e)
				continue
			}
			s.mu.RLock()
			names := s.refsLocked(e)
			s.mu.RUnlock()
			how := RemoveOptions{InUse: o.InUse, Force: true, NoPrune: true}
			removed, err := s.remove(ctx, e.id, names, how, false)
			if err == nil {
				var more []Removed
				more, err = s.removeLoose(ctx, group[1:], how)
				removed = append(removed, more...)
			}
			rep.Removed = append(rep.Removed, removed...)
			if err != nil && !errdefs.Is(err, errdefs.Conflict) {
				return rep, err
			}
		}
		if len(later) == len(list) {
			break
		}
		list = later
	}
	s.Collect(ctx)
	rep.Freed = before - s.Usage(nil).Layers
	s.collectPartials(time.Now())
	return rep, nil
}

// spare lists the tags by which no container knows an image; one always stays.
func (s *Service) spare(e *entry, usedAs []string) []reference.Ref {
	s.mu.RLock()
	tags := tagsOf(s.refsLocked(e))
	s.mu.RUnlock()
	slices.SortFunc(tags, func(a, b reference.Ref) int { return strings.Compare(a.String(), b.String()) })
	used := map[reference.Ref]bool{}
	for _, n := range usedAs {
		if r, err := reference.Parse(n); err == nil && r.Digest == "" && slices.Contains(tags, r.OrLatest()) {
			used[r.OrLatest()] = true
		}
	}
	if len(used) == 0 && len(tags) > 0 {
		used[tags[len(tags)-1]] = true
	}
	return slices.DeleteFunc(tags, func(r reference.Ref) bool { return used[r] })
}

// Usage tells what the images take on disk. inUse tells which of them are
// needed, and with each the other platforms of its names; nil is none.
func (s *Service) Usage(inUse func(id string) bool) Usage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	u := Usage{Shared: map[string]int64{}, Unique: map[string]int64{}}
	used := s.usedLocked()
	for _, l := range s.layers {
		u.Layers += l.Size
	}
	u.Unused = u.Layers
	needed := map[string]bool{}
	for id, e := range s.images {
		if s.behindLocked(e) {
			continue
		}
		group := s.groupLocked(e)
		stays := inUse != nil && slices.ContainsFunc(group, func(m *entry) bool { return inUse(m.id) })
		own := map[string]int{} // chain ID → how many platforms of this image have it
		for _, m := range group {
			for _, c := range m.chains() {
				own[c]++
			}
		}
		for c, n := range own {
			l := s.layers[c]
			if l == nil {
				continue
			}
			if stays && !needed[c] {
				needed[c] = true
				u.Unused -= l.Size
			}
			if used[c] > n {
				u.Shared[id] += l.Size
			} else {
				u.Unique[id] += l.Size
			}
		}
	}
	return u
}
