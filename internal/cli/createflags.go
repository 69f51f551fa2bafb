package cli

import (
	"encoding/csv"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// createBody is the body of POST /containers/create.
type createBody struct {
	Hostname, Domainname, User              string              `json:",omitempty"`
	AttachStdin, AttachStdout, AttachStderr bool                `json:",omitempty"`
	Tty, OpenStdin, StdinOnce               bool                `json:",omitempty"`
	ExposedPorts                            map[string]struct{} `json:",omitempty"`
	Env                                     []string            `json:",omitempty"`
	Cmd                                     []string            `json:",omitempty"`
	Entrypoint                              []string            `json:",omitempty"`
	Image                                   string
	WorkingDir                              string              `json:",omitempty"`
	Volumes                                 map[string]struct{} `json:",omitempty"`
	Labels                                  map[string]string   `json:",omitempty"`
	StopSignal                              string              `json:",omitempty"`
	StopTimeout                             *int                `json:",omitempty"`
	NetworkDisabled                         bool                `json:",omitempty"`
	Healthcheck                             *healthcheck        `json:",omitempty"`
	HostConfig                              hostConfig
	NetworkingConfig                        struct {
		EndpointsConfig map[string]*endpoint `json:",omitempty"`
	}
}

// MarshalJSON writes what is set. For all the types of the tree encoding/json
// makes encoders first, which takes a tenth of the time of `onggi run`.
func (b createBody) MarshalJSON() ([]byte, error) {
	return json.Marshal(fieldsSet(reflect.ValueOf(b)))
}

func fieldsSet(v reflect.Value) map[string]any {
	set := map[string]any{}
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		switch kind := f.Kind(); {
		case f.IsZero(), (kind == reflect.Slice || kind == reflect.Map) && f.Len() == 0:
		case kind == reflect.Struct:
			set[name] = fieldsSet(f)
		default:
			set[name] = f.Interface()
		}
	}
	return set
}

type healthcheck struct {
	Test                                          []string      `json:",omitempty"`
	Interval, Timeout, StartPeriod, StartInterval time.Duration `json:",omitempty"`
	Retries                                       int           `json:",omitempty"`
}

type endpoint struct {
	IPAMConfig *struct {
		IPv4Address  string   `json:",omitempty"`
		IPv6Address  string   `json:",omitempty"`
		LinkLocalIPs []string `json:",omitempty"`
	} `json:",omitempty"`
	Aliases    []string          `json:",omitempty"`
	Links      []string          `json:",omitempty"`
	MacAddress string            `json:",omitempty"`
	DriverOpts map[string]string `json:",omitempty"`
	GwPriority int               `json:",omitempty"`
}

type portBinding struct {
	HostIp   string `json:",omitempty"`
	HostPort string
}

type throttle struct {
	Path string
	Rate uint64
}

type weight struct {
	Path   string
	Weight uint16
}

type device struct{ PathOnHost, PathInContainer, CgroupPermissions string }

type deviceRequest struct {
	Driver       string            `json:",omitempty"`
	Count        int               `json:",omitempty"`
	DeviceIDs    []string          `json:",omitempty"`
	Capabilities [][]string        `json:",omitempty"`
	Options      map[string]string `json:",omitempty"`
}

type ulimit struct {
	Name       string
	Hard, Soft int64
}

type mount struct {
	Type          string
	Source        string         `json:",omitempty"`
	Target        string         `json:",omitempty"`
	ReadOnly      bool           `json:",omitempty"`
	Consistency   string         `json:",omitempty"`
	BindOptions   map[string]any `json:",omitempty"`
	VolumeOptions map[string]any `json:",omitempty"`
	TmpfsOptions  map[string]any `json:",omitempty"`
	ImageOptions  map[string]any `json:",omitempty"`
}

type hostConfig struct {
	Binds           []string `json:",omitempty"`
	ContainerIDFile string   `json:",omitempty"`
	LogConfig       struct {
		Type   string            `json:",omitempty"`
		Config map[string]string `json:",omitempty"`
	}
	NetworkMode   string                   `json:",omitempty"`
	PortBindings  map[string][]portBinding `json:",omitempty"`
	RestartPolicy struct {
		Name              string
		MaximumRetryCount int
	}
	AutoRemove           bool              `json:",omitempty"`
	VolumeDriver         string            `json:",omitempty"`
	VolumesFrom          []string          `json:",omitempty"`
	ConsoleSize          [2]uint           `json:",omitempty"`
	Annotations          map[string]string `json:",omitempty"`
	CapAdd, CapDrop      []string          `json:",omitempty"`
	CgroupnsMode         string            `json:",omitempty"`
	Dns                  []string          `json:",omitempty"`
	DnsOptions           []string          `json:",omitempty"`
	DnsSearch            []string          `json:",omitempty"`
	ExtraHosts           []string          `json:",omitempty"`
	GroupAdd             []string          `json:",omitempty"`
	IpcMode              string            `json:",omitempty"`
	Links                []string          `json:",omitempty"`
	OomScoreAdj          int               `json:",omitempty"`
	PidMode              string            `json:",omitempty"`
	Privileged           bool              `json:",omitempty"`
	PublishAllPorts      bool              `json:",omitempty"`
	ReadonlyRootfs       bool              `json:",omitempty"`
	SecurityOpt          []string          `json:",omitempty"`
	StorageOpt           map[string]string `json:",omitempty"`
	Tmpfs                map[string]string `json:",omitempty"`
	UTSMode              string            `json:",omitempty"`
	UsernsMode           string            `json:",omitempty"`
	ShmSize              int64             `json:",omitempty"`
	Sysctls              map[string]string `json:",omitempty"`
	Runtime              string            `json:",omitempty"`
	Isolation            string            `json:",omitempty"`
	CpuShares            int64             `json:",omitempty"`
	Memory               int64             `json:",omitempty"`
	NanoCpus             int64             `json:",omitempty"`
	CgroupParent         string            `json:",omitempty"`
	BlkioWeight          uint16            `json:",omitempty"`
	BlkioWeightDevice    []weight          `json:",omitempty"`
	BlkioDeviceReadBps   []throttle        `json:",omitempty"`
	BlkioDeviceWriteBps  []throttle        `json:",omitempty"`
	BlkioDeviceReadIOps  []throttle        `json:",omitempty"`
	BlkioDeviceWriteIOps []throttle        `json:",omitempty"`
	CpuPeriod, CpuQuota  int64             `json:",omitempty"`
	CpuRealtimePeriod    int64             `json:",omitempty"`
	CpuRealtimeRuntime   int64             `json:",omitempty"`
	CpusetCpus           string            `json:",omitempty"`
	CpusetMems           string            `json:",omitempty"`
	Devices              []device          `json:",omitempty"`
	DeviceCgroupRules    []string          `json:",omitempty"`
	DeviceRequests       []deviceRequest   `json:",omitempty"`
	MemoryReservation    int64             `json:",omitempty"`
	MemorySwap           int64             `json:",omitempty"`
	MemorySwappiness     *int64            `json:",omitempty"`
	OomKillDisable       *bool             `json:",omitempty"`
	Init                 *bool             `json:",omitempty"`
	PidsLimit            *int64            `json:",omitempty"`
	Umask                *uint32           `json:",omitempty"`
	Ulimits              []ulimit          `json:",omitempty"`
	Mounts               []mount           `json:",omitempty"`
}

