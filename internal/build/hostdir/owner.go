package hostdir

import (
	"errors"
	"io"
	"syscall"

	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/sys/user"

	"github.com/onggi/onggi/internal/linux"
)

// maxUserFile bounds what is read of an image's /etc/passwd and /etc/group.
const maxUserFile = 10 << 20

// ownerOf finds what --chown asks for. As with BuildKit, a user by number brings
// the group of that number, one by name that of /etc/passwd, and an unknown name
// is root.
func (m *mover) ownerOf(c *pb.ChownOpt) (uid, gid int, err error) {
	if u := c.GetUser(); u.GetByName() != nil {
		err = m.userFile("passwd", func(r io.Reader) error {
			found, err := user.ParsePasswdFilter(r, func(x user.User) bool { return x.Name == u.GetByName().Name })
			if len(found) > 0 {
				uid, gid = found[0].Uid, found[0].Gid
			}
			return err
		})
	} else {
		uid = int(u.GetByID())
		gid = uid
	}
	if g := c.GetGroup(); g.GetByName() != nil && err == nil {
		err = m.userFile("group", func(r io.Reader) error {
			found, err := user.ParseGroupFilter(r, func(x user.Group) bool { return x.Name == g.GetByName().Name })
			if len(found) > 0 {
				gid = found[0].Gid
			}
			return err
		})
	} else if g.GetUser() != nil {
		gid = int(g.GetByID())
	}
	return uid, gid, err
}

// userFile reads a file of the stage's /etc, if it has one. What is odd about
// it is left to BuildKit to complain of.
func (m *mover) userFile(name string, read func(io.Reader) error) error {
	kind, etc, err := m.top.lookup("etc")
	switch {
	case err != nil:
		return err
	case kind == 0:
		return nil
	case etc == nil:
		return ErrNotPlain
	}
	defer etc.close()
	fd, err := etc.open(name)
	if err != nil || fd == linux.NoFD {
		return err
	}
	f := fd.File(name)
	defer f.Close()
	r := &io.LimitedReader{R: f, N: maxUserFile}
	if err := read(r); err != nil || r.N == 0 {
		return ErrNotPlain
	}
	return nil
}

// open opens a regular file of the overlay; NoFD: there is none.
func (d *merged) open(name string) (linux.FD, error) {
	layers := d.low
	if d.up != linux.NoFD {
		layers = append([]linux.FD{d.up}, layers...)
	}
	var st linux.Stat
	for _, l := range layers {
		switch err := l.Lstat(name, &st); {
		case errors.Is(err, syscall.ENOENT):
			continue
		case err != nil:
			return linux.NoFD, err
		case st.Mode&linux.TypeMask == linux.TypeReg:
			return l.Open(name, linux.ReadOnly, 0)
		case st.Mode&linux.TypeMask == linux.TypeChar && st.Major == 0 && st.Minor == 0: // a whiteout
			return linux.NoFD, nil
		default:
			return linux.NoFD, ErrNotPlain
		}
	}
	return linux.NoFD, nil
}
