package cli

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

func containerCommands() []command {
	return []command{
		{paths: []string{"ps", "container ls", "container list", "container ps"}, args: "[OPTIONS]", short: "List containers", max: 0, setup: setupPs},
		{paths: []string{"stop", "container stop"}, args: "[OPTIONS] CONTAINER [CONTAINER...]", short: "Stop running containers", min: 1, max: -1, setup: setupStop("stop")},
		{paths: []string{"restart", "container restart"}, args: "[OPTIONS] CONTAINER [CONTAINER...]", short: "Restart containers", min: 1, max: -1, setup: setupStop("restart")},
		{paths: []string{"kill", "container kill"}, args: "[OPTIONS] CONTAINER [CONTAINER...]", short: "Send a signal to running containers", min: 1, max: -1, setup: setupKill},
		{paths: []string{"rm", "container rm", "container remove"}, args: "[OPTIONS] CONTAINER [CONTAINER...]", short: "Remove containers", min: 1, max: -1, setup: setupRm},
		{paths: []string{"pause", "container pause"}, args: "CONTAINER [CONTAINER...]", short: "Freeze the processes of containers", min: 1, max: -1, setup: setupPlain("pause")},
		{paths: []string{"unpause", "container unpause"}, args: "CONTAINER [CONTAINER...]", short: "Thaw the processes of containers", min: 1, max: -1, setup: setupPlain("unpause")},
		{paths: []string{"logs", "container logs"}, args: "[OPTIONS] CONTAINER", short: "Show what a container wrote", min: 1, max: 1, setup: setupLogs},
		{paths: []string{"port", "container port"}, args: "CONTAINER [PORT[/PROTO]]", short: "List published ports", min: 1, max: 2, setup: setupPort},
		{paths: []string{"rename", "container rename"}, args: "CONTAINER NEW_NAME", short: "Rename a container", min: 2, max: 2, setup: setupRename},
		{paths: []string{"top", "container top"}, args: "CONTAINER [ps OPTIONS]", short: "List a container's processes", min: 1, max: -1, stop: true, setup: setupTop},
		{paths: []string{"wait", "container wait"}, args: "CONTAINER [CONTAINER...]", short: "Wait until containers end, and print their exit codes", min: 1, max: -1, setup: setupWait},
		{paths: []string{"diff", "container diff"}, args: "CONTAINER", short: "List what a container changed on its file system", min: 1, max: 1, setup: setupDiff},
		{paths: []string{"export", "container export"}, args: "[OPTIONS] CONTAINER", short: "Write a container's file system as a tar archive", min: 1, max: 1, setup: setupExport},
		{paths: []string{"commit", "container commit"}, args: "[OPTIONS] CONTAINER [REPOSITORY[:TAG]]", short: "Make an image of a container", min: 1, max: 2, setup: setupCommit},
		{paths: []string{"update", "container update"}, args: "[OPTIONS] CONTAINER [CONTAINER...]", short: "Change limits of containers", min: 1, max: -1, setup: setupUpdate},
		{paths: []string{"stats", "container stats"}, args: "[OPTIONS] [CONTAINER...]", short: "Show what containers use", max: -1, setup: setupStats},
		{paths: []string{"container inspect"}, args: "[OPTIONS] CONTAINER [CONTAINER...]", short: "Show everything about containers", min: 1, max: -1, setup: setupInspect("container")},
		{paths: []string{"container prune"}, args: "[OPTIONS]", short: "Remove all stopped containers", max: 0, setup: setupPrune("containers")},
	}
}

// filters turns --filter key=value into the engine's form.
func filters(set []string) (url.Values, error) {
	q := url.Values{}
	if len(set) == 0 {
		return q, nil
	}
	m := map[string]map[string]bool{}
	for _, s := range set {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			return nil, flagError("filter", s, "want key=value")
		}
		k = strings.ToLower(strings.TrimSpace(k))
		if m[k] == nil {
			m[k] = map[string]bool{}
		}
		m[k][strings.TrimSpace(v)] = true
	}
	data, _ := json.Marshal(m)
	q.Set("filters", string(data))
	return q, nil
}

var psColumns = []string{"ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names"}