// createFlags are the flags of create and run that describe the container.
type createFlags struct {
	f *pflag.FlagSet

	name, platform, pull string
	quiet                bool
	cidfile              string
	useAPISocket         bool

	attach                                                      []string
	interactive, tty                                            bool
	hostname, domainname, user, workdir, entrypoint, umask      string
	env, envFile, label, labelFile                              []string
	expose, publish                                             []string
	publishAll                                                  bool
	stopSignal                                                  string
	stopTimeout                                                 int
	healthCmd                                                   string
	healthInterval, healthTimeout, healthPeriod, healthStartInt time.Duration
	healthRetries                                               int
	noHealth                                                    bool

	volumes, volumesFrom, mounts, tmpfs                       []string
	volumeDriver                                              string
	network, networkAlias, links, linkLocal                   []string
	ip, ip6, mac                                              string
	dns, dnsOpt, dnsSearch, addHost                           []string
	logDriver                                                 string
	logOpt, annotation, capAdd, capDrop, groupAdd             []string
	cgroupns, cgroupParent, ipc, pid, uts, userns             string
	privileged, readOnly, rm, init, oomKillDisable            bool
	oomScore                                                  int
	restart, runtime, isolation                               string
	securityOpt, storageOpt, sysctl, ulimit                   []string
	shmSize, memory, memoryReservation, memorySwap            string
	swappiness                                                int64
	cpus                                                      string
	cpuShares, cpuPeriod, cpuQuota, cpuRtPeriod, cpuRtRuntime int64
	cpusetCpus, cpusetMems                                    string
	blkioWeight                                               uint16
	blkioWeightDevice, readBps, writeBps, readIops, writeIops []string
	device, deviceCgroupRule                                  []string
	gpus                                                      string
	pidsLimit                                                 int64
}

