package container

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/logs"
)

// The API's own types, under shorter names.
type (
	Config     = container.Config
	HostConfig = container.HostConfig
)

// limits of one request: what is longer is refused, never cut.
const (
	maxEnv      = 8192
	maxEnvBytes = 2 << 20
	maxLabels   = 4096
	maxLabel    = 1 << 20
	maxMounts   = 1024
	maxPorts    = 65536
	maxArgs     = 1 << 16
)

const (
	defaultShm  = 64 << 20
	minMemory   = 6 << 20
	minRootSize = 1 << 20
	runtimeName = "onggi"
)

// Defaults are what the engine's configuration fills into every container.
type Defaults struct {
	MaxNoFile    uint64 // open files that the machine allows a process, where it cannot be raised; 0 = any
	LogType      string
	LogOpts      map[string]string
	Ulimits      map[string]*container.Ulimit
	ShmSize      int64
	CgroupParent string
	IpcMode      container.IpcMode
	CgroupnsMode container.CgroupnsMode
	Init         bool
	NoNewPrivs   bool
	Seccomp      string // "" = the built-in profile, "unconfined", or a profile's JSON
	StopTimeout  int
	PidsLimit    int64 // 0 = the built-in one, -1 = none
	CgroupV2     bool
	HostGateway  []string           // addresses that host-gateway means; none = the gateway of the container's network
	Runtime      string             // of who names none; "" = our own
	Runtimes     map[string]Runtime // further ones
}

// pidsLimit keeps a fork bomb inside its container; no ordinary program is near.
const pidsLimit = 16384

// imageConfig is what of an image's configuration a container inherits.
type imageConfig struct {
	User         string
	ExposedPorts map[string]struct{}
	Env          []string
	Entrypoint   []string
	Cmd          []string
	Volumes      map[string]struct{}
	WorkingDir   string
	Labels       map[string]string
	StopSignal   string
	Healthcheck  *container.HealthConfig
	OnBuild      []string
	Shell        []string
	ArgsEscaped  bool
}

// mergeImage fills what the request left open from the image's configuration,
// by Docker's rules.
func mergeImage(c *Config, img imageConfig) error {
	if c.User == "" {
		c.User = img.User
	}
	if len(img.ExposedPorts) > 0 && c.ExposedPorts == nil {
		c.ExposedPorts = network.PortSet{}
	}
	for s := range img.ExposedPorts {
		r, err := network.ParsePortRange(s)
		if err != nil {
			return errdefs.Newf(errdefs.Invalid, "create", "container", "the image exposes %q: %w", s, err)
		}
		for p := range r.All() {
			c.ExposedPorts[p] = struct{}{}
		}
	}
	have := map[string]bool{}
	for _, e := range c.Env {
		k, _, _ := strings.Cut(e, "=")
		have[k] = true
	}
	for _, e := range img.Env {
		if k, _, _ := strings.Cut(e, "="); !have[k] {
			c.Env = append(c.Env, e)
		}
	}
	c.Labels = overlay(img.Labels, c.Labels)
	if len(c.Entrypoint) == 0 {
		if len(c.Cmd) == 0 {
			c.Cmd, c.ArgsEscaped = slices.Clone(img.Cmd), img.ArgsEscaped
		}
		if c.Entrypoint == nil {
			c.Entrypoint = slices.Clone(img.Entrypoint)
		}
	}
	mergeHealth(c, img.Healthcheck)
	if c.WorkingDir == "" {
		c.WorkingDir = img.WorkingDir
	}
	if len(img.Volumes) > 0 {
		c.Volumes = overlay(img.Volumes, c.Volumes)
	}
	if c.StopSignal == "" {
		c.StopSignal = img.StopSignal
	}
	if c.Shell == nil {
		c.Shell = img.Shell
	}
	if c.OnBuild == nil {
		c.OnBuild = img.OnBuild
	}
	return nil
}

func mergeHealth(c *Config, img *container.HealthConfig) {
	if img == nil {
		return
	}
	if c.Healthcheck == nil {
		h := *img
		c.Healthcheck = &h
		return
	}
	h := c.Healthcheck
	if len(h.Test) == 0 {
		h.Test = img.Test
	}
	if h.Interval == 0 {
		h.Interval = img.Interval
	}
	if h.Timeout == 0 {
		h.Timeout = img.Timeout
	}
	if h.StartPeriod == 0 {
		h.StartPeriod = img.StartPeriod
	}
	if h.StartInterval == 0 {
		h.StartInterval = img.StartInterval
	}
	if h.Retries == 0 {
		h.Retries = img.Retries
	}
}

