package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
)

func TestFlags(t *testing.T) {
	c, err := parse([]string{"--config-file=" + empty(t), "-H", "unix:///tmp/a.sock", "-Hunix:///tmp/b.sock", "-Dl", "warn", "--data-root=/d", "--exec-root", "/e", "--live-restore", "--iptables=false",
		"--default-address-pool", "base=10.10.0.0/16,size=24", "--default-ulimit=nofile=10:20", "--log-opt", "max-size=5m", "--default-shm-size", "1g", "--storage-driver", "overlay2", "--label", "a=b"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(c.hosts, []string{"unix:///tmp/a.sock", "unix:///tmp/b.sock"}) || !c.debug || c.logLevel != "warn" || c.dataRoot != "/d" || c.pools[0].Size != 24 ||
		c.ulimits["nofile"].Hard != 20 || c.logOpts["max-size"] != "5m" || c.shmSize != 1<<30 || c.pidfile != "/e/onggid.pid" || len(c.notes) != 2 {
		t.Errorf("%+v", c)
	}
	c, err = parse([]string{"--config-file=" + empty(t)})
	if err != nil || c.hosts[0] != "unix:///run/onggi/onggi.sock" {
		t.Errorf("%+v %v", c.hosts, err)
	}
}

func empty(t *testing.T) string { return file(t, "{}") }

func file(t *testing.T, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "engine.json")
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// What cannot be is refused with words that help.
func TestRefusedFlags(t *testing.T) {
	for _, c := range []struct {
		args        []string
		words, hint string
	}{
		{[]string{"--live-restor"}, "unknown flag", "--live-restore"},
		{[]string{"--nothing-like-it-at-all"}, "unknown flag", "--help"},
		{[]string{"run"}, "unknown argument", ""},
		{[]string{"--mtu"}, "needs a value", ""},
		{[]string{"--mtu=big"}, "--mtu", ""},
		{[]string{"--log-level=loud"}, "want debug", ""},
		{[]string{"--storage-driver=zfs"}, "overlayfs", ""},
		{[]string{"--default-runtime=kata"}, "unknown or invalid runtime name: kata", "--add-runtime"},
		{[]string{"--userns-remap=default"}, "not supported", ""},
		{[]string{"--log-driver=pigeon"}, "drivers are", ""},
		{[]string{"--label=x"}, "key=value", ""},
		{[]string{"--dns=ns.example"}, "IP address", ""},
		{[]string{"--registry-mirror=mirror"}, "https://", ""},
		{[]string{"--default-address-pool=base=10.0.0.0/16,size=8"}, "size must lie", ""},
		{[]string{"-H", "/run/x.sock"}, "want unix", "-H unix:///run/x.sock"},
		{[]string{"-H", "npipe:////./pipe/x"}, "want unix", ""},
		{[]string{"-H", "tcp://0.0.0.0:2375"}, "root on this machine", "--tlsverify"},
		{[]string{"-H", "tcp://0.0.0.0:2375", "--tls=false"}, "root on this machine", "--tlsverify"},
		{[]string{"-H", "tcp://10.0.0.1:2376", "--tls", "--tlscert=c", "--tlskey=k"}, "root on this machine", "--tlsverify"},
		{[]string{"-H", "tcp://127.0.0.1:2375"}, "root on this machine", "--tls=false"},
		{[]string{"-H", "tcp://0.0.0.0:2376", "--tlsverify"}, "--tlscert", ""},
	} {
		_, err := parse(append([]string{"--config-file=" + empty(t)}, c.args...))
		if err == nil || !strings.Contains(err.Error(), c.words) || !strings.Contains(errdefs.HintOf(err), c.hint) {
			t.Errorf("%v: %v (%s)", c.args, err, errdefs.HintOf(err))
		}
	}
	if _, err := parse([]string{"--config-file=" + empty(t), "-H", "tcp://127.0.0.1:2375", "--tls=false"}); err != nil {
		t.Errorf("loopback said aloud: %v", err)
	}
}

func TestConfigurationFile(t *testing.T) {
	c, err := parse([]string{"--config-file", file(t, `{"data-root":"/d","insecure-registries":["127.0.0.1:5000"],"default-address-pools":[{"base":"10.9.0.0/16","size":24}],
		"log-opts":{"max-file":"2"},"default-ulimits":{"nofile":{"Name":"nofile","Soft":1,"Hard":2}},"default-shm-size":"128m","features":{"buildkit":true},"live-restore":true,"mtu":1400}`)})
	if err != nil {
		t.Fatal(err)
	}
	if c.dataRoot != "/d" || c.insecure[0] != "127.0.0.1:5000" || c.pools[0].Base.String() != "10.9.0.0/16" || c.logOpts["max-file"] != "2" || c.ulimits["nofile"].Hard != 2 || c.shmSize != 128<<20 || c.mtu != 1400 {
		t.Errorf("%+v", c)
	}
	c, err = parse([]string{"--config-file", file(t, `{"proxies":{"http-proxy":"http://p","no-proxy":"a,b"},"seccomp-profile":"unconfined"}`), "--https-proxy=http://q"})
	if err != nil || c.proxies != (proxies{"http://p", "http://q", "a,b"}) || c.seccomp != "unconfined" {
		t.Errorf("%+v %q, %v", c.proxies, c.seccomp, err)
	}
	for text, words := range map[string]string{
		`{"proxies":{"http-proxy":"http://u:geheim@p"}}`: "specified both as a flag and in the configuration file: http-proxy: (from flag: http://xxxxx:xxxxx@q, from file: http://xxxxx:xxxxx@p)",
		`{"proxies":5}`:                      "proxies",
		`{"seccomp-profile":"/nonexistent"}`: "opening seccomp profile (/nonexistent) failed",
	} {
		if _, err := parse([]string{"--http-proxy=http://u:secret@q", "--config-file", file(t, text)}); err == nil || !strings.Contains(err.Error(), words) || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := parse([]string{"--config-file=" + empty(t), "--seccomp-profile", file(t, `{"syscalls":5}`)}); err == nil {
		t.Error("a profile that cannot be was accepted")
	}
	if c, err = parse([]string{"--config-file=" + empty(t), "--seccomp-profile", file(t, `{"defaultAction":"SCMP_ACT_ALLOW"}`)}); err != nil || !strings.Contains(c.seccomp, "ALLOW") {
		t.Errorf("%q, %v", c.seccomp, err)
	}
	for text, words := range map[string]string{
		`{"data-rot":"/d"}`:       `unknown key "data-rot"`,
		`{"mtu":"big"}`:           "mtu",
		`{`:                       "unable to configure the Docker daemon with file",
		`{"userns-remap":"x"}`:    "not supported",
		`{"debug":true,"mtu":[]}`: "mtu",
	} {
		if _, err := parse([]string{"--config-file", file(t, text)}); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := parse([]string{"--config-file", file(t, `{"debug":true}`), "-D"}); err == nil {
		t.Error("a flag and a key for one thing were accepted")
	}
	if _, err := parse([]string{"--config-file", "/nonexistent/x.json"}); err == nil {
		t.Error("a missing file that was asked for was accepted")
	}
}

func TestCDIDirectories(t *testing.T) {
	for text, want := range map[string]string{
		`{}`:                         "[/etc/cdi /var/run/cdi]",
		`{"cdi-spec-dirs":["/a"]}`:   "[/a]",
		`{"cdi-spec-dirs":[]}`:       "[]",
		`{"cdi-spec-dirs":[""]}`:     "[]",
		`{"features":{"cdi":false}}`: "[]",
		`{"features":{"cdi":true}}`:  "[/etc/cdi /var/run/cdi]",
	} {
		if c, err := parse([]string{"--config-file", file(t, text)}); err != nil || fmt.Sprint(c.cdiDirs) != want {
			t.Errorf("%s: %v, %v", text, c.cdiDirs, err)
		}
	}
}

// Every setting does something, says something, or is refused.
func TestSettingsAreComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range settings(&config{}) {
		for _, n := range []string{"flag " + s.flag, "key " + s.key, "short " + s.short} {
			if seen[n] && !strings.HasSuffix(n, " ") {
				t.Errorf("%s is there twice", n)
			}
			seen[n] = true
		}
		if s.usage == "" && s.note == "" && s.refuse == "" && s.flag != "storage-driver" && s.key != "features" {
			t.Errorf("%s %s: no word about it", s.flag, s.key)
		}
		if s.refuse == "" && s.flag != "" && s.to == nil {
			t.Errorf("%s: nowhere to put it", s.flag)
		}
	}
}
