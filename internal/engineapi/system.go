package engineapi

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types"
	buildtypes "github.com/moby/moby/api/types/build"
	containertypes "github.com/moby/moby/api/types/container"
	eventtypes "github.com/moby/moby/api/types/events"
	imagetypes "github.com/moby/moby/api/types/image"
	registrytypes "github.com/moby/moby/api/types/registry"
	swarmtypes "github.com/moby/moby/api/types/swarm"
	systemtypes "github.com/moby/moby/api/types/system"
	volumetypes "github.com/moby/moby/api/types/volume"

	"github.com/onggi/onggi/internal/build"
	"github.com/onggi/onggi/internal/container"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/registry"
)

func (s *Server) ping(c *call) error {
	h := c.w.Header()
	h.Set("Cache-Control", "no-cache, no-store, must-revalidate")
	h.Set("Pragma", "no-cache")
	h.Set("Builder-Version", "2")
	if s.o.Builder == nil || s.o.Engine.ClassicBuilder {
		h.Set("Builder-Version", "1")
	}
	h.Set("Swarm", "inactive")
	h.Set("Content-Type", "text/plain; charset=utf-8")
	c.began = true
	if c.r.Method == http.MethodHead {
		h.Set("Content-Length", "0")
		c.w.WriteHeader(http.StatusOK)
		return nil
	}
	h.Set("Content-Length", "2")
	_, err := io.WriteString(c.w, "OK")
	return err
}

func (s *Server) version(c *call) error {
	e := s.o.Engine
	kernel := firstLine("/proc/sys/kernel/osrelease")
	details := map[string]string{
		"ApiVersion": MaxVersion, "MinAPIVersion": MinVersion, "Arch": runtime.GOARCH, "BuildTime": e.BuildTime, "GitCommit": e.Commit,
		"GoVersion": runtime.Version(), "KernelVersion": kernel, "Os": runtime.GOOS, "Experimental": "false",
	}
	return c.json(http.StatusOK, systemtypes.VersionResponse{
		Platform: systemtypes.PlatformInfo{Name: "Onggi"}, Version: e.Version, APIVersion: MaxVersion, MinAPIVersion: MinVersion,
		Os: runtime.GOOS, Arch: runtime.GOARCH, GitCommit: e.Commit, GoVersion: runtime.Version(), KernelVersion: kernel, BuildTime: e.BuildTime,
		Components: []systemtypes.ComponentVersion{{Name: "Engine", Version: e.Version, Details: details}},
	})
}

func firstLine(file string) string {
	b, _ := os.ReadFile(file)
	line, _, _ := strings.Cut(string(b), "\n")
	return strings.TrimSpace(line)
}

// ociImporter is how clients ask whether load takes OCI layouts with several
// platforms and whether an image is found by its manifest's or index's digest.
var ociImporter = [2]string{"driver-type", "io.containerd.snapshotter.v1"}

