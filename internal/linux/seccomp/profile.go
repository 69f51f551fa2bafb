package seccomp

import (
	"encoding/json"
	"runtime"
	"slices"
	"strings"
	"sync"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// defaults are those asked for already: a start should not choose among four
// hundred system calls again.
var defaults struct {
	mu   sync.Mutex
	from map[string]*specs.LinuxSeccomp // guarded by mu
}

// Default is Docker's default profile, for a container with the capabilities
// and on an architecture in Go's words; "" is this one. It is shared: nobody
// changes it.
func Default(caps []string, arch string) *specs.LinuxSeccomp {
	key := arch + " " + strings.Join(caps, " ")
	defaults.mu.Lock()
	defer defaults.mu.Unlock()
	if s := defaults.from[key]; s != nil {
		return s
	}
	if defaults.from == nil || len(defaults.from) >= maxCached {
		defaults.from = map[string]*specs.LinuxSeccomp{}
	}
	s := chooseDefault(caps, arch)
	defaults.from[key] = s
	return s
}

func chooseDefault(caps []string, arch string) *specs.LinuxSeccomp {
	s, err := choose(moby.DefaultProfile(), caps, arch)
	if err != nil {
		panic(err) // the profile is a constant
	}
	return s
}

// Load reads a profile in Docker's form, which knows conditions on
// capabilities, architecture and kernel version, and chooses what applies. It
// reads the OCI form too.
func Load(text []byte, caps []string, arch string) (*specs.LinuxSeccomp, error) {
	const limit = 4 << 20
	if len(text) > limit {
		return nil, errdefs.Newf(errdefs.Invalid, "read", "seccomp profile", "it has %d bytes, and %d is the most", len(text), limit)
	}
	var p moby.Seccomp
	if err := json.Unmarshal(text, &p); err != nil {
		return nil, errdefs.Newf(errdefs.Invalid, "read", "seccomp profile", "%w", err)
	}
	s, err := choose(&p, caps, arch)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, errdefs.Newf(errdefs.Invalid, "read", "seccomp profile", "it has no default action")
	}
	if _, err := check(s); err != nil {
		return nil, err
	}
	return s, nil
}

// choose keeps the entries that apply.
func choose(p *moby.Seccomp, caps []string, arch string) (*specs.LinuxSeccomp, error) {
	if arch == "" {
		arch = runtime.GOARCH
	}
	if p.DefaultAction == "" && len(p.Syscalls) == 0 {
		return nil, nil
	}
	if len(p.Architectures) > 0 && len(p.ArchMap) > 0 {
		return nil, bad("it has both architectures and archMap")
	}
	out := p.LinuxSeccomp
	out.Syscalls = nil
	me := archOfGo(arch)
	for _, a := range p.ArchMap {
		if a.Arch == me {
			out.Architectures = append([]specs.Arch{a.Arch}, a.SubArches...)
			break
		}
	}
	for _, c := range p.Syscalls {
		if c == nil {
			continue
		}
		if c.Excludes != nil && excluded(c.Excludes, caps, arch) || c.Includes != nil && !included(c.Includes, caps, arch) {
			continue
		}
		call := c.LinuxSyscall
		if c.Name != "" {
			if len(call.Names) > 0 {
				return nil, bad("an entry has both name and names")
			}
			call.Names = []string{c.Name}
		}
		out.Syscalls = append(out.Syscalls, call)
	}
	return &out, nil
}

// included reports whether all that an entry asks for is there.
func included(f *moby.Filter, caps []string, arch string) bool {
	if len(f.Arches) > 0 && !slices.Contains(f.Arches, libseccompName(arch)) {
		return false
	}
	for _, c := range f.Caps {
		if !slices.Contains(caps, c) {
			return false
		}
	}
	return f.MinKernel == nil || kernelAtLeast(*f.MinKernel)
}

// excluded reports whether anything is there that an entry is not for.
func excluded(f *moby.Filter, caps []string, arch string) bool {
	if slices.Contains(f.Arches, libseccompName(arch)) {
		return true
	}
	for _, c := range f.Caps {
		if slices.Contains(caps, c) {
			return true
		}
	}
	return f.MinKernel != nil && kernelAtLeast(*f.MinKernel)
}

// libseccompName is the name of a Go architecture in Docker's profiles.
func libseccompName(goarch string) string {
	switch goarch {
	case "386":
		return "x86"
	case "loong64":
		return "loongarch64"
	case "mips64le":
		return "mipsel64"
	case "mipsle":
		return "mipsel"
	}
	return goarch
}

func kernelAtLeast(v moby.KernelVersion) bool {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false
	}
	major, minor := release(unix.ByteSliceToString(u.Release[:]))
	return major > v.Kernel || major == v.Kernel && minor >= v.Major
}

// release splits "6.1.0-31-cloud-amd64" into 6 and 1.
func release(s string) (major, minor uint64) {
	a, rest, _ := strings.Cut(s, ".")
	return digits(a), digits(rest)
}

func digits(s string) (n uint64) {
	for i := 0; i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
		n = n*10 + uint64(s[i]-'0')
	}
	return n
}
