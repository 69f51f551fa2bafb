package engineapi

import (
	"testing"

	containertypes "github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"

	"github.com/onggi/onggi/internal/container"
)

// What an older version of the API did not know, or meant otherwise.
func TestCompatCreate(t *testing.T) {
	request := func() *container.CreateRequest {
		limit := int64(-1)
		return &container.CreateRequest{
			Platform: "linux/arm64",
			Config:   &containertypes.Config{Healthcheck: &containertypes.HealthConfig{StartInterval: 1}},
			HostConfig: &containertypes.HostConfig{
				Annotations: map[string]string{"a": "b"}, ConsoleSize: [2]uint{24, 80}, Resources: containertypes.Resources{PidsLimit: &limit},
				Mounts: []mount.Mount{{Type: mount.TypeBind, BindOptions: &mount.BindOptions{NonRecursive: true, CreateMountpoint: true}, TmpfsOptions: &mount.TmpfsOptions{}}},
			},
		}
	}
	for _, c := range []struct {
		ver  version
		has  func(q *container.CreateRequest) bool
		what string
	}{
		{39, func(q *container.CreateRequest) bool { return q.HostConfig.IpcMode.IsShareable() }, "shareable IPC"},
		{40, func(q *container.CreateRequest) bool { return q.HostConfig.IpcMode == "" }, "the engine's IPC mode"},
		{39, func(q *container.CreateRequest) bool { return !q.HostConfig.Mounts[0].BindOptions.NonRecursive }, "recursive binds"},
		{40, func(q *container.CreateRequest) bool { return q.HostConfig.CgroupnsMode.IsHost() && q.Platform == "" }, "the host's cgroups, no platform"},
		{41, func(q *container.CreateRequest) bool { return q.HostConfig.CgroupnsMode == "" && q.Platform != "" }, "a platform"},
		{41, func(q *container.CreateRequest) bool {
			h := q.HostConfig
			return h.PidsLimit == nil && h.ConsoleSize[0] == 0 && h.Mounts[0].TmpfsOptions == nil && !h.Mounts[0].BindOptions.CreateMountpoint
		}, "none of 1.42's fields"},
		{42, func(q *container.CreateRequest) bool {
			return q.HostConfig.ConsoleSize[0] == 24 && q.HostConfig.Annotations == nil
		}, "a console size, no annotations"},
		{43, func(q *container.CreateRequest) bool {
			return q.Config.Healthcheck.StartInterval == 0 && q.ShallowReadOnly
		}, "shallow read-only binds"},
		{44, func(q *container.CreateRequest) bool {
			return q.Config.Healthcheck.StartInterval == 1 && !q.ShallowReadOnly
		}, "a start interval"},
	} {
		q := request()
		if err := compatCreate(q, c.ver, false); err != nil || !c.has(q) {
			t.Errorf("1.%d without %s: %+v, %v", c.ver, c.what, q.HostConfig, err)
		}
	}
	for _, c := range []struct {
		m       mount.Mount
		refused version // the last version that cannot have it
	}{
		{mount.Mount{Type: mount.TypeBind, ReadOnly: true, BindOptions: &mount.BindOptions{ReadOnlyForceRecursive: true}}, 43},
		{mount.Mount{Type: mount.TypeVolume, VolumeOptions: &mount.VolumeOptions{Subpath: "x"}}, 44},
		{mount.Mount{Type: mount.TypeImage}, 47},
	} {
		for _, ver := range []version{c.refused, c.refused + 1} {
			q := &container.CreateRequest{HostConfig: &containertypes.HostConfig{Mounts: []mount.Mount{c.m}}}
			if err := compatCreate(q, ver, false); (err != nil) != (ver == c.refused) {
				t.Errorf("1.%d %+v: %v", ver, c.m, err)
			}
		}
	}
}