func addCreateFlags(f *pflag.FlagSet) *createFlags {
	c := &createFlags{f: f}
	f.StringVar(&c.name, "name", "", "name of the container")
	f.StringVar(&c.platform, "platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "platform of the image, where it has several")
	f.StringVar(&c.pull, "pull", "missing", "pull the image first: always, missing, never")
	f.BoolVarP(&c.quiet, "quiet", "q", false, "do not show the pull")
	f.StringVar(&c.cidfile, "cidfile", "", "write the container's id to this file")
	f.BoolVar(&c.useAPISocket, "use-api-socket", false, "give the container the engine's socket and your credentials for registries")
	f.VarP((*repeated)(&c.attach), "attach", "a", "attach stdin, stdout or stderr only")
	f.BoolVarP(&c.interactive, "interactive", "i", false, "keep stdin open")
	f.BoolVarP(&c.tty, "tty", "t", false, "give the container a terminal")
	f.StringVarP(&c.hostname, "hostname", "h", "", "host name in the container")
	f.StringVar(&c.domainname, "domainname", "", "domain name in the container")
	f.StringVarP(&c.user, "user", "u", "", "user[:group], by name or number")
	f.StringVarP(&c.workdir, "workdir", "w", "", "working directory")
	f.StringVar(&c.entrypoint, "entrypoint", "", "replaces the image's entrypoint")
	f.VarP((*repeated)(&c.env), "env", "e", "environment: NAME=value, or NAME to hand ours on")
	f.Var((*repeated)(&c.envFile), "env-file", "file with a line of environment each")
	f.VarP((*repeated)(&c.label), "label", "l", "label: key=value")
	f.Var((*repeated)(&c.labelFile), "label-file", "file with a label each line")
	f.Var((*repeated)(&c.expose), "expose", "port, or range, that the container listens on")
	f.VarP((*repeated)(&c.publish), "publish", "p", "publish a port: [[address:]port:]port[/protocol]")
	f.BoolVarP(&c.publishAll, "publish-all", "P", false, "publish every exposed port on a free one")
	f.StringVar(&c.stopSignal, "stop-signal", "", "signal that asks the container to stop")
	f.IntVar(&c.stopTimeout, "stop-timeout", 0, "seconds from that signal to SIGKILL")
	f.StringVar(&c.healthCmd, "health-cmd", "", "command that checks health")
	f.DurationVar(&c.healthInterval, "health-interval", 0, "time between checks")
	f.DurationVar(&c.healthTimeout, "health-timeout", 0, "time that a check may take")
	f.DurationVar(&c.healthPeriod, "health-start-period", 0, "time after the start in which failures do not count")
	f.DurationVar(&c.healthStartInt, "health-start-interval", 0, "time between checks in that period")
	f.IntVar(&c.healthRetries, "health-retries", 0, "failures in a row that mean unhealthy")
	f.BoolVar(&c.noHealth, "no-healthcheck", false, "no health check, even where the image has one")
	f.VarP((*repeated)(&c.volumes), "volume", "v", "bind or volume: source:target[:options]")
	f.Var((*repeated)(&c.volumesFrom), "volumes-from", "volumes of another container")
	f.StringVar(&c.volumeDriver, "volume-driver", "", "driver of new volumes")
	f.Var((*repeated)(&c.mounts), "mount", "type=bind|volume|tmpfs|image,source=…,target=…[,option]")
	f.Var((*repeated)(&c.tmpfs), "tmpfs", "path[:options] of a tmpfs")
	f.Var((*repeated)(&c.network), "network", "network to join, or host, none, container:NAME")
	f.Var((*repeated)(&c.network), "net", "the same")
	f.Var((*repeated)(&c.networkAlias), "network-alias", "further name on the network")
	f.Var((*repeated)(&c.networkAlias), "net-alias", "the same")
	f.Var((*repeated)(&c.links), "link", "link to another container: name[:alias]")
	f.Var((*repeated)(&c.linkLocal), "link-local-ip", "link-local addresses")
	f.StringVar(&c.ip, "ip", "", "IPv4 address")
	f.StringVar(&c.ip6, "ip6", "", "IPv6 address")
	f.StringVar(&c.mac, "mac-address", "", "MAC address")
	f.Var((*repeated)(&c.dns), "dns", "DNS server")
	f.Var((*repeated)(&c.dnsOpt), "dns-option", "DNS option")
	f.Var((*repeated)(&c.dnsOpt), "dns-opt", "the same")
	f.Var((*repeated)(&c.dnsSearch), "dns-search", "DNS search domain")
	f.Var((*repeated)(&c.addHost), "add-host", "line of /etc/hosts: name:address")
	f.StringVar(&c.logDriver, "log-driver", "", "where the log goes")
	f.Var((*repeated)(&c.logOpt), "log-opt", "option of the log driver: key=value")
	f.Var((*repeated)(&c.annotation), "annotation", "annotation for the runtime: key=value")
	f.Var((*repeated)(&c.capAdd), "cap-add", "capability to add")
	f.Var((*repeated)(&c.capDrop), "cap-drop", "capability to drop")
	f.Var((*repeated)(&c.groupAdd), "group-add", "further group")
	f.StringVar(&c.cgroupns, "cgroupns", "", "control group namespace: host, private")
	f.StringVar(&c.cgroupParent, "cgroup-parent", "", "parent of the control group")
	f.StringVar(&c.ipc, "ipc", "", "IPC namespace: private, shareable, host, container:NAME, none")
	f.StringVar(&c.pid, "pid", "", "PID namespace: host, container:NAME")
	f.StringVar(&c.uts, "uts", "", "UTS namespace: host")
	f.StringVar(&c.userns, "userns", "", "user namespace: host")
	f.BoolVar(&c.privileged, "privileged", false, "all capabilities and devices")
	f.BoolVar(&c.readOnly, "read-only", false, "root file system cannot be written")
	f.BoolVar(&c.rm, "rm", false, "remove the container when it ends")
	f.BoolVar(&c.init, "init", false, "run an init that reaps processes")
	f.BoolVar(&c.oomKillDisable, "oom-kill-disable", false, "do not kill when memory is used up")
	f.IntVar(&c.oomScore, "oom-score-adj", 0, "preference when memory is used up, -1000 to 1000")
	f.StringVar(&c.restart, "restart", "no", "no, on-failure[:n], always, unless-stopped")
	f.StringVar(&c.runtime, "runtime", "", "OCI runtime")
	f.StringVar(&c.isolation, "isolation", "", "accepted for Docker's sake")
	f.Var((*repeated)(&c.securityOpt), "security-opt", "no-new-privileges, seccomp=FILE, …")
	f.Var((*repeated)(&c.storageOpt), "storage-opt", "option of the storage: key=value")
	f.Var((*repeated)(&c.sysctl), "sysctl", "kernel parameter of the namespaces: key=value")
	f.Var((*repeated)(&c.ulimit), "ulimit", "limit: name=soft[:hard]")
	f.StringVar(&c.shmSize, "shm-size", "", "size of /dev/shm")
	f.StringVarP(&c.memory, "memory", "m", "", "limit of memory: 512m, 2g")
	f.StringVar(&c.memoryReservation, "memory-reservation", "", "soft limit of memory")
	f.StringVar(&c.memorySwap, "memory-swap", "", "limit of memory and swap together, -1 = none")
	f.Int64Var(&c.swappiness, "memory-swappiness", -1, "0 to 100")
	f.StringVar(&c.cpus, "cpus", "", "number of CPUs: 1.5")
	f.Int64VarP(&c.cpuShares, "cpu-shares", "c", 0, "relative weight")
	f.Int64Var(&c.cpuPeriod, "cpu-period", 0, "period of the quota, in microseconds")
	f.Int64Var(&c.cpuQuota, "cpu-quota", 0, "quota in a period, in microseconds")
	f.Int64Var(&c.cpuRtPeriod, "cpu-rt-period", 0, "real-time period, in microseconds")
	f.Int64Var(&c.cpuRtRuntime, "cpu-rt-runtime", 0, "real-time quota, in microseconds")
	f.StringVar(&c.cpusetCpus, "cpuset-cpus", "", "CPUs to run on: 0-3,5")
	f.StringVar(&c.cpusetMems, "cpuset-mems", "", "memory nodes: 0-1")
	f.Uint16Var(&c.blkioWeight, "blkio-weight", 0, "relative weight of block I/O, 10 to 1000")
	f.Var((*repeated)(&c.blkioWeightDevice), "blkio-weight-device", "the same for a device: path:weight")
	f.Var((*repeated)(&c.readBps), "device-read-bps", "limit of bytes read a second: path:rate")
	f.Var((*repeated)(&c.writeBps), "device-write-bps", "limit of bytes written a second: path:rate")
	f.Var((*repeated)(&c.readIops), "device-read-iops", "limit of reads a second: path:rate")
	f.Var((*repeated)(&c.writeIops), "device-write-iops", "limit of writes a second: path:rate")
	f.Var((*repeated)(&c.device), "device", "device: path[:path][:rwm], or a CDI name")
	f.Var((*repeated)(&c.deviceCgroupRule), "device-cgroup-rule", "rule: c 1:3 rwm")
	f.StringVar(&c.gpus, "gpus", "", "GPUs: all, a number, or device=…")
	f.Int64Var(&c.pidsLimit, "pids-limit", 0, "limit of processes, -1 = none")
	f.StringVar(&c.umask, "umask", "", "umask of the container's processes, octal")
	for _, name := range []string{"cpu-count", "cpu-percent", "io-maxbandwidth", "io-maxiops"} {
		f.String(name, "", "Windows only")
		f.MarkHidden(name)
	}
	f.Bool("disable-content-trust", true, "accepted for Docker's sake")
	return c
}

// flagError names the flag that could not be understood.
func flagError(flag, value string, format string, args ...any) error {
	return &usageError{text: fmt.Sprintf("--%s %q: %s", flag, value, fmt.Sprintf(format, args...))}
}

// body makes the request's body from the flags.
func (c *createFlags) body(image string, cmd []string) (*createBody, error) {
	if c.pull != "always" && c.pull != "missing" && c.pull != "never" {
		return nil, flagError("pull", c.pull, "want always, missing or never")
	}
	b := &createBody{
		Hostname: c.hostname, Domainname: c.domainname, User: c.user, Tty: c.tty, OpenStdin: c.interactive,
		Image: image, Cmd: cmd, WorkingDir: c.workdir, StopSignal: c.stopSignal,
	}
	if c.f.Changed("entrypoint") {
		b.Entrypoint = []string{c.entrypoint} // one empty word unsets the image's
	}
	if c.f.Changed("stop-timeout") {
		b.StopTimeout = &c.stopTimeout
	}
	var err error
	if b.Env, err = environment(c.env, c.envFile); err != nil {
		return nil, err
	}
	if b.Labels, err = labels(c.label, c.labelFile); err != nil {
		return nil, err
	}
	if b.Healthcheck, err = c.health(); err != nil {
		return nil, err
	}
	if err := c.ports(b); err != nil {
		return nil, err
	}
	if err := c.storage(b); err != nil {
		return nil, err
	}
	if err := c.networks(b); err != nil {
		return nil, err
	}
	if err := c.resources(&b.HostConfig); err != nil {
		return nil, err
	}
	return b, c.host(&b.HostConfig)
}

func environment(set, files []string) ([]string, error) {
	var out []string
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("--env-file: %w", err)
		}
		for i, line := range strings.Split(strings.TrimPrefix(string(data), "\ufeff"), "\n") {
			line = strings.TrimLeft(strings.TrimSuffix(line, "\r"), " \t")
			if line == "" || strings.HasPrefix(line, "#") {
				continue
			}
			key, _, _ := strings.Cut(line, "=")
			if key == "" || strings.ContainsAny(key, " \t") {
				return nil, fmt.Errorf("--env-file %s, line %d: the name %q is not one", name, i+1, key)
			}
			if v, ok := handedOn(line); ok {
				out = append(out, v)
			}
		}
	}
	for _, e := range set {
		if strings.HasPrefix(e, "=") || e == "" {
			return nil, flagError("env", e, "has no name")
		}
		if v, ok := handedOn(e); ok {
			out = append(out, v)
		}
	}
	return out, nil
}

