// Package events tells whoever listens what happened to containers, images,
// networks and volumes.
//
// # Model
//
// A Bus keeps a bounded history and hands every Message to the subscriptions
// whose Filter it matches. Messages are Docker's own type, so that what is
// published is what `docker events` prints.
//
// # Guarantees
//
// A subscription sees the history it asked for and then every later message,
// in order, without a gap or a repeat between the two. Publishing never
// blocks: a subscriber that stays more than a queue behind is ended, and may
// subscribe again with the time of the last message it saw.
//
// # Concurrency
//
// Every method may be called from many goroutines. Bus.mu is a leaf lock.
//
// # Not here
//
// Durability: the history is of this engine process. Encoding: engineapi.
package events

import (
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/events"
)

// The wire types are Docker's.
type (
	Message = events.Message
	Actor   = events.Actor
	Type    = events.Type
	Action  = events.Action
)

// The kinds of object that events are about.
const (
	Container = events.ContainerEventType
	Image     = events.ImageEventType
	Network   = events.NetworkEventType
	Volume    = events.VolumeEventType
	Builder   = events.BuilderEventType
	Engine    = events.DaemonEventType
)

const (
	historySize = 1024
	queueSize   = 4096
)

// A Bus distributes messages. The zero value is not usable; call New.
type Bus struct {
	mu      sync.Mutex
	history []Message // a ring; guarded by mu
	next    int       // where the next message goes; guarded by mu
	subs    map[*Subscription]struct{}
}

// New makes an empty Bus.
func New() *Bus {
	return &Bus{subs: map[*Subscription]struct{}{}}
}

// A Subscription delivers messages on C until Close is called, or until its
// reader fell too far behind; then C is closed.
type Subscription struct {
	C      <-chan Message
	c      chan Message
	filter Filter
	bus    *Bus
}

// Publish adds the time where it is missing, and hands m out.
func (b *Bus) Publish(m Message) {
	if m.TimeNano == 0 {
		now := time.Now()
		m.Time, m.TimeNano = now.Unix(), now.UnixNano()
	}
	if m.Scope == "" {
		m.Scope = "local"
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.history) < historySize {
		b.history = append(b.history, m)
	} else {
		b.history[b.next] = m
	}
	b.next = (b.next + 1) % historySize
	for s := range b.subs {
		if !s.filter.Match(m) {
			continue
		}
		select {
		case s.c <- m:
		default: // too far behind; an ended stream is honest, a gap is not
			delete(b.subs, s)
			close(s.c)
		}
	}
}

// Emit publishes an event of an object with attributes.
func (b *Bus) Emit(t Type, a Action, id string, attrs map[string]string) {
	if attrs == nil {
		attrs = map[string]string{}
	}
	b.Publish(Message{Type: t, Action: a, Actor: Actor{ID: id, Attributes: attrs}})
}

// Subscribe returns the messages since a moment (none when since is zero) and
// a subscription to all later ones.
func (b *Bus) Subscribe(since time.Time, f Filter) ([]Message, *Subscription) {
	c := make(chan Message, queueSize)
	s := &Subscription{C: c, c: c, filter: f, bus: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	var old []Message
	if !since.IsZero() {
		for i := range b.history {
			m := b.history[(b.oldest()+i)%len(b.history)]
			if m.TimeNano >= since.UnixNano() && f.Match(m) {
				old = append(old, m)
			}
		}
	}
	b.subs[s] = struct{}{}
	return old, s
}

// oldest is the index of the oldest message. Preconditions: b.mu is held.
func (b *Bus) oldest() int {
	if len(b.history) < historySize {
		return 0
	}
	return b.next
}

// Listeners is the number of open subscriptions.
func (b *Bus) Listeners() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.subs)
}

// Close ends the subscription. It may be called more than once.
func (s *Subscription) Close() {
	s.bus.mu.Lock()
	defer s.bus.mu.Unlock()
	if _, ok := s.bus.subs[s]; ok {
		delete(s.bus.subs, s)
		close(s.c)
	}
}

// A Filter chooses messages: every key must match one of its values. The keys
// are those of `docker events --filter`.
type Filter map[string][]string

// FilterKeys are the keys that a Filter understands.
var FilterKeys = []string{"config", "container", "daemon", "event", "image", "label", "network", "node", "plugin", "scope", "secret", "service", "type", "volume", "builder"}

// Match reports whether m passes every key.
func (f Filter) Match(m Message) bool {
	for key, values := range f {
		if len(values) > 0 && !matchKey(key, values, m) {
			return false
		}
	}
	return true
}

func matchKey(key string, values []string, m Message) bool {
	switch key {
	case "type":
		return oneOf(values, func(v string) bool { return v == string(m.Type) })
	case "scope":
		return oneOf(values, func(v string) bool { return v == m.Scope })
	case "event":
		// "health_status" and "exec_create" also match the long forms that carry a
		// value after a colon.
		verb, _, _ := strings.Cut(string(m.Action), ":")
		return oneOf(values, func(v string) bool { return v == string(m.Action) || v == verb })
	case "label":
		for _, v := range values {
			k, want, has := strings.Cut(v, "=")
			if got, ok := m.Actor.Attributes[k]; !ok || has && got != want {
				return false
			}
		}
		return true
	case "image":
		return matchImage(values, m)
	case "container", "network", "volume", "plugin", "daemon", "service", "node", "secret", "config", "builder":
		if string(m.Type) != key {
			return false
		}
		return oneOf(values, func(v string) bool {
			return strings.HasPrefix(m.Actor.ID, v) || m.Actor.Attributes["name"] == strings.TrimPrefix(v, "/")
		})
	}
	return false
}

func matchImage(values []string, m Message) bool {
	id, name := m.Actor.ID, m.Actor.Attributes["name"]
	if m.Type != Image {
		id, name = m.Actor.Attributes["image"], m.Actor.Attributes["image"]
	}
	return oneOf(values, func(v string) bool {
		return v == id || v == name || v == untagged(id) || v == untagged(name)
	})
}

// untagged strips a tag, so that `image=debian` finds debian:bookworm.
func untagged(s string) string {
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		return s[:i]
	}
	return s
}

func oneOf(values []string, f func(string) bool) bool {
	for _, v := range values {
		if f(v) {
			return true
		}
	}
	return false
}
