// Package registry speaks the OCI distribution protocol to registries.
//
// # Model
//
// A Client is shared by everything in an engine. Client.Repository gives a
// Repository: one name at one registry with one account, through which
// manifests and blobs are read and written. A name is served by endpoints: the
// mirrors configured for its domain, then the registry itself; writes go to
// the registry only.
//
// # Guarantees
//
//   - Plain HTTP and unverified certificates are used only with hosts that the
//     configuration calls insecure, and with loopback addresses. A secure
//     connection is never redirected to an insecure one.
//   - A secret goes only to the host it is for: never along a redirect or an
//     upload location at another origin, never to a mirror, and to a token
//     server elsewhere only as realm.go allows. Tokens are for one repository
//     and live in memory.
//   - Everything read has a bound in bytes and in time without progress.
//     Cancelling the context ends a call at once.
//   - Manifests are checked against their digest here. Blobs are not: who
//     reads a blob verifies it (see image).
//
// # Concurrency
//
// Client and Repository may be used by many goroutines. Client.mu is a leaf
// lock; no request is made under it.
//
// # Not here
//
// Where accounts are kept (cli), what images are made of (ocispec, image).
package registry

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/reference"
)

// Options of a Client. The zero value talks TLS to every host but loopback.
type Options struct {
	// Insecure lists host[:port] and address ranges (10.0.0.0/8) of registries
	// that may be spoken to without TLS or with a certificate nobody vouches for.
	Insecure []string
	// Mirrors maps a domain ("docker.io", "*" for any) to base URLs that are
	// asked before the registry itself.
	Mirrors map[string][]string
	// CertDirs have a directory for each host[:port] with *.crt (authorities)
	// and *.cert + *.key (client certificates).
	CertDirs []string
	// RealmsFile remembers which token servers people have logged in through.
	// Empty: only while the Client lives.
	RealmsFile string
	UserAgent  string
	Logger     *slog.Logger
	// Proxy is http.ProxyFromEnvironment where nil.
	Proxy func(*http.Request) (*url.URL, error)

	// Stall is how long a transfer may stay without progress (30 s).
	Stall time.Duration
	// MaxWait bounds what a registry may ask for with Retry-After (60 s).
	MaxWait time.Duration
	// Backoff is the first pause between attempts (250 ms); it doubles.
	Backoff time.Duration
}

// Auth is an account at a registry.
type Auth struct {
	Username      string
	Password      string
	IdentityToken string // an OAuth2 refresh token
	RegistryToken string // a bearer token to use as it is
	ServerAddress string // what the account is for; "" for whatever it is used with
}

// IsZero reports whether there is no account.
func (a Auth) IsZero() bool {
	return a.Username == "" && a.Password == "" && a.IdentityToken == "" && a.RegistryToken == ""
}

// Client talks to registries.
type Client struct {
	o        Options
	log      *slog.Logger
	insecure []netip.Prefix
	hosts    []string // insecure by name
	lookup   func(ctx context.Context, host string) ([]netip.Addr, error)
	dial     func(ctx context.Context, network, addr string) (net.Conn, error)

	mu         sync.Mutex
	transports map[string]*http.Transport // by host[:port]; guarded by mu
	tokens     map[tokenKey]token         // guarded by mu
	plain      map[string]bool            // insecure hosts that do not speak TLS; guarded by mu
	peers      map[string]netip.Addr      // host[:port] → address of the last connection; guarded by mu
	basic      map[string]bool            // hosts that ask for Basic; guarded by mu
	realms     map[string][]string        // registry host → token hosts logged in through; guarded by mu
}

// New makes a Client.
func New(o Options) *Client {
	if o.Proxy == nil {
		o.Proxy = http.ProxyFromEnvironment
	}
	if o.UserAgent == "" {
		o.UserAgent = "onggi"
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Stall == 0 {
		o.Stall = 30 * time.Second
	}
	if o.MaxWait == 0 {
		o.MaxWait = time.Minute
	}
	if o.Backoff == 0 {
		o.Backoff = 250 * time.Millisecond
	}
	c := &Client{
		o: o, log: o.Logger,
		transports: map[string]*http.Transport{}, tokens: map[tokenKey]token{}, plain: map[string]bool{},
		peers: map[string]netip.Addr{}, basic: map[string]bool{}, realms: loadRealms(o.RealmsFile),
	}
	c.lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
		return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	}
	c.dial = (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	for _, s := range o.Insecure {
		if p, err := netip.ParsePrefix(s); err == nil {
			c.insecure = append(c.insecure, p.Masked())
		} else {
			c.hosts = append(c.hosts, hostOf(s))
		}
	}
	return c
}

// CloseIdle closes connections that nothing uses.
func (c *Client) CloseIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}

