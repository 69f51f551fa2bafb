package build

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/cache/remotecache"
	inlinecache "github.com/moby/buildkit/cache/remotecache/inline"
	localcache "github.com/moby/buildkit/cache/remotecache/local"
	registrycache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/session"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/tracing/detect"
	"github.com/moby/buildkit/version"
	bkworker "github.com/moby/buildkit/worker"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/onggi/onggi/internal/build/blobs"
	"github.com/onggi/onggi/internal/build/hostdir"
	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/build/why"
	"github.com/onggi/onggi/internal/build/worker"
)

// namespace is containerd's notion; everything of ours is in this one.
const namespace = "onggi"

// parts are what a core is made of, in terms that tests can fill in.
type parts struct {
	root      string
	records   func(bucket string) refs.Records
	snapshots refs.Snapshots
	layers    refs.Layers
	mounter   refs.Mounter
	executor  executor.Executor
	images    worker.Images
	hosts     docker.RegistryHosts
	gateway   func() netip.Addr // what clients call host-gateway; may be nil
	policy    Policy
	building  func() (done func()) // may be nil
	// unpack extracts a build context.
	unpack func(ctx context.Context, r io.Reader, dir string) error
	disk   func() (total, free int64, err error)
	logger *slog.Logger
}

// core is BuildKit, wired.
type core struct {
	p        parts
	refs     *refs.Store
	blobs    *blobs.Store
	sessions *session.Manager
	control  *control.Controller
	worker   *worker.Worker
	dirs     hostdir.Dirs
	explain  *why.Recorder // nil: nothing is explained
	prompt   prompt
	stop     chan struct{}
}

var _ controlapi.ControlServer = (*control.Controller)(nil)

func newCore(ctx context.Context, p parts) (_ *core, err error) {
	if p.logger == nil {
		p.logger = slog.New(slog.DiscardHandler)
	}
	quietBuildKit(p.logger)
	version.Version = buildKitVersion()
	if err := os.MkdirAll(p.root, 0o700); err != nil {
		return nil, err
	}
	if err := dropAfterCrash(p); err != nil {
		return nil, err
	}
	c := &core{p: p, stop: make(chan struct{})}
	var closers []func() error
	defer func() {
		if err != nil {
			for _, f := range closers {
				err = errors.Join(err, f())
			}
		}
	}()
	if c.explain, err = why.New(filepath.Join(p.root, "explain")); err != nil {
		return nil, err
	}
	c.blobs, err = blobs.Open(filepath.Join(p.root, "blobs"), p.records("build-blobs"), p.records("build-leases"))
	if err != nil {
		return nil, err
	}
	leases := blobs.Leases{S: c.blobs}
	store := containerdsnapshot.NewContentStore(c.blobs, namespace)
	lm := leaseutil.WithNamespace(leases, namespace)
	if c.sessions, err = session.NewManager(); err != nil {
		return nil, err
	}
	c.refs, err = refs.Open(ctx, refs.Options{
		Root: p.root, Records: p.records("build-refs"), Snapshots: p.snapshots, Layers: p.layers, Mounter: p.mounter,
		Content: c.blobs,
		Lease:   func(ctx context.Context, id string, d digest.Digest) { leases.Keep(ctx, id, d) },
		Unlease: func(ctx context.Context, id string) { leases.Forget(ctx, id) },
		Free: func() (int64, error) {
			_, free, err := p.disk()
			return free, err
		},
		Shared: p.snapshots.Exists,
		Fetch:  worker.Fetch(p.hosts, c.sessions),
		Logger: p.logger,
	})
	if err != nil {
		return nil, err
	}
	closers = append(closers, c.refs.Close)
	id, err := workerID(p.root)
	if err != nil {
		return nil, err
	}
	collect := func(context.Context) error { c.blobs.Sweep(); return nil }
	labels := map[string]string{
		"org.mobyproject.buildkit.worker.executor": "onggi",
		// Clients take this one to mean that every exporter is there.
		"org.mobyproject.buildkit.worker.snapshotter": "overlayfs",
	}
	if p.gateway != nil {
		if a := p.gateway(); a.IsValid() {
			labels["org.mobyproject.buildkit.worker.moby.host-gateway-ip"] = a.String()
		}
	}
	c.worker, err = worker.New(worker.Options{
		ID: id, Root: p.root, Refs: c.refs, Executor: p.executor, Content: store, Leases: lm, Images: p.images, Dirs: &c.dirs, Explain: c.explain, Exported: c.prompt.exported,
		RegistryHosts: p.hosts, Platforms: machinePlatforms(), GCPolicy: p.policy.gc(p.disk), Collect: collect, Logger: p.logger,
		Labels: labels,
	})
	if err != nil {
		return nil, err
	}
	wc := &bkworker.Controller{}
	if err := wc.Add(c.worker); err != nil {
		return nil, err
	}
	front, err := worker.Frontends(wc.Infos())
	if err != nil {
		return nil, err
	}
	keys, err := openKeys(filepath.Join(p.root, "cache.db"))
	if err != nil {
		return nil, err
	}
	closers = append(closers, keys.Close)
	past, err := boltutil.Open(filepath.Join(p.root, "history.db"), 0o600, &bolt.Options{
		NoSync: true, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, Timeout: 5 * time.Second,
	})
	if err != nil {
		return nil, err
	}
	closers = append(closers, past.Close)
	tracer()
	c.control, err = control.NewController(control.Opt{
		TraceCollector:   detect.Recorder,
		SessionManager:   c.sessions,
		WorkerController: wc,
		Frontends:        front,
		CacheManager:     solver.NewCacheManager(ctx, "local", keys, bkworker.NewCacheResultStorage(wc)),
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{
			"inline":   inlinecache.ResolveCacheExporterFunc(),
			"local":    localcache.ResolveCacheExporterFunc(c.sessions),
			"registry": registrycache.ResolveCacheExporterFunc(c.sessions, p.hosts),
		},
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{
			"local":    localcache.ResolveCacheImporterFunc(c.sessions),
			"registry": registrycache.ResolveCacheImporterFunc(c.sessions, store, p.hosts),
		},
		Entitlements:   p.policy.entitlements(),
		HistoryDB:      past,
		CacheStore:     keys,
		LeaseManager:   lm,
		ContentStore:   store,
		HistoryConfig:  p.policy.history(),
		GarbageCollect: collect,
		GracefulStop:   c.stop,
	})
	return c, err
}