func setupPs(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	all := f.BoolP("all", "a", false, "stopped ones too")
	filter := f.StringArrayP("filter", "f", nil, "only those that match: status=running")
	format := f.String("format", "", "table, json, or a Go template")
	last := f.IntP("last", "n", -1, "the n newest, stopped ones too")
	latest := f.BoolP("latest", "l", false, "the newest one")
	noTrunc := f.Bool("no-trunc", false, "do not shorten")
	quiet := f.BoolP("quiet", "q", false, "ids only")
	size := f.BoolP("size", "s", false, "sizes too")
	return func(ctx context.Context, args []string) error {
		q, err := filters(*filter)
		if err != nil {
			return err
		}
		if *format == "" && !*quiet {
			*format = e.cfg.load().PsFormat
		}
		if *latest {
			*last = 1
		}
		if *all {
			q.Set("all", "1")
		}
		if *last > 0 {
			q.Set("limit", strconv.Itoa(*last))
		}
		withSize := *size || strings.Contains(*format, ".Size")
		if withSize {
			q.Set("size", "1")
		}
		brief := briefEnough(*format)
		if brief {
			q.Set("onggi-brief", "1")
		}
		cs, err := e.containers(ctx, q)
		if err != nil {
			return err
		}
		l := &list{columns: psColumns, quiet: "ID",
			titles: map[string]string{"ID": "CONTAINER ID", "RunningFor": "CREATED"}}
		if *size {
			l.columns = append(slices.Clip(psColumns), "Size")
		}
		now := time.Now()
		l.rows = make([]row, 0, len(cs))
		for _, c := range cs {
			l.rows = append(l.rows, psRow(&c, now, *noTrunc, brief))
		}
		return e.show(l, *format, *quiet)
	}
}

// briefEnough tells that a format shows no more than the table's own columns.
func briefEnough(format string) bool {
	pieces, ok := simpleTemplate(strings.TrimPrefix(format, "table "))
	for _, p := range pieces {
		ok = ok && (p.path == nil || len(p.path) == 1 && (p.path[0] == "Size" || slices.Contains(psColumns, p.path[0])))
	}
	return ok && format != "json"
}

// psRow describes a container; brief has no more than the table's own columns.
func psRow(c *api.ContainerSummary, now time.Time, noTrunc, brief bool) row {
	id, command, image := c.ID, strconv.Quote(c.Command), c.Image
	if !noTrunc {
		id, command = shortID(id), `"`+ellipsis(strings.Trim(command, `"`), 18)+`"`
		if strings.HasPrefix(image, "sha256:") {
			image = shortID(image)
		}
	}
	var names []string
	for _, n := range c.Names {
		n = strings.TrimPrefix(n, "/")
		if noTrunc || !strings.Contains(n, "/") {
			names = append(names, n)
		}
	}
	created := time.Unix(c.Created, 0)
	size := humanSize(c.SizeRw)
	if c.SizeRootFs > 0 {
		size += " (virtual " + humanSize(c.SizeRootFs) + ")"
	}
	r := row{"ID": id, "Image": image, "Command": command, "RunningFor": ago(now.Sub(created)) + " ago", "Status": c.Status, "Ports": portList(c.Ports), "Names": strings.Join(names, ","), "Size": size}
	if brief {
		return r
	}
	var mounts, networks, labels []string
	for _, m := range c.Mounts {
		name := m.Name
		if name == "" {
			name = m.Source
		}
		if !noTrunc {
			name = ellipsis(name, 15)
		}
		mounts = append(mounts, name)
	}
	for n := range c.NetworkSettings.Networks {
		networks = append(networks, n)
	}
	sort.Strings(networks)
	for k, v := range c.Labels {
		labels = append(labels, k+"="+v)
	}
	sort.Strings(labels)
	r["CreatedAt"], r["State"] = created.Format("2006-01-02 15:04:05 -0700 MST"), c.State
	r["Mounts"], r["LocalVolumes"] = strings.Join(mounts, ","), strconv.Itoa(len(mounts))
	r["Networks"], r["Labels"] = strings.Join(networks, ","), strings.Join(labels, ",")
	return r
}