// hostOf takes the host[:port] out of a server address as people and
// configuration files write it.
func hostOf(s string) string {
	if i := strings.Index(s, "://"); i >= 0 {
		s = s[i+3:]
	}
	s, _, _ = strings.Cut(s, "/")
	if i := strings.LastIndexByte(s, '@'); i >= 0 {
		s = s[i+1:]
	}
	s = strings.ToLower(s)
	switch s {
	case "index.docker.io", "registry-1.docker.io", "docker.io":
		return reference.DefaultDomain
	}
	return s
}

// IsInsecure reports whether the host may be spoken to without TLS.
func (c *Client) IsInsecure(host string) bool {
	if slices.Contains(c.hosts, host) {
		return true
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if slices.Contains(c.hosts, name) || name == "localhost" {
		return true
	}
	a, err := netip.ParseAddr(strings.Trim(name, "[]"))
	if err != nil {
		return false
	}
	a = a.Unmap()
	if a.IsLoopback() {
		return true
	}
	return slices.ContainsFunc(c.insecure, func(p netip.Prefix) bool { return p.Contains(a) })
}

// insecureByAddress looks a name up where address ranges are configured: every
// address of it must be in one of them.
func (c *Client) insecureByAddress(ctx context.Context, host string) bool {
	if len(c.insecure) == 0 {
		return false
	}
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	addrs, err := c.lookup(ctx, name)
	if err != nil || len(addrs) == 0 {
		return false
	}
	for _, a := range addrs {
		if !slices.ContainsFunc(c.insecure, func(p netip.Prefix) bool { return p.Contains(a.Unmap()) }) {
			return false
		}
	}
	return true
}

// endpoint is one server that has a repository.
type endpoint struct {
	base     url.URL // https://host[:port][/prefix], without "/v2"; immutable
	mirror   bool
	insecure bool
	plain    atomic.Bool // it does not speak TLS, and need not
}

func (e *endpoint) url(path string, query url.Values) *url.URL {
	u := e.base
	u.Path = strings.TrimSuffix(u.Path, "/") + "/v2/" + path
	u.RawQuery = query.Encode()
	u.User = nil
	if e.plain.Load() {
		u.Scheme = "http"
	}
	return &u
}

// is reports whether u is at the endpoint.
func (e *endpoint) is(u *url.URL) bool { return sameOrigin(u, e.url("", nil)) }

// endpoints lists the servers of a domain, in the order to ask them.
func (c *Client) endpoints(ctx context.Context, domain string, write bool) ([]*endpoint, error) {
	var out []*endpoint
	if !write {
		list := c.o.Mirrors[domain]
		if len(list) == 0 {
			list = c.o.Mirrors["*"]
		}
		for _, m := range list {
			u, err := url.Parse(m)
			if err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
				return nil, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "use", "registry mirror of "+domain, "not the URL of a mirror"), "https://host[:port]")
			}
			// A mirror written with http:// is configured to be plain.
			u.Path = strings.TrimSuffix(strings.TrimSuffix(u.Path, "/"), "/v2")
			out = append(out, &endpoint{base: *u, mirror: true, insecure: u.Scheme == "http" || c.IsInsecure(u.Host)})
		}
	}
	host := domain
	if domain == reference.DefaultDomain {
		host = hubHost
	}
	e := &endpoint{base: url.URL{Scheme: "https", Host: host}}
	if c.IsInsecure(host) || c.insecureByAddress(ctx, host) {
		e.insecure = true
		c.mu.Lock()
		e.plain.Store(c.plain[host])
		c.mu.Unlock()
	}
	return append(out, e), nil
}

// transport returns the connections to a host, made with its certificates.
func (c *Client) transport(host string, insecure bool) (*http.Transport, error) {
	key := host
	if insecure {
		key = "insecure " + host
	}
	c.mu.Lock()
	t := c.transports[key]
	c.mu.Unlock()
	if t != nil {
		return t, nil
	}
	conf, err := tlsConfig(c.o.CertDirs, host)
	if err != nil {
		return nil, err
	}
	conf.InsecureSkipVerify = insecure
	t = c.newTransport(conf)
	c.mu.Lock()
	defer c.mu.Unlock()
	if made := c.transports[key]; made != nil {
		return made, nil
	}
	c.transports[key] = t
	return t, nil
}

func (c *Client) newTransport(conf *tls.Config) *http.Transport {
	return &http.Transport{
		Proxy: c.o.Proxy, DialContext: c.dial, TLSClientConfig: conf, ForceAttemptHTTP2: true,
		TLSHandshakeTimeout: 15 * time.Second, ResponseHeaderTimeout: 2 * c.o.Stall, ExpectContinueTimeout: time.Second,
		MaxIdleConnsPerHost: 8, IdleConnTimeout: 90 * time.Second, MaxResponseHeaderBytes: 256 << 10,
		DisableCompression: true, // blobs are what their digest says, not what a header does
	}
}
