package registry

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
)

const canary = "ONGGI-CANARY-password"

// world is an internet of its own: names, addresses, servers that record what
// they are told.
type world struct {
	t     *testing.T
	ca    *x509.Certificate
	caKey *ecdsa.PrivateKey
	certs string

	mu    sync.Mutex
	addrs map[string]string // name → address; guarded by mu
	ports map[string]string // address:port → listener; guarded by mu
	seen  []seen            // guarded by mu
}

// seen is a request.
type seen struct {
	host, path string
	secret     bool // something of the account came along
	bearer     string
	query      string
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, certs: t.TempDir(), addrs: map[string]string{}, ports: map[string]string{}}
	w.caKey, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &w.caKey.PublicKey, w.caKey)
	if err != nil {
		t.Fatal(err)
	}
	w.ca, _ = x509.ParseCertificate(der)
	return w
}

func (w *world) cert(name string, notAfter time.Time) tls.Certificate {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: notAfter, DNSNames: []string{name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	if ip := net.ParseIP(name); ip != nil {
		tmpl.DNSNames, tmpl.IPAddresses = nil, []net.IP{ip}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, w.ca, &key.PublicKey, w.caKey)
	if err != nil {
		w.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// host starts a server that the world reaches by name and address. Names have
// the ports 443 and 80 where they say none.
func (w *world) host(name, addr string, secure bool, h http.HandlerFunc) {
	host, port, err := net.SplitHostPort(name)
	if err != nil {
		host, port = name, "443"
		if !secure {
			port = "80"
		}
	}
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		r.Body = io.NopCloser(bytes.NewReader(body))
		auth := r.Header.Get("Authorization")
		plain, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(auth, "Basic "))
		s := seen{host: name, path: r.URL.Path, query: r.URL.RawQuery, secret: bytes.Contains(plain, []byte(canary)) || bytes.Contains(body, []byte(canary)) || strings.Contains(r.URL.RawQuery, canary)}
		if b, ok := strings.CutPrefix(auth, "Bearer "); ok {
			s.bearer = b
		}
		w.mu.Lock()
		w.seen = append(w.seen, s)
		w.mu.Unlock()
		h(rw, r)
	}))
	srv.Config.ErrorLog = nil
	if secure {
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{w.cert(host, time.Now().Add(time.Hour))}}
		srv.StartTLS()
	} else {
		srv.Start()
	}
	w.t.Cleanup(srv.Close)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.addrs[host] = addr
	w.ports[net.JoinHostPort(addr, port)] = srv.Listener.Addr().String()
}

// at is a connection that says it leads elsewhere.
type at struct {
	net.Conn
	addr net.Addr
}

func (a at) RemoteAddr() net.Addr { return a.addr }

func (w *world) client(o Options) *Client {
	pemCA := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: w.ca.Raw})
	w.mu.Lock()
	for name := range w.addrs {
		for _, h := range []string{name, name + ":443", name + ":8443"} {
			os.MkdirAll(filepath.Join(w.certs, h), 0o755)
			os.WriteFile(filepath.Join(w.certs, h, "ca.crt"), pemCA, 0o644)
		}
	}
	w.mu.Unlock()
	o.CertDirs = []string{w.certs}
	if o.Stall == 0 {
		o.Stall = 300 * time.Millisecond
	}
	c := testClient(o)
	c.o.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	c.lookup = func(_ context.Context, host string) ([]netip.Addr, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if a, err := netip.ParseAddr(host); err == nil {
			return []netip.Addr{a}, nil
		}
		if a, ok := w.addrs[host]; ok {
			return []netip.Addr{netip.MustParseAddr(a)}, nil
		}
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	c.dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		host, port, _ := net.SplitHostPort(addr)
		list, err := c.lookup(ctx, host)
		if err != nil {
			return nil, err
		}
		ap := net.JoinHostPort(list[0].String(), port)
		w.mu.Lock()
		to, ok := w.ports[ap]
		w.mu.Unlock()
		if !ok {
			return nil, errors.New("connection refused")
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
		if err != nil {
			return nil, err
		}
		return at{conn, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(ap))}, nil
	}
	w.t.Cleanup(c.CloseIdle)
	return c
}

// secrets lists the hosts that got something of the account, or a token.
func (w *world) secrets() map[string]bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := map[string]bool{}
	for _, s := range w.seen {
		if s.secret {
			out["account to "+s.host] = true
		}
		if s.bearer != "" {
			out["token to "+s.host] = true
		}
	}
	return out
}