// portList joins ports, neighbours as ranges: 0.0.0.0:80-81->80-81/tcp.
func portList(ports []api.Port) string {
	sort.Slice(ports, func(i, j int) bool {
		a, b := ports[i], ports[j]
		switch {
		case a.PublicPort == 0 != (b.PublicPort == 0):
			return a.PublicPort != 0
		case a.IP != b.IP:
			return a.IP < b.IP
		case a.Type != b.Type:
			return a.Type < b.Type
		}
		return a.PrivatePort < b.PrivatePort
	})
	var out []string
	for i := 0; i < len(ports); {
		first := ports[i]
		j := i + 1
		for j < len(ports) && ports[j].IP == first.IP && ports[j].Type == first.Type && (ports[j].PublicPort == 0) == (first.PublicPort == 0) &&
			ports[j].PrivatePort == ports[j-1].PrivatePort+1 && (first.PublicPort == 0 || ports[j].PublicPort == ports[j-1].PublicPort+1) {
			j++
		}
		last := ports[j-1]
		inside, outside := strconv.Itoa(int(first.PrivatePort)), strconv.Itoa(int(first.PublicPort))
		if j-i > 1 {
			inside += "-" + strconv.Itoa(int(last.PrivatePort))
			outside += "-" + strconv.Itoa(int(last.PublicPort))
		}
		if first.PublicPort == 0 {
			out = append(out, inside+"/"+first.Type)
		} else {
			addr := first.IP
			if strings.Contains(addr, ":") {
				addr = "[" + addr + "]"
			}
			out = append(out, fmt.Sprintf("%s:%s->%s/%s", addr, outside, inside, first.Type))
		}
		i = j
	}
	return strings.Join(out, ", ")
}

// setupPlain is a command that posts to each container.
func setupPlain(verb string) func(*env, *pflag.FlagSet) func(context.Context, []string) error {
	return func(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
		return func(ctx context.Context, args []string) error {
			return e.each(args, func(name string) error { return e.post(ctx, name, verb, nil) })
		}
	}
}

// post does a verb on a container and prints its name.
func (e *env) post(ctx context.Context, name, verb string, q url.Values) error {
	if err := e.call(ctx, "POST", "/containers/"+url.PathEscape(name)+"/"+verb, q, nil, nil); err != nil {
		return err
	}
	fmt.Fprintln(e.out, name)
	return nil
}

func setupStop(verb string) func(*env, *pflag.FlagSet) func(context.Context, []string) error {
	return func(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
		signal := f.StringP("signal", "s", "", "signal that asks the container to stop")
		timeout := f.IntP("timeout", "t", 0, "seconds to wait before SIGKILL, -1 = for ever")
		f.IntVar(timeout, "time", 0, "the same")
		return func(ctx context.Context, args []string) error {
			q := url.Values{}
			if *signal != "" {
				q.Set("signal", *signal)
			}
			if f.Changed("timeout") || f.Changed("time") {
				q.Set("t", strconv.Itoa(*timeout))
			}
			return e.concurrently(args, func(name string) error {
				return e.call(ctx, "POST", "/containers/"+url.PathEscape(name)+"/"+verb, q, nil, nil)
			})
		}
	}
}

// concurrently does f for all names at once and prints each name when it is
// done, in the order given.
func (e *env) concurrently(names []string, f func(string) error) error {
	done := make([]chan error, len(names))
	for i, n := range names {
		done[i] = make(chan error, 1)
		go func() { done[i] <- f(n) }()
	}
	i := 0
	return e.each(names, func(n string) error {
		err := <-done[i]
		i++
		switch err {
		case nil:
			fmt.Fprintln(e.out, n)
		case errNothingDone:
			return nil
		}
		return err
	})
}

// errNothingDone is no failure, but the name is not printed as one that was done.
var errNothingDone = errors.New("nothing done")

func setupKill(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	signal := f.StringP("signal", "s", "", "signal, KILL unless given")
	return func(ctx context.Context, args []string) error {
		q := url.Values{}
		if *signal != "" {
			q.Set("signal", *signal)
		}
		return e.each(args, func(name string) error { return e.post(ctx, name, "kill", q) })
	}
}

func setupRm(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	force := f.BoolP("force", "f", false, "kill running ones first")
	link := f.BoolP("link", "l", false, "remove a link")
	volumes := f.BoolP("volumes", "v", false, "their anonymous volumes too")
	return func(ctx context.Context, args []string) error {
		q := url.Values{}
		for k, v := range map[string]bool{"force": *force, "link": *link, "v": *volumes} {
			if v {
				q.Set(k, "1")
			}
		}
		return e.concurrently(args, func(name string) error {
			err := e.call(ctx, "DELETE", "/containers/"+url.PathEscape(strings.Trim(name, "/")), q, nil, nil)
			if *force && isNotFound(err) {
				fmt.Fprintf(e.err, "onggi: %s\n", err)
				return errNothingDone
			}
			return err
		})
	}
}

