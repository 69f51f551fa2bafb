package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"

	"github.com/onggi/onggi/internal/testenv"
)

// As root all tests run in a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv("ONGGI_NETNS") == "1" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "ONGGI_NETNS=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := cmd.Run(); err != nil {
		os.Exit(1)
	}
}

var sample = []Network{
	{Bridge: "br0", Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.1.0.0/24"), NameServer: netip.MustParseAddrPort("10.1.0.1:5353")}, {Prefix: netip.MustParsePrefix("fd00:1::/64"), Mode: Routed}}},
	{Bridge: "br1", Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.1.1.0/24"), Mode: Unprotected, SourceIP: netip.MustParseAddr("192.0.2.7")}}, NoICC: true, Trusted: []string{"wg0"}},
	{Bridge: "br2", Subnets: []Subnet{{Prefix: netip.MustParsePrefix("10.1.2.0/24")}}, Internal: true},
}

func port(n int) Port {
	return Port{Proto: 6, HostIP: netip.IPv4Unspecified(), HostPort: uint16(n), Target: netip.MustParseAddrPort("10.1.0.2:80")}
}

// shown is what nft shows of a table; "" = there is none.
func shown(t *testing.T, table string) string {
	t.Helper()
	out, err := exec.Command(testenv.NeedProgram(t, "nft"), "list", "table", "inet", table).CombinedOutput()
	if err != nil && !strings.Contains(string(out), "No such file") {
		t.Fatalf("nft: %v: %s", err, out)
	}
	if err != nil {
		return ""
	}
	// Who owns it is not what it does.
	return regexp.MustCompile(`^(table inet \S+ \{).*(\n\tflags.*\n)?`).ReplaceAllString(string(out), "$1\n")
}

func newTable(t *testing.T, name string) *Table {
	t.Helper()
	testenv.NeedRoot(t)
	x := New(name)
	if err := x.Sync(sample); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Remove(); err != nil {
			t.Error(err)
		}
		if s := shown(t, name); s != "" {
			t.Errorf("left after Remove:\n%s", s)
		}
	})
	return x
}

