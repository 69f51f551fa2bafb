package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	containertypes "github.com/moby/moby/api/types/container"

	"github.com/docker/go-units"

	"github.com/onggi/onggi/internal/container"
	"github.com/onggi/onggi/internal/errdefs"
)

// config is what the flags and the configuration file say.
type config struct {
	dataRoot, execRoot, pidfile, configFile string
	hosts                                   []string
	group                                   string
	logLevel                                string
	debug                                   bool
	labels                                  []string

	insecure, mirrors []string

	bridge                                       string
	networkOpts                                  map[string]map[string]string // by driver
	bridgeName, bip, bip6, fixedCIDR, fixedCIDR6 string
	pools                                        []pool
	mtu                                          int
	ipv6, icc                                    bool
	dns, dnsSearch, dnsOptions                   []string
	publishIP                                    string
	hostGateway                                  []string

	tls, tlsVerify            bool
	tlsCA, tlsCert, tlsKey    string
	apiHosts                  []string
	logDriver                 string
	logOpts                   map[string]string
	ulimits                   map[string]*containertypes.Ulimit
	shmSize                   int64
	ipcMode, cgroupnsMode     string
	cgroupParent              string
	execOpts, cdiDirs         []string
	defaultRuntime            string
	runtimes                  map[string]container.Runtime
	initByDefault, noNewPrivs bool
	seccompProfile, seccomp   string // as given; "", "unconfined" or the file's JSON
	proxies                   proxies
	stopTimeout               int
	features                  map[string]bool
	builder                   builderConfig
	pidsLimit                 int

	showVersion, validateOnly, cleanup bool
	salvage                            bool

	set   map[string]string // the flags given, by name
	notes []string          // said at start
}

type pool struct {
	Base netip.Prefix
	Size int
}

// proxies are what registries are reached by; "" = as the environment says.
type proxies struct {
	HTTP  string `json:"http-proxy"`
	HTTPS string `json:"https-proxy"`
	No    string `json:"no-proxy"`
}

var errHelp = errors.New("help")

const defaultConfigFile = "/etc/onggi/engine.json"

// A setting is one flag and, mostly, one key of the configuration file.
type setting struct {
	flag, short, key string // key "" = not in the file
	usage            string
	to               any    // *string, *bool, *int, *int64, *[]string, *map[string]string, *[]pool, ulimits
	note             string // accepted without effect: what is said
	refuse           string // not accepted: why
}

