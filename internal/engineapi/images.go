package engineapi

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	imagetypes "github.com/moby/moby/api/types/image"
	registrytypes "github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/storage"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
	"github.com/onggi/onggi/internal/registry"
)

// registryAuth reads the account that a client sends with a request. As in
// Docker, one that cannot be read is none: the registry then says what it wants.
func (c *call) registryAuth() (registry.Auth, error) {
	h := c.r.Header.Get(registrytypes.AuthHeader)
	if h == "" {
		return registry.Auth{}, nil
	}
	var a registrytypes.AuthConfig
	if err := json.NewDecoder(base64.NewDecoder(base64.URLEncoding, strings.NewReader(h))).Decode(&a); err != nil {
		return registry.Auth{}, nil
	}
	return registry.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: a.ServerAddress}, nil
}

func parseRef(s string) (reference.Ref, error) {
	if s == "" {
		return reference.Ref{}, invalid("invalid reference format: no image name given")
	}
	return reference.Parse(s)
}

// platform reads the query's platform, as "os/arch" or as JSON; nil without one.
func (c *call) platform() (*ocispec.Platform, error) { return parsePlatform(c.query("platform")) }

// platforms reads all that the query gives under a key.
func (c *call) platforms(key string) ([]ocispec.Platform, error) {
	var out []ocispec.Platform
	for _, v := range c.r.URL.Query()[key] {
		p, err := parsePlatform(v)
		if err != nil {
			return nil, err
		}
		if p != nil {
			out = append(out, *p)
		}
	}
	return out, nil
}

func parsePlatform(v string) (*ocispec.Platform, error) {
	if v == "" {
		return nil, nil
	}
	if strings.HasPrefix(v, "{") {
		var p ocispec.Platform
		if err := json.Unmarshal([]byte(v), &p); err != nil || p.OS == "" || p.Architecture == "" {
			return nil, invalid("platform %.100q: want os and architecture", v)
		}
		p = ocispec.Normalise(p)
		return &p, nil
	}
	p, err := ocispec.ParsePlatform(v)
	if err != nil {
		return nil, err
	}
	return &p, nil
}

func imageSummary(img image.Image) imagetypes.Summary {
	s := imagetypes.Summary{
		ID: img.ID, ParentID: img.Parent, RepoTags: nonNil(img.RepoTags), RepoDigests: nonNil(img.RepoDigests), Size: img.Size,
		SharedSize: -1, Containers: -1, Labels: img.Config.Config.Labels,
	}
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if !img.Created.IsZero() {
		s.Created = img.Created.Unix()
	}
	return s
}

// legacySummary has the size that 1.44 dropped because it was always the other.
type legacySummary struct {
	imagetypes.Summary
	VirtualSize int64
}

func (s *Server) imageList(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if c.version < 41 {
		if v := c.query("filter"); v != "" {
			f = putFilter(f, "reference", v)
		}
	}
	if err := onlyKeys(f, "dangling", "label", "label!", "before", "since", "reference", "until", "id"); err != nil {
		return err
	}
	if c.version >= 54 && c.boolean("identity") && !c.boolean("manifests") {
		return invalid("identity requires manifests=1")
	}
	list, err := s.o.Images.List(image.ListOptions{All: c.boolean("all"), Filters: f})
	if err != nil {
		return err
	}
	var disk image.Usage
	if c.boolean("shared-size") {
		disk = s.imageUsage()
	}
	out := []any{}
	for _, img := range list {
		sum := imageSummary(img)
		if c.boolean("shared-size") {
			sum.SharedSize = disk.Shared[img.ID]
		}
		if c.version >= 51 || c.boolean("shared-size") {
			sum.Containers = int64(len(s.usersOf(img)))
		}
		if c.version >= 47 && c.boolean("manifests") {
			if sum.Manifests, err = s.manifests(img); err != nil {
				return err
			}
			if c.version >= 48 {
				sum.Descriptor = descriptor(img)
			}
		}
		if c.version < 44 {
			out = append(out, legacySummary{sum, sum.Size})
			continue
		}
		out = append(out, sum)
	}
	return c.json(http.StatusOK, out)
}

