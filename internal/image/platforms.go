package image

import (
	"slices"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
)

// origin is a manifest that an image came as, and the index that named it.
type origin struct {
	Manifest ocispec.Descriptor `json:",omitzero"` // zero where there is none (commit, import)
	Index    ocispec.Descriptor `json:",omitzero"` // zero for none
}

// origins lists the indexes an image belongs to, the latest first.
func (r *record) origins() []origin {
	var out []origin
	for _, o := range append([]origin{r.origin}, r.Also...) {
		if o.Index.Digest != "" {
			out = append(out, o)
		}
	}
	return out
}

// under is what the image is called in an index, or the latest for any other
// target.
func (r *record) under(target string) origin {
	for _, o := range r.origins() {
		if o.Index.Digest.String() == target {
			return o
		}
	}
	return r.origin
}

// joinLocked makes an image a member of its indexes. Preconditions: s.mu is held.
func (s *Service) joinLocked(e *entry) {
	for _, o := range e.rec.origins() {
		index := o.Index.Digest.String()
		if slices.Contains(s.parts[index], e.id) {
			continue
		}
		list := append(slices.Clone(s.parts[index]), e.id)
		slices.SortFunc(list, func(a, b string) int {
			x, y := s.images[a], s.images[b]
			if c := x.rec.Added.Compare(y.rec.Added); c != 0 {
				return c
			}
			return strings.Compare(a, b)
		})
		s.parts[index] = list
	}
}

// leaveLocked takes an image out of an index in memory. Preconditions: s.mu is
// held.
func (s *Service) leaveLocked(id, index string) {
	list := slices.DeleteFunc(slices.Clone(s.parts[index]), func(m string) bool { return m == id })
	if len(list) == 0 {
		delete(s.parts, index)
		return
	}
	s.parts[index] = list
}

// membersLocked lists the images that a target has here: those of an index, or
// the one image. Preconditions: s.mu is held.
func (s *Service) membersLocked(target string) []*entry {
	if e := s.images[target]; e != nil {
		return []*entry{e}
	}
	var out []*entry
	for _, id := range s.parts[target] {
		out = append(out, s.images[id])
	}
	return out
}

// firstLocked is the image that a target means where no platform is asked for:
// the host's, else the one that came first. nil: there is none. Preconditions:
// s.mu is held.
func (s *Service) firstLocked(target string) *entry {
	members := s.membersLocked(target)
	if len(members) < 2 {
		return firstEntry(members)
	}
	if e := best(members, ocispec.Host()); e != nil {
		return e
	}
	return members[0]
}

func firstEntry(list []*entry) *entry {
	if len(list) == 0 {
		return nil
	}
	return list[0]
}

// best picks the image that serves a platform best, nil where none does.
func best(list []*entry, p ocispec.Platform) *entry {
	var found *entry
	rank := -1
	for _, e := range list {
		cfg, err := e.config()
		if err != nil {
			continue
		}
		if r := ocispec.MatchRank(p, cfg.Platform); r >= 0 && (rank < 0 || r < rank) {
			found, rank = e, r
		}
	}
	return found
}

// exactly picks the images for the platforms asked for, all where none is.
func exactly(list []*entry, platforms []ocispec.Platform, name string) ([]*entry, error) {
	if len(platforms) == 0 {
		return list, nil
	}
	var out []*entry
	for _, p := range platforms {
		e := best(list, p)
		if e == nil {
			return nil, otherPlatform(name, list, p)
		}
		if !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	return out, nil
}

// otherPlatform says for which platforms a name is here instead.
func otherPlatform(name string, list []*entry, want ocispec.Platform) error {
	var have []string
	for _, e := range list {
		if cfg, err := e.config(); err == nil {
			have = append(have, ocispec.FormatPlatform(cfg.Platform))
		}
	}
	if len(name) > 100 {
		name = name[:100] + "…"
	}
	return errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "", "", "image with reference %s was found but its platform (%s) does not match the specified platform (%s)",
		name, strings.Join(have, ", "), ocispec.FormatPlatform(want)), "onggi pull --platform "+ocispec.FormatPlatform(want)+" "+name)
}