const manifestDoc = `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[]}`

var blobText = bytes.Repeat([]byte("blob"), 1000)

// wants answers 401 with a challenge until a token comes.
func wants(challenge string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a := r.Header.Get("Authorization")
		if a == "" || strings.HasPrefix(challenge, "Bearer") != strings.HasPrefix(a, "Bearer") {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", ocispec.TypeManifest)
		io.WriteString(w, manifestDoc)
	}
}

func tokens(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"token":"T"}`) }

const reg = "registry.good.example"

// S39: what a registry may say about where tokens come from.
func TestRealms(t *testing.T) {
	for name, tt := range map[string]struct {
		realm   string
		hosts   func(w *world)
		secrets string // to whom, but the registry
		ok      bool
		want    string // in the error
	}{
		"same host":           {realm: "https://" + reg + "/token", secrets: "[account to registry.good.example]", ok: true},
		"same domain":         {realm: "https://auth.good.example/token", hosts: func(w *world) { w.host("auth.good.example", "8.8.8.8", true, tokens) }, secrets: "[account to auth.good.example]", ok: true},
		"same host, port":     {realm: "https://" + reg + ":8443/token", hosts: func(w *world) { w.host(reg+":8443", "9.9.9.9", true, tokens) }, secrets: "[account to registry.good.example:8443]", ok: true},
		"foreign":             {realm: "https://evil.example/token", hosts: func(w *world) { w.host("evil.example", "6.6.6.6", true, tokens) }, ok: true},
		"look-alike":          {realm: "https://registry.good.example.evil.example/", hosts: func(w *world) { w.host("registry.good.example.evil.example", "6.6.6.6", true, tokens) }, ok: true},
		"suffix":              {realm: "https://evilgood.example/", hosts: func(w *world) { w.host("evilgood.example", "6.6.6.6", true, tokens) }, ok: true},
		"plain":               {realm: "http://" + reg + "/token", hosts: func(w *world) { w.host(reg+":80", "9.9.9.9", false, tokens) }, want: "HTTPS"},
		"plain elsewhere":     {realm: "http://evil.example/token", hosts: func(w *world) { w.host("evil.example", "6.6.6.6", false, tokens) }, want: "HTTPS"},
		"loopback":            {realm: "https://127.0.0.1/token", hosts: func(w *world) { w.host("127.0.0.1", "127.0.0.1", true, tokens) }, want: "closer"},
		"loopback, plain":     {realm: "http://127.0.0.1/token", hosts: func(w *world) { w.host("127.0.0.1", "127.0.0.1", false, tokens) }, want: "HTTPS"},
		"link-local":          {realm: "https://169.254.169.254/latest", hosts: func(w *world) { w.host("169.254.169.254", "169.254.169.254", true, tokens) }, want: "closer"},
		"private":             {realm: "https://10.0.0.1/token", hosts: func(w *world) { w.host("10.0.0.1", "10.0.0.1", true, tokens) }, want: "closer"},
		"private by name":     {realm: "https://auth.good.example/token", hosts: func(w *world) { w.host("auth.good.example", "192.168.1.1", true, tokens) }, want: "closer"},
		"loopback by name":    {realm: "https://auth.good.example/token", hosts: func(w *world) { w.host("auth.good.example", "127.0.0.53", true, tokens) }, want: "closer"},
		"unique local":        {realm: "https://[fd00::1]/token", hosts: func(w *world) { w.host("fd00::1", "fd00::1", true, tokens) }, want: "closer"},
		"mapped":              {realm: "https://[::ffff:127.0.0.1]/token", want: "closer"},
		"with account":        {realm: "https://user:pw@" + reg + "/token", want: "not a URL"},
		"no URL":              {realm: "token", want: "not a URL"},
		"file":                {realm: "file:///etc/passwd", want: "not a URL"},
		"other scheme":        {realm: "gopher://" + reg + "/", want: "HTTPS"},
		"token redirect":      {realm: "https://" + reg + "/away", secrets: "[account to registry.good.example]", want: ""},
		"two challenges":      {realm: `https://evil.example/token",service="x",realm="https://` + reg + `/token`, hosts: func(w *world) { w.host("evil.example", "6.6.6.6", true, tokens) }, ok: true},
		"wide scope":          {realm: `https://` + reg + `/token",scope="registry:catalog:* repository:other:pull,push`, secrets: "[account to registry.good.example]", ok: true},
		"control characters":  {realm: "https://" + reg + "/to\tken\x01", want: ""},
		"endless token":       {realm: "https://" + reg + "/endless", secrets: "[account to registry.good.example]", want: "more than"},
		"token with newlines": {realm: "https://" + reg + "/newline", secrets: "[account to registry.good.example]", want: "no token"},
		"never satisfied":     {realm: "https://" + reg + "/token?never", secrets: "[account to registry.good.example]", want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			h := wants(`Bearer realm="` + tt.realm + `",service="s"`)
			w.host("evil2.example", "6.6.6.7", true, tokens)
			w.host(reg, "9.9.9.9", true, func(rw http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/token":
					tokens(rw, r)
				case r.URL.Path == "/away":
					http.Redirect(rw, r, "https://evil2.example/token", http.StatusTemporaryRedirect)
				case r.URL.Path == "/endless":
					for r.Context().Err() == nil {
						if _, err := rw.Write(bytes.Repeat([]byte(" "), 1<<16)); err != nil {
							return
						}
					}
				case r.URL.Path == "/newline":
					io.WriteString(rw, `{"token":"a\r\nX-Evil: 1"}`)
				case name == "never satisfied":
					rw.Header().Set("WWW-Authenticate", `Bearer realm="`+tt.realm+`"`)
					rw.WriteHeader(http.StatusUnauthorized)
				default:
					h(rw, r)
				}
			})
			if tt.hosts != nil {
				tt.hosts(w)
			}
			c := w.client(Options{})
			_, _, err := c.Repository(ref(t, reg+"/a/b"), Auth{Username: "me", Password: canary}).Manifest(t.Context(), "v1")
			if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
			if err != nil && strings.Contains(err.Error(), canary) {
				t.Errorf("the error tells the password: %v", err)
			}
			want := map[string]bool{}
			if tt.ok || name == "never satisfied" {
				want["token to "+reg] = true
			}
			if tt.secrets != "" {
				want[strings.Trim(tt.secrets, "[]")] = true
			}
			if got := w.secrets(); fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("secrets went %v, want %v", got, want)
			}
			for _, s := range w.seen {
				if s.path == "/token" && strings.Contains(s.query, "catalog") {
					t.Errorf("asked for %s", s.query)
				}
			}
		})
	}
}