func (s *Server) info(c *call) error {
	e := s.o.Engine
	running, paused, stopped := s.o.Containers.Counts()
	images, err := s.o.Images.List(image.ListOptions{})
	if err != nil {
		return err
	}
	has := func(name string) bool { return slices.Contains(e.Controllers, name) }
	v := systemtypes.Info{
		ID: e.ID, Containers: running + paused + stopped, ContainersRunning: running, ContainersPaused: paused, ContainersStopped: stopped, Images: len(images),
		Driver: "overlay2", DriverStatus: [][2]string{{"Backing Filesystem", filesystem(e.Root)}, {"Supports d_type", "true"}, {"Native Overlay Diff", "true"}, ociImporter},
		Plugins:     systemtypes.PluginsInfo{Volume: []string{"local"}, Network: []string{"bridge", "host", "null"}, Log: container.LogDrivers()},
		MemoryLimit: has("memory"), SwapLimit: has("memory"), CPUCfsPeriod: has("cpu"), CPUCfsQuota: has("cpu"), CPUShares: has("cpu"), CPUSet: has("cpuset"), PidsLimit: has("pids"),
		IPv4Forwarding: firstLine("/proc/sys/net/ipv4/ip_forward") == "1", Debug: e.Debug, NFd: openFiles(), NGoroutines: runtime.NumGoroutine(),
		OomKillDisable: e.CgroupVersion == "1", SystemTime: time.Now().Format(time.RFC3339Nano), LoggingDriver: e.LogDriver,
		CgroupDriver: e.CgroupDriver, CgroupVersion: e.CgroupVersion, NEventsListener: s.o.Events.Listeners(),
		KernelVersion: firstLine("/proc/sys/kernel/osrelease"), OperatingSystem: osName("PRETTY_NAME"), OSVersion: osName("VERSION_ID"), OSType: runtime.GOOS,
		Architecture: machine(), IndexServerAddress: "https://index.docker.io/v1/", NCPU: runtime.NumCPU(), MemTotal: int64(container.HostMemory()),
		DockerRootDir: e.Root, HTTPProxy: redactProxy("HTTP_PROXY"), HTTPSProxy: redactProxy("HTTPS_PROXY"), NoProxy: os.Getenv("NO_PROXY"),
		Name: e.Name, Labels: e.Labels, ServerVersion: e.Version, LiveRestoreEnabled: true, Isolation: "", InitBinary: e.InitBinary,
		Runtimes: runtimes(e.Runtimes), DefaultRuntime: e.DefaultRuntime,
		Swarm:           swarmtypes.Info{LocalNodeState: swarmtypes.LocalNodeStateInactive},
		SecurityOptions: securityOptions(e), Warnings: e.Warnings,
		RegistryConfig:  &registrytypes.ServiceConfig{IndexConfigs: map[string]*registrytypes.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: withSlash(e.Mirrors), Secure: true, Official: true}}, Mirrors: withSlash(e.Mirrors)},
		FirewallBackend: &systemtypes.FirewallInfo{Driver: "nftables"},
		CDISpecDirs:     nonNil(e.CDIDirs),
	}
	devices, warnings := s.o.Containers.CDIDevices()
	v.DiscoveredDevices, v.Warnings = devices, append(slices.Clone(v.Warnings), warnings...)
	cidrs := []string{"::1/128", "127.0.0.0/8"}
	for _, r := range e.Insecure {
		if strings.Contains(r, "/") {
			cidrs = append(cidrs, r)
			continue
		}
		if v.RegistryConfig.IndexConfigs[r] == nil {
			v.RegistryConfig.IndexConfigs[r] = &registrytypes.IndexInfo{Name: r, Mirrors: []string{}}
		}
	}
	for _, r := range cidrs {
		if p, err := netip.ParsePrefix(r); err == nil {
			v.RegistryConfig.InsecureRegistryCIDRs = append(v.RegistryConfig.InsecureRegistryCIDRs, p.Masked())
		}
	}
	if v.Labels == nil {
		v.Labels = []string{}
	}
	if c.version < 50 {
		return c.json(http.StatusOK, legacyInfo{Info: v})
	}
	return c.json(http.StatusOK, v)
}

// legacyInfo has the fields that 1.50 removed.
type legacyInfo struct {
	systemtypes.Info
	BridgeNfIptables  bool
	BridgeNfIp6tables bool
}

// withSlash spells addresses of mirrors as Docker does.
func withSlash(urls []string) []string {
	out := make([]string, len(urls))
	for i, u := range urls {
		out[i] = strings.TrimSuffix(u, "/") + "/"
	}
	return out
}

func runtimes(all map[string]container.Runtime) map[string]systemtypes.RuntimeWithStatus {
	out := map[string]systemtypes.RuntimeWithStatus{}
	for name, r := range all {
		out[name] = systemtypes.RuntimeWithStatus{Runtime: systemtypes.Runtime{Path: cmp.Or(r.Path, "onggi-init"), Args: r.Args}}
	}
	return out
}

func nonNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func securityOptions(e EngineInfo) []string {
	opts := []string{"name=seccomp,profile=" + cmp.Or(e.SeccompProfile, "builtin")}
	if b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err == nil && strings.HasPrefix(string(b), "Y") {
		opts = append(opts, "name=apparmor")
	}
	if opts = append(opts, "name=cgroupns"); e.NoNewPrivs {
		opts = append(opts, "name=no-new-privileges")
	}
	return opts
}

