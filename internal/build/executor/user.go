package executor

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/onggi/onggi/internal/errdefs"
)

// maxUserFile bounds what is read of an image's /etc/passwd and /etc/group.
const maxUserFile = 10 << 20

// userFiles opens a file of the image; it returns an error where there is none.
type userFiles func(path string) (io.ReadCloser, error)

// lookUpUser resolves USER: name, uid, name:group or uid:gid.
func lookUpUser(name string, open userFiles) (specs.User, error) {
	var u specs.User
	user, group, hasGroup := strings.Cut(name, ":")
	if user == "" {
		user = "0"
	}
	uid, numeric := parseID(user)
	found := false
	err := eachLine(open, "/etc/passwd", 7, func(f []string) bool {
		id, ok := parseID(f[2])
		if !ok || f[0] != user && !(numeric && id == uid) {
			return true
		}
		found = true
		u.UID = id
		u.GID, _ = parseID(f[3])
		user = f[0]
		return false
	})
	if err != nil {
		return u, err
	}
	if !found {
		if !numeric {
			return u, errdefs.WithHint(
				errdefs.Newf(errdefs.Invalid, "run", "build step", "unable to find user %s: no matching entries in passwd file", name),
				"create it in the image, or use a numeric id")
		}
		u.UID = uid
	}
	if hasGroup && group != "" {
		return u, setGroup(&u, group, open)
	}
	if found {
		err = eachLine(open, "/etc/group", 4, func(f []string) bool {
			if gid, ok := parseID(f[2]); ok && slices.Contains(strings.Split(f[3], ","), user) && gid != u.GID {
				u.AdditionalGids = append(u.AdditionalGids, gid)
			}
			return true
		})
	}
	u.AdditionalGids = append([]uint32{u.GID}, u.AdditionalGids...)
	return u, err
}

// homeOf is the home directory that the image has for a user; "/" where it does
// not say.
func homeOf(uid uint32, open userFiles) string {
	home := ""
	// What cannot be read was an error when the user was looked up.
	eachLine(open, "/etc/passwd", 7, func(f []string) bool {
		if id, ok := parseID(f[2]); ok && id == uid {
			home = f[5]
		}
		return home == ""
	})
	if home == "" {
		return "/"
	}
	return home
}

// withHome adds HOME to an environment that has none.
func withHome(env []string, home string) []string {
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		return env
	}
	return append(slices.Clone(env), "HOME="+home)
}

func setGroup(u *specs.User, group string, open userFiles) error {
	gid, numeric := parseID(group)
	found := numeric
	err := eachLine(open, "/etc/group", 4, func(f []string) bool {
		if f[0] != group {
			return true
		}
		if id, ok := parseID(f[2]); ok {
			gid, found = id, true
		}
		return false
	})
	if err != nil {
		return err
	}
	if !found {
		return errdefs.WithHint(
			errdefs.Newf(errdefs.Invalid, "run", "build step", "unable to find group %s: no matching entries in group file", group),
			"create it in the image, or use a numeric id")
	}
	u.GID = gid
	u.AdditionalGids = []uint32{gid}
	return nil
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err == nil
}

// eachLine calls f with the fields of each well-formed line, until f says no.
// A missing file has no lines.
func eachLine(open userFiles, path string, fields int, f func([]string) bool) error {
	r, err := open(path)
	if err != nil {
		return nil
	}
	defer r.Close()
	lr := &io.LimitedReader{R: r, N: maxUserFile + 1}
	sc := bufio.NewScanner(lr)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		parts := strings.Split(line, ":")
		for len(parts) < fields {
			parts = append(parts, "")
		}
		if !f(parts) {
			return nil
		}
	}
	if err := sc.Err(); err != nil {
		return errdefs.New(errdefs.Invalid, "read", path+" of the image", err)
	}
	if lr.N == 0 {
		return errdefs.New(errdefs.Invalid, "read", path+" of the image", fmt.Errorf("it is larger than %d bytes", maxUserFile))
	}
	return nil
}