// A foreign token server gets the account once somebody has logged in by it.
func TestForeignRealmAfterLogin(t *testing.T) {
	w := newWorld(t)
	w.host("auth.other.example", "8.8.4.4", true, tokens)
	w.host(reg, "9.9.9.9", true, wants(`Bearer realm="https://auth.other.example/token",service="s"`))
	file := filepath.Join(t.TempDir(), "realms")
	a := Auth{Username: "me", Password: canary, ServerAddress: reg}
	if _, err := w.client(Options{RealmsFile: file}).Login(t.Context(), a); err != nil {
		t.Fatal(err)
	}
	w.seen = nil
	if _, _, err := w.client(Options{RealmsFile: file}).Repository(ref(t, reg+"/a/b"), a).Manifest(t.Context(), "v1"); err != nil {
		t.Fatal(err)
	}
	if !w.secrets()["account to auth.other.example"] {
		t.Error("the account was not sent")
	}
}

// S40, S41: where a registry may send a client, and what goes along.
func TestRedirects(t *testing.T) {
	d := ocispec.DescriptorOf(ocispec.TypeLayer, blobText)
	for name, tt := range map[string]struct {
		to      string
		secrets string
		ok      bool
		want    string
	}{
		"same origin":   {to: "/data", secrets: "map[account to registry.good.example:true]", ok: true},
		"other host":    {to: "https://cdn.example/data", ok: true},
		"other port":    {to: "https://" + reg + ":8443/data", ok: true},
		"subdomain":     {to: "https://cdn." + reg + "/data", ok: true},
		"and back":      {to: "https://cdn.example/back", ok: true},
		"plain":         {to: "http://cdn.example/data", want: "plain HTTP"},
		"loop":          {to: "/v2/a/b/blobs/" + d.Digest.String(), want: "redirects"},
		"loopback":      {to: "https://127.0.0.1/data", want: "closer"},
		"by name":       {to: "https://inside.example/data", want: "closer"},
		"link-local":    {to: "https://169.254.169.254/", want: "closer"},
		"with account":  {to: "https://a:b@cdn.example/data", want: "not a URL"},
		"no scheme":     {to: "ftp://cdn.example/", want: "not a URL"},
		"unknown host":  {to: "https://nowhere.example/", want: "no such host"},
		"no location":   {to: "", want: "no Location"},
		"wrong content": {to: "https://cdn.example/short", want: "bytes of it"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			data := func(rw http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/back":
					rw.Header().Set("Location", "https://"+reg+"/data")
					rw.WriteHeader(http.StatusFound)
				case "/short":
					rw.Write(blobText[:10])
				default:
					rw.Write(blobText)
				}
			}
			for _, h := range []string{"cdn.example", "cdn." + reg} {
				w.host(h, "7.7.7."+fmt.Sprint(len(h)), true, data)
			}
			w.host("cdn.example:80", "7.7.7.11", false, data)
			w.host(reg+":8443", "9.9.9.9", true, data)
			w.host("inside.example", "127.0.0.1", true, data)
			w.host("127.0.0.1", "127.0.0.1", true, data)
			w.host(reg, "9.9.9.9", true, func(rw http.ResponseWriter, r *http.Request) {
				switch {
				case r.URL.Path == "/data":
					data(rw, r)
				case r.Header.Get("Authorization") == "":
					rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					rw.WriteHeader(http.StatusUnauthorized)
				default:
					if tt.to != "" {
						rw.Header().Set("Location", tt.to)
					}
					rw.WriteHeader(http.StatusTemporaryRedirect)
				}
			})
			w.addrs["cdn.example"] = "7.7.7.11"
			c := w.client(Options{})
			b, err := readBlob(t.Context(), c.Repository(ref(t, reg+"/a/b"), Auth{Username: "me", Password: canary}), d, 0)
			if (err == nil) != tt.ok || err == nil && !bytes.Equal(b, blobText) || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			for got := range w.secrets() {
				if got != "account to "+reg {
					t.Errorf("%s", got)
				}
			}
			if name == "and back" {
				for _, s := range w.seen {
					if s.path == "/data" && s.secret {
						t.Error("the secret came back")
					}
				}
			}
		})
	}
}

