package container

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/undo"
	"github.com/onggi/onggi/internal/volume"
)

// CreateRequest asks for a container. The service keeps and changes what the
// pointers point at.
type CreateRequest struct {
	Name       string // "" = a new one
	Platform   string
	Config     *Config
	HostConfig *HostConfig
	Networks   map[string]*network.EndpointSettings
	// ShallowReadOnly: a read-only bind leaves what is mounted below its source
	// writable, unless the request says otherwise.
	ShallowReadOnly bool
}

// Create makes a container that has not run yet, and returns its ID and what
// the client should be warned of.
func (s *Service) Create(ctx context.Context, q CreateRequest) (id string, warnings []string, err error) {
	const op = "create"
	if q.Config == nil {
		return "", nil, errdefs.Newf(errdefs.Invalid, "", "", "config cannot be empty in order to create a container")
	}
	if q.HostConfig == nil {
		q.HostConfig = &HostConfig{}
	}
	q.Name = strings.TrimPrefix(q.Name, "/")
	if q.Name != "" {
		if err := checkName("", q.Name); err != nil {
			return "", nil, err
		}
	}
	rec := &Record{Version: recordVersion, ID: newID(), Created: time.Now().UTC(), Config: q.Config, HostConfig: q.HostConfig, Platform: "linux"}
	img, warnings, err := s.settle(rec, q)
	if err != nil {
		return "", nil, err
	}
	if rec.Mounts, err = s.planAllMounts(rec); err != nil {
		return "", nil, err
	}
	for _, m := range rec.Mounts {
		if m.Type == mount.TypeBind && m.Options.Spec && !m.Options.CreateSource { // missing now is told now
			if err := bindSource(m); err != nil {
				return "", nil, err
			}
		}
	}
	for i := range rec.Mounts {
		if o := &rec.Mounts[i].Options; q.ShallowReadOnly && !o.ReadOnlyForceRecursive {
			o.ReadOnlyNonRecursive = true
		}
	}

	var u undo.Stack
	defer func() { u.Run(ctx, &err) }()
	if rec.Name, err = s.reserveName(q.Name, rec.ID); err != nil {
		return "", nil, err
	}
	u.Push(func(context.Context) error { s.releaseName(rec.Name, rec.ID); return nil })
	if err := s.createVolumes(ctx, rec, &u); err != nil {
		return "", nil, err
	}
	c := newContainer(rec, Status{State: Created, BootID: s.bootID})
	err = s.o.DB.Update(func(tx *metadb.Tx) error {
		if err := putRecord(tx, rec); err != nil {
			return err
		}
		return putStatus(tx, rec.ID, c.st)
	})
	if err != nil {
		return "", nil, errdefs.New(errdefs.KindOf(err), op, quote("container", rec.Name), err)
	}
	u.Push(func(context.Context) error {
		return s.o.DB.Update(func(tx *metadb.Tx) error { return deleteRecords(tx, rec.ID) })
	})
	if err := s.o.Snapshots.Prepare(ctx, rec.ID, img.Snapshot); err != nil {
		return "", nil, errdefs.New(errdefs.KindOf(err), op, quote("container", rec.Name), err)
	}
	u.Push(func(ctx context.Context) error { return s.o.Snapshots.Remove(ctx, rec.ID) })
	if err := s.viewImages(ctx, rec, &u); err != nil {
		return "", nil, err
	}
	if err := s.limitRoot(rec); err != nil {
		return "", nil, err
	}
	if err := os.Mkdir(s.dir(rec.ID), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", nil, errdefs.New(errdefs.Internal, op, quote("container", rec.Name), err)
	}
	if !rec.HostConfig.AutoRemove {
		s.linkEtc(rec.ID)
	}
	u.Disarm()
	s.mu.Lock()
	s.byID[rec.ID] = c
	s.mu.Unlock()
	s.emit(c, "create", nil)
	return rec.ID, warnings, nil
}