// usersOf names the containers of an image on any platform.
func (s *Server) usersOf(img image.Image) []string {
	users := s.o.Containers.UsersOfImage(img.ID)
	for _, id := range img.Others {
		users = append(users, s.o.Containers.UsersOfImage(id)...)
	}
	return users
}

// manifests describes what an image is made of, for clients that ask. Blobs are
// not kept compressed: what there is as content is what travels, and all that
// is on disk is unpacked.
func (s *Server) manifests(img image.Image) ([]imagetypes.ManifestSummary, error) {
	parts, err := s.o.Images.Parts(img)
	if err != nil {
		return nil, err
	}
	out := []imagetypes.ManifestSummary{}
	for _, p := range parts {
		m := imagetypes.ManifestSummary{ID: p.Desc.Digest.String(), Descriptor: p.Desc, Kind: imagetypes.ManifestKindUnknown}
		m.Size.Content = p.Size
		switch {
		case p.For != "":
			m.Kind, m.Available = imagetypes.ManifestKindAttestation, p.Size > 0
			m.AttestationData = &imagetypes.AttestationProperties{For: p.For}
			m.Size.Total = p.Size
		case p.Image != nil:
			m.Kind, m.Available = imagetypes.ManifestKindImage, true
			m.ImageData = &imagetypes.ImageProperties{Platform: p.Image.Config.Platform, Containers: nonNil(s.o.Containers.IDsOfImage(p.Image.ID))}
			m.ImageData.Size.Unpacked = p.Image.Size
			m.Size.Total = p.Image.Size
		case p.Desc.Platform != nil:
			m.Kind = imagetypes.ManifestKindImage
			m.ImageData = &imagetypes.ImageProperties{Platform: *p.Desc.Platform, Containers: []string{}}
		}
		out = append(out, m)
	}
	return out, nil
}

// descriptor is what a registry would call an image, nil for one made here.
func descriptor(img image.Image) *ocispec.Descriptor {
	if img.Target.Digest == "" {
		return nil
	}
	return &img.Target
}

func (s *Server) imageInspect(c *call) error {
	var p *ocispec.Platform
	var err error
	if c.version >= 49 {
		if p, err = c.platform(); err != nil {
			return err
		}
	}
	manifests := c.version >= 48 && c.boolean("manifests")
	if p != nil && manifests {
		return invalid("conflicting options: manifests and platform options cannot both be set")
	}
	img, err := s.o.Images.GetFor(c.path["name"], p)
	if err != nil {
		return err
	}
	v := imagetypes.InspectResponse{
		ID: img.ID, RepoTags: nonNil(img.RepoTags), RepoDigests: nonNil(img.RepoDigests), Author: img.Config.Author, Architecture: img.Config.Architecture,
		Variant: img.Config.Variant, Os: img.Config.OS, OsVersion: img.Config.OSVersion, Size: img.Size, Metadata: imagetypes.Metadata{LastTagTime: img.LastTagged},
		GraphDriver: &storage.DriverData{Name: "overlay2", Data: map[string]string{}},
	}
	if img.Config.Created != nil {
		v.Created = img.Config.Created.UTC().Format(time.RFC3339Nano)
	}
	if h := img.Config.History; len(h) > 0 {
		v.Comment = h[len(h)-1].Comment
	}
	for _, d := range img.Config.RootFS.DiffIDs {
		v.RootFS.Layers = append(v.RootFS.Layers, d.String())
	}
	v.RootFS.Type = "layers"
	if v.Config, err = inspectConfig(img); err != nil {
		return err
	}
	if manifests {
		v.Descriptor = descriptor(img)
		if v.Manifests, err = s.manifests(img); err != nil {
			return err
		}
	}
	if c.version < 50 {
		return c.json(http.StatusOK, legacyImageInspect{v, v.Size, img.Parent, "", ""})
	}
	return c.json(http.StatusOK, v)
}

