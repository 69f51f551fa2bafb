// Package systemd makes control groups by asking systemd for transient units,
// over D-Bus.
//
// # Model
//
// A Bus is a connection to systemd, made at first use and made again when it
// broke. Each change of a unit is a job of systemd's; a method returns when
// its job has ended, so that the group is there, or gone, by then.
//
// # Guarantees
//
// Where systemd does not run, or does not let us in, methods say so and touch
// nothing. Waiting is bounded by Timeout.
//
// # Concurrency
//
// All methods may be called from any goroutine. The D-Bus library runs
// goroutines of its own until Close: the one exception to the rule that
// nothing in internal/linux does.
//
// # Not here
//
// What the properties say (package cgroup), and the files of the group.
package systemd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux/cgroup"
)

// Timeout is how long a job of systemd's may take.
const Timeout = 30 * time.Second

const (
	service = "org.freedesktop.systemd1"
	object  = "/org/freedesktop/systemd1"
	manager = "org.freedesktop.systemd1.Manager"
)

// Bus is a connection to systemd. It implements cgroup.Units.
type Bus struct {
	address string // "" is the machine's own

	mu      sync.Mutex
	conn    *dbus.Conn // guarded by mu; nil before the first use
	version int        // guarded by mu
}

var _ cgroup.Units = (*Bus)(nil)

// New makes a Bus to the machine's systemd. Nothing is connected yet.
func New() *Bus { return &Bus{} }

// NewAt makes a Bus to an address in D-Bus's form.
func NewAt(address string) *Bus { return &Bus{address: address} }

// Running reports whether systemd is this machine's init.
func Running() bool {
	fi, err := os.Lstat("/run/systemd/system")
	return err == nil && fi.IsDir()
}

// Close ends the connection. The Bus can be used again.
func (b *Bus) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn == nil {
		return nil
	}
	err := b.conn.Close()
	b.conn = nil
	return err
}

func (b *Bus) connect() (*dbus.Conn, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != nil && b.conn.Connected() {
		return b.conn, nil
	}
	fail := func(err error) (*dbus.Conn, error) {
		return nil, errdefs.WithHint(errdefs.New(errdefs.Unavailable, "connect to", "systemd", err),
			"control groups can be made without systemd: use a path such as /onggi/name")
	}
	address := b.address
	if address == "" {
		if !Running() {
			return nil, errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "connect to", "systemd", "it does not run here"),
				"use a control group path such as /onggi/name")
		}
		address = "unix:path=/run/dbus/system_bus_socket"
	}
	conn, err := dbus.Connect(address)
	if err != nil {
		return fail(err)
	}
	err = conn.AddMatchSignal(dbus.WithMatchInterface(manager), dbus.WithMatchMember("JobRemoved"), dbus.WithMatchObjectPath(object))
	if err == nil {
		// Without a subscriber systemd tells nobody.
		err = conn.Object(service, object).Call(manager+".Subscribe", 0).Err
		if isError(err, "AlreadySubscribed") {
			err = nil
		}
	}
	if err != nil {
		conn.Close()
		return fail(err)
	}
	b.conn = conn
	return conn, nil
}

func isError(err error, name string) bool {
	e, ok := errors.AsType[dbus.Error](err)
	return ok && strings.HasSuffix(e.Name, "."+name)
}

// property and unit are the D-Bus types (sv) and (sa(sv)).
type (
	property struct {
		Name  string
		Value dbus.Variant
	}
	unit struct {
		Name       string
		Properties []property
	}
)

func convert(list []cgroup.Property) []property {
	out := make([]property, 0, len(list))
	for _, p := range list {
		out = append(out, property{p.Name, dbus.MakeVariant(p.Value)})
	}
	return out
}

// Start makes a unit and waits for it.
func (b *Bus) Start(name string, properties []cgroup.Property) error {
	start := func() error {
		return b.job("start", name, manager+".StartTransientUnit", name, "replace", convert(properties), []unit{})
	}
	err := start()
	if !isError(err, "UnitExists") {
		return wrap("start", name, err)
	}
	// It may be the remains of one that ended badly.
	b.reset(name)
	if err = start(); isError(err, "UnitExists") {
		return errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "start", "unit "+name, "it exists"),
			"systemctl status "+name+" tells what it is")
	}
	return wrap("start", name, err)
}