// handedOn completes a name without a value from our own environment.
func handedOn(e string) (string, bool) {
	if strings.Contains(e, "=") {
		return e, true
	}
	v, ok := os.LookupEnv(e)
	return e + "=" + v, ok
}

func labels(set, files []string) (map[string]string, error) {
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("--label-file: %w", err)
		}
		var lines []string
		for _, line := range strings.Split(string(data), "\n") {
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
				lines = append(lines, line)
			}
		}
		set = append(lines, set...)
	}
	return pairs("label", set)
}

// pairs splits key=value; a key alone has the empty value.
func pairs(flag string, set []string) (map[string]string, error) {
	if len(set) == 0 {
		return nil, nil
	}
	m := map[string]string{}
	for _, s := range set {
		k, v, _ := strings.Cut(s, "=")
		if k == "" {
			return nil, flagError(flag, s, "has no key")
		}
		m[k] = v
	}
	return m, nil
}

func (c *createFlags) health() (*healthcheck, error) {
	set := false
	for _, n := range []string{"health-cmd", "health-interval", "health-timeout", "health-start-period", "health-start-interval", "health-retries"} {
		set = set || c.f.Changed(n)
	}
	switch {
	case c.noHealth && set:
		return nil, &usageError{text: "--no-healthcheck excludes the --health flags"}
	case c.noHealth:
		return &healthcheck{Test: []string{"NONE"}}, nil
	case !set:
		return nil, nil
	}
	h := &healthcheck{Interval: c.healthInterval, Timeout: c.healthTimeout, StartPeriod: c.healthPeriod, StartInterval: c.healthStartInt, Retries: c.healthRetries}
	if c.healthCmd != "" {
		h.Test = []string{"CMD-SHELL", c.healthCmd}
	}
	return h, nil
}

