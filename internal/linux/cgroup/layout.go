package cgroup

import (
	"bufio"
	"io"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/errdefs"
)

// Mode says which versions of control groups are mounted.
type Mode uint8

const (
	V1     Mode = iota + 1 // controllers in hierarchies of their own
	V2                     // one hierarchy
	Hybrid                 // v1 for the controllers, and a v2 hierarchy beside them
)

func (m Mode) String() string {
	switch m {
	case V1:
		return "v1"
	case V2:
		return "v2"
	case Hybrid:
		return "hybrid"
	}
	return "none"
}

// Detect says which mode the machine is in.
func Detect() (Mode, error) {
	l, err := current()
	if err != nil {
		return 0, err
	}
	return l.mode, nil
}

// Controllers lists what can be limited here, such as "cpu" and "memory".
func Controllers() ([]string, error) {
	l, err := current()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, h := range l.hiers {
		for _, c := range h.controllers {
			if l.find(c) == h && !strings.HasPrefix(c, "name=") {
				out = append(out, c)
			}
		}
	}
	return out, nil
}

// Mounts lists the mount points of the hierarchies in use, by controller; the
// unified one has the key "".
func Mounts() (map[string]string, error) {
	l, err := current()
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, h := range l.hiers {
		if h.v2 {
			out[""] = h.dir
			continue
		}
		for _, c := range h.controllers {
			out[c] = h.dir
		}
	}
	return out, nil
}

// A hierarchy is one mounted tree of groups.
type hierarchy struct {
	dir         string   // where it is mounted
	root        string   // which of its groups is seen there
	controllers []string // "cpu", "cpuacct"; "name=systemd" for a tree without controllers
	v2          bool
}

// key names the hierarchy in Paths.
func (h *hierarchy) key() string {
	if h.v2 {
		return ""
	}
	return h.controllers[0]
}

// layout is what is mounted where. It does not change while we run.
type layout struct {
	mode  Mode
	hiers []*hierarchy
	// self finds the caller's own group in a hierarchy; for relative paths.
	self func(*hierarchy) (string, error)
}

// find returns the hierarchy that has the controller, nil if none has. A v1
// hierarchy takes precedence: the kernel gives a controller to one at a time.
func (l *layout) find(controller string) *hierarchy {
	var unified *hierarchy
	for _, h := range l.hiers {
		for _, c := range h.controllers {
			if c != controller {
				continue
			}
			if !h.v2 {
				return h
			}
			unified = h
		}
	}
	return unified
}

func (l *layout) unified() *hierarchy {
	for _, h := range l.hiers {
		if h.v2 {
			return h
		}
	}
	return nil
}

const defaultDir = "/sys/fs/cgroup"

var current = sync.OnceValues(func() (*layout, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(defaultDir, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return newLayout([]*hierarchy{{dir: defaultDir, v2: true}})
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	hiers, err := parseMountinfo(f)
	if err != nil {
		return nil, err
	}
	return newLayout(hiers)
})

func newLayout(hiers []*hierarchy) (*layout, error) {
	l := &layout{hiers: hiers, self: selfGroup}
	v1, v2 := false, false
	for _, h := range hiers {
		if !h.v2 {
			v1 = v1 || !strings.HasPrefix(h.controllers[0], "name=")
			continue
		}
		v2 = true
	}
	for _, h := range hiers {
		if !h.v2 {
			continue
		}
		// Beside v1, v2 lends what its owner has enabled for groups below the
		// root; enabling more would change the whole machine.
		file := pick(v1, "/cgroup.subtree_control", "/cgroup.controllers")
		s, err := readFile(h.dir + file)
		if err != nil {
			return nil, errdefs.New(kindOf(err), "read", "control group controllers of "+h.dir, err)
		}
		h.controllers = strings.Fields(s)
	}
	switch {
	case v1 && v2:
		l.mode = Hybrid
	case v1:
		l.mode = V1
	case v2:
		// A machine with v2 only may still mount name=systemd for old programs.
		l.mode = V2
		l.hiers = []*hierarchy{l.unified()}
	default:
		return nil, errdefs.WithHint(
			errdefs.Newf(errdefs.Unsupported, "find", "control groups", "no hierarchy is mounted"),
			"mount -t cgroup2 none "+defaultDir)
	}
	return l, nil
}

// v1Controllers are the options of a cgroup v1 mount that name a controller.
var v1Controllers = map[string]bool{
	"cpu": true, "cpuacct": true, "cpuset": true, "memory": true, "devices": true, "freezer": true,
	"blkio": true, "pids": true, "hugetlb": true, "net_cls": true, "net_prio": true,
	"perf_event": true, "rdma": true, "misc": true,
}

// parseMountinfo finds the hierarchies among the mounts. Of several mounts of
// one hierarchy the first is taken.
func parseMountinfo(r io.Reader) ([]*hierarchy, error) {
	var out []*hierarchy
	seen := map[string]bool{}
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 64<<10), 1<<20)
	for sc.Scan() {
		// 36 35 98:0 /root /mount/point rw,noatime shared:1 - type source options
		head, tail, ok := strings.Cut(sc.Text(), " - ")
		fields, end := strings.Fields(head), strings.Fields(tail)
		if !ok || len(fields) < 6 || len(end) < 3 {
			continue
		}
		h := &hierarchy{root: unescape(fields[3]), dir: unescape(fields[4])}
		var id string
		switch end[0] {
		case "cgroup2":
			h.v2 = true
		case "cgroup":
			for _, o := range strings.Split(end[2], ",") {
				if v1Controllers[o] || o == "name=systemd" {
					h.controllers = append(h.controllers, o)
				}
			}
			if h.controllers == nil {
				continue // another named tree: not ours to join
			}
			id = h.controllers[0]
		default:
			continue
		}
		if seen[id] {
			continue
		}
		seen[id] = true
		out = append(out, h)
	}
	return out, sc.Err()
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && isOctal(s[i+1]) && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return '0' <= c && c <= '7' }

// selfGroup is the caller's own group in h, as a path below its mount point.
func selfGroup(h *hierarchy) (string, error) {
	s, err := readFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	p, ok := parseProcCgroup(s, h)
	if !ok {
		return "", errdefs.Newf(errdefs.NotFound, "find", "own control group", "no %q in /proc/self/cgroup", h.key())
	}
	return below(h.root, p), nil
}

// below makes a path from the hierarchy's root one from its mount point, when
// only the group root of it is mounted. A path that is not in sight is the
// mount point itself.
func below(root, p string) string {
	if root == "" || root == "/" {
		return p
	}
	if p == root {
		return "/"
	}
	if rest, ok := strings.CutPrefix(p, root+"/"); ok {
		return "/" + rest
	}
	return "/"
}

// parseProcCgroup finds h's line in the text of a /proc/<pid>/cgroup.
func parseProcCgroup(text string, h *hierarchy) (string, bool) {
	for line := range strings.SplitSeq(text, "\n") {
		_, rest, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		controllers, p, ok := strings.Cut(rest, ":")
		if !ok || !strings.HasPrefix(p, "/") {
			continue
		}
		// The group of a process whose group was removed has this mark.
		p = strings.TrimSuffix(p, " (deleted)")
		if h.v2 {
			if controllers == "" {
				return path.Clean(p), true
			}
			continue
		}
		for c := range strings.SplitSeq(controllers, ",") {
			if c == h.controllers[0] {
				return path.Clean(p), true
			}
		}
	}
	return "", false
}
