package image

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
)

// filter is what ListOptions.Filters ask for.
type filter struct {
	dangling      *bool
	labels        []string // key or key=value
	without       []string
	references    []string
	ids           []string
	before, since time.Time // exclusive
	until         time.Time
}

func (s *Service) parseFilters(in map[string][]string) (filter, error) {
	var f filter
	bad := func(key, value string) error {
		return errdefs.Newf(errdefs.Invalid, "", "", "invalid filter '%s=%s'", key, value)
	}
	for key, values := range in {
		for _, v := range values {
			switch key {
			case "dangling":
				b, err := strconv.ParseBool(v)
				if err != nil || f.dangling != nil && *f.dangling != b {
					return f, bad(key, v)
				}
				f.dangling = &b
			case "label":
				f.labels = append(f.labels, v)
			case "label!":
				f.without = append(f.without, v)
			case "reference":
				if _, err := path.Match(v, ""); err != nil {
					return f, bad(key, v)
				}
				f.references = append(f.references, v)
			case "id":
				f.ids = append(f.ids, strings.TrimPrefix(v, "sha256:"))
			case "before", "since":
				img, err := s.Get(v)
				if err != nil {
					return f, err
				}
				if key == "before" && (f.before.IsZero() || img.Created.Before(f.before)) {
					f.before = img.Created
				}
				if key == "since" && img.Created.After(f.since) {
					f.since = img.Created
				}
			case "until":
				t, err := parseTime(v, time.Now())
				if err != nil {
					return f, err
				}
				if f.until.IsZero() || t.Before(f.until) {
					f.until = t
				}
			default:
				return f, errdefs.Newf(errdefs.Invalid, "", "", "invalid filter '%s'", key)
			}
		}
	}
	return f, nil
}

// parseTime reads a moment or a duration before now.
func parseTime(v string, now time.Time) (time.Time, error) {
	if n, err := strconv.ParseFloat(v, 64); err == nil && n >= 0 && n < 1e11 {
		return time.Unix(0, int64(n*1e9)), nil
	}
	if d, err := time.ParseDuration(v); err == nil {
		return now.Add(-d), nil
	}
	for _, form := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(form, v, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "%.100q is neither a time nor a duration", v), "10m, 24h, 2026-01-02T15:04:05")
}

// match applies everything but references, which also choose among names.
func (f *filter) match(img Image) bool {
	if f.dangling != nil && *f.dangling != (len(img.RepoTags) == 0) {
		return false
	}
	has := func(want string) bool {
		k, v, exact := strings.Cut(want, "=")
		got, ok := img.Config.Config.Labels[k]
		return ok && (!exact || got == v)
	}
	for _, l := range f.labels {
		if !has(l) {
			return false
		}
	}
	for _, l := range f.without {
		if has(l) {
			return false
		}
	}
	if len(f.ids) > 0 && !slices.ContainsFunc(f.ids, func(p string) bool { return strings.HasPrefix(img.ID[len("sha256:"):], p) }) {
		return false
	}
	if !f.before.IsZero() && !img.Created.Before(f.before) {
		return false
	}
	if !f.since.IsZero() && !img.Created.After(f.since) {
		return false
	}
	return f.until.IsZero() || img.Created.Before(f.until)
}

// names keeps those that the reference filters choose.
func (f *filter) names(in []string) []string {
	if len(f.references) == 0 {
		return in
	}
	var out []string
	for _, n := range in {
		r, err := reference.Parse(n)
		if err != nil {
			continue
		}
		for _, p := range f.references {
			a, _ := path.Match(p, r.Familiar())
			b, _ := path.Match(p, r.FamiliarName())
			// Docker's own names may be spelled in full, too.
			c, _ := path.Match(p, r.String())
			d, _ := path.Match(p, r.Name())
			if a || b || c || d {
				out = append(out, n)
				break
			}
		}
	}
	return out
}