func settings(c *config) []setting {
	return []setting{
		{flag: "data-root", short: "g", key: "data-root", usage: "directory of everything durable", to: &c.dataRoot},
		{flag: "exec-root", key: "exec-root", usage: "directory of what lasts until the next boot", to: &c.execRoot},
		{flag: "pidfile", short: "p", key: "pidfile", usage: "file for the engine's process ID", to: &c.pidfile},
		{flag: "config-file", usage: "configuration file (JSON, keys as dockerd's)", to: &c.configFile},
		{flag: "host", short: "H", key: "hosts", usage: "socket to listen on: unix://, tcp://, fd://", to: &c.hosts},
		{flag: "group", short: "G", key: "group", usage: "group of the unix socket", to: &c.group},
		{flag: "log-level", short: "l", key: "log-level", usage: "debug, info, warn, error", to: &c.logLevel},
		{flag: "debug", short: "D", key: "debug", usage: "log everything", to: &c.debug},
		{flag: "label", key: "labels", usage: "key=value label of the engine", to: &c.labels},
		{flag: "version", short: "v", usage: "print the version", to: &c.showVersion},
		{flag: "validate", usage: "check the configuration and exit", to: &c.validateOnly},
		{flag: "cleanup", usage: "end what a stopped engine of these directories left running, and exit", to: &c.cleanup},

		{flag: "salvage-records", usage: "start with damaged records, without those that cannot be read", to: &c.salvage},

		{flag: "insecure-registry", key: "insecure-registries", usage: "registry, or range of addresses, that may be spoken to without TLS", to: &c.insecure},
		{flag: "registry-mirror", key: "registry-mirrors", usage: "mirror of Docker Hub", to: &c.mirrors},

		{flag: "bridge", short: "b", key: "bridge", usage: "bridge of the host for the default network; none: no default network", to: &c.bridge},
		{flag: "default-network-opt", key: "default-network-opts", usage: "default option of new networks: bridge=KEY=VALUE", to: &c.networkOpts},
		{flag: "bridge-name", key: "bridge-name", usage: "device of the default network", to: &c.bridgeName},
		{flag: "bip", key: "bip", usage: "address of the default network's bridge, as 172.20.0.1/16", to: &c.bip},
		{flag: "bip6", key: "bip6", usage: "IPv6 address of the default network's bridge, as fd00:20::1/64", to: &c.bip6},
		{flag: "default-address-pool", key: "default-address-pools", usage: "pool for networks: base=10.10.0.0/16,size=24", to: &c.pools},
		{flag: "fixed-cidr", key: "fixed-cidr", usage: "range for addresses of the default network", to: &c.fixedCIDR},
		{flag: "fixed-cidr-v6", key: "fixed-cidr-v6", usage: "range for IPv6 addresses of the default network", to: &c.fixedCIDR6},
		{flag: "mtu", key: "mtu", usage: "MTU of networks", to: &c.mtu},
		{flag: "ipv6", key: "ipv6", usage: "IPv6 on the default network", to: &c.ipv6},
		{flag: "icc", key: "icc", usage: "let containers of the default network talk to each other", to: &c.icc},
		{flag: "ip", key: "ip", usage: "default address for published ports", to: &c.publishIP},
		{flag: "dns", key: "dns", usage: "name server for containers", to: &c.dns},
		{flag: "dns-search", key: "dns-search", usage: "search domain for containers", to: &c.dnsSearch},
		{flag: "dns-opt", key: "dns-opts", usage: "resolver option for containers", to: &c.dnsOptions},

		{flag: "tls", key: "tls", usage: "use TLS on TCP", to: &c.tls},
		{flag: "tlsverify", key: "tlsverify", usage: "use TLS on TCP, and ask clients for a certificate", to: &c.tlsVerify},
		{flag: "tlscacert", key: "tlscacert", usage: "authority of clients' certificates", to: &c.tlsCA},
		{flag: "tlscert", key: "tlscert", usage: "certificate", to: &c.tlsCert},
		{flag: "tlskey", key: "tlskey", usage: "key of the certificate", to: &c.tlsKey},
		{flag: "api-host", key: "api-hosts", usage: "host name under which clients reach the TCP socket", to: &c.apiHosts},

		{flag: "log-driver", key: "log-driver", usage: "default log driver of containers", to: &c.logDriver},
		{flag: "log-opt", key: "log-opts", usage: "default log option of containers", to: &c.logOpts},
		{flag: "default-ulimit", key: "default-ulimits", usage: "default limit of containers: nofile=1024:4096", to: &c.ulimits},
		{flag: "default-shm-size", key: "default-shm-size", usage: "default size of /dev/shm", to: &c.shmSize},
		{flag: "default-ipc-mode", key: "default-ipc-mode", usage: "private or shareable", to: &c.ipcMode},
		{flag: "default-cgroupns-mode", key: "default-cgroupns-mode", usage: "private or host", to: &c.cgroupnsMode},
		{flag: "default-stop-timeout", key: "default-stop-timeout", usage: "seconds before a stopped container is killed", to: &c.stopTimeout},
		{flag: "default-pids-limit", key: "default-pids-limit", usage: "processes of a container (-1: no limit)", to: &c.pidsLimit},
		{flag: "cgroup-parent", key: "cgroup-parent", usage: "control group above all containers", to: &c.cgroupParent},
		{flag: "exec-opt", key: "exec-opts", usage: "native.cgroupdriver=cgroupfs or systemd", to: &c.execOpts},
		{flag: "default-runtime", key: "default-runtime", usage: "runtime of containers that name none (default onggi, which runc means too)", to: &c.defaultRuntime},
		{flag: "add-runtime", key: "runtimes", usage: "a further OCI runtime: name=path", to: &c.runtimes},
		{flag: "init", key: "init", usage: "run an init in containers that reaps and forwards signals", to: &c.initByDefault},
		{flag: "cdi-spec-dir", key: "cdi-spec-dirs", usage: "directory of CDI device specifications (default /etc/cdi and /var/run/cdi)", to: &c.cdiDirs},
		{flag: "seccomp-profile", key: "seccomp-profile", usage: "default seccomp profile of containers: builtin, unconfined or a file", to: &c.seccompProfile},
		{flag: "no-new-privileges", key: "no-new-privileges", usage: "set no-new-privileges for containers by default", to: &c.noNewPrivs},

		{flag: "live-restore", key: "live-restore", note: "containers always run on while the engine is away", to: new(bool)},
		{flag: "userland-proxy", key: "userland-proxy", note: "published ports need no proxy process", to: new(bool)},
		{flag: "userland-proxy-path", key: "userland-proxy-path", note: "published ports need no proxy process", to: new(string)},
		{flag: "iptables", key: "iptables", note: "rules are set by nftables, in a table of their own", to: new(bool)},
		{flag: "ip6tables", key: "ip6tables", note: "rules are set by nftables, in a table of their own", to: new(bool)},
		{flag: "firewall-backend", key: "firewall-backend", note: "rules are set by nftables, in a table of their own", to: new(string)},
		{flag: "ip-forward", key: "ip-forward", note: "forwarding is on for the engine's own networks", to: new(bool)},
		{flag: "ip-forward-no-drop", key: "ip-forward-no-drop", note: "the policy of other forwarding is left alone", to: new(bool)},
		{flag: "ip-masq", key: "ip-masq", note: "networks masquerade unless they are internal", to: new(bool)},
		{flag: "allow-direct-routing", key: "allow-direct-routing", note: "unpublished ports stay closed from outside", to: new(bool)},
		{flag: "storage-driver", short: "s", key: "storage-driver", note: "", to: new(string)},
		{flag: "storage-opt", key: "storage-opts", note: "the store has no such options", to: new([]string)},
		{flag: "shutdown-timeout", key: "shutdown-timeout", note: "the end of the engine does not end containers", to: new(int)},
		{flag: "max-concurrent-downloads", key: "max-concurrent-downloads", note: "layers are fetched side by side as the machine allows", to: new(int)},
		{flag: "max-concurrent-uploads", key: "max-concurrent-uploads", note: "layers are sent side by side as the machine allows", to: new(int)},
		{flag: "max-download-attempts", key: "max-download-attempts", note: "downloads are resumed until the registry is given up", to: new(int)},
		{flag: "containerd", key: "containerd", note: "no containerd is used", to: new(string)},
		{flag: "containerd-namespace", key: "containerd-namespace", note: "no containerd is used", to: new(string)},
		{flag: "containerd-plugins-namespace", key: "containerd-plugins-namespace", note: "no containerd is used", to: new(string)},
		{flag: "experimental", key: "experimental", note: "there are no experimental features", to: new(bool)},
		{flag: "oom-score-adjust", key: "oom-score-adjust", note: "set OOMScoreAdjust in the service unit", to: new(int)},
		{flag: "selinux-enabled", key: "selinux-enabled", note: "SELinux labels are not set", to: new(bool)},
		{flag: "network-control-plane-mtu", key: "network-control-plane-mtu", note: "there is no swarm", to: new(int)},
		{flag: "min-api-version", key: "min-api-version", note: "all versions from 1.24 are served", to: new(string)},
		{flag: "raw-logs", key: "raw-logs", note: "logs have no colours", to: new(bool)},
		{flag: "log-format", key: "log-format", note: "logs are key=value lines", to: new(string)},
		{flag: "validate-config", note: "use --validate", to: new(bool)},
		{flag: "cri-containerd", key: "cri-containerd", note: "no containerd is used", to: new(bool)},
		{flag: "rootless", key: "rootless", refuse: "the engine cannot run without root yet"},
		{flag: "userns-remap", key: "userns-remap", refuse: "user namespaces for containers are not supported yet"},
		{flag: "authorization-plugin", key: "authorization-plugins", refuse: "plugins are not supported"},
		{flag: "metrics-addr", key: "metrics-addr", refuse: "metrics are not served yet"},
		{flag: "bridge-accept-fwmark", key: "bridge-accept-fwmark", refuse: "not supported"},
		{flag: "swarm-default-advertise-addr", key: "swarm-default-advertise-addr", refuse: "there is no swarm mode yet"},
		{flag: "node-generic-resource", key: "node-generic-resources", refuse: "there is no swarm mode yet"},
		{flag: "cluster-store", key: "cluster-store", refuse: "Docker removed it, too"},
		{flag: "cpu-rt-period", key: "cpu-rt-period", refuse: "not supported"},
		{flag: "cpu-rt-runtime", key: "cpu-rt-runtime", refuse: "not supported"},
		{flag: "default-gateway", key: "default-gateway", refuse: "the gateway of the default network is its bridge; see --bip"},
		{flag: "default-gateway-v6", key: "default-gateway-v6", refuse: "the gateway of the default network is its bridge"},
		{flag: "host-gateway-ip", key: "host-gateway-ips", usage: "address that host-gateway means in extra hosts (default: the gateway of the container's network)", to: &c.hostGateway},
		{flag: "http-proxy", usage: "proxy to registries without TLS (default $HTTP_PROXY)", to: &c.proxies.HTTP},
		{flag: "https-proxy", usage: "proxy to registries (default $HTTPS_PROXY)", to: &c.proxies.HTTPS},
		{flag: "no-proxy", usage: "hosts that are reached without a proxy (default $NO_PROXY)", to: &c.proxies.No},
		{flag: "feature", key: "features", usage: "switch a feature: buildkit=false lets clients use the classic builder, cdi=false knows no CDI devices", to: &c.features},
		{key: "builder", usage: "garbage collection, entitlements and history of builds, as dockerd has them", to: &c.builder},
		{key: "proxies", usage: "http-proxy, https-proxy and no-proxy, as the flags", to: &c.proxies},
	}
}

