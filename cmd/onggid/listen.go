package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
)

// listen opens all sockets, so that clients can connect while the engine is
// still starting.
func listen(c *config) (ls []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range ls {
				l.Close()
			}
		}
	}()
	for _, h := range c.hosts {
		scheme, addr, _ := strings.Cut(h, "://")
		var l net.Listener
		switch scheme {
		case "unix":
			l, err = listenUnix(addr, c.group)
		case "tcp":
			l, err = listenTCP(addr, c)
		case "fd":
			var more []net.Listener
			if more, err = activated(addr); err == nil {
				ls = append(ls, more...)
				continue
			}
		}
		if err != nil {
			return ls, err
		}
		ls = append(ls, l)
	}
	return ls, nil
}

// listenUnix replaces a socket that nobody serves. The directory keeps others
// out until the socket has its mode.
func listenUnix(path, group string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, errdefs.New(errdefs.Internal, "listen", path, err)
	}
	if cn, err := net.Dial("unix", path); err == nil {
		cn.Close()
		return nil, errdefs.Newf(errdefs.Conflict, "listen", path, "somebody else is serving this socket")
	}
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket == 0 {
		return nil, errdefs.Newf(errdefs.Conflict, "listen", path, "there is a file which is not a socket")
	}
	// Bound under another name and moved when its mode is right: nobody can
	// connect in between.
	tmp := path + ".new"
	os.Remove(tmp)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "listen", path, err)
	}
	l.SetUnlinkOnClose(false)
	gid := socketGroup(group)
	if err := errors.Join(os.Chown(tmp, 0, gid), os.Chmod(tmp, 0o660), os.Rename(tmp, path)); err != nil {
		l.Close()
		os.Remove(tmp)
		return nil, errdefs.New(errdefs.Internal, "listen", path, err)
	}
	return l, nil
}

// socketGroup is the group asked for, or onggi's, or docker's, or root's.
func socketGroup(name string) int {
	names := []string{name}
	if name == "" {
		names = []string{"onggi", "docker"}
	}
	for _, n := range names {
		if gid, err := strconv.Atoi(n); err == nil {
			return gid
		}
		if g, err := user.LookupGroup(n); err == nil {
			if gid, err := strconv.Atoi(g.Gid); err == nil {
				return gid
			}
		}
	}
	return 0
}

func listenTCP(addr string, c *config) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "listen", "tcp://"+addr, err)
	}
	if !c.tls && !c.tlsVerify {
		return l, nil
	}
	cert, err := tls.LoadX509KeyPair(c.tlsCert, c.tlsKey)
	if err != nil {
		l.Close()
		return nil, errdefs.New(errdefs.Invalid, "read", "certificate", err)
	}
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	if c.tlsVerify {
		pem, err := os.ReadFile(c.tlsCA)
		pool := x509.NewCertPool()
		if err == nil && !pool.AppendCertsFromPEM(pem) {
			err = errors.New("holds no certificate")
		}
		if err != nil {
			l.Close()
			return nil, errdefs.New(errdefs.Invalid, "read", c.tlsCA, err)
		}
		conf.ClientCAs, conf.ClientAuth = pool, tls.RequireAndVerifyClientCert
	}
	return tls.NewListener(l, conf), nil
}

// activated are the sockets that systemd opened for us: all of them for fd://,
// or one by number or name.
func activated(which string) ([]net.Listener, error) {
	pid, _ := strconv.Atoi(os.Getenv("LISTEN_PID"))
	n, _ := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	if pid != os.Getpid() || n <= 0 {
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "listen", "fd://"+which, "no sockets were handed over"), "start the engine by systemd's socket unit, or use -H unix:///run/onggi/onggi.sock")
	}
	var ls []net.Listener
	for i := range min(n, 64) {
		name := ""
		if i < len(names) {
			name = names[i]
		}
		if which != "" && which != "*" && which != strconv.Itoa(3+i) && which != name {
			continue
		}
		f := os.NewFile(uintptr(3+i), "activated")
		l, err := net.FileListener(f)
		f.Close()
		if err != nil {
			return ls, errdefs.New(errdefs.Invalid, "listen", "fd://"+which, err)
		}
		ls = append(ls, l)
	}
	if len(ls) == 0 {
		return nil, errdefs.Newf(errdefs.NotFound, "listen", "fd://"+which, "no such socket among the %d that were handed over", n)
	}
	return ls, nil
}

// notify tells systemd, if it started us.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if path[0] == '@' {
		path = "\x00" + path[1:]
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	c.Write([]byte(state))
}
