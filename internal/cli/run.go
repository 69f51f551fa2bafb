package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

func runCommands() []command {
	return []command{
		{paths: []string{"run", "container run"}, args: "[OPTIONS] IMAGE [COMMAND] [ARG...]", short: "Create a container from an image and run it",
			min: 1, max: -1, exit: 125, stop: true, setup: setupRun},
		{paths: []string{"create", "container create"}, args: "[OPTIONS] IMAGE [COMMAND] [ARG...]", short: "Create a container",
			min: 1, max: -1, stop: true, setup: setupCreate},
		{paths: []string{"exec", "container exec"}, args: "[OPTIONS] CONTAINER COMMAND [ARG...]", short: "Run a command in a running container",
			min: 2, max: -1, stop: true, setup: setupExec},
		{paths: []string{"attach", "container attach"}, args: "[OPTIONS] CONTAINER", short: "Attach to a running container", min: 1, max: 1, setup: setupAttach},
		{paths: []string{"start", "container start"}, args: "[OPTIONS] CONTAINER [CONTAINER...]", short: "Start containers", min: 1, max: -1, setup: setupStart},
	}
}

func setupRun(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	c := addCreateFlags(f)
	detach := f.BoolP("detach", "d", false, "run in the background and print the container's id")
	keys := f.String("detach-keys", "", "keys that leave the container running")
	sigProxy := f.Bool("sig-proxy", true, "hand signals on to the container")
	return func(ctx context.Context, args []string) error {
		body, err := c.body(args[0], args[1:])
		if err != nil {
			return err
		}
		if *detach && len(c.attach) > 0 {
			return &usageError{text: "--detach excludes --attach"}
		}
		r := api.RunRequest{Name: c.name, Platform: c.platform, Detach: *detach, DetachKeys: e.keys(*keys)}
		if !*detach {
			r.Attach = attached(c)
			body.AttachStdin, body.AttachStdout, body.AttachStderr = r.Attach.Stdin, r.Attach.Stdout, r.Attach.Stderr
			body.StdinOnce = c.interactive && r.Attach.Stdin
		}
		if c.tty && !*detach {
			if r.Attach.Stdin && !isTerminal(e.in) {
				return &hinted{errors.New("the input is not a terminal, so --tty cannot work"), "leave out -t, or -i"}
			}
			r.TTYSize[0], r.TTYSize[1] = e.size()
			body.HostConfig.ConsoleSize = [2]uint{uint(r.TTYSize[1]), uint(r.TTYSize[0])}
		}
		if c.cidfile != "" {
			if _, err := os.Stat(c.cidfile); err == nil {
				return &hinted{fmt.Errorf("--cidfile: %s exists already", c.cidfile), "rm " + c.cidfile}
			}
			body.HostConfig.ContainerIDFile = c.cidfile
		}
		if c.useAPISocket {
			if r.Files, err = e.shareAPI(body); err != nil {
				return err
			}
		}
		if c.pull == "always" {
			if err := e.pull(ctx, args[0], c.platform, c.quiet, e.err); err != nil {
				return err
			}
		}
		if r.Create, err = json.Marshal(body); err != nil {
			return err
		}
		err = e.runOnce(ctx, r, c, *sigProxy)
		if re, ok := errors.AsType[*api.RunError](err); ok && re.MissingImage != "" && c.pull == "missing" {
			if !c.quiet {
				fmt.Fprintf(e.err, "Unable to find image '%s' locally\n", re.MissingImage)
			}
			if err := e.pull(ctx, args[0], c.platform, c.quiet, e.err); err != nil {
				return err
			}
			err = e.runOnce(ctx, r, c, *sigProxy)
		}
		return err
	}
}

// attached says which streams the flags ask for.
func attached(c *createFlags) api.RunAttach {
	if len(c.attach) == 0 {
		return api.RunAttach{Stdin: c.interactive, Stdout: true, Stderr: true}
	}
	var a api.RunAttach
	for _, s := range c.attach {
		switch strings.ToLower(s) {
		case "stdin":
			a.Stdin = true
		case "stdout":
			a.Stdout = true
		case "stderr":
			a.Stderr = true
		}
	}
	return a
}

// keys are the detach keys of the flag or of config.json.
func (e *env) keys(flag string) string {
	if flag != "" {
		return flag
	}
	return e.cfg.load().DetachKeys
}

