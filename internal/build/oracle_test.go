package build

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/diff/apply"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	ctdmount "github.com/containerd/containerd/v2/core/mount"
	ctdsnapshots "github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	bkexecutor "github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/resolver"
	bkworker "github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	bolt "go.etcd.io/bbolt"

	"github.com/onggi/onggi/internal/build/executor"
	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/build/worker"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/seccomp"
)

// newStockBuilder is BuildKit as it comes (its cache manager on containerd's
// overlay snapshotter, its sources and exporters) with our executor: what our
// own parts are compared with.
func newStockBuilder(t *testing.T, root string) *builder {
	t.Helper()
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	noSync := &bolt.Options{NoSync: true}
	openDB := func(name string) *bolt.DB {
		db, err := bolt.Open(filepath.Join(root, name), 0o600, noSync)
		must(err)
		return db
	}
	sn, err := overlay.NewSnapshotter(filepath.Join(root, "snapshots"))
	must(err)
	blobs, err := local.NewStore(filepath.Join(root, "content"))
	must(err)
	db := openDB("containerd.db")
	mdb := ctdmetadata.NewDB(db, blobs, map[string]ctdsnapshots.Snapshotter{"overlayfs": sn})
	must(mdb.Init(t.Context()))
	store := containerdsnapshot.NewContentStore(mdb.ContentStore(), namespace)
	md, err := metadata.NewStore(filepath.Join(root, "metadata.db"))
	must(err)
	exec, err := executor.New(executor.Options{Root: filepath.Join(root, "run"), CgroupParent: testGroup, Runtime: executor.OCI{},
		Seccomp: func(caps []string) *specs.LinuxSeccomp { return seccomp.Default(caps, "") }})
	must(err)
	lm := leaseutil.WithNamespace(ctdmetadata.NewLeaseManager(mdb), namespace)
	id, err := workerID(root)
	must(err)
	w, err := base.NewWorker(t.Context(), base.WorkerOpt{
		ID: id, Root: root, Platforms: machinePlatforms(),
		MetadataStore: md, ContentMetadata: openDB("unused.db"), Executor: stockExecutor{exec},
		Snapshotter:  containerdsnapshot.NewSnapshotter("overlayfs", mdb.Snapshotter("overlayfs"), namespace, nil),
		ContentStore: store, Applier: apply.NewFileSystemApplier(store), Differ: walking.NewWalkingDiff(store),
		RegistryHosts: resolver.NewRegistryConfig(nil), LeaseManager: lm, GarbageCollect: mdb.GarbageCollect,
		MountPoolRoot: filepath.Join(root, "cachemounts"),
	})
	must(err)
	sm, err := session.NewManager()
	must(err)
	wc := &bkworker.Controller{}
	must(wc.Add(w))
	front, err := worker.Frontends(wc.Infos())
	must(err)
	keys, err := bboltcachestorage.NewStore(filepath.Join(root, "cache.db"))
	must(err)
	none := int64(0)
	c := &core{sessions: sm, stop: make(chan struct{})}
	c.control, err = control.NewController(control.Opt{
		SessionManager: sm, WorkerController: wc, Frontends: front,
		CacheManager:              solver.NewCacheManager(t.Context(), "local", keys, bkworker.NewCacheResultStorage(wc)),
		ResolveCacheExporterFuncs: map[string]remotecache.ResolveCacheExporterFunc{},
		ResolveCacheImporterFuncs: map[string]remotecache.ResolveCacheImporterFunc{},
		Entitlements:              []string{"network.host", "security.insecure"},
		HistoryDB:                 openDB("history.db"), CacheStore: keys, LeaseManager: lm, ContentStore: store,
		HistoryConfig:  &config.HistoryConfig{MaxEntries: &none},
		GarbageCollect: func(context.Context) error { return nil },
		GracefulStop:   c.stop,
	})
	must(err)
	return serveControl(t, c, c.control.Close)
}

// stockExecutor shows our executor the mounts of BuildKit's own snapshots as
// if they were ours.
type stockExecutor struct{ *executor.Executor }

func (e stockExecutor) Run(ctx context.Context, id string, root bkexecutor.Mount, mounts []bkexecutor.Mount, p bkexecutor.ProcessInfo, started chan<- struct{}) (resourcestypes.Recorder, error) {
	var all attached
	defer all.detach()
	mine := []bkexecutor.Mount{{Src: all.wrap(root.Src), Dest: root.Dest, Readonly: root.Readonly, Selector: root.Selector}}
	for _, m := range mounts {
		m.Src = all.wrap(m.Src)
		mine = append(mine, m)
	}
	return e.Executor.Run(ctx, id, mine[0], mine[1:], p, started)
}

// attached are mounts that a step has in use.
type attached struct{ undo []func() error }

func (a *attached) detach() {
	for _, f := range a.undo {
		f()
	}
}

func (a *attached) wrap(m bkexecutor.Mountable) bkexecutor.Mountable { return lending{a, m} }

type lending struct {
	all *attached
	bkexecutor.Mountable
}

func (l lending) Mount(ctx context.Context, readonly bool) (bkexecutor.MountableRef, error) {
	m, err := l.Mountable.Mount(ctx, readonly)
	if err != nil {
		return nil, err
	}
	list, release, err := m.Mount()
	if err != nil {
		return nil, err
	}
	if len(list) == 1 && (list[0].Type == "tmpfs" || isFile(list[0])) {
		return fixed{list, release}, nil // the executor mounts it
	}
	lm := snapshot.LocalMounterWithMounts(list)
	dir, err := lm.Mount()
	if err != nil {
		return nil, errors.Join(err, release())
	}
	l.all.undo = append(l.all.undo, lm.Unmount, release)
	return opened{fixed{list, func() error { return nil }}, dir}, nil
}

func isFile(m ctdmount.Mount) bool {
	fi, err := os.Stat(m.Source)
	return err == nil && !fi.IsDir()
}

type fixed struct {
	list    []ctdmount.Mount
	release func() error
}

func (f fixed) Mount() ([]ctdmount.Mount, func() error, error) { return f.list, f.release, nil }
func (f fixed) IdentityMapping() *user.IdentityMapping         { return nil }

// opened is a mount as the executor wants it.
type opened struct {
	fixed
	dir string
}

var _ refs.Opener = opened{}

func (o opened) Path(context.Context) (string, error) { return o.dir, nil }
func (o opened) Open(context.Context) (*os.File, error) {
	d, err := os.Open(o.dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return linux.CloneTree(d, "", true)
}