func overlay[M ~map[K]V, K comparable, V any](base, over M) M {
	if len(base) == 0 && over != nil {
		return over
	}
	out := make(M, len(base)+len(over))
	maps.Copy(out, base)
	maps.Copy(out, over)
	return out
}

// normalise brings a request into the one form that everything after it reads:
// defaults are filled in, aliases resolved, and what can never work refused.
// It returns what the client should be told.
func normalise(id string, c *Config, h *HostConfig, d Defaults) (warnings []string, err error) {
	normaliseConfig(id, c, h)
	if warnings, err = normaliseHost(h, d); err != nil {
		return nil, err
	}
	if err := checkConfig(c, h); err != nil {
		return nil, err
	}
	w, err := checkHost(c, h, d)
	return append(warnings, w...), err
}

func normaliseConfig(id string, c *Config, h *HostConfig) {
	if c.Hostname == "" && !h.UTSMode.IsHost() && !h.NetworkMode.IsHost() && !h.NetworkMode.IsContainer() {
		c.Hostname = id[:12]
	}
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	if len(c.Volumes) == 0 {
		c.Volumes = nil
	}
	if c.WorkingDir != "" {
		c.WorkingDir = path.Clean(c.WorkingDir)
	}
	c.Env = dedupEnv(c.Env)
	if len(c.Entrypoint) == 1 && c.Entrypoint[0] == "" {
		c.Entrypoint = nil // [""] in a request means "without the image's"
	}
	if !c.OpenStdin {
		c.StdinOnce = false
	}
}

// dedupEnv keeps the last value of a repeated variable, at its first place.
func dedupEnv(env []string) []string {
	at := map[string]int{}
	var out []string
	for _, e := range env {
		k, _, _ := strings.Cut(e, "=")
		if i, ok := at[k]; ok {
			out[i] = e
			continue
		}
		at[k] = len(out)
		out = append(out, e)
	}
	return out
}

func normaliseHost(h *HostConfig, d Defaults) (warnings []string, err error) {
	if h.NetworkMode == "" || h.NetworkMode.IsDefault() {
		h.NetworkMode = network.NetworkBridge
	}
	if h.ShmSize == 0 {
		h.ShmSize = cmpOr(d.ShmSize, defaultShm)
	}
	h.IpcMode = cmpOr(h.IpcMode, d.IpcMode, container.IPCModePrivate)
	if h.CgroupnsMode == "" && h.Privileged && !d.CgroupV2 {
		h.CgroupnsMode = container.CgroupnsModeHost
	}
	h.CgroupnsMode = cmpOr(h.CgroupnsMode, d.CgroupnsMode, container.CgroupnsModePrivate)
	if h.Runtime, err = d.FindRuntime(h.Runtime); err != nil {
		return nil, err
	}
	if h.CgroupParent == "" {
		h.CgroupParent = d.CgroupParent
	}
	if h.RestartPolicy.Name == "" {
		h.RestartPolicy.Name = container.RestartPolicyDisabled
		h.RestartPolicy.MaximumRetryCount = 0
	}
	h.LogConfig.Type = cmpOr(h.LogConfig.Type, d.LogType, logs.JSONFile)
	own := h.LogConfig.Config
	h.LogConfig.Config = map[string]string{}
	if h.LogConfig.Type == cmpOr(d.LogType, logs.JSONFile) {
		maps.Copy(h.LogConfig.Config, d.LogOpts)
	}
	maps.Copy(h.LogConfig.Config, own)
	if h.MaskedPaths == nil && !h.Privileged {
		h.MaskedPaths = slices.Clone(defaultMasked)
	}
	if h.ReadonlyPaths == nil && !h.Privileged {
		h.ReadonlyPaths = slices.Clone(defaultReadonly)
	}
	if slices.ContainsFunc(h.SecurityOpt, func(s string) bool { return s == "systempaths=unconfined" || s == "systempaths:unconfined" }) {
		h.MaskedPaths, h.ReadonlyPaths = []string{}, []string{}
		h.SecurityOpt = slices.DeleteFunc(slices.Clone(h.SecurityOpt), func(s string) bool { return strings.HasPrefix(s, "systempaths") })
	}
	if h.Memory > 0 && h.MemorySwap == 0 {
		h.MemorySwap = 2 * h.Memory
	}
	if h.Memory > 0 && h.MemorySwap > 0 && h.Memory == h.MemorySwap && h.MemorySwappiness != nil && *h.MemorySwappiness == -1 {
		h.MemorySwappiness = nil
	}
	if h.MemorySwappiness != nil && *h.MemorySwappiness == -1 {
		h.MemorySwappiness = nil
	}
	if h.OomKillDisable != nil && *h.OomKillDisable && d.CgroupV2 {
		warnings = append(warnings, "OomKillDisable is not supported with control groups v2, and is discarded")
		h.OomKillDisable = nil
	}
	if h.PidsLimit != nil && *h.PidsLimit == 0 {
		h.PidsLimit = nil
	}
	for _, names := range []*[]string{&h.CapAdd, &h.CapDrop} {
		if *names, err = normaliseCaps(*names); err != nil {
			return nil, err
		}
	}
	// A port without any binding is published on any free one.
	for port, bindings := range h.PortBindings {
		if len(bindings) == 0 {
			h.PortBindings[port] = []network.PortBinding{{}}
		}
	}
	if h.Privileged && h.PortBindings == nil {
		h.PortBindings = network.PortMap{}
	}
	return warnings, nil
}