func (c *createFlags) ports(b *createBody) error {
	b.ExposedPorts = map[string]struct{}{}
	b.HostConfig.PublishAllPorts = c.publishAll
	for _, p := range c.expose {
		port, proto := splitProto(p)
		lo, hi, err := portRange(port)
		if err != nil || strings.Contains(port, ":") {
			return flagError("expose", p, "is not a port, or a range of ports")
		}
		for n := lo; n <= hi; n++ {
			b.ExposedPorts[fmt.Sprintf("%d/%s", n, proto)] = struct{}{}
		}
	}
	for _, p := range c.publish {
		if err := publish(b, p); err != nil {
			return err
		}
	}
	return nil
}

func splitProto(p string) (port, proto string) {
	port, proto, ok := strings.Cut(p, "/")
	if !ok {
		proto = "tcp"
	}
	return port, strings.ToLower(proto)
}

func portRange(s string) (lo, hi int, err error) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		b = a
	}
	l, err := strconv.ParseUint(a, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	h, err := strconv.ParseUint(b, 10, 16)
	if err != nil {
		return 0, 0, err
	}
	if h < l || l == 0 {
		return 0, 0, fmt.Errorf("the range %s is empty", s)
	}
	return int(l), int(h), nil
}

// publish reads [[address:]port:]port[/protocol] and its long form
// target=…,published=….
func publish(b *createBody, p string) error {
	if strings.Contains(p, "=") {
		return publishLong(b, p)
	}
	spec, proto := splitProto(p)
	switch proto {
	case "tcp", "udp", "sctp":
	default:
		return flagError("publish", p, "the protocol %q is not tcp, udp or sctp", proto)
	}
	var addr, host string
	container := spec
	if i := strings.LastIndexByte(spec, ':'); i >= 0 {
		container, host = spec[i+1:], spec[:i]
		if i := strings.LastIndexByte(host, ':'); i >= 0 {
			addr, host = host[:i], host[i+1:]
			addr = strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]")
			if net.ParseIP(addr) == nil {
				return flagError("publish", p, "%q is not an address", addr)
			}
		}
	}
	lo, hi, err := portRange(container)
	if err != nil {
		return flagError("publish", p, "%q is not a port of the container; want [[address:]port:]port[/udp]", container)
	}
	hlo, hhi := 0, 0
	if host != "" && host != "0" {
		if hlo, hhi, err = portRange(host); err != nil {
			return flagError("publish", p, "%q is not a port of the host; want [[address:]port:]port[/udp]", host)
		}
		if hhi-hlo != hi-lo && hi != lo {
			return flagError("publish", p, "the ranges differ in length")
		}
	}
	for n := lo; n <= hi; n++ {
		hp := ""
		switch {
		case hlo == 0:
		case hi == lo && hhi > hlo:
			hp = fmt.Sprintf("%d-%d", hlo, hhi)
		default:
			hp = strconv.Itoa(hlo + n - lo)
		}
		bind(b, fmt.Sprintf("%d/%s", n, proto), portBinding{addr, hp})
	}
	return nil
}

func publishLong(b *createBody, p string) error {
	var target, published, proto = "", "", "tcp"
	for _, part := range strings.Split(p, ",") {
		k, v, _ := strings.Cut(part, "=")
		switch strings.ToLower(k) {
		case "target":
			target = v
		case "published":
			published = v
		case "protocol":
			proto = v
		case "mode", "name", "app_protocol":
		default:
			return flagError("publish", p, "%q is not a key", k)
		}
	}
	if published != "" {
		target = published + ":" + target
	}
	return publish(b, target+"/"+proto)
}

func bind(b *createBody, port string, pb portBinding) {
	b.ExposedPorts[port] = struct{}{}
	if b.HostConfig.PortBindings == nil {
		b.HostConfig.PortBindings = map[string][]portBinding{}
	}
	b.HostConfig.PortBindings[port] = append(b.HostConfig.PortBindings[port], pb)
}

func (c *createFlags) storage(b *createBody) error {
	for _, v := range c.volumes {
		src, _, ok := strings.Cut(v, ":")
		if !ok {
			if b.Volumes == nil {
				b.Volumes = map[string]struct{}{}
			}
			b.Volumes[v] = struct{}{}
			continue
		}
		if src == "." || src == ".." || strings.HasPrefix(src, "./") || strings.HasPrefix(src, "../") || strings.HasPrefix(src, "~/") {
			abs, err := filepath.Abs(src)
			if err != nil {
				return flagError("volume", v, "%v", err)
			}
			v = abs + v[len(src):]
		}
		b.HostConfig.Binds = append(b.HostConfig.Binds, v)
	}
	for _, t := range c.tmpfs {
		path, opts, _ := strings.Cut(t, ":")
		if b.HostConfig.Tmpfs == nil {
			b.HostConfig.Tmpfs = map[string]string{}
		}
		b.HostConfig.Tmpfs[path] = opts
	}
	for _, m := range c.mounts {
		parsed, err := parseMount(m)
		if err != nil {
			return err
		}
		b.HostConfig.Mounts = append(b.HostConfig.Mounts, *parsed)
	}
	b.HostConfig.VolumesFrom, b.HostConfig.VolumeDriver = c.volumesFrom, c.volumeDriver
	return nil
}

