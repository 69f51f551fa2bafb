package container

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/monitor"
	"github.com/onggi/onggi/internal/network"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/volume"
)

// Snapshots is what this package needs of the snapshot store.
type Snapshots interface {
	Prepare(ctx context.Context, key, parent string) error
	View(ctx context.Context, key, parent string) error
	Remove(ctx context.Context, key string) error
	Usage(ctx context.Context, key string) (bytes, inodes int64, err error)
	Dirs(key string) (snapshot.Dirs, error)
	MountFD(ctx context.Context, key string, o snapshot.MountOptions) (*os.File, error)
}

// Images is what this package needs of the image service.
type Images interface {
	Get(nameOrID string) (image.Image, error)
	GetFor(nameOrID string, p *ocispec.Platform) (image.Image, error)
	List(o image.ListOptions) ([]image.Image, error)
	Commit(ctx context.Context, r image.CommitRequest) (image.Image, error)
}

// Networks is what this package needs of the network service.
type Networks interface {
	Attach(ctx context.Context, r network.SandboxRequest) (network.Sandbox, error)
	Release(ctx context.Context, containerID string) error
	Restore(ctx context.Context, running []network.SandboxRequest) error
	Connect(ctx context.Context, containerID string, e network.EndpointRequest) (network.Sandbox, error)
	Disconnect(ctx context.Context, containerID, nameOrID string, force bool) (network.Sandbox, error)
	Rename(ctx context.Context, containerID, name string) (network.Sandbox, error)
	SetLinks(ctx context.Context, containerID string, links []network.Link) (network.Sandbox, error)
	Sandbox(containerID string) (network.Sandbox, bool)
}

// Volumes is what this package needs of the volume service.
type Volumes interface {
	Create(ctx context.Context, r volume.CreateRequest) (volume.Volume, error)
	Get(name string) (volume.Volume, error)
	Mount(ctx context.Context, name, containerID string) (string, error)
	Unmount(ctx context.Context, name, containerID string) error
	Remove(ctx context.Context, name string, force bool) error
	CopyUp(ctx context.Context, name string, root *os.File, path, sub string) error
}

// Monitor is what this package needs of the monitor.
type Monitor interface {
	Start(ctx context.Context, r monitor.StartRequest) (*monitor.Started, error)
	Attach(ctx context.Context, k monitor.Key, a monitor.AttachSpec) error
	Resize(ctx context.Context, k monitor.Key, width, height uint16) error
	Signal(ctx context.Context, k monitor.Key, sig int) error
	List(ctx context.Context) ([]monitor.Running, error)
	Ack(ctx context.Context, k monitor.Key) error
	Events() <-chan monitor.Event
}

// Options of a Service. All but Logger are needed.
type Options struct {
	Root      string // <data-root>/containers
	ExecRoot  string
	DB        *metadb.DB
	Snapshots Snapshots
	Images    Images
	Networks  Networks
	Volumes   Volumes
	Monitor   Monitor
	Events    *events.Bus
	Defaults  Defaults
	// CgroupOptions say how groups are made (directly, or by systemd).
	CgroupOptions cgroup.Options
	// CDIDirs are where device specifications are, the later ones winning.
	CDIDirs []string
	// Socket is the engine's own, which a container gets for Docker's where there
	// is none of Docker's; "" = it has none.
	Socket string
	Logger *slog.Logger
}

// Service keeps all containers of an engine.
type Service struct {
	o      Options
	log    *slog.Logger
	bootID string
	caps   int // capabilities that the kernel knows
	// maxFiles is our own limit of open files where we may not exceed it.
	maxFiles uint64

	mu     sync.RWMutex
	byID   map[string]*Container // guarded by mu
	byName map[string]string     // name → ID, reserved ones included; guarded by mu
	execs  map[string]*Exec      // guarded by mu

	projects sync.Mutex // held while a quota's number is chosen

	work sync.WaitGroup // goroutines that Close waits for
	stop chan struct{}  // closed by Close
}

