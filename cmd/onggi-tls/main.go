// Command onggi-tls is the part of onggi that speaks TLS: it is apart because
// linking Go's TLS makes every command slower. onggi hands it a connection to an
// engine, as descriptor 3, and speaks with the engine through its stdin and stdout.
//
//	onggi-tls [--verify] --name HOST --ca FILE --cert FILE --key FILE
//
// The first byte that it writes is 0; or 1, and the rest says what went wrong.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
)

func main() {
	conn, err := connect()
	if err != nil {
		os.Stdout.Write(append([]byte{1}, err.Error()...))
		os.Exit(1)
	}
	os.Stdout.Write([]byte{0})
	go func() {
		io.Copy(conn, os.Stdin)
		conn.CloseWrite()
	}()
	io.Copy(os.Stdout, conn)
}

func connect() (*tls.Conn, error) {
	verify := flag.Bool("verify", false, "verify the engine's certificate")
	name := flag.String("name", "", "host that it is for")
	ca := flag.String("ca", "", "certificates that are trusted")
	cert := flag.String("cert", "", "our certificate")
	key := flag.String("key", "", "its key")
	flag.Parse()
	cfg := &tls.Config{ServerName: *name, InsecureSkipVerify: !*verify, MinVersion: tls.VersionTLS12}
	if pem, err := os.ReadFile(*ca); err == nil {
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AppendCertsFromPEM(pem)
	} else if *verify {
		return nil, fmt.Errorf("read the trusted certificates: %w", err)
	}
	if pair, err := tls.LoadX509KeyPair(*cert, *key); err == nil {
		cfg.Certificates = []tls.Certificate{pair}
	}
	raw, err := net.FileConn(os.NewFile(3, "engine"))
	if err != nil {
		return nil, fmt.Errorf("take the connection over: %w", err)
	}
	conn := tls.Client(raw, cfg)
	return conn, conn.HandshakeContext(context.Background())
}