func cmpOr[T comparable](vals ...T) T {
	var zero T
	for _, v := range vals {
		if v != zero {
			return v
		}
	}
	return zero
}

func invalid(format string, args ...any) error {
	return errdefs.Newf(errdefs.Invalid, "", "", format, args...)
}

func checkConfig(c *Config, h *HostConfig) error {
	size := 0
	for _, e := range c.Env {
		size += len(e)
		if k, _, _ := strings.Cut(e, "="); k == "" {
			return invalid("invalid environment variable: %s", clip(e))
		}
		if strings.IndexByte(e, 0) >= 0 {
			return invalid("environment variable %q contains a zero byte", clip(e))
		}
	}
	switch {
	case len(c.Env) > maxEnv || size > maxEnvBytes:
		return invalid("%d environment variables of %d bytes: at most %d of %d bytes are allowed", len(c.Env), size, maxEnv, maxEnvBytes)
	case len(c.Cmd)+len(c.Entrypoint) > maxArgs:
		return invalid("%d arguments: at most %d are allowed", len(c.Cmd)+len(c.Entrypoint), maxArgs)
	case len(c.ExposedPorts) > maxPorts:
		return invalid("%d exposed ports: at most %d are allowed", len(c.ExposedPorts), maxPorts)
	case len(c.Cmd)+len(c.Entrypoint) == 0:
		return errdefs.WithHint(invalid("no command specified"), "name a command after the image; the image has none")
	}
	if err := checkLabels(c.Labels); err != nil {
		return err
	}
	if c.WorkingDir != "" && !path.IsAbs(c.WorkingDir) {
		return invalid("the working directory '%s' is invalid, it needs to be an absolute path", c.WorkingDir)
	}
	for _, s := range []struct{ what, v string }{{"host name", c.Hostname}, {"domain name", c.Domainname}} {
		if len(s.v) > 253 || strings.ContainsAny(s.v, " \t\r\n/\x00") {
			return invalid("%s %q: at most 253 letters, digits, dots and dashes are allowed", s.what, clip(s.v))
		}
	}
	if len(c.Hostname) > 63 && !strings.Contains(c.Hostname, ".") {
		return invalid("invalid hostname: %s: at most 63 letters are allowed", clip(c.Hostname))
	}
	if c.Hostname != "" && h.UTSMode.IsHost() {
		return invalid("conflicting options: hostname and the UTS mode")
	}
	if c.StopSignal != "" {
		if _, err := ParseSignal(c.StopSignal); err != nil {
			return err
		}
	}
	if c.StopTimeout != nil && *c.StopTimeout < -1 {
		return invalid("stop timeout %d: want -1 (wait for ever) or more", *c.StopTimeout)
	}
	return checkHealth(c.Healthcheck)
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return invalid("%d labels: at most %d are allowed", len(labels), maxLabels)
	}
	for k, v := range labels {
		if len(k)+len(v) > maxLabel {
			return invalid("label %q: %d bytes, at most %d are allowed", clip(k), len(k)+len(v), maxLabel)
		}
	}
	return nil
}

