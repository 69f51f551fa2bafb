package why

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	gatewayapi "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver"
	solvererrdefs "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/api"
	"github.com/onggi/onggi/internal/errdefs"
)

// Bounds of what is remembered.
const (
	maxOps     = 8192
	maxSources = 64
	maxFiles   = 100_000 // of one directory; larger ones are not compared
	maxHeld    = 300_000 // in memory, of all
	maxBuilds  = 50      // explanations
	maxKeys    = 32      // Dockerfiles whose last build is kept
	maxRecord  = 64 << 20
	maxOutput  = 20      // lines of a failed step
	maxTail    = 8 << 10 // and bytes
)

// Recorder watches builds. All methods may be called from many goroutines.
type Recorder struct {
	dir string // of the last builds, by key

	mu    sync.Mutex
	ops   map[string]*op    // guarded by mu: by vertex digest
	files map[string]source // guarded by mu: by vertex digest
	last  map[string]*Build // guarded by mu: by key
	why   []*api.BuildWhy   // guarded by mu: the newest last
	open  map[string]chan struct{}
	saves sync.WaitGroup
}

type source struct {
	name  string
	files Files
}

// op is a vertex as the solver resolved it.
type op struct {
	name   string
	step   Step
	inputs []digest.Digest
	takes  []Input // by input
}

// New returns a recorder that keeps the last builds below dir.
func New(dir string) (*Recorder, error) {
	r := &Recorder{dir: dir, ops: map[string]*op{}, files: map[string]source{}, last: map[string]*Build{}, open: map[string]chan struct{}{}}
	return r, os.MkdirAll(dir, 0o700)
}

// Close waits until the last builds are on disk.
func (r *Recorder) Close() { r.saves.Wait() }

// Op notes what a vertex is made of.
func (r *Recorder) Op(v solver.Vertex) {
	base, ok := v.Sys().(*pb.Op)
	if !ok {
		return
	}
	o := describe(v.Name(), base, len(v.Inputs()))
	for _, in := range v.Inputs() {
		o.inputs = append(o.inputs, in.Vertex.Digest())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.ops) >= maxOps {
		clear(r.ops)
	}
	r.ops[v.Digest().String()] = o
}

