package cli

import (
	"context"
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

// tlsFiles are the certificates of a connection.
type tlsFiles struct {
	on, verify    bool
	ca, cert, key string
}

func tlsOf(f *pflag.FlagSet) *tlsFiles {
	text := func(name string) string { return f.Lookup(name).Value.String() }
	verify := text("tlsverify") == "true"
	return &tlsFiles{on: verify || text("tls") == "true", verify: verify, ca: text("tlscacert"), cert: text("tlscert"), key: text("tlskey")}
}

// choose says which engine it is: the first of --host, --context, ONGGI_HOST,
// ONGGI_CONTEXT and the context in use. A broken context hinders the commands
// about contexts not.
func (e *env) choose(g *globals, t *tlsFiles, aboutContexts bool) error {
	e.context = g.context
	switch env := os.Getenv("ONGGI_CONTEXT"); {
	case g.host != "":
		e.host = g.host
	case g.context != "":
	case e.host != "":
	case env != "":
		e.context = env
	default:
		e.context = e.cfg.currentContext()
	}
	if e.context == "" || e.context == defaultContext {
		if e.context != "" && g.context != "" {
			e.host = ""
		}
		e.context = defaultContext
		return nil
	}
	m, err := e.cfg.context(e.context)
	if err != nil {
		if aboutContexts {
			return nil
		}
		return err
	}
	ep := m.Endpoints["docker"]
	e.host = ep.Host
	dir := filepath.Join(e.cfg.contextDir("tls", e.context), "docker")
	if _, err := os.Stat(dir); err == nil {
		*t = tlsFiles{on: true, verify: !ep.SkipTLSVerify, ca: filepath.Join(dir, "ca.pem"), cert: filepath.Join(dir, "cert.pem"), key: filepath.Join(dir, "key.pem")}
	}
	return nil
}

// connectWith makes the client; it connects when it is first used.
func (e *env) connectWith(t *tlsFiles) error {
	o := api.Options{Host: e.host, UserAgent: "onggi/" + Version, Dial: dialOf(e.host)}
	if t.on && o.Dial == nil {
		addr := strings.TrimPrefix(e.host, "tcp://")
		o.Dial = func(ctx context.Context) (net.Conn, error) { return e.dialTLS(ctx, addr, t) }
	}
	var err error
	e.client, err = api.New(o)
	return err
}

// dialTLS connects to an engine, and has a program speak TLS on the connection.
func (e *env) dialTLS(ctx context.Context, addr string, t *tlsFiles) (net.Conn, error) {
	raw, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	defer raw.Close()
	far, err := raw.(*net.TCPConn).File()
	if err != nil {
		return nil, err
	}
	defer far.Close()
	name, _, _ := net.SplitHostPort(addr)
	cmd := exec.Command(e.sibling("onggi-tls"), fmt.Sprintf("--verify=%t", t.verify), "--name", name, "--ca", t.ca, "--cert", t.cert, "--key", t.key)
	cmd.ExtraFiles = []*os.File{far}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the terminal's interrupts are ours to answer
	conn, err := through(cmd)
	if err != nil {
		return nil, &hinted{fmt.Errorf("connect to %s: %w", e.host, err), "install onggi-tls beside onggi"}
	}
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	said := []byte{1}
	if _, err := io.ReadFull(conn, said); err == nil && said[0] == 0 {
		return conn, nil
	}
	why, _ := io.ReadAll(conn)
	conn.Close()
	return nil, &hinted{fmt.Errorf("connect to %s: %s", e.host, why), "look at --tlscacert, --tlscert and --tlskey (DOCKER_CERT_PATH)"}
}

// through starts a program and returns its stdin and stdout as a connection.
func through(cmd *exec.Cmd) (net.Conn, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), cmd.Path), os.NewFile(uintptr(pair[1]), cmd.Path)
	defer ours.Close()
	defer theirs.Close()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go cmd.Wait()
	return net.FileConn(ours)
}

// dialOf returns the way to an ssh:// address, nil for others: the other end
// runs `onggi system dial-stdio`.
func dialOf(host string) func(context.Context) (net.Conn, error) {
	u, err := url.Parse(host)
	if err != nil || u.Scheme != "ssh" || u.Hostname() == "" {
		return nil
	}
	args := []string{"-o", "ConnectTimeout=30", "-T"}
	if u.User != nil {
		args = append(args, "-l", u.User.Username())
	}
	if p := u.Port(); p != "" {
		args = append(args, "-p", p)
	}
	args = append(args, "--", u.Hostname(), "onggi")
	if u.Path != "" {
		args = append(args, "--host", "unix://"+u.Path)
	}
	args = append(args, "system", "dial-stdio")
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := through(exec.Command("ssh", args...))
		if err != nil {
			return nil, &hinted{fmt.Errorf("connect to %s: %w", host, err), "install an ssh client"}
		}
		return conn, nil
	}
}

