package container

import (
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/mount"
)

// Mount is one thing mounted into a container, in normal form: whatever way a
// request spells it (a bind, a mount, a tmpfs, an image's volume, another
// container's mounts), it ends as one of these.
type Mount struct {
	Type        mount.Type
	Name        string // volume
	Source      string // bind: host path; image: reference
	Destination string
	Driver      string
	Mode        string // as written by the user, for inspect
	ReadOnly    bool
	Propagation mount.Propagation
	Options     MountOptions
}

// MountOptions are the rarer wishes.
type MountOptions struct {
	NonRecursive           bool
	CreateSource           bool
	ReadOnlyNonRecursive   bool
	ReadOnlyForceRecursive bool
	NoCopy                 bool
	Anonymous              bool // removed with the container
	Subpath                string
	TmpfsData              string
	Labels                 map[string]string
	DriverOptions          map[string]string
	FromImage              bool // an image's VOLUME: gives way to any other mount at its place
	Spec                   bool // came in as a mount.Mount
}

// planMounts reads every spelling and returns the mounts by destination.
// inherited are those of --volumes-from, which others override.
func planMounts(c *Config, h *HostConfig, inherited []Mount) ([]Mount, error) {
	byDest := map[string]Mount{}
	for _, m := range inherited {
		byDest[m.Destination] = m
	}
	explicit := map[string]bool{}
	put := func(m Mount) error {
		if explicit[m.Destination] {
			return invalid("Duplicate mount point: %s", m.Destination)
		}
		explicit[m.Destination] = true
		byDest[m.Destination] = m
		return nil
	}
	for _, b := range h.Binds {
		m, err := parseBind(b, h.VolumeDriver)
		if err != nil {
			return nil, err
		}
		if err := put(m); err != nil {
			return nil, err
		}
	}
	for i := range h.Mounts {
		m, err := parseMount(&h.Mounts[i])
		if err != nil {
			return nil, err
		}
		if err := put(m); err != nil {
			return nil, err
		}
	}
	for _, dest := range slices.Sorted(maps.Keys(h.Tmpfs)) {
		m, err := parseTmpfs(dest, h.Tmpfs[dest])
		if err != nil {
			return nil, err
		}
		if err := put(m); err != nil {
			return nil, err
		}
	}
	for dest := range c.Volumes {
		d, err := mountPoint(dest)
		if err != nil {
			return nil, err
		}
		if _, taken := byDest[d]; !taken {
			byDest[d] = Mount{Type: mount.TypeVolume, Destination: d, Driver: cmpOr(h.VolumeDriver, "local"), Options: MountOptions{Anonymous: true, FromImage: true}}
		}
	}
	out := slices.Collect(maps.Values(byDest))
	slices.SortFunc(out, func(a, b Mount) int { return comparePaths(a.Destination, b.Destination) })
	return out, nil
}

// settlePropagation fills in what a bind does not say. One that shows the
// engine's data root must take part when a volume is unmounted there, or it
// would keep the volume busy.
func settlePropagation(mounts []Mount, dataRoot string) error {
	for i := range mounts {
		m := &mounts[i]
		if m.Type != mount.TypeBind {
			continue
		}
		inside := strings.HasPrefix(m.Source+"/", dataRoot+"/")
		shows := inside || strings.HasPrefix(dataRoot+"/", strings.TrimSuffix(m.Source, "/")+"/")
		switch {
		case m.Propagation == "" && shows:
			m.Propagation = mount.PropagationRSlave
		case m.Propagation == "":
			m.Propagation = mount.PropagationRPrivate
		case shows && m.Propagation != mount.PropagationRSlave && m.Propagation != mount.PropagationRShared:
			return invalid(`invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the daemon root, daemon root: %q, bind mount source: %q, propagation: %q`, dataRoot, m.Source, m.Propagation)
		}
	}
	return nil
}

// comparePaths puts what lies on top of another mount after it.
func comparePaths(a, b string) int {
	if n := strings.Count(a, "/") - strings.Count(b, "/"); n != 0 {
		return n
	}
	return strings.Compare(a, b)
}

// mountPoint checks a destination and cleans it.
func mountPoint(dest string) (string, error) {
	if !path.IsAbs(dest) {
		return "", invalid("invalid mount path: '%s' mount path must be absolute", clip(dest))
	}
	if strings.IndexByte(dest, 0) >= 0 || len(dest) > 4096 {
		return "", invalid("invalid mount path: '%s'", clip(dest))
	}
	d := path.Clean(dest)
	if d == "/" {
		return "", invalid("invalid specification: destination can't be '/'")
	}
	return d, nil
}

