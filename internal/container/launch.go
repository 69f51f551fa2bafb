package container

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	containertypes "github.com/moby/moby/api/types/container"
	netapi "github.com/moby/moby/api/types/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/cgroup"
	"github.com/onggi/onggi/internal/monitor"
	"github.com/onggi/onggi/internal/network"
	"github.com/onggi/onggi/internal/ociruntime"
	"github.com/onggi/onggi/internal/ociruntime/initproc"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/undo"
)

type (
	networkMode = containertypes.NetworkMode
	ipcMode     = containertypes.IpcMode
	pidMode     = containertypes.PidMode
)

// run is what a container holds from its start to its end.
type run struct {
	started  *monitor.Started
	group    *cgroup.Group
	spec     *specs.Spec
	linkEnv  []string
	user     identity
	volumes  []string      // mounted for us
	network  bool          // the network service holds something
	foreign  *foreign      // of another runtime; nil = ours
	shm      bool          // its /dev/shm is mounted on the host, for others to join
	ended    chan struct{} // closed when the exit is recorded and all is released
	attached []*attachment // clients that the monitor writes to
	oom      *oomWatch     // nil = its memory has no limit
}

// launch starts the container's process. Preconditions: the state is Starting.
func (s *Service) launch(ctx context.Context, c *Container, rec *Record, attach []*attachment) (_ *run, st SandboxStatus, err error) {
	var u undo.Stack
	defer func() { u.Run(ctx, &err) }()
	r := &run{ended: make(chan struct{}), shm: rec.HostConfig.IpcMode.IsShareable()}
	in := specInput{ID: rec.ID, Config: rec.Config, Host: rec.HostConfig, KnownCaps: s.caps, MaxFiles: s.maxFiles, Defaults: s.o.Defaults, Hostname: s.hostname(rec)}
	if err := s.prepareSpec(&in, rec); err != nil {
		return nil, st, err
	}
	if in.LinkEnv, err = s.linkEnvironment(rec); err != nil {
		return nil, st, err
	}

	// The network, the control group and the root file system know nothing of
	// each other, and each waits for the kernel: prepare them side by side.
	var netns *os.File
	var netErr, groupErr error
	var wg sync.WaitGroup
	wg.Add(2)
	go func() {
		defer wg.Done()
		netns, st, netErr = s.prepareNetwork(ctx, rec, r, &in)
	}()
	go func() {
		defer wg.Done()
		r.group, groupErr = cgroup.Create(in.CgroupsPath, groupLimits(&in), s.o.CgroupOptions)
	}()
	root, rootErr := s.prepareRoot(ctx, rec, r, &in)
	wg.Wait()
	held := r // r is nil when an error is returned
	u.Push(func(ctx context.Context) error { return s.releaseRun(ctx, rec.ID, held) })
	mountFDs := map[int]*os.File{}
	for _, m := range in.Mounts {
		defer closeAll(m.FD)
	}
	defer closeAll(netns, root)
	if err := errors.Join(rootErr, netErr, groupErr); err != nil {
		return nil, st, firstError(rootErr, netErr, groupErr)
	}

	r.spec, r.user, r.linkEnv = buildSpec(in), in.User, in.LinkEnv
	for i, m := range r.spec.Mounts {
		for _, sm := range in.Mounts {
			if sm.FD != nil && sm.Destination == m.Destination {
				mountFDs[i] = sm.FD
			}
		}
	}
	var program *initproc.Program
	var files []*os.File
	if r.foreign = s.foreignOf(rec); r.foreign != nil {
		program, files, err = r.foreign.prepare(r.spec, root, netns, mountFDs, r, s.wantsInit(rec))
	} else {
		program, files, err = ociruntime.Compile(r.spec, ociruntime.Options{
			RootFS: root, NetNS: netns, Cgroup: r.group, MountFDs: mountFDs, Init: s.wantsInit(rec),
		})
	}
	if err != nil {
		return nil, st, err
	}
	defer closeAll(files...)
	q := monitor.StartRequest{
		Key: s.key(c), Program: program, Files: files,
		Terminal: rec.Config.Tty, Height: uint16(rec.HostConfig.ConsoleSize[0]), Width: uint16(rec.HostConfig.ConsoleSize[1]),
		OpenStdin: rec.Config.OpenStdin, StdinOnce: rec.Config.StdinOnce,
		Log: s.logSpec(rec),
	}
	for _, a := range attach {
		q.Attach = append(q.Attach, a.specs()...)
	}
	receiver, err := s.connectLog(ctx, rec)
	if err != nil {
		return nil, st, err
	}
	if r.started, err = s.o.Monitor.Start(ctx, q); err != nil {
		if receiver != nil {
			receiver.Close()
		}
		return nil, st, startError(err, r.spec)
	}
	if r.foreign != nil {
		if err := r.foreign.await(ctx, c); err != nil {
			s.ack(ctx, s.key(c))
			return nil, st, err
		}
	}
	s.ship(c, rec, receiver, r.ended)
	s.watchOOM(c, rec, r)
	for _, a := range attach {
		a.handed()
	}
	r.attached = attach
	s.tellLinked(rec.ID)
	u.Disarm()
	return r, st, nil
}