func setupLogs(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	details := f.Bool("details", false, "attributes of the log too")
	follow := f.BoolP("follow", "f", false, "go on with what comes")
	since := f.String("since", "", "from a time, or a duration back: 2026-01-02T13:23:37Z, 42m")
	until := f.String("until", "", "up to a time, or a duration back")
	tail := f.StringP("tail", "n", "all", "number of lines from the end")
	times := f.BoolP("timestamps", "t", false, "times too")
	return func(ctx context.Context, args []string) error {
		if n, err := strconv.Atoi(*tail); *tail != "all" && (err != nil || n < 0) {
			return flagError("tail", *tail, "want a number of lines, or all")
		}
		q := url.Values{"stdout": {"1"}, "stderr": {"1"}, "tail": {*tail}}
		if *follow {
			q.Set("follow", "restarts") // true, to Docker's engine
		}
		for k, v := range map[string]bool{"details": *details, "timestamps": *times} {
			if v {
				q.Set(k, "1")
			}
		}
		for k, v := range map[string]string{"since": *since, "until": *until} {
			if v == "" {
				continue
			}
			t, err := timestamp(v, time.Now())
			if err != nil {
				return flagError(k, v, "%v", err)
			}
			q.Set(k, t)
		}
		resp, err := e.do(ctx, api.Request{Method: "GET", Path: "/containers/" + url.PathEscape(args[0]) + "/logs", Query: q})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		out, errw := bufio.NewWriterSize(e.out, 64<<10), io.Writer(e.err)
		defer out.Flush()
		w := io.Writer(out)
		if *follow {
			w = e.out
		}
		if strings.Contains(resp.Header["content-type"], "raw-stream") {
			_, err = io.Copy(w, resp.Body)
		} else {
			err = demux(resp.Body, w, errw)
		}
		if ctx.Err() != nil {
			return exitCode(130)
		}
		return err
	}
}

// timestamp turns what a person writes into the engine's seconds.nanoseconds.
func timestamp(v string, now time.Time) (string, error) {
	stamp := func(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }
	if d, err := time.ParseDuration(v); err == nil && v != "0" { // 0 is 1970, as with Docker
		return stamp(now.Add(-d)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04Z07:00", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, v, time.Local); err == nil {
			return stamp(t), nil
		}
	}
	if _, err := strconv.ParseFloat(v, 64); err == nil {
		return v, nil
	}
	return "", errors.New("is neither a time nor a duration")
}

func setupPort(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		c, err := e.inspect(ctx, args[0])
		if err != nil {
			return err
		}
		if len(args) == 2 {
			port, proto := splitProto(args[1])
			bs := c.NetworkSettings.Ports[port+"/"+proto]
			if len(bs) == 0 {
				return &hinted{fmt.Errorf("port %s/%s of container %s is not published", port, proto, args[0]), "onggi port " + args[0]}
			}
			for _, b := range bs {
				fmt.Fprintln(e.out, joinPort(b))
			}
			return nil
		}
		var lines []string
		for p, bs := range c.NetworkSettings.Ports {
			for _, b := range bs {
				lines = append(lines, p+" -> "+joinPort(b))
			}
		}
		sort.Strings(lines)
		for _, l := range lines {
			fmt.Fprintln(e.out, l)
		}
		return nil
	}
}

func joinPort(b api.PortBinding) string {
	if strings.Contains(b.HostIP, ":") {
		return "[" + b.HostIP + "]:" + b.HostPort
	}
	return b.HostIP + ":" + b.HostPort
}

func setupRename(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		return e.call(ctx, "POST", "/containers/"+url.PathEscape(args[0])+"/rename", url.Values{"name": {args[1]}}, nil, nil)
	}
}

func setupTop(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		q := url.Values{}
		if len(args) > 1 {
			q.Set("ps_args", strings.Join(args[1:], " "))
		}
		var top struct {
			Titles    []string
			Processes [][]string
		}
		if err := e.call(ctx, "GET", "/containers/"+url.PathEscape(args[0])+"/top", q, nil, &top); err != nil {
			return err
		}
		l := &list{titles: map[string]string{}}
		for i, t := range top.Titles {
			col := strconv.Itoa(i)
			l.columns = append(l.columns, col)
			l.titles[col] = t
		}
		for _, p := range top.Processes {
			r := row{}
			for i, v := range p {
				r[strconv.Itoa(i)] = v
			}
			l.rows = append(l.rows, r)
		}
		return e.show(l, "", false)
	}
}