// parse reads the flags, then the configuration file for what they left open.
func parse(args []string) (*config, error) {
	c := &config{
		dataRoot: "/var/lib/onggi", execRoot: "/run/onggi", logLevel: "info", logDriver: "json-file", icc: true, ipv6: true,
		set: map[string]string{}, logOpts: map[string]string{}, ulimits: map[string]*containertypes.Ulimit{},
	}
	table := settings(c)
	if err := c.parseFlags(table, args); err != nil {
		return nil, err
	}
	if err := c.parseFile(table); err != nil {
		return nil, err
	}
	return c, c.check()
}

func (c *config) parseFlags(table []setting, args []string) error {
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		if a == "--help" || a == "-h" {
			return errHelp
		}
		if len(a) < 2 || a[0] != '-' || a == "--" {
			return errdefs.WithHint(invalid("unknown argument %q: onggid has flags only", a), "onggid --help")
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(a, "-"), "=")
		long := strings.HasPrefix(name, "-")
		name = strings.TrimPrefix(name, "-")
		s := lookup(table, name, long)
		if s == nil && !long && len(name) > 1 { // -Htcp://… and -Dl debug
			if s = lookup(table, name[:1], false); s != nil {
				rest := strings.TrimPrefix(a, "-"+name[:1])
				if _, isBool := s.to.(*bool); isBool {
					args = append([]string{"-" + rest}, args...)
				} else {
					value, hasValue = strings.TrimPrefix(rest, "="), true
				}
			}
		}
		if s == nil {
			return errdefs.WithHint(invalid("unknown flag: %s", a), nearest(table, name))
		}
		if s.refuse != "" {
			return errdefs.Newf(errdefs.Unsupported, "", "--"+s.flag, "%s", s.refuse)
		}
		if _, isBool := s.to.(*bool); isBool && !hasValue {
			value, hasValue = "true", true
		}
		if !hasValue {
			if len(args) == 0 {
				return invalid("flag --%s needs a value", s.flag)
			}
			value, args = args[0], args[1:]
		}
		if err := assign(s.to, value); err != nil {
			return invalid("--%s %q: %w", s.flag, value, err)
		}
		c.set[s.flag] = value
		c.noteFor(s, value)
	}
	return nil
}