func firstError(errs ...error) error {
	for _, e := range errs {
		if e != nil {
			return e
		}
	}
	return nil
}

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

func (s *Service) wantsInit(rec *Record) bool {
	if rec.HostConfig.Init != nil {
		return *rec.HostConfig.Init
	}
	return s.o.Defaults.Init
}

// hostname is the name as the container sees it.
func (s *Service) hostname(rec *Record) string {
	switch {
	case rec.Config.Hostname != "":
		return rec.Config.Hostname
	case rec.HostConfig.NetworkMode.IsContainer():
		if other, err := s.find("start", rec.HostConfig.NetworkMode.ConnectedContainer()); err == nil {
			or, _ := other.view()
			return or.Config.Hostname
		}
	}
	h, _ := os.Hostname()
	return h
}

// prepareSpec fills in what needs no effect: namespaces to join, devices,
// limits, security.
func (s *Service) prepareSpec(in *specInput, rec *Record) (err error) {
	h := rec.HostConfig
	in.CgroupsPath = s.cgroupPath(rec)
	if in.Security, err = parseSecurity(h.SecurityOpt); err != nil {
		return err
	}
	if in.Resources, err = linuxResources(&h.Resources, s.o.Defaults); err != nil {
		return err
	}
	if h.Privileged {
		if in.Devices, err = allHostDevices(); err != nil {
			return err
		}
	}
	devs, rules, err := hostDevices(h.Devices)
	if err != nil {
		return err
	}
	in.Devices = append(in.Devices, devs...)
	in.DeviceRules = rules
	for _, r := range h.DeviceCgroupRules {
		d, err := parseDeviceRule(r)
		if err != nil {
			return err
		}
		in.DeviceRules = append(in.DeviceRules, d)
	}
	if err = s.addDevices(in); err != nil {
		return err
	}
	if in.Seccomp, err = s.seccompFor(in); err != nil {
		return err
	}
	if h.PidMode.IsContainer() {
		if in.JoinPID, err = s.namespaceOf(h.PidMode.Container(), "pid"); err != nil {
			return err
		}
	}
	if h.IpcMode.IsContainer() {
		if in.JoinIPC, err = s.namespaceOf(h.IpcMode.Container(), "ipc"); err != nil {
			return err
		}
		in.ShmPath = s.shmDir(h.IpcMode.Container())
	}
	if h.IpcMode.IsShareable() {
		if in.ShmPath, err = s.makeShm(rec.ID, h.ShmSize); err != nil {
			return err
		}
	}
	if h.IpcMode.IsHost() {
		in.ShmPath = "/dev/shm"
	}
	return nil
}

