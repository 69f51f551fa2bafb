package container

import (
	"cmp"
	"encoding/json"
	"runtime"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	ours "github.com/onggi/onggi/internal/linux/seccomp"
)

// seccompFor chooses the filter: a profile of the request, else the engine's, or
// none. The built-in one is Docker's for the container's capabilities.
func (s *Service) seccompFor(in *specInput) (*specs.LinuxSeccomp, error) {
	profile := in.Security.seccomp
	if in.Host.Privileged && (profile == "" || profile == builtin) {
		return nil, nil
	}
	caps := effectiveCaps(in.Host.CapAdd, in.Host.CapDrop, in.Host.Privileged, s.caps)
	switch profile = cmp.Or(profile, s.o.Defaults.Seccomp, builtin); profile {
	case unconfined:
		return nil, nil
	case builtin:
		return ours.Default(caps, runtime.GOARCH), nil
	}
	return loadSeccomp(profile, caps)
}

func loadSeccomp(profile string, caps []string) (*specs.LinuxSeccomp, error) {
	if !json.Valid([]byte(profile)) {
		return nil, errdefs.WithHint(invalid("decoding seccomp profile failed: it is not JSON"), "the client reads a profile's file; give its path, or unconfined")
	}
	p, err := seccomp.LoadProfile(profile, &specs.Spec{Process: &specs.Process{Capabilities: capabilitySets(caps)}})
	if err != nil {
		return nil, invalid("seccomp profile: %v", err)
	}
	return p, nil
}

// CheckSeccomp says what is wrong with a profile.
func CheckSeccomp(profile string) error {
	_, err := loadSeccomp(profile, nil)
	return err
}