func checkHealth(hc *container.HealthConfig) error {
	if hc == nil {
		return nil
	}
	for _, d := range []struct {
		what string
		v    int64
	}{{"Interval", int64(hc.Interval)}, {"Timeout", int64(hc.Timeout)}, {"StartPeriod", int64(hc.StartPeriod)}, {"StartInterval", int64(hc.StartInterval)}} {
		if d.v != 0 && d.v < int64(container.MinimumDuration) {
			return invalid("%s in Healthcheck cannot be less than %s", d.what, container.MinimumDuration)
		}
	}
	if hc.Retries < 0 {
		return invalid("Retries in Healthcheck cannot be negative")
	}
	if len(hc.Test) > 0 {
		switch hc.Test[0] {
		case "NONE", "CMD", "CMD-SHELL", "":
		default:
			return invalid("unknown type %q in Healthcheck: want NONE, CMD or CMD-SHELL", clip(hc.Test[0]))
		}
		if (hc.Test[0] == "CMD" || hc.Test[0] == "CMD-SHELL") && len(hc.Test) == 1 {
			return invalid("%s in Healthcheck has no command", hc.Test[0])
		}
	}
	return nil
}

func checkHost(c *Config, h *HostConfig, d Defaults) (warnings []string, err error) {
	if err := checkModes(c, h); err != nil {
		return nil, err
	}
	if err := container.ValidateRestartPolicy(h.RestartPolicy); err != nil {
		return nil, invalid("%v", err)
	}
	if h.AutoRemove && !h.RestartPolicy.IsNone() {
		return nil, invalid("can't create 'AutoRemove' container with restart policy")
	}
	if !h.Isolation.IsDefault() {
		return nil, invalid("invalid isolation '%s' on linux", h.Isolation)
	}
	for k, v := range h.StorageOpt {
		if k != "size" {
			return nil, invalid("storage option %q: only size is known", clip(k))
		}
		if n, err := parseSize(v); err != nil || n < minRootSize {
			return nil, invalid("storage option size=%q: want a size such as 10g, from %d bytes", clip(v), minRootSize)
		}
	}
	if len(h.Mounts)+len(h.Binds)+len(h.Tmpfs)+len(c.Volumes) > maxMounts {
		return nil, invalid("%d mounts: at most %d are allowed", len(h.Mounts)+len(h.Binds)+len(h.Tmpfs)+len(c.Volumes), maxMounts)
	}
	if err := checkPorts(h); err != nil {
		return nil, err
	}
	for _, e := range h.ExtraHosts {
		if err := checkExtraHost(e); err != nil {
			return nil, err
		}
	}
	for _, s := range append(slices.Clone(h.DNSSearch), h.DNSOptions...) {
		if strings.ContainsAny(s, "\r\n\x00") {
			return nil, invalid("DNS setting %q: a line break is not allowed", clip(s))
		}
	}
	for k := range h.Annotations {
		if k == "" {
			return nil, invalid("invalid Annotations: the empty string is not permitted as an annotation key")
		}
	}
	if err := checkSysctls(h); err != nil {
		return nil, err
	}
	if _, err := parseSecurity(h.SecurityOpt); err != nil {
		return nil, err
	}
	if h.ShmSize < 0 {
		return nil, invalid("SHM size can not be less than 0")
	}
	if h.OomScoreAdj < -1000 || h.OomScoreAdj > 1000 {
		return nil, invalid("Invalid value %d, range for oom score adj is [-1000, 1000].", h.OomScoreAdj)
	}
	for _, u := range h.Ulimits {
		if u == nil {
			return nil, invalid("an ulimit is null")
		}
		if _, err := rlimitName(u.Name); err != nil {
			return nil, err
		}
		if u.Soft > u.Hard && u.Hard != -1 {
			return nil, invalid("ulimit %s: the soft limit %d is above the hard limit %d", u.Name, u.Soft, u.Hard)
		}
	}
	w, err := checkResources(&h.Resources, d)
	if err != nil {
		return nil, err
	}
	return append(warnings, w...), checkLog(h.LogConfig)
}

