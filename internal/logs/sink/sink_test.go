package sink

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/tinylib/msgp/msgp"

	"github.com/onggi/onggi/internal/logs"
)

var (
	at     = time.Date(2026, 1, 2, 3, 4, 5, 678901000, time.UTC)
	source = Source{
		ContainerID: strings.Repeat("ab", 32), ContainerName: "/jar", ContainerImageID: "sha256:" + strings.Repeat("cd", 32), ContainerImageName: "busybox:latest",
		ContainerEntrypoint: "sh", ContainerArgs: []string{"-c", "echo"}, ContainerCreated: at, Host: "host", Tag: "tagged", Attrs: map[string]string{"team.a": "b"},
	}
	entries = []logs.Entry{
		{Stream: "stdout", Time: at, Line: []byte("first\n")},
		{Stream: "stderr", Time: at.Add(time.Second), Line: []byte("second"), Partial: true},
	}
)

// send hands the entries over, and closes.
func send(t *testing.T, driver string, opts map[string]string) {
	t.Helper()
	if err := Check(driver, opts); err != nil {
		t.Fatal(err)
	}
	k, err := Open(driver, opts, source)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := k.Write(e); err != nil {
			t.Fatal(err)
		}
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
}

// stream is a server that gives back what the first client sends it.
func stream(t *testing.T, network, addr string) (net.Addr, func() []byte) {
	t.Helper()
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	got := make(chan []byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- nil
			return
		}
		defer c.Close()
		b, _ := io.ReadAll(c)
		got <- b
	}()
	return l.Addr(), func() []byte { return <-got }
}

