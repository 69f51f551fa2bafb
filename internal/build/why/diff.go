// Package why remembers what the steps of builds were made of, and tells
// what has changed when a step runs again.
//
// # Model
//
// A Build is a small tree: per step its command, arguments, options, the steps
// it lies on and the files it takes; and the files of each local directory by
// digest. Diff compares it with the last build of the same Dockerfile, target
// and context, and is a pure function. A Recorder fills Builds from what the
// solver resolves and reports.
//
// # Guarantees
//
// Whether a step ran is the solver's word; this package only explains it. What
// is remembered is bounded: so many builds, so many files, so many lines.
//
// # Not here
//
// The cache itself, and BuildKit's own history of builds.
package why

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/moby/patternmatcher"

	"github.com/onggi/onggi/internal/api"
)

// Build is what one build was made of.
type Build struct {
	Ref     string
	Names   []string
	Began   time.Time
	Took    time.Duration
	NoCache []string // stages; an empty name is all
	Steps   []Step
	Sources map[string]Files // local directories by name
	Error   string
}

// Files are digests by path.
type Files map[string]string

// Step is one step: its key, as a tree, and how it ended.
type Step struct {
	Name    string
	Source  bool   // a base image
	Base    string // its digest
	Command string
	Args    map[string]string
	Options map[string]string
	Inputs  []Input
	State   api.StepState
	Took    time.Duration
	Failure *api.StepFailure
}

// Input is what a step takes from another, or from a local directory.
type Input struct {
	Step   string `json:",omitempty"` // name of the step
	Local  string `json:",omitempty"` // name of the directory
	Path   string `json:",omitempty"` // what of it
	Wild   bool   `json:",omitempty"` // Path is a pattern
	Only   []string
	Except []string
}

// maxChanges bounds what is listed of one step.
const maxChanges = 25

// Diff explains b by the build before it, which may be nil.
func Diff(old, b *Build) *api.BuildWhy {
	w := &api.BuildWhy{Ref: b.Ref, Names: b.Names, Began: b.Began, Seconds: b.Took.Seconds(), Error: b.Error}
	if old != nil {
		w.ComparedTo = old.Ref
	}
	before := match(old, b)
	byName := map[string]*Step{}
	for i := range b.Steps {
		byName[b.Steps[i].Name] = &b.Steps[i]
	}
	for i := range b.Steps {
		s := &b.Steps[i]
		x := api.StepWhy{Name: s.Name, State: s.State, Seconds: s.Took.Seconds(), Failure: s.Failure}
		if s.Source {
			if o := before[s.Name]; o != nil && o.Base != s.Base {
				x.Changes = []api.StepChange{{What: "base", Name: imageName(s.Name), Old: o.Base, New: s.Base}}
			}
		} else if old != nil && (s.State == api.StepRun || s.State == api.StepFailed) {
			x.Changes = changes(old, b, before, byName, s)
		}
		if n := len(x.Changes); n > maxChanges {
			x.Changes, x.More = x.Changes[:maxChanges], n-maxChanges
		}
		w.Steps = append(w.Steps, x)
	}
	return w
}

// changes lists what differs for a step that ran.
func changes(old, b *Build, before, byName map[string]*Step, s *Step) []api.StepChange {
	o := before[s.Name]
	if o == nil {
		return []api.StepChange{{What: "new"}}
	}
	var out []api.StepChange
	if o.Command != s.Command {
		out = append(out, api.StepChange{What: "command", Old: o.Command, New: s.Command})
	}
	out = append(out, differences("arg", o.Args, s.Args)...)
	out = append(out, differences("option", o.Options, s.Options)...)
	out = append(out, inputChanges(before, byName, o, s)...)
	out = append(out, fileChanges(old, b, s)...)
	switch {
	case len(out) > 0:
	case o.State == api.StepFailed:
		out = append(out, api.StepChange{What: "failed"})
	case noCache(b.NoCache, stageOf(s.Name)):
		out = append(out, api.StepChange{What: "no-cache"})
	default:
		out = append(out, api.StepChange{What: "missing"})
	}
	return out
}

// inputChanges looks at the steps that s takes something from.
func inputChanges(before, byName map[string]*Step, o, s *Step) []api.StepChange {
	var had []string
	for _, in := range o.Inputs {
		if in.Step != "" {
			had = append(had, in.Step)
		}
	}
	var out []api.StepChange
	i := 0
	for _, in := range s.Inputs {
		p := byName[in.Step]
		if in.Step == "" || p == nil {
			continue
		}
		was := before[in.Step]
		switch {
		case p.Source && was != nil && was.Base != p.Base:
			out = append(out, api.StepChange{What: "base", Name: imageName(p.Name), Old: was.Base, New: p.Base})
		case !p.Source && (p.State == api.StepRun || p.State == api.StepFailed):
			out = append(out, api.StepChange{What: "parent", Name: p.Name})
		case i < len(had) && (was == nil || was.Name != had[i]):
			out = append(out, api.StepChange{What: "parent", Name: p.Name, Old: had[i]})
		}
		i++
	}
	return slices.CompactFunc(out, func(a, b api.StepChange) bool { return a == b })
}

// fileChanges compares the files that s takes from local directories.
func fileChanges(old, b *Build, s *Step) []api.StepChange {
	var out []api.StepChange
	seen := map[string]bool{}
	for _, in := range s.Inputs {
		was, now := old.Sources[in.Local], b.Sources[in.Local]
		if in.Local == "" || was == nil || now == nil {
			continue
		}
		for _, c := range differences("file", was, now) {
			if !seen[c.Name] && in.takes(c.Name) {
				seen[c.Name] = true
				out = append(out, c)
			}
		}
	}
	return out
}