// namespaceOf is the path of a namespace of another, running, container.
func (s *Service) namespaceOf(ref, kind string) (string, error) {
	c, err := s.find("start", ref)
	if err != nil {
		return "", err
	}
	rec, st := c.view()
	if !st.State.HasProcess() {
		hint := "start " + rec.Name + " first"
		if kind == "net" {
			return "", errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "cannot join network namespace of a non running container: %s", c.id), hint)
		}
		// Docker answers with 500 here.
		return "", errdefs.WithHint(errdefs.Newf(errdefs.Internal, "", "", "failed to join %s namespace: container %s is not running", strings.ToUpper(kind), c.id), hint)
	}
	if m := rec.HostConfig.IpcMode; kind == "ipc" && (m.IsPrivate() || m.IsNone()) {
		return "", errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "", "", "failed to join IPC namespace: container %s: non-shareable IPC", c.id), "create "+rec.Name+" with --ipc shareable")
	}
	return "/proc/" + strconv.Itoa(st.PID) + "/ns/" + kind, nil
}

func (s *Service) cgroupPath(rec *Record) string {
	parent := rec.HostConfig.CgroupParent
	if s.o.CgroupOptions.Systemd {
		return cmpOr(parent, "system.slice") + ":onggi:" + rec.ID
	}
	return filepath.Join("/", cmpOr(parent, "onggi"), rec.ID)
}

// groupLimits are the limits as the control group gets them, devices included.
func groupLimits(in *specInput) *specs.LinuxResources {
	r := *in.Resources
	if in.Host.Privileged {
		r.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	} else {
		r.Devices = append(defaultDevices(), in.DeviceRules...)
	}
	return &r
}

// prepareRoot mounts the root file system (detached), looks the user up in it,
// and finds the sources of all other mounts.
func (s *Service) prepareRoot(ctx context.Context, rec *Record, r *run, in *specInput) (*os.File, error) {
	// What an automatically removed container writes need not survive anything.
	var root *os.File
	mount := func() (err error) {
		root, err = s.mountRoot(ctx, rec.ID, snapshot.MountOptions{Volatile: rec.HostConfig.AutoRemove})
		return err
	}
	if rec.Project != 0 {
		plain := mount
		mount = func() error { return linux.WithoutResource(plain) }
	}
	if err := mount(); err != nil {
		return nil, err
	}
	var err error
	if in.User, err = userIn(root, rec.Config.User, rec.HostConfig.GroupAdd); err != nil {
		return root, err
	}
	in.Mounts, err = s.sourceMounts(ctx, rec, r, root)
	return root, err
}

// userIn resolves a user with the accounts of an image's root.
func userIn(root *os.File, spec string, groups []string) (identity, error) {
	passwd, err := openAccounts(root, "/etc/passwd")
	if err != nil {
		return identity{}, err
	}
	group, err := openAccounts(root, "/etc/group")
	if err != nil {
		closeAll(passwd)
		return identity{}, err
	}
	defer closeAll(passwd, group)
	return resolveUser(spec, groups, reader(passwd), reader(group))
}

func reader(f *os.File) io.Reader {
	if f == nil {
		return nil
	}
	return f
}

// openAccounts opens a file of the image in its root. What is not a regular
// file of decent size is refused; a missing one is nil.
func openAccounts(root *os.File, path string) (*os.File, error) {
	f, err := linux.OpenRegularInRoot(root, path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return nil, errdefs.New(errdefs.Invalid, "read", path+" of the image", err)
	}
	if st, err := f.Stat(); err != nil || st.Size() > maxAccounts {
		f.Close()
		return nil, errdefs.Newf(errdefs.Invalid, "read", path+" of the image", "larger than %d bytes", maxAccounts)
	}
	return f, nil
}

