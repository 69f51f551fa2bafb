package container

import (
	"encoding/json"
	"runtime"

	"github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
	ours "github.com/onggi/onggi/internal/linux/seccomp"
)

// seccompFor chooses the filter: Docker's default profile for the container's
// capabilities, a profile of the request, or none.
func (s *Service) seccompFor(in *specInput) (*specs.LinuxSeccomp, error) {
	if in.Host.Privileged && in.Security.seccomp == "" || in.Security.seccomp == unconfined {
		return nil, nil
	}
	caps := effectiveCaps(in.Host.CapAdd, in.Host.CapDrop, in.Host.Privileged, s.caps)
	if in.Security.seccomp == "" {
		return ours.Default(caps, runtime.GOARCH), nil
	}
	if !json.Valid([]byte(in.Security.seccomp)) {
		return nil, errdefs.WithHint(invalid("decoding seccomp profile failed: it is not JSON"), "the client reads a profile's file; give its path, or unconfined")
	}
	p, err := seccomp.LoadProfile(in.Security.seccomp, &specs.Spec{Process: &specs.Process{Capabilities: capabilitySets(caps)}})
	if err != nil {
		return nil, invalid("seccomp profile: %v", err)
	}
	return p, nil
}