// takes reports whether the input has the file.
func (in *Input) takes(file string) bool {
	p := strings.Trim(path.Clean("/"+in.Path), "/")
	rest, ok := file, p == ""
	if !ok && in.Wild {
		for end := range len(file) + 1 {
			if end < len(file) && file[end] != '/' {
				continue
			}
			if ok, _ = path.Match(p, file[:end]); ok {
				rest = strings.TrimPrefix(file[end:], "/")
				break
			}
		}
	} else if !ok {
		rest, ok = strings.CutPrefix(file, p)
		ok = ok && (rest == "" || rest[0] == '/')
		rest = strings.TrimPrefix(rest, "/")
	}
	if !ok || rest == "" {
		return ok
	}
	if len(in.Only) > 0 {
		if m, err := patternmatcher.MatchesOrParentMatches(rest, in.Only); err == nil && !m {
			return false
		}
	}
	if len(in.Except) > 0 {
		if m, err := patternmatcher.MatchesOrParentMatches(rest, in.Except); err == nil && m {
			return false
		}
	}
	return true
}

// differences lists keys whose values differ, sorted.
func differences(what string, old, now map[string]string) []api.StepChange {
	var out []api.StepChange
	for k, v := range now {
		if o, ok := old[k]; !ok || o != v {
			out = append(out, api.StepChange{What: what, Name: k, Old: shown(o, ok), New: shown(v, true)})
		}
	}
	for k, o := range old {
		if _, ok := now[k]; !ok {
			out = append(out, api.StepChange{What: what, Name: k, Old: shown(o, true)})
		}
	}
	slices.SortFunc(out, func(a, b api.StepChange) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// shown tells an empty value from none.
func shown(v string, there bool) string {
	if v == "" && there {
		return `""`
	}
	return v
}

// match finds for each step of b the one it was in the build before: by stage
// and text, and what is left over in order within its stage.
func match(old, b *Build) map[string]*Step {
	out := map[string]*Step{}
	if old == nil {
		return out
	}
	type key struct{ stage, text string }
	free := map[key][]*Step{}
	used := map[*Step]bool{}
	for i := range old.Steps {
		s := &old.Steps[i]
		k := key{stageOf(s.Name), textOf(s.Name)}
		free[k] = append(free[k], s)
	}
	for i := range b.Steps {
		s := &b.Steps[i]
		k := key{stageOf(s.Name), textOf(s.Name)}
		if l := free[k]; len(l) > 0 {
			out[s.Name], free[k] = l[0], l[1:]
			used[l[0]] = true
		}
	}
	left := map[string][]*Step{}
	for i := range old.Steps {
		if s := &old.Steps[i]; !used[s] {
			left[stageOf(s.Name)] = append(left[stageOf(s.Name)], s)
		}
	}
	for i := range b.Steps {
		s := &b.Steps[i]
		l := left[stageOf(s.Name)]
		if out[s.Name] != nil {
			continue
		}
		// RUN becomes another RUN, never a COPY.
		j := slices.IndexFunc(l, func(o *Step) bool { return verb(o.Name) == verb(s.Name) })
		if j >= 0 {
			out[s.Name] = l[j]
			left[stageOf(s.Name)] = slices.Delete(l, j, j+1)
		}
	}
	return out
}

// stageOf is the stage in "[stage 2/4] RUN x", "" where it has no name.
func stageOf(name string) string {
	head, _, ok := strings.Cut(strings.TrimPrefix(name, "["), "] ")
	if !ok {
		return ""
	}
	if i := strings.LastIndexByte(head, ' '); i >= 0 {
		return head[:i]
	}
	if strings.Contains(head, "/") {
		return ""
	}
	return head
}

// textOf is the instruction in "[stage 2/4] RUN x", without a digest that a FROM
// was resolved to.
func textOf(name string) string {
	if _, rest, ok := strings.Cut(name, "] "); ok && strings.HasPrefix(name, "[") {
		name = rest
	}
	if strings.HasPrefix(name, "FROM ") {
		name, _, _ = strings.Cut(name, "@")
	}
	return name
}

func verb(name string) string {
	v, _, _ := strings.Cut(textOf(name), " ")
	return v
}

func imageName(step string) string { return strings.TrimPrefix(textOf(step), "FROM ") }

func noCache(stages []string, stage string) bool {
	for _, s := range stages {
		if s == "" || strings.EqualFold(s, stage) || strings.HasSuffix(stage, " "+s) {
			return true
		}
	}
	return false
}

// carry completes b with what earlier builds know of steps that b did not
// reach, so that the next one has something to compare with.
func carry(old, b *Build) *Build {
	if old == nil || b.Error == "" {
		return b
	}
	out := *b
	matched := map[*Step]bool{}
	for _, s := range match(old, b) {
		matched[s] = true
	}
	for i := range old.Steps {
		if s := &old.Steps[i]; !matched[s] {
			out.Steps = append(slices.Clone(out.Steps), *s)
		}
	}
	out.Sources = maps.Clone(old.Sources)
	if out.Sources == nil {
		out.Sources = map[string]Files{}
	}
	maps.Copy(out.Sources, b.Sources)
	return &out
}

// signalOf names the signal in a shell's exit code.
func signalOf(code int) string {
	names := map[int]string{1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 13: "SIGPIPE", 15: "SIGTERM", 31: "SIGSYS"}
	if code <= 128 || code > 128+64 {
		return ""
	}
	if n := names[code-128]; n != "" {
		return n
	}
	return fmt.Sprintf("signal %d", code-128)
}
