package events

import (
	"strconv"
	"testing"
	"time"
)

func TestHistoryThenLiveWithoutGap(t *testing.T) {
	b := New()
	start := time.Now()
	for i := range historySize + 10 {
		b.Emit(Container, "start", strconv.Itoa(i), nil)
	}
	old, s := b.Subscribe(start, nil)
	defer s.Close()
	b.Emit(Container, "die", "last", nil)
	if len(old) != historySize || old[0].Actor.ID != "10" {
		t.Fatalf("history has %d messages from %s, want %d from 10", len(old), old[0].Actor.ID, historySize)
	}
	if m := <-s.C; m.Actor.ID != "last" {
		t.Fatalf("live message is %s, want last", m.Actor.ID)
	}
	if none, s := b.Subscribe(time.Time{}, nil); len(none) != 0 {
		t.Fatal("no time asked for, but got history")
	} else {
		s.Close()
		s.Close()
	}
}

func TestSlowSubscriberIsEnded(t *testing.T) {
	b := New()
	_, s := b.Subscribe(time.Time{}, nil)
	for range queueSize + 1 {
		b.Emit(Container, "start", "x", nil)
	}
	n := 0
	for range s.C {
		n++
	}
	if n != queueSize || b.Listeners() != 0 {
		t.Fatalf("got %d messages, %d listeners left", n, b.Listeners())
	}
}

func TestFilter(t *testing.T) {
	start := Message{Type: Container, Action: "start", Scope: "local", Actor: Actor{ID: "abcdef", Attributes: map[string]string{"name": "web", "image": "debian:bookworm", "tier": "front"}}}
	health := Message{Type: Container, Action: "health_status: healthy", Actor: Actor{ID: "abcdef"}}
	connect := Message{Type: Network, Action: "connect", Actor: Actor{ID: "net1", Attributes: map[string]string{"container": "abcdef", "name": "bridge"}}}
	for _, c := range []struct {
		name string
		f    Filter
		m    Message
		want bool
	}{
		{"empty", nil, start, true},
		{"type", Filter{"type": {"container"}}, start, true},
		{"other type", Filter{"type": {"image"}}, start, false},
		{"event", Filter{"event": {"die", "start"}}, start, true},
		{"event before colon", Filter{"event": {"health_status"}}, health, true},
		{"event with value", Filter{"event": {"health_status: healthy"}}, health, true},
		{"container by name", Filter{"container": {"web"}}, start, true},
		{"container by prefix", Filter{"container": {"abc"}}, start, true},
		{"another container", Filter{"container": {"db"}}, start, false},
		{"container of a network event", Filter{"container": {"abcdef"}}, connect, false},
		{"network of a network event", Filter{"network": {"bridge"}}, connect, true},
		{"image untagged", Filter{"image": {"debian"}}, start, true},
		{"image tagged", Filter{"image": {"debian:bookworm"}}, start, true},
		{"all labels", Filter{"label": {"tier=front", "name"}}, start, true},
		{"wrong label", Filter{"label": {"tier=back"}}, start, false},
		{"unknown key", Filter{"bogus": {"x"}}, start, false},
		{"both keys", Filter{"type": {"container"}, "event": {"stop"}}, start, false},
	} {
		if got := c.f.Match(c.m); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}