// dockerSockets are where clients expect the socket of the engine that runs
// their container, whatever engine that is.
var dockerSockets = []string{"/var/run/docker.sock", "/run/docker.sock"}

// settle brings the request into normal form: with the image's configuration,
// the engine's defaults, and the IDs of other containers it refers to.
func (s *Service) settle(rec *Record, q CreateRequest) (img image.Image, warnings []string, err error) {
	if q.Config.Image == "" {
		return img, nil, errdefs.Newf(errdefs.Invalid, "", "", "invalid reference format: no image specified")
	}
	if img, err = s.imageFor(q.Config.Image, q.Platform); err != nil {
		return img, nil, err
	}
	rec.ImageID = img.ID
	if img.Manifest.Digest != "" {
		rec.ImageManifest = &Manifest{MediaType: img.Manifest.MediaType, Digest: img.Manifest.Digest.String(), Size: img.Manifest.Size, Platform: &img.Config.Platform}
	}
	ic, err := imageConfigOf(img)
	if err != nil {
		return img, nil, err
	}
	if err := checkModes(q.Config, q.HostConfig); err != nil {
		return img, nil, err
	}
	if q.HostConfig.NetworkMode == "container" {
		return img, nil, invalid("invalid container format container:<name|id>")
	}
	// An image may expose ports that are of no use here; the request may not.
	if h := q.HostConfig; h.NetworkMode.IsContainer() && len(q.Config.ExposedPorts) > 0 && len(h.PortBindings) == 0 {
		return img, nil, invalid("conflicting options: port exposing and the container type network mode")
	}
	if err := mergeImage(q.Config, ic); err != nil {
		return img, nil, err
	}
	if err := s.resolveModes(q.Name, q.HostConfig); err != nil {
		return img, nil, err
	}
	if warnings, err = normalise(rec.ID, q.Config, q.HostConfig, s.o.Defaults); err != nil {
		return img, nil, err
	}
	if rec.Networks, err = settleNetworks(q); err != nil {
		return img, nil, err
	}
	return img, warnings, nil
}

// imageFor finds an image for the platform asked for, "" for any. One that is
// here for others only is missing to a client.
func (s *Service) imageFor(ref, platform string) (image.Image, error) {
	img, err := s.o.Images.Get(ref)
	if err != nil {
		if errdefs.KindOf(err) == errdefs.NotFound {
			err = &MissingImageError{Ref: ref, Err: err}
		}
		return img, err
	}
	if platform == "" {
		return img, nil
	}
	want, err := ocispec.ParsePlatform(platform)
	if err != nil {
		return img, err
	}
	right, err := s.o.Images.GetFor(ref, &want)
	if errdefs.Is(err, errdefs.NotFound) {
		if img.Config.Architecture == "" {
			return img, nil
		}
		err = &MissingImageError{Ref: ref, Err: errdefs.Newf(errdefs.NotFound, "", "", "image with reference %s was found but does not provide the specified platform (%s)", clip(ref), ocispec.FormatPlatform(want))}
	}
	return right, err
}

// A MissingImageError says which image a container needs that is not here.
type MissingImageError struct {
	Ref string
	Err error
}

func (e *MissingImageError) Error() string { return e.Err.Error() }
func (e *MissingImageError) Unwrap() error { return e.Err }

// imageConfigOf converts by way of JSON, which both forms share by definition.
func imageConfigOf(img image.Image) (imageConfig, error) {
	var ic imageConfig
	b, err := json.Marshal(img.Config.Config)
	if err == nil {
		err = json.Unmarshal(b, &ic)
	}
	if err != nil {
		return ic, errdefs.New(errdefs.Internal, "read", quote("image", img.ID), err)
	}
	return ic, nil
}