// legacyImageInspect has fields that later versions dropped.
type legacyImageInspect struct {
	imagetypes.InspectResponse
	VirtualSize   int64
	Parent        string
	DockerVersion string
	Container     string
}

// inspectConfig converts by way of JSON, which is the same by definition.
func inspectConfig(img image.Image) (*dockerspec.DockerOCIImageConfig, error) {
	out := &dockerspec.DockerOCIImageConfig{}
	b, err := json.Marshal(img.Config.Config)
	if err == nil {
		err = json.Unmarshal(b, out)
	}
	return out, err
}

func (s *Server) imageHistory(c *call) error {
	var p *ocispec.Platform
	var err error
	if c.version >= 48 {
		if p, err = c.platform(); err != nil {
			return err
		}
	}
	items, err := s.o.Images.History(c.path["name"], p)
	if err != nil {
		return err
	}
	out := []imagetypes.HistoryResponseItem{}
	for _, i := range items {
		h := imagetypes.HistoryResponseItem{ID: i.ID, CreatedBy: i.CreatedBy, Comment: i.Comment, Size: i.Size, Tags: i.Tags}
		if !i.Created.IsZero() {
			h.Created = i.Created.Unix()
		}
		if h.ID == "" {
			h.ID = "<missing>"
		}
		out = append(out, h)
	}
	return c.json(http.StatusOK, out)
}

func (s *Server) imageAttestations(c *call) error {
	wanted, err := c.platforms("platform")
	if err != nil {
		return err
	}
	if len(wanted) > 1 {
		return invalid("only one platform value is currently supported")
	}
	var p *ocispec.Platform
	if len(wanted) == 1 {
		p = &wanted[0]
	}
	list, err := s.o.Images.Statements(c.path["name"], p)
	if err != nil {
		return err
	}
	types := slices.DeleteFunc(slices.Clone(c.r.URL.Query()["type"]), func(t string) bool { return strings.TrimSpace(t) == "" })
	out := []imagetypes.AttestationStatement{}
	for _, st := range list {
		if len(types) > 0 && !slices.Contains(types, st.Type) {
			continue
		}
		a := imagetypes.AttestationStatement{Descriptor: st.Desc, PredicateType: st.Type}
		if c.boolean("statement") {
			body := json.RawMessage(st.Body)
			a.Statement = &body
		}
		out = append(out, a)
	}
	return c.json(http.StatusOK, out)
}

// imageCreate pulls, or imports what the body or a URL holds.
func (s *Server) imageCreate(c *call) error {
	if src := c.query("fromSrc"); src != "" {
		return s.imageImport(c, src)
	}
	name, tag := c.query("fromImage"), c.query("tag")
	ref, err := parseRef(name)
	if err != nil {
		return err
	}
	q := image.PullRequest{}
	switch {
	case strings.HasPrefix(tag, "sha256:") || strings.HasPrefix(tag, "sha512:"):
		if ref, err = ref.WithDigest(tag); err != nil {
			return err
		}
	case tag != "":
		if ref, err = ref.WithTag(tag); err != nil {
			return err
		}
	case ref.Tag == "" && ref.Digest == "":
		q.AllTags = true // what the API has always meant by no tag
	}
	q.Ref = ref
	if q.Auth, err = c.registryAuth(); err != nil {
		return err
	}
	if q.Platform, err = c.platform(); err != nil {
		return err
	}
	out := c.progress()
	_, err = s.o.Images.Pull(c.ctx(), q, func(p image.Progress) { out.step(p.ID, p.Status, p.Current, p.Total) })
	return out.end(err)
}

