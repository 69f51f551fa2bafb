// Package registrytest starts real registries for tests: Debian's
// docker-registry, with TLS, basic or token authorisation.
//
// # Model
//
// Start makes certificates, accounts and storage in the test's directory, runs
// the program on a port of its own, and ends it with the test.
//
// # Guarantees
//
// Nothing outside the test's directory is read or written. A test whose
// machine lacks the program is skipped by testenv's rules.
//
// # Not here
//
// Registries that misbehave: those are in registry's own tests.
package registrytest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/onggi/onggi/internal/testenv"
)

// Kinds of authorisation.
const (
	None  = ""
	Basic = "basic"
	Token = "token"
)

// The account of every registry that wants one.
const (
	User     = "someone"
	Password = "ONGGI-CANARY-secret"
)

// Options of a Registry.
type Options struct {
	TLS  bool
	Auth string
	// ClientCert asks for certificates of the authority from clients.
	ClientCert bool
}

// Registry is one that runs.
type Registry struct {
	Host    string // host:port
	CertDir string // for registry.Options.CertDirs: has the authority's certificate
	Tokens  *TokenServer
	Storage string
	CAPool  *x509.CertPool
	CAFile  string
}

// Start runs docker-registry.
func Start(t testing.TB, o Options) *Registry {
	t.Helper()
	program := testenv.NeedProgram(t, "docker-registry")
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &Registry{Host: l.Addr().String(), CertDir: filepath.Join(dir, "certs.d"), Storage: filepath.Join(dir, "storage")}
	l.Close()
	ca := newAuthority(t)
	r.CAFile = filepath.Join(dir, "ca.crt")
	write(t, r.CAFile, ca.pem)
	r.CAPool = x509.NewCertPool()
	r.CAPool.AppendCertsFromPEM(ca.pem)
	write(t, filepath.Join(r.CertDir, r.Host, "ca.crt"), ca.pem)
	c := "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: " + r.Storage + "}, delete: {enabled: true}}\nhttp:\n  addr: " + r.Host + "\n  secret: x\n"
	if o.TLS {
		cert, key := ca.issue(t, "127.0.0.1")
		write(t, filepath.Join(dir, "server.crt"), cert)
		write(t, filepath.Join(dir, "server.key"), key)
		c += "  tls:\n    certificate: " + filepath.Join(dir, "server.crt") + "\n    key: " + filepath.Join(dir, "server.key") + "\n"
		if o.ClientCert {
			c += "    clientcas: [" + r.CAFile + "]\n"
			cert, key := ca.issue(t, "client")
			write(t, filepath.Join(r.CertDir, r.Host, "client.cert"), cert)
			write(t, filepath.Join(r.CertDir, r.Host, "client.key"), key)
		}
	}
	switch o.Auth {
	case Basic:
		h, err := bcrypt.GenerateFromPassword([]byte(Password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, "htpasswd"), []byte(User+":"+string(h)+"\n"))
		c += "auth: {htpasswd: {realm: test, path: " + filepath.Join(dir, "htpasswd") + "}}\n"
	case Token:
		r.Tokens = newTokenServer(t, ca, o.TLS)
		write(t, filepath.Join(r.CertDir, r.Tokens.Host, "ca.crt"), ca.pem)
		c += "auth: {token: {realm: \"" + r.Tokens.URL + "/token\", service: test-registry, issuer: test-issuer, rootcertbundle: " + r.CAFile + "}}\n"
	}
	write(t, filepath.Join(dir, "config.yml"), []byte(c))
	var out bytes.Buffer
	cmd := exec.Command(program, "serve", filepath.Join(dir, "config.yml"))
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = []string{"OTEL_TRACES_EXPORTER=none"}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); cmd.Wait() }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		if t.Failed() && out.Len() > 0 {
			t.Logf("docker-registry said:\n%.1000s", out.String())
		}
	})
	for {
		conn, err := net.Dial("tcp", r.Host)
		if err == nil {
			conn.Close()
			return r
		}
		select {
		case <-ended:
			t.Fatalf("docker-registry ended:\n%s", out.String())
		case <-t.Context().Done():
			t.Fatal(err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func write(t testing.TB, name string, b []byte) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(name), 0o755)
	if err == nil {
		err = os.WriteFile(name, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

func (a *authority) issue(t testing.TB, name string) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: n, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature,
	}
	if ip := net.ParseIP(name); ip != nil {
		tmpl.IPAddresses = []net.IP{ip}
	} else {
		tmpl.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kb})
}

// TokenServer gives tokens that docker-registry believes.
type TokenServer struct {
	URL, Host string

	mu     sync.Mutex
	scopes []string // that were asked for; guarded by mu
	users  []string // who asked; guarded by mu
}

// Asked lists the scopes asked for, in order.
func (s *TokenServer) Asked() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.scopes...)
}

// RefreshToken is the identity token that the server gives for the account.
const RefreshToken = "ONGGI-CANARY-refresh"

func newTokenServer(t testing.TB, ca *authority, useTLS bool) *TokenServer {
	s := &TokenServer{}
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.ParseForm()
		user, pass, ok := r.BasicAuth()
		known := ok && user == User && pass == Password || r.Method == http.MethodPost && r.PostForm.Get("refresh_token") == RefreshToken
		if ok && !known {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return
		}
		type access struct {
			Type    string   `json:"type"`
			Name    string   `json:"name"`
			Actions []string `json:"actions"`
		}
		var list []access
		var scopes []string
		for _, v := range r.Form["scope"] {
			scopes = append(scopes, strings.Fields(v)...)
		}
		s.mu.Lock()
		s.scopes = append(s.scopes, strings.Join(scopes, " "))
		s.users = append(s.users, user)
		s.mu.Unlock()
		for _, sc := range scopes {
			f := strings.SplitN(sc, ":", 3)
			if len(f) == 3 && known {
				list = append(list, access{f[0], f[1], strings.Split(f[2], ",")})
			}
		}
		now := time.Now()
		claims, _ := json.Marshal(map[string]any{"iss": "test-issuer", "sub": user, "aud": r.Form.Get("service"), "exp": now.Add(5 * time.Minute).Unix(), "nbf": now.Add(-time.Minute).Unix(), "iat": now.Unix(), "jti": fmt.Sprint(now.UnixNano()), "access": list})
		answer := map[string]any{"token": ca.sign(t, claims), "expires_in": 300}
		if r.Form.Get("offline_token") == "true" && known {
			answer["refresh_token"] = RefreshToken
		}
		json.NewEncoder(w).Encode(answer)
	})
	srv := httptest.NewUnstartedServer(h)
	if useTLS {
		cert, key := ca.issue(t, "127.0.0.1")
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
		srv.StartTLS()
	} else {
		srv.Start()
	}
	t.Cleanup(srv.Close)
	s.URL = srv.URL
	_, s.Host, _ = strings.Cut(srv.URL, "://")
	return s
}

// sign makes a JWT whose certificate is the authority's.
func (a *authority) sign(t testing.TB, claims []byte) string {
	t.Helper()
	head, _ := json.Marshal(map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(a.cert.Raw)}})
	enc := base64.RawURLEncoding
	text := enc.EncodeToString(head) + "." + enc.EncodeToString(claims)
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, a.key, sum[:])
	if err != nil {
		t.Error(err)
		return ""
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + enc.EncodeToString(sig)
}