// resolveModes turns "container:name" into "container:<id>", so that a later
// rename of the other one changes nothing.
func (s *Service) resolveModes(own string, h *HostConfig) error {
	id := func(ref string) (string, error) {
		c, err := s.findReferred(ref)
		if err != nil {
			return "", err
		}
		return "container:" + c.id, nil
	}
	if other := h.NetworkMode.ConnectedContainer(); h.NetworkMode.IsContainer() && other != "" {
		if other == own {
			return invalid("cannot join own network")
		}
		// One that is not there yet may be made before the start.
		m, err := id(other)
		if err != nil && errdefs.KindOf(errors.Unwrap(err)) != errdefs.NotFound {
			return err
		}
		if err == nil {
			h.NetworkMode = networkMode(m)
		}
	}
	if h.IpcMode.IsContainer() && h.IpcMode.Container() != "" {
		m, err := id(h.IpcMode.Container())
		if err != nil {
			return err
		}
		h.IpcMode = ipcMode(m)
	}
	if h.PidMode.IsContainer() && h.PidMode.Container() != "" {
		m, err := id(h.PidMode.Container())
		if err != nil {
			return err
		}
		h.PidMode = pidMode(m)
	}
	for i, l := range h.Links {
		name, alias, _ := strings.Cut(l, ":")
		if name == "" {
			return invalid("bad format for links: %s", clip(l))
		}
		if h.NetworkMode != "" && h.NetworkMode.IsUserDefined() { // a name of that network, whenever it comes
			h.Links[i] = strings.TrimPrefix(name, "/") + ":" + path.Base(cmpOr(alias, name))
			continue
		}
		c, err := s.findReferred(name)
		if err != nil {
			return errdefs.Newf(errdefs.KindOf(err), "", "", "could not get container for %s: %w", clip(name), err)
		}
		if other, _ := c.view(); other.HostConfig.NetworkMode.IsHost() {
			return invalid("conflicting options: host type networking can't be used with links. This would result in undefined behavior")
		}
		h.Links[i] = c.id + ":" + path.Base(cmpOr(alias, name)) // inspect writes both as paths
	}
	return nil
}

// findReferred finds a container that a request refers to. That it is not there
// is a mistake in the request: clients take NotFound for a missing image, and
// pull that.
func (s *Service) findReferred(ref string) (*Container, error) {
	c, err := s.find("create", ref)
	if errdefs.KindOf(err) == errdefs.NotFound {
		return nil, errdefs.New(errdefs.Invalid, "", "", err)
	}
	return c, err
}

// checkEndpoint reports settings that a network cannot have.
func checkEndpoint(name string, ep *network.EndpointSettings) error {
	var problems []string
	ip := ep.IPAMConfig
	if ip == nil {
		ip = &network.EndpointIPAMConfig{}
	}
	if !networkMode(name).IsUserDefined() && (ip.IPv4Address.IsValid() || ip.IPv6Address.IsValid()) {
		problems = append(problems, "user-specified IP address is supported on user-defined networks only")
	}
	if (name == network.NetworkHost || name == network.NetworkNone) && len(ep.Aliases) > 0 {
		problems = append(problems, "network-scoped aliases are only supported for user-defined networks")
	}
	if ip.IPv4Address.IsValid() && !ip.IPv4Address.Is4() {
		problems = append(problems, "invalid IPv4 address: "+ip.IPv4Address.String())
	}
	if ip.IPv6Address.IsValid() && (!ip.IPv6Address.Is6() || ip.IPv6Address.Is4In6()) {
		problems = append(problems, "invalid IPv6 address: "+ip.IPv6Address.String())
	}
	if len(problems) > 0 {
		return invalid("invalid endpoint settings:\n%s", strings.Join(problems, "\n"))
	}
	return nil
}

