package cli

import (
	"archive/tar"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

func copyCommands() []command {
	return []command{
		{paths: []string{"cp", "container cp"}, args: "[OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n        onggi cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH", short: "Copy files between a container and this computer", min: 2, max: 2, setup: setupCopy},
	}
}

func setupCopy(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	archive := f.BoolP("archive", "a", false, "keep owners")
	follow := f.BoolP("follow-link", "L", false, "follow a symbolic link at the source")
	quiet := f.BoolP("quiet", "q", false, "say nothing")
	return func(ctx context.Context, args []string) error {
		from, src := splitContainer(args[0])
		to, dst := splitContainer(args[1])
		c := &copier{env: e, archive: *archive, follow: *follow, quiet: *quiet}
		switch {
		case from != "" && to != "":
			return &hinted{errors.New("copying between two containers is not supported"), "onggi cp A:/path - | onggi cp - B:/path"}
		case from == "" && to == "":
			return &usageError{text: "one of the two must be CONTAINER:PATH"}
		case from != "":
			return c.out(ctx, from, src, dst)
		}
		return c.in(ctx, src, to, dst)
	}
}

// splitContainer cuts CONTAINER:PATH; a path of this computer has no container.
func splitContainer(s string) (container, p string) {
	if s == "-" || strings.HasPrefix(s, "/") || strings.HasPrefix(s, ".") {
		return "", s
	}
	name, p, ok := strings.Cut(s, ":")
	if !ok || strings.Contains(name, "/") {
		return "", s
	}
	return name, p
}

type copier struct {
	*env
	archive, follow, quiet bool
}

// pathStat is what the engine says of a path in a container.
type pathStat struct {
	Name       string      `json:"name"`
	Size       int64       `json:"size"`
	Mode       os.FileMode `json:"mode"`
	LinkTarget string      `json:"linkTarget"`
}

func readStat(h map[string]string) (pathStat, error) {
	var s pathStat
	data, err := base64.StdEncoding.DecodeString(h["x-docker-container-path-stat"])
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err != nil {
		return s, fmt.Errorf("read the engine's description of the path: %w", err)
	}
	return s, nil
}

func (c *copier) stat(ctx context.Context, container, p string) (pathStat, error) {
	resp, err := c.do(ctx, api.Request{Method: "HEAD", Path: "/containers/" + url.PathEscape(container) + "/archive", Query: url.Values{"path": {p}}})
	if err != nil {
		return pathStat{}, err
	}
	defer resp.Body.Close()
	return readStat(resp.Header)
}

// out copies from a container.
func (c *copier) out(ctx context.Context, container, src, dst string) error {
	if c.follow {
		if s, err := c.stat(ctx, container, src); err == nil && s.LinkTarget != "" {
			src = s.LinkTarget
			if !path.IsAbs(src) {
				src = path.Join(path.Dir(src), s.LinkTarget)
			}
		}
	}
	resp, err := c.do(ctx, api.Request{Method: "GET", Path: "/containers/" + url.PathEscape(container) + "/archive", Query: url.Values{"path": {src}}})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if dst == "-" {
		if isTerminal(c.env.out) {
			return &hinted{errors.New("an archive would spoil the terminal"), "redirect the output"}
		}
		_, err := io.Copy(c.env.out, resp.Body)
		return err
	}
	st, err := readStat(resp.Header)
	if err != nil {
		return err
	}
	// What is copied becomes dst, or goes into it where dst is a directory.
	dir, name := dst, st.Name
	onlyContents := strings.HasSuffix(src, "/.") || src == "." || src == "/"
	switch fi, err := os.Stat(dst); {
	case err == nil && fi.IsDir():
		if onlyContents {
			name = "."
		}
	case err == nil && st.Mode.IsDir():
		return fmt.Errorf("cannot copy a directory over the file %s", dst)
	case err == nil || os.IsNotExist(err):
		if strings.HasSuffix(dst, "/") && !st.Mode.IsDir() {
			return fmt.Errorf("the directory %s does not exist", dst)
		}
		dir, name = filepath.Dir(dst), filepath.Base(dst)
		if _, err := os.Stat(dir); err != nil {
			return fmt.Errorf("copy to %s: %w", dst, err)
		}
	default:
		return err
	}
	n, err := c.unpack(resp.Body, dir, name)
	if err == nil && !c.quiet {
		fmt.Fprintf(c.err, "Successfully copied %s to %s\n", humanSize(n), dst)
	}
	return err
}

// unpack writes an archive under dir; its first name is replaced by name.
// os.Root keeps what the container made up inside dir.
func (c *copier) unpack(r io.Reader, dir, name string) (int64, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return 0, err
	}
	defer root.Close()
	tr := tar.NewReader(r)
	var total int64
	first, started := "", false // "" where the archive has what is in a directory
	type late struct {
		name string
		h    *tar.Header
	}
	var dirs []late
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return total, fmt.Errorf("read the archive: %w", err)
		}
		entry := path.Clean("/" + h.Name)[1:]
		if !started {
			first, _, _ = strings.Cut(entry, "/")
			started = true
		}
		rest := strings.TrimPrefix(strings.TrimPrefix(entry, first), "/")
		target := path.Join(name, rest)
		if err := c.entry(root, tr, h, target, first, name); err != nil {
			return total, err
		}
		total += h.Size
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, late{target, h})
		}
	}
	for i := len(dirs) - 1; i >= 0; i-- { // writing into a directory changed its time
		root.Chmod(dirs[i].name, dirs[i].h.FileInfo().Mode().Perm())
		root.Chtimes(dirs[i].name, dirs[i].h.ModTime, dirs[i].h.ModTime)
	}
	return total, nil
}

