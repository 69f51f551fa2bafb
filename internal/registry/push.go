package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
)

// Upload is a blob to be written.
type Upload struct {
	// Desc says which blob. Digest and Size may be missing: then the content
	// is sent as it comes, and they are found on the way.
	Desc ocispec.Descriptor
	// From are repositories of the same registry that may have the blob.
	From []reference.Ref
	// Open gives the content; it may be called again after an error. nil:
	// only what is already at the registry will do.
	Open func(context.Context) (io.ReadCloser, error)
	// Progress is told how much has been sent.
	Progress func(sent int64)
}

// How a blob got to where it should be.
type How int

const (
	Exists  How = iota // it was there
	Mounted            // the registry took it from another repository
	Pushed             // it was sent
)

// Uploaded is the result of an upload.
type Uploaded struct {
	Desc ocispec.Descriptor
	How  How
	From reference.Ref // where Mounted from
}

// ErrAbsent is the cause where a blob without content is not at the registry.
var ErrAbsent = fmt.Errorf("the blob is not at the registry")

// PutBlob makes the registry have a blob: it looks whether it is there, tries
// to mount it from other repositories, and sends it otherwise.
func (r *Repository) PutBlob(ctx context.Context, u Upload) (Uploaded, error) {
	e, err := r.origin(ctx)
	if err != nil {
		return Uploaded{}, err
	}
	known := u.Desc.Digest != ""
	name := "blob"
	if known {
		if err := ocispec.CheckDescriptor(u.Desc); err != nil {
			return Uploaded{}, errdefs.New(errdefs.Invalid, "push", r.name("blob"), err)
		}
		name = u.Desc.Digest.String()
		there, err := r.has(ctx, e, u.Desc)
		if err != nil || there {
			return Uploaded{Desc: u.Desc, How: Exists}, err
		}
		for _, from := range u.From {
			if from.Domain != r.ref.Domain || from.Path == r.ref.Path {
				continue
			}
			mounted, err := r.mount(ctx, e, u.Desc, from)
			if err != nil {
				return Uploaded{}, err
			}
			if mounted {
				return Uploaded{Desc: u.Desc, How: Mounted, From: from}, nil
			}
		}
	}
	if u.Open == nil {
		return Uploaded{}, errdefs.New(errdefs.NotFound, "push", r.name(name), ErrAbsent)
	}
	for attempt := 0; ; attempt++ {
		d, err := r.upload(ctx, e, u, known)
		if err == nil {
			return Uploaded{Desc: d, How: Pushed}, nil
		}
		if k := errdefs.KindOf(err); ctx.Err() != nil || attempt+1 >= 3 || k != errdefs.Unavailable || permanent(err) {
			return Uploaded{}, err
		}
		r.c.log.Debug("upload interrupted", "name", r.ref.Familiar(), "digest", name, "error", err)
		if err := sleep(ctx, r.c.pause(attempt)); err != nil {
			return Uploaded{}, err
		}
	}
}

func (r *Repository) pushCall(e *endpoint, method, what string, query url.Values) call {
	q := r.call(e, method, what, query)
	q.scope = r.scope("pull,push")
	return q
}

// HasBlob reports whether the registry itself has a blob.
func (r *Repository) HasBlob(ctx context.Context, d ocispec.Descriptor) (bool, error) {
	e, err := r.origin(ctx)
	if err != nil {
		return false, err
	}
	return r.has(ctx, e, d)
}

func (r *Repository) has(ctx context.Context, e *endpoint, d ocispec.Descriptor) (bool, error) {
	resp, err := r.c.send(ctx, r.pushCall(e, http.MethodHead, "blobs/"+d.Digest.String(), nil))
	if err != nil {
		return false, r.wrap("push", d.Digest.String(), err)
	}
	discard(resp)
	switch resp.StatusCode {
	case http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != d.Size {
			return false, nil // a damaged one; sending it again may mend it
		}
		return true, nil
	case http.StatusUnauthorized, http.StatusForbidden:
		return false, r.statusErr("push", d.Digest.String(), resp)
	}
	return false, nil
}

// mount asks the registry to take the blob from another repository of its own.
func (r *Repository) mount(ctx context.Context, e *endpoint, d ocispec.Descriptor, from reference.Ref) (bool, error) {
	q := r.pushCall(e, http.MethodPost, "blobs/uploads/", url.Values{"mount": {d.Digest.String()}, "from": {from.Path}})
	q.scope += " repository:" + from.Path + ":pull"
	q.body, q.size, q.once = empty, 0, true
	resp, err := r.c.send(ctx, q)
	if err != nil {
		return false, r.wrap("push", d.Digest.String(), err)
	}
	discard(resp)
	if resp.StatusCode == http.StatusAccepted {
		r.abandon(ctx, e, q, resp) // it opened an upload instead
	}
	return resp.StatusCode == http.StatusCreated, nil
}

// abandon ends an upload that is not needed; the registry would collect it.
func (r *Repository) abandon(ctx context.Context, e *endpoint, q call, resp *http.Response) {
	u, err := target(resp.Request.URL, resp.Header.Get("Location"))
	if err != nil || !e.is(u) {
		return
	}
	q.method, q.url, q.body = http.MethodDelete, u, nil
	if resp, err := r.c.send(ctx, q); err == nil {
		discard(resp)
	}
}