// settleNetworks makes the list of networks agree with the network mode.
func settleNetworks(q CreateRequest) (map[string]*network.EndpointSettings, error) {
	mode := q.HostConfig.NetworkMode
	out := map[string]*network.EndpointSettings{}
	if mode.IsContainer() || q.Config.NetworkDisabled {
		return out, nil
	}
	if len(q.Networks) > 64 {
		return nil, invalid("%d networks: at most 64 are allowed", len(q.Networks))
	}
	primary := mode.NetworkName()
	for name, ep := range q.Networks {
		if name == "" {
			return nil, invalid("no network name given in NetworkingConfig")
		}
		if name == network.NetworkDefault {
			name = primary
		}
		if ep == nil {
			ep = &network.EndpointSettings{}
		}
		if err := checkEndpoint(name, ep); err != nil {
			return nil, invalid("invalid config for network %s: %w", clip(name), err)
		}
		for _, l := range ep.Links {
			if n, _, _ := strings.Cut(l, ":"); n == "" {
				return nil, invalid("bad format for links: %s", clip(l))
			}
		}
		out[name] = ep.Copy()
	}
	if len(out) == 0 {
		out[primary] = &network.EndpointSettings{}
	}
	if len(out) > 1 && (mode.IsHost() || mode.IsNone()) {
		return nil, invalid("conflicting options: cannot attach both user-defined and non-user-defined network-modes")
	}
	return out, nil
}

func (s *Service) planAllMounts(rec *Record) ([]Mount, error) {
	var inherited []Mount
	for _, from := range rec.HostConfig.VolumesFrom {
		name, mode, _ := strings.Cut(from, ":")
		switch mode {
		case "", "rw", "ro", "z", "Z", "ro,z", "rw,z", "ro,Z", "rw,Z":
		default:
			return nil, invalid(`invalid mode: %s`, clip(mode))
		}
		c, err := s.findReferred(name)
		if err != nil {
			return nil, err
		}
		other, _ := c.view()
		for _, m := range other.Mounts {
			if m.Type == mount.TypeTmpfs {
				continue
			}
			m.ReadOnly = m.ReadOnly || strings.HasPrefix(mode, "ro")
			m.Options.NoCopy = true // the other container's to fill
			inherited = append(inherited, m)
		}
	}
	mounts, err := planMounts(rec.Config, rec.HostConfig, inherited)
	if err != nil {
		return nil, err
	}
	for i := range mounts {
		if m := &mounts[i]; m.Type == mount.TypeBind && s.o.Socket != "" && slices.Contains(dockerSockets, m.Source) {
			if _, err := os.Stat(m.Source); errors.Is(err, os.ErrNotExist) {
				m.Source = s.o.Socket
			}
		}
	}
	return mounts, settlePropagation(mounts, filepath.Dir(s.o.Root))
}

func (s *Service) createVolumes(ctx context.Context, rec *Record, u *undo.Stack) error {
	for i := range rec.Mounts {
		m := &rec.Mounts[i]
		if m.Type != mount.TypeVolume {
			continue
		}
		anonymous := m.Name == ""
		if anonymous {
			m.Name = newID()
			m.Options.Labels = overlay(map[string]string{"com.docker.volume.anonymous": ""}, m.Options.Labels)
		}
		if _, err := s.o.Volumes.Create(ctx, volume.CreateRequest{Name: m.Name, Driver: m.Driver, Options: m.Options.DriverOptions, Labels: m.Options.Labels}); err != nil {
			return err
		}
		if anonymous {
			name := m.Name
			u.Push(func(ctx context.Context) error { return s.o.Volumes.Remove(ctx, name, true) })
		}
	}
	return nil
}

// reserveName takes the name, or a new one, for an ID.
func (s *Service) reserveName(name, id string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if name != "" {
		if holder, used := s.byName[name]; used {
			return "", errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "",
				`Conflict. The container name "/%s" is already in use by container "%s". You have to remove (or rename) that container to be able to reuse that name.`, name, holder),
				"remove it with: onggi rm "+name)
		}
		s.byName[name] = id
		return name, nil
	}
	for attempt := range 100 {
		n := newName(attempt)
		if _, used := s.byName[n]; !used {
			s.byName[n] = id
			return n, nil
		}
	}
	s.byName[id[:12]] = id
	return id[:12], nil
}

func (s *Service) releaseName(name, id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName[name] == id {
		delete(s.byName, name)
	}
}