// redactProxy shows a proxy without its password.
func redactProxy(key string) string {
	v := os.Getenv(key)
	if i, j := strings.Index(v, "://"), strings.LastIndexByte(v, '@'); i >= 0 && j > i {
		return v[:i+3] + "xxxxx:xxxxx" + v[j:]
	}
	return v
}

func openFiles() int {
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(d)
}

func machine() string {
	switch runtime.GOARCH {
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	}
	return runtime.GOARCH
}

func osName(key string) string {
	f, err := os.Open("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if v, ok := strings.CutPrefix(sc.Text(), key+"="); ok {
			if u, err := strconv.Unquote(v); err == nil {
				return u
			}
			return v
		}
	}
	return ""
}

func (s *Server) auth(c *call) error {
	var a registrytypes.AuthConfig
	if err := c.decode(&a); err != nil {
		return err
	}
	token, err := s.o.Registry.Login(c.ctx(), registry.Auth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: a.ServerAddress})
	if err != nil {
		return err
	}
	return c.json(http.StatusOK, registrytypes.AuthResponse{Status: "Login Succeeded", IdentityToken: token})
}

func (s *Server) events(c *call) error {
	f, err := c.filters()
	if err != nil {
		return err
	}
	if err := onlyKeys(f, events.FilterKeys...); err != nil {
		return err
	}
	var since, until time.Time
	now := time.Now()
	for _, t := range []struct {
		key string
		to  *time.Time
	}{{"since", &since}, {"until", &until}} {
		if v := c.query(t.key); v != "" {
			if *t.to, err = container.ParseTime(v, now); err != nil {
				return err
			}
		}
	}
	if since.IsZero() && !until.IsZero() {
		since = time.Unix(0, 1) // all that is remembered
	}
	if !until.IsZero() && until.Before(since) {
		return invalid("`since` time (%s) cannot be after `until` time (%s)", c.query("since"), c.query("until"))
	}
	encode, contentType := eventEncoder(c)
	out := c.flushing(contentType)
	old, sub := s.o.Events.Subscribe(since, f)
	defer sub.Close()
	out.begin()
	for _, m := range old {
		if !until.IsZero() && m.TimeNano > until.UnixNano() {
			return nil
		}
		if _, err := out.Write(encode(m, c.version)); err != nil {
			return nil
		}
	}
	var end <-chan time.Time
	if !until.IsZero() {
		end = time.After(time.Until(until))
	}
	for {
		select {
		case m, ok := <-sub.C:
			if !ok {
				return nil
			}
			if _, err := out.Write(encode(m, c.version)); err != nil {
				return nil
			}
		case <-end:
			return nil
		case <-c.ctx().Done():
			return nil
		}
	}
}

// legacyEvent has the fields that containers' and images' events had before
// 1.52.
type legacyEvent struct {
	Status string `json:"status,omitempty"`
	ID     string `json:"id,omitempty"`
	From   string `json:"from,omitempty"`
	eventtypes.Message
}

func eventEncoder(c *call) (func(events.Message, version) []byte, string) {
	contentType, head := types.MediaTypeJSON, ""
	accept := c.r.Header.Get("Accept")
	switch {
	case c.version < 53:
	case strings.Contains(accept, types.MediaTypeJSONSequence):
		contentType, head = types.MediaTypeJSONSequence, "\x1e"
	case strings.Contains(accept, types.MediaTypeJSONLines):
		contentType = types.MediaTypeJSONLines
	case strings.Contains(accept, types.MediaTypeNDJSON):
		contentType = types.MediaTypeNDJSON
	}
	return func(m events.Message, v version) []byte {
		var x any = m
		if v < 52 {
			l := legacyEvent{Message: m}
			if m.Type == eventtypes.ContainerEventType || m.Type == eventtypes.ImageEventType {
				l.Status, l.ID, l.From = string(m.Action), m.Actor.ID, m.Actor.Attributes["image"]
			}
			x = l
		}
		b, err := marshal(x)
		if err != nil {
			return nil
		}
		return append([]byte(head), b...)
	}, contentType
}

