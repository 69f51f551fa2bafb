package sink

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	syslog "github.com/RackSec/srslog"

	"github.com/onggi/onggi/internal/logs"
)

var syslogKeys = []string{"syslog-address", "syslog-facility", "syslog-format", "syslog-tls-ca-cert", "syslog-tls-cert", "syslog-tls-key", "syslog-tls-skip-verify"}

// facilities are in the order of their numbers; 12 to 15 have no name here.
var facilities = []string{"kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "", "", "", "",
	"local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7"}

func facility(s string) (syslog.Priority, error) {
	if s == "" {
		return syslog.LOG_DAEMON, nil
	}
	if i := slices.Index(facilities, s); i >= 0 {
		return syslog.Priority(i << 3), nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 || n > 23 {
		return 0, invalid("invalid syslog facility: %.50q", s)
	}
	return syslog.Priority(n << 3), nil
}

// syslogAddress reads [tcp|udp|tcp+tls]://host[:port], unix://path and
// unixgram://path. Without one it is the machine's own.
func syslogAddress(s string) (network, addr string, err error) {
	if s == "" {
		return "", "", nil
	}
	u, err := url.Parse(s)
	if err != nil {
		return "", "", invalid("syslog-address: %w", err)
	}
	switch u.Scheme {
	case "unix", "unixgram":
		return u.Scheme, u.Path, nil
	case "tcp", "udp", "tcp+tls":
		if u.Port() == "" {
			return u.Scheme, net.JoinHostPort(u.Hostname(), "514"), nil
		}
		return u.Scheme, u.Host, nil
	}
	return "", "", invalid("unsupported scheme: '%s'", u.Scheme)
}

func checkSyslog(o map[string]string) error {
	network, addr, err := syslogAddress(o["syslog-address"])
	if err != nil {
		return err
	}
	if strings.HasPrefix(network, "unix") {
		if _, err := os.Stat(addr); err != nil {
			return invalid("syslog-address: %w", err)
		}
	}
	if _, err := facility(o["syslog-facility"]); err != nil {
		return err
	}
	switch o["syslog-format"] {
	case "", "rfc3164", "rfc5424", "rfc5424micro":
		return nil
	}
	return invalid("invalid syslog format: %.50q", o["syslog-format"])
}

type syslogger struct {
	w  *syslog.Writer
	at time.Time // of the entry that is being written
}

func openSyslog(o map[string]string, s Source) (Sink, error) {
	network, addr, err := syslogAddress(o["syslog-address"])
	if err != nil {
		return nil, err
	}
	pri, err := facility(o["syslog-facility"])
	if err != nil {
		return nil, err
	}
	l := &syslogger{}
	if network == "tcp+tls" {
		var c *tls.Config
		if c, err = tlsConfig(o); err != nil {
			return nil, err
		}
		l.w, err = syslog.DialWithTLSConfig(network, addr, pri, s.Tag, c)
	} else {
		l.w, err = syslog.Dial(network, addr, pri, s.Tag)
	}
	if err != nil {
		return nil, err
	}
	l.w.SetFramer(syslog.DefaultFramer)
	// The library's own formats have the time of sending.
	switch o["syslog-format"] {
	case "":
		l.w.SetFormatter(func(p syslog.Priority, _, tag, text string) string {
			return fmt.Sprintf("<%d>%s %s[%d]: %s", p, l.at.Local().Format(time.Stamp), tag, os.Getpid(), text)
		})
	case "rfc3164":
		l.w.SetFormatter(func(p syslog.Priority, host, tag, text string) string {
			return fmt.Sprintf("<%d>%s %s %s[%d]: %s", p, l.at.Local().Format(time.Stamp), host, tag, os.Getpid(), text)
		})
	default:
		layout := time.RFC3339
		if o["syslog-format"] == "rfc5424micro" {
			layout = "2006-01-02T15:04:05.000000Z07:00"
		}
		l.w.SetFormatter(func(p syslog.Priority, host, tag, text string) string {
			return fmt.Sprintf("<%d>1 %s %s %s %d %s - %s", p, l.at.Local().Format(layout), host, tag, os.Getpid(), tag, text)
		})
		if network == "tcp+tls" {
			l.w.SetFramer(syslog.RFC5425MessageLengthFramer)
		}
	}
	return l, nil
}

func tlsConfig(o map[string]string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	_, c.InsecureSkipVerify = o["syslog-tls-skip-verify"]
	if file := o["syslog-tls-ca-cert"]; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, invalid("syslog-tls-ca-cert %s holds no certificate", file)
		}
	}
	if o["syslog-tls-cert"] != "" || o["syslog-tls-key"] != "" {
		pair, err := tls.LoadX509KeyPair(o["syslog-tls-cert"], o["syslog-tls-key"])
		if err != nil {
			return nil, err
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func (l *syslogger) Write(e logs.Entry) error {
	l.at = e.Time
	if e.Stream == "stderr" {
		return l.w.Err(line(e))
	}
	return l.w.Info(line(e))
}

func (l *syslogger) Close() error { return l.w.Close() }