func (c *config) noteFor(s *setting, value string) {
	if s.note != "" && !slices.Contains(c.notes, s.flag+": "+s.note) {
		c.notes = append(c.notes, s.flag+": "+s.note)
	}
	if s.flag == "storage-driver" && value != "overlay2" && value != "overlayfs" && value != "" {
		c.notes = append(c.notes, "storage-driver refused: "+value)
	}
}

func lookup(table []setting, name string, long bool) *setting {
	for i := range table {
		if s := &table[i]; long && s.flag == name && name != "" || !long && s.short == name && name != "" {
			return s
		}
	}
	return nil
}

// nearest proposes the flag that takes the fewest changes.
func nearest(table []setting, name string) string {
	best, dist := "", 4
	for _, s := range table {
		if s.flag == "" {
			continue
		}
		if d := distance(name, s.flag); d < dist {
			best, dist = s.flag, d
		}
	}
	if best == "" {
		return "onggid --help"
	}
	return "--" + best
}

// distance is how many letters have to be changed, added or left out.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := prev
			if a[i-1] != b[j-1] {
				cost = 1 + min(prev, row[j], row[j-1])
			}
			prev, row[j] = row[j], cost
		}
	}
	return row[len(b)]
}

func assign(to any, v string) (err error) {
	switch t := to.(type) {
	case *string:
		*t = v
	case *bool:
		*t, err = strconv.ParseBool(v)
	case *int:
		*t, err = strconv.Atoi(v)
	case *int64:
		*t, err = units.RAMInBytes(v)
	case *[]string:
		*t = append(*t, v)
	case *map[string]bool:
		k, val, ok := strings.Cut(v, "=")
		on := true
		if ok {
			if on, err = strconv.ParseBool(val); err != nil {
				return err
			}
		}
		if *t == nil {
			*t = map[string]bool{}
		}
		(*t)[k] = on
	case *map[string]string:
		k, val, ok := strings.Cut(v, "=")
		if !ok {
			return errors.New("want key=value")
		}
		(*t)[k] = val
	case *map[string]map[string]string:
		driver, opt, _ := strings.Cut(v, "=")
		k, val, ok := strings.Cut(opt, "=")
		if !ok {
			return errors.New("want driver=key=value")
		}
		if *t == nil {
			*t = map[string]map[string]string{}
		}
		if (*t)[driver] == nil {
			(*t)[driver] = map[string]string{}
		}
		(*t)[driver][k] = val
	case *[]pool:
		var p pool
		for part := range strings.SplitSeq(v, ",") {
			switch k, val, _ := strings.Cut(part, "="); k {
			case "base":
				p.Base, err = netip.ParsePrefix(val)
			case "size":
				p.Size, err = strconv.Atoi(val)
			default:
				err = errors.New("want base=10.10.0.0/16,size=24")
			}
			if err != nil {
				return err
			}
		}
		*t = append(*t, p)
	case *map[string]container.Runtime:
		name, path, ok := strings.Cut(v, "=")
		if !ok || name == "" || !filepath.IsAbs(path) {
			return errors.New("want name=/path")
		}
		if *t == nil {
			*t = map[string]container.Runtime{}
		}
		(*t)[name] = container.Runtime{Path: path}
	case *map[string]*containertypes.Ulimit:
		u, err := units.ParseUlimit(v)
		if err != nil {
			return err
		}
		(*t)[u.Name] = u
	default:
		return errors.New("no value is taken")
	}
	return err
}