// An upload's address is the registry's to choose; the secret stays home.
func TestUploadLocations(t *testing.T) {
	for name, tt := range map[string]struct {
		to   string
		ok   bool
		want string
	}{
		"relative": {to: "/up", ok: true}, "elsewhere": {to: "https://cdn.example/up?state=1", ok: true}, "plain": {to: "http://cdn.example/up", want: "plain HTTP"},
		"loopback": {to: "https://127.0.0.1/up", want: "closer"}, "none": {to: "", want: "no Location"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			up := func(rw http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodPatch {
					rw.Header().Set("Location", r.URL.String())
					rw.WriteHeader(http.StatusAccepted)
					return
				}
				rw.WriteHeader(http.StatusCreated)
			}
			w.host("cdn.example", "7.7.7.7", true, up)
			w.host("127.0.0.1", "127.0.0.1", true, up)
			w.host(reg, "9.9.9.9", true, func(rw http.ResponseWriter, r *http.Request) {
				switch {
				case r.Header.Get("Authorization") == "":
					rw.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					rw.WriteHeader(http.StatusUnauthorized)
				case r.Method == http.MethodHead:
					rw.WriteHeader(http.StatusNotFound)
				case r.Method == http.MethodPost:
					if tt.to != "" {
						rw.Header().Set("Location", tt.to)
					}
					rw.WriteHeader(http.StatusAccepted)
				default:
					up(rw, r)
				}
			})
			r := w.client(Options{}).Repository(ref(t, reg+"/a/b"), Auth{Username: "me", Password: canary})
			open := func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(blobText)), nil }
			for _, u := range []Upload{{Desc: ocispec.DescriptorOf(ocispec.TypeLayer, blobText), Open: open}, {Open: open}} {
				_, err := r.PutBlob(t.Context(), u)
				if (err == nil) != tt.ok || err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v", err)
				}
			}
			for got := range w.secrets() {
				if got != "account to "+reg {
					t.Errorf("%s", got)
				}
			}
		})
	}
}