// prepareNetwork makes the network namespace and connects it.
func (s *Service) prepareNetwork(ctx context.Context, rec *Record, r *run, in *specInput) (netns *os.File, st SandboxStatus, err error) {
	h := rec.HostConfig
	dir := s.etcDir(rec.ID)
	switch {
	case h.NetworkMode.IsContainer():
		other, err := s.find("start", h.NetworkMode.ConnectedContainer())
		if err != nil {
			return nil, st, err
		}
		if in.JoinNet, err = s.namespaceOf(other.id, "net"); err != nil {
			return nil, st, err
		}
		in.HostsFile, in.ResolvFile, in.HostFile = s.etcFile(other.id, "hosts"), s.etcFile(other.id, "resolv.conf"), s.etcFile(other.id, "hostname")
		return nil, st, nil
	case h.NetworkMode.IsHost():
		hosts, _ := os.ReadFile("/etc/hosts")
		for _, e := range extraHosts(h.ExtraHosts, s.o.Defaults.HostGateway) {
			hosts = append(hosts, extraHostLine(e)...)
		}
		resolv, _ := os.ReadFile("/etc/resolv.conf")
		resolv = resolvConf(resolv, h)
		r.network = true
		box, err := s.o.Networks.Attach(ctx, network.SandboxRequest{ContainerID: rec.ID, Name: rec.Name, Hostname: in.Hostname, Endpoints: []network.EndpointRequest{{Network: netapi.NetworkHost}}})
		if err != nil {
			return nil, st, err
		}
		return nil, sandboxStatus(box), s.writeEtc(in, dir, hosts, resolv)
	}
	if netns, err = linux.NewNetNS(); err != nil {
		return nil, st, err
	}
	q := s.sandboxRequest(rec, in.Hostname)
	q.NetNS = netns
	r.network = true
	box, err := s.o.Networks.Attach(ctx, q)
	if err != nil {
		return netns, st, errdefs.Newf(errdefs.KindOf(err), "", "", "failed to set up container networking: %w", err) // clients look for these words
	}
	if c, err := s.find("start", rec.ID); err == nil {
		c.mu.Lock()
		c.etc = map[string][]byte{"hosts": box.Hosts, "resolv.conf": box.ResolvConf}
		c.mu.Unlock()
	}
	return netns, sandboxStatus(box), s.writeEtc(in, dir, box.Hosts, box.ResolvConf)
}

func (s *Service) etcFile(id, name string) string {
	p := filepath.Join(s.etcDir(id), name)
	if _, err := os.Stat(p); err != nil {
		return ""
	}
	return p
}

// etcDir is where the files are that a start writes for a container's /etc.
// Nothing of it must outlast the machine's boot.
func (s *Service) etcDir(id string) string { return filepath.Join(s.o.ExecRoot, "etc", id) }

var etcFiles = []string{"hostname", "hosts", "resolv.conf"}

// linkEtc leaves links where Docker's engine has these files, for those who do not
// ask where they are.
func (s *Service) linkEtc(id string) {
	for _, name := range etcFiles {
		os.Symlink(filepath.Join(s.etcDir(id), name), filepath.Join(s.dir(id), name))
	}
}

func (s *Service) dropEtc(id string) error {
	dir := s.etcDir(id)
	// By their names: RemoveAll need not look for them then.
	for _, name := range etcFiles {
		os.Remove(filepath.Join(dir, name))
	}
	return os.RemoveAll(dir)
}

func (s *Service) writeEtc(in *specInput, dir string, hosts, resolv []byte) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		data []byte
		path *string
	}{{"hostname", []byte(in.Hostname + "\n"), &in.HostFile}, {"hosts", hosts, &in.HostsFile}, {"resolv.conf", resolv, &in.ResolvFile}} {
		p := filepath.Join(dir, f.name)
		// Written in place: a mount of the file, in a container that shares it,
		// must see the change.
		if err := os.WriteFile(p, f.data, 0o644); err != nil {
			return err
		}
		*f.path = p
	}
	return nil
}

// extraHosts puts the addresses that the engine's configuration gives the host
// in place of the word.
func extraHosts(hosts []string, gateways []string) []string {
	if len(gateways) == 0 {
		return hosts
	}
	var out []string
	for _, h := range hosts {
		name, isGateway := strings.CutSuffix(h, ":host-gateway")
		if !isGateway {
			out = append(out, h)
			continue
		}
		for _, g := range gateways {
			out = append(out, name+":"+g)
		}
	}
	return out
}

