package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

func tlsFlags(f *pflag.FlagSet) {
	f.Bool("tls", false, "use TLS")
	f.Bool("tlsverify", os.Getenv("DOCKER_TLS_VERIFY") != "", "use TLS and verify the engine")
	dir := os.Getenv("DOCKER_CERT_PATH")
	if dir == "" {
		dir = configDir("")
	}
	f.String("tlscacert", filepath.Join(dir, "ca.pem"), "certificates that are trusted")
	f.String("tlscert", filepath.Join(dir, "cert.pem"), "our certificate")
	f.String("tlskey", filepath.Join(dir, "key.pem"), "its key")
}

// connectWith makes the client; it connects when it is first used.
func (e *env) connectWith(f *pflag.FlagSet) error {
	o := api.Options{Host: e.host, UserAgent: "onggi/" + Version}
	text := func(name string) string { return f.Lookup(name).Value.String() }
	if text("tls") == "true" || text("tlsverify") == "true" {
		cfg := &tls.Config{InsecureSkipVerify: text("tlsverify") != "true", MinVersion: tls.VersionTLS12}
		if pem, err := os.ReadFile(text("tlscacert")); err == nil {
			cfg.RootCAs = x509.NewCertPool()
			cfg.RootCAs.AppendCertsFromPEM(pem)
		} else if !cfg.InsecureSkipVerify {
			return fmt.Errorf("read the trusted certificates: %w", err)
		}
		if cert, err := tls.LoadX509KeyPair(text("tlscert"), text("tlskey")); err == nil {
			cfg.Certificates = []tls.Certificate{cert}
		}
		addr := strings.TrimPrefix(e.host, "tcp://")
		cfg.ServerName, _, _ = net.SplitHostPort(addr)
		o.Dial = func(ctx context.Context) (net.Conn, error) {
			return (&tls.Dialer{Config: cfg}).DialContext(ctx, "tcp", addr)
		}
	}
	var err error
	e.client, err = api.New(o)
	return err
}

// retry does f again, once, after starting the engine where none ran. Only the
// default address is ours to serve.
func (e *env) retry(ctx context.Context, f func() error) error {
	err := f()
	if !api.IsUnreachable(err) {
		return err
	}
	host := e.host
	if host == "" {
		host = "unix://" + api.DefaultSocket
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return &hinted{fmt.Errorf("no permission to talk to the engine at %s", host), "sudo onggi …, or add yourself to the group that owns the socket"}
	case e.host != "" && e.host != "unix://"+api.DefaultSocket:
		return &hinted{fmt.Errorf("no engine answers at %s: %w", host, cause(err)), "onggid -H " + host}
	case os.Geteuid() != 0:
		return &hinted{fmt.Errorf("no engine is running (%s)", host), "sudo onggid, or sudo onggi …, which starts it"}
	}
	if err := e.startEngine(ctx); err != nil {
		return err
	}
	return f()
}

func cause(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// startEngine starts onggid in a session of its own and waits for its socket.
func (e *env) startEngine(ctx context.Context) error {
	path := e.sibling("onggid")
	if err := os.MkdirAll(filepath.Dir(api.DefaultSocket), 0o711); err != nil {
		return fmt.Errorf("start the engine: %w", err)
	}
	logPath := "/var/log/onggid.log"
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start the engine: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(path)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return &hinted{fmt.Errorf("start the engine: %w", err), "install onggid beside onggi"}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case <-ended:
			return &hinted{errors.New("the engine stopped while starting"), "tail " + logPath}
		case <-deadline:
			return &hinted{errors.New("the engine did not come up within 20 seconds"), "tail " + logPath}
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if conn, err := net.Dial("unix", api.DefaultSocket); err == nil {
				conn.Close()
				return nil
			}
		}
	}
}

// call is Client.Call with an engine started where needed.
func (e *env) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	return e.retry(ctx, func() error { return e.client.Call(ctx, method, path, query, in, out) })
}

// do is Client.Do with an engine started where needed. The body of q is sent
// once only: nothing was read from it when no engine answered.
func (e *env) do(ctx context.Context, q api.Request) (resp *api.Response, err error) {
	err = e.retry(ctx, func() error { resp, err = e.client.Do(ctx, q); return err })
	return resp, err
}

func (e *env) hijack(ctx context.Context, q api.Request) (s *api.Stream, err error) {
	err = e.retry(ctx, func() error { s, err = e.client.Hijack(ctx, q); return err })
	return s, err
}

// stream copies an answer to w.
func (e *env) stream(ctx context.Context, q api.Request, w io.Writer) error {
	resp, err := e.do(ctx, q)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}