// targetLocked is what an image belongs to for who calls it by its ID: the
// index that it came from last and stands for, else itself. Preconditions:
// s.mu is held.
func (s *Service) targetLocked(e *entry) string {
	if e.rec.Index.Digest == "" && len(s.of[e.id]) > 0 {
		return e.id
	}
	for _, o := range e.rec.origins() {
		if index := o.Index.Digest.String(); s.meansLocked(index, e.id) {
			return index
		}
	}
	return e.id
}

// byDigestLocked finds what has a digest, or the beginning of one: the image of
// a manifest, or an index. So images are called that are shown as parts of
// others, and by clients that take an image's digest for its ID. Preconditions:
// s.mu is held.
func (s *Service) byDigestLocked(digest string, none error) (*entry, string, error) {
	prefix := strings.TrimPrefix(digest, "sha256:")
	if len(prefix) < shortest || strings.Trim(prefix, "0123456789abcdef") != "" {
		return nil, "", none
	}
	found := map[string]string{} // target → the image it means
	for id, e := range s.images {
		for _, o := range append(e.rec.origins(), e.rec.origin) {
			if index := o.Index.Digest; index != "" && strings.HasPrefix(index.Encoded(), prefix) {
				found[index.String()] = s.firstLocked(index.String()).id
			}
			if m := o.Manifest.Digest; m != "" && strings.HasPrefix(m.Encoded(), prefix) {
				found[id] = id
			}
		}
	}
	if len(found) > 1 {
		return nil, "", errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "%s is the beginning of several digests", digest), "give more digits")
	}
	for target, id := range found {
		return s.images[id], target, nil
	}
	return nil, "", none
}

// shortest is how many digits of a digest have to be given: what people copy
// has twelve, and a name of letters a to f is no digest.
const shortest = 12

// meansLocked reports whether a target means an image where no platform is
// asked for. Preconditions: s.mu is held.
func (s *Service) meansLocked(target, id string) bool {
	e := s.firstLocked(target)
	return e != nil && e.id == id
}

// standsForLocked lists the targets that mean an image where no platform is
// asked for. Preconditions: s.mu is held.
func (s *Service) standsForLocked(e *entry) []string {
	out := []string{e.id}
	for _, o := range e.rec.origins() {
		if index := o.Index.Digest.String(); s.meansLocked(index, e.id) {
			out = append(out, index)
		}
	}
	return out
}

// groupLocked lists an image and those of other platforms that share its names.
// Preconditions: s.mu is held.
func (s *Service) groupLocked(e *entry) []*entry {
	out := []*entry{e}
	for _, t := range s.standsForLocked(e) {
		for _, m := range s.membersLocked(t) {
			if !slices.ContainsFunc(out, func(o *entry) bool { return o.id == m.id }) {
				out = append(out, m)
			}
		}
	}
	return out
}

// behindLocked reports whether an image is only another platform of one that
// is shown instead. Preconditions: s.mu is held.
func (s *Service) behindLocked(e *entry) bool {
	if len(s.of[e.id]) > 0 {
		return false
	}
	return len(e.rec.origins()) > 0 && len(s.standsForLocked(e)) == 1
}

