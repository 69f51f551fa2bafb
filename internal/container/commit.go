package container

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"time"

	"github.com/moby/moby/api/types/container"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
)

// CommitOptions say what becomes of a container's changes.
type CommitOptions struct {
	Ref             *reference.Ref // nil = no name
	Author, Comment string
	Changes         []string // Dockerfile instructions
	Config          *Config  // overrides; may be nil
	Pause           bool
}

// Commit makes an image of a container's root file system.
func (s *Service) Commit(ctx context.Context, ref string, o CommitOptions) (imageID string, err error) {
	c, err := s.find("commit", ref)
	if err != nil {
		return "", err
	}
	rec, st := c.view()
	if st.State == Removing || st.State == Dead {
		return "", errdefs.Newf(errdefs.Conflict, "", "", "You cannot commit container %s which is being removed", c.id)
	}
	if o.Pause && st.State == Running {
		if err := s.Pause(ctx, c.id); err == nil {
			defer s.Unpause(context.WithoutCancel(ctx), c.id)
		}
	}
	cfg, err := imageConfigFrom(rec.Config)
	if err != nil {
		return "", err
	}
	if o.Config != nil {
		over, err := imageConfigFrom(o.Config)
		if err != nil {
			return "", err
		}
		mergeCommit(&cfg, over)
	}
	q := image.CommitRequest{ContainerSnapshot: c.id, ContainerID: c.id, Parent: rec.ImageID, Config: cfg, Author: o.Author, Message: o.Comment, Changes: o.Changes}
	if o.Ref != nil {
		q.Ref = *o.Ref
	}
	img, err := s.o.Images.Commit(ctx, q)
	if err != nil {
		return "", err
	}
	s.emit(c, "commit", map[string]string{"imageID": img.ID, "comment": o.Comment})
	return img.ID, nil
}

// imageConfigFrom keeps of a container's configuration what an image has.
func imageConfigFrom(c *Config) (cfg ocispec.ImageConfig, err error) {
	ic := imageConfig{
		User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, Volumes: c.Volumes, WorkingDir: c.WorkingDir, Labels: c.Labels,
		StopSignal: c.StopSignal, Healthcheck: c.Healthcheck, OnBuild: c.OnBuild, Shell: c.Shell, ArgsEscaped: c.ArgsEscaped,
	}
	if len(c.ExposedPorts) > 0 {
		ic.ExposedPorts = map[string]struct{}{}
		for p := range c.ExposedPorts {
			ic.ExposedPorts[p.String()] = struct{}{}
		}
	}
	b, err := json.Marshal(ic)
	if err == nil {
		err = json.Unmarshal(b, &cfg)
	}
	return cfg, err
}

func mergeCommit(to *ocispec.ImageConfig, over ocispec.ImageConfig) {
	to.User = cmpOr(over.User, to.User)
	to.WorkingDir = cmpOr(over.WorkingDir, to.WorkingDir)
	to.StopSignal = cmpOr(over.StopSignal, to.StopSignal)
	if len(over.Cmd) > 0 {
		to.Cmd = over.Cmd
	}
	if len(over.Entrypoint) > 0 {
		to.Entrypoint = over.Entrypoint
	}
	to.Env = dedupEnv(append(slices.Clone(to.Env), over.Env...))
	to.Labels = overlay(to.Labels, over.Labels)
	if len(over.ExposedPorts) > 0 {
		to.ExposedPorts = overlay(to.ExposedPorts, over.ExposedPorts)
	}
	if len(over.Volumes) > 0 {
		to.Volumes = overlay(to.Volumes, over.Volumes)
	}
	if over.Healthcheck != nil {
		to.Healthcheck = over.Healthcheck
	}
}

// Prune removes the containers that are not running and match the filters.
func (s *Service) Prune(ctx context.Context, filters map[string][]string) (container.PruneReport, error) {
	report := container.PruneReport{ContainersDeleted: []string{}}
	filters = maps.Clone(filters)
	var before time.Time
	if u := filters["until"]; len(u) > 0 {
		if len(u) > 1 {
			return report, invalid("more than one until filter specified")
		}
		var err error
		if before, err = ParseTime(u[0], time.Now()); err != nil {
			return report, err
		}
	}
	delete(filters, "until")
	for k := range filters {
		if k != "label" && k != "label!" {
			return report, invalid("invalid filter '%s'", clip(k))
		}
	}
	match, _, err := s.listFilter(filters)
	if err != nil {
		return report, err
	}
	for _, c := range s.all() {
		if ctx.Err() != nil {
			break
		}
		rec, st := c.view()
		if st.State != Created && st.State != Exited && st.State != Dead || !before.IsZero() && !rec.Created.Before(before) || !match(rec, st, nil) {
			continue
		}
		rw, _, _ := s.o.Snapshots.Usage(ctx, rec.ID)
		if err := s.remove(ctx, c, RemoveOptions{}); err != nil {
			s.log.Warn("container not pruned", "container", c.id, "error", err)
			continue
		}
		report.ContainersDeleted = append(report.ContainersDeleted, c.id)
		report.SpaceReclaimed += uint64(max(rw, 0))
	}
	slices.Sort(report.ContainersDeleted)
	return report, nil
}

// ParseTime reads what `--since` and `until=` take: seconds since 1970 (with a
// fraction), RFC 3339 with or without a zone, a date, or a duration before now.
func ParseTime(v string, now time.Time) (time.Time, error) {
	if sec, frac, ok := splitSeconds(v); ok { // before durations, which know "0", too
		return time.Unix(sec, frac), nil
	}
	if d, err := time.ParseDuration(v); err == nil {
		return now.Add(-d), nil
	}
	for _, f := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02T15:04", "2006-01-02T15", "2006-01-02Z07:00", "2006-01-02"} {
		if t, err := time.ParseInLocation(f, v, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, errdefs.WithHint(invalid("failed to parse value as time or duration: %q", clip(v)), "use 2026-01-02T15:04:05, seconds since 1970, or a duration such as 10m")
}

func splitSeconds(v string) (sec, nsec int64, ok bool) {
	var whole, frac string
	for i, c := range v {
		if c == '.' {
			whole, frac = v[:i], v[i+1:]
			break
		}
		whole = v[:i+1]
	}
	parse := func(s string) (n int64, ok bool) {
		neg := false
		if len(s) > 0 && s[0] == '-' {
			neg, s = true, s[1:]
		}
		if s == "" || len(s) > 18 {
			return 0, false
		}
		for _, c := range s {
			if c < '0' || c > '9' {
				return 0, false
			}
			n = 10*n + int64(c-'0')
		}
		if neg {
			n = -n
		}
		return n, true
	}
	if sec, ok = parse(whole); !ok {
		return 0, 0, false
	}
	if frac == "" {
		return sec, 0, len(whole) == len(v)
	}
	for len(frac) < 9 {
		frac += "0"
	}
	nsec, ok = parse(frac[:9])
	return sec, nsec, ok && nsec >= 0
}
