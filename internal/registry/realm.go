package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/net/publicsuffix"
)

// The rules for token servers ("realms"), which the registry names and which
// therefore may be anything:
//
//   - HTTPS, or plain HTTP where the registry and the realm are both insecure
//     by configuration;
//   - never closer to this machine than the registry itself: a registry on the
//     internet cannot name a private, link-local or loopback address;
//   - an account goes to the registry's own host or registrable domain, and
//     elsewhere only after somebody has logged in through that server.

// maxTransports is how many hosts' connections are kept.
const maxTransports = 256

// reach says how close to this machine an address is.
type reach int

const (
	reachPublic reach = iota
	reachPrivate
	reachLoopback
)

func reachOf(a netip.Addr) reach {
	a = a.Unmap()
	switch {
	case a.IsLoopback(), a.IsUnspecified(), a.IsLinkLocalUnicast(), a.IsMulticast():
		return reachLoopback
	case a.IsPrivate(), netip.MustParsePrefix("100.64.0.0/10").Contains(a):
		return reachPrivate
	}
	return reachPublic
}

// sawPeer remembers where a host's connection went. Behind a proxy that is the
// proxy, and says nothing about the host.
func (c *Client) sawPeer(host string, conn net.Conn) {
	if req, err := http.NewRequest(http.MethodGet, "https://"+host+"/", nil); err != nil {
		return
	} else if p, err := c.o.Proxy(req); err != nil || p != nil {
		return
	}
	if a, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		c.mu.Lock()
		c.peers[host] = a.Addr().Unmap()
		c.mu.Unlock()
	}
}

// reach is how close the registry at host is.
func (c *Client) reach(host string) reach {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a, ok := c.peers[host]; ok {
		return reachOf(a)
	}
	return reachPublic
}

// guarded is a transport to a host that a registry named. It connects only to
// addresses that are no closer than allowed.
func (c *Client) guarded(u *url.URL, allowed reach) (*http.Transport, error) {
	if a, err := netip.ParseAddr(u.Hostname()); err == nil && reachOf(a) > allowed {
		return nil, fmt.Errorf("sent on to %s, an address closer to this machine than the registry: %w", u.Host, errRefused)
	}
	insecure := c.IsInsecure(u.Host)
	key := fmt.Sprintf("guarded %d %s", allowed, u.Host)
	c.mu.Lock()
	t := c.transports[key]
	c.mu.Unlock()
	if t != nil {
		return t, nil
	}
	conf, err := tlsConfig(c.o.CertDirs, u.Host)
	if err != nil {
		return nil, err
	}
	conf.InsecureSkipVerify = insecure
	t = c.newTransport(conf)
	if p, err := c.o.Proxy(&http.Request{Method: http.MethodGet, URL: u}); err == nil && p == nil {
		t.DialContext = c.dialNoCloser(allowed)
		t.Proxy = nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Registries choose these names; they must not fill the memory.
	if len(c.transports) >= maxTransports {
		for k, old := range c.transports {
			if strings.HasPrefix(k, "guarded ") {
				old.CloseIdleConnections()
				delete(c.transports, k)
			}
		}
	}
	c.transports[key] = t
	return t, nil
}

func (c *Client) dialNoCloser(allowed reach) func(ctx context.Context, network, addr string) (net.Conn, error) {
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		addrs, err := c.lookup(ctx, host)
		if err != nil {
			return nil, err
		}
		last := fmt.Errorf("%s is at an address closer to this machine than the registry: %w", host, errRefused)
		for _, a := range addrs {
			if reachOf(a) > allowed {
				continue
			}
			conn, err := c.dial(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
			if err == nil {
				return conn, nil
			}
			last = err
		}
		return nil, last
	}
}

// checkRealm reads a challenge's realm and refuses what it must not be.
func (c *Client) checkRealm(e *endpoint, s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.User != nil || u.Fragment != "" || len(s) > 4096 {
		return nil, errors.New("the token server it names is not a URL")
	}
	switch {
	case u.Scheme == "https":
	case u.Scheme == "http" && e.insecure && c.IsInsecure(strings.ToLower(u.Host)):
	default:
		return nil, fmt.Errorf("the token server it names (%s) does not use HTTPS", u.Host)
	}
	return u, nil
}

// mayTell reports whether the account for a registry may go to a token server.
func (c *Client) mayTell(registry, realmHost string, a Auth) bool {
	name := registry
	if h, _, err := net.SplitHostPort(registry); err == nil {
		name = h
	}
	name, realmHost = strings.Trim(strings.ToLower(name), "[]"), strings.Trim(strings.ToLower(realmHost), "[]")
	if name == realmHost || sameDomain(name, realmHost) {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.realms[registry], realmHost)
}

// sameDomain reports whether two names belong to one registrable domain.
func sameDomain(a, b string) bool {
	if _, err := netip.ParseAddr(a); err == nil {
		return false
	}
	da, err := publicsuffix.EffectiveTLDPlusOne(a)
	if err != nil {
		return false
	}
	db, err := publicsuffix.EffectiveTLDPlusOne(b)
	return err == nil && da == db
}

// trustRealm remembers that somebody logged in to a registry through a token
// server.
func (c *Client) trustRealm(registry, realmHost string) {
	realmHost = strings.ToLower(realmHost)
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.realms[registry], realmHost) {
		return
	}
	c.realms[registry] = append(c.realms[registry], realmHost)
	if c.o.RealmsFile == "" {
		return
	}
	b, err := json.MarshalIndent(c.realms, "", "\t")
	if err == nil {
		tmp := c.o.RealmsFile + ".new"
		if err = os.WriteFile(tmp, b, 0o600); err == nil {
			err = os.Rename(tmp, c.o.RealmsFile)
		}
	}
	if err != nil {
		c.log.Warn("login's token server not remembered", "file", filepath.Base(c.o.RealmsFile), "error", err)
	}
}

func loadRealms(file string) map[string][]string {
	m := map[string][]string{}
	if file != "" {
		if b, err := os.ReadFile(file); err == nil {
			json.Unmarshal(b, &m) // a damaged file means logging in again
		}
	}
	if m == nil {
		m = map[string][]string{}
	}
	return m
}