const maxConfig = 1 << 20

// parseFile is worded as dockerd does, since programs look for it.
func (c *config) parseFile(table []setting) error {
	file := c.configFile
	if file == "" {
		file = defaultConfigFile
	}
	f, err := os.Open(file)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) && c.configFile == "" {
			return nil
		}
		return invalid("unable to configure the Docker daemon with file %s: %w", file, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxConfig+1))
	if err != nil || len(raw) > maxConfig {
		return invalid("unable to configure the Docker daemon with file %s: cannot be read, or is larger than %d bytes", file, maxConfig)
	}
	if len(strings.TrimSpace(string(raw))) == 0 {
		return nil
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(raw, &keys); err != nil {
		return invalid("unable to configure the Docker daemon with file %s: %w", file, err)
	}
	var twice []string
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		i := slices.IndexFunc(table, func(s setting) bool { return s.key == k })
		if i < 0 {
			return errdefs.WithHint(invalid("unable to configure the Docker daemon with file %s: unknown key %q", file, k), nearestKey(table, k))
		}
		s := &table[i]
		switch {
		case s.refuse != "":
			return errdefs.Newf(errdefs.Unsupported, "", "configuration "+file, "%s: %s", k, s.refuse)
		case s.note == "":
			twice = append(twice, c.twice(s, keys[k])...)
		}
		c.noteFor(s, "")
		if s.to == nil {
			continue
		}
		if err := assignJSON(s.to, keys[k]); err != nil {
			return invalid("unable to configure the Docker daemon with file %s: %s: %w", file, k, err)
		}
	}
	if len(twice) > 0 {
		return invalid("unable to configure the Docker daemon with file %s: the following directives are specified both as a flag and in the configuration file: %s", file, strings.Join(twice, ", "))
	}
	return nil
}