// Files notes what a local directory holds for a vertex. The map must not be
// changed any more.
func (r *Recorder) Files(v digest.Digest, name string, files map[string]string) {
	if len(files) > maxFiles {
		files = nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	n := len(files)
	for _, s := range r.files {
		n += len(s.files)
	}
	if len(r.files) >= maxSources || n > maxHeld {
		clear(r.files)
	}
	r.files[v.String()] = source{name, files}
}

// describe brings an operation into the form that is compared.
func describe(name string, base *pb.Op, inputs int) *op {
	o := &op{name: name, takes: make([]Input, inputs), step: Step{Args: map[string]string{}, Options: map[string]string{}}}
	s := &o.step
	take := func(i int64, in Input) {
		if i >= 0 && int(i) < inputs {
			o.takes[i] = in
		}
	}
	switch x := base.Op.(type) {
	case *pb.Op_Source:
		s.Source = true
		s.Command = x.Source.Identifier
		if _, d, ok := strings.Cut(x.Source.Identifier, "@"); ok {
			s.Base = d
		}
	case *pb.Op_Exec:
		m := x.Exec.Meta
		s.Command = commandLine(m.GetArgs())
		for _, e := range m.GetEnv() {
			k, v, _ := strings.Cut(e, "=")
			s.Args[k] = v
		}
		set(s.Options, "working directory", m.GetCwd())
		set(s.Options, "user", m.GetUser())
		set(s.Options, "hostname", m.GetHostname())
		set(s.Options, "network", optional(x.Exec.Network == pb.NetMode_UNSET, x.Exec.Network.String()))
		set(s.Options, "security", optional(x.Exec.Security == pb.SecurityMode_SANDBOX, x.Exec.Security.String()))
		for _, h := range m.GetExtraHosts() {
			s.Options["host "+h.Host] = h.IP
		}
		for _, mt := range x.Exec.Mounts {
			if mt.Dest != "/" {
				s.Options["mount "+mt.Dest] = strings.ToLower(mt.MountType.String()) + " " + mt.Selector
			}
			take(mt.Input, Input{Path: mt.Selector})
		}
	case *pb.Op_File:
		var lines []string
		for _, a := range x.File.Actions {
			switch f := a.Action.(type) {
			case *pb.FileAction_Copy:
				c := f.Copy
				lines = append(lines, fmt.Sprintf("copy %s %s", c.Src, c.Dest))
				set(s.Options, "owner of "+c.Dest, owner(c.Owner))
				if c.ModeStr != "" || c.Mode >= 0 {
					set(s.Options, "mode of "+c.Dest, cmpOr(c.ModeStr, fmt.Sprintf("%#o", c.Mode)))
				}
				set(s.Options, "only of "+c.Src, strings.Join(c.IncludePatterns, ","))
				set(s.Options, "except of "+c.Src, strings.Join(c.ExcludePatterns, ","))
				in := Input{Path: c.Src, Wild: c.AllowWildcard && strings.ContainsAny(c.Src, "*?["), Only: c.IncludePatterns, Except: c.ExcludePatterns}
				if i := a.SecondaryInput; i >= 0 && int(i) < inputs && o.takes[i].Path != "" && o.takes[i].Path != c.Src {
					in = Input{Path: "/"} // several: any of them
				}
				take(a.SecondaryInput, in)
			case *pb.FileAction_Mkfile:
				lines = append(lines, "write "+f.Mkfile.Path)
				s.Args["content of "+f.Mkfile.Path] = digest.FromBytes(f.Mkfile.Data).String()
				set(s.Options, "owner of "+f.Mkfile.Path, owner(f.Mkfile.Owner))
			case *pb.FileAction_Mkdir:
				lines = append(lines, "make "+f.Mkdir.Path)
				set(s.Options, "owner of "+f.Mkdir.Path, owner(f.Mkdir.Owner))
			case *pb.FileAction_Rm:
				lines = append(lines, "remove "+f.Rm.Path)
			case *pb.FileAction_Symlink:
				lines = append(lines, fmt.Sprintf("link %s %s", f.Symlink.Oldpath, f.Symlink.Newpath))
			}
		}
		s.Command = strings.Join(lines, "\n")
	}
	return o
}

func commandLine(args []string) string {
	if len(args) == 3 && args[1] == "-c" && strings.HasSuffix(args[0], "sh") {
		return args[2]
	}
	return strings.Join(args, " ")
}

func set(m map[string]string, k, v string) {
	if v != "" {
		m[k] = v
	}
}

func optional(usual bool, v string) string {
	if usual {
		return ""
	}
	return strings.ToLower(v)
}

func cmpOr(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

func owner(o *pb.ChownOpt) string {
	if o == nil {
		return ""
	}
	name := func(u *pb.UserOpt) string {
		if n := u.GetByName(); n != nil {
			return n.Name
		}
		return fmt.Sprint(u.GetByID())
	}
	return name(o.User) + ":" + name(o.Group)
}

// Watch follows one build.
type Watch struct {
	r   *Recorder
	key string
	b   Build

	mu    sync.Mutex
	order []string
	v     map[string]*controlapi.Vertex
	tail  map[string][]byte
	ended chan struct{}
}

// Begin follows the build with the ref. The key names what it is a build of:
// Dockerfile, target, context.
func (r *Recorder) Begin(ref string, key []string, noCache []string) *Watch {
	w := &Watch{r: r, v: map[string]*controlapi.Vertex{}, tail: map[string][]byte{}, ended: make(chan struct{})}
	sum := sha256.Sum256([]byte(strings.Join(key, "\x00")))
	w.key = hex.EncodeToString(sum[:16])
	w.b = Build{Ref: ref, Began: time.Now(), NoCache: noCache}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open[ref] = w.ended
	return w
}

// Status takes a report of the solver's.
func (w *Watch) Status(s *controlapi.StatusResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, v := range s.Vertexes {
		if w.v[v.Digest] == nil {
			w.order = append(w.order, v.Digest)
		}
		w.v[v.Digest] = v
	}
	for _, l := range s.Logs {
		t := append(w.tail[l.Vertex], l.Msg...)
		if len(t) > 2*maxTail {
			t = slices.Clone(t[len(t)-maxTail:])
		}
		w.tail[l.Vertex] = t
	}
}

// Any tells whether the solver has reported anything.
func (w *Watch) Any() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.order) > 0
}