func (s *Server) imageImport(c *call, src string) error {
	repo, tag := c.query("repo"), c.query("tag")
	ref, err := repoTag(repo, tag)
	if err != nil {
		return err
	}
	q := image.ImportRequest{Changes: c.r.URL.Query()["changes"], Message: c.query("message")}
	if ref != nil {
		q.Ref = *ref
	}
	p, err := c.platform()
	if err != nil {
		return err
	}
	if p != nil {
		if p.OS != ocispec.Host().OS {
			return invalid("operating system is not supported: %s", p.OS)
		}
		q.Platform = *p
	}
	body := io.Reader(c.r.Body)
	if src != "-" {
		remote, err := openURL(c.ctx(), src)
		if err != nil {
			return err
		}
		defer remote.Close()
		body = remote
	}
	out := c.progress()
	img, err := s.o.Images.Import(c.ctx(), body, q)
	if err != nil {
		return out.end(err)
	}
	out.send(message{Status: img.ID})
	return nil
}

// openURL reads what a web server has.
func openURL(ctx context.Context, src string) (io.ReadCloser, error) {
	if !strings.Contains(src, "://") {
		src = "http://" + src
	}
	u, err := url.Parse(src)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, invalid("%.200q is not the URL of a web server", src)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, errdefs.New(errdefs.Invalid, "", "", err)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, errdefs.New(errdefs.Unavailable, "", "", err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp.Body, nil
	}
	resp.Body.Close()
	kind := errdefs.Unavailable
	switch resp.StatusCode {
	case http.StatusNotFound:
		kind = errdefs.NotFound
	case http.StatusUnauthorized, http.StatusForbidden:
		kind = errdefs.Forbidden
	}
	return nil, errdefs.Newf(kind, "", "", "failed to GET %s with status %s", u.Redacted(), resp.Status)
}

func clip(s string) string {
	if len(s) > 100 {
		return s[:100] + "…"
	}
	return s
}

func (s *Server) imageSearch(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if err := onlyKeys(f, "is-automated", "is-official", "stars"); err != nil {
		return err
	}
	keep, err := searchFilter(f)
	if err != nil {
		return err
	}
	limit := 0
	if v := c.query("limit"); v != "" {
		if limit, err = strconv.Atoi(v); err != nil || limit < 0 {
			return invalid("invalid limit specified: %s", clip(v))
		}
	}
	auth, err := c.registryAuth()
	if err != nil {
		return err
	}
	found, err := s.o.Registry.Search(c.ctx(), c.query("term"), limit, auth)
	if err != nil {
		return err
	}
	kept := []registry.SearchResult{} // a list, also where it is empty
	for _, r := range found {
		if keep(r) {
			kept = append(kept, r)
		}
	}
	return c.json(http.StatusOK, kept)
}

// searchFilter tells which results are wanted. Nothing is automated any more.
func searchFilter(f map[string][]string) (keep func(registry.SearchResult) bool, err error) {
	flag := func(key string) (on, given bool, err error) {
		if len(f[key]) == 0 {
			return false, false, nil
		}
		on, err = strconv.ParseBool(f[key][0])
		if err != nil || len(f[key]) > 1 {
			return false, false, invalid("invalid filter '%s=%s'", key, clip(strings.Join(f[key], ",")))
		}
		return on, true, nil
	}
	automated, _, err := flag("is-automated")
	if err != nil {
		return nil, err
	}
	official, byOfficial, err := flag("is-official")
	if err != nil {
		return nil, err
	}
	stars := 0
	for _, v := range f["stars"] {
		n, err := strconv.Atoi(v)
		if err != nil {
			return nil, invalid("invalid filter 'stars=%s'", clip(v))
		}
		stars = max(stars, n)
	}
	return func(r registry.SearchResult) bool {
		return !automated && (!byOfficial || r.IsOfficial == official) && r.StarCount >= stars
	}, nil
}