// twice says which flags were given for what the file says, too.
func (c *config) twice(s *setting, raw json.RawMessage) (out []string) {
	in := map[string]json.RawMessage{s.flag: raw}
	if s.key == "proxies" {
		json.Unmarshal(raw, &in) // assignJSON finds what is wrong with it
	}
	for _, flag := range slices.Sorted(maps.Keys(in)) {
		if v, given := c.set[flag]; given && flag != "" {
			out = append(out, fmt.Sprintf("%s: (from flag: %s, from file: %s)", flag, redacted(v), redacted(strings.Trim(string(in[flag]), `"`))))
		}
	}
	return out
}

// redacted is a URL without its account.
func redacted(v string) string {
	if i, j := strings.Index(v, "://"), strings.LastIndexByte(v, '@'); i >= 0 && j > i {
		return v[:i+3] + "xxxxx:xxxxx" + v[j:]
	}
	return v
}

func nearestKey(table []setting, name string) string {
	best, dist := "", 4
	for _, s := range table {
		if d := distance(name, s.key); s.key != "" && d < dist {
			best, dist = s.key, d
		}
	}
	if best == "" {
		return "see dockerd's daemon.json for the keys"
	}
	return best
}

func assignJSON(to any, raw json.RawMessage) error {
	switch t := to.(type) {
	case *int64:
		var s string
		if json.Unmarshal(raw, &s) == nil {
			return assign(to, s)
		}
		return json.Unmarshal(raw, t)
	case *map[string]*containertypes.Ulimit:
		var m map[string]struct {
			Name       string
			Soft, Hard int64
		}
		if err := json.Unmarshal(raw, &m); err != nil {
			return err
		}
		for name, u := range m {
			(*t)[name] = &containertypes.Ulimit{Name: name, Soft: u.Soft, Hard: u.Hard}
		}
		return nil
	}
	return json.Unmarshal(raw, to)
}

func invalid(format string, args ...any) error {
	return errdefs.Newf(errdefs.Invalid, "", "", format, args...)
}