func empty(context.Context) (io.ReadCloser, error) { return http.NoBody, nil }

// upload sends a blob once: in one PUT where digest and size are known, else
// in one PATCH as it comes.
func (r *Repository) upload(ctx context.Context, e *endpoint, u Upload, known bool) (ocispec.Descriptor, error) {
	name := u.Desc.Digest.String()
	if !known {
		name = "blob"
	}
	q := r.pushCall(e, http.MethodPost, "blobs/uploads/", nil)
	q.body, q.size = empty, 0
	resp, err := r.c.send(ctx, q)
	if err != nil {
		return u.Desc, r.wrap("push", name, err)
	}
	if resp.StatusCode != http.StatusAccepted {
		return u.Desc, r.statusErr("push", name, resp)
	}
	discard(resp)
	at, err := target(resp.Request.URL, resp.Header.Get("Location"))
	if err != nil {
		return u.Desc, r.wrap("push", name, err)
	}
	sum := &counted{h: sha256.New(), progress: u.Progress}
	open := func(ctx context.Context) (io.ReadCloser, error) {
		rc, err := u.Open(ctx)
		if err != nil {
			return nil, err
		}
		sum.reset(rc)
		return sum, nil
	}
	step := func(method string, at *url.URL, body func(context.Context) (io.ReadCloser, error), size int64) (*http.Response, error) {
		q := r.pushCall(e, method, "", nil)
		q.url, q.body, q.size, q.once = at, body, size, true
		q.foreign = !e.is(at)
		q.header.Set("Content-Type", "application/octet-stream")
		return r.c.send(ctx, q)
	}
	if known {
		resp, err = step(http.MethodPut, withDigest(at, u.Desc.Digest), open, u.Desc.Size)
	} else {
		if resp, err = step(http.MethodPatch, at, open, -1); err != nil {
			return u.Desc, r.wrap("push", name, err)
		}
		if resp.StatusCode != http.StatusAccepted && resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent {
			return u.Desc, r.statusErr("push", name, resp)
		}
		discard(resp)
		if at, err = target(resp.Request.URL, resp.Header.Get("Location")); err != nil {
			return u.Desc, r.wrap("push", name, err)
		}
		u.Desc.Digest, u.Desc.Size = ocispec.Digest("sha256:"+hex.EncodeToString(sum.h.Sum(nil))), sum.n
		resp, err = step(http.MethodPut, withDigest(at, u.Desc.Digest), empty, 0)
	}
	if err != nil {
		return u.Desc, r.wrap("push", name, err)
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusNoContent {
		return u.Desc, r.statusErr("push", name, resp)
	}
	discard(resp)
	if got := resp.Header.Get("Docker-Content-Digest"); got != "" && got != u.Desc.Digest.String() {
		return u.Desc, errdefs.Newf(errdefs.Unavailable, "push", r.name(name), "the registry took it for %s", got)
	}
	return u.Desc, nil
}

// withDigest adds the digest to an upload's address, whose query belongs to
// the registry and stays as it is.
func withDigest(u *url.URL, d ocispec.Digest) *url.URL {
	v := *u
	q := "digest=" + url.QueryEscape(d.String())
	if v.RawQuery != "" {
		q = v.RawQuery + "&" + q
	}
	v.RawQuery = q
	return &v
}

// counted hashes and counts what is sent.
type counted struct {
	rc       io.ReadCloser
	h        hash.Hash
	n        int64
	progress func(int64)
}

func (c *counted) reset(rc io.ReadCloser) {
	c.rc, c.n = rc, 0
	c.h.Reset()
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.rc.Read(p)
	c.h.Write(p[:n])
	c.n += int64(n)
	if c.progress != nil && n > 0 {
		c.progress(c.n)
	}
	return n, err
}

func (c *counted) Close() error { return c.rc.Close() }

// PutSmall writes a blob that is in memory, unless it is there.
func (r *Repository) PutSmall(ctx context.Context, d ocispec.Descriptor, b []byte) error {
	_, err := r.PutBlob(ctx, Upload{Desc: d, Open: func(context.Context) (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(b)), nil
	}})
	return err
}

// PutManifest writes a manifest or index under a tag or its digest.
func (r *Repository) PutManifest(ctx context.Context, tagOrDigest, mediaType string, b []byte) (ocispec.Descriptor, error) {
	d := ocispec.DescriptorOf(mediaType, b)
	e, err := r.origin(ctx)
	if err != nil {
		return d, err
	}
	q := r.pushCall(e, http.MethodPut, "manifests/"+tagOrDigest, nil)
	q.header.Set("Content-Type", mediaType)
	q.body = func(context.Context) (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
	q.size = int64(len(b))
	resp, err := r.c.send(ctx, q)
	if err != nil {
		return d, r.wrap("push", tagOrDigest, err)
	}
	if resp.StatusCode != http.StatusCreated && resp.StatusCode != http.StatusOK && resp.StatusCode != http.StatusAccepted {
		return d, r.statusErr("push", tagOrDigest, resp)
	}
	discard(resp)
	if got := resp.Header.Get("Docker-Content-Digest"); strings.HasPrefix(got, "sha256:") && got != d.Digest.String() {
		return d, errdefs.Newf(errdefs.Unavailable, "push", r.name(tagOrDigest), "the registry took it for %s", got)
	}
	return d, nil
}