// Container is one container in memory.
type Container struct {
	id    string        // immutable
	token chan struct{} // holds one value; who takes it may change the container

	mu       sync.Mutex
	rec      *Record       // the value is immutable; guarded by mu
	st       Status        // guarded by mu
	run      *run          // what the current run holds, nil if none; guarded by mu
	pending  []*attachment // clients that came before the start; guarded by mu
	greeted  int           // clients that were told of their stream, and are not in pending yet; guarded by mu
	health   *healthState  // guarded by mu
	timer    *time.Timer   // the restart that is armed; guarded by mu
	early    *monitor.Event
	exits    uint64            // how often it ended; guarded by mu
	changed  chan struct{}     // closed and replaced at every change; guarded by mu
	etc      map[string][]byte // what we wrote to files of /etc; guarded by mu, what it holds by token
	execs    map[string]*Exec
	shipping *shipping // of the log to another program; guarded by mu
}

func newContainer(r *Record, st Status) *Container {
	c := &Container{id: r.ID, rec: r, st: st, token: make(chan struct{}, 1), changed: make(chan struct{}), execs: map[string]*Exec{}}
	c.token <- struct{}{}
	return c
}

// New loads the records. Call Restore before serving anybody.
func New(o Options) (*Service, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	s := &Service{o: o, log: o.Logger, byName: map[string]string{}, execs: map[string]*Exec{}, stop: make(chan struct{})}
	s.bootID = readWord("/proc/sys/kernel/random/boot_id")
	s.caps = len(allCaps)
	if n, err := strconv.Atoi(readWord("/proc/sys/kernel/cap_last_cap")); err == nil {
		s.caps = n + 1
	}
	s.maxFiles = ownFileLimit()
	if err := os.MkdirAll(o.Root, 0o700); err != nil {
		return nil, err
	}
	if err := makeStubs(s.stubs()); err != nil {
		return nil, err
	}
	err := o.DB.View(func(tx *metadb.Tx) (err error) {
		s.byID, err = loadRecords(tx, func(id string, err error) {
			s.log.Error("container record cannot be read, and is left alone", "container", id, "error", err)
		})
		return err
	})
	if err != nil {
		return nil, err
	}
	for id, c := range s.byID {
		if other, dup := s.byName[c.rec.Name]; dup {
			s.log.Error("two containers have one name", "name", c.rec.Name, "one", other, "other", id)
		}
		s.byName[c.rec.Name] = id
	}
	return s, nil
}

func readWord(file string) string {
	b, _ := os.ReadFile(file)
	return strings.TrimSpace(string(b))
}

// ownFileLimit is the hard limit of open files that binds us, or 0 where we
// may raise it.
func ownFileLimit() uint64 {
	const capSysResource = 24
	for line := range strings.Lines(readWord("/proc/self/status")) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			if caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64); err == nil && caps>>capSysResource&1 == 1 {
				return 0
			}
		}
	}
	for line := range strings.Lines(readWord("/proc/self/limits")) {
		if v, ok := strings.CutPrefix(line, "Max open files"); ok {
			if f := strings.Fields(v); len(f) > 1 {
				n, _ := strconv.ParseUint(f[1], 10, 64)
				return n
			}
		}
	}
	return 0
}

// find resolves an ID, a name or an unambiguous beginning of an ID.
func (s *Service) find(op, ref string) (*Container, error) {
	name := strings.TrimPrefix(ref, "/")
	if name == "" {
		return nil, errdefs.Newf(errdefs.Invalid, op, "container", "no name or ID given")
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if c := s.byID[name]; c != nil {
		return c, nil
	}
	if c := s.byID[s.byName[name]]; c != nil {
		return c, nil
	}
	if parent, alias, ok := strings.Cut(name, "/"); ok { // the name of a link
		if c := s.byID[s.byName[parent]]; c != nil {
			rec, _ := c.view()
			for _, l := range linksOf(rec) {
				if l.Alias == alias && s.byID[l.Target] != nil {
					return s.byID[l.Target], nil
				}
			}
		}
	}
	var found *Container
	for id, c := range s.byID {
		if strings.HasPrefix(id, name) {
			if found != nil {
				return nil, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "multiple IDs found with provided prefix: %s", clip(name)), "give more digits of the ID")
			}
			found = c
		}
	}
	if found == nil {
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "", "", "No such container: %s", clip(name)), "list all containers with: onggi ps -a")
	}
	return found, nil
}