// check refuses settings that cannot work together, and fills in the rest.
func (c *config) check() error {
	if c.cdiDirs == nil {
		c.cdiDirs = []string{"/etc/cdi", "/var/run/cdi"}
	}
	// As in dockerd, no devices are looked for in "", by an empty list, nor with
	// the feature off.
	c.cdiDirs = slices.DeleteFunc(c.cdiDirs, func(d string) bool { return d == "" })
	if on, said := c.features["cdi"]; said && !on {
		c.cdiDirs = nil
	}
	for _, n := range c.notes {
		if d, ok := strings.CutPrefix(n, "storage-driver refused: "); ok {
			return errdefs.Newf(errdefs.Unsupported, "", "--storage-driver "+d, "the store is built on overlayfs; overlay2 and overlayfs are accepted")
		}
	}
	for _, p := range []*string{&c.dataRoot, &c.execRoot} {
		abs, err := filepath.Abs(*p)
		if err != nil {
			return invalid("%s: %w", *p, err)
		}
		*p = abs
	}
	if c.pidfile == "" {
		c.pidfile = filepath.Join(c.execRoot, "onggid.pid")
	}
	if len(c.hosts) == 0 {
		c.hosts = []string{"unix://" + filepath.Join(c.execRoot, "onggi.sock")}
	}
	switch c.logLevel {
	case "debug", "info", "warn", "error", "fatal", "trace", "panic":
	default:
		return invalid("--log-level %q: want debug, info, warn or error", c.logLevel)
	}
	for name, r := range c.runtimes {
		if name == "onggi" || !filepath.IsAbs(r.Path) {
			return invalid("runtime %q: want a path, and another name than onggi", name)
		}
	}
	// In dockerd's files runc is the name of what is usual.
	if _, ok := c.runtimes["runc"]; c.defaultRuntime == "runc" && !ok || c.defaultRuntime == "" {
		c.defaultRuntime = "onggi"
	}
	if _, err := (container.Defaults{Runtimes: c.runtimes}).FindRuntime(c.defaultRuntime); err != nil {
		return err
	}
	if all := container.LogDrivers(); !slices.Contains(all, c.logDriver) {
		return errdefs.Newf(errdefs.Unsupported, "", "--log-driver "+c.logDriver, "the drivers are %s", strings.Join(all, ", "))
	}
	for _, l := range c.labels {
		if k, _, ok := strings.Cut(l, "="); !ok || k == "" {
			return invalid("bad attribute format: %s: a label is key=value", l)
		}
	}
	for _, p := range c.pools {
		if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen()-1 {
			return invalid("address pool %s with networks of /%d: the size must lie within the base", p.Base, p.Size)
		}
	}
	for _, d := range c.dns {
		if _, err := netip.ParseAddr(d); err != nil {
			return invalid("--dns %q: want an IP address", d)
		}
	}
	for _, a := range c.hostGateway {
		if _, err := netip.ParseAddr(a); err != nil {
			return invalid("--host-gateway-ip %q: want an IP address", a)
		}
	}
	for _, m := range c.mirrors {
		u, err := url.Parse(m)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return invalid("--registry-mirror %q: want https://host", m)
		}
	}
	for _, o := range c.execOpts {
		switch o {
		case "native.cgroupdriver=cgroupfs", "native.cgroupdriver=systemd":
		default:
			return invalid("--exec-opt %q: want native.cgroupdriver=cgroupfs or systemd", o)
		}
	}
	if err := c.readSeccomp(); err != nil {
		return err
	}
	return c.checkHosts()
}

// readSeccomp reads the default profile.
func (c *config) readSeccomp() error {
	switch c.seccompProfile {
	case "", "builtin", "unconfined":
		c.seccompProfile = cmp.Or(c.seccompProfile, "builtin")
		c.seccomp = strings.TrimPrefix(c.seccompProfile, "builtin")
		return nil
	}
	f, err := os.Open(c.seccompProfile)
	if err != nil {
		return invalid("opening seccomp profile (%s) failed: %w", c.seccompProfile, err)
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxConfig))
	if err == nil {
		err = container.CheckSeccomp(string(raw))
	}
	if err != nil {
		return invalid("--seccomp-profile %s: %w", c.seccompProfile, err)
	}
	c.seccomp = string(raw)
	return nil
}