func setupDialStdio(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		if err := e.call(ctx, "GET", "/_ping", nil, nil, nil); err != nil {
			return err
		}
		conn, err := e.client.Dial(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		go pour(conn, e.in)
		_, err = io.Copy(e.out, conn)
		return err
	}
}

// pour copies to its end, and tells the other side that it is one.
func pour(to io.Writer, from io.Reader) {
	io.Copy(to, from)
	if c, ok := to.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}

// relay gives a program that we start a socket of its own that leads to the
// engine, for it to need neither certificates nor ssh.
func (e *env) relay(ctx context.Context) (host string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "onggi-")
	if err != nil {
		return "", nil, err
	}
	socket := filepath.Join(dir, "engine.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		os.RemoveAll(dir)
		return "", nil, err
	}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer near.Close()
				far, err := e.client.Dial(ctx)
				if err != nil {
					return
				}
				defer far.Close()
				go pour(far, near)
				pour(near, far)
			}()
		}
	}()
	return "unix://" + socket, func() {
		l.Close()
		os.RemoveAll(dir)
	}, nil
}

// retry does f again, once, after starting the engine where none ran. Only the
// default address is ours to serve.
func (e *env) retry(ctx context.Context, f func() error) error {
	err := f()
	if _, broken := errors.AsType[*net.OpError](err); broken && strings.HasPrefix(e.host, "ssh://") {
		return &hinted{fmt.Errorf("no engine answers at %s: %w", e.host, cause(err)), "ssh " + strings.TrimPrefix(e.host, "ssh://") + " onggi version"}
	}
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
	ended, err := e.startEngine(ctx)
	if err != nil {
		return err
	}
	err = f()
	if _, broken := errors.AsType[*net.OpError](err); !broken {
		return err
	}
	// It listens early, and may have ended since.
	select {
	case why := <-ended:
		return why
	case <-time.After(time.Second):
		return err
	}
}

func cause(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// startEngine starts onggid in a session of its own and waits for its socket.
// What it returns tells why the engine ended, should it do that.
func (e *env) startEngine(ctx context.Context) (<-chan error, error) {
	path := e.sibling("onggid")
	if err := os.MkdirAll(filepath.Dir(api.DefaultSocket), 0o711); err != nil {
		return nil, fmt.Errorf("start the engine: %w", err)
	}
	logPath := "/var/log/onggid.log"
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start the engine: %w", err)
	}
	defer log.Close()
	begin, _ := log.Seek(0, io.SeekEnd)
	cmd := exec.Command(path)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, &hinted{fmt.Errorf("start the engine: %w", err), "install onggid beside onggi"}
	}
	ended := make(chan error, 1)
	go func() {
		cmd.Wait()
		ended <- lastWords(logPath, begin)
	}()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		select {
		case why := <-ended:
			return nil, why
		case <-deadline:
			return nil, &hinted{errors.New("the engine did not come up within 20 seconds"), "tail " + logPath}
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-tick.C:
			if conn, err := net.Dial("unix", api.DefaultSocket); err == nil {
				conn.Close()
				return ended, nil
			}
		}
	}
}

// lastWords is what an engine that ended said in the end.
func lastWords(logPath string, begin int64) error {
	err := &hinted{errors.New("the engine stopped while starting"), "tail " + logPath}
	f, ferr := os.Open(logPath)
	if ferr != nil {
		return err
	}
	defer f.Close()
	text, _ := io.ReadAll(io.NewSectionReader(f, begin, 1<<20))
	_, said, found := strings.Cut("\n"+string(text), "\nonggid: ")
	if !found {
		return err
	}
	said, hint, _ := strings.Cut(strings.TrimSpace(said), "\ntry: ")
	err.error = fmt.Errorf("the engine stopped while starting: %s", said)
	if hint != "" {
		err.hint = hint
	}
	return err
}

// call is Client.Call with an engine started where needed.
func (e *env) call(ctx context.Context, method, path string, query url.Values, in, out any) error {
	return e.retry(ctx, func() error { return e.client.Call(ctx, method, path, query, in, out) })
}

// containers is Client.Containers with an engine started where needed.
func (e *env) containers(ctx context.Context, query url.Values) (list []api.ContainerSummary, err error) {
	err = e.retry(ctx, func() error { list, err = e.client.Containers(ctx, query); return err })
	return list, err
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