// packets is the same for datagrams.
func packets(t *testing.T, network, addr string) (net.Addr, func() []byte) {
	t.Helper()
	c, err := net.ListenPacket(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr(), func() []byte {
		buf := make([]byte, 1<<16)
		c.SetReadDeadline(time.Now().Add(10 * time.Second))
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		return buf[:n]
	}
}

func TestFluentd(t *testing.T) {
	addr, all := stream(t, "tcp", "127.0.0.1:0")
	send(t, "fluentd", map[string]string{"fluentd-address": addr.String(), "fluentd-sub-second-precision": "true"})
	b := all()
	for _, want := range []string{
		`{"container_id":"` + source.ContainerID + `","container_name":"/jar","log":"first","source":"stdout","team.a":"b"}`,
		`{"container_id":"` + source.ContainerID + `","container_name":"/jar","log":"second","partial_message":"true","source":"stderr","team.a":"b"}`,
	} {
		var m []any
		v, rest, err := msgp.ReadIntfBytes(b)
		b = rest
		if m, _ = v.([]any); err != nil || len(m) < 3 || m[0] != "tagged" {
			t.Fatalf("%v %v", v, err)
		}
		got, _ := json.Marshal(m[2])
		if string(got) != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	if len(b) > 0 {
		t.Errorf("%d bytes more", len(b))
	}
}

// waits is a context whose first waiter has listen called.
type waits struct {
	context.Context
	listen func()
}

func (w waits) Done() <-chan struct{} { w.listen(); return w.Context.Done() }

// TestReceiverNotReady has the receiver listen once a first try was refused.
func TestReceiverNotReady(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	refused := 0
	ctx := waits{t.Context(), func() {
		if refused++; refused == 1 {
			stream(t, "tcp", addr)
		}
	}}
	k, err := Connect(ctx, "fluentd", map[string]string{"fluentd-address": addr}, source)
	if err != nil || refused != 1 {
		t.Fatalf("refused %d times: %v", refused, err)
	}
	k.Close()
}

func TestGELF(t *testing.T) {
	check := func(b []byte, short string, level float64, when float64) {
		t.Helper()
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			t.Fatalf("%v: %q", err, b)
		}
		want := map[string]any{"version": "1.1", "host": "host", "short_message": short, "level": level, "timestamp": when, "_container_id": source.ContainerID, "_container_name": "jar",
			"_image_name": "busybox:latest", "_command": "sh -c echo", "_tag": "tagged", "_team.a": "b"}
		for k, v := range want {
			if m[k] != v {
				t.Errorf("%s is %v, want %v", k, m[k], v)
			}
		}
	}
	addr, all := stream(t, "tcp", "127.0.0.1:0")
	send(t, "gelf", map[string]string{"gelf-address": "tcp://" + addr.String()})
	parts := bytes.Split(all(), []byte{0})
	if len(parts) != 3 {
		t.Fatalf("%d messages", len(parts)-1)
	}
	check(parts[0], "first", 6, 1767323045.678)
	check(parts[1], "second", 3, 1767323046.678)

	addr, next := packets(t, "udp", "127.0.0.1:0")
	send(t, "gelf", map[string]string{"gelf-address": "udp://" + addr.String(), "gelf-compression-level": "1"})
	for i, want := range []string{"first", "second"} {
		z, err := gzip.NewReader(bytes.NewReader(next()))
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(z)
		if err != nil {
			t.Fatal(err)
		}
		check(b, want, []float64{6, 3}[i], []float64{1767323045.678, 1767323046.678}[i])
	}
}

func TestSyslog(t *testing.T) {
	local := at.Local()
	for _, c := range []struct{ format, first, second string }{
		{"", `^<150>` + local.Format(time.Stamp) + ` tagged\[\d+\]: first$`, `^<147>.* second$`},
		{"rfc3164", `^<150>` + local.Format(time.Stamp) + ` \S+ tagged\[\d+\]: first$`, `^<147>`},
		{"rfc5424", `^<150>1 ` + regexp.QuoteMeta(local.Format(time.RFC3339)) + ` \S+ tagged \d+ tagged - first$`, `^<147>1 `},
		{"rfc5424micro", `^<150>1 ` + regexp.QuoteMeta(local.Format("2006-01-02T15:04:05.000000Z07:00")) + ` \S+ tagged \d+ tagged - first$`, `^<147>1 `},
	} {
		sock := filepath.Join(t.TempDir(), "log")
		_, next := packets(t, "unixgram", sock)
		send(t, "syslog", map[string]string{"syslog-address": "unixgram://" + sock, "syslog-facility": "local2", "syslog-format": c.format})
		for _, want := range []string{c.first, c.second} {
			if got := strings.TrimSuffix(string(next()), "\n"); !regexp.MustCompile(want).MatchString(got) {
				t.Errorf("%s: got %q, want %s", c.format, got, want)
			}
		}
	}
	addr, all := stream(t, "tcp", "127.0.0.1:0")
	send(t, "syslog", map[string]string{"syslog-address": "tcp://" + addr.String()})
	sc := bufio.NewScanner(bytes.NewReader(all()))
	n := 0
	for ; sc.Scan(); n++ {
	}
	if n != 2 {
		t.Errorf("%d lines by tcp", n)
	}
}

// Who is not there is told at once.
func TestNobodyListens(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	for driver, opts := range map[string]map[string]string{
		"fluentd": {"fluentd-address": addr}, "gelf": {"gelf-address": "tcp://" + addr}, "syslog": {"syslog-address": "tcp://" + addr},
	} {
		if k, err := Open(driver, opts, source); err == nil {
			k.Close()
			t.Errorf("%s: connected to nobody", driver)
		}
	}
}

// A receiver that goes away is an error of the entry, not a silent loss.
func TestReceiverGoes(t *testing.T) {
	for driver, key := range map[string]string{"fluentd": "fluentd-address", "gelf": "gelf-address", "syslog": "syslog-address"} {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		k, err := Open(driver, map[string]string{key: "tcp://" + l.Addr().String()}, source)
		if err != nil {
			t.Fatal(err)
		}
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		l.Close()
		err = nil
		for range 100 { // the first may still be taken by the kernel
			if err = k.Write(entries[0]); err != nil {
				break
			}
		}
		if err == nil {
			t.Errorf("%s: written to nobody", driver)
		}
		k.Close()
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct{ driver, key, value string }{
		{"fluentd", "fluentd-address", "ftp://x"}, {"fluentd", "fluentd-address", "tcp://x/path"}, {"fluentd", "fluentd-address", "unix://"}, {"fluentd", "fluentd-async", "maybe"},
		{"fluentd", "fluentd-write-timeout", "-1s"}, {"fluentd", "fluentd-max-retries", "x"}, {"fluentd", "fluentd-buffer-limit", "much"},
		{"gelf", "", ""}, {"gelf", "gelf-address", "udp://nowhere"}, {"gelf", "gelf-address", "http://x:1"}, {"syslog", "syslog-address", "http://x"},
		{"syslog", "syslog-address", "unix:///not/there"}, {"syslog", "syslog-facility", "attic"}, {"syslog", "syslog-facility", "24"}, {"syslog", "syslog-format", "rfc1"},
	} {
		if err := Check(c.driver, map[string]string{c.key: c.value}); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
	for _, o := range []map[string]string{
		{"gelf-address": "tcp://x:1", "gelf-compression-type": "gzip"}, {"gelf-address": "udp://x:1", "gelf-compression-level": "12"}, {"gelf-address": "udp://x:1", "gelf-tcp-max-reconnect": "1"},
	} {
		if err := Check("gelf", o); err == nil {
			t.Errorf("%v was accepted", o)
		}
	}
}

func TestTags(t *testing.T) {
	for text, want := range map[string]string{
		"plain": "plain", "{{.ID}}": "abababababab", "{{.FullID}}": source.ContainerID, "{{.Name}}/{{.ImageName}}": "jar/busybox:latest", "{{.ImageID}}": "cdcdcdcdcdcd",
		"{{.Command}}": "sh -c echo", `{{upper .Name}} {{.DaemonName}} {{index .ContainerLabels "x"}}`: "JAR  ", `{{with .Hostname}}{{.}}{{end}}`: "host",
	} {
		if got, err := ExpandTag(text, source); err != nil || got != want {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
	for _, bad := range []string{"{{", "{{.Nothing}}", "{{nofunc}}"} {
		if _, err := ExpandTag(bad, source); err == nil {
			t.Errorf("%s was accepted", bad)
		}
	}
}
