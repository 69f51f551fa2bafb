package systemd

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux/cgroup"
)

// fake is as much of a bus with systemd on it as the tests need: it speaks
// D-Bus on a socket, keeps units by name, and ends jobs by signal.
type fake struct {
	mu     sync.Mutex
	units  map[string]string // name to what StartTransientUnit was given
	calls  []string
	result string // of jobs
	eager  bool   // the signal comes before the answer
	conn   net.Conn
	serial uint32
}

func start(t *testing.T) (*fake, *Bus) {
	t.Helper()
	p := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", p)
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{units: map[string]string{}, result: "done"}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { f.serve(c) })
		}
	})
	b := NewAt("unix:path=" + p)
	t.Cleanup(func() {
		b.Close()
		l.Close()
		wg.Wait()
	})
	return f, b
}

func (f *fake) serve(c net.Conn) {
	defer c.Close()
	r := bufio.NewReader(c)
	r.ReadByte()
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		switch word := strings.Fields(line); {
		case len(word) == 1 && word[0] == "AUTH":
			fmt.Fprint(c, "REJECTED EXTERNAL\r\n")
		case word[0] == "AUTH", word[0] == "DATA":
			fmt.Fprint(c, "OK 0123456789abcdef0123456789abcdef\r\n")
		case word[0] == "NEGOTIATE_UNIX_FD":
			fmt.Fprint(c, "ERROR\r\n")
		case word[0] == "BEGIN":
			f.mu.Lock()
			f.conn = c
			f.mu.Unlock()
			for {
				m, err := dbus.DecodeMessage(r)
				if err != nil {
					return
				}
				f.answer(c, m)
			}
		}
	}
}

func (f *fake) send(c net.Conn, m *dbus.Message) {
	f.serial++
	m.Headers[dbus.FieldSender] = dbus.MakeVariant(service)
	// The serial number is not settable from outside; it is patched in.
	var b strings.Builder
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		return
	}
	raw := []byte(b.String())
	binary.LittleEndian.PutUint32(raw[8:], f.serial)
	c.Write(raw)
}

func (f *fake) reply(c net.Conn, to *dbus.Message, body ...any) {
	m := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(to.Serial())}, Body: body}
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	f.send(c, m)
}

func (f *fake) refuse(c net.Conn, to *dbus.Message, name string) {
	f.send(c, &dbus.Message{Type: dbus.TypeError, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(to.Serial()),
		dbus.FieldErrorName:   dbus.MakeVariant(name)}})
}

func (f *fake) answer(c net.Conn, m *dbus.Message) {
	f.mu.Lock()
	defer f.mu.Unlock()
	member, _ := m.Headers[dbus.FieldMember].Value().(string)
	name := ""
	if len(m.Body) > 0 {
		name, _ = m.Body[0].(string)
	}
	f.calls = append(f.calls, member)
	job := func() {
		path := dbus.ObjectPath(fmt.Sprintf("/org/freedesktop/systemd1/job/%d", f.serial))
		done := func() {
			body := []any{uint32(7), path, name, f.result}
			f.send(c, &dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath(object)), dbus.FieldInterface: dbus.MakeVariant(manager),
				dbus.FieldMember: dbus.MakeVariant("JobRemoved"), dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...))}, Body: body})
		}
		if f.eager {
			done()
			f.reply(c, m, path)
			return
		}
		f.reply(c, m, path)
		done()
	}
	switch member {
	case "Hello":
		f.reply(c, m, ":1.1")
	case "Get":
		f.reply(c, m, dbus.MakeVariant("252.39-1~deb12u1"))
	case "StartTransientUnit":
		if _, ok := f.units[name]; ok {
			f.refuse(c, m, service+".UnitExists")
			return
		}
		f.units[name] = fmt.Sprint(m.Body[2])
		job()
	case "StopUnit":
		if _, ok := f.units[name]; !ok {
			f.refuse(c, m, service+".NoSuchUnit")
			return
		}
		delete(f.units, name)
		job()
	case "ResetFailedUnit":
		if f.units[name] == "failed" {
			delete(f.units, name)
		}
		f.reply(c, m)
	case "SetUnitProperties":
		f.units[name] += fmt.Sprint(m.Body[2])
		f.reply(c, m)
	default:
		f.reply(c, m)
	}
}

func TestLifeOfAUnit(t *testing.T) {
	for _, eager := range []bool{false, true} {
		f, b := start(t)
		f.eager = eager
		if v, err := b.Version(); err != nil || v != 252 {
			t.Fatalf("version %d %v", v, err)
		}
		props := []cgroup.Property{{Name: "PIDs", Value: []uint32{42}}, {Name: "Delegate", Value: true},
			{Name: "DeviceAllow", Value: []cgroup.DeviceEntry{{Path: "/dev/char/1:3", Access: "rwm"}}}}
		if err := b.Start("a.scope", props); err != nil {
			t.Fatal(err)
		}
		f.mu.Lock()
		got := f.units["a.scope"]
		f.mu.Unlock()
		for _, want := range []string{"PIDs", "42", "Delegate true", `"/dev/char/1:3", "rwm"`} {
			if !strings.Contains(got, want) {
				t.Errorf("systemd got %s, without %s", got, want)
			}
		}
		if err := b.Set("a.scope", []cgroup.Property{{Name: "CPUWeight", Value: uint64(7)}}); err != nil {
			t.Fatal(err)
		}
		if err := b.Start("a.scope", nil); !errdefs.Is(err, errdefs.Conflict) {
			t.Errorf("a second unit of one name: %v", err)
		}
		for range 2 {
			if err := b.Stop("a.scope"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestRemainsAreReplaced(t *testing.T) {
	f, b := start(t)
	f.units["a.scope"] = "failed"
	if err := b.Start("a.scope", nil); err != nil {
		t.Fatal(err)
	}
}

func TestFailedJob(t *testing.T) {
	f, b := start(t)
	f.result = "failed"
	if err := b.Start("a.scope", nil); err == nil || !strings.Contains(err.Error(), `"failed"`) {
		t.Errorf("got %v", err)
	}
}

func TestReconnects(t *testing.T) {
	f, b := start(t)
	if err := b.Start("a.scope", nil); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	f.conn.Close()
	f.mu.Unlock()
	if err := b.Stop("a.scope"); err != nil {
		t.Errorf("got %v", err)
	}
	if err := b.Start("a.scope", nil); err != nil {
		t.Errorf("got %v", err)
	}
}

func TestNoBus(t *testing.T) {
	err := NewAt("unix:path="+filepath.Join(t.TempDir(), "none")).Start("a.scope", nil)
	if !errdefs.Is(err, errdefs.Unavailable) || errdefs.HintOf(err) == "" {
		t.Errorf("got %v", err)
	}
	if Running() {
		return
	}
	if err := New().Start("a.scope", nil); !errdefs.Is(err, errdefs.Unsupported) || errdefs.HintOf(err) == "" {
		t.Errorf("without systemd: %v", err)
	}
}