// close ends what runs, and waits.
func (c *core) close() error {
	close(c.stop)
	c.prompt.ending.Wait()
	err := c.control.Close()
	c.explain.Close()
	return errors.Join(err, c.refs.Close(), markClean(c.p.root))
}

// openKeys opens the solver's cache of keys, or begins a new one where the old
// one cannot be read.
func openKeys(path string) (*bboltcachestorage.Store, error) {
	s, err := bboltcachestorage.NewStore(path)
	if err == nil {
		return s, nil
	}
	if rerr := os.Remove(path); rerr != nil {
		return nil, err
	}
	return bboltcachestorage.NewStore(path)
}

// machinePlatforms lists what the machine can run, its own first.
func machinePlatforms() []ocispecs.Platform {
	own := platforms.Normalize(platforms.DefaultSpec())
	out := []ocispecs.Platform{own}
	for _, p := range archutil.SupportedPlatforms(true) {
		if !platforms.OnlyStrict(own).Match(p) {
			out = append(out, p)
		}
	}
	return out
}

// workerID is part of every key's result, so it is kept.
func workerID(root string) (string, error) {
	p := filepath.Join(root, "workerid")
	b, err := os.ReadFile(p)
	if err == nil && len(b) > 0 {
		return string(b), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := strings.ToLower(rand.Text())
	return id, os.WriteFile(p, []byte(id), 0o600)
}

// bootMark says which boot of the kernel used the directory, and whether it
// was closed.
type bootMark struct {
	Boot  string
	Clean bool
}

func bootID() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

// dropAfterCrash forgets what a power cut may have torn: files are not synced,
// so only a boot that ended with a clean close, or this very boot, can vouch
// for them.
func dropAfterCrash(p parts) error {
	path := filepath.Join(p.root, "boot")
	var m bootMark
	if b, err := os.ReadFile(path); err == nil {
		if json.Unmarshal(b, &m) != nil {
			m = bootMark{Boot: "unreadable"}
		}
	}
	if m.Boot != "" && m.Boot != bootID() && !m.Clean {
		p.logger.Warn("the machine went down uncleanly; dropping the build cache's keys, history and blobs")
		for _, f := range []string{"cache.db", "history.db", "blobs", "ext"} {
			if err := os.RemoveAll(filepath.Join(p.root, f)); err != nil {
				return err
			}
		}
		for _, b := range []string{"build-blobs", "build-leases"} {
			r := p.records(b)
			if err := r.Each(func(key string, _ json.RawMessage) error { return r.Delete(key) }); err != nil {
				return err
			}
		}
	}
	return writeMark(path, bootMark{Boot: bootID()})
}

// markClean is called after the databases are closed. Their pages are in the
// page cache; an orderly shutdown of the machine writes them out.
func markClean(root string) error {
	return writeMark(filepath.Join(root, "boot"), bootMark{Boot: bootID(), Clean: true})
}

func writeMark(path string, m bootMark) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
