package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"github.com/spf13/pflag"
	"golang.org/x/term"
)

func loginCommands() []command {
	return []command{
		{paths: []string{"login"}, args: "[OPTIONS] [SERVER]", short: "Log in to a registry", max: 1, setup: setupLogin},
		{paths: []string{"logout"}, args: "[SERVER]", short: "Log out from a registry", max: 1, setup: setupLogout},
	}
}

// registryAuth is what the engine takes as X-Registry-Auth.
type registryAuth struct {
	Username      string `json:"username,omitempty"`
	Password      string `json:"password,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
	RegistryToken string `json:"registrytoken,omitempty"`
	ServerAddress string `json:"serveraddress,omitempty"`
}

// credentials for a registry; nil where there are none.
func (c *configFile) credentials(server string) (*registryAuth, error) {
	v := c.load()
	if helper := v.helper(server); helper != "" {
		return askHelper(helper, server)
	}
	for _, key := range []string{server, "https://" + server, "http://" + server} {
		a, ok := v.Auths[key]
		if !ok {
			continue
		}
		r := &registryAuth{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken, ServerAddress: server}
		if a.Auth != "" {
			plain, err := base64.StdEncoding.DecodeString(a.Auth)
			if err != nil {
				return nil, fmt.Errorf("credentials for %s in config.json: %w", server, err)
			}
			user, pass, ok := strings.Cut(string(plain), ":")
			if !ok {
				return nil, fmt.Errorf("credentials for %s in config.json have no password", server)
			}
			r.Username, r.Password = user, strings.TrimRight(pass, "\x00")
		}
		return r, nil
	}
	return nil, nil
}

func (v *configValues) helper(server string) string {
	if h, ok := v.CredHelpers[server]; ok {
		return h
	}
	return v.CredsStore
}

// askHelper runs docker-credential-NAME get.
func askHelper(name, server string) (*registryAuth, error) {
	out, err := runHelper(name, "get", server)
	if err != nil {
		if strings.Contains(err.Error(), "credentials not found") {
			return nil, nil
		}
		return nil, err
	}
	var c struct{ Username, Secret string }
	if err := json.Unmarshal(out, &c); err != nil {
		return nil, fmt.Errorf("docker-credential-%s: %w", name, err)
	}
	a := &registryAuth{Username: c.Username, Password: c.Secret, ServerAddress: server}
	if c.Username == "<token>" {
		a.Username, a.Password, a.IdentityToken = "", "", c.Secret
	}
	return a, nil
}

func runHelper(name, verb, input string) ([]byte, error) {
	program := "docker-credential-" + name
	if strings.ContainsAny(name, "/\\") {
		return nil, fmt.Errorf("config.json names the credential helper %q, which is not a name", name)
	}
	cmd := exec.Command(program, verb)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.Output()
	if err != nil {
		if text := bytes.TrimSpace(out); len(text) > 0 {
			return nil, fmt.Errorf("%s: %s", program, text)
		}
		return nil, &hinted{fmt.Errorf("%s: %w", program, err), "install it, or remove it from config.json"}
	}
	return out, nil
}

func setupLogin(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	user := f.StringP("username", "u", "", "user name")
	password := f.StringP("password", "p", "", "password; better: --password-stdin")
	stdin := f.Bool("password-stdin", false, "read the password from standard input")
	return func(ctx context.Context, args []string) error {
		server := "https://index.docker.io/v1/"
		if len(args) == 1 && args[0] != "docker.io" {
			server = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(args[0], "https://"), "http://"), "/")
		}
		if err := e.password(user, password, *stdin); err != nil {
			return err
		}
		auth := registryAuth{Username: *user, Password: *password, ServerAddress: server}
		var answer struct{ Status, IdentityToken string }
		if err := e.call(ctx, "POST", "/auth", nil, auth, &answer); err != nil {
			return err
		}
		if err := e.cfg.store(server, auth, answer.IdentityToken); err != nil {
			return err
		}
		if answer.Status == "" {
			answer.Status = "Login Succeeded"
		}
		fmt.Fprintln(e.out, answer.Status)
		return nil
	}
}

// password fills in what the flags left open.
func (e *env) password(user, password *string, stdin bool) error {
	switch {
	case stdin && *password != "":
		return &usageError{text: "--password-stdin excludes --password"}
	case stdin && *user == "":
		return &usageError{text: "--password-stdin needs --username"}
	case stdin:
		data, err := io.ReadAll(io.LimitReader(e.in, 64<<10))
		if err != nil {
			return err
		}
		*password = strings.TrimRight(string(data), "\r\n")
	case *password != "":
		fmt.Fprintln(e.err, "warning: a password on the command line can be seen by others; --password-stdin hides it")
	case !isTerminal(e.in):
		return &hinted{errors.New("no terminal to ask for the password"), "--username NAME --password-stdin"}
	}
	if *user == "" {
		fmt.Fprint(e.out, "Username: ")
		line, err := bufio.NewReader(e.in).ReadString('\n')
		if err != nil {
			return err
		}
		*user = strings.TrimSpace(line)
	}
	if *password == "" && !stdin {
		fmt.Fprint(e.out, "Password: ")
		data, err := term.ReadPassword(int(e.in.Fd()))
		fmt.Fprintln(e.out)
		if err != nil {
			return err
		}
		*password = string(data)
	}
	if *user == "" || *password == "" {
		return &usageError{text: "user name and password must not be empty"}
	}
	return nil
}

// store keeps credentials where Docker's clients look for them.
func (c *configFile) store(server string, a registryAuth, token string) error {
	v := c.load()
	if helper := v.helper(server); helper != "" {
		entry := struct{ ServerURL, Username, Secret string }{server, a.Username, a.Password}
		if token != "" {
			entry.Username, entry.Secret = "<token>", token
		}
		data, err := json.Marshal(entry)
		if err != nil {
			return err
		}
		_, err = runHelper(helper, "store", string(data))
		return err
	}
	if v.Auths == nil {
		v.Auths = map[string]authEntry{}
	}
	entry := authEntry{Auth: base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password))}
	if token != "" {
		entry = authEntry{Auth: base64.StdEncoding.EncodeToString([]byte(a.Username + ":")), IdentityToken: token}
	}
	v.Auths[server] = entry
	return c.save()
}

func setupLogout(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		server := "https://index.docker.io/v1/"
		if len(args) == 1 {
			server = args[0]
		}
		v := e.cfg.load()
		if helper := v.helper(server); helper != "" {
			_, err := runHelper(helper, "erase", server)
			return err
		}
		if _, ok := v.Auths[server]; !ok {
			fmt.Fprintf(e.out, "Not logged in to %s\n", server)
			return nil
		}
		delete(v.Auths, server)
		fmt.Fprintf(e.out, "Removing login credentials for %s\n", server)
		return e.cfg.save()
	}
}