// runOnce makes one request of all of `run`.
func (e *env) runOnce(ctx context.Context, r api.RunRequest, c *createFlags, sigProxy bool) error {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // an interrupt goes to the container
	defer cancel()
	var run *api.Run
	err := e.retry(ctx, func() (err error) { run, err = e.client.Run(ctx, r); return err })
	if err != nil {
		return err
	}
	defer run.Close()
	restore := func() {}
	defer func() { restore() }()
	var id string
	ev, err := e.receive(run, func(ev api.RunEvent) error {
		if ev.ID == "" {
			return nil
		}
		id = ev.ID
		if err := c.created(ev.ID); err != nil || r.Detach { // it still has to start
			return err
		}
		if c.tty && isTerminal(e.in) {
			restore = e.rawMode()
			onResize(ctx, func() {
				w, h := e.size()
				run.Control(api.RunControl{Resize: &[2]uint16{w, h}})
			})
		}
		if sigProxy && !c.tty {
			onSignal(ctx, func(name string) { run.Control(api.RunControl{Signal: name}) })
		}
		if r.Attach.Stdin {
			go e.sendInput(run)
		}
		return nil
	})
	switch {
	case err != nil:
		return err
	case ev.Detached && r.Detach:
		fmt.Fprintln(e.out, id)
	case ev.Exit != nil && *ev.Exit != 0:
		return exitCode(*ev.Exit)
	}
	return nil
}

// receive writes the output of a run or an exec until its last event, which it
// returns. Events before the last go to each.
func (e *env) receive(run *api.Run, each func(api.RunEvent) error) (api.RunEvent, error) {
	var buf []byte
	for {
		stream, data, err := run.Next(buf)
		if err == io.EOF {
			return api.RunEvent{}, errors.New("the engine ended the connection before the process ended")
		}
		if err != nil {
			return api.RunEvent{}, fmt.Errorf("read the process's output: %w", err)
		}
		buf = data[:cap(data)]
		switch stream {
		case api.FrameStdout:
			e.out.Write(data)
		case api.FrameStderr:
			e.err.Write(data)
		case api.FrameFailure:
			fmt.Fprintf(e.err, "onggi: %s\n", data)
		case api.FrameEvent:
			var ev api.RunEvent
			if err := json.Unmarshal(data, &ev); err != nil {
				return ev, fmt.Errorf("read the engine's event: %w", err)
			}
			switch {
			case ev.Warning != "":
				fmt.Fprintf(e.err, "warning: %s\n", ev.Warning)
			case ev.Error != nil:
				return ev, ev.Error
			case ev.Detached, ev.Exit != nil:
				return ev, nil
			case each != nil:
				if err := each(ev); err != nil {
					return ev, err
				}
			}
		}
	}
}

func (e *env) sendInput(run *api.Run) {
	buf := make([]byte, 32<<10)
	for {
		n, err := e.in.Read(buf)
		if n > 0 {
			if run.Stdin(buf[:n]) != nil {
				return
			}
		}
		if err != nil {
			run.Control(api.RunControl{CloseStdin: true})
			return
		}
	}
}

// created writes the id where --cidfile says.
func (c *createFlags) created(id string) error {
	if c.cidfile == "" {
		return nil
	}
	if err := os.WriteFile(c.cidfile, []byte(id), 0o644); err != nil {
		return fmt.Errorf("--cidfile: %w", err)
	}
	return nil
}

func setupCreate(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	c := addCreateFlags(f)
	return func(ctx context.Context, args []string) error {
		body, err := c.body(args[0], args[1:])
		if err != nil {
			return err
		}
		a := attached(c)
		body.AttachStdin, body.AttachStdout, body.AttachStderr = a.Stdin, a.Stdout, a.Stderr
		body.StdinOnce = c.interactive
		if c.pull == "always" {
			if err := e.pull(ctx, args[0], c.platform, c.quiet, e.err); err != nil {
				return err
			}
		}
		var files []byte
		if c.useAPISocket {
			if files, err = e.shareAPI(body); err != nil {
				return err
			}
		}
		q := url.Values{}
		if c.name != "" {
			q.Set("name", c.name)
		}
		if c.platform != "" {
			q.Set("platform", c.platform)
		}
		var made struct {
			ID       string `json:"Id"`
			Warnings []string
		}
		err = e.call(ctx, "POST", "/containers/create", q, body, &made)
		if api.StatusOf(err) == 404 && c.pull == "missing" && strings.Contains(strings.ToLower(err.Error()), "no such image") {
			if err := e.pull(ctx, args[0], c.platform, c.quiet, e.err); err != nil {
				return err
			}
			err = e.call(ctx, "POST", "/containers/create", q, body, &made)
		}
		if err != nil {
			return err
		}
		if files != nil {
			put := api.Request{Method: "PUT", Path: "/containers/" + made.ID + "/archive", Query: url.Values{"path": {"/"}}, Body: bytes.NewReader(files)}
			resp, err := e.do(ctx, put)
			if err != nil {
				return err
			}
			resp.Body.Close()
		}
		for _, w := range made.Warnings {
			fmt.Fprintf(e.err, "warning: %s\n", w)
		}
		fmt.Fprintln(e.out, made.ID)
		return c.created(made.ID)
	}
}

