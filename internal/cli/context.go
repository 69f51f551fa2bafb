package cli

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

// Contexts are names for engines. They are kept where Docker's client keeps its
// own, in contexts/{meta,tls} of the configuration directory, and both see the
// same ones. Which one is current is ours alone (the file onggi-context): a
// context that was chosen for docker must not send onggi to Docker's engine.

func contextCommands() []command {
	return []command{
		{paths: []string{"context ls", "context list"}, args: "[OPTIONS]", short: "List contexts", max: 0, setup: setupContexts},
		{paths: []string{"context create"}, args: "[OPTIONS] CONTEXT", short: "Give an engine a name", min: 1, max: 1, setup: setupContextCreate},
		{paths: []string{"context update"}, args: "[OPTIONS] CONTEXT", short: "Change a context", min: 1, max: 1, setup: setupContextUpdate},
		{paths: []string{"context use"}, args: "CONTEXT", short: "Choose the context that onggi uses", min: 1, max: 1, setup: setupContextUse},
		{paths: []string{"context show"}, short: "Print the name of the current context", max: 0, setup: setupContextShow},
		{paths: []string{"context inspect"}, args: "[OPTIONS] [CONTEXT...]", short: "Show everything about contexts", max: -1, setup: setupContextInspect},
		{paths: []string{"context rm", "context remove"}, args: "[OPTIONS] CONTEXT [CONTEXT...]", short: "Remove contexts", min: 1, max: -1, setup: setupContextRm},
		{paths: []string{"context export"}, args: "CONTEXT [FILE|-]", short: "Write a context to a tar archive", min: 1, max: 2, setup: setupContextExport},
		{paths: []string{"context import"}, args: "CONTEXT FILE|-", short: "Read a context from a tar archive", min: 2, max: 2, setup: setupContextImport},
	}
}

const defaultContext = "default"

// contextMeta is a context's record, as Docker's client writes it.
type contextMeta struct {
	Name      string                     `json:",omitempty"`
	Metadata  map[string]any             `json:",omitempty"`
	Endpoints map[string]contextEndpoint `json:",omitempty"`
}

type contextEndpoint struct {
	Host          string `json:",omitempty"`
	SkipTLSVerify bool
}

func (m *contextMeta) description() string {
	s, _ := m.Metadata["Description"].(string)
	return s
}

// contextFiles are what TLS needs: as key of --docker, and as file.
var contextFiles = []struct{ key, file string }{{"ca", "ca.pem"}, {"cert", "cert.pem"}, {"key", "key.pem"}}

// contextDir is a context's directory: kind is meta or tls.
func (c *configFile) contextDir(kind, name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(configDir(c.dir), "contexts", kind, hex.EncodeToString(sum[:]))
}

func (c *configFile) currentContext() string {
	data, _ := os.ReadFile(filepath.Join(configDir(c.dir), "onggi-context"))
	if name := strings.TrimSpace(string(data)); name != "" {
		return name
	}
	return defaultContext
}

func (c *configFile) useContext(name string) error {
	file := filepath.Join(configDir(c.dir), "onggi-context")
	if name == defaultContext {
		if err := os.Remove(file); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	}
	return os.WriteFile(file, []byte(name+"\n"), 0o644)
}