// End explains the build, when its last report has come.
func (w *Watch) End(names []string, took time.Duration, err error) {
	w.mu.Lock()
	b := w.b
	b.Names, b.Took = names, took
	if err != nil {
		b.Error = err.Error()
	}
	r := w.r
	r.mu.Lock()
	if w.collect(&b, err); len(b.Steps) == 0 { // refused, or it was no build of steps
		delete(r.open, b.Ref)
		r.mu.Unlock()
		w.mu.Unlock()
		close(w.ended)
		return
	}
	old := r.loadLocked(w.key)
	why := Diff(old, &b)
	r.why = append(r.why, why)
	if n := len(r.why); n > maxBuilds {
		r.why = slices.Delete(r.why, 0, n-maxBuilds)
	}
	keep := carry(old, &b)
	n := 0
	for _, l := range append(slices.Collect(maps.Values(r.last)), keep) {
		for _, f := range l.Sources {
			n += len(f)
		}
	}
	if len(r.last) >= maxKeys || n > maxHeld {
		clear(r.last) // they are on disk
	}
	r.last[w.key] = keep
	delete(r.open, b.Ref)
	same := old != nil && err == nil && unchanged(why)
	r.mu.Unlock()
	w.mu.Unlock()
	close(w.ended)
	if !same {
		r.saves.Go(func() { r.save(w.key, keep) })
	}
}

// unchanged reports that nothing ran, so that what is on disk says it all.
func unchanged(w *api.BuildWhy) bool {
	for _, s := range w.Steps {
		if s.State != api.StepCached && (s.State != api.StepUsed || len(s.Changes) > 0) {
			return false
		}
	}
	return true
}

// collect brings vertices and operations together. Preconditions: w.mu and
// r.mu are held.
func (w *Watch) collect(b *Build, err error) {
	r := w.r
	b.Sources = map[string]Files{}
	for _, d := range w.order {
		if s, ok := r.files[d]; ok && !strings.HasSuffix(w.v[d].Name, ".dockerignore") {
			if len(b.Sources[s.name]) <= len(s.files) {
				b.Sources[s.name] = s.files
			}
		}
	}
	for _, d := range w.sorted() {
		v, o := w.v[d], r.ops[d]
		if !strings.HasPrefix(v.Name, "[") || strings.HasPrefix(v.Name, "[internal]") || strings.HasPrefix(v.Name, "[auth]") || o == nil {
			continue
		}
		if v.Completed == nil && v.Error == "" {
			continue // never reached
		}
		if _, local := r.files[d]; local || strings.HasPrefix(o.step.Command, "local://") {
			continue
		}
		s := o.step
		s.Name = v.Name
		for i, in := range o.inputs {
			x := o.takes[i]
			if f, ok := r.files[in.String()]; ok {
				x.Local = f.name
			} else if p := r.ops[in.String()]; p != nil {
				x.Step = p.name
			}
			s.Inputs = append(s.Inputs, x)
		}
		if v.Started != nil && v.Completed != nil {
			s.Took = v.Completed.AsTime().Sub(v.Started.AsTime())
		}
		switch {
		case v.Error != "" && strings.Contains(v.Error, "context canceled"):
			s.State = api.StepCanceled
		case v.Error != "":
			s.State, s.Failure = api.StepFailed, failure(&s, v.Error, err, w.tail[d])
		case s.Source:
			s.State = api.StepUsed
		case v.Cached:
			s.State = api.StepCached
		default:
			s.State = api.StepRun
		}
		b.Steps = append(b.Steps, s)
	}
}

// sorted lists the vertices so that each comes after its inputs.
func (w *Watch) sorted() []string {
	var out []string
	seen := map[string]bool{}
	var visit func(d string)
	visit = func(d string) {
		if v := w.v[d]; v != nil && !seen[d] {
			seen[d] = true
			for _, in := range v.Inputs {
				visit(in)
			}
			out = append(out, d)
		}
	}
	for _, d := range slices.Backward(w.order) { // the solver starts from the end
		visit(d)
	}
	return out
}

