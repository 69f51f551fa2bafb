// Package sink sends what containers print to other programs: journald, syslog,
// fluentd and gelf, with Docker's options and fields.
//
// # Model
//
// A Sink is one connection for one container. It is handed entries of the
// container's local log, one at a time and in order, and answers whether each
// arrived as far as its protocol can tell. It buffers nothing and tries nothing
// twice: who calls it keeps the position in the log, and comes back with the
// entry that failed.
//
// # Not here
//
// The local log (internal/logs); when entries are sent (internal/container).
package sink

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"syscall"
	"text/template"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/logs"
)

// A Sink takes the entries of one container. It is used by one goroutine.
type Sink interface {
	Write(logs.Entry) error
	Close() error
}

// A Source is the container that entries come from. Its exported methods and
// fields are what tag templates may use.
type Source struct {
	ContainerID, ContainerName           string
	ContainerImageID, ContainerImageName string
	ContainerEntrypoint                  string
	ContainerArgs                        []string
	ContainerCreated                     time.Time
	ContainerEnv                         []string
	ContainerLabels                      map[string]string
	DaemonName                           string
	Host                                 string
	Attrs                                map[string]string // labels and variables that go with each entry
	Tag                                  string            // filled in
}

func short(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// The names that Docker's templates know.
func (s Source) ID() string                { return short(s.ContainerID) }
func (s Source) FullID() string            { return s.ContainerID }
func (s Source) Name() string              { return strings.TrimPrefix(s.ContainerName, "/") }
func (s Source) ImageID() string           { return short(s.ContainerImageID) }
func (s Source) ImageFullID() string       { return s.ContainerImageID }
func (s Source) ImageName() string         { return s.ContainerImageName }
func (s Source) Hostname() (string, error) { return s.Host, nil }
func (s Source) Command() string {
	return strings.TrimSpace(s.ContainerEntrypoint + " " + strings.Join(s.ContainerArgs, " "))
}

var templateFuncs = template.FuncMap{"join": strings.Join, "split": strings.Split, "lower": strings.ToLower, "upper": strings.ToUpper}

// ExpandTag fills in a tag template.
func ExpandTag(text string, s Source) (string, error) {
	if !strings.Contains(text, "{{") {
		return text, nil
	}
	t, err := template.New("log-tag").Funcs(templateFuncs).Parse(text)
	var b bytes.Buffer
	if err == nil {
		err = t.Execute(&b, s)
	}
	if err != nil {
		return "", errdefs.Newf(errdefs.Invalid, "", "", "log option tag: %w", err)
	}
	return b.String(), nil
}

type driver struct {
	keys  []string
	check func(opts map[string]string) error
	open  func(opts map[string]string, s Source) (Sink, error)
}

var drivers = map[string]driver{
	"journald": {open: openJournald},
	"syslog":   {keys: syslogKeys, check: checkSyslog, open: openSyslog},
	"fluentd":  {keys: fluentdKeys, check: checkFluentd, open: openFluentd},
	"gelf":     {keys: gelfKeys, check: checkGELF, open: openGELF},
}

// Names lists the drivers.
func Names() []string { return slices.Sorted(maps.Keys(drivers)) }

// Known reports whether there is a driver of that name.
func Known(name string) bool { _, ok := drivers[name]; return ok }

// Keys are the options of a driver that no other has.
func Keys(name string) []string { return drivers[name].keys }

// Check refuses options that can never work. The driver must be known.
func Check(name string, opts map[string]string) error {
	d := drivers[name]
	if d.check == nil {
		return nil
	}
	return d.check(opts)
}

// Open connects. An error says that the other side is not there now, or that
// it is not what the options say.
func Open(name string, opts map[string]string, s Source) (Sink, error) {
	k, err := drivers[name].open(opts, s)
	if err != nil {
		return nil, errdefs.New(errdefs.Unavailable, "connect to", name, err)
	}
	return k, nil
}

// Connect opens as Open does, but gives a receiver that refuses two seconds: one
// that was started just before may not listen yet. (Docker's proxy accepts for
// it from the moment its port is published.)
func Connect(ctx context.Context, name string, opts map[string]string, s Source) (Sink, error) {
	end := time.After(2 * time.Second)
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		k, err := Open(name, opts, s)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return k, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-end:
			return nil, err
		case <-time.After(pause):
		}
	}
}

func invalid(format string, args ...any) error {
	return errdefs.Newf(errdefs.Invalid, "", "", format, args...)
}

// line is the text of an entry.
func line(e logs.Entry) string { return strings.TrimSuffix(string(e.Line), "\n") }
