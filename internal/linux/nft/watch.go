package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/bpf"
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
	err = w.ignore(t.pid)
	t.mu.Unlock()
	if err != nil {
		conn.Close()
		return err
	}
	w.done.Go(func() {
		for {
			messages, err := conn.Receive()
			switch {
			case errors.Is(err, syscall.ENOBUFS): // events were lost: one may have been of ours
			case err != nil:
				return
			case !slices.ContainsFunc(messages, func(m netlink.Message) bool { return removes(m, t.name) }):
				continue
			}
			w.drain()
			healed(t.heal())
		}
	})
	return nil
}

// ignore makes the kernel leave out what the socket of this id does: what we do
// ourselves would fill the buffer. The messages of one transaction come together,
// so that the first one tells of whom they are.
func (w *watch) ignore(pid uint32) error {
	const offset = 12 // of nlmsg_pid, in the byte order of the machine
	pid = binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, pid))
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: offset, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: pid, SkipFalse: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: 1<<32 - 1},
	})
	if err == nil {
		err = w.conn.SetBPF(filter)
	}
	if err != nil {
		return fmt.Errorf("listen to nftables: filter: %w", err)
	}
	return nil
}

// drain takes all messages that have come: what they tell of, the next healing
// sees. And where some were lost, the kernel drops all others, without another
// word, until the queue is empty (NETLINK_S_CONGESTED).
func (w *watch) drain() {
	raw, err := w.conn.SyscallConn()
	if err != nil {
		return // closed
	}
	raw.Control(func(fd uintptr) {
		var b [1]byte // the rest of a message is dropped
		for {
			_, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_DONTWAIT)
			if err != nil && err != syscall.EINTR && err != syscall.ENOBUFS {
				return
			}
		}
	})
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