// failure describes how a step ended. The build's error is the step's.
func failure(s *Step, msg string, err error, tail []byte) *api.StepFailure {
	f := &api.StepFailure{Command: s.Command, Message: msg}
	var x *gatewayapi.ExitError
	if errors.As(err, &x) && x.ExitCode != gatewayapi.UnknownExitStatus {
		f.ExitCode = int(x.ExitCode)
		f.Signal = signalOf(f.ExitCode)
		f.OutOfMemory = errors.Is(err, syscall.ENOMEM) || strings.Contains(msg, "ran out of memory")
	}
	f.Where, f.Source = where(err)
	lines := strings.Split(strings.TrimRight(string(tail), "\n"), "\n")
	if len(lines) > maxOutput {
		lines = lines[len(lines)-maxOutput:]
	}
	if len(tail) > 0 {
		f.Output = lines
	}
	return f
}

// where names the place in the Dockerfile, and shows it with what is around.
func where(err error) (place string, lines []string) {
	for _, s := range solvererrdefs.Sources(err) {
		if s.Info == nil || len(s.Ranges) == 0 {
			continue
		}
		text := strings.Split(string(s.Info.Data), "\n")
		first, last := int(s.Ranges[0].Start.Line), int(s.Ranges[len(s.Ranges)-1].End.Line)
		for n := max(1, first-2); n <= min(len(text), max(first, last)+2); n++ {
			mark := "   "
			if n >= first && n <= max(first, last) {
				mark = ">>>"
			}
			lines = append(lines, fmt.Sprintf("%4d | %s %s", n, mark, text[n-1]))
		}
		return fmt.Sprintf("%s:%d", s.Info.Filename, first), lines
	}
	return "", nil
}

// Why returns the explanation of a build by its ref, the start of that, or a
// name of its image; the last one where that is empty. It waits for a build
// that is just ending.
func (r *Recorder) Why(ref string, wait time.Duration) (*api.BuildWhy, error) {
	r.mu.Lock()
	ended := r.open[ref]
	r.mu.Unlock()
	if ended != nil {
		select {
		case <-ended:
		case <-time.After(wait):
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range slices.Backward(r.why) {
		if ref == "" || strings.HasPrefix(w.Ref, ref) || slices.ContainsFunc(w.Names, func(n string) bool { return named(n, ref) }) {
			return w, nil
		}
	}
	if ref == "" {
		return nil, errdefs.Newf(errdefs.NotFound, "explain", "build", "there was none since the engine started")
	}
	return nil, errdefs.WithHint(errdefs.Newf(errdefs.NotFound, "explain", "build "+ref, "the engine remembers none with this ref or image name"),
		fmt.Sprintf("only the last %d builds since the engine started are explained", maxBuilds))
}

// named reports whether ref is the short form of an image's name.
func named(full, ref string) bool {
	short := strings.TrimPrefix(strings.TrimPrefix(full, "docker.io/"), "library/")
	return full == ref || short == ref || short == ref+":latest" || full == ref+":latest"
}

// loadLocked gives the last build of a key. Preconditions: r.mu is held.
func (r *Recorder) loadLocked(key string) *Build {
	if b := r.last[key]; b != nil {
		return b
	}
	f, err := os.Open(filepath.Join(r.dir, key))
	if err != nil {
		return nil
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil
	}
	var b Build
	if json.NewDecoder(io.LimitReader(z, maxRecord)).Decode(&b) != nil {
		return nil // it is a record of the past, not worth a failed build
	}
	return &b
}

// save writes the last build of a key, and removes the oldest of too many.
func (r *Recorder) save(key string, b *Build) {
	raw, err := json.Marshal(b)
	if err != nil || len(raw) > maxRecord {
		return
	}
	var buf bytes.Buffer
	z, _ := gzip.NewWriterLevel(&buf, gzip.BestSpeed)
	z.Write(raw)
	z.Close()
	p := filepath.Join(r.dir, key)
	tmp, err := os.CreateTemp(r.dir, ".new-")
	if err != nil {
		return
	}
	_, err = tmp.Write(buf.Bytes())
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil || os.Rename(tmp.Name(), p) != nil {
		os.Remove(tmp.Name())
		return
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil || len(entries) <= maxKeys {
		return
	}
	oldest, when := "", time.Now()
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && fi.ModTime().Before(when) {
			oldest, when = e.Name(), fi.ModTime()
		}
	}
	if oldest != "" {
		os.Remove(filepath.Join(r.dir, oldest))
	}
}