// all returns the containers, in no order.
func (s *Service) all() []*Container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]*Container, 0, len(s.byID))
	for _, c := range s.byID {
		out = append(out, c)
	}
	return out
}

// lock takes the container's token, or gives up with the context.
func (c *Container) lock(ctx context.Context) (unlock func(), err error) {
	select {
	case <-c.token:
		return func() { c.token <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// view returns the record and status as they are now.
func (c *Container) view() (*Record, Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec, c.st
}

// move applies an event to the state, and edit to the status, and returns what
// has to be done.
func (c *Container) move(e Event, edit func(*Status)) ([]Action, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.moveLocked(e, edit)
}

// moveLocked is move. Preconditions: c.mu is held.
func (c *Container) moveLocked(e Event, edit func(*Status)) ([]Action, error) {
	next, acts, err := Next(c.st.State, e)
	if err != nil {
		return nil, errdefs.New(errdefs.Conflict, "", quote("container", c.rec.Name), err)
	}
	c.st.State = next
	if edit != nil {
		edit(&c.st)
	}
	c.wakeLocked()
	return acts, nil
}

// wakeLocked tells those who wait for a change. Preconditions: c.mu is held.
func (c *Container) wakeLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// save writes the status as it is now.
func (s *Service) save(c *Container) error {
	return s.o.DB.Update(func(tx *metadb.Tx) error {
		c.mu.Lock()
		st := c.st
		c.mu.Unlock()
		if st.State == Gone {
			return nil
		}
		return putStatus(tx, c.id, st)
	})
}

// until waits until f is true of the container, and returns what f saw.
func (c *Container) until(ctx context.Context, f func() bool) error {
	for {
		c.mu.Lock()
		ok, changed := f(), c.changed
		c.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (s *Service) dir(id string) string { return filepath.Join(s.o.Root, id) }

func (s *Service) key(c *Container) monitor.Key { return monitor.Key{Container: c.id} }

// emit publishes an event of a container with its labels, image and name.
func (s *Service) emit(c *Container, action events.Action, extra map[string]string) {
	c.mu.Lock()
	rec := c.rec
	c.mu.Unlock()
	s.emitRecord(rec, action, extra)
}

func (s *Service) emitRecord(rec *Record, action events.Action, extra map[string]string) {
	attrs := make(map[string]string, len(rec.Config.Labels)+2+len(extra))
	for k, v := range rec.Config.Labels {
		attrs[k] = v
	}
	attrs["image"], attrs["name"] = rec.Config.Image, rec.Name
	for k, v := range extra {
		attrs[k] = v
	}
	s.o.Events.Emit(events.Container, action, rec.ID, attrs)
}

// background runs f in a goroutine that Close waits for.
func (s *Service) background(f func(ctx context.Context)) {
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		go func() {
			select {
			case <-s.stop:
				cancel()
			case <-ctx.Done():
			}
		}()
		f(ctx)
	}()
}

// Close stops health checks, restarts and the watching of exits. Containers go
// on running.
func (s *Service) Close() {
	select {
	case <-s.stop:
		return
	default:
		close(s.stop)
	}
	for _, c := range s.all() {
		c.mu.Lock()
		if c.timer != nil {
			c.timer.Stop()
		}
		if c.health != nil {
			c.health.cancel()
		}
		c.mu.Unlock()
	}
	s.work.Wait()
	s.awaitShippings()
}