func (c *configFile) context(name string) (*contextMeta, error) {
	if name == defaultContext {
		return &contextMeta{Name: name, Metadata: map[string]any{}, Endpoints: map[string]contextEndpoint{"docker": {Host: "unix://" + api.DefaultSocket}}}, nil
	}
	m := &contextMeta{}
	data, err := os.ReadFile(filepath.Join(c.contextDir("meta", name), "meta.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, &hinted{fmt.Errorf("context %q does not exist", name), "onggi context ls"}
	}
	if err == nil {
		err = json.Unmarshal(data, m)
	}
	if err != nil {
		return nil, fmt.Errorf("read the context %q: %w", name, err)
	}
	return m, nil
}

func (c *configFile) contexts() ([]*contextMeta, error) {
	all := []*contextMeta{}
	dirs, err := os.ReadDir(filepath.Join(configDir(c.dir), "contexts", "meta"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	for _, d := range dirs {
		m := &contextMeta{}
		data, err := os.ReadFile(filepath.Join(configDir(c.dir), "contexts", "meta", d.Name(), "meta.json"))
		if err == nil && json.Unmarshal(data, m) == nil && m.Name != "" {
			all = append(all, m)
		}
	}
	m, _ := c.context(defaultContext)
	all = append(all, m)
	sort.Slice(all, func(i, j int) bool { return all[i].Name < all[j].Name })
	return all, nil
}

// writeContext writes a record, and the TLS files that are given.
func (c *configFile) writeContext(m *contextMeta, tls map[string][]byte) error {
	files := map[string][]byte{}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	files[filepath.Join(c.contextDir("meta", m.Name), "meta.json")] = data
	for name, data := range tls {
		files[filepath.Join(c.contextDir("tls", m.Name), "docker", name)] = data
	}
	for p, data := range files {
		mode, dir := os.FileMode(0o600), os.FileMode(0o700)
		if filepath.Base(p) == "meta.json" {
			mode, dir = 0o644, 0o755
		}
		if err := os.MkdirAll(filepath.Dir(p), dir); err != nil {
			return err
		}
		if err := os.WriteFile(p+".new", data, mode); err != nil {
			return err
		}
		if err := os.Rename(p+".new", p); err != nil {
			return err
		}
	}
	return nil
}

// contextTLS are the TLS files of a context.
func (c *configFile) contextTLS(name string) map[string][]byte {
	files := map[string][]byte{}
	for _, f := range contextFiles {
		if data, err := os.ReadFile(filepath.Join(c.contextDir("tls", name), "docker", f.file)); err == nil {
			files[f.file] = data
		}
	}
	return files
}

func validContextName(name string) error {
	ok := len(name) > 1
	for i, r := range name {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		ok = ok && (letter || i > 0 && strings.ContainsRune("_.+-", r))
	}
	switch {
	case name == defaultContext:
		return errors.New(`"default" is the engine on this machine: its name is taken`)
	case !ok:
		return fmt.Errorf("context name %q: want letters, digits and _ . + -, two at least, and a letter or digit first", name)
	}
	return nil
}

// endpointOf reads --docker host=…,ca=…,cert=…,key=…,skip-tls-verify=…,from=….
func (c *configFile) endpointOf(set string) (ep contextEndpoint, tls map[string][]byte, err error) {
	tls = map[string][]byte{}
	for _, field := range strings.Split(set, ",") {
		k, v, ok := strings.Cut(field, "=")
		if !ok {
			return ep, nil, flagError("docker", set, "want host=…[,ca=…,cert=…,key=…]")
		}
		switch k {
		case "host":
			ep.Host = v
		case "skip-tls-verify":
			if ep.SkipTLSVerify, err = strconv.ParseBool(v); err != nil {
				return ep, nil, flagError("docker", set, "skip-tls-verify is true or false")
			}
		case "from":
			m, err := c.context(v)
			if err != nil {
				return ep, nil, err
			}
			return m.Endpoints["docker"], c.contextTLS(v), nil
		default:
			known := false
			for _, f := range contextFiles {
				if f.key != k {
					continue
				}
				known = true
				if tls[f.file], err = os.ReadFile(v); err != nil {
					return ep, nil, err
				}
			}
			if !known {
				return ep, nil, flagError("docker", set, "there is no key %q", k)
			}
		}
	}
	_, err = api.New(api.Options{Host: ep.Host, Dial: dialOf(ep.Host)})
	return ep, tls, err
}

func setupContexts(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	format := f.String("format", "", "table, json, or a Go template")
	quiet := f.BoolP("quiet", "q", false, "names only")
	return func(ctx context.Context, args []string) error {
		all, err := e.cfg.contexts()
		if err != nil {
			return err
		}
		l := &list{columns: []string{"Name", "Description", "DockerEndpoint", "Error"}, quiet: "Name", titles: map[string]string{}}
		for _, m := range all {
			name, current := m.Name, m.Name == e.context
			if current && (*format == "" || *format == "table") && !*quiet {
				name += " *"
			}
			l.rows = append(l.rows, row{"Name": name, "Current": strconv.FormatBool(current), "Description": m.description(), "DockerEndpoint": m.Endpoints["docker"].Host, "Error": ""})
		}
		return e.show(l, *format, *quiet)
	}
}

func setupContextCreate(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	description := f.String("description", "", "what it is")
	docker := f.String("docker", "", "where the engine is: host=…[,ca=…,cert=…,key=…,skip-tls-verify=true]")
	from := f.String("from", "", "copy this context")
	return func(ctx context.Context, args []string) error {
		name := args[0]
		if err := validContextName(name); err != nil {
			return err
		}
		if _, err := e.cfg.context(name); err == nil {
			return &hinted{fmt.Errorf("context %q already exists", name), "onggi context update " + name}
		}
		m := &contextMeta{Name: name, Metadata: map[string]any{}}
		var tls map[string][]byte
		switch {
		case *docker != "" && *from != "":
			return &usageError{text: "--docker and --from exclude each other"}
		case *docker != "":
			ep, files, err := e.cfg.endpointOf(*docker)
			if err != nil {
				return err
			}
			m.Endpoints, tls = map[string]contextEndpoint{"docker": ep}, files
		default:
			if *from == "" {
				*from = e.context
			}
			old, err := e.cfg.context(*from)
			if err != nil {
				return err
			}
			m.Metadata, m.Endpoints, tls = old.Metadata, old.Endpoints, e.cfg.contextTLS(*from)
		}
		if *description != "" {
			m.Metadata["Description"] = *description
		}
		if err := e.cfg.writeContext(m, tls); err != nil {
			return err
		}
		fmt.Fprintln(e.out, name)
		fmt.Fprintf(e.err, "Successfully created context %q\n", name)
		return nil
	}
}

func setupContextUpdate(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	description := f.String("description", "", "what it is")
	docker := f.String("docker", "", "where the engine is: host=…[,ca=…,cert=…,key=…,skip-tls-verify=true]")
	return func(ctx context.Context, args []string) error {
		name := args[0]
		if err := validContextName(name); err != nil {
			return err
		}
		m, err := e.cfg.context(name)
		if err != nil {
			return err
		}
		if *description != "" {
			if m.Metadata == nil {
				m.Metadata = map[string]any{}
			}
			m.Metadata["Description"] = *description
		}
		var tls map[string][]byte
		if *docker != "" {
			ep, files, err := e.cfg.endpointOf(*docker)
			if err != nil {
				return err
			}
			if err := os.RemoveAll(e.cfg.contextDir("tls", name)); err != nil {
				return err
			}
			m.Endpoints, tls = map[string]contextEndpoint{"docker": ep}, files
		}
		if err := e.cfg.writeContext(m, tls); err != nil {
			return err
		}
		fmt.Fprintln(e.out, name)
		fmt.Fprintf(e.err, "Successfully updated context %q\n", name)
		return nil
	}
}

func setupContextUse(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		name := args[0]
		if _, err := e.cfg.context(name); err != nil {
			return err
		}
		if err := e.cfg.useContext(name); err != nil {
			return err
		}
		fmt.Fprintln(e.out, name)
		fmt.Fprintf(e.err, "Current context is now %q\n", name)
		if v := os.Getenv("ONGGI_HOST"); v != "" {
			fmt.Fprintln(e.err, "warning: ONGGI_HOST is set, and has the last word")
		}
		return nil
	}
}

func setupContextShow(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		fmt.Fprintln(e.out, e.context)
		return nil
	}
}

func setupContextInspect(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	format := f.StringP("format", "f", "", "json, or a Go template")
	return func(ctx context.Context, args []string) error {
		if len(args) == 0 {
			args = []string{e.context}
		}
		var found []json.RawMessage
		err := e.each(args, func(name string) error {
			m, err := e.cfg.context(name)
			if err != nil {
				return err
			}
			where := map[string]string{"MetadataPath": "<IN MEMORY>", "TLSPath": "<IN MEMORY>"}
			files := map[string][]string{}
			if name != defaultContext {
				where["MetadataPath"], where["TLSPath"] = e.cfg.contextDir("meta", name), e.cfg.contextDir("tls", name)
				for f := range e.cfg.contextTLS(name) {
					files["docker"] = append(files["docker"], f)
				}
				sort.Strings(files["docker"])
			}
			raw, err := json.Marshal(struct {
				*contextMeta
				TLSMaterial map[string][]string
				Storage     map[string]string
			}{m, files, where})
			found = append(found, raw)
			return err
		})
		if serr := e.showObjects(found, *format); serr != nil {
			return serr
		}
		return err
	}
}

func setupContextRm(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	force := f.BoolP("force", "f", false, "also the current one, and no error where there is none")
	return func(ctx context.Context, args []string) error {
		return e.each(args, func(name string) error {
			if name == defaultContext {
				return errors.New(`context "default" cannot be removed`)
			}
			if _, err := e.cfg.context(name); err != nil && !*force {
				return err
			}
			if name == e.cfg.currentContext() {
				if !*force {
					return &hinted{fmt.Errorf("context %q is in use", name), "onggi context use default, or onggi context rm -f " + name}
				}
				if err := e.cfg.useContext(defaultContext); err != nil {
					return err
				}
			}
			for _, kind := range []string{"meta", "tls"} {
				if err := os.RemoveAll(e.cfg.contextDir(kind, name)); err != nil {
					return err
				}
			}
			fmt.Fprintln(e.out, name)
			return nil
		})
	}
}

func setupContextExport(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		name := args[0]
		m, err := e.cfg.context(name)
		if err != nil {
			return err
		}
		data, err := json.Marshal(m)
		if err != nil {
			return err
		}
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(&tar.Header{Name: "meta.json", Mode: 0o644, Size: int64(len(data))})
		w.Write(data)
		for _, d := range []string{"tls", "tls/docker"} {
			w.WriteHeader(&tar.Header{Name: d, Mode: 0o700, Typeflag: tar.TypeDir})
		}
		for file, data := range e.cfg.contextTLS(name) {
			w.WriteHeader(&tar.Header{Name: "tls/docker/" + file, Mode: 0o600, Size: int64(len(data))})
			w.Write(data)
		}
		if err := w.Close(); err != nil {
			return err
		}
		dest := name + ".dockercontext"
		if len(args) == 2 {
			dest = args[1]
		}
		if dest == "-" {
			w, done, err := e.output("")
			if err != nil {
				return err
			}
			_, err = w.Write(b.Bytes())
			return done(err)
		}
		file, err := os.OpenFile(dest, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if _, err := file.Write(b.Bytes()); err != nil {
			file.Close()
			return err
		}
		fmt.Fprintf(e.err, "Written file %q\n", dest)
		return file.Close()
	}
}

// maxContext is the most that a context's archive may hold.
const maxContext = 10 << 20

func setupContextImport(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		name := args[0]
		if err := validContextName(name); err != nil {
			return err
		}
		if _, err := e.cfg.context(name); err == nil {
			return &hinted{fmt.Errorf("context %q already exists", name), "onggi context rm " + name}
		}
		in := io.Reader(e.in)
		if args[1] != "-" {
			file, err := os.Open(args[1])
			if err != nil {
				return err
			}
			defer file.Close()
			in = file
		}
		var m *contextMeta
		tls := map[string][]byte{}
		r := tar.NewReader(io.LimitReader(in, maxContext))
		for {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				return &hinted{fmt.Errorf("%s is no context: %w", args[1], err), "an archive of onggi context export"}
			}
			if h.Typeflag != tar.TypeReg {
				continue
			}
			data, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			switch p := path.Clean(h.Name); {
			case p == "meta.json":
				m = &contextMeta{}
				if err := json.Unmarshal(data, m); err != nil {
					return fmt.Errorf("read %s: %w", args[1], err)
				}
			case path.Dir(p) == "tls/docker":
				for _, f := range contextFiles {
					if f.file == path.Base(p) {
						tls[f.file] = data
					}
				}
			}
		}
		if m == nil || m.Endpoints["docker"].Host == "" {
			return fmt.Errorf("%s is no context: there is no engine in it", args[1])
		}
		m.Name = name
		if err := e.cfg.writeContext(m, tls); err != nil {
			return err
		}
		fmt.Fprintln(e.out, name)
		fmt.Fprintf(e.err, "Successfully imported context %q\n", name)
		return nil
	}
}
