package e2e

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/onggi/onggi/internal/testenv"
)

// An engine on another machine is built with over ssh and over TLS: the client
// sends the files, secrets and all.
func TestBuildOnAnotherMachine(t *testing.T) {
	certs, port := certificates(t), fmt.Sprint(freePort(t))
	e := newEngine(t, "-H", "tcp://127.0.0.1:"+port, "--tlsverify",
		"--tlscacert", certs+"/ca.pem", "--tlscert", certs+"/cert.pem", "--tlskey", certs+"/key.pem")
	e.busybox()
	dir := t.TempDir()
	write(t, dir, map[string]string{
		"Dockerfile":    "FROM busybox\nCOPY . /src\nRUN --mount=type=secret,id=s cat /run/secrets/s >/told\nCMD [\"cat\", \"/src/a\", \"/told\"]\n",
		"a":             "one\n",
		"ignored":       "x",
		".dockerignore": "ignored\n",
	})
	shell := sshServer(t)
	for _, way := range []struct {
		name   string
		global []string
	}{
		{"ssh", []string{"-H", "ssh://me@" + shell + e.sock}},
		{"tls", []string{"-H", "tcp://127.0.0.1:" + port, "--tlsverify", "--tlscacert", certs + "/ca.pem", "--tlscert", certs + "/cert.pem", "--tlskey", certs + "/key.pem"}},
	} {
		t.Run(way.name, func(t *testing.T) {
			run := func(args ...string) (string, error) {
				cmd := exec.Command(e.cli, append(append([]string{"--config", filepath.Join(e.dir, "config")}, way.global...), args...)...)
				cmd.Env = append(os.Environ(), "SECRET=from "+way.name)
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			build := func(tag string) {
				t.Helper()
				if out, err := run("build", "-t", tag, "--no-cache", "--secret", "id=s,env=SECRET", dir); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
			}
			write(t, dir, map[string]string{"a": "one\n"})
			build("far:1")
			equal(t, e.do("run", "--rm", "far:1"), "one\nfrom "+way.name)
			equal(t, e.do("run", "--rm", "far:1", "ls", "/src"), "Dockerfile\na")
			write(t, dir, map[string]string{"a": "another\n"})
			build("far:2")
			equal(t, e.do("run", "--rm", "far:2"), "another\nfrom "+way.name)
			write(t, dir, map[string]string{"bad/Dockerfile": "FROM busybox\nRUN exit 42\n"})
			if out, err := run("build", dir+"/bad"); err == nil || !strings.Contains(out, "exit code: 42") || !strings.Contains(out, ">>> RUN exit 42") {
				t.Errorf("a failed step: %v\n%s", err, out)
			}
			os.RemoveAll(dir + "/bad")
		})
	}
	t.Run("tls", func(t *testing.T) {
		others := certificates(t)
		for _, c := range []struct {
			ca, port string
			args     []string
			want     string
		}{
			{certs, port, []string{"run", "--rm", "-i", "busybox", "cat"}, "typed"},
			{others, port, []string{"ps"}, "connect to tcp://127.0.0.1:" + port + ": tls: "},
			{certs, fmt.Sprint(freePort(t)), []string{"ps"}, "no engine answers"},
		} {
			cmd := exec.Command(e.cli, append([]string{"-H", "tcp://127.0.0.1:" + c.port, "--tlsverify", "--tlscacert", c.ca + "/ca.pem",
				"--tlscert", certs + "/cert.pem", "--tlskey", certs + "/key.pem"}, c.args...)...)
			cmd.Stdin = strings.NewReader("typed")
			if out, err := cmd.CombinedOutput(); (err == nil) != (c.args[0] == "run") || !strings.Contains(string(out), c.want) {
				t.Errorf("%v: %v\n%s", c.args, err, out)
			}
		}
	})
	t.Run("nobody there", func(t *testing.T) {
		e.signal(9)
		out, err := exec.Command(e.cli, "-H", "ssh://me@"+shell+e.sock, "build", dir).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "no engine answers") {
			t.Errorf("%v\n%s", err, out)
		}
		e.start()
	})
}

// certificates makes a directory with one certificate that is everybody's.
func certificates(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cert := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	dir := t.TempDir()
	write(t, dir, map[string]string{"ca.pem": cert, "cert.pem": cert, "key.pem": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))})
	os.Chmod(dir+"/key.pem", 0o600)
	return dir
}

// sshServer is another machine as OpenSSH's client sees it, with onggi
// installed. The returned address is for ssh:// addresses of this test, whose
// ssh knows the server and has a key for it.
func sshServer(t *testing.T) string {
	t.Helper()
	real := testenv.NeedProgram(t, "ssh")
	dir := t.TempDir()
	newKey := func(file string) ssh.Signer {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		block, err := ssh.MarshalPrivateKey(key, "")
		if err != nil {
			t.Fatal(err)
		}
		os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600)
		s, err := ssh.NewSignerFromKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	host, user := newKey("host"), newKey("user")
	cfg := &ssh.ServerConfig{PublicKeyCallback: func(c ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if c.User() != "me" || string(key.Marshal()) != string(user.PublicKey().Marshal()) {
			return nil, fmt.Errorf("unknown")
		}
		return nil, nil
	}}
	cfg.AddHostKey(host)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveSSH(c, cfg)
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	write(t, dir, map[string]string{
		"known": fmt.Sprintf("[127.0.0.1]:%s %s", port, ssh.MarshalAuthorizedKey(host.PublicKey())),
		"ssh":   fmt.Sprintf("#!/bin/sh\nexec %s -F none -i %s/user -o IdentitiesOnly=yes -o UserKnownHostsFile=%s/known -o BatchMode=yes \"$@\"\n", real, dir, dir),
	})
	os.Chmod(dir+"/ssh", 0o755)
	t.Setenv("PATH", dir+":"+filepath.Dir(testenv.Binary(t, "onggi"))+":"+os.Getenv("PATH"))
	return "127.0.0.1:" + port
}

// serveSSH runs the commands of one connection.
func serveSSH(c net.Conn, cfg *ssh.ServerConfig) {
	conn, channels, requests, err := ssh.NewServerConn(c, cfg)
	if err != nil {
		return
	}
	defer conn.Close()
	go ssh.DiscardRequests(requests)
	for n := range channels {
		if n.ChannelType() != "session" {
			n.Reject(ssh.UnknownChannelType, "")
			continue
		}
		ch, reqs, err := n.Accept()
		if err != nil {
			return
		}
		go func() {
			defer ch.Close()
			for r := range reqs {
				var q struct{ Command string }
				ok := r.Type == "exec" && ssh.Unmarshal(r.Payload, &q) == nil
				r.Reply(ok, nil)
				if !ok {
					continue
				}
				cmd := exec.Command("/bin/sh", "-c", q.Command)
				cmd.Stdout, cmd.Stderr = ch, ch.Stderr()
				in, err := cmd.StdinPipe()
				status := uint32(1)
				if err == nil && cmd.Start() == nil {
					go func() { // its end is not waited for
						io.Copy(in, ch)
						in.Close()
					}()
					if cmd.Wait() == nil {
						status = 0
					}
				}
				ch.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status}))
				return
			}
		}()
	}
}