func setupWait(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		return e.each(args, func(name string) error {
			var st struct {
				StatusCode int
				Error      *struct{ Message string }
			}
			if err := e.call(ctx, "POST", "/containers/"+url.PathEscape(name)+"/wait", nil, nil, &st); err != nil {
				return err
			}
			fmt.Fprintln(e.out, st.StatusCode)
			return nil
		})
	}
}

func setupDiff(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		var changes []struct {
			Path string
			Kind int
		}
		if err := e.call(ctx, "GET", "/containers/"+url.PathEscape(args[0])+"/changes", nil, nil, &changes); err != nil {
			return err
		}
		for _, c := range changes {
			fmt.Fprintf(e.out, "%c %s\n", "CAD"[min(max(c.Kind, 0), 2)], c.Path)
		}
		return nil
	}
}

// output opens the file of -o, or stands for standard output unless that is a
// terminal.
func (e *env) output(name string) (io.Writer, func(err error) error, error) {
	if name == "" {
		if isTerminal(e.out) {
			return nil, nil, &hinted{errors.New("an archive would spoil the terminal"), "-o FILE, or redirect the output"}
		}
		return e.out, func(err error) error { return err }, nil
	}
	f, err := os.OpenFile(name+".part", os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, nil, err
	}
	return f, func(err error) error {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			os.Remove(name + ".part")
			return err
		}
		return os.Rename(name+".part", name)
	}, nil
}

func setupExport(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	output := f.StringP("output", "o", "", "write to this file")
	return func(ctx context.Context, args []string) error {
		w, done, err := e.output(*output)
		if err != nil {
			return err
		}
		return done(e.stream(ctx, api.Request{Method: "GET", Path: "/containers/" + url.PathEscape(args[0]) + "/export"}, w))
	}
}

func setupCommit(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	author := f.StringP("author", "a", "", "who made it")
	change := f.StringArrayP("change", "c", nil, "Dockerfile instruction to apply")
	message := f.StringP("message", "m", "", "message")
	pause := f.BoolP("pause", "p", true, "pause the container meanwhile")
	noPause := f.Bool("no-pause", false, "do not pause the container")
	return func(ctx context.Context, args []string) error {
		q := url.Values{"container": {args[0]}, "changes": *change, "author": {*author}, "comment": {*message}}
		if len(args) == 2 {
			repo, tag := splitTag(args[1])
			q.Set("repo", repo)
			q.Set("tag", tag)
		}
		if !*pause || *noPause {
			q.Set("pause", "0")
		}
		var made struct {
			ID string `json:"Id"`
		}
		if err := e.call(ctx, "POST", "/commit", q, nil, &made); err != nil {
			return err
		}
		fmt.Fprintln(e.out, made.ID)
		return nil
	}
}

// splitTag cuts name:tag at the colon that is not a port's.
func splitTag(ref string) (name, tag string) {
	i := strings.LastIndexByte(ref, ':')
	if i < 0 || strings.ContainsAny(ref[i:], "/@") {
		return ref, ""
	}
	return ref[:i], ref[i+1:]
}

func setupUpdate(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	var h hostConfig
	blkio := f.Uint16("blkio-weight", 0, "relative weight of block I/O")
	f.Int64Var(&h.CpuPeriod, "cpu-period", 0, "period of the quota, in microseconds")
	f.Int64Var(&h.CpuQuota, "cpu-quota", 0, "quota in a period, in microseconds")
	f.Int64Var(&h.CpuRealtimePeriod, "cpu-rt-period", 0, "real-time period")
	f.Int64Var(&h.CpuRealtimeRuntime, "cpu-rt-runtime", 0, "real-time quota")
	f.Int64VarP(&h.CpuShares, "cpu-shares", "c", 0, "relative weight")
	f.StringVar(&h.CpusetCpus, "cpuset-cpus", "", "CPUs to run on")
	f.StringVar(&h.CpusetMems, "cpuset-mems", "", "memory nodes")
	c := &createFlags{f: f, swappiness: -1}
	f.StringVar(&c.cpus, "cpus", "", "number of CPUs")
	f.StringVarP(&c.memory, "memory", "m", "", "limit of memory")
	f.StringVar(&c.memoryReservation, "memory-reservation", "", "soft limit of memory")
	f.StringVar(&c.memorySwap, "memory-swap", "", "limit of memory and swap together")
	f.Int64Var(&c.pidsLimit, "pids-limit", 0, "limit of processes, -1 = none")
	restart := f.String("restart", "", "restart policy")
	return func(ctx context.Context, args []string) error {
		if f.NFlag() == 0 {
			return &usageError{text: "nothing to change: you must provide one or more flags when using this command", hint: "onggi update --help"}
		}
		keep := h
		if err := c.resources(&h); err != nil {
			return err
		}
		h.CpuPeriod, h.CpuQuota, h.CpuShares = keep.CpuPeriod, keep.CpuQuota, keep.CpuShares
		h.CpuRealtimePeriod, h.CpuRealtimeRuntime, h.CpusetCpus, h.CpusetMems = keep.CpuRealtimePeriod, keep.CpuRealtimeRuntime, keep.CpusetCpus, keep.CpusetMems
		h.BlkioWeight = *blkio
		if *restart != "" {
			c.restart = *restart
			if err := c.host(&h); err != nil {
				return err
			}
		}
		return e.each(args, func(name string) error {
			var answer struct{ Warnings []string }
			if err := e.call(ctx, "POST", "/containers/"+url.PathEscape(name)+"/update", nil, h, &answer); err != nil {
				return err
			}
			for _, w := range answer.Warnings {
				fmt.Fprintf(e.err, "warning: %s\n", w)
			}
			fmt.Fprintln(e.out, name)
			return nil
		})
	}
}