// S41: TLS is not up for negotiation.
func TestBadCertificates(t *testing.T) {
	w := newWorld(t)
	ok := func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", ocispec.TypeManifest)
		io.WriteString(rw, manifestDoc)
	}
	w.host("wrong.example", "9.9.9.1", true, ok)
	w.addrs["named.example"] = "9.9.9.1" // the certificate is for wrong.example
	w.host("plain.example:443", "9.9.9.2", false, ok)
	w.host("plain.example:80", "9.9.9.2", false, ok)
	expired := httptest.NewUnstartedServer(http.HandlerFunc(ok))
	expired.TLS = &tls.Config{Certificates: []tls.Certificate{w.cert("old.example", time.Now().Add(-time.Hour))}}
	expired.StartTLS()
	defer expired.Close()
	w.addrs["old.example"], w.ports["9.9.9.3:443"] = "9.9.9.3", expired.Listener.Addr().String()
	c := w.client(Options{})
	for _, h := range []string{"named.example", "plain.example", "old.example"} {
		_, _, err := c.Repository(ref(t, h+"/a"), Auth{Username: "me", Password: canary}).Manifest(t.Context(), "v1")
		if err == nil || errdefs.HintOf(err) == "" {
			t.Errorf("%s: %v (hint %q)", h, err, errdefs.HintOf(err))
		}
	}
	if len(w.seen) > 0 {
		t.Errorf("a request was made: %v", w.seen)
	}
	// What is configured is allowed.
	c = w.client(Options{Insecure: []string{"plain.example", "9.9.9.3/32"}})
	for _, h := range []string{"plain.example", "old.example"} {
		if _, _, err := c.Repository(ref(t, h+"/a"), Auth{}).Manifest(t.Context(), "v1"); err != nil {
			t.Errorf("%s: %v", h, err)
		}
	}
}

// S44: a mirror of a name gets no account of it; it is asked first, and the
// registry where it cannot serve.
func TestMirrors(t *testing.T) {
	for _, broken := range []bool{false, true} {
		w := newWorld(t)
		w.host("mirror.example", "5.5.5.5", true, func(rw http.ResponseWriter, r *http.Request) {
			if broken {
				rw.WriteHeader(http.StatusNotFound)
				return
			}
			wants(`Bearer realm="https://mirror.example/token"`)(rw, r)
		})
		w.host(reg, "9.9.9.9", true, func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Content-Type", ocispec.TypeManifest)
			io.WriteString(rw, manifestDoc)
		})
		c := w.client(Options{Mirrors: map[string][]string{reg: {"https://mirror.example/prefix"}}})
		_, _, err := c.Repository(ref(t, reg+"/a/b"), Auth{Username: "me", Password: canary}).Manifest(t.Context(), "v1")
		if err != nil {
			t.Error(err)
		}
		if s := w.secrets(); len(s) > 0 && !s["account to "+reg] {
			t.Errorf("%v", s)
		}
		if w.seen[0].host != "mirror.example" || !strings.HasPrefix(w.seen[0].path, "/prefix/v2/a/b/manifests/") {
			t.Errorf("%+v", w.seen)
		}
	}
}

// An account for one registry is not used with another.
func TestAccountOfAnotherRegistry(t *testing.T) {
	w := newWorld(t)
	w.host(reg, "9.9.9.9", true, wants(`Basic realm="x"`))
	_, _, err := w.client(Options{}).Repository(ref(t, reg+"/a"), Auth{Username: "me", Password: canary, ServerAddress: "https://index.docker.io/v1/"}).Manifest(t.Context(), "v1")
	if !errdefs.Is(err, errdefs.Unauthorized) || len(w.secrets()) > 0 {
		t.Errorf("%v, %v", err, w.secrets())
	}
}

