package api

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// BuildWhy tells why each step of a build ran, or did not have to.
type BuildWhy struct {
	Ref        string    `json:"ref"`
	Names      []string  `json:"names,omitempty"` // of the image
	Began      time.Time `json:"began"`
	Seconds    float64   `json:"seconds"`
	ComparedTo string    `json:"comparedTo,omitempty"` // the build before: same Dockerfile, target and context
	Steps      []StepWhy `json:"steps"`
	Error      string    `json:"error,omitempty"`
}

// StepWhy is one step of a build.
type StepWhy struct {
	Name    string       `json:"name"`
	State   StepState    `json:"state"`
	Seconds float64      `json:"seconds"`
	Changes []StepChange `json:"changes,omitempty"` // since the build before; of a step that ran
	More    int          `json:"more,omitempty"`    // changes that are not listed
	Failure *StepFailure `json:"failure,omitempty"`
}

// StepState is how a step ended.
type StepState string

const (
	StepCached   StepState = "cached"
	StepRun      StepState = "run"
	StepUsed     StepState = "used" // a base image
	StepFailed   StepState = "failed"
	StepCanceled StepState = "canceled"
)

// StepChange is an input of a step that differs from the last time.
type StepChange struct {
	// What is file, arg, command, option, base (image), parent (step), new (step),
	// failed (last time), no-cache (asked for), or missing (its result is gone
	// from the cache).
	What string `json:"what"`
	Name string `json:"name,omitempty"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// StepFailure is how a step failed.
type StepFailure struct {
	Command     string   `json:"command,omitempty"`
	Message     string   `json:"message"`
	Where       string   `json:"where,omitempty"`  // Dockerfile:6
	Source      []string `json:"source,omitempty"` // its lines there, with what is around
	ExitCode    int      `json:"exitCode,omitempty"`
	Signal      string   `json:"signal,omitempty"`
	OutOfMemory bool     `json:"outOfMemory,omitempty"`
	Output      []string `json:"output,omitempty"` // the last lines
}

// Text writes the explanation for people.
func (w *BuildWhy) Text(out io.Writer) {
	if w.ComparedTo == "" {
		fmt.Fprintln(out, "The first build of this Dockerfile, target and context that the engine remembers.")
	}
	for _, s := range w.Steps {
		took := ""
		if s.State != StepCached && s.State != StepUsed {
			took = seconds(s.Seconds)
		}
		fmt.Fprintf(out, "%-8s %7s  %s\n", s.State, took, oneLine(s.Name))
		for _, c := range s.Changes {
			fmt.Fprintf(out, "%19s%s\n", "", c)
		}
		if s.More > 0 {
			fmt.Fprintf(out, "%19sand %d more\n", "", s.More)
		}
		if s.Failure != nil {
			s.Failure.text(out)
		}
	}
}

func (f *StepFailure) text(out io.Writer) {
	if f.Command != "" {
		fmt.Fprintf(out, "%19scommand: %s\n", "", oneLine(f.Command))
	}
	fmt.Fprintf(out, "%19s%s\n", "", f.How())
	for _, l := range f.Output {
		fmt.Fprintf(out, "%19s| %s\n", "", l)
	}
}

// How says in a few words how the step ended.
func (f *StepFailure) How() string {
	switch {
	case f.OutOfMemory:
		return fmt.Sprintf("out of memory (exit code %d): give the build more memory, or let the step use less", f.ExitCode)
	case f.Signal != "":
		return fmt.Sprintf("killed by %s (exit code %d)", f.Signal, f.ExitCode)
	case f.ExitCode != 0:
		return fmt.Sprintf("exit code %d", f.ExitCode)
	}
	return oneLine(f.Message)
}

// String words a change.
func (c StepChange) String() string {
	switch c.What {
	case "new":
		return "new: the build before had no such step"
	case "failed":
		return "it failed the last time"
	case "no-cache":
		return "asked for: --no-cache"
	case "missing":
		return "no input has changed; its result was not in the cache any more"
	case "parent":
		if c.Old != "" {
			return fmt.Sprintf("comes after another step: %s, before %s", oneLine(c.Name), oneLine(c.Old))
		}
		return "builds on a step that ran: " + oneLine(c.Name)
	}
	name := c.Name
	if name != "" {
		name = " " + name
	}
	switch {
	case c.Old == "":
		return fmt.Sprintf("%s%s: new, %s", c.What, name, short(c.New))
	case c.New == "":
		return fmt.Sprintf("%s%s: gone, was %s", c.What, name, short(c.Old))
	}
	return fmt.Sprintf("%s%s: %s → %s", c.What, name, short(c.Old), short(c.New))
}

// short cuts a digest to what tells it from others, and text to a line.
func short(s string) string {
	if rest, ok := strings.CutPrefix(s, "sha256:"); ok && len(rest) > 12 {
		return "sha256:" + rest[:12]
	}
	return oneLine(s)
}

func oneLine(s string) string {
	s = strings.ReplaceAll(s, "\n", "\\n")
	if r := []rune(s); len(r) > 160 {
		return string(r[:159]) + "…"
	}
	return s
}

func seconds(s float64) string {
	if s < 0.1 {
		return fmt.Sprintf("%.0fms", s*1000)
	}
	return fmt.Sprintf("%.1fs", s)
}
