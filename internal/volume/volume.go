// Package volume keeps directories that outlive containers.
//
// # Model
//
// A volume has a name, a driver ("local"), options, labels, and a directory.
// The local driver's options are those of mount(8): type, o, device; with them
// the directory is mounted when the first container uses the volume. The option
// size limits one that is not mounted, by a quota of its file system.
//
// # On disk
//
//	NAME/_data   what containers see
//
// Records are in the bucket "volumes" of the database.
//
// # Guarantees
//
// A volume that a container uses cannot be removed. CopyUp fills an empty
// volume once, from paths resolved inside the image's root.
//
// # Concurrency
//
// Every method may be called from many goroutines. Mounting is serialised per
// volume; mu is never held over it.
//
// # Not here
//
// Bind mounts and tmpfs: those are the container's.
package volume

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/docker/go-units"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/layer"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/metadb"
)

const bucket = "volumes"

// AnonymousLabel marks volumes that were made without a name.
const AnonymousLabel = "com.docker.volume.anonymous"

// Volume describes a volume.
type Volume struct {
	Name, Driver, Mountpoint, Scope string
	Labels, Options                 map[string]string
	Created                         time.Time
}

// CreateRequest asks for a volume. An empty name gets a random one.
type CreateRequest struct {
	Name, Driver    string
	Options, Labels map[string]string
}

// PruneOptions choose what is removed.
type PruneOptions struct {
	Filters map[string][]string
	InUse   func(name string) bool // by a container, running or not
}

type record struct {
	Driver  string            `json:"driver"`
	Labels  map[string]string `json:"labels,omitempty"`
	Options map[string]string `json:"options,omitempty"`
	Created time.Time         `json:"created"`
	Project uint32            `json:"project,omitempty"` // of its quota
}

type live struct {
	record
	users    map[string]bool // container ids
	mounting sync.Mutex      // held while the volume is mounted, filled or measured
}

// Service is the volumes of one engine.
type Service struct {
	dir string
	db  *metadb.DB
	bus *events.Bus

	mu   sync.Mutex
	vols map[string]*live // guarded by mu
}

// Open reads the volumes in dir. What is made and removed is told to bus.
func Open(dir string, db *metadb.DB, bus *events.Bus) (*Service, error) {
	if err := os.MkdirAll(dir, 0o701); err != nil {
		return nil, errdefs.New(errdefs.Internal, "open", "volumes in "+dir, err)
	}
	s := &Service{dir: dir, db: db, bus: bus, vols: map[string]*live{}}
	err := db.View(func(tx *metadb.Tx) error {
		return tx.Each(bucket, func(name string, raw json.RawMessage) error {
			v := &live{users: map[string]bool{}}
			if err := json.Unmarshal(raw, &v.record); err != nil {
				return fmt.Errorf("record of volume %q: %w", name, err)
			}
			s.vols[name] = v
			return nil
		})
	})
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "open", "volumes in "+dir, err)
	}
	return s, nil
}

func object(name string) string { return fmt.Sprintf("volume %q", name) }

// checkName allows what Docker allows: letters, digits, and inside _ . -
func checkName(name string) error {
	ok := len(name) >= 2 && len(name) <= 255
	for i, c := range name {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		ok = ok && (letter || i > 0 && strings.ContainsRune("_.-", c))
	}
	if !ok {
		return errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "create", object(name), "a name has two or more letters, digits, _ . -, and begins with a letter or digit"),
			"for a directory of the host write its absolute path")
	}
	return nil
}