// legacyDiskUsage is the answer before 1.52.
type legacyDiskUsage struct {
	LayersSize  int64
	Images      []any
	Containers  []containertypes.Summary
	Volumes     []volumetypes.Volume
	BuildCache  []buildtypes.CacheRecord
	BuilderSize int64
}

func (s *Server) diskUsage(c *call) error {
	want := func(k string) bool {
		t := c.r.URL.Query()["type"]
		return len(t) == 0 || slices.Contains(t, k)
	}
	for _, t := range c.r.URL.Query()["type"] {
		if !slices.Contains([]string{"container", "image", "volume", "build-cache"}, t) {
			return invalid("unknown object type: %.50s", t)
		}
	}
	var u usage
	var err error
	if want("image") {
		err = errors.Join(err, u.addImages(s))
	}
	if want("container") {
		u.containers, _ = s.o.Containers.List(c.ctx(), container.ListOptions{All: true, Size: true})
		for i := range u.containers {
			u.containers[i].ImageManifestDescriptor = nil
		}
	}
	if want("volume") {
		err = errors.Join(err, u.addVolumes(s))
	}
	if want("build-cache") && s.o.Builder != nil {
		records, e := s.o.Builder.DiskUsage(c.ctx())
		err = errors.Join(err, e)
		for _, r := range records {
			u.cache = append(u.cache, cacheRecord(r))
		}
	}
	if err != nil {
		return err
	}
	if c.version < 52 {
		return c.json(http.StatusOK, u.legacy())
	}
	return c.json(http.StatusOK, u.current(want, c.boolean("verbose")))
}

type usage struct {
	layers, reclaimable int64
	images              []imagetypes.Summary
	containers          []containertypes.Summary
	volumes             []volumetypes.Volume
	cache               []buildtypes.CacheRecord
}

func (u *usage) addImages(s *Server) error {
	list, err := s.o.Images.List(image.ListOptions{All: true})
	if err != nil {
		return err
	}
	disk := s.imageUsage()
	for _, img := range list {
		sum := imageSummary(img)
		sum.Containers = int64(len(s.usersOf(img)))
		sum.SharedSize = disk.Shared[img.ID]
		u.images = append(u.images, sum)
	}
	u.layers, u.reclaimable = disk.Layers, disk.Unused
	return nil
}

func (s *Server) imageUsage() image.Usage {
	return s.o.Images.Usage(func(id string) bool { return len(s.o.Containers.UsersOfImage(id)) > 0 })
}

func (u *usage) addVolumes(s *Server) error {
	list, err := s.o.Volumes.List(nil)
	if err != nil {
		return err
	}
	used := s.o.Containers.VolumeUsers()
	for _, v := range list {
		a := apiVolume(v)
		a.UsageData = &volumetypes.UsageData{RefCount: int64(used[v.Name]), Size: -1}
		if n, err := s.o.Volumes.Size(v.Name); err == nil {
			a.UsageData.Size = n
		}
		u.volumes = append(u.volumes, a)
	}
	return nil
}

func cacheRecord(r *build.CacheRecord) buildtypes.CacheRecord {
	return buildtypes.CacheRecord{
		ID: r.ID, Parents: r.Parents, Type: string(r.RecordType), Description: r.Description, InUse: r.InUse, Shared: r.Shared, Size: r.Size,
		CreatedAt: r.CreatedAt, LastUsedAt: r.LastUsedAt, UsageCount: r.UsageCount,
	}
}

func (u *usage) legacy() legacyDiskUsage {
	out := legacyDiskUsage{LayersSize: u.layers, Images: []any{}, Containers: u.containers, Volumes: u.volumes, BuildCache: u.cache}
	for _, i := range u.images {
		out.Images = append(out.Images, i)
	}
	for _, r := range u.cache {
		out.BuilderSize += r.Size
	}
	if out.Containers == nil {
		out.Containers = []containertypes.Summary{}
	}
	if out.Volumes == nil {
		out.Volumes = []volumetypes.Volume{}
	}
	if out.BuildCache == nil {
		out.BuildCache = []buildtypes.CacheRecord{}
	}
	return out
}

