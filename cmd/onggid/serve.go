package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/linux"
	"github.com/onggi/onggi/internal/linux/cgroup"
)

// machine is what was found out about the machine and this installation.
type machine struct {
	id          string
	cgroups     cgroup.Mode
	controllers []string
	warnings    []string
}

// graceful is how long requests in progress may take at the end.
const graceful = 3 * time.Second

func serve(ctx context.Context, c *config, log *slog.Logger) error {
	began := time.Now()
	locks, err := prepareRoots(c)
	if err != nil {
		return err
	}
	defer locks.close()
	m, err := examine(c)
	if err != nil {
		return err
	}
	ls, err := listen(c)
	if err != nil {
		return err
	}
	s, err := wire(ctx, c, m, log)
	if err != nil {
		for _, l := range ls {
			l.Close()
		}
		return err
	}
	defer s.close(log)
	if err := os.WriteFile(c.pidfile, []byte(strconv.Itoa(os.Getpid())), 0o644); err != nil {
		return errdefs.New(errdefs.Internal, "write", "pidfile", err)
	}
	defer os.Remove(c.pidfile)

	hs := s.api.HTTP()
	hs.Handler = givingBack(hs.Handler)
	failed := make(chan error, len(ls))
	var wg sync.WaitGroup
	for _, l := range ls {
		wg.Add(1)
		go func(l net.Listener) {
			defer wg.Done()
			if err := hs.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
			}
		}(l)
	}
	log.Info("engine ready", "version", version, "took", time.Since(began).Round(time.Millisecond), "listen", strings.Join(c.hosts, " "), "data", c.dataRoot)
	notify("READY=1\nSTATUS=serving")
	select {
	case <-ctx.Done():
	case err = <-failed:
		log.Error("socket lost", "error", err)
	}
	notify("STOPPING=1")
	log.Info("engine stops; containers run on")
	sctx, cancel := context.WithTimeout(context.Background(), graceful)
	defer cancel()
	if serr := hs.Shutdown(sctx); serr != nil {
		hs.Close() // streams that do not end by themselves
	}
	wg.Wait()
	removeSockets(c)
	return err
}

// removeSockets lets clients see at once that nobody serves.
func removeSockets(c *config) {
	for _, h := range c.hosts {
		if p, ok := strings.CutPrefix(h, "unix://"); ok {
			os.Remove(p)
		}
	}
}

type lockSet []*os.File

func (l lockSet) close() {
	for _, f := range l {
		f.Close()
	}
}

// prepareRoots makes the directories, for root only, and takes the locks that
// keep a second engine out of them.
func prepareRoots(c *config) (locks lockSet, err error) {
	if os.Geteuid() != 0 {
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.Forbidden, "start", "engine", "it needs root"), "sudo onggid")
	}
	defer func() {
		if err != nil {
			locks.close()
		}
	}()
	for _, d := range []struct {
		dir  string
		mode os.FileMode
	}{{c.dataRoot, 0o700}, {c.execRoot, 0o711}} {
		if err := os.MkdirAll(d.dir, d.mode); err != nil {
			return locks, errdefs.New(errdefs.Internal, "create", d.dir, err)
		}
		if err := os.Chmod(d.dir, d.mode); err != nil {
			return locks, errdefs.New(errdefs.Internal, "protect", d.dir, err)
		}
		f, err := os.OpenFile(filepath.Join(d.dir, "engine.lock"), os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return locks, errdefs.New(errdefs.Internal, "lock", d.dir, err)
		}
		locks = append(locks, f)
		if ok, err := linux.LockFile(f, false); err != nil || !ok {
			holder, _ := io.ReadAll(io.LimitReader(f, 32))
			return locks, errdefs.WithHint(errdefs.Newf(errdefs.Conflict, "start", "engine", "process %s already uses %s", strings.TrimSpace(string(holder)), d.dir), "give a second engine its own --data-root and --exec-root")
		}
		f.Truncate(0)
		f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return locks, nil
}

// examine finds out what the kernel can do, and refuses where containers could
// not run at all.
func examine(c *config) (*machine, error) {
	m := &machine{}
	var err error
	if m.cgroups, err = cgroup.Detect(); err != nil {
		return nil, errdefs.WithHint(errdefs.New(errdefs.Unsupported, "start", "engine", err), "mount control groups: mount -t cgroup2 none /sys/fs/cgroup")
	}
	if m.controllers, err = cgroup.Controllers(); err != nil {
		return nil, err
	}
	for _, want := range []string{"memory", "cpu", "pids"} {
		if !hasWord(m.controllers, want) {
			m.warnings = append(m.warnings, "WARNING: No "+want+" limit support")
		}
	}
	if err := linux.CheckOverlay(c.dataRoot); err != nil {
		return nil, errdefs.WithHint(errdefs.New(errdefs.Unsupported, "use", c.dataRoot, err), "choose a --data-root on ext4, xfs, btrfs or tmpfs")
	}
	m.id, err = engineID(filepath.Join(c.dataRoot, "engine-id"))
	return m, err
}

func hasWord(list []string, w string) bool {
	for _, x := range list {
		if x == w {
			return true
		}
	}
	return false
}

// engineID is made once per data-root.
func engineID(file string) (string, error) {
	if b, err := os.ReadFile(file); err == nil && len(b) > 0 {
		return strings.TrimSpace(string(b)), nil
	}
	b := make([]byte, 16)
	rand.Read(b)
	h := hex.EncodeToString(b)
	id := h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
	if err := os.WriteFile(file, []byte(id), 0o600); err != nil {
		return "", errdefs.New(errdefs.Internal, "write", "engine ID", err)
	}
	return id, nil
}

// cleanUp ends what a stopped engine left: containers, the monitor, and what
// they hold in the kernel. Images and volumes stay.
func cleanUp(ctx context.Context, c *config, log *slog.Logger) error {
	locks, err := prepareRoots(c)
	if err != nil {
		return err
	}
	defer locks.close()
	m, err := examine(c)
	if err != nil {
		return err
	}
	s, err := wire(ctx, c, m, log)
	if err != nil {
		return err
	}
	err = errors.Join(s.containers.StopAll(ctx), s.monitor.Shutdown(ctx), s.networks.Cleanup(ctx), removeGroup(c.cgroups()), removeGroup(buildGroup(c)))
	s.close(log)
	removeSockets(c)
	return err
}

// removeGroup removes an empty control group; one that is gone, or that another
// engine uses, is left.
func removeGroup(path string) error {
	g, err := cgroup.Open(path, cgroup.Options{})
	if err != nil {
		return nil
	}
	if procs, err := g.Procs(); err != nil || len(procs) > 0 {
		return nil
	}
	return g.Delete()
}
