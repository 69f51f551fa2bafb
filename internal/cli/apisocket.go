package cli

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
)

// apiConfig is where a container with --use-api-socket has the credentials.
const apiConfig = "/run/secrets/docker/config.json"

// shareAPI is --use-api-socket: it binds the engine's socket where clients look
// for it, and returns an archive of a config.json with all credentials, nil
// where there are none or the container brings its own configuration.
func (e *env) shareAPI(b *createBody) ([]byte, error) {
	socket, ok := strings.CutPrefix(e.host, "unix://")
	if !ok {
		return nil, &hinted{fmt.Errorf("--use-api-socket: %s is no socket of this machine", e.host), "use it on the engine's own machine"}
	}
	b.HostConfig.Binds = append(b.HostConfig.Binds, socket+":/var/run/docker.sock")
	for _, v := range b.Env {
		if strings.HasPrefix(v, "DOCKER_CONFIG=") {
			return nil, nil
		}
	}
	auths, err := e.cfg.allCredentials()
	if err != nil || len(auths) == 0 {
		return nil, err
	}
	b.Env = append(b.Env, "DOCKER_CONFIG="+path.Dir(apiConfig))
	data, err := json.MarshalIndent(map[string]any{"auths": auths}, "", "\t")
	if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err = w.WriteHeader(&tar.Header{Name: apiConfig, Size: int64(len(data)), Mode: 0o600})
	if err == nil {
		_, err = w.Write(data)
	}
	return buf.Bytes(), errors.Join(err, w.Close())
}

// allCredentials are those of DOCKER_AUTH_CONFIG, or all that config.json and its
// helpers have, by server.
func (c *configFile) allCredentials() (map[string]authEntry, error) {
	v := c.load()
	if text := os.Getenv("DOCKER_AUTH_CONFIG"); text != "" {
		var given configValues
		if err := json.Unmarshal([]byte(text), &given); err != nil {
			return nil, fmt.Errorf("read DOCKER_AUTH_CONFIG: %w", err)
		}
		if len(given.Auths) > 0 {
			return given.Auths, nil
		}
	}
	servers := map[string]bool{}
	for s := range v.Auths {
		servers[s] = true
	}
	for s := range v.CredHelpers {
		servers[s] = true
	}
	if v.CredsStore != "" {
		out, err := runHelper(v.CredsStore, "list", "")
		if err != nil {
			return nil, err
		}
		users := map[string]string{}
		if err := json.Unmarshal(out, &users); err != nil {
			return nil, fmt.Errorf("docker-credential-%s list: %w", v.CredsStore, err)
		}
		for s := range users {
			servers[s] = true
		}
	}
	out := map[string]authEntry{}
	for s := range servers {
		a, err := c.credentials(s)
		if err != nil {
			return nil, err
		}
		if a != nil {
			out[s] = authEntry{Auth: base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password)), IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken}
		}
	}
	return out, nil
}
