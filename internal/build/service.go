package build

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
	"golang.org/x/net/http2"
	"google.golang.org/grpc"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
)

// Service builds images. Its parts are made when they are first needed.
type Service struct {
	make func(context.Context) (*core, error)

	mu     sync.Mutex
	built  *core        // guarded by mu
	server *grpc.Server // guarded by mu
	closed bool         // guarded by mu

	running running
	uploads uploads
}

// core returns BuildKit's parts, and makes them at the first call.
func (s *Service) core(ctx context.Context) (*core, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.coreLocked(ctx)
}

func (s *Service) coreLocked(ctx context.Context) (*core, error) {
	if s.closed {
		return nil, errdefs.Newf(errdefs.Unavailable, "build", "", "the engine is shutting down")
	}
	if s.built == nil {
		// What is made here outlives the request.
		c, err := s.make(context.WithoutCancel(ctx))
		if err != nil {
			return nil, err
		}
		s.built = c
	}
	return s.built, nil
}

// RegisterGRPC puts BuildKit's services (Control, LLBBridge, traces, content)
// on a server. It makes the parts; a server of GRPC's own is better, since it
// also passes typed errors.
func (s *Service) RegisterGRPC(srv *grpc.Server) error {
	c, err := s.core(context.Background())
	if err != nil {
		return err
	}
	c.control.Register(srv)
	return nil
}

// GRPC returns the server with BuildKit's services, made at the first call. It
// is an http.Handler for HTTP/2 requests of content type application/grpc.
func (s *Service) GRPC(ctx context.Context) (*grpc.Server, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, err := s.coreLocked(ctx)
	if err != nil {
		return nil, err
	}
	if s.server == nil {
		s.server = newServer(c)
		c.control.Register(s.server)
	}
	return s.server, nil
}

// ServeGRPC speaks gRPC on a connection that was upgraded to h2c (POST /grpc).
// It returns when the client is gone.
func (s *Service) ServeGRPC(ctx context.Context, conn net.Conn) error {
	srv, err := s.GRPC(ctx)
	if err != nil {
		conn.Close()
		return err
	}
	h2 := &http2.Server{}
	h2.ServeConn(conn, &http2.ServeConnOpts{Context: ctx, Handler: srv, BaseConfig: &http.Server{}})
	return conn.Close()
}

// HandleSession speaks with a client's session (POST /session) until it ends.
// The headers are the request's.
func (s *Service) HandleSession(ctx context.Context, conn net.Conn, headers map[string][]string) error {
	c, err := s.core(ctx)
	if err != nil {
		conn.Close()
		return err
	}
	return c.sessions.HandleConn(ctx, conn, headers)
}

// maxDirectories bounds the message that names directories.
const maxDirectories = 64 << 10

// TakeDirectories receives the directories of a client's build session, with
// one message: {"Session": id, "Names": [...]} and as many descriptors. It keeps
// them until the client hangs up.
func (s *Service) TakeDirectories(ctx context.Context, conn *net.UnixConn) error {
	defer conn.Close()
	c, err := s.core(ctx)
	if err != nil {
		return err
	}
	buf := make([]byte, maxDirectories)
	n, files, err := linux.ReceiveFiles(conn, buf)
	if err != nil {
		return err
	}
	var q struct {
		Session string
		Names   []string
	}
	dirs := map[string]*os.File{}
	if err = json.Unmarshal(buf[:n], &q); err == nil && (q.Session == "" || len(q.Names) != len(files)) {
		err = errdefs.Newf(errdefs.Invalid, "take over", "build directories", "%d names came with %d descriptors", len(q.Names), len(files))
	}
	forget := func() {}
	if err == nil {
		for i, name := range q.Names {
			dirs[name] = files[i]
		}
		if len(dirs) != len(files) {
			err = errdefs.Newf(errdefs.Invalid, "take over", "build directories", "a name came twice")
		} else {
			forget, err = c.dirs.Give(q.Session, dirs)
		}
	}
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return err
	}
	defer forget()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.worker.WalkAhead(ctx, q.Session)
	if _, err := io.WriteString(conn, "taken\n"); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	conn.Read(buf[:1]) // nothing more comes; it ends with the client
	return nil
}

// PruneRequest says which cache to remove.
type PruneRequest struct {
	All           bool
	Filters       []string // in BuildKit's form: type==source.local
	KeepDuration  time.Duration
	ReservedSpace int64
	MaxUsedSpace  int64
	MinFreeSpace  int64
}

// Pruned is what was removed.
type Pruned struct {
	IDs            []string
	SpaceReclaimed int64
}

// Prune removes build cache that is not in use.
func (s *Service) Prune(ctx context.Context, r PruneRequest) (Pruned, error) {
	c, err := s.core(ctx)
	if err != nil {
		return Pruned{}, err
	}
	ch := make(chan client.UsageInfo)
	errs := make(chan error, 1)
	go func() {
		errs <- c.worker.Prune(ctx, ch, client.PruneInfo{
			All: r.All, Filter: r.Filters, KeepDuration: r.KeepDuration,
			ReservedSpace: r.ReservedSpace, MaxUsedSpace: r.MaxUsedSpace, MinFreeSpace: r.MinFreeSpace,
		})
		close(ch)
	}()
	var p Pruned
	for u := range ch {
		p.IDs = append(p.IDs, u.ID)
		p.SpaceReclaimed += u.Size
	}
	return p, <-errs
}

// CacheRecord is one entry of the build cache.
type CacheRecord = client.UsageInfo

// DiskUsage lists the build cache.
func (s *Service) DiskUsage(ctx context.Context, filters ...string) ([]*CacheRecord, error) {
	c, err := s.core(ctx)
	if err != nil {
		return nil, err
	}
	return c.worker.DiskUsage(ctx, client.DiskUsageInfo{Filter: filters})
}

// Close ends what runs. Builds under way fail.
func (s *Service) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.running.cancelAll()
	if s.server != nil {
		s.server.Stop()
	}
	if s.built == nil {
		return nil
	}
	c := s.built
	s.built = nil
	return c.close()
}

// running are the classic builds that can be cancelled by their id.
type running struct {
	mu sync.Mutex
	m  map[string]context.CancelCauseFunc // guarded by mu
}

func (r *running) add(id string, cancel context.CancelCauseFunc) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m[id] != nil {
		return errdefs.Newf(errdefs.Conflict, "build", "build "+id, "a build with this id is running")
	}
	if r.m == nil {
		r.m = map[string]context.CancelCauseFunc{}
	}
	r.m[id] = cancel
	return nil
}

func (r *running) remove(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.m, id)
}

func (r *running) cancel(id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if f := r.m[id]; f != nil {
		f(context.Canceled)
	}
	return nil // a build that has ended is what was asked for
}

func (r *running) cancelAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.m {
		f(context.Canceled)
	}
}

// fullName writes an image name with registry and tag.
func fullName(name string) (string, error) {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return "", err
	}
	return reference.TagNameOnly(n).String(), nil
}

// shownName is the short form of an image name.
func shownName(name string) string {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return name
	}
	return strings.TrimSpace(reference.FamiliarString(reference.TagNameOnly(n)))
}