func extraHostLine(e string) string {
	name, addr, ok := strings.Cut(e, ":")
	if !ok {
		name, addr, _ = strings.Cut(e, "=")
	}
	if addr == "host-gateway" {
		addr = "127.0.0.1"
	}
	return strings.Trim(addr, "[]") + "\t" + name + "\n"
}

// resolvConf is the host's with what the container sets instead.
func resolvConf(host []byte, h *HostConfig) []byte {
	own := map[string][]string{"search": h.DNSSearch, "options": h.DNSOptions}
	for _, d := range h.DNS {
		own["nameserver"] = append(own["nameserver"], d.String())
	}
	var b strings.Builder
	for line := range strings.Lines(string(host)) {
		key, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if key == "domain" {
			key = "search"
		}
		if len(own[key]) == 0 {
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	for _, n := range own["nameserver"] {
		b.WriteString("nameserver " + n + "\n")
	}
	for _, key := range []string{"search", "options"} {
		if len(own[key]) > 0 {
			b.WriteString(key + " " + strings.Join(own[key], " ") + "\n")
		}
	}
	return []byte(b.String())
}

func (s *Service) sandboxRequest(rec *Record, hostname string) network.SandboxRequest {
	h := rec.HostConfig
	q := network.SandboxRequest{ContainerID: rec.ID, Name: rec.Name, Hostname: hostname, Domainname: rec.Config.Domainname, DNSSearch: h.DNSSearch, DNSOptions: h.DNSOptions, ExtraHosts: extraHosts(h.ExtraHosts, s.o.Defaults.HostGateway)}
	if !h.NetworkMode.IsUserDefined() {
		q.Links = linksOf(rec)
	}
	for _, d := range h.DNS {
		q.DNS = append(q.DNS, d.String())
	}
	primary := h.NetworkMode.NetworkName()
	for name, ep := range rec.Networks {
		e := endpointRequest(name, ep.Copy(), rec)
		if name == primary {
			if h.NetworkMode.IsUserDefined() {
				e.Links = append(e.Links, linksOf(rec)...)
			}
			q.Endpoints = slices.Insert(q.Endpoints, 0, e)
		} else {
			q.Endpoints = append(q.Endpoints, e)
		}
	}
	if len(q.Endpoints) > 1 {
		rest := q.Endpoints
		if rest[0].Network == primary {
			rest = rest[1:]
		}
		slices.SortFunc(rest, func(a, b network.EndpointRequest) int { return strings.Compare(a.Network, b.Network) })
	}
	q.Ports = portRequests(rec.Config, h)
	for port := range rec.Config.ExposedPorts {
		q.Exposed = append(q.Exposed, network.PortRequest{Port: port.Num(), Proto: string(port.Proto())})
	}
	return q
}

func portRequests(c *Config, h *HostConfig) []network.PortRequest {
	var out []network.PortRequest
	for port, bindings := range h.PortBindings {
		for _, b := range bindings {
			r := network.PortRequest{Port: port.Num(), Proto: string(port.Proto()), HostIP: b.HostIP}
			if b.HostPort != "" {
				lohi, err := parseHostPort(b.HostPort)
				if err != nil {
					continue // refused at create
				}
				r.HostPort, r.HostPortEnd = lohi[0], lohi[1]
			}
			out = append(out, r)
		}
		if len(bindings) == 0 {
			out = append(out, network.PortRequest{Port: port.Num(), Proto: string(port.Proto())})
		}
	}
	if h.PublishAllPorts {
		for port := range c.ExposedPorts {
			if len(h.PortBindings[port]) == 0 {
				out = append(out, network.PortRequest{Port: port.Num(), Proto: string(port.Proto())})
			}
		}
	}
	slices.SortFunc(out, func(a, b network.PortRequest) int {
		// What was asked for is taken before what is given out.
		return cmpInts(choices(a)-choices(b), int(a.Port)-int(b.Port), strings.Compare(a.Proto, b.Proto), int(a.HostPort)-int(b.HostPort))
	})
	return out
}

// choices is how many ports of the host would do.
func choices(r network.PortRequest) int {
	if r.HostPort == 0 {
		return 1 << 16
	}
	return int(max(r.HostPort, r.HostPortEnd)) - int(r.HostPort)
}

func cmpInts(vals ...int) int {
	for _, v := range vals {
		if v != 0 {
			return v
		}
	}
	return 0
}

func sandboxStatus(b network.Sandbox) SandboxStatus {
	var st SandboxStatus
	for _, e := range b.Endpoints {
		st.Endpoints = append(st.Endpoints, endpointStatus(e))
	}
	for _, p := range b.Ports {
		st.Ports = append(st.Ports, PortStatus{Port: p.Port, Proto: p.Proto, HostIP: p.HostIP, HostPort: p.HostPort})
	}
	return st
}

// A StartError is a container that could not run its command. Code is the exit
// status that `docker run` ends with.
type StartError struct {
	Code int
	Err  error
}

func (e *StartError) Error() string { return e.Err.Error() }
func (e *StartError) Unwrap() error { return e.Err }

// startError words what onggi-init reported.
func startError(err error, spec *specs.Spec) error {
	step, ok := errors.AsType[*initproc.StepError](err)
	if !ok {
		return &StartError{Code: 125, Err: err}
	}
	code, kind := 128, errdefs.Internal
	text := err.Error()
	if step.IsExec() {
		name := ""
		if len(spec.Process.Args) > 0 {
			name = spec.Process.Args[0]
		}
		switch {
		case errors.Is(step.Errno, os.ErrNotExist):
			code, kind = 127, errdefs.Invalid
			text = `exec: "` + name + `": executable file not found in $PATH`
			if strings.Contains(name, "/") {
				text = `exec: "` + name + `": stat ` + name + `: no such file or directory`
			}
		default:
			code, kind = 126, errdefs.Invalid
			text = `exec: "` + name + `": ` + step.Errno.Error()
		}
		hint := "see what the image holds: its command is " + strconv.Quote(strings.Join(spec.Process.Args, " "))
		switch step.Errno {
		case syscall.ENOEXEC:
			hint = "if the image is for another processor, install emulation (Debian: qemu-user-static and binfmt-support); a script begins with #!"
		case syscall.EPERM:
			hint = "its file has capabilities (setcap) that the container does not get; ping wants --cap-add NET_RAW"
		}
		err := errdefs.WithHint(errdefs.Newf(kind, "", "", "failed to create task for container: unable to start container process: %s", text), hint)
		return &StartError{Code: code, Err: err}
	}
	err = errdefs.Newf(kind, "", "", "set up container: %w", err)
	if strings.HasPrefix(step.Name, "mount ") && (step.Errno == syscall.EINVAL || step.Errno == syscall.ENOTDIR) {
		err = errdefs.WithHint(err, "mount a directory on a directory, or a file on a file")
	}
	return &StartError{Code: code, Err: err}
}

// pid is the container's first process.
func (r *run) pid() int {
	if r.foreign != nil {
		return r.foreign.pid
	}
	return r.started.PID
}

// releaseRun gives back what a run holds. Each part may be gone already.
func (s *Service) releaseRun(ctx context.Context, id string, r *run) error {
	var errs []error
	if r.network {
		errs = append(errs, s.o.Networks.Release(ctx, id))
	}
	for _, v := range r.volumes {
		errs = append(errs, s.o.Volumes.Unmount(ctx, v, id))
		s.o.Events.Emit(events.Volume, "unmount", v, map[string]string{"container": id, "driver": "local"})
	}
	if r.foreign != nil {
		errs = append(errs, r.foreign.release(ctx))
	}
	if r.group != nil {
		errs = append(errs, r.group.Delete())
	}
	if r.shm {
		errs = append(errs, s.dropShm(id))
	}
	if r.started != nil && r.started.PidFD != nil {
		r.started.PidFD.Close()
	}
	return errors.Join(errs...)
}