// parseMount reads the value of --mount.
func parseMount(s string) (*mount, error) {
	r := csv.NewReader(strings.NewReader(s))
	fields, err := r.Read()
	if err != nil {
		return nil, flagError("mount", s, "%v", err)
	}
	m := &mount{Type: "volume"}
	set := func(opts *map[string]any, k string, v any) {
		if *opts == nil {
			*opts = map[string]any{}
		}
		(*opts)[k] = v
	}
	for _, field := range fields {
		k, v, has := strings.Cut(field, "=")
		k = strings.ToLower(strings.TrimSpace(k))
		yes := !has || v == "true" || v == "1"
		switch k {
		case "type":
			m.Type = strings.ToLower(v)
		case "source", "src":
			m.Source = v
		case "target", "dst", "destination":
			m.Target = v
		case "readonly", "ro":
			m.ReadOnly = yes
		case "consistency":
			m.Consistency = v
		case "bind-propagation":
			set(&m.BindOptions, "Propagation", v)
		case "bind-nonrecursive":
			set(&m.BindOptions, "NonRecursive", yes)
		case "bind-create-src":
			set(&m.BindOptions, "CreateMountpoint", yes)
		case "bind-recursive":
			switch v {
			case "enabled":
			case "disabled":
				set(&m.BindOptions, "NonRecursive", true)
			case "writable":
				set(&m.BindOptions, "ReadOnlyNonRecursive", true)
			case "readonly":
				set(&m.BindOptions, "ReadOnlyForceRecursive", true)
			default:
				return nil, flagError("mount", s, "bind-recursive is enabled, disabled, writable or readonly")
			}
		case "volume-nocopy":
			set(&m.VolumeOptions, "NoCopy", yes)
		case "volume-subpath":
			set(&m.VolumeOptions, "Subpath", v)
		case "volume-driver":
			driver(m)["Name"] = v
		case "volume-opt":
			ok, ov, _ := strings.Cut(v, "=")
			d := driver(m)
			if d["Options"] == nil {
				d["Options"] = map[string]string{}
			}
			d["Options"].(map[string]string)[ok] = ov
		case "volume-label":
			lk, lv, _ := strings.Cut(v, "=")
			if m.VolumeOptions["Labels"] == nil {
				set(&m.VolumeOptions, "Labels", map[string]string{})
			}
			m.VolumeOptions["Labels"].(map[string]string)[lk] = lv
		case "image-subpath":
			set(&m.ImageOptions, "Subpath", v)
		case "tmpfs-size":
			n, err := bytesOf(v)
			if err != nil {
				return nil, flagError("mount", s, "tmpfs-size: %v", err)
			}
			set(&m.TmpfsOptions, "SizeBytes", n)
		case "tmpfs-mode":
			n, err := strconv.ParseUint(v, 8, 32)
			if err != nil {
				return nil, flagError("mount", s, "tmpfs-mode %q is not octal", v)
			}
			set(&m.TmpfsOptions, "Mode", n)
		default:
			return nil, flagError("mount", s, "%q is not an option", k)
		}
	}
	if m.Target == "" {
		return nil, flagError("mount", s, "has no target")
	}
	if m.Type == "bind" && (strings.HasPrefix(m.Source, ".") || strings.HasPrefix(m.Source, "~/")) {
		if m.Source, err = filepath.Abs(m.Source); err != nil {
			return nil, flagError("mount", s, "%v", err)
		}
	}
	return m, nil
}

func driver(m *mount) map[string]any {
	if m.VolumeOptions == nil {
		m.VolumeOptions = map[string]any{}
	}
	if m.VolumeOptions["DriverConfig"] == nil {
		m.VolumeOptions["DriverConfig"] = map[string]any{}
	}
	return m.VolumeOptions["DriverConfig"].(map[string]any)
}

func (c *createFlags) networks(b *createBody) error {
	if len(c.network) > 0 {
		b.NetworkingConfig.EndpointsConfig = map[string]*endpoint{}
	}
	for i, n := range c.network {
		name, ep, err := parseNetwork(n)
		if err != nil {
			return err
		}
		if i == 0 {
			b.HostConfig.NetworkMode = name
			c.firstEndpoint(ep)
		}
		if name != "host" && name != "none" && !strings.HasPrefix(name, "container:") {
			b.NetworkingConfig.EndpointsConfig[name] = ep
		}
	}
	if len(c.network) == 0 {
		ep := &endpoint{}
		c.firstEndpoint(ep)
		if ep.IPAMConfig != nil || ep.MacAddress != "" || len(ep.Aliases) > 0 || len(ep.Links) > 0 {
			b.NetworkingConfig.EndpointsConfig = map[string]*endpoint{"default": ep}
		}
	}
	b.HostConfig.Links = c.links
	return nil
}

// firstEndpoint applies the flags that speak of the first network.
func (c *createFlags) firstEndpoint(ep *endpoint) {
	ep.Aliases = append(ep.Aliases, c.networkAlias...)
	if c.mac != "" {
		ep.MacAddress = c.mac
	}
	if c.ip != "" || c.ip6 != "" || len(c.linkLocal) > 0 {
		ipam(ep)
		if c.ip != "" {
			ep.IPAMConfig.IPv4Address = c.ip
		}
		if c.ip6 != "" {
			ep.IPAMConfig.IPv6Address = c.ip6
		}
		ep.IPAMConfig.LinkLocalIPs = append(ep.IPAMConfig.LinkLocalIPs, c.linkLocal...)
	}
}

func ipam(ep *endpoint) {
	if ep.IPAMConfig == nil {
		ep.IPAMConfig = &struct {
			IPv4Address  string   `json:",omitempty"`
			IPv6Address  string   `json:",omitempty"`
			LinkLocalIPs []string `json:",omitempty"`
		}{}
	}
}

