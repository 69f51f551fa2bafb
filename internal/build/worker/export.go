package worker

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/progress"
	"github.com/moby/buildkit/util/push"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/onggi/onggi/internal/build/refs"
	"github.com/onggi/onggi/internal/errdefs"
)

// imageExporter gives the result to the image store, and pushes it if asked.
type imageExporter struct {
	w    *Worker
	sm   *session.Manager
	kind string
}

// imageOutput is one --output of one build.
type imageOutput struct {
	*imageExporter
	id    int
	attrs map[string]string

	opts         containerimage.ImageCommitOpts
	push         bool
	byDigest     bool
	insecure     bool
	store        bool
	danglingName string
	danglingOnly bool
	meta         map[string][]byte
}

// Resolve reads the output's attributes.
func (e *imageExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	o := &imageOutput{imageExporter: e, id: id, attrs: attrs, store: true, meta: map[string][]byte{}}
	o.opts.RefCfg = cacheconfig.RefConfig{Compression: compression.New(compression.Default)}
	o.opts.ForceInlineAttestations = true
	rest, err := o.opts.Load(ctx, maps.Clone(attrs))
	if err != nil {
		return nil, err
	}
	flags := map[string]*bool{
		string(exptypes.OptKeyPush):              &o.push,
		string(exptypes.OptKeyPushByDigest):      &o.byDigest,
		string(exptypes.OptKeyInsecure):          &o.insecure,
		string(exptypes.OptKeyStore):             &o.store,
		string(exptypes.OptKeyDanglingEmptyOnly): &o.danglingOnly,
		string(exptypes.OptKeyUnpack):            new(bool), // it always is
		string(exptypes.OptKeyNameCanonical):     new(bool), // images are found by digest anyway
		"prefer-image-digest":                    new(bool), // see where the digests are told
	}
	for k, v := range rest {
		switch p := flags[k]; {
		case p == nil && k == string(exptypes.OptKeyDanglingPrefix):
			o.danglingName = v
		case p == nil:
			o.meta[k] = []byte(v)
		case v == "":
			*p = true
		default:
			if *p, err = strconv.ParseBool(v); err != nil {
				return nil, errdefs.Newf(errdefs.Invalid, "export", "image", "%s=%q is neither true nor false", k, v)
			}
		}
	}
	return o, nil
}

func (o *imageOutput) ID() int                  { return o.id }
func (o *imageOutput) Name() string             { return "exporting to image" }
func (o *imageOutput) Type() string             { return o.kind }
func (o *imageOutput) Attrs() map[string]string { return o.attrs }
func (o *imageOutput) Config() *exporter.Config {
	return exporter.NewConfigWithCompression(o.opts.RefCfg.Compression)
}