func setupExec(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	detach := f.BoolP("detach", "d", false, "run in the background")
	keys := f.String("detach-keys", "", "keys that leave the command running")
	env := f.StringArrayP("env", "e", nil, "environment: NAME=value")
	envFile := f.StringArray("env-file", nil, "file with a line of environment each")
	interactive := f.BoolP("interactive", "i", false, "keep stdin open")
	privileged := f.Bool("privileged", false, "all capabilities")
	tty := f.BoolP("tty", "t", false, "give the command a terminal")
	user := f.StringP("user", "u", "", "user[:group]")
	workdir := f.StringP("workdir", "w", "", "working directory")
	return func(ctx context.Context, args []string) error {
		vars, err := environment(*env, *envFile)
		if err != nil {
			return err
		}
		if *tty && *interactive && !*detach && !isTerminal(e.in) {
			return &hinted{errors.New("the input is not a terminal, so --tty cannot work"), "leave out -t"}
		}
		body := map[string]any{"AttachStdin": *interactive && !*detach, "AttachStdout": !*detach, "AttachStderr": !*detach,
			"Tty": *tty, "Env": vars, "Privileged": *privileged, "User": *user, "WorkingDir": *workdir, "Cmd": args[1:], "DetachKeys": e.keys(*keys)}
		if *tty {
			if w, h := e.size(); w > 0 {
				body["ConsoleSize"] = [2]uint{uint(h), uint(w)}
			}
		}
		q := api.ExecRequest{Container: args[0], Detach: *detach}
		if q.Create, err = json.Marshal(body); err != nil {
			return err
		}
		var run *api.Run
		if err := e.retry(ctx, func() (err error) { run, err = e.client.Exec(ctx, q); return err }); err != nil {
			return err
		}
		defer run.Close()
		if *tty && isTerminal(e.in) {
			defer e.rawMode()()
			onResize(ctx, func() {
				w, h := e.size()
				run.Control(api.RunControl{Resize: &[2]uint16{w, h}})
			})
		}
		if *interactive && !*detach {
			go e.sendInput(run)
		}
		ev, err := e.receive(run, nil)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case ev.Exit != nil && *ev.Exit != 0:
			return exitCode(*ev.Exit)
		}
		return nil
	}
}

type shuttleOptions struct {
	tty, stdin bool
	resize     string            // path of the resize request
	signal     func(name string) // hands signals on; nil: not
}

// shuttle moves bytes between our streams and a hijacked connection until the
// engine ends it.
func (e *env) shuttle(ctx context.Context, s *api.Stream, o shuttleOptions) error {
	defer s.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if o.tty {
		if isTerminal(e.in) {
			defer e.rawMode()()
		}
		if o.resize != "" && isTerminal(e.out) {
			resize := func() {
				w, h := e.size()
				e.client.Call(ctx, "POST", o.resize, url.Values{"w": {strconv.Itoa(int(w))}, "h": {strconv.Itoa(int(h))}}, nil, nil)
			}
			resize()
			onResize(ctx, resize)
		}
	} else if o.signal != nil {
		onSignal(ctx, o.signal)
	}
	if o.stdin {
		go func() {
			io.Copy(s, e.in)
			s.CloseWrite()
		}()
	}
	if o.tty {
		_, err := io.Copy(e.out, s)
		return err
	}
	return demux(s, e.out, e.err)
}