// parseBind reads "[source:]destination[:options]".
func parseBind(s, driver string) (Mount, error) {
	bad := func() (Mount, error) { return Mount{}, invalid("invalid volume specification: '%s'", clip(s)) }
	f := strings.Split(s, ":")
	if len(f) > 3 || s == "" || strings.IndexByte(s, 0) >= 0 {
		return bad()
	}
	m := Mount{Driver: cmpOr(driver, "local")}
	var opts string
	switch len(f) {
	case 1:
		m.Type, m.Options.Anonymous = mount.TypeVolume, true
		f = []string{"", f[0]}
	case 3:
		if opts = f[2]; opts == "" {
			return bad()
		}
	}
	if len(f) > 1 && f[0] == "" && !m.Options.Anonymous {
		return bad()
	}
	dest, err := mountPoint(f[1])
	if err != nil {
		return Mount{}, err
	}
	m.Destination, m.Mode = dest, opts
	switch {
	case m.Options.Anonymous:
	case path.IsAbs(f[0]):
		m.Type, m.Source, m.Driver = mount.TypeBind, path.Clean(f[0]), ""
		m.Options.CreateSource = true // Docker's binds make a missing directory
	default:
		if err := checkVolumeName(f[0]); err != nil {
			return Mount{}, err
		}
		m.Type, m.Name = mount.TypeVolume, f[0]
	}
	if opts != "" {
		if err := bindOptions(&m, opts); err != nil {
			return Mount{}, err
		}
	}
	return m, nil
}

func bindOptions(m *Mount, opts string) error {
	seen := map[string]bool{}
	for o := range strings.SplitSeq(opts, ",") {
		kind := o
		switch o {
		case "ro", "rw":
			kind, m.ReadOnly = "access", o == "ro"
		case "nocopy":
			if m.Type != mount.TypeVolume {
				return invalid(`invalid mode: %s`, clip(opts))
			}
			m.Options.NoCopy = true
		case "z", "Z":
			kind = "label"
		case "consistent", "cached", "delegated":
			kind = "consistency"
		case "private", "rprivate", "shared", "rshared", "slave", "rslave":
			if m.Type != mount.TypeBind {
				return invalid("invalid mount config for type %q: propagation (%s) is for bind mounts", string(m.Type), o)
			}
			kind, m.Propagation = "propagation", mount.Propagation(o)
		default:
			return invalid(`invalid mode: %s`, clip(opts))
		}
		if seen[kind] {
			return invalid(`invalid mode: %s`, clip(opts))
		}
		seen[kind] = true
	}
	return nil
}

func checkVolumeName(n string) error {
	ok := len(n) >= 2 && len(n) <= maxName && isAlnum(n[0])
	for i := 1; ok && i < len(n); i++ {
		ok = isAlnum(n[i]) || strings.IndexByte("_.-", n[i]) >= 0
	}
	if !ok {
		return invalid(`%q includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`, clip(n))
	}
	return nil
}

// parseMount checks one element of HostConfig.Mounts.
func parseMount(in *mount.Mount) (Mount, error) {
	bad := func(format string, args ...any) (Mount, error) {
		return Mount{}, invalid("invalid mount config for type %q: "+format, append([]any{string(in.Type)}, args...)...)
	}
	if in.Target == "" {
		return bad("field Target must not be empty")
	}
	dest, err := mountPoint(in.Target)
	if err != nil {
		return bad("%v", err)
	}
	m := Mount{Type: in.Type, Destination: dest, ReadOnly: in.ReadOnly, Options: MountOptions{Spec: true}}
	others := map[mount.Type]bool{mount.TypeBind: in.BindOptions != nil, mount.TypeVolume: in.VolumeOptions != nil, mount.TypeTmpfs: in.TmpfsOptions != nil, mount.TypeImage: in.ImageOptions != nil}
	for t, set := range others {
		if set && t != in.Type {
			return bad("field %sOptions must not be specified", strings.ToUpper(string(t[:1]))+string(t[1:]))
		}
	}
	switch in.Type {
	case mount.TypeBind:
		return parseBindMount(m, in, bad)
	case mount.TypeVolume:
		m.Driver = "local"
		if in.Source != "" {
			if err := checkVolumeName(in.Source); err != nil {
				return Mount{}, err
			}
		}
		m.Name, m.Options.Anonymous = in.Source, in.Source == ""
		if o := in.VolumeOptions; o != nil {
			if o.Subpath != "" && (path.IsAbs(o.Subpath) || !isLocal(o.Subpath)) {
				return bad("subpath must be a relative path within the volume")
			}
			m.Options.NoCopy, m.Options.Labels, m.Options.Subpath = o.NoCopy, o.Labels, o.Subpath
			if o.DriverConfig != nil {
				m.Driver, m.Options.DriverOptions = cmpOr(o.DriverConfig.Name, "local"), o.DriverConfig.Options
			}
		}
		return m, nil
	case mount.TypeTmpfs:
		if in.Source != "" {
			return bad("field Source must not be specified")
		}
		return parseTmpfsMount(m, in.TmpfsOptions, bad)
	case mount.TypeImage:
		if in.Source == "" {
			return bad("field Source must not be empty")
		}
		m.Source, m.ReadOnly = in.Source, true
		if in.ImageOptions != nil {
			if m.Options.Subpath = in.ImageOptions.Subpath; m.Options.Subpath != "" && !isLocal(m.Options.Subpath) {
				return bad("subpath must be a relative path within the volume")
			}
		}
		return m, nil
	case mount.TypeCluster:
		return bad("cluster volumes need a swarm")
	}
	return Mount{}, invalid("invalid mount config for type %q: mount type unknown: %q", string(in.Type), string(in.Type))
}