// List returns the images that match, the newest first.
func (s *Service) List(o ListOptions) ([]Image, error) {
	f, err := s.parseFilters(o.Filters)
	if err != nil {
		return nil, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	parents := map[string]bool{}
	for _, e := range s.images {
		parents[e.rec.Parent] = true
	}
	var out []Image
	for _, e := range s.images {
		if s.behindLocked(e) {
			continue
		}
		img, err := s.listedLocked(e)
		if err != nil {
			s.log.Error("image not listed", "image", e.id, "error", err)
			continue
		}
		// An unnamed parent is a step on the way, not something left over.
		if len(img.RepoTags) == 0 && len(img.RepoDigests) == 0 && parents[e.id] && (!o.All || f.dangling != nil && *f.dangling) {
			continue
		}
		if !f.match(img) {
			continue
		}
		if len(f.references) > 0 {
			img.RepoTags, img.RepoDigests = f.names(img.RepoTags), f.names(img.RepoDigests)
			if len(img.RepoTags) == 0 && len(img.RepoDigests) == 0 {
				continue
			}
		}
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b Image) int {
		if c := b.Created.Compare(a.Created); c != 0 {
			return c
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out, nil
}

// listedLocked describes an image with all that goes by the same names.
// Preconditions: s.mu is held.
func (s *Service) listedLocked(e *entry) (Image, error) {
	img, err := s.imageLocked(e, s.targetLocked(e))
	if err != nil {
		return img, err
	}
	img.RepoTags, img.RepoDigests = familiar(s.refsLocked(e))
	counted := map[string]bool{}
	img.Size, img.Others = 0, nil
	for _, m := range s.groupLocked(e) {
		if m != e {
			img.Others = append(img.Others, m.id)
		}
		for _, c := range m.chains() {
			if l := s.layers[c]; l != nil && !counted[c] {
				counted[c] = true
				img.Size += l.Size
			}
		}
	}
	return img, nil
}

// History returns the steps that made an image, the last first; nil is the
// platform that Get chooses.
func (s *Service) History(nameOrID string, p *ocispec.Platform) ([]HistoryItem, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	e, _, err := s.findForLocked(nameOrID, p)
	if err != nil {
		return nil, err
	}
	cfg, err := e.config()
	if err != nil {
		return nil, err
	}
	var out []HistoryItem
	chains := ocispec.ChainIDs(cfg.RootFS.DiffIDs)
	n := 0
	for _, h := range cfg.History {
		it := HistoryItem{CreatedBy: h.CreatedBy, Comment: h.Comment}
		if h.Created != nil {
			it.Created = *h.Created
		}
		if !h.EmptyLayer {
			if n >= len(chains) {
				return nil, errdefs.Newf(errdefs.Invalid, "", "", "%s has more steps with layers in its history than layers", quote(e.id))
			}
			if l := s.layers[chains[n].String()]; l != nil {
				it.Size = l.Size
			}
			n++
		}
		out = append(out, it)
	}
	// Layers that the history does not tell of.
	for ; n < len(chains); n++ {
		it := HistoryItem{Comment: "not in the image's history"}
		if l := s.layers[chains[n].String()]; l != nil {
			it.Size = l.Size
		}
		out = append(out, it)
	}
	slices.Reverse(out)
	// IDs of parents that are images here.
	for i, id := 0, e.id; id != "" && i < len(out); {
		p := s.images[id]
		if p == nil {
			break
		}
		pc, err := p.config()
		if err != nil {
			break
		}
		out[i].ID = id
		out[i].Tags, _ = familiar(s.refsLocked(p))
		step := len(out) - len(pc.History)
		next := s.images[p.rec.Parent]
		if next == nil {
			break
		}
		nc, err := next.config()
		if err != nil || len(nc.History) >= len(pc.History) {
			break
		}
		i, id = step+len(pc.History)-len(nc.History), p.rec.Parent
	}
	return out, nil
}

// familiar spells names as people do.
func familiar(names []reference.Ref) (tags, digests []string) {
	for _, n := range names {
		if n.Digest != "" {
			digests = append(digests, n.Familiar())
		} else {
			tags = append(tags, n.Familiar())
		}
	}
	return tags, digests
}

// BootstrapLabels say of an image that it was made here, from what, and when,
// so that nobody takes it for the one of that name at a registry.
func BootstrapLabels(name, version, source string, now time.Time) map[string]string {
	return map[string]string{
		"io.onggi.bootstrap":                 name,
		"org.opencontainers.image.title":     fmt.Sprintf("%s %s, made by onggi image bootstrap from %s", name, version, source),
		"org.opencontainers.image.version":   version,
		"org.opencontainers.image.created":   now.UTC().Format(time.RFC3339),
		"org.opencontainers.image.vendor":    "Onggi",
		"org.opencontainers.image.base.name": source,
	}
}
