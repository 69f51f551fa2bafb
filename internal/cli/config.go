package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// configFile is Docker's config.json: credentials and a few preferences.
// What we do not know in it is kept.
type configFile struct {
	dir  string
	read bool
	raw  map[string]json.RawMessage
	configValues
}

type configValues struct {
	Auths       map[string]authEntry `json:"auths"`
	CredsStore  string               `json:"credsStore"`
	CredHelpers map[string]string    `json:"credHelpers"`
	DetachKeys  string               `json:"detachKeys"`
	PsFormat    string               `json:"psFormat"`
	ImgFormat   string               `json:"imagesFormat"`
	Headers     map[string]string    `json:"HttpHeaders"`
}

type authEntry struct {
	Auth          string `json:"auth,omitempty"`
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
}

func configDir(flag string) string {
	for _, d := range []string{flag, os.Getenv("ONGGI_CONFIG"), os.Getenv("DOCKER_CONFIG")} {
		if d != "" {
			return d
		}
	}
	home, _ := os.UserHomeDir()
	return filepath.Join(home, ".docker")
}

// load reads the file once; a missing or broken one is empty.
func (c *configFile) load() *configValues {
	if !c.read {
		c.read = true
		data, err := os.ReadFile(filepath.Join(configDir(c.dir), "config.json"))
		if err == nil {
			json.Unmarshal(data, &c.configValues)
			json.Unmarshal(data, &c.raw)
		}
	}
	return &c.configValues
}

// save writes the credentials back, beside everything else in the file.
func (c *configFile) save() error {
	c.load()
	if c.raw == nil {
		c.raw = map[string]json.RawMessage{}
	}
	auths, err := json.Marshal(c.Auths)
	if err != nil {
		return err
	}
	c.raw["auths"] = auths
	data, err := json.MarshalIndent(c.raw, "", "\t")
	if err != nil {
		return err
	}
	dir := configDir(c.dir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp := filepath.Join(dir, ".config.json.new")
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "config.json"))
}
