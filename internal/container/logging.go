package container

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/logs"
	"github.com/onggi/onggi/internal/logs/sink"
)

// Options of log drivers, by who has them.
var (
	logSizes  = []string{"max-size", "max-file", "compress"}
	logMeta   = []string{"labels", "labels-regex", "env", "env-regex", "tag"}
	logCaches = []string{"cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"}
)

// missingDrivers are those of Docker's that send to one maker's service.
var missingDrivers = []string{"awslogs", "gcplogs", "splunk"}

// LogDrivers lists what --log-driver may name.
func LogDrivers() []string {
	return append(sink.Names(), logs.JSONFile, logs.Local, logs.None)
}

// checkLog refuses a driver that is not there and options that it does not have.
func checkLog(l container.LogConfig) error {
	var known []string
	switch {
	case l.Type == logs.JSONFile:
		known = append(slices.Clone(logSizes), logMeta...)
	case l.Type == logs.Local:
		known = logSizes
	case l.Type == logs.None:
	case sink.Known(l.Type):
		known = append(append(slices.Clone(logMeta), logCaches...), sink.Keys(l.Type)...)
		if err := sink.Check(l.Type, l.Config); err != nil {
			return err
		}
	case slices.Contains(missingDrivers, l.Type):
		return errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "", "", "failed to initialize logging driver: %s is not in this engine", l.Type),
			"the drivers are "+strings.Join(LogDrivers(), ", ")+"; fluentd and syslog reach most collectors")
	default:
		return errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "", "", "logger: no log driver named '%s' is registered", clip(l.Type)),
			"the drivers are "+strings.Join(LogDrivers(), ", "))
	}
	for k, v := range l.Config {
		var err error
		switch k {
		case "max-size", "cache-max-size":
			if n, serr := parseSize(v); serr != nil || n < -1 {
				err = invalid("log option %s=%q: want a size such as 10m", k, clip(v))
			}
		case "max-file", "cache-max-file":
			if n, aerr := strconv.Atoi(v); aerr != nil || n < 1 {
				err = invalid("log option %s=%q: want a number from 1", k, clip(v))
			}
		case "labels-regex", "env-regex":
			if _, rerr := regexp.Compile(v); rerr != nil {
				err = invalid("log option %s: %w", k, rerr)
			}
		case "tag":
			_, err = sink.ExpandTag(v, sink.Source{})
		case "mode":
			if v != "blocking" && v != "non-blocking" {
				return invalid("logger: logging mode not supported: %s", clip(v))
			}
			continue // no mode holds a container up: the local log is the buffer
		case "max-buffer-size":
			if l.Config["mode"] != "non-blocking" {
				return invalid("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
			}
			continue
		}
		if !slices.Contains(known, k) {
			return invalid("unknown log opt '%s' for %s log driver", clip(k), l.Type)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// logSpec says where the container's output is kept; with rotation unless the
// request says otherwise. What goes elsewhere is kept here too: a container is
// never held up by a slow receiver, and its log can be read.
func (s *Service) logSpec(rec *Record) logs.Spec {
	l := rec.HostConfig.LogConfig
	sp := logs.Spec{Driver: l.Type, Path: s.logPath(rec)}
	opt := func(k string) string { return l.Config[k] }
	if sink.Known(l.Type) {
		sp.Driver = logs.Local
		opt = func(k string) string { return l.Config["cache-"+k] }
	}
	if v := opt("max-size"); v != "" {
		sp.MaxSize, _ = parseSize(v)
	}
	if v := opt("max-file"); v != "" {
		sp.MaxFiles, _ = strconv.Atoi(v)
	}
	sp.Compress = opt("compress") == "true"
	attrs := logAttrs(rec)
	if t := l.Config["tag"]; t != "" {
		attrs["tag"] = logTag(t, rec)
	}
	if len(attrs) > 0 {
		sp.Attrs = attrs
	}
	return sp
}

// logAttrs are the labels and variables that go with each entry.
func logAttrs(rec *Record) map[string]string {
	o := rec.HostConfig.LogConfig.Config
	attrs := map[string]string{}
	take := func(list, pattern string, all map[string]string) {
		for k := range strings.SplitSeq(list, ",") {
			if v, ok := all[k]; ok && k != "" {
				attrs[k] = v
			}
		}
		if re, err := regexp.Compile(pattern); err == nil && pattern != "" {
			for k, v := range all {
				if re.MatchString(k) {
					attrs[k] = v
				}
			}
		}
	}
	env := map[string]string{}
	for _, e := range rec.Config.Env {
		if k, v, ok := strings.Cut(e, "="); ok {
			env[k] = v
		}
	}
	take(o["labels"], o["labels-regex"], rec.Config.Labels)
	take(o["env"], o["env-regex"], env)
	return attrs
}

func logSource(rec *Record) sink.Source {
	args := commandLine(rec.Config)
	host, _ := os.Hostname()
	return sink.Source{
		ContainerID: rec.ID, ContainerName: "/" + rec.Name, ContainerImageID: rec.ImageID, ContainerImageName: rec.Config.Image, ContainerEntrypoint: args[0], ContainerArgs: args[1:],
		ContainerCreated: rec.Created, ContainerEnv: rec.Config.Env, ContainerLabels: rec.Config.Labels, DaemonName: "onggi", Host: host, Attrs: logAttrs(rec),
	}
}

// logTag fills in a tag; one that does not work was refused at create.
func logTag(t string, rec *Record) string {
	tag, err := sink.ExpandTag(t, logSource(rec))
	if err != nil {
		return t
	}
	return tag
}

func (s *Service) logPath(rec *Record) string {
	switch rec.HostConfig.LogConfig.Type {
	case logs.None:
		return ""
	case logs.JSONFile:
		return filepath.Join(s.dir(rec.ID), rec.ID+"-json.log")
	}
	return filepath.Join(s.dir(rec.ID), "container.log")
}

// A shipping sends a container's log on to another program, across runs of the
// container and of the engine.
type shipping struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when nothing is sent any more
}

func sinkSource(rec *Record) sink.Source {
	src := logSource(rec)
	src.Tag = logTag(cmpOr(rec.HostConfig.LogConfig.Config["tag"], "{{.ID}}"), rec)
	return src
}

// connectLog reaches the receiver of a container's log before the container
// runs, as Docker does, so that a wrong address is told to who starts it.
func (s *Service) connectLog(ctx context.Context, rec *Record) (sink.Sink, error) {
	l := rec.HostConfig.LogConfig
	if !sink.Known(l.Type) || sink.Async(l.Config) {
		return nil, nil
	}
	k, err := sink.Connect(ctx, l.Type, l.Config, sinkSource(rec))
	if err != nil {
		return nil, errdefs.WithHint(errdefs.New(errdefs.KindOf(err), "", "failed to initialize logging driver", err), "start the receiver, or use another --log-driver")
	}
	return k, nil
}

// ship sends the log on until ended is closed and all is sent. first may be nil.
func (s *Service) ship(c *Container, rec *Record, first sink.Sink, ended <-chan struct{}) {
	if !sink.Known(rec.HostConfig.LogConfig.Type) {
		return
	}
	c.mu.Lock()
	last := c.shipping
	sh := &shipping{done: make(chan struct{})}
	c.shipping = sh
	ctx, cancel := context.WithCancel(context.Background())
	sh.cancel = cancel
	c.mu.Unlock()
	go func() {
		select {
		case <-s.stop:
			cancel()
		case <-sh.done:
		}
	}()
	go func() { // Close waits for it a moment only: a receiver may hang
		defer cancel()
		defer close(sh.done)
		if last != nil {
			<-last.done // it sends the last run's rest
		}
		s.shipAll(ctx, rec, first, ended)
	}()
}

func (s *Service) shipAll(ctx context.Context, rec *Record, to sink.Sink, ended <-chan struct{}) {
	file := filepath.Join(s.dir(rec.ID), "shipped")
	pos := readPosition(file)
	var saved time.Time
	save := func() {
		if err := writePosition(file, pos); err != nil && ctx.Err() == nil {
			s.log.Warn("position in a log not recorded", "container", rec.ID, "error", err)
		}
		saved = time.Now()
	}
	spec, l := s.logSpec(rec), rec.HostConfig.LogConfig
	told := ""
	for pause := firstBackoff; ; pause = min(2*pause, maxBackoff) {
		err := logs.Read(ctx, spec, logs.ReadOptions{After: pos, Follow: true, Ended: ended, CaughtUp: func() {
			if time.Since(saved) > time.Second {
				save()
			}
		}}, func(e logs.Entry) (err error) {
			if to == nil { // only where there is something to send
				if to, err = sink.Open(l.Type, l.Config, sinkSource(rec)); err != nil {
					return err
				}
			}
			if err := to.Write(e); err != nil {
				return err
			}
			pos, pause, told = e.After, firstBackoff, ""
			return nil
		})
		save()
		if to != nil {
			to.Close()
			to = nil
		}
		if err == nil || ctx.Err() != nil {
			return
		}
		if told != err.Error() { // once for each cause
			told = err.Error()
			s.log.Warn("log not sent on, trying again", "container", rec.ID, "driver", rec.HostConfig.LogConfig.Type, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// shipRest sends what an engine that died had not sent of a container that has
// ended.
func (s *Service) shipRest(c *Container) {
	rec, st := c.view()
	if st.State == Exited || st.State == Restarting {
		ended := make(chan struct{})
		close(ended)
		s.ship(c, rec, nil, ended)
	}
}

func readPosition(file string) (p logs.Position) {
	if data, err := os.ReadFile(file); err == nil {
		json.Unmarshal(data, &p)
	}
	return p
}

func writePosition(file string, p logs.Position) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

// shipPatience is how long the removal of a container waits for a receiver of
// its log.
const shipPatience = 10 * time.Second

// awaitShippings lets positions in logs be recorded; what is not is sent twice.
func (s *Service) awaitShippings() {
	patience := time.After(2 * time.Second)
	for _, c := range s.all() {
		c.mu.Lock()
		sh := c.shipping
		c.mu.Unlock()
		if sh == nil {
			continue
		}
		select {
		case <-sh.done:
		case <-patience:
			return
		}
	}
}

// stopShipping lets the rest of a log be sent before it is deleted.
func (c *Container) stopShipping() {
	c.mu.Lock()
	sh := c.shipping
	c.mu.Unlock()
	if sh == nil {
		return
	}
	select {
	case <-sh.done:
	case <-time.After(shipPatience):
		sh.cancel()
	}
}
