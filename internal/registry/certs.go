package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
)

// tlsConfig reads the certificates for a host from the directories. A name
// that could leave them has no certificates.
func tlsConfig(dirs []string, host string) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if strings.ContainsAny(host, "/\\") || strings.HasPrefix(host, ".") {
		return conf, nil
	}
	for _, d := range dirs {
		dir := filepath.Join(d, host)
		list, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, errdefs.New(errdefs.Internal, "read", "certificates of "+host, err)
		}
		for _, f := range list {
			if err := addCertificate(conf, dir, f.Name()); err != nil {
				return nil, errdefs.WithHint(errdefs.New(errdefs.Invalid, "read", "certificates of "+host, err), "see the files in "+dir)
			}
		}
	}
	return conf, nil
}

func addCertificate(conf *tls.Config, dir, name string) error {
	path := filepath.Join(dir, name)
	switch filepath.Ext(name) {
	case ".crt":
		pem, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if conf.RootCAs == nil {
			if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
				conf.RootCAs = x509.NewCertPool()
			}
		}
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return errors.New(name + " holds no certificate")
		}
	case ".cert":
		key := strings.TrimSuffix(name, ".cert") + ".key"
		pair, err := tls.LoadX509KeyPair(path, filepath.Join(dir, key))
		if err != nil {
			return err
		}
		conf.Certificates = append(conf.Certificates, pair)
	}
	return nil
}