// setupPrune removes what is not used, after asking.
func setupPrune(what string) func(*env, *pflag.FlagSet) func(context.Context, []string) error {
	return func(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
		force := f.BoolP("force", "f", false, "do not ask")
		filter := f.StringArray("filter", nil, "only those that match: until=24h, label=…")
		var all *bool
		if what == "images" || what == "volumes" {
			all = f.BoolP("all", "a", false, "all that is not used, not only what has no name")
		}
		return func(ctx context.Context, args []string) error {
			question := map[string]string{"containers": "all stopped containers", "images": "all dangling images", "volumes": "all anonymous local volumes not used by at least one container",
				"networks": "all custom networks not used by at least one container"}[what]
			if all != nil && *all {
				question = map[string]string{"images": "all images without at least one container associated to them", "volumes": "all local volumes not used by at least one container"}[what]
			}
			if !*force && !e.confirm("This will remove "+question+".") {
				return nil
			}
			set := *filter
			if all != nil && *all {
				switch what {
				case "images":
					set = append(set, "dangling=false")
				case "volumes":
					set = append(set, "all=true")
				}
			}
			q, err := filters(set)
			if err != nil {
				return err
			}
			_, err = e.prune(ctx, what, q)
			return err
		}
	}
}

// prune posts and prints what went.
func (e *env) prune(ctx context.Context, what string, q url.Values) (int64, error) {
	var gone struct {
		ContainersDeleted, VolumesDeleted, NetworksDeleted, CachesDeleted []string
		ImagesDeleted                                                     []api.Removed
		SpaceReclaimed                                                    int64
	}
	if err := e.call(ctx, "POST", "/"+what+"/prune", q, nil, &gone); err != nil {
		return 0, err
	}
	print := func(title string, names []string) {
		if len(names) > 0 {
			fmt.Fprintf(e.out, "%s:\n%s\n\n", title, strings.Join(names, "\n"))
		}
	}
	print("Deleted Containers", gone.ContainersDeleted)
	print("Deleted Volumes", gone.VolumesDeleted)
	print("Deleted Networks", gone.NetworksDeleted)
	print("Deleted build cache objects", gone.CachesDeleted)
	var images []string
	for _, r := range gone.ImagesDeleted {
		images = append(images, removedLine(r))
	}
	print("Deleted Images", images)
	if what != "networks" {
		fmt.Fprintf(e.out, "Total reclaimed space: %s\n", humanSize(gone.SpaceReclaimed))
	}
	return gone.SpaceReclaimed, nil
}

func removedLine(r api.Removed) string {
	if r.Untagged != "" {
		return "untagged: " + r.Untagged
	}
	return "deleted: " + r.Deleted
}

// confirm asks on the terminal; without one the answer is no.
func (e *env) confirm(warning string) bool {
	fmt.Fprintf(e.out, "WARNING! %s\nAre you sure you want to continue? [y/N] ", warning)
	line, _ := bufio.NewReader(e.in).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true
	}
	fmt.Fprintln(e.err, "Total reclaimed space: 0B (nothing was removed; --force does not ask)")
	return false
}
