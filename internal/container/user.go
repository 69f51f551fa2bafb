package container

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
)

// maxAccounts bounds the image's passwd and group files, which are hostile
// until read.
const (
	maxAccounts    = 10 << 20
	maxAccountLine = 64 << 10
	maxUID         = 1<<31 - 1
)

// identity is who a process runs as.
type identity struct {
	UID, GID uint32
	Groups   []uint32 // supplementary, the primary one included
	Home     string
	Name     string
}

// resolveUser turns "user", "uid", "user:group" into numbers with the image's
// own accounts. A number is exactly that, and never looked up as a name; what
// is not a number must be in the file. passwd and group may be nil.
func resolveUser(spec string, extra []string, passwd, group io.Reader) (identity, error) {
	id := identity{Home: "/"}
	userArg, groupArg, _ := strings.Cut(spec, ":")
	uid, userIsNum, err := accountNumber("user", userArg)
	if err != nil {
		return id, err
	}
	found := false
	if userArg == "" {
		userIsNum = true
	}
	if userIsNum {
		id.UID = uid
	}
	if passwd != nil {
		err := eachAccount(passwd, func(f []string) bool {
			if len(f) < 4 {
				return true
			}
			u, uok := plainNumber(f[2])
			g, gok := plainNumber(f[3])
			if !uok || !gok || userIsNum && u != uid || !userIsNum && f[0] != userArg {
				return true
			}
			id.UID, id.GID, id.Name, found = u, g, f[0], true
			if len(f) > 5 && f[5] != "" {
				id.Home = f[5]
			}
			return false
		})
		if err != nil {
			return id, fmt.Errorf("/etc/passwd: %w", err)
		}
	}
	if !found && !userIsNum {
		return id, errdefs.WithHint(invalid("unable to find user %s: no matching entries in passwd file", clip(userArg)), "name a user of the image, or a number")
	}
	if strings.ContainsAny(id.Home, "\r\n\x00") {
		id.Home = "/"
	}
	if err := id.resolveGroups(groupArg, extra, group); err != nil {
		return id, err
	}
	return id, nil
}

// resolveGroups sets the primary group where one is named, and the
// supplementary ones: those of the user's name (not when a group is named),
// those added, and the primary itself.
func (id *identity) resolveGroups(groupArg string, extra []string, group io.Reader) error {
	byName := map[string]*uint32{}
	var wanted []string
	if groupArg != "" {
		g, num, err := accountNumber("group", groupArg)
		if err != nil {
			return err
		}
		if num {
			id.GID = g
		} else {
			byName[groupArg] = nil
		}
	}
	var added []uint32
	for _, e := range extra {
		g, num, err := accountNumber("group", e)
		if err != nil {
			return err
		}
		if num {
			added = append(added, g)
		} else {
			byName[e] = nil
			wanted = append(wanted, e)
		}
	}
	var member []uint32
	if group != nil && (len(byName) > 0 || id.Name != "" && groupArg == "") {
		err := eachAccount(group, func(f []string) bool {
			if len(f) < 3 {
				return true
			}
			g, ok := plainNumber(f[2])
			if !ok {
				return true
			}
			if have, want := byName[f[0]]; want && have == nil {
				byName[f[0]] = &g
			}
			if len(f) > 3 && id.Name != "" && groupArg == "" && slices.Contains(strings.Split(f[3], ","), id.Name) {
				member = append(member, g)
			}
			return true
		})
		if err != nil {
			return fmt.Errorf("/etc/group: %w", err)
		}
	}
	if g, named := byName[groupArg]; named && groupArg != "" {
		if g == nil {
			return invalid("unable to find group %s: no matching entries in group file", clip(groupArg))
		}
		id.GID = *g
	}
	id.Groups = []uint32{id.GID}
	for _, name := range wanted {
		if byName[name] == nil {
			return invalid("unable to find group %s: no matching entries in group file", clip(name))
		}
		added = append(added, *byName[name])
	}
	for _, g := range append(member, added...) {
		if !slices.Contains(id.Groups, g) {
			id.Groups = append(id.Groups, g)
		}
	}
	return nil
}

// accountNumber reads a number; what looks like one but is out of range is an
// error rather than a name.
func accountNumber(what, s string) (n uint32, isNum bool, err error) {
	if digits := strings.TrimPrefix(s, "-"); digits == "" || strings.Trim(digits, "0123456789") != "" {
		if strings.ContainsAny(s, "\r\n\x00") {
			return 0, false, invalid("invalid %s %q", what, clip(s))
		}
		return 0, false, nil
	}
	n, ok := plainNumber(s)
	if !ok {
		return 0, false, invalid("uids and gids must be in range 0-%d: %s", maxUID, clip(s))
	}
	return n, true, nil
}

// plainNumber accepts decimal digits up to maxUID and nothing else.
func plainNumber(s string) (uint32, bool) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}

// eachAccount calls f with the fields of each line until it returns false.
func eachAccount(r io.Reader, f func([]string) bool) error {
	lr := &io.LimitedReader{R: r, N: maxAccounts + 1}
	sc := bufio.NewScanner(lr)
	sc.Buffer(make([]byte, 0, 4096), maxAccountLine)
	for sc.Scan() {
		line := bytes.TrimSpace(sc.Bytes())
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if !f(strings.Split(string(line), ":")) {
			return nil
		}
	}
	if err := sc.Err(); err != nil {
		return err
	}
	if lr.N <= 0 {
		return fmt.Errorf("larger than %d bytes", maxAccounts)
	}
	return nil
}
