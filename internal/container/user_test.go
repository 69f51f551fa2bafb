package container

import (
	"io"
	"slices"
	"strings"
	"testing"
)

const testPasswd = `root:x:0:0:root:/root:/bin/sh
# comment
app:x:1000:1000:App:/home/app:/bin/sh
4294967296:x:0:0:evil:/:/bin/sh
bad:x:-1:0::/:/bin/sh
nohome:x:5:5:::
`

const testGroup = `root:x:0:
app:x:1000:
wheel:x:10:root,app
video:x:44:app
twin:x:77:
twin:x:78:
`

func TestResolveUser(t *testing.T) {
	for _, c := range []struct {
		spec     string
		extra    []string
		uid, gid uint32
		groups   []uint32
		home     string
		bad      bool
	}{
		{spec: "", gid: 0, groups: []uint32{0, 10}, home: "/root"},
		{spec: "app", uid: 1000, gid: 1000, groups: []uint32{1000, 10, 44}, home: "/home/app"},
		{spec: "1000", uid: 1000, gid: 1000, groups: []uint32{1000, 10, 44}, home: "/home/app"},
		{spec: "1:", uid: 1, gid: 0, groups: []uint32{0}, home: "/"},
		{spec: "01", uid: 1, gid: 0, groups: []uint32{0}, home: "/"},
		{spec: "app:video", uid: 1000, gid: 44, groups: []uint32{44}, home: "/home/app"},
		{spec: "app:7", uid: 1000, gid: 7, groups: []uint32{7}, home: "/home/app"},
		{spec: "65534", uid: 65534, gid: 0, groups: []uint32{0}, home: "/"},
		{spec: "2147483647", uid: 1<<31 - 1, groups: []uint32{0}, home: "/"},
		{spec: "nohome", uid: 5, gid: 5, groups: []uint32{5}, home: "/"},
		{spec: "app", extra: []string{"twin", "99"}, uid: 1000, gid: 1000, groups: []uint32{1000, 10, 44, 99, 77}, home: "/home/app"},
		{spec: "2147483648", bad: true},
		{spec: "4294967295", bad: true},
		{spec: "4294967296", bad: true}, // there is an entry of this name, with uid 0
		{spec: "+1", bad: true},
		{spec: "-1", bad: true},
		{spec: "0x0", bad: true},
		{spec: "bad", bad: true},
		{spec: "：0", bad: true},
		{spec: "root\nevil", bad: true},
		{spec: "app:none", bad: true},
		{spec: "app", extra: []string{"none"}, bad: true},
	} {
		id, err := resolveUser(c.spec, c.extra, strings.NewReader(testPasswd), strings.NewReader(testGroup))
		if (err != nil) != c.bad {
			t.Errorf("%q: error %v", c.spec, err)
			continue
		}
		if err != nil {
			continue
		}
		if id.UID != c.uid || id.GID != c.gid || !slices.Equal(id.Groups, c.groups) || id.Home != c.home {
			t.Errorf("%q: %+v", c.spec, id)
		}
	}
	if id, err := resolveUser("12", nil, nil, nil); err != nil || id.UID != 12 || id.GID != 0 {
		t.Errorf("without files: %+v, %v", id, err)
	}
	if _, err := resolveUser("app", nil, nil, nil); err == nil {
		t.Error("a name without a passwd file was accepted")
	}
}

// A hostile passwd file costs neither memory nor time.
func TestResolveUserBounds(t *testing.T) {
	if _, err := resolveUser("app", nil, io.LimitReader(endless('x'), 1<<30), nil); err == nil {
		t.Error("a line without end was accepted")
	}
	if _, err := resolveUser("app", nil, io.LimitReader(endless('\n'), 1<<30), nil); err == nil {
		t.Error("a file without end was accepted")
	}
}

type endless byte

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = byte(e)
	}
	return len(p), nil
}

// Whatever the files say: a number is that number, and nobody becomes root by
// being something else.
func FuzzResolveUser(f *testing.F) {
	f.Add("app:video", testPasswd, testGroup)
	f.Add("1000", testPasswd, testGroup)
	f.Add("4294967296", testPasswd, testGroup)
	f.Fuzz(func(t *testing.T, spec, passwd, group string) {
		id, err := resolveUser(spec, nil, strings.NewReader(passwd), strings.NewReader(group))
		if err != nil {
			return
		}
		user, _, _ := strings.Cut(spec, ":")
		if n, ok := plainNumber(user); ok && id.UID != n {
			t.Fatalf("%q became uid %d", spec, id.UID)
		}
		if id.UID > maxUID || len(id.Groups) == 0 || strings.Contains(id.Home, "\n") {
			t.Fatalf("%q: %+v", spec, id)
		}
	})
}
