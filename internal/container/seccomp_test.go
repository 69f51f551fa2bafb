package container

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The request's profile comes before the engine's, and that before the built-in one.
func TestSeccompProfile(t *testing.T) {
	const allow = `{"defaultAction":"SCMP_ACT_ALLOW"}`
	for _, c := range []struct {
		engine, request string
		privileged      bool
		want            specs.LinuxSeccompAction // "" = no filter
	}{
		{"", "", false, specs.ActErrno},
		{"", "", true, ""},
		{"", unconfined, false, ""},
		{"", allow, false, specs.ActAllow},
		{unconfined, "", false, ""},
		{unconfined, builtin, false, specs.ActErrno},
		{allow, "", false, specs.ActAllow},
		{allow, "", true, ""},
		{allow, builtin, true, ""},
	} {
		s := &Service{o: Options{Defaults: Defaults{Seccomp: c.engine}}}
		in := &specInput{Host: &HostConfig{Privileged: c.privileged}, Security: security{seccomp: c.request}}
		p, err := s.seccompFor(in)
		if err != nil || (p == nil) != (c.want == "") || p != nil && p.DefaultAction != c.want {
			t.Errorf("%+v: %+v, %v", c, p, err)
		}
	}
	if CheckSeccomp(allow) != nil || CheckSeccomp("{") == nil || CheckSeccomp(`{"syscalls":5}`) == nil {
		t.Error("a good profile is refused, or a bad one not")
	}
}