func checkModes(c *Config, h *HostConfig) error {
	if !h.IpcMode.Valid() {
		return invalid("invalid IPC mode: %v", h.IpcMode)
	}
	if !h.PidMode.Valid() {
		return invalid("invalid PID mode: %v", h.PidMode)
	}
	if !h.UTSMode.Valid() {
		return invalid("invalid UTS mode: %v", h.UTSMode)
	}
	if !h.CgroupnsMode.Valid() {
		return invalid("invalid cgroup namespace mode: %v", h.CgroupnsMode)
	}
	if !h.UsernsMode.Valid() {
		return invalid("invalid userns mode: %v", h.UsernsMode)
	}
	if h.Cgroup != "" && !h.Cgroup.Valid() {
		return invalid("invalid cgroup: %v", h.Cgroup)
	}
	n := h.NetworkMode
	if n == "container" || n.IsContainer() && n.ConnectedContainer() == "" {
		return invalid("invalid container format container:<name|id>")
	}
	if n.IsContainer() || n.IsHost() {
		kind := "host"
		if n.IsContainer() {
			kind = "container"
		}
		switch {
		case n.IsContainer() && c.Hostname != "":
			return invalid("conflicting options: hostname and the network mode")
		case h.UTSMode.IsHost() && n.IsContainer():
		case len(h.Links) > 0:
			return invalid("conflicting options: %s type networking can't be used with links: links are only supported for user-defined networks", kind)
		case n.IsContainer() && len(h.DNS) > 0:
			return invalid("conflicting options: dns and the network mode")
		case n.IsContainer() && len(h.ExtraHosts) > 0:
			return invalid("conflicting options: custom host-to-IP mapping and the network mode")
		case n.IsContainer() && (len(h.PortBindings) > 0 || h.PublishAllPorts):
			return invalid("conflicting options: port publishing and the container type network mode")
		}
	}
	return nil
}

func checkPorts(h *HostConfig) error {
	n := 0
	for port, bindings := range h.PortBindings {
		if !port.IsValid() || port.Num() == 0 {
			return invalid("invalid port specification: %q", port)
		}
		switch port.Proto() {
		case network.TCP, network.UDP, network.SCTP:
		default:
			return invalid("invalid port specification: %q: want tcp, udp or sctp", port)
		}
		for _, b := range bindings {
			if b.HostPort == "" {
				continue
			}
			if _, err := parseHostPort(b.HostPort); err != nil {
				return invalid("invalid port specification: %q", clip(b.HostPort))
			}
		}
		if n += max(1, len(bindings)); n > maxPorts {
			return invalid("more than %d published ports", maxPorts)
		}
	}
	return nil
}

// parseHostPort reads "8080" or "8000-8010".
func parseHostPort(s string) (r [2]uint16, err error) {
	lo, hi, isRange := strings.Cut(s, "-")
	if !isRange {
		hi = lo
	}
	for i, v := range []string{lo, hi} {
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil {
			return r, err
		}
		r[i] = uint16(n)
	}
	if r[1] < r[0] {
		return r, strconv.ErrRange
	}
	return r, nil
}

func checkExtraHost(e string) error {
	name, addr, ok := strings.Cut(e, ":")
	if !ok {
		name, addr, ok = strings.Cut(e, "=")
	}
	if !ok || name == "" || addr == "" || strings.ContainsAny(e, "\r\n\x00") || strings.ContainsAny(name, " \t#") {
		return invalid("bad format for add-host: %q", clip(e))
	}
	return nil
}

// parseSize reads "10m", "1g", "-1" as Docker's log options have them.
func parseSize(s string) (int64, error) {
	mult := int64(1)
	t := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(s)), "b")
	if t != "" {
		if i := strings.IndexByte("kmgt", t[len(t)-1]); i >= 0 {
			mult = 1 << (10 * (i + 1))
			t = t[:len(t)-1]
		}
	}
	f, err := strconv.ParseFloat(t, 64)
	if err != nil || f*float64(mult) > 1<<62 {
		return 0, strconv.ErrSyntax
	}
	return int64(f * float64(mult)), nil
}
