package worker

import "testing"

func TestIsBuiltin(t *testing.T) {
	for ref, want := range map[string]bool{
		"docker/dockerfile":                 true,
		"docker/dockerfile:latest":          true,
		"docker/dockerfile:1":               true,
		"docker/dockerfile:1.4":             true,
		"docker/dockerfile:1.4.3":           true,
		"docker.io/docker/dockerfile:1":     true,
		"docker/dockerfile:1.25":            true,
		"docker/dockerfile:1.25.0":          true,
		"docker/dockerfile:1.25.1":          false,
		"docker/dockerfile:1.26":            false,
		"docker/dockerfile:2":               false,
		"docker/dockerfile:1-labs":          false,
		"docker/dockerfile:1.4.3-labs":      false,
		"docker/dockerfile-upstream:master": false,
		"docker/dockerfile:1@sha256:0123":   false,
		"example.com/docker/dockerfile:1":   false,
		"docker/dockerfile:1.2.3.4":         false,
		"docker/dockerfile:-1":              false,
		"":                                  false,
	} {
		if got := isBuiltin(ref, "1.25.0"); got != want {
			t.Errorf("%q: %v", ref, got)
		}
	}
	if isBuiltin("docker/dockerfile:1", "") {
		t.Error("an unknown version covers nothing")
	}
}

func FuzzIsBuiltin(f *testing.F) {
	f.Add("docker/dockerfile:1.2", "1.3")
	f.Fuzz(func(t *testing.T, ref, have string) { isBuiltin(ref, have) })
}
