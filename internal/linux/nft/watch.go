package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
)

// A watch listens to what others do to the table.
type watch struct {
	conn *netlink.Conn
	done sync.WaitGroup
}

// end stops it and waits; nil is no watch.
func (w *watch) end() {
	if w != nil {
		w.conn.Close()
		w.done.Wait()
	}
}

// removals are the kinds of messages about something that is gone.
var removals = map[int]bool{2: true, 5: true, 8: true, 11: true, 14: true, 20: true} // table, chain, rule, set, element, object

// Watch makes the table anew whenever somebody else deletes from it, until Close.
// healed is told of each time.
func (t *Table) Watch(healed func(error)) error {
	conn, err := netlink.Dial(syscall.NETLINK_NETFILTER, &netlink.Config{Groups: 1 << (groupNftables - 1)})
	if err != nil {
		return fmt.Errorf("listen to nftables: %w", err)
	}
	w := &watch{conn: conn}
	t.mu.Lock()
	t.watch = w
	t.mu.Unlock()
	w.done.Go(func() {
		for {
			messages, err := conn.Receive()
			switch {
			case errors.Is(err, syscall.ENOBUFS): // events were lost: one may have been of ours
				healed(t.heal())
			case err != nil:
				return
			case t.harmed(messages):
				healed(t.heal())
			}
		}
	})
	return nil
}

// harmed reports whether a message tells that somebody else took from our table.
func (t *Table) harmed(messages []netlink.Message) bool {
	t.mu.Lock()
	pid := t.pid
	t.mu.Unlock()
	for _, m := range messages {
		if m.Header.PID != pid && removes(m, t.name) {
			return true
		}
	}
	return false
}

// removes reports whether a message is about something removed from a table.
func removes(m netlink.Message, table string) bool {
	if m.Header.Type>>8 != subsystem || !removals[int(m.Header.Type&0xff)] || len(m.Data) < 4 || m.Data[0] != familyINet {
		return false
	}
	for rest := m.Data[4:]; len(rest) >= 4; {
		size, kind := int(binary.NativeEndian.Uint16(rest)), binary.NativeEndian.Uint16(rest[2:])
		if size < 4 || size > len(rest) {
			return false
		}
		if kind&0x3fff == attrTable {
			return string(bytes.TrimRight(rest[4:size], "\x00")) == table
		}
		rest = rest[min((size+3)&^3, len(rest)):]
	}
	return false
}

func (t *Table) heal() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.watch == nil { // closed meanwhile
		return nil
	}
	return t.syncLocked()
}