func parseBindMount(m Mount, in *mount.Mount, bad func(string, ...any) (Mount, error)) (Mount, error) {
	if in.Source == "" {
		return bad("field Source must not be empty")
	}
	if !path.IsAbs(in.Source) || strings.IndexByte(in.Source, 0) >= 0 {
		return bad("invalid mount path: '%s' mount path must be absolute", clip(in.Source))
	}
	m.Source = path.Clean(in.Source)
	if o := in.BindOptions; o != nil {
		if o.Propagation != "" {
			if !slices.Contains(mount.Propagations, o.Propagation) {
				return bad("invalid propagation mode: %s", o.Propagation)
			}
			m.Propagation = o.Propagation
		}
		if o.ReadOnlyNonRecursive && o.ReadOnlyForceRecursive {
			return bad("ReadOnlyNonRecursive and ReadOnlyForceRecursive conflict")
		}
		if !in.ReadOnly && (o.ReadOnlyNonRecursive || o.ReadOnlyForceRecursive) {
			return bad("mount source must be read-only to use ReadOnlyNonRecursive or ReadOnlyForceRecursive")
		}
		m.Options.NonRecursive, m.Options.CreateSource = o.NonRecursive, o.CreateMountpoint
		m.Options.ReadOnlyNonRecursive, m.Options.ReadOnlyForceRecursive = o.ReadOnlyNonRecursive, o.ReadOnlyForceRecursive
	}
	return m, nil
}

func parseTmpfsMount(m Mount, o *mount.TmpfsOptions, bad func(string, ...any) (Mount, error)) (Mount, error) {
	if o == nil {
		return m, nil
	}
	var data []string
	if o.SizeBytes < 0 {
		return bad("size %d: want a positive number", o.SizeBytes)
	}
	if o.SizeBytes > 0 {
		data = append(data, "size="+strconv.FormatInt(o.SizeBytes, 10))
	}
	if o.Mode != 0 {
		data = append(data, "mode="+strconv.FormatUint(uint64(o.Mode.Perm()|o.Mode&0o7000), 8))
	}
	for _, kv := range o.Options {
		if len(kv) == 0 || len(kv) > 2 {
			return bad("invalid option array length")
		}
		data = append(data, strings.Join(kv, "="))
	}
	if err := checkTmpfsOptions(data); err != nil {
		return bad("%v", err)
	}
	m.Options.TmpfsData = strings.Join(data, ",")
	return m, nil
}

func parseTmpfs(dest, opts string) (Mount, error) {
	d, err := mountPoint(dest)
	if err != nil {
		return Mount{}, err
	}
	m := Mount{Type: mount.TypeTmpfs, Destination: d}
	if opts == "" {
		return m, nil
	}
	list := strings.Split(opts, ",")
	if err := checkTmpfsOptions(list); err != nil {
		return Mount{}, err
	}
	m.ReadOnly = slices.Contains(list, "ro")
	m.Options.TmpfsData = opts
	return m, nil
}

func checkTmpfsOptions(list []string) error {
	for _, o := range list {
		k, v, hasValue := strings.Cut(o, "=")
		switch k {
		case "ro", "rw", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "sync", "async", "dirsync", "atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime", "bind", "rbind", "private", "rprivate", "shared", "rshared", "slave", "rslave", "unbindable", "runbindable":
			if !hasValue {
				continue
			}
		case "size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol", "huge", "noswap":
			if (hasValue || k == "noswap") && !strings.ContainsAny(v, ",\\\x00\n") {
				continue
			}
		}
		return invalid("invalid tmpfs option %q", clip(o))
	}
	return nil
}

func isLocal(p string) bool { return filepath.IsLocal(p) && !strings.Contains(p, "\x00") }

// modeOf is what inspect shows as the mode of a mount.
func (m Mount) modeOf() string {
	if m.Mode != "" {
		return m.Mode
	}
	if m.Type == mount.TypeVolume {
		return "z"
	}
	return ""
}
