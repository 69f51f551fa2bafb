package container

import (
	"net"
	"testing"

	"github.com/onggi/onggi/internal/events"
)

// docker run attaches, and starts as soon as it is told of the stream: the start
// must see the client, or what the container says first is lost.
func TestStartSeesWhoWasToldOfTheStream(t *testing.T) {
	c := newContainer(&Record{ID: "c1", Name: "c1", Config: &Config{}, HostConfig: &HostConfig{}}, Status{State: Created})
	s := &Service{byID: map[string]*Container{"c1": c}, byName: map[string]string{"c1": "c1"}, o: Options{Events: events.New()}}
	started := make(chan int)
	ours, theirs := net.Pipe()
	defer ours.Close()
	err := s.Attach(t.Context(), "c1", AttachOptions{Stdout: true, Follow: true}, func() (Stream, error) {
		if c.greeted != 1 {
			t.Errorf("%d clients are known before they are told", c.greeted)
		}
		go func() { // the start
			c.awaitGreeted(t.Context())
			c.mu.Lock()
			defer c.mu.Unlock()
			started <- len(c.pending)
		}()
		return Stream{Conn: theirs}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if n := <-started; n != 1 {
		t.Errorf("the start sees %d clients, want 1", n)
	}
	for _, a := range c.pending {
		a.close()
	}
}
