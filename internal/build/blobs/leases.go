package blobs

import (
	"context"
	"crypto/rand"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// lease is a lease as it is recorded.
type lease struct {
	Namespace string
	ID        string
	Created   time.Time
	Labels    map[string]string `json:",omitempty"`
	Blobs     map[string]bool   `json:",omitempty"`
}

// temporaryLabel marks what need not survive the engine; the name is BuildKit's.
const temporaryLabel = "buildkit/lease.temporary"

func (l *lease) temporary() bool { return l.Labels[temporaryLabel] != "" }

func (l *lease) expired(now time.Time) bool {
	t, err := time.Parse(time.RFC3339, l.Labels["containerd.io/gc.expire"])
	return err == nil && now.After(t)
}

func leaseKey(ns, id string) string { return ns + "/" + id }

// Leases is the store as a lease manager.
type Leases struct{ S *Store }

var _ leases.Manager = Leases{}

// Create implements leases.Manager.
func (m Leases) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	l := leases.Lease{CreatedAt: time.Now()}
	for _, f := range opts {
		if err := f(&l); err != nil {
			return l, err
		}
	}
	if l.ID == "" {
		l.ID = rand.Text()
	}
	ns, _ := namespaces.Namespace(ctx)
	key := leaseKey(ns, l.ID)
	s := m.S
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases[key] != nil {
		return leases.Lease{}, fmt.Errorf("lease %s: %w", l.ID, cerrdefs.ErrAlreadyExists)
	}
	s.leases[key] = &lease{Namespace: ns, ID: l.ID, Created: l.CreatedAt, Labels: maps.Clone(l.Labels), Blobs: map[string]bool{}}
	return l, s.saveLocked(key)
}

// saveLocked records a lease that has to survive the engine.
func (s *Store) saveLocked(key string) error {
	l := s.leases[key]
	if l == nil || l.temporary() {
		return nil
	}
	return s.leased.Put(key, l)
}

func (s *Store) addLocked(key string, d digest.Digest) {
	if l := s.leases[key]; l != nil && !l.Blobs[d.String()] {
		if l.Blobs == nil {
			l.Blobs = map[string]bool{}
		}
		l.Blobs[d.String()] = true
		s.saveLocked(key)
	}
}

// Delete implements leases.Manager. The blobs go with the next Sweep.
func (m Leases) Delete(ctx context.Context, l leases.Lease, _ ...leases.DeleteOpt) error {
	ns, _ := namespaces.Namespace(ctx)
	key := leaseKey(ns, l.ID)
	s := m.S
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.leases[key]
	if old == nil {
		return fmt.Errorf("lease %s: %w", l.ID, cerrdefs.ErrNotFound)
	}
	delete(s.leases, key)
	if old.temporary() {
		return nil
	}
	return s.leased.Delete(key)
}

// List implements leases.Manager.
func (m Leases) List(ctx context.Context, fs ...string) ([]leases.Lease, error) {
	f, err := filters.ParseAll(fs...)
	if err != nil {
		return nil, err
	}
	ns, _ := namespaces.Namespace(ctx)
	m.S.mu.Lock()
	defer m.S.mu.Unlock()
	var out []leases.Lease
	for _, l := range m.S.leases {
		if l.Namespace == ns && f.Match(adaptLease(l)) {
			out = append(out, leases.Lease{ID: l.ID, CreatedAt: l.Created, Labels: maps.Clone(l.Labels)})
		}
	}
	return out, nil
}

func adaptLease(l *lease) filters.Adaptor {
	return filters.AdapterFunc(func(path []string) (string, bool) {
		switch {
		case len(path) == 1 && path[0] == "id":
			return l.ID, true
		case len(path) == 2 && path[0] == "labels":
			v, ok := l.Labels[path[1]]
			return v, ok
		}
		return "", false
	})
}

// AddResource implements leases.Manager. Only content is kept by leases here;
// snapshots are kept by the refs.
func (m Leases) AddResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	if r.Type != "content" {
		return nil
	}
	ns, _ := namespaces.Namespace(ctx)
	m.S.mu.Lock()
	defer m.S.mu.Unlock()
	key := leaseKey(ns, l.ID)
	if m.S.leases[key] == nil {
		// The stock cache makes a lease for each ref; ours has none until a
		// blob is to be kept for it.
		m.S.leases[key] = &lease{Namespace: ns, ID: l.ID, Created: time.Now(), Blobs: map[string]bool{}}
	}
	m.S.addLocked(key, digest.Digest(r.ID))
	return nil
}

// DeleteResource implements leases.Manager.
func (m Leases) DeleteResource(ctx context.Context, l leases.Lease, r leases.Resource) error {
	ns, _ := namespaces.Namespace(ctx)
	m.S.mu.Lock()
	defer m.S.mu.Unlock()
	key := leaseKey(ns, l.ID)
	if old := m.S.leases[key]; old != nil && r.Type == "content" {
		delete(old.Blobs, r.ID)
		return m.S.saveLocked(key)
	}
	return nil
}

// ListResources implements leases.Manager.
func (m Leases) ListResources(ctx context.Context, l leases.Lease) ([]leases.Resource, error) {
	ns, _ := namespaces.Namespace(ctx)
	m.S.mu.Lock()
	defer m.S.mu.Unlock()
	old := m.S.leases[leaseKey(ns, l.ID)]
	if old == nil {
		return nil, fmt.Errorf("lease %s: %w", l.ID, cerrdefs.ErrNotFound)
	}
	var out []leases.Resource
	for d := range old.Blobs {
		out = append(out, leases.Resource{ID: d, Type: "content"})
	}
	return out, nil
}

// Keep makes the blob live as long as the owner, until Forget.
func (m Leases) Keep(ctx context.Context, owner string, d digest.Digest) {
	m.AddResource(ctx, leases.Lease{ID: owner}, leases.Resource{ID: d.String(), Type: "content"})
}

// Forget ends what Keep began.
func (m Leases) Forget(ctx context.Context, owner string) {
	m.Delete(ctx, leases.Lease{ID: owner})
}