// Export writes config and manifests, and registers the layers where they lie.
func (o *imageOutput) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (_ map[string]string, _ exporter.FinalizeFunc, descref exporter.DescriptorReference, err error) {
	src = src.Clone()
	if src.Metadata == nil {
		src.Metadata = map[string][]byte{}
	}
	maps.Copy(src.Metadata, o.meta)
	opts := o.opts
	a, _, err := containerimage.ParseAnnotations(src.Metadata)
	if err != nil {
		return nil, nil, nil, err
	}
	opts.Annotations = opts.Annotations.Merge(a)
	opts.SetOCITypesDefault(containerimage.DefaultOCITypes(info.CompatibilityVersion, src))
	opts.SetOCIArtifactDefault(containerimage.DefaultOCIArtifact(info.CompatibilityVersion, &opts))
	if err := opts.Validate(); err != nil {
		return nil, nil, nil, err
	}
	if o.kind == "moby" && !o.push {
		// Clients ask for provenance of every build, to be added where it costs
		// nothing; in a local image it would only make the digest change with
		// the clock. Who wants it asks for it, or pushes.
		opts.ForceInlineAttestations = false
	}
	if !o.push && !opts.RefCfg.Compression.Force && !opts.RewriteTimestamp {
		// Nobody has asked for bytes: layers stay as they lie.
		opts.RefCfg.Compression = compression.New(compression.Uncompressed)
	}
	if o.push {
		ctx = refs.WithOrigin(ctx)
	}
	ctx, done, err := leaseutil.WithLease(ctx, o.w.o.Leases, leaseutil.MakeTemporary)
	if err != nil {
		return nil, nil, nil, err
	}
	defer func() {
		if descref == nil {
			done(context.WithoutCancel(ctx))
		}
	}()
	if o.push {
		var uploaded func()
		ctx, uploaded = o.pushEarly(ctx, src, info.SessionID)
		defer uploaded()
	}
	desc, _, err := o.w.writer.Commit(ctx, src, info.SessionID, info.InlineCache, &opts, info.CompatibilityVersion, o.kind)
	if err != nil {
		return nil, nil, nil, err
	}
	names, err := o.names(src, *desc)
	if err != nil {
		return nil, nil, nil, err
	}
	resp := map[string]string{exptypes.ExporterImageDigestKey: desc.Digest.String()}
	if c, ok := desc.Annotations[exptypes.ExporterConfigDigestKey]; ok {
		resp[exptypes.ExporterImageConfigDigestKey] = c
		delete(desc.Annotations, exptypes.ExporterConfigDigestKey)
	}
	if len(names) > 0 {
		resp[exptypes.ExporterImageNameKey] = strings.Join(names, ",")
	}
	if o.store && o.w.o.Images != nil {
		id, err := o.register(ctx, src, *desc, names, session.NewGroup(info.SessionID))
		if err != nil {
			return nil, nil, nil, err
		}
		if resp[exptypes.ExporterImageConfigDigestKey] == "" && id != "" {
			resp[exptypes.ExporterImageConfigDigestKey] = id
		}
	}
	if id := resp[exptypes.ExporterImageConfigDigestKey]; o.kind == "moby" && !o.push && id != "" {
		// Docker's clients show this digest as the image's id, and drop the
		// other one.
		resp[exptypes.ExporterImageDigestKey] = id
	}
	dt, err := json.Marshal(desc)
	if err != nil {
		return nil, nil, nil, err
	}
	resp[exptypes.ExporterImageDescriptorKey] = base64.StdEncoding.EncodeToString(dt)
	descref = containerimage.NewDescriptorReference(*desc, done)
	if !o.push {
		if o.w.o.Exported != nil {
			o.w.o.Exported(info.Ref, withFrontend(resp, src.Metadata))
		}
		return resp, nil, descref, nil
	}
	if len(names) == 0 {
		return nil, nil, nil, errdefs.WithHint(errdefs.Newf(errdefs.Invalid, "push", "image", "it has no name"), "give one with -t registry/name")
	}
	finalize := func(ctx context.Context) error {
		ctx = refs.WithOrigin(ctx)
		for _, n := range names {
			if err := o.pushOne(ctx, src, info.SessionID, n, desc.Digest, opts.RefCfg); err != nil {
				return errdefs.New(errdefs.KindOf(err), "push", n, err)
			}
		}
		return nil
	}
	return resp, finalize, descref, nil
}

// withFrontend adds what the solver adds to an exporter's response.
func withFrontend(resp map[string]string, meta map[string][]byte) map[string]string {
	out := maps.Clone(resp)
	for k, v := range meta {
		if strings.HasPrefix(k, "frontend.") {
			out[k] = string(v)
		}
	}
	return out
}

// names lists what the image is to be called.
func (o *imageOutput) names(src *exporter.Source, desc ocispecs.Descriptor) ([]string, error) {
	name := o.opts.ImageName
	if n, ok := src.Metadata["image.name"]; name == "*" && ok {
		name = string(n)
	}
	var out []string
	for n := range strings.SplitSeq(name, ",") {
		if n == "" {
			continue
		}
		ref, err := reference.ParseNormalizedNamed(n)
		if err != nil {
			return nil, errdefs.New(errdefs.Invalid, "name", fmt.Sprintf("image %q", n), err)
		}
		if !o.byDigest {
			ref = reference.TagNameOnly(ref)
		}
		if full := ref.String(); !slices.Contains(out, full) {
			out = append(out, full)
		}
	}
	if o.danglingName != "" && (!o.danglingOnly || len(out) == 0) && o.kind != "moby" && o.w.o.Images == nil {
		// Our store keeps images without a name; only others need one made up.
		out = append(out, o.danglingName+"@"+desc.Digest.String())
	}
	return out, nil
}