// Create makes a volume. One of that name with the same driver and options is
// returned as it is.
func (s *Service) Create(ctx context.Context, r CreateRequest) (Volume, error) {
	if r.Driver == "" {
		r.Driver = "local"
	}
	if r.Driver != "local" {
		return Volume{}, errdefs.Newf(errdefs.NotFound, "create", object(r.Name), "plugin %q not found: there is no volume driver but local", r.Driver)
	}
	labels := maps.Clone(r.Labels)
	if r.Name == "" {
		var id [32]byte
		rand.Read(id[:])
		r.Name = hex.EncodeToString(id[:])
		if labels == nil {
			labels = map[string]string{}
		}
		labels[AnonymousLabel] = ""
	}
	if err := checkName(r.Name); err != nil {
		return Volume{}, err
	}
	if err := checkOptions(r); err != nil {
		return Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if v := s.vols[r.Name]; v != nil {
		if len(r.Options) > 0 && !maps.Equal(v.Options, r.Options) {
			return Volume{}, errdefs.Newf(errdefs.Conflict, "create", object(r.Name), "it exists with other options")
		}
		return s.describeLocked(r.Name, v), nil
	}
	v := &live{record: record{Driver: r.Driver, Labels: labels, Options: r.Options, Created: time.Now().UTC()}, users: map[string]bool{}}
	data := filepath.Join(s.dir, r.Name, "_data")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return Volume{}, errdefs.New(kindOf(err), "create", object(r.Name), err)
	}
	// The parent keeps other users of the machine out of set-uid files.
	if err := os.Chmod(filepath.Join(s.dir, r.Name), 0o701); err != nil {
		return Volume{}, errdefs.New(kindOf(err), "create", object(r.Name), err)
	}
	if err := s.limitLocked(v, data); err != nil {
		os.RemoveAll(filepath.Join(s.dir, r.Name))
		return Volume{}, errdefs.New(errdefs.KindOf(err), "create", object(r.Name), err)
	}
	if err := s.db.Update(func(tx *metadb.Tx) error { return tx.Put(bucket, r.Name, v.record) }); err != nil {
		s.unlimit(v, data)
		os.RemoveAll(filepath.Join(s.dir, r.Name))
		return Volume{}, errdefs.New(kindOf(err), "create", object(r.Name), err)
	}
	s.vols[r.Name] = v
	s.bus.Emit(events.Volume, "create", r.Name, map[string]string{"driver": v.Driver})
	return s.describeLocked(r.Name, v), nil
}

func checkOptions(r CreateRequest) error {
	for k := range r.Options {
		if !slices.Contains([]string{"type", "o", "device", "size"}, k) {
			return errdefs.Newf(errdefs.Invalid, "create", object(r.Name), "invalid option: %q: the local driver has type, o, device, size", k)
		}
	}
	if size := r.Options["size"]; size != "" {
		if n, err := units.RAMInBytes(size); err != nil || n <= 0 {
			return errdefs.Newf(errdefs.Invalid, "create", object(r.Name), "the size %q is not like 10m or 2g", size)
		}
		if r.Options["type"] != "" || r.Options["device"] != "" || r.Options["o"] != "" {
			return errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "create", object(r.Name), "the option size is for volumes that are not mounted"), "for a tmpfs: --opt type=tmpfs --opt o=size="+size)
		}
	}
	if r.Options["type"] != "tmpfs" && !strings.Contains(r.Options["o"], "bind") {
		for have, want := range map[string]string{"type": "device", "device": "type"} {
			if r.Options[have] != "" && r.Options[want] == "" {
				return errdefs.Newf(errdefs.Invalid, "create", object(r.Name), "missing required option: %q", want)
			}
		}
	}
	return nil
}

func kindOf(err error) errdefs.Kind {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return errdefs.Exhausted
	}
	return errdefs.KindOf(err)
}

func (s *Service) describeLocked(name string, v *live) Volume {
	return Volume{Name: name, Driver: v.Driver, Mountpoint: filepath.Join(s.dir, name, "_data"), Scope: "local",
		Labels: maps.Clone(v.Labels), Options: maps.Clone(v.Options), Created: v.Created}
}

func (s *Service) find(name string) (*live, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.vols[name]
	if v == nil {
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "", "", "get %s: no such volume", name), "onggi volume ls")
	}
	return v, nil
}