// heldLocked lists all names by which an image can be had, with a platform or
// without. Preconditions: s.mu is held.
func (s *Service) heldLocked(e *entry) []string {
	out := slices.Clone(s.of[e.id])
	for _, o := range e.rec.origins() {
		out = append(out, s.of[o.Index.Digest.String()]...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// GetFor is Get for one platform; nil is whatever Get chooses.
func (s *Service) GetFor(nameOrID string, p *ocispec.Platform) (Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, target, err := s.findForLocked(nameOrID, p)
	if err != nil {
		return Image{}, err
	}
	return s.imageLocked(e, target)
}

func (s *Service) findForLocked(nameOrID string, p *ocispec.Platform) (*entry, string, error) {
	e, target, err := s.lookupLocked(nameOrID)
	if err != nil || p == nil {
		return e, target, err
	}
	all := s.membersLocked(target)
	if e = best(all, *p); e == nil {
		return nil, "", otherPlatform(nameOrID, all, *p)
	}
	return e, target, nil
}

// Part is a manifest of an image: of each platform that its index names, here
// or not.
type Part struct {
	Desc  ocispec.Descriptor
	Image *Image         // nil where it is not here, or no image
	For   ocispec.Digest // the manifest that it attests, "" where it is no attestation
	Size  int64          // of the manifest, and of what it names, as they travel
}

// Parts lists the manifests of an image.
func (s *Service) Parts(img Image) ([]Part, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	one := func(id string, target string) (Part, error) {
		e := s.images[id]
		if e == nil {
			return Part{}, notFound(id, false)
		}
		m, err := s.imageLocked(e, target)
		if err != nil {
			return Part{}, err
		}
		d := m.Manifest
		if d.Digest == "" { // made here, and never called anything but its ID
			raw, err := s.doc(ocispec.Digest(e.id))
			if err != nil {
				return Part{}, err
			}
			d = ocispec.DescriptorOf(ocispec.TypeConfig, raw)
		}
		if d.Platform == nil {
			d.Platform = &ocispec.Platform{OS: m.Config.OS, Architecture: m.Config.Architecture, Variant: m.Config.Variant, OSVersion: m.Config.OSVersion}
		}
		return Part{Desc: d, Image: &m, Size: s.travels(d)}, nil
	}
	index := img.Index
	if index.Digest == "" || len(s.parts[index.Digest.String()]) == 0 {
		p, err := one(img.ID, img.ID)
		return []Part{p}, err
	}
	raw, err := s.doc(index.Digest)
	if err != nil {
		return nil, err
	}
	x, err := ocispec.ParseIndex(raw, index.MediaType)
	if err != nil {
		return nil, err
	}
	here := map[ocispec.Digest]string{}
	for _, e := range s.membersLocked(index.Digest.String()) {
		here[e.rec.under(index.Digest.String()).Manifest.Digest] = e.id
	}
	var out []Part
	for _, d := range x.Manifests {
		p := Part{Desc: d}
		if id := here[d.Digest]; id != "" {
			if p, err = one(id, index.Digest.String()); err != nil {
				return nil, err
			}
			p.Desc = d
		} else if ocispec.IsAttestation(d) {
			p.For = attests(d)
			if _, err := s.doc(d.Digest); err == nil {
				p.Size = s.travels(d)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// attests is the manifest that an index's entry attests, "" if it says none.
func attests(d ocispec.Descriptor) ocispec.Digest {
	return ocispec.Digest(d.Annotations["vnd.docker.reference.digest"])
}

// Statement is one thing that is attested of an image.
type Statement struct {
	Desc ocispec.Descriptor
	Type string // of its predicate
	Body []byte
}

// Statements lists what is attested of an image, as far as it is here: with
// what was built and loaded; a pull leaves it at the registry.
func (s *Service) Statements(nameOrID string, p *ocispec.Platform) ([]Statement, error) {
	img, err := s.GetFor(nameOrID, p)
	if err != nil || img.Index.Digest == "" {
		return nil, err
	}
	raw, err := s.doc(img.Index.Digest)
	if err != nil {
		return nil, err
	}
	x, err := ocispec.ParseIndex(raw, img.Index.MediaType)
	if err != nil {
		return nil, err
	}
	var out []Statement
	for _, d := range x.Manifests {
		if !ocispec.IsAttestation(d) || attests(d) != img.Manifest.Digest {
			continue
		}
		raw, err := s.doc(d.Digest)
		if err != nil {
			continue // not here
		}
		m, err := ocispec.ParseManifest(raw, d.MediaType)
		if err != nil {
			return nil, err
		}
		for _, l := range m.Layers {
			t := l.Annotations["in-toto.io/predicate-type"]
			if t == "" {
				continue
			}
			body, err := s.doc(l.Digest)
			if err != nil {
				return nil, err
			}
			out = append(out, Statement{l, t, body})
		}
	}
	return out, nil
}

// travels is the size of a manifest and of all that it names.
func (s *Service) travels(d ocispec.Descriptor) int64 {
	size := d.Size
	if raw, err := s.doc(d.Digest); err == nil && ocispec.IsManifest(d.MediaType) {
		if m, err := ocispec.ParseManifest(raw, d.MediaType); err == nil {
			size += m.Config.Size
			for _, l := range m.Layers {
				size += l.Size
			}
		}
	}
	return size
}