// register gives the image of every platform to the store, and returns the ID
// of the machine's platform, or of the first where there is none for it.
func (o *imageOutput) register(ctx context.Context, src *exporter.Source, target ocispecs.Descriptor, names []string, g session.Group) (string, error) {
	for _, n := range names {
		done := progress.OneOff(ctx, "naming to "+n)
		defer done(nil)
	}
	raw, err := o.blob(ctx, target.Digest)
	if err != nil {
		return "", err
	}
	results, err := o.results(src)
	if err != nil {
		return "", err
	}
	var id string
	for _, r := range results {
		b := Built{Names: names, Manifest: raw, Target: target, Platform: target.Platform, Blob: func(d digest.Digest) ([]byte, error) { return o.blob(ctx, d) }}
		if images.IsIndexType(target.MediaType) {
			b.Index = raw
			d, err := manifestFor(raw, r.platform)
			if err != nil {
				return "", err
			}
			if b.Manifest, err = o.blob(ctx, d.Digest); err != nil {
				return "", err
			}
			b.Platform = d.Platform
		}
		var m ocispecs.Manifest
		if err := json.Unmarshal(b.Manifest, &m); err != nil {
			return "", err
		}
		if b.Config, err = o.blob(ctx, m.Config.Digest); err != nil {
			return "", err
		}
		if b.Layers, err = o.w.o.Refs.Layers(ctx, r.ref, g); err != nil {
			return "", err
		}
		if err := o.w.o.Images.Register(ctx, b); err != nil {
			return "", err
		}
		if id == "" {
			id = m.Config.Digest.String()
		}
	}
	return id, nil
}

// result is what a build has for one platform.
type result struct {
	ref      cache.ImmutableRef
	platform *ocispecs.Platform // nil: the build did not say
}

// results lists what is to be stored, the machine's platform first.
func (o *imageOutput) results(src *exporter.Source) ([]result, error) {
	ps, err := exptypes.ParsePlatforms(src.Metadata)
	if err != nil || len(ps.Platforms) == 0 {
		return []result{{ref: src.Ref}}, err
	}
	var out []result
	native := platforms.OnlyStrict(o.w.image.native())
	for _, p := range ps.Platforms {
		ref, ok := src.FindRef(p.ID)
		if !ok {
			return nil, fmt.Errorf("the build has no result for platform %s", p.ID)
		}
		at := len(out)
		if native.Match(p.Platform) {
			at = 0
		}
		out = slices.Insert(out, at, result{ref, &p.Platform})
	}
	return out, nil
}

// manifestFor finds the image of the platform in an index.
func manifestFor(index []byte, p *ocispecs.Platform) (ocispecs.Descriptor, error) {
	var idx ocispecs.Index
	if err := json.Unmarshal(index, &idx); err != nil {
		return ocispecs.Descriptor{}, err
	}
	for _, d := range idx.Manifests {
		if p == nil || d.Platform != nil && platforms.FormatAll(*d.Platform) == platforms.FormatAll(*p) {
			return d, nil
		}
	}
	return ocispecs.Descriptor{}, fmt.Errorf("the image index has no entry for platform %s", platforms.FormatAll(*p))
}

func (o *imageOutput) blob(ctx context.Context, d digest.Digest) ([]byte, error) {
	return content.ReadBlob(ctx, o.w.o.Content, ocispecs.Descriptor{Digest: d})
}

// pushOne sends the image to a registry, with the client's credentials.
func (o *imageOutput) pushOne(ctx context.Context, src *exporter.Source, sessionID, name string, d digest.Digest, cfg cacheconfig.RefConfig) error {
	provider := contentutil.NewMultiProvider(o.w.o.Content)
	annotations := map[digest.Digest]map[string]string{}
	all := make([]cache.ImmutableRef, 0, len(src.Refs)+1)
	if src.Ref != nil {
		all = append(all, src.Ref)
	}
	for _, r := range src.Refs {
		if r != nil {
			all = append(all, r)
		}
	}
	for _, r := range all {
		remotes, err := r.GetRemotes(ctx, false, cfg, false, session.NewGroup(sessionID))
		if err != nil {
			return err
		}
		for _, l := range remotes[0].Descriptors {
			provider.Add(l.Digest, remotes[0].Provider)
			annotations[l.Digest] = l.Annotations
		}
	}
	return push.Push(ctx, o.sm, sessionID, provider, o.w.o.Content, d, name, o.insecure, o.w.o.RegistryHosts, o.byDigest, annotations)
}