// Somebody flushes everything: with an owner nothing is lost; without one it is
// made anew, to the last element.
func TestFlushedByOthers(t *testing.T) {
	for _, plain := range []bool{false, true} {
		t.Run(fmt.Sprint("plain ", plain), func(t *testing.T) {
			name := fmt.Sprint("heal-", plain)
			x := New(name)
			x.plain = plain
			testenv.NeedRoot(t)
			if err := x.Sync(sample); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { x.Remove() })
			if x.plain != plain {
				t.Logf("this kernel has no owners of tables that stay")
			}
			if err := x.AddPorts([]Port{port(1), port(2)}); err != nil {
				t.Fatal(err)
			}
			healed := func(err error) {
				if err != nil {
					t.Errorf("heal: %v", err)
				}
			}
			if err := x.Watch(healed); err != nil {
				t.Fatal(err)
			}
			want := shown(t, name)
			nft := testenv.NeedProgram(t, "nft")
			for i, c := range []string{"flush ruleset", "delete table inet " + name, "flush chain inet " + name + " raw", "delete element inet " + name + " ports_any4 { tcp . 1 }", "flush ruleset"} {
				out, err := exec.Command(nft, strings.Fields(c)...).CombinedOutput()
				if !x.plain {
					if i > 0 && i < 4 && err == nil {
						t.Errorf("%s: it was done, with an owner there", c)
					}
					if got := shown(t, name); got != want {
						t.Errorf("after %s:\n%s", c, got)
					}
					continue
				}
				if err != nil {
					t.Fatalf("%s: %v: %s", c, err, out)
				}
				// One command is told of in several messages, each of which may heal.
				deadline := time.Now().Add(10 * time.Second)
				for shown(t, name) != want {
					if time.Now().After(deadline) {
						t.Fatalf("after %s:\n%s", c, shown(t, name))
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
}

// The engine ends, its table stays, and its successor takes it over.
func TestTheTableStays(t *testing.T) {
	x := newTable(t, "stay")
	if err := x.AddPorts([]Port{port(1)}); err != nil {
		t.Fatal(err)
	}
	want := shown(t, "stay")
	x.Close()
	if got := shown(t, "stay"); got != want {
		t.Errorf("after Close:\n%s", got)
	}
	y := New("stay")
	y.Expect([]Port{port(1)})
	if err := y.Sync(sample); err != nil {
		t.Fatal(err)
	}
	if got := shown(t, "stay"); got != want {
		t.Errorf("of the successor:\n%s", got)
	}
	if err := y.RemovePorts([]Port{port(1), port(7)}); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(shown(t, "stay"), "tcp . 1 ") {
		t.Error("a port is there after its removal")
	}
	y.Close()
}

// Ten thousand ports come and go in one transaction each.
func TestManyPorts(t *testing.T) {
	x := newTable(t, "many")
	var list []Port
	for i := range 10000 {
		list = append(list, port(i+1))
	}
	if err := x.AddPorts(list); err != nil {
		t.Fatal(err)
	}
	if n := elements(t, x, "ports_any4"); n != len(list) {
		t.Errorf("%d elements", n)
	}
	if err := x.Sync(sample); err != nil {
		t.Fatal(err)
	}
	if n := elements(t, x, "ports_any4"); n != len(list) {
		t.Errorf("%d elements after Sync", n)
	}
	if err := x.RemovePorts(list); err != nil {
		t.Fatal(err)
	}
	if n := elements(t, x, "ports_any4"); n != 0 {
		t.Errorf("%d elements are left", n)
	}
}

func elements(t *testing.T, x *Table, set string) int {
	t.Helper()
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range portSets(x.table(), families[0]) {
		if s.Name == set {
			list, err := c.GetSetElements(s)
			if err != nil {
				t.Fatal(err)
			}
			return len(list)
		}
	}
	t.Fatal("no set " + set)
	return 0
}

// A host's own table is not touched, and named where it drops.
func TestOtherTables(t *testing.T) {
	x := newTable(t, "ours")
	nft := testenv.NeedProgram(t, "nft")
	script := "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; }; chain INPUT { type filter hook input priority 0; policy drop; }; }"
	if out, err := exec.Command(nft, script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	defer exec.Command(nft, "delete table ip filter").Run()
	before, _ := exec.Command(nft, "list", "table", "ip", "filter").Output()
	forward, input, err := x.Droppers()
	if err != nil || fmt.Sprint(forward, input) != "[ip filter FORWARD] [ip filter INPUT]" {
		t.Errorf("%v, %v, %v", forward, input, err)
	}
	if err := errors.Join(x.Sync(sample[:1]), x.AddPorts([]Port{port(1)}), x.Sync(nil)); err != nil {
		t.Error(err)
	}
	after, _ := exec.Command(nft, "list", "table", "ip", "filter").Output()
	if string(before) != string(after) || len(after) == 0 {
		t.Errorf("the host's table was\n%s\nand is\n%s", before, after)
	}
}

func FuzzRemoves(f *testing.F) {
	name := append([]byte{9, 0, 1, 0}, "ours\x00\x00\x00\x00"...)
	f.Add(uint16(10<<8|2), append([]byte{1, 0, 0, 0}, name...))
	f.Add(uint16(10<<8|2), []byte{1, 0, 0, 0, 3, 0, 1, 0, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, kind uint16, data []byte) {
		m := netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(kind)}, Data: data}
		if removes(m, "ours") && (kind>>8 != 10 || !strings.Contains(string(data), "ours")) {
			t.Errorf("%x % x", kind, data)
		}
	})
}

func TestRemoves(t *testing.T) {
	attr := func(kind uint16, s string) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(s)))
		b = append(binary.NativeEndian.AppendUint16(b, kind), s...)
		return append(b, make([]byte, (4-len(b)%4)%4)...)
	}
	head := []byte{1, 0, 0, 0}
	for _, c := range []struct {
		kind uint16
		data []byte
		want bool
	}{
		{10<<8 | 2, concat(head, attr(1, "ours\x00")), true},
		{10<<8 | 8, concat(head, attr(3, "xyz\x00"), attr(1, "ours\x00")), true},
		{10<<8 | 0, concat(head, attr(1, "ours\x00")), false},               // a table is added
		{10<<8 | 2, concat(head, attr(1, "theirs\x00")), false},             // another's
		{10<<8 | 2, concat([]byte{2, 0, 0, 0}, attr(1, "ours\x00")), false}, // of another family
		{1<<8 | 2, concat(head, attr(1, "ours\x00")), false},                // of connection tracking
	} {
		if got := removes(netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(c.kind)}, Data: c.data}, "ours"); got != c.want {
			t.Errorf("%x % x: %v", c.kind, c.data, got)
		}
	}
}

// So much is going on in other tables that messages are lost, again and again; and
// our own changes are not taken for those of others.
func TestWatchUnderLoad(t *testing.T) {
	testenv.NeedRoot(t)
	x := New("busy")
	x.plain = true
	if err := x.Sync(sample); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Remove() })
	var heals atomic.Int64
	if err := x.Watch(func(error) { heals.Add(1) }); err != nil {
		t.Fatal(err)
	}
	var list []Port
	for i := range 10000 {
		list = append(list, port(i+1))
	}
	for range 3 {
		if err := errors.Join(x.AddPorts(list), x.RemovePorts(list), x.Sync(sample)); err != nil {
			t.Fatal(err)
		}
	}
	if n := heals.Load(); n != 0 {
		t.Errorf("our own changes were taken for harm %d times", n)
	}
	want := shown(t, "busy")
	other := New("other")
	other.plain = true
	t.Cleanup(func() { other.Remove() })
	nft := testenv.NeedProgram(t, "nft")
	for range 10 {
		if err := errors.Join(other.Sync(sample), other.AddPorts(list)); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(nft, "flush", "chain", "inet", "busy", "raw").CombinedOutput(); err != nil {
			t.Fatalf("nft: %v: %s", err, out)
		}
		deadline := time.Now().Add(20 * time.Second)
		for shown(t, "busy") != want {
			if time.Now().After(deadline) {
				t.Fatal("it was not made anew")
			}
			time.Sleep(time.Millisecond)
		}
	}
}