// parseNetwork reads a name, or name=…,alias=…,ip=….
func parseNetwork(s string) (string, *endpoint, error) {
	ep := &endpoint{}
	if !strings.Contains(s, "=") {
		return s, ep, nil
	}
	name := ""
	for _, part := range strings.Split(s, ",") {
		k, v, _ := strings.Cut(part, "=")
		switch k {
		case "name":
			name = v
		case "alias":
			ep.Aliases = append(ep.Aliases, v)
		case "ip":
			ipam(ep)
			ep.IPAMConfig.IPv4Address = v
		case "ip6":
			ipam(ep)
			ep.IPAMConfig.IPv6Address = v
		case "link-local-ip":
			ipam(ep)
			ep.IPAMConfig.LinkLocalIPs = append(ep.IPAMConfig.LinkLocalIPs, v)
		case "mac-address":
			ep.MacAddress = v
		case "driver-opt":
			ok, ov, _ := strings.Cut(v, "=")
			if ep.DriverOpts == nil {
				ep.DriverOpts = map[string]string{}
			}
			ep.DriverOpts[ok] = ov
		case "gw-priority":
			n, err := strconv.Atoi(v)
			if err != nil {
				return "", nil, flagError("network", s, "gw-priority %q is not a number", v)
			}
			ep.GwPriority = n
		default:
			return "", nil, flagError("network", s, "%q is not a key", k)
		}
	}
	if name == "" {
		return "", nil, flagError("network", s, "has no name")
	}
	return name, ep, nil
}

func (c *createFlags) resources(h *hostConfig) error {
	for _, x := range []struct {
		flag, value string
		into        *int64
	}{{"memory", c.memory, &h.Memory}, {"memory-reservation", c.memoryReservation, &h.MemoryReservation}, {"shm-size", c.shmSize, &h.ShmSize}} {
		if x.value == "" {
			continue
		}
		n, err := bytesOf(x.value)
		if err != nil {
			return flagError(x.flag, x.value, "%v", err)
		}
		*x.into = n
	}
	if c.memorySwap == "-1" {
		h.MemorySwap = -1
	} else if c.memorySwap != "" {
		n, err := bytesOf(c.memorySwap)
		if err != nil {
			return flagError("memory-swap", c.memorySwap, "%v", err)
		}
		h.MemorySwap = n
	}
	if c.f.Changed("memory-swappiness") {
		h.MemorySwappiness = &c.swappiness
	}
	if c.f.Changed("pids-limit") {
		h.PidsLimit = &c.pidsLimit
	}
	if c.f.Changed("oom-kill-disable") {
		h.OomKillDisable = &c.oomKillDisable
	}
	if c.cpus != "" {
		n, err := strconv.ParseFloat(c.cpus, 64)
		if err != nil || n < 0 {
			return flagError("cpus", c.cpus, "is not a number of CPUs")
		}
		h.NanoCpus = int64(n*1e9 + 0.5)
	}
	h.CpuShares, h.CpuPeriod, h.CpuQuota = c.cpuShares, c.cpuPeriod, c.cpuQuota
	h.CpuRealtimePeriod, h.CpuRealtimeRuntime = c.cpuRtPeriod, c.cpuRtRuntime
	h.CpusetCpus, h.CpusetMems, h.BlkioWeight, h.CgroupParent = c.cpusetCpus, c.cpusetMems, c.blkioWeight, c.cgroupParent
	h.OomScoreAdj = c.oomScore
	for _, x := range []struct {
		flag  string
		set   []string
		bytes bool
		into  *[]throttle
	}{{"device-read-bps", c.readBps, true, &h.BlkioDeviceReadBps}, {"device-write-bps", c.writeBps, true, &h.BlkioDeviceWriteBps},
		{"device-read-iops", c.readIops, false, &h.BlkioDeviceReadIOps}, {"device-write-iops", c.writeIops, false, &h.BlkioDeviceWriteIOps}} {
		for _, s := range x.set {
			path, rate, ok := strings.Cut(s, ":")
			n, err := strconv.ParseInt(rate, 10, 64)
			if x.bytes {
				n, err = bytesOf(rate)
			}
			if !ok || err != nil || n < 0 {
				return flagError(x.flag, s, "want path:rate")
			}
			*x.into = append(*x.into, throttle{path, uint64(n)})
		}
	}
	for _, s := range c.blkioWeightDevice {
		path, w, _ := strings.Cut(s, ":")
		n, err := strconv.ParseUint(w, 10, 16)
		if err != nil {
			return flagError("blkio-weight-device", s, "want path:weight")
		}
		h.BlkioWeightDevice = append(h.BlkioWeightDevice, weight{path, uint16(n)})
	}
	for _, s := range c.ulimit {
		u, err := parseUlimit(s)
		if err != nil {
			return err
		}
		h.Ulimits = append(h.Ulimits, u)
	}
	return c.devices(h)
}

func parseUlimit(s string) (ulimit, error) {
	name, limits, ok := strings.Cut(s, "=")
	soft, hard, two := strings.Cut(limits, ":")
	if !two {
		hard = soft
	}
	number := func(s string) (int64, error) {
		if s == "unlimited" {
			return -1, nil
		}
		return strconv.ParseInt(s, 10, 64)
	}
	a, err1 := number(soft)
	b, err2 := number(hard)
	if !ok || err1 != nil || err2 != nil {
		return ulimit{}, flagError("ulimit", s, "want name=soft[:hard]")
	}
	if b != -1 && (a > b || a == -1) {
		return ulimit{}, flagError("ulimit", s, "the soft limit is above the hard one")
	}
	return ulimit{name, b, a}, nil
}