func (u *usage) current(want func(string) bool, verbose bool) systemtypes.DiskUsage {
	var out systemtypes.DiskUsage
	if want("image") {
		d := &imagetypes.DiskUsage{TotalCount: int64(len(u.images)), TotalSize: u.layers, Reclaimable: u.reclaimable}
		for _, i := range u.images {
			if i.Containers > 0 {
				d.ActiveCount++
			}
		}
		if verbose {
			d.Items = u.images
		}
		out.ImageUsage = d
	}
	if want("container") {
		d := &containertypes.DiskUsage{TotalCount: int64(len(u.containers))}
		for _, x := range u.containers {
			d.TotalSize += x.SizeRw
			if x.State == containertypes.StateRunning || x.State == containertypes.StatePaused || x.State == containertypes.StateRestarting {
				d.ActiveCount++
			} else {
				d.Reclaimable += x.SizeRw
			}
		}
		if verbose {
			d.Items = u.containers
		}
		out.ContainerUsage = d
	}
	if want("volume") {
		d := &volumetypes.DiskUsage{TotalCount: int64(len(u.volumes))}
		for _, v := range u.volumes {
			n := max(v.UsageData.Size, 0)
			d.TotalSize += n
			if v.UsageData.RefCount > 0 {
				d.ActiveCount++
			} else {
				d.Reclaimable += n
			}
		}
		if verbose {
			d.Items = u.volumes
		}
		out.VolumeUsage = d
	}
	if want("build-cache") {
		d := &buildtypes.DiskUsage{TotalCount: int64(len(u.cache))}
		for _, r := range u.cache {
			d.TotalSize += r.Size
			if r.InUse {
				d.ActiveCount++
			} else if !r.Shared {
				d.Reclaimable += r.Size
			}
		}
		if verbose {
			d.Items = u.cache
		}
		out.BuildCacheUsage = d
	}
	return out
}

func (s *Server) distribution(c *call) error {
	ref, err := parseRef(c.path["name"])
	if err != nil {
		return err
	}
	a, err := c.registryAuth()
	if err != nil {
		return err
	}
	ref = ref.OrLatest()
	repo := s.o.Registry.Repository(ref, a)
	name := ref.Tag
	if ref.Digest != "" {
		name = ref.Digest
	}
	d, raw, err := repo.Manifest(c.ctx(), name)
	if err != nil {
		return err
	}
	platforms := []ocispec.Platform{}
	if ocispec.IsIndex(d.MediaType) {
		index, err := ocispec.ParseIndex(raw, d.MediaType)
		if err != nil {
			return err
		}
		for _, m := range index.Manifests {
			if m.Platform != nil {
				platforms = append(platforms, *m.Platform)
			}
		}
	} else {
		p, err := platformOf(c.ctx(), repo, raw, d.MediaType)
		if err != nil {
			return err
		}
		platforms = append(platforms, p)
	}
	return c.json(http.StatusOK, registrytypes.DistributionInspect{Descriptor: d, Platforms: platforms})
}

// platformOf reads a single image's platform from its configuration.
func platformOf(ctx context.Context, repo *registry.Repository, raw []byte, mediaType string) (ocispec.Platform, error) {
	m, err := ocispec.ParseManifest(raw, mediaType)
	if err != nil {
		return ocispec.Platform{}, err
	}
	b, err := repo.Small(ctx, m.Config, maxConfig)
	if err != nil {
		return ocispec.Platform{}, err
	}
	img, err := ocispec.ParseImage(b)
	return img.Platform, err
}

const maxConfig = 8 << 20

// filesystem is what Docker calls the file system that a path is on.
func filesystem(path string) string {
	magic, err := linux.FilesystemOf(path)
	if err != nil {
		return "unknown"
	}
	for name, m := range map[string]int64{"extfs": 0xef53, "xfs": 0x58465342, "btrfs": 0x9123683e, "tmpfs": 0x01021994, "zfs": 0x2fc12fc1, "overlayfs": 0x794c7630, "f2fs": 0xf2f52010} {
		if m == magic {
			return name
		}
	}
	return fmt.Sprintf("%#x", magic)
}
