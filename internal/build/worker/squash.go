package worker

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/onggi/onggi/internal/errdefs"
)

// squashKey is the attribute of an output that makes one layer of all that a
// build adds to its base image.
const squashKey = "squash"

// squashing lets any exporter of images have the result squashed.
type squashing struct {
	exporter.Exporter
	w *Worker
}

func (s squashing) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	v, ok := attrs[squashKey]
	if !ok {
		return s.Exporter.Resolve(ctx, id, attrs)
	}
	on := v == ""
	if !on {
		var err error
		if on, err = strconv.ParseBool(v); err != nil {
			return nil, errdefs.Newf(errdefs.Invalid, "export", "image", "%s=%q is neither true nor false", squashKey, v)
		}
	}
	attrs = maps.Clone(attrs)
	delete(attrs, squashKey)
	inst, err := s.Exporter.Resolve(ctx, id, attrs)
	if err != nil || !on {
		return inst, err
	}
	return squashed{inst, s.w}, nil
}

// squashed is one such output.
type squashed struct {
	exporter.ExporterInstance
	w *Worker
}

func (s squashed) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	src = src.Clone()
	var made []cache.ImmutableRef
	release := func() {
		for _, r := range made {
			r.Release(context.WithoutCancel(ctx))
		}
	}
	one := func(ref cache.ImmutableRef, suffix string) (cache.ImmutableRef, error) {
		if ref == nil {
			return nil, nil
		}
		base, err := imageConfig(src.Metadata[exptypes.ExporterImageBaseConfigKey+suffix])
		if err != nil {
			return nil, err
		}
		r, err := s.w.o.Refs.Squash(ctx, ref, len(base.RootFS.DiffIDs), session.NewGroup(info.SessionID))
		if err != nil {
			return nil, fmt.Errorf("squashing: %w", err)
		}
		made = append(made, r)
		if raw := src.Metadata[exptypes.ExporterImageConfigKey+suffix]; raw != nil && r.ID() != ref.ID() {
			src.Metadata[exptypes.ExporterImageConfigKey+suffix], err = squashHistory(raw, len(base.History))
		}
		return r, err
	}
	var err error
	src.Metadata = maps.Clone(src.Metadata)
	if src.Ref != nil {
		src.Ref, err = one(src.Ref, "")
	}
	refs := maps.Clone(src.Refs)
	for id, r := range refs {
		if err == nil {
			refs[id], err = one(r, "/"+id)
		}
	}
	src.Refs = refs
	if err != nil {
		release()
		return nil, nil, nil, err
	}
	resp, finalize, desc, err := s.ExporterInstance.Export(ctx, src, info)
	if err != nil || finalize == nil {
		release()
		return resp, finalize, desc, err
	}
	return resp, func(ctx context.Context) error {
		defer release()
		return finalize(ctx)
	}, desc, nil
}

func imageConfig(raw []byte) (ocispecs.Image, error) {
	var c ocispecs.Image
	if len(raw) == 0 {
		return c, nil
	}
	return c, json.Unmarshal(raw, &c)
}

// squashHistory says of the entries behind the base's that they have no layer
// of their own, and adds one for the layer that they have together.
func squashHistory(raw []byte, base int) ([]byte, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	c, err := imageConfig(raw)
	if err != nil {
		return nil, err
	}
	last := ocispecs.History{CreatedBy: "squash", Comment: "onggi"}
	for i := base; i < len(c.History); i++ {
		c.History[i].EmptyLayer = true
		last.Created = c.History[i].Created
	}
	if all["history"], err = json.Marshal(append(c.History, last)); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}