func (c *createFlags) devices(h *hostConfig) error {
	for _, s := range c.device {
		if !strings.HasPrefix(s, "/") && strings.Contains(s, "=") {
			h.DeviceRequests = append(h.DeviceRequests, deviceRequest{Driver: "cdi", DeviceIDs: []string{s}})
			continue
		}
		parts := strings.Split(s, ":")
		d := device{PathOnHost: parts[0], PathInContainer: parts[0], CgroupPermissions: "rwm"}
		isMode := func(s string) bool { return s != "" && strings.Trim(s, "rwm") == "" }
		switch len(parts) {
		case 1:
		case 2:
			if isMode(parts[1]) {
				d.CgroupPermissions = parts[1]
			} else {
				d.PathInContainer = parts[1]
			}
		case 3:
			if !isMode(parts[2]) {
				return flagError("device", s, "%q is not made of r, w and m", parts[2])
			}
			d.PathInContainer, d.CgroupPermissions = parts[1], parts[2]
		default:
			return flagError("device", s, "want path[:path][:rwm]")
		}
		h.Devices = append(h.Devices, d)
	}
	h.DeviceCgroupRules = c.deviceCgroupRule
	if c.gpus != "" {
		r := deviceRequest{Capabilities: [][]string{{"gpu"}}}
		switch n, err := strconv.Atoi(c.gpus); {
		case c.gpus == "all":
			r.Count = -1
		case err == nil:
			r.Count = n
		default:
			for _, part := range strings.Split(c.gpus, ",") {
				k, v, _ := strings.Cut(strings.Trim(part, `"`), "=")
				switch k {
				case "device":
					r.DeviceIDs = append(r.DeviceIDs, strings.Split(v, ",")...)
				case "driver":
					r.Driver = v
				case "count":
					if v == "all" {
						r.Count = -1
					} else if r.Count, err = strconv.Atoi(v); err != nil {
						return flagError("gpus", c.gpus, "count %q is not a number", v)
					}
				case "capabilities":
					r.Capabilities = [][]string{append([]string{"gpu"}, strings.Split(v, ",")...)}
				default:
					r.DeviceIDs = append(r.DeviceIDs, part)
				}
			}
		}
		h.DeviceRequests = append(h.DeviceRequests, r)
	}
	return nil
}

// host sets what is left of the host's side.
func (c *createFlags) host(h *hostConfig) error {
	h.LogConfig.Type = c.logDriver
	var err error
	if h.LogConfig.Config, err = pairs("log-opt", c.logOpt); err != nil {
		return err
	}
	if h.Annotations, err = pairs("annotation", c.annotation); err != nil {
		return err
	}
	if h.Sysctls, err = pairs("sysctl", c.sysctl); err != nil {
		return err
	}
	if h.StorageOpt, err = pairs("storage-opt", c.storageOpt); err != nil {
		return err
	}
	policy, retries, _ := strings.Cut(c.restart, ":")
	switch policy {
	case "no", "", "always", "unless-stopped", "on-failure":
	default:
		return flagError("restart", c.restart, "want no, on-failure[:n], always or unless-stopped")
	}
	h.RestartPolicy.Name = policy
	if retries != "" {
		if h.RestartPolicy.MaximumRetryCount, err = strconv.Atoi(retries); err != nil || policy != "on-failure" {
			return flagError("restart", c.restart, "want no, on-failure[:n], always or unless-stopped")
		}
	}
	if c.rm && policy != "no" && policy != "" {
		return &usageError{text: "--rm excludes --restart: a container that is removed cannot be restarted"}
	}
	h.AutoRemove = c.rm
	for _, s := range c.securityOpt {
		if file, ok := strings.CutPrefix(s, "seccomp="); ok && file != "unconfined" && file != "builtin" {
			data, err := os.ReadFile(file)
			if err != nil {
				return fmt.Errorf("--security-opt seccomp: %w", err)
			}
			var compact json.RawMessage
			if err := json.Unmarshal(data, &compact); err != nil {
				return flagError("security-opt", s, "the profile is not JSON: %v", err)
			}
			s = "seccomp=" + string(data)
		}
		h.SecurityOpt = append(h.SecurityOpt, s)
	}
	for _, s := range c.addHost {
		if !strings.ContainsAny(s, ":=") {
			return flagError("add-host", s, "want name:address")
		}
		if name, addr, ok := strings.Cut(s, "="); ok {
			s = name + ":" + strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]")
		}
		h.ExtraHosts = append(h.ExtraHosts, s)
	}
	h.CapAdd, h.CapDrop, h.GroupAdd = c.capAdd, c.capDrop, c.groupAdd
	for _, a := range c.dns {
		if net.ParseIP(a) == nil {
			return flagError("dns", a, "is not an IP address")
		}
	}
	h.Dns, h.DnsOptions, h.DnsSearch = c.dns, c.dnsOpt, c.dnsSearch
	h.CgroupnsMode, h.IpcMode, h.PidMode, h.UTSMode, h.UsernsMode = c.cgroupns, c.ipc, c.pid, c.uts, c.userns
	h.Privileged, h.ReadonlyRootfs, h.Runtime, h.Isolation = c.privileged, c.readOnly, c.runtime, c.isolation
	if c.umask != "" {
		n, err := strconv.ParseUint(c.umask, 8, 9)
		if err != nil {
			return flagError("umask", c.umask, "want an octal number up to 777")
		}
		u := uint32(n)
		h.Umask = &u
	}
	if c.f.Changed("init") {
		h.Init = &c.init
	}
	return nil
}

// bytesOf reads a size: 512, 512b, 64k, 1.5g, 2GiB.
func bytesOf(s string) (int64, error) {
	t := strings.ToLower(strings.TrimSpace(s))
	t = strings.TrimSuffix(strings.TrimSuffix(t, "b"), "i")
	unit := int64(1)
	if t != "" {
		if i := strings.IndexByte("kmgtp", t[len(t)-1]); i >= 0 {
			unit = 1 << (10 * (i + 1))
			t = strings.TrimSpace(t[:len(t)-1])
		}
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil || f < 0 {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	return int64(f * float64(unit)), nil
}
