// Package reference reads and writes the names of images as people and
// registries spell them.
//
// # Model
//
// A Ref is domain/path[:tag][@digest]. What people type is completed as
// Docker does: "debian" is docker.io/library/debian. Familiar takes the same
// parts away again.
//
// # Guarantees
//
// Parse gives the verdicts of the distribution project's grammar, with one
// exception: a name whose first component looks like a host but is none
// ("a_b.c/d") is refused, where the project returns a name without a host.
// Parse(r.String()) and Parse(r.Familiar()) give r again.
//
// # Not here
//
// Looking names up (image), and talking to the host (registry). The package
// has no initialisation and no regular expressions: the command line links it.
package reference

import (
	"fmt"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
)

const (
	// DefaultDomain is the registry of names that do not say one.
	DefaultDomain = "docker.io"
	// DefaultTag is what a name without tag and digest means to a registry.
	DefaultTag = "latest"

	legacyDomain = "index.docker.io"
	official     = "library/"
	maxPath      = 255
	maxTag       = 128
)

// Ref is a normalised image name. Tag and Digest may be empty; Domain and Path
// never are, except in the zero Ref.
type Ref struct{ Domain, Path, Tag, Digest string }

// Parse reads a name. It adds the domain and "library/" where they are
// missing, and no tag.
func Parse(s string) (Ref, error) {
	bad := func(why, hint string) (Ref, error) {
		return Ref{}, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "invalid reference format: %q: %s", s, why), hint)
	}
	if s == "" {
		return bad("the name is empty", "")
	}
	if IsID(s) {
		return bad("64 hexadecimal digits are an image ID, not a name", "")
	}
	domain, rest := splitDomain(s)
	name, _, _ := strings.Cut(rest, ":")
	if strings.ToLower(name) != name {
		lower := strings.ToLower(s)
		if _, err := Parse(lower); err != nil {
			lower = ""
		}
		return bad("repository name must be lowercase", lower)
	}
	r := Ref{Domain: domain}
	if i := strings.IndexByte(rest, '@'); i >= 0 {
		rest, r.Digest = rest[:i], rest[i+1:]
		if !ValidDigest(r.Digest) {
			return bad("the digest is not algorithm:hex, as in sha256:…", "")
		}
	}
	var tagged bool
	if r.Path, r.Tag, tagged = strings.Cut(rest, ":"); tagged && !ValidTag(r.Tag) {
		return Ref{}, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "invalid reference format"),
			fmt.Sprintf("the tag %q: use up to 128 letters, digits, '_', '.', '-', starting with none of the last two", r.Tag))
	}
	switch {
	case !validDomain(r.Domain):
		return bad("the registry host is not valid", "")
	case !validPath(r.Path):
		return bad("components are lower-case letters and digits, separated by '.', '_', '__' or dashes", "")
	case len(r.Path) > maxPath:
		return bad(fmt.Sprintf("repository name must not be more than %d characters", maxPath), "")
	}
	return r, nil
}

// splitDomain decides whether the first component is a host.
func splitDomain(s string) (domain, rest string) {
	first, rest, found := strings.Cut(s, "/")
	switch {
	case !found:
		return DefaultDomain, official + s
	case first == legacyDomain || first == DefaultDomain:
		domain = DefaultDomain
	case first == "localhost" || strings.ContainsAny(first, ".:") || strings.ToLower(first) != first:
		return first, rest
	default:
		domain, rest = DefaultDomain, s
	}
	if !strings.Contains(rest, "/") {
		rest = official + rest
	}
	return domain, rest
}

// IsZero reports whether r is no name at all.
func (r Ref) IsZero() bool { return r == Ref{} }

// Name is the repository: domain/path.
func (r Ref) Name() string {
	if r.Domain == "" {
		return r.Path
	}
	return r.Domain + "/" + r.Path
}

// String is the whole name in normal form.
func (r Ref) String() string { return r.Name() + r.suffix() }