// Set changes properties of a running unit.
func (b *Bus) Set(name string, properties []cgroup.Property) error {
	set := func() (*dbus.Conn, error) {
		conn, err := b.connect()
		if err != nil {
			return nil, err
		}
		ctx, cancel := context.WithTimeout(context.Background(), Timeout)
		defer cancel()
		return conn, conn.Object(service, object).
			CallWithContext(ctx, manager+".SetUnitProperties", 0, name, true, convert(properties)).Err
	}
	conn, err := set()
	if conn != nil && b.broken(conn, err) {
		_, err = set()
	}
	return wrap("set properties of", name, err)
}

// broken forgets a connection that ended before a call was sent, as after a
// restart of the bus, and says that the call may be made again.
func (b *Bus) broken(conn *dbus.Conn, err error) bool {
	if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, dbus.ErrClosed) {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	conn.Close()
	if b.conn == conn {
		b.conn = nil
	}
	return true
}

// Stop ends a unit and waits for its end.
func (b *Bus) Stop(name string) error {
	err := b.job("stop", name, manager+".StopUnit", name, "replace")
	if isError(err, "NoSuchUnit") {
		err = nil
	}
	b.reset(name)
	return wrap("stop", name, err)
}

// reset lets systemd forget a unit that ended badly.
func (b *Bus) reset(name string) {
	if conn, err := b.connect(); err == nil {
		conn.Object(service, object).Call(manager+".ResetFailedUnit", 0, name)
	}
}

// Version is systemd's version.
func (b *Bus) Version() (int, error) {
	conn, err := b.connect()
	if err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.version != 0 {
		return b.version, nil
	}
	v, err := conn.Object(service, object).GetProperty(manager + ".Version")
	if err != nil {
		return 0, errdefs.New(errdefs.Unavailable, "ask for the version of", "systemd", err)
	}
	text, _ := v.Value().(string)
	n := 0
	for _, c := range strings.TrimPrefix(text, "systemd ") {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int(c-'0')
	}
	if n == 0 {
		return 0, errdefs.Newf(errdefs.Unsupported, "ask for the version of", "systemd", "it says %q", text)
	}
	b.version = n
	return n, nil
}

// job calls a method that answers with a job, and waits for the job's end.
func (b *Bus) job(op, name, method string, args ...any) error {
	return b.try(false, op, name, method, args...)
}

func (b *Bus) try(again bool, op, name, method string, args ...any) error {
	conn, err := b.connect()
	if err != nil {
		return err
	}
	// The end may be told before the answer is read: listen first.
	ended := make(chan *dbus.Signal, 64)
	conn.Signal(ended)
	defer conn.RemoveSignal(ended)
	ctx, cancel := context.WithTimeout(context.Background(), Timeout)
	defer cancel()
	var job dbus.ObjectPath
	if err := conn.Object(service, object).CallWithContext(ctx, method, 0, args...).Store(&job); err != nil {
		if !again && b.broken(conn, err) {
			return b.try(true, op, name, method, args...)
		}
		return err
	}
	for {
		select {
		case s, ok := <-ended:
			if !ok {
				return errors.New("the connection ended")
			}
			result, ours := jobResult(s, job)
			switch {
			case !ours:
			case result == "done", result == "skipped" && op == "stop":
				return nil
			default:
				b.reset(name)
				return fmt.Errorf("systemd's job ended with %q", result)
			}
		case <-ctx.Done():
			return fmt.Errorf("systemd's job did not end in %v", Timeout)
		}
	}
}

// jobResult reads a JobRemoved: id, job, unit, result.
func jobResult(s *dbus.Signal, job dbus.ObjectPath) (string, bool) {
	if s == nil || s.Name != manager+".JobRemoved" || len(s.Body) < 4 {
		return "", false
	}
	path, _ := s.Body[1].(dbus.ObjectPath)
	result, _ := s.Body[3].(string)
	return result, path == job
}

func wrap(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*errdefs.Error](err); ok {
		return err
	}
	kind, hint := errdefs.Internal, ""
	switch {
	case isError(err, "AccessDenied"), isError(err, "InteractiveAuthorizationRequired"):
		kind, hint = errdefs.Forbidden, "run as root, or let polkit allow it"
	case isError(err, "InvalidArgs"), isError(err, "PropertyReadOnly"):
		kind = errdefs.Invalid
	case isError(err, "NoSuchUnit"):
		kind = errdefs.NotFound
	case isError(err, "ServiceUnknown"), errors.Is(err, dbus.ErrClosed):
		kind = errdefs.Unavailable
	}
	return errdefs.WithHint(errdefs.New(kind, op, "unit "+name, err), hint)
}
