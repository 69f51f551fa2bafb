package container

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strconv"

	"github.com/moby/moby/api/types/mount"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/events"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/snapshot"
	"github.com/onggi/onggi/internal/undo"
)

// sourceMounts finds where each mount comes from on this host.
func (s *Service) sourceMounts(ctx context.Context, rec *Record, r *run, root *os.File) ([]sourcedMount, error) {
	var out []sourcedMount
	for i, m := range rec.Mounts {
		sm := sourcedMount{Mount: m}
		switch m.Type {
		case mount.TypeBind:
			sm.Path = m.Source
			if err := bindSource(m); err != nil {
				return nil, err
			}
		case mount.TypeVolume:
			p, err := s.o.Volumes.Mount(ctx, m.Name, rec.ID)
			if err != nil {
				return nil, err
			}
			r.volumes = append(r.volumes, m.Name)
			s.o.Events.Emit(events.Volume, "mount", m.Name, map[string]string{
				"container": rec.ID, "destination": m.Destination, "driver": m.Driver, "propagation": string(m.Propagation), "read/write": strconv.FormatBool(!m.ReadOnly),
			})
			if !m.Options.NoCopy {
				if err := s.o.Volumes.CopyUp(ctx, m.Name, root, m.Destination, m.Options.Subpath); err != nil {
					return nil, errdefs.New(errdefs.KindOf(err), "fill", quote("volume", m.Name), err)
				}
			}
			sm.Path = p
			if m.Options.Subpath != "" {
				if sm.Path, err = subpath(p, m.Options.Subpath); err != nil {
					return nil, err
				}
			}
		case mount.TypeImage:
			f, err := s.mountImage(ctx, rec.ID, i, m)
			if err != nil {
				return out, err
			}
			sm.Path, sm.FD = m.Source, f
		}
		out = append(out, sm)
	}
	return out, nil
}

func bindSource(m Mount) error {
	_, err := os.Stat(m.Source)
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if !m.Options.CreateSource {
		return errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "", "", "invalid mount config for type \"bind\": bind source path does not exist: %s", m.Source), "create "+m.Source+", or let it be made with -v "+m.Source+":"+m.Destination)
	}
	return os.MkdirAll(m.Source, 0o755)
}

// subpath resolves a path inside a volume, which containers may have filled
// with links.
func subpath(base, sub string) (string, error) {
	dir, err := os.Open(base)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	f, err := linux.OpenPathBeneath(dir, sub)
	if err != nil {
		return "", errdefs.New(errdefs.Invalid, "", "cannot access path "+clip(sub)+" of the volume", err)
	}
	defer f.Close()
	return os.Readlink("/proc/self/fd/" + strconv.Itoa(int(linux.RawFD(f))))
}

// imageMount names the view that keeps a mounted image's layers.
func imageMount(id string, i int) string { return id + "-image-" + strconv.Itoa(i) }

// viewImages holds the images that are mounted, so that the container can be
// started after they are untagged.
func (s *Service) viewImages(ctx context.Context, rec *Record, u *undo.Stack) error {
	for i, m := range rec.Mounts {
		if m.Type != mount.TypeImage {
			continue
		}
		img, err := s.o.Images.Get(m.Source)
		if errdefs.KindOf(err) == errdefs.NotFound {
			// Not NotFound: clients would pull the container's own image.
			return errdefs.WithHint(invalid("invalid mount config for type \"image\": No such image: %s", clip(m.Source)), "onggi pull "+m.Source)
		}
		if err != nil {
			return err
		}
		key := imageMount(rec.ID, i)
		if err := s.o.Snapshots.View(ctx, key, img.Snapshot); err != nil {
			return err
		}
		u.Push(func(ctx context.Context) error { return s.o.Snapshots.Remove(ctx, key) })
	}
	return nil
}

// mountImage mounts an image, or a part of it, read-only and attached nowhere.
func (s *Service) mountImage(ctx context.Context, id string, i int, m Mount) (*os.File, error) {
	whole, err := s.o.Snapshots.MountFD(ctx, imageMount(id, i), snapshot.MountOptions{ReadOnly: true})
	if err != nil || m.Options.Subpath == "" {
		return whole, err
	}
	defer whole.Close()
	var part *os.File
	onThrowawayThread(func() { part, err = linux.SubMount(whole, m.Options.Subpath) })
	if err != nil {
		return nil, errdefs.New(errdefs.Invalid, "", "cannot access path "+clip(m.Options.Subpath)+" of the image "+m.Source, err)
	}
	return part, nil
}

// onThrowawayThread is for what changes the namespaces of its thread.
func onThrowawayThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with us
		f()
	}()
	<-done
}