// FamiliarName is the repository as Docker shows it.
func (r Ref) FamiliarName() string {
	if r.Domain != DefaultDomain {
		return r.Name()
	}
	if p, ok := strings.CutPrefix(r.Path, official); ok && !strings.Contains(p, "/") {
		return p
	}
	return r.Path
}

// Familiar is the whole name as Docker shows it.
func (r Ref) Familiar() string { return r.FamiliarName() + r.suffix() }

func (r Ref) suffix() string {
	var s string
	if r.Tag != "" {
		s = ":" + r.Tag
	}
	if r.Digest != "" {
		s += "@" + r.Digest
	}
	return s
}

// Repository is r without tag and digest.
func (r Ref) Repository() Ref { return Ref{Domain: r.Domain, Path: r.Path} }

// OrLatest adds the default tag where r has neither tag nor digest.
func (r Ref) OrLatest() Ref {
	if r.Tag == "" && r.Digest == "" {
		r.Tag = DefaultTag
	}
	return r
}

// WithTag is r's repository with the tag, and no digest.
func (r Ref) WithTag(tag string) (Ref, error) {
	if !ValidTag(tag) {
		return Ref{}, errdefs.Newf(errdefs.Invalid, "", "", "invalid tag format: %q", tag)
	}
	return Ref{Domain: r.Domain, Path: r.Path, Tag: tag}, nil
}

// WithDigest is r's repository with the digest, and no tag.
func (r Ref) WithDigest(d string) (Ref, error) {
	if !ValidDigest(d) {
		return Ref{}, errdefs.Newf(errdefs.Invalid, "", "", "invalid digest format: %q", d)
	}
	return Ref{Domain: r.Domain, Path: r.Path, Digest: d}, nil
}

// ValidTag reports whether s can be a tag.
func ValidTag(s string) bool {
	if s == "" || len(s) > maxTag || s[0] == '.' || s[0] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; !alnum(c) && c != '_' && c != '.' && c != '-' {
			return false
		}
	}
	return true
}

// ValidDigest reports whether s is a digest by an algorithm in use.
func ValidDigest(s string) bool {
	alg, enc, _ := strings.Cut(s, ":")
	switch alg {
	case "sha256":
		return len(enc) == 64 && isHex(enc)
	case "sha384":
		return len(enc) == 96 && isHex(enc)
	case "sha512":
		return len(enc) == 128 && isHex(enc)
	}
	return false
}

// IsID reports whether s is a full image ID without its algorithm.
func IsID(s string) bool { return len(s) == 64 && isHex(s) }

func isHex(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

func validDomain(s string) bool {
	if strings.HasPrefix(s, "[") {
		addr, port, ok := strings.Cut(s[1:], "]")
		if !ok || addr == "" {
			return false
		}
		for i := range len(addr) {
			if c := addr[i]; c != ':' && !hexDigit(c) {
				return false
			}
		}
		return port == "" || port[0] == ':' && digits(port[1:])
	}
	host, port, hasPort := strings.Cut(s, ":")
	if hasPort && !digits(port) {
		return false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if !alnum(label[i]) && label[i] != '-' {
				return false
			}
		}
	}
	return true
}

func validPath(s string) bool {
	for part := range strings.SplitSeq(s, "/") {
		if !validComponent(part) {
			return false
		}
	}
	return true
}

// validComponent accepts runs of letters and digits with one separator
// between two runs.
func validComponent(s string) bool {
	for i := 0; ; {
		start := i
		for i < len(s) && lowerOrDigit(s[i]) {
			i++
		}
		if i == start {
			return false
		}
		if i == len(s) {
			return true
		}
		switch s[i] {
		case '.':
			i++
		case '_':
			if i++; i < len(s) && s[i] == '_' {
				i++
			}
		case '-':
			for i < len(s) && s[i] == '-' {
				i++
			}
		default:
			return false
		}
	}
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

func lowerOrDigit(c byte) bool { return c >= 'a' && c <= 'z' || c >= '0' && c <= '9' }
func alnum(c byte) bool        { return lowerOrDigit(c) || c >= 'A' && c <= 'Z' }
func hexDigit(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}