// Get describes a volume.
func (s *Service) Get(name string) (Volume, error) {
	v, err := s.find(name)
	if err != nil {
		return Volume{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.describeLocked(name, v), nil
}

// List describes the volumes that match filters: name, driver, label, dangling.
func (s *Service) List(filters map[string][]string) ([]Volume, error) {
	for k := range filters {
		if !slices.Contains([]string{"name", "driver", "label", "dangling"}, k) {
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "invalid filter '%s'", k)
		}
	}
	for _, v := range filters["dangling"] {
		if !slices.Contains([]string{"true", "false", "1", "0"}, v) {
			return nil, errdefs.Newf(errdefs.Invalid, "", "", "invalid filter 'dangling=%.50s'", v)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Volume
	for name, v := range s.vols {
		if matches(name, v, filters) {
			out = append(out, s.describeLocked(name, v))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out, nil
}

func matches(name string, v *live, filters map[string][]string) bool {
	if names := filters["name"]; len(names) > 0 && !slices.ContainsFunc(names, func(n string) bool { return strings.Contains(name, n) }) {
		return false
	}
	if ds := filters["driver"]; len(ds) > 0 && !slices.Contains(ds, v.Driver) {
		return false
	}
	if d := filters["dangling"]; len(d) > 0 {
		unused := len(v.users) == 0
		if want := d[0] == "true" || d[0] == "1"; want != unused {
			return false
		}
	}
	return hasLabels(v.Labels, filters["label"])
}

func hasLabels(have map[string]string, want []string) bool {
	for _, l := range want {
		k, val, exact := strings.Cut(l, "=")
		got, ok := have[k]
		if !ok || exact && got != val {
			return false
		}
	}
	return true
}

// Remove forgets a volume and deletes its directory. With force one that does
// not exist is no error.
func (s *Service) Remove(ctx context.Context, name string, force bool) error {
	v, err := s.find(name)
	if err != nil {
		if force {
			return nil
		}
		return err
	}
	v.mounting.Lock()
	defer v.mounting.Unlock()
	s.mu.Lock()
	if n := len(v.users); n > 0 {
		users := slices.Sorted(maps.Keys(v.users))
		s.mu.Unlock()
		for i := range users {
			users[i] = users[i][:min(12, len(users[i]))]
		}
		return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "remove", object(name), "volume is in use - [%s]", strings.Join(users, ", ")), "onggi rm the containers first")
	}
	if err := s.db.Update(func(tx *metadb.Tx) error { return tx.Delete(bucket, name) }); err != nil {
		s.mu.Unlock()
		return errdefs.New(kindOf(err), "remove", object(name), err)
	}
	delete(s.vols, name)
	s.mu.Unlock()
	s.unlimit(v, filepath.Join(s.dir, name, "_data"))
	if err := linux.DetachMount(filepath.Join(s.dir, name, "_data")); err != nil {
		return errdefs.New(errdefs.Internal, "remove", object(name), err)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, name)); err != nil {
		return errdefs.New(errdefs.Internal, "remove", object(name), err)
	}
	s.bus.Emit(events.Volume, "destroy", name, map[string]string{"driver": v.Driver})
	return nil
}

// Mount gives the directory of a volume to a container, which uses it until
// Unmount.
func (s *Service) Mount(ctx context.Context, name, containerID string) (string, error) {
	v, err := s.find(name)
	if err != nil {
		return "", err
	}
	data := filepath.Join(s.dir, name, "_data")
	v.mounting.Lock()
	defer v.mounting.Unlock()
	if v.mounted() && !isMount(data) {
		if err := mountOptions(ctx, v.Options, data); err != nil {
			return "", errdefs.New(errdefs.KindOf(err), "mount", object(name), err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.vols[name] != v {
		return "", errdefs.Newf(errdefs.NotFound, "mount", object(name), "it was removed meanwhile")
	}
	v.users[containerID] = true
	return data, nil
}

// Unmount ends a container's use.
func (s *Service) Unmount(ctx context.Context, name, containerID string) error {
	v, err := s.find(name)
	if err != nil {
		return nil
	}
	v.mounting.Lock()
	defer v.mounting.Unlock()
	s.mu.Lock()
	delete(v.users, containerID)
	idle := len(v.users) == 0
	s.mu.Unlock()
	if idle && v.mounted() {
		return linux.DetachMount(filepath.Join(s.dir, name, "_data"))
	}
	return nil
}

// mounted reports whether the volume is a mount, by its options.
func (r record) mounted() bool { return r.Options["type"] != "" || r.Options["device"] != "" }

// isMount reports whether dir is on another file system than its parent, or a
// bind.
func isMount(dir string) bool {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for _, line := range strings.Split(string(data), "\n") {
		if f := strings.Fields(line); len(f) > 4 && f[4] == dir {
			return true
		}
	}
	return false
}

// CopyUp fills an empty volume, or the directory sub of it, with what is at
// path below root. Nothing there, or a volume that has something, is no error.
func (s *Service) CopyUp(ctx context.Context, name string, root *os.File, path, sub string) error {
	v, err := s.find(name)
	if err != nil {
		return err
	}
	v.mounting.Lock()
	defer v.mounting.Unlock()
	dst, err := os.Open(filepath.Join(s.dir, name, "_data"))
	if err == nil && sub != "" {
		whole := dst
		defer whole.Close()
		dst, err = linux.OpenDirInRoot(whole, sub)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil // who mounts it will say so
	}
	if err != nil {
		return errdefs.New(errdefs.Internal, "fill", object(name), err)
	}
	defer dst.Close()
	if entries, err := dst.ReadDir(1); err != io.EOF || len(entries) > 0 {
		if err == io.EOF {
			err = nil
		}
		return err
	}
	fi, _, err := linux.StatInRoot(root, path, true)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !fi.IsDir() {
		return nil
	}
	if err != nil {
		return errdefs.New(errdefs.Internal, "fill", object(name), err)
	}
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(layer.Archive(ctx, w, root, path, layer.ArchiveOptions{Name: ".", Follow: true}))
	}()
	err = layer.Extract(ctx, r, dst, "/", layer.ExtractOptions{})
	r.CloseWithError(err)
	if err == nil { // the directory itself is not in the archive
		if st, ok := fi.Sys().(*syscall.Stat_t); ok {
			err = dst.Chown(int(st.Uid), int(st.Gid))
		}
		if err == nil {
			err = dst.Chmod(fi.Mode())
		}
	}
	if err != nil {
		return errdefs.New(kindOf(err), "fill", object(name), err)
	}
	return nil
}

// Size is what a volume takes on the disk, in bytes.
func (s *Service) Size(name string) (int64, error) {
	if _, err := s.find(name); err != nil {
		return 0, err
	}
	var n int64
	err := filepath.WalkDir(filepath.Join(s.dir, name, "_data"), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // containers remove files meanwhile
		}
		if fi, err := d.Info(); err == nil && fi.Mode().IsRegular() {
			n += fi.Size()
		}
		return nil
	})
	return n, err
}

// Prune removes volumes that no container has: those without a name of their
// own, or all of them with the filter all=true.
func (s *Service) Prune(ctx context.Context, o PruneOptions) (names []string, freed int64, err error) {
	for k := range o.Filters {
		if !slices.Contains([]string{"label", "label!", "all"}, k) {
			return nil, 0, errdefs.Newf(errdefs.Invalid, "", "", "invalid filter '%s'", k)
		}
	}
	all := len(o.Filters["all"]) > 0 && (o.Filters["all"][0] == "true" || o.Filters["all"][0] == "1")
	list, err := s.List(nil)
	if err != nil {
		return nil, 0, err
	}
	for _, v := range list {
		if err := ctx.Err(); err != nil {
			return names, freed, err
		}
		_, anonymous := v.Labels[AnonymousLabel]
		unwanted := len(o.Filters["label!"]) > 0 && hasLabels(v.Labels, o.Filters["label!"])
		if !all && !anonymous || !hasLabels(v.Labels, o.Filters["label"]) || unwanted || o.InUse != nil && o.InUse(v.Name) {
			continue
		}
		size, _ := s.Size(v.Name)
		err := s.Remove(ctx, v.Name, true)
		if errdefs.Is(err, errdefs.Conflict) {
			continue
		}
		if err != nil {
			return names, freed, err
		}
		names, freed = append(names, v.Name), freed+size
	}
	return names, freed, nil
}