func (c *copier) entry(root *os.Root, tr *tar.Reader, h *tar.Header, target, first, name string) error {
	mode := h.FileInfo().Mode()
	if target != "." {
		if d := path.Dir(target); d != "." {
			if err := root.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		if h.Typeflag != tar.TypeDir {
			if fi, err := root.Lstat(target); err == nil {
				if fi.IsDir() {
					return fmt.Errorf("cannot copy a file over the directory %s", target)
				}
				root.Remove(target)
			}
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if target == "." {
			return nil
		}
		if err := root.Mkdir(target, mode.Perm()|0o700); err != nil && !os.IsExist(err) {
			return err
		}
	case tar.TypeReg:
		f, err := root.OpenFile(target, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode.Perm())
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, tr); err != nil {
			f.Close()
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		root.Chmod(target, mode.Perm())
		root.Chtimes(target, h.ModTime, h.ModTime)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, target)
	case tar.TypeLink:
		old := strings.TrimPrefix(strings.TrimPrefix(path.Clean("/" + h.Linkname)[1:], first), "/")
		return root.Link(path.Join(name, old), target)
	default:
		return nil // devices and pipes stay in the container
	}
	if c.archive && os.Geteuid() == 0 {
		return root.Lchown(target, h.Uid, h.Gid)
	}
	return nil
}

// in copies into a container.
func (c *copier) in(ctx context.Context, src, container, dst string) error {
	st, serr := c.stat(ctx, container, dst)
	if serr != nil && !isNotFound(serr) {
		return serr
	}
	if serr == nil && st.LinkTarget != "" {
		target := st.LinkTarget
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(dst), target)
		}
		if t, err := c.stat(ctx, container, target); err == nil {
			dst, st = target, t
		}
	}
	isDir := serr == nil && st.Mode.IsDir()
	if src == "-" {
		if serr != nil {
			return serr
		}
		if !isDir {
			return fmt.Errorf("the destination %s:%s must be a directory for an archive", container, dst)
		}
		return c.put(ctx, container, dst, c.env.in)
	}
	look := os.Lstat
	if c.follow || strings.HasSuffix(src, "/") {
		look = os.Stat
	}
	fi, err := look(src)
	if err != nil {
		return err
	}
	base := filepath.Base(src)
	if abs, err := filepath.Abs(src); err == nil {
		base = filepath.Base(abs)
	}
	dir, name := dst, base
	switch {
	case isDir && fi.IsDir() && (strings.HasSuffix(src, "/.") || src == "."):
		name = "."
	case isDir:
	case serr == nil && fi.IsDir():
		return fmt.Errorf("cannot copy a directory over the file %s:%s", container, dst)
	case strings.HasSuffix(dst, "/") && !fi.IsDir():
		return fmt.Errorf("the directory %s:%s does not exist", container, dst)
	default:
		dir, name = path.Dir(path.Clean("/"+dst)), path.Base(dst)
	}
	r, w := io.Pipe()
	var total int64
	go func() {
		n, err := c.pack(w, src, name)
		total = n
		w.CloseWithError(err)
	}()
	if err := c.put(ctx, container, dir, r); err != nil {
		r.CloseWithError(err)
		return err
	}
	if !c.quiet {
		fmt.Fprintf(c.err, "Successfully copied %s to %s:%s\n", humanSize(total), container, dst)
	}
	return nil
}

func (c *copier) put(ctx context.Context, container, dir string, r io.Reader) error {
	q := url.Values{"path": {dir}, "noOverwriteDirNonDir": {"true"}}
	if c.archive {
		q.Set("copyUIDGID", "true")
	}
	resp, err := c.do(ctx, api.Request{Method: "PUT", Path: "/containers/" + url.PathEscape(container) + "/archive", Query: q, Header: map[string]string{"Content-Type": "application/x-tar"}, Body: r})
	if err != nil {
		return err
	}
	return resp.Body.Close()
}

// pack writes src as an archive whose top is called name.
func (c *copier) pack(w io.Writer, src, name string) (int64, error) {
	tw := tar.NewWriter(w)
	var total int64
	if c.follow {
		if real, err := filepath.EvalSymlinks(src); err == nil {
			src = real
		}
	}
	err := filepath.Walk(src, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		link := ""
		if fi.Mode()&os.ModeSymlink != 0 {
			if link, err = os.Readlink(p); err != nil {
				return err
			}
		}
		if fi.Mode()&os.ModeSocket != 0 {
			return nil
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			return err
		}
		h.Name = path.Join(name, filepath.ToSlash(rel))
		if fi.IsDir() {
			h.Name += "/"
		}
		h.Uname, h.Gname = "", ""
		if !c.archive {
			h.Uid, h.Gid = 0, 0
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return nil
		}
		f, err := os.Open(p)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.CopyN(tw, f, h.Size)
		total += n
		return err
	})
	if err != nil {
		return total, err
	}
	return total, tw.Close()
}
