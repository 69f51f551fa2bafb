package ocispec

import (
	"runtime"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
)

// Host is the platform that this engine runs on.
func Host() Platform {
	return Normalise(Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH})
}

// ParsePlatform reads "os/arch[/variant]", "os" or "arch"; what is missing is
// the host's.
func ParsePlatform(s string) (Platform, error) {
	bad := func() (Platform, error) {
		return Platform{}, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "invalid platform %q: unknown operating system or architecture", s), "os/architecture[/variant], as in linux/arm64")
	}
	parts := strings.Split(s, "/")
	for i, p := range parts {
		if p == "" || len(p) > 64 || p[0] == '.' || strings.ContainsFunc(p, func(r rune) bool {
			return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '_' && r != '-' && r != '.'
		}) {
			what := "component"
			if i == 0 {
				what = "OS component"
			}
			return Platform{}, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "%q is an invalid %s of %q", p, what, s), "os/architecture[/variant], as in linux/arm64")
		}
		parts[i] = strings.ToLower(p)
		if i == 0 && parts[0] == "macos" {
			parts[0] = "darwin"
		}
	}
	var p Platform
	switch len(parts) {
	case 1:
		p = Host()
		if known := knownOS[parts[0]]; known {
			p.OS = parts[0]
		} else if n := Normalise(Platform{Architecture: parts[0]}); knownArch[n.Architecture] {
			p.Architecture, p.Variant = n.Architecture, n.Variant
		} else {
			return bad()
		}
	case 2:
		p = Platform{OS: parts[0], Architecture: parts[1]}
	case 3:
		p = Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
	default:
		return bad()
	}
	return Normalise(p), nil
}

var knownOS = set("linux windows darwin freebsd openbsd netbsd solaris android aix dragonfly illumos plan9 wasip1 js")
var knownArch = set("amd64 386 arm arm64 ppc64 ppc64le s390x riscv64 mips mipsle mips64 mips64le loong64 wasm")

func set(s string) map[string]bool {
	m := map[string]bool{}
	for f := range strings.FieldsSeq(s) {
		m[f] = true
	}
	return m
}

// Normalise gives a platform the spelling that indexes use.
func Normalise(p Platform) Platform {
	p.OS = strings.ToLower(p.OS)
	if p.OS == "macos" {
		p.OS = "darwin"
	}
	p.Architecture, p.Variant = strings.ToLower(p.Architecture), strings.ToLower(p.Variant)
	switch p.Architecture {
	case "i386", "i486", "i586", "i686":
		p.Architecture, p.Variant = "386", ""
	case "x86_64", "x86-64", "amd64":
		p.Architecture = "amd64"
		if p.Variant == "v1" {
			p.Variant = ""
		}
	case "aarch64", "arm64":
		p.Architecture = "arm64"
		if p.Variant == "8" || p.Variant == "v8" || p.Variant == "v8.0" {
			p.Variant = ""
		}
	case "armhf":
		p.Architecture, p.Variant = "arm", "v7"
	case "armel":
		p.Architecture, p.Variant = "arm", "v6"
	case "arm":
		switch p.Variant {
		case "", "7":
			p.Variant = "v7"
		case "5", "6", "8":
			p.Variant = "v" + p.Variant
		}
	}
	return p
}

// FormatPlatform spells p as ParsePlatform reads it.
func FormatPlatform(p Platform) string {
	if p.OS == "" && p.Architecture == "" {
		return "unknown"
	}
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// candidates lists the platforms whose programs run on p, the best first.
func candidates(p Platform) []Platform {
	p = Normalise(p)
	out := []Platform{{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}}
	add := func(arch, variant string) {
		out = append(out, Platform{OS: p.OS, Architecture: arch, Variant: variant})
	}
	older := func(variants ...string) {
		at := -1
		for i, v := range variants {
			if v == p.Variant {
				at = i
			}
		}
		for _, v := range variants[at+1:] {
			if at >= 0 {
				add(p.Architecture, v)
			}
		}
	}
	switch p.Architecture {
	case "amd64":
		older("v4", "v3", "v2", "")
		add("386", "")
	case "arm":
		older("v8", "v7", "v6", "v5")
	case "arm64":
		older("v9.5", "v9.4", "v9.3", "v9.2", "v9.1", "v9", "v8.6", "v8.5", "v8.4", "v8.3", "v8.2", "v8.1", "")
		for _, v := range []string{"v8", "v7", "v6", "v5"} {
			add("arm", v)
		}
	}
	return out
}

// MatchRank tells how well an image for have serves a machine of want: 0 is
// best, higher is worse, -1 not at all.
func MatchRank(want, have Platform) int {
	have = Normalise(have)
	for i, c := range candidates(want) {
		if c.OS == have.OS && c.Architecture == have.Architecture && c.Variant == have.Variant {
			return i
		}
	}
	return -1
}

// Matches reports whether an image for have runs on want.
func Matches(want, have Platform) bool { return MatchRank(want, have) >= 0 }

// Choose picks from an index the manifest that fits best; ok is false where
// none does. An entry without a platform fits where nothing else does, if it
// is the only one.
func Choose(entries []Descriptor, want Platform) (d Descriptor, ok bool) {
	best := -1
	var bare []Descriptor
	for _, e := range entries {
		if IsAttestation(e) {
			continue
		}
		if e.Platform == nil {
			if IsManifest(e.MediaType) {
				bare = append(bare, e)
			}
			continue
		}
		if r := MatchRank(want, *e.Platform); r >= 0 && (best < 0 || r < best) {
			best, d = r, e
		}
	}
	if best < 0 && len(bare) == 1 {
		return bare[0], true
	}
	return d, best >= 0
}

// Platforms lists what an index offers, for messages.
func Platforms(entries []Descriptor) []string {
	var out []string
	for _, e := range entries {
		if e.Platform != nil && !IsAttestation(e) {
			out = append(out, FormatPlatform(*e.Platform))
		}
	}
	return out
}
