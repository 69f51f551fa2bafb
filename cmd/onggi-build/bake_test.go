package main

import (
	"strings"
	"testing"
)

func TestBakeRefusesWhatCannotBeBuilt(t *testing.T) {
	w := &baker{bakeFile: bakeFile{Target: map[string]*bakeTarget{
		"a": {Contexts: map[string]string{"x": "target:b"}},
		"b": {Contexts: map[string]string{"x": "target:a"}},
		"c": {Contexts: map[string]string{"x": "target:none"}},
		"d": {Context: "https://example.com/x.git", DockerfileInline: "FROM scratch"},
	}}}
	for name, want := range map[string]string{
		"a": "takes files from itself, by a, b", "c": `there is no build "none"`, "d": "needs Docker's buildx",
	} {
		if err := w.build(t.Context(), name, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestBakeWords(t *testing.T) {
	for got, want := range map[string]string{
		titled("web", "[1/2] FROM x"):       "[web 1/2] FROM x",
		titled("web", "exporting to image"): "[web] exporting to image",
		plainText("$${A} ${B} $$C"):         "${A} ${B} $$C",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
