package sink

import (
	"maps"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/fluent/fluent-logger-golang/fluent"

	"github.com/onggi/onggi/internal/logs"
)

var fluentdKeys = []string{"fluentd-address", "fluentd-async", "fluentd-async-connect", "fluentd-async-reconnect-interval", "fluentd-buffer-limit", "fluentd-max-retries",
	"fluentd-request-ack", "fluentd-retry-wait", "fluentd-sub-second-precision", "fluentd-write-timeout", "fluentd-read-timeout"}

// fluentdConfig reads the options. Those of the library's own buffer and its
// repeated tries are checked only: the container's local log is the buffer.
func fluentdConfig(o map[string]string) (c fluent.Config, err error) {
	c = fluent.Config{FluentNetwork: "tcp", FluentHost: "127.0.0.1", FluentPort: 24224, MaxRetry: 1, RetryWait: 1, Timeout: 5 * time.Second, WriteTimeout: 10 * time.Second, ReadTimeout: 10 * time.Second}
	if a := o["fluentd-address"]; a != "" {
		if !strings.Contains(a, "://") {
			a = "tcp://" + a
		}
		u, err := url.Parse(a)
		if err != nil {
			return c, invalid("invalid fluentd-address (%s): %w", o["fluentd-address"], err)
		}
		c.FluentNetwork = u.Scheme
		switch u.Scheme {
		case "unix":
			if c.FluentSocketPath = u.Path; strings.Trim(u.Path, "/") == "" {
				return c, invalid("invalid fluentd-address (%s): path is empty", o["fluentd-address"])
			}
		case "tcp", "tls":
			if u.Path != "" {
				return c, invalid("invalid fluentd-address (%s): should not contain a path element", o["fluentd-address"])
			}
			if h := u.Hostname(); h != "" {
				c.FluentHost = h
			}
			if p := u.Port(); p != "" {
				if c.FluentPort, err = net.LookupPort("tcp", p); err != nil {
					return c, invalid("invalid fluentd-address (%s): %w", o["fluentd-address"], err)
				}
			}
		default:
			return c, invalid("invalid fluentd-address (%s): unsupported scheme: '%s'", o["fluentd-address"], u.Scheme)
		}
	}
	var ignored bool
	for k, to := range map[string]*bool{"fluentd-async": &ignored, "fluentd-async-connect": &ignored, "fluentd-sub-second-precision": &c.SubSecondPrecision, "fluentd-request-ack": &c.RequestAck} {
		if v := o[k]; v != "" {
			if *to, err = strconv.ParseBool(v); err != nil {
				return c, invalid("invalid value for %s: %w", k, err)
			}
		}
	}
	var none time.Duration
	for k, to := range map[string]*time.Duration{"fluentd-write-timeout": &c.WriteTimeout, "fluentd-read-timeout": &c.ReadTimeout, "fluentd-retry-wait": &none, "fluentd-async-reconnect-interval": &none} {
		if v := o[k]; v != "" {
			if *to, err = time.ParseDuration(v); err != nil || *to < 0 {
				return c, invalid("invalid value for %s: value must be a duration that is non-negative", k)
			}
		}
	}
	if v := o["fluentd-buffer-limit"]; v != "" {
		if _, err := units.RAMInBytes(v); err != nil {
			return c, invalid("invalid value for fluentd-buffer-limit: %w", err)
		}
	}
	if v := o["fluentd-max-retries"]; v != "" {
		if _, err := strconv.ParseUint(v, 10, 31); err != nil {
			return c, invalid("invalid fluentd-max-retries: %w", err)
		}
	}
	return c, nil
}

func checkFluentd(o map[string]string) error { _, err := fluentdConfig(o); return err }

// Async reports whether a container is to start although the other side is not
// there yet.
func Async(o map[string]string) bool {
	a, _ := strconv.ParseBool(o["fluentd-async"])
	b, _ := strconv.ParseBool(o["fluentd-async-connect"])
	return a || b
}

type fluentd struct {
	w      *fluent.Fluent
	tag    string
	fields map[string]string
}

func openFluentd(o map[string]string, s Source) (Sink, error) {
	c, err := fluentdConfig(o)
	if err != nil {
		return nil, err
	}
	w, err := fluent.New(c)
	if err != nil {
		return nil, err
	}
	f := &fluentd{w: w, tag: s.Tag, fields: map[string]string{"container_id": s.ContainerID, "container_name": "/" + s.Name()}}
	maps.Copy(f.fields, s.Attrs)
	return f, nil
}

func (f *fluentd) Write(e logs.Entry) error {
	data := maps.Clone(f.fields)
	data["source"], data["log"] = e.Stream, line(e)
	if e.Partial {
		data["partial_message"] = "true"
	}
	return f.w.PostWithTime(f.tag, e.Time, data)
}

func (f *fluentd) Close() error { return f.w.Close() }