// S43: endless, slow and looping answers end.
func TestAnswersThatDoNotEnd(t *testing.T) {
	d := ocispec.Descriptor{MediaType: ocispec.TypeLayer, Digest: ocispec.DescriptorOf("", blobText).Digest, Size: 1 << 40}
	drip := func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", ocispec.TypeManifest)
		for r.Context().Err() == nil {
			rw.Write([]byte(" "))
			http.NewResponseController(rw).Flush()
			select {
			case <-r.Context().Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}
	endless := func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Content-Type", ocispec.TypeManifest)
		for {
			if _, err := rw.Write(bytes.Repeat([]byte(" "), 1<<16)); err != nil {
				return
			}
		}
	}
	get := func(r *Repository) error { _, _, err := r.Manifest(t.Context(), "v1"); return err }
	for name, tt := range map[string]struct {
		h    http.HandlerFunc
		do   func(r *Repository) error
		want string
	}{
		"manifest drips":   {drip, get, "no progress"},
		"manifest endless": {endless, get, "more than"},
		"blob drips":       {drip, func(r *Repository) error { _, err := readBlob(t.Context(), r, d, 0); return err }, "no progress"},
		"no answer":        {func(rw http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, get, "timeout"},
		"retry after": {func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Retry-After", "1000000000")
			rw.WriteHeader(http.StatusTooManyRequests)
		}, get, "429"},
		"always busy": {func(rw http.ResponseWriter, r *http.Request) { rw.WriteHeader(http.StatusServiceUnavailable) }, get, "503"},
		"error endless": {func(rw http.ResponseWriter, r *http.Request) {
			rw.WriteHeader(http.StatusBadRequest)
			for {
				if _, err := rw.Write(bytes.Repeat([]byte("\x1b[31m"), 1<<14)); err != nil {
					return
				}
			}
		}, get, "400"},
		"pages": {func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Link", `</v2/a/tags/list?last=x>; rel="next"`)
			io.WriteString(rw, `{"tags":["x"]}`)
		}, func(r *Repository) error { _, err := r.Tags(t.Context()); return err }, "pages"},
		"page elsewhere": {func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("Link", `<https://evil.example/v2/a/tags/list>; rel="next"`)
			io.WriteString(rw, `{"tags":["x"]}`)
		}, func(r *Repository) error { _, err := r.Tags(t.Context()); return err }, "another server"},
		"headers": {func(rw http.ResponseWriter, r *http.Request) {
			rw.Header().Set("X", strings.Repeat("x", 1<<20))
		}, get, "headers"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := httptest.NewServer(tt.h)
			defer srv.Close()
			defer srv.CloseClientConnections()
			c := testClient(Options{Stall: 50 * time.Millisecond})
			defer c.CloseIdle()
			err := tt.do(c.Repository(ref(t, hostOfServer(srv)+"/a"), Auth{}))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
			if err != nil && (strings.ContainsAny(err.Error(), "\x1b\r\n") || len(err.Error()) > 2000) {
				t.Errorf("not for a terminal: %q", err)
			}
		})
	}
}

func TestCancelEndsAtOnce(t *testing.T) {
	arrived := make(chan struct{}, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		rw.Write([]byte("x"))
		http.NewResponseController(rw).Flush()
		arrived <- struct{}{}
		<-r.Context().Done()
	}))
	defer srv.Close()
	c := testClient(Options{})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, _, err := c.Repository(ref(t, hostOfServer(srv)+"/a"), Auth{}).Manifest(ctx, "v1")
		done <- err
	}()
	<-arrived
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	c.CloseIdle()
}

func TestChallenges(t *testing.T) {
	for in, want := range map[string]string{
		`Bearer realm="https://a/b",service="c d",scope="e"`: "[{bearer map[realm:https://a/b scope:e service:c d]}]",
		`Basic realm="x", Bearer realm=https://y`:            "[{bearer map[realm:https://y]} {basic map[realm:x]}]",
		`bearer REALM="a\"b"`:                                `[{bearer map[realm:a"b]}]`,
		`Basic`:                                              "[{basic map[]}]",
		`Bearer realm="unclosed`:                             "[{bearer map[realm:unclosed]}]",
		``:                                                   "[]",
		`,,,`:                                                "[]",
		`=x`:                                                 "[{x map[]}]",
		`Negotiate, Basic realm="x"`:                         "[{negotiate map[]} {basic map[realm:x]}]",
		`Bearer realm="a",realm="b"`:                         "[{bearer map[realm:a]}]",
	} {
		if got := fmt.Sprint(parseChallenges([]string{in})); got != want {
			t.Errorf("%s: got %s, want %s", in, got, want)
		}
	}
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/b",service="c d"`)
	f.Add(`Basic realm="x", Bearer realm=https://y`)
	f.Fuzz(func(t *testing.T, s string) { parseChallenges([]string{s}) })
}

func TestHosts(t *testing.T) {
	c := New(Options{Insecure: []string{"plain.example", "10.0.0.0/8", "other.example:5000"}})
	for host, want := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.1.2.3": true, "[::1]:5000": true, "plain.example": true, "plain.example:80": true,
		"10.1.2.3:5000": true, "11.0.0.1": false, "other.example:5000": true, "other.example": false, "docker.io": false, "localhost.evil.example": false, "notlocalhost": false,
	} {
		if got := c.IsInsecure(host); got != want {
			t.Errorf("%s: %v", host, got)
		}
	}
	for in, want := range map[string]string{"https://index.docker.io/v1/": "docker.io", "docker.io": "docker.io", "https://a.example:5000/v2/": "a.example:5000", "a.example": "a.example", "": "", "registry-1.docker.io": "docker.io"} {
		if got := hostOf(in); got != want {
			t.Errorf("%s: %q", in, got)
		}
	}

}