// setProxies makes the environment say what flags and file say, which is where
// all that speaks to registries looks.
func (c *config) setProxies(log *slog.Logger) {
	for name, v := range map[string]string{"HTTP_PROXY": c.proxies.HTTP, "HTTPS_PROXY": c.proxies.HTTPS, "NO_PROXY": c.proxies.No} {
		if v == "" {
			continue
		}
		for _, name := range []string{name, strings.ToLower(name)} {
			if old := os.Getenv(name); old != "" && old != v {
				log.Warn("overriding existing proxy variable with value from configuration", "name", name, "old", redacted(old), "new", redacted(v))
			}
			os.Setenv(name, v)
		}
	}
}

// checkHosts refuses sockets through which anybody could become root.
func (c *config) checkHosts() error {
	for _, h := range c.hosts {
		scheme, addr, ok := strings.Cut(h, "://")
		if !ok {
			return errdefs.WithHint(invalid("-H %q: want unix:///path, tcp://address:port or fd://", h), "-H unix://"+h)
		}
		switch scheme {
		case "unix":
			if !filepath.IsAbs(addr) {
				return invalid("-H %q: want an absolute path", h)
			}
		case "fd":
		case "tcp":
			if err := c.checkTCP(h, addr); err != nil {
				return err
			}
		default:
			return invalid("-H %q: want unix:///path, tcp://address:port or fd://", h)
		}
	}
	if (c.tls || c.tlsVerify) && (c.tlsCert == "" || c.tlsKey == "") {
		return invalid("TLS needs --tlscert and --tlskey")
	}
	if c.tlsVerify && c.tlsCA == "" {
		return invalid("--tlsverify needs --tlscacert")
	}
	return nil
}

func (c *config) checkTCP(h, addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return invalid("-H %q: want tcp://address:port", h)
	}
	if c.tlsVerify {
		return nil
	}
	ip, err := netip.ParseAddr(host)
	loopback := host == "localhost" || err == nil && ip.IsLoopback()
	if _, said := c.set["tls"]; loopback && (c.tls || said) {
		return nil // --tls=false was said aloud
	}
	err = errdefs.Newf(errdefs.Forbidden, "listen", h, "whoever reaches this socket is root on this machine")
	if loopback {
		return errdefs.WithHint(err, "--tlsverify with certificates, or --tls=false if every user of this machine may be root")
	}
	return errdefs.WithHint(err, "--tlsverify --tlscacert --tlscert --tlskey, or ssh:// with the unix socket")
}

func (c *config) level() slog.Level {
	if c.debug {
		return slog.LevelDebug
	}
	switch c.logLevel {
	case "debug", "trace":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error", "fatal", "panic":
		return slog.LevelError
	}
	return slog.LevelInfo
}

func (c *config) systemdCgroups() bool {
	return slices.Contains(c.execOpts, "native.cgroupdriver=systemd")
}

func usage(w io.Writer) {
	fmt.Fprintf(w, "Usage: onggid [flags]\n\nThe engine of Onggi. Flags are dockerd's where it has the same thing.\n\n")
	c := &config{logOpts: map[string]string{}, ulimits: map[string]*containertypes.Ulimit{}}
	for _, s := range settings(c) {
		if s.usage == "" {
			continue
		}
		if s.flag == "" {
			defer fmt.Fprintf(w, "\nOnly in the configuration file: %s: %s\n", s.key, s.usage)
			continue
		}
		short := "    "
		if s.short != "" {
			short = "-" + s.short + ", "
		}
		fmt.Fprintf(w, "  %s--%-24s %s\n", short, s.flag, s.usage)
	}
}