// demux splits Docker's frames.
func demux(r io.Reader, out, errw io.Writer) error {
	var buf []byte
	for {
		stream, data, err := api.ReadFrame(r, buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		buf = data[:cap(data)]
		switch stream {
		case api.FrameStderr:
			_, err = errw.Write(data)
		case api.FrameFailure:
			return errors.New(strings.TrimSpace(string(data)))
		default:
			_, err = out.Write(data)
		}
		if err != nil {
			return err
		}
	}
}

func (e *env) inspect(ctx context.Context, name string) (*api.Container, error) {
	var c api.Container
	err := e.call(ctx, "GET", "/containers/"+url.PathEscape(name)+"/json", nil, nil, &c)
	return &c, err
}

func setupAttach(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	keys := f.String("detach-keys", "", "keys that leave the container running")
	noStdin := f.Bool("no-stdin", false, "do not attach stdin")
	sigProxy := f.Bool("sig-proxy", true, "hand signals on to the container")
	return func(ctx context.Context, args []string) error {
		c, err := e.inspect(ctx, args[0])
		if err != nil {
			return err
		}
		switch {
		case !c.State.Running:
			return &hinted{fmt.Errorf("container %s is not running", args[0]), "onggi start -a " + args[0] + ", or onggi logs " + args[0]}
		case c.State.Paused:
			return &hinted{fmt.Errorf("container %s is paused", args[0]), "onggi unpause " + args[0]}
		}
		return e.attachAndWait(context.WithoutCancel(ctx), c, attachOptions{keys: *keys, stdin: !*noStdin && c.Config.OpenStdin, sigProxy: *sigProxy})
	}
}

type attachOptions struct {
	keys            string
	stdin, sigProxy bool
	start           func() error // after the attach is there
}

// attachAndWait attaches, starts where asked, and ends with the container's
// exit code.
func (e *env) attachAndWait(ctx context.Context, c *api.Container, o attachOptions) error {
	q := url.Values{"stream": {"1"}, "stdout": {"1"}, "stderr": {"1"}}
	if o.stdin {
		q.Set("stdin", "1")
	}
	if k := e.keys(o.keys); k != "" {
		q.Set("detachKeys", k)
	}
	s, err := e.hijack(ctx, api.Request{Method: "POST", Path: "/containers/" + c.ID + "/attach", Query: q})
	if err != nil {
		return err
	}
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	condition := "not-running"
	if o.start != nil {
		condition = "next-exit"
	}
	if c.HostConfig.AutoRemove {
		condition = "removed"
	}
	resp, err := e.client.Do(ctx, api.Request{Method: "POST", Path: "/containers/" + c.ID + "/wait", Query: url.Values{"condition": {condition}}})
	if err != nil {
		s.Close()
		return err
	}
	go func() {
		defer resp.Body.Close()
		var st struct {
			StatusCode int
			Error      *struct{ Message string }
		}
		err := json.NewDecoder(resp.Body).Decode(&st)
		if err == nil && st.Error != nil {
			err = errors.New(st.Error.Message)
		}
		ended <- result{st.StatusCode, err}
	}()
	if o.start != nil {
		if err := o.start(); err != nil {
			s.Close()
			return err
		}
	}
	var hand func(string)
	if o.sigProxy {
		hand = func(name string) {
			e.client.Call(ctx, "POST", "/containers/"+c.ID+"/kill", url.Values{"signal": {name}}, nil, nil)
		}
	}
	if err := e.shuttle(ctx, s, shuttleOptions{tty: c.Config.Tty, stdin: o.stdin, resize: "/containers/" + c.ID + "/resize", signal: hand}); err != nil {
		if strings.Contains(err.Error(), "detached") || strings.Contains(err.Error(), "detach") {
			return nil
		}
		return err
	}
	// The output ended: the container did too, or we detached.
	if st, err := e.inspect(ctx, c.ID); err == nil && st.State.Running && c.Config.Tty {
		return nil
	}
	r := <-ended
	if r.err != nil {
		return r.err
	}
	if r.code != 0 {
		return exitCode(r.code)
	}
	return nil
}

func setupStart(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	attach := f.BoolP("attach", "a", false, "attach output, and hand signals on")
	interactive := f.BoolP("interactive", "i", false, "attach input")
	keys := f.String("detach-keys", "", "keys that leave the container running")
	checkpoint := f.String("checkpoint", "", "restore from a checkpoint")
	return func(ctx context.Context, args []string) error {
		if *checkpoint != "" {
			return errors.New("checkpoints are not supported yet")
		}
		if *attach || *interactive {
			if len(args) > 1 {
				return &usageError{text: "only one container can be started and attached at a time"}
			}
			c, err := e.inspect(ctx, args[0])
			if err != nil {
				return err
			}
			ctx := context.WithoutCancel(ctx)
			return e.attachAndWait(ctx, c, attachOptions{keys: *keys, stdin: *interactive && c.Config.OpenStdin, sigProxy: true,
				start: func() error { return e.client.Call(ctx, "POST", "/containers/"+c.ID+"/start", nil, nil, nil) }})
		}
		return e.each(args, func(name string) error {
			if err := e.call(ctx, "POST", "/containers/"+url.PathEscape(name)+"/start", nil, nil, nil); err != nil {
				return err
			}
			fmt.Fprintln(e.out, name)
			return nil
		})
	}
}