func (s *Server) imagePush(c *call) error {
	ref, err := parseRef(c.path["name"])
	if err != nil {
		return err
	}
	q := image.PushRequest{}
	if tag := c.query("tag"); tag != "" {
		if ref, err = ref.WithTag(tag); err != nil {
			return err
		}
	} else if ref.Tag == "" {
		q.AllTags = true
	}
	q.Ref = ref
	if q.Auth, err = c.registryAuth(); err != nil {
		return err
	}
	if q.Platform, err = c.platform(); err != nil {
		return err
	}
	out := c.progress()
	res, err := s.o.Images.Push(c.ctx(), q, func(p image.Progress) { out.step(p.ID, p.Status, p.Current, p.Total) })
	if err != nil {
		return out.end(err)
	}
	for _, p := range res.Pushed {
		out.send(message{Aux: map[string]any{"Tag": p.Tag, "Digest": p.Digest, "Size": p.Size}})
	}
	return nil
}

func (s *Server) imageTag(c *call) error {
	ref, err := repoTag(c.query("repo"), c.query("tag"))
	if err != nil {
		return err
	}
	if ref == nil {
		return invalid("invalid reference format: no repository given")
	}
	if err := s.o.Images.Tag(c.ctx(), c.path["name"], *ref); err != nil {
		return err
	}
	return c.done(http.StatusCreated)
}

func (s *Server) imageRemove(c *call) error {
	name := c.path["name"]
	if strings.TrimSpace(name) == "" {
		return invalid("image name cannot be blank")
	}
	wanted, err := c.platforms("platforms")
	if err != nil {
		return err
	}
	list, err := s.o.Images.Remove(c.ctx(), name, image.RemoveOptions{Force: c.boolean("force"), NoPrune: c.boolean("noprune"), Platforms: wanted, InUse: s.o.Containers.UsersOfImage})
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, removed(list))
}

func removed(list []image.Removed) []imagetypes.DeleteResponse {
	out := []imagetypes.DeleteResponse{}
	for _, r := range list {
		out = append(out, imagetypes.DeleteResponse{Untagged: r.Untagged, Deleted: r.Deleted})
	}
	return out
}

func (s *Server) imagePrune(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if err := onlyKeys(f, "dangling", "label", "label!", "until"); err != nil {
		return err
	}
	r, err := s.o.Images.Prune(c.ctx(), image.PruneOptions{Filters: f, InUse: s.o.Containers.UsersOfImage, UsedAs: s.o.Containers.NamesOfImage})
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, imagetypes.PruneReport{ImagesDeleted: removed(r.Removed), SpaceReclaimed: uint64(max(r.Freed, 0))})
}

func (s *Server) imageSave(c *call) error {
	names := c.r.URL.Query()["names"]
	if n := c.path["name"]; n != "" {
		names = []string{n}
	}
	if len(names) == 0 {
		return invalid("no image names given")
	}
	// Some clients join the names with commas.
	var all []string
	for _, n := range names {
		all = append(all, strings.Split(n, ",")...)
	}
	wanted, err := c.platforms("platform")
	if err != nil {
		return err
	}
	return c.tar(func(w io.Writer) error {
		return s.o.Images.Save(c.ctx(), image.SaveRequest{Names: slices.Compact(all), Platforms: wanted}, w)
	})
}

func (s *Server) imageLoad(c *call) error {
	wanted, err := c.platforms("platform")
	if err != nil {
		return err
	}
	out := c.progress()
	quiet := c.boolean("quiet")
	list, err := s.o.Images.Load(c.ctx(), image.LoadRequest{Platforms: wanted}, c.r.Body, func(p image.Progress) {
		if !quiet {
			out.step(p.ID, p.Status, p.Current, p.Total)
		}
	})
	if err != nil {
		return out.end(err)
	}
	for _, l := range list {
		if len(l.Names) == 0 {
			out.send(message{Stream: "Loaded image ID: " + l.ID + "\n"})
		}
		for _, n := range l.Names {
			out.send(message{Stream: "Loaded image: " + n + "\n"})
		}
	}
	return nil
}
