package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
)

const (
	maxTagsPage = 4 << 20
	maxPages    = 100
	// freshBytes of progress make a transfer's next failure its first again.
	freshBytes = 64 << 10
)

// Repository is one name at one registry, used with one account.
type Repository struct {
	c     *Client
	ref   reference.Ref
	auth  Auth
	write bool

	mu        sync.Mutex
	list      []*endpoint // guarded by mu
	preferred int         // index of the endpoint that answered last; guarded by mu
}

// Repository returns the repository of ref for reading and writing. Accounts
// for another server than ref's are not used.
func (c *Client) Repository(ref reference.Ref, auth Auth) *Repository {
	if auth.ServerAddress != "" && hostOf(auth.ServerAddress) != hostOf(ref.Domain) {
		c.log.Warn("account not used: it is for another registry", "registry", ref.Domain)
		auth = Auth{}
	}
	auth.ServerAddress = ""
	return &Repository{c: c, ref: ref.Repository(), auth: auth}
}

// Name is the repository's name.
func (r *Repository) Name() reference.Ref { return r.ref }

// each calls f with every endpoint that may have the repository, the one that
// answered last first, until one can serve.
func (r *Repository) each(ctx context.Context, f func(*endpoint) error) error {
	r.mu.Lock()
	if r.list == nil {
		r.mu.Unlock()
		list, err := r.c.endpoints(ctx, r.ref.Domain, false)
		if err != nil {
			return err
		}
		r.mu.Lock()
		r.list = list
	}
	list, first := r.list, r.preferred
	r.mu.Unlock()
	var firstErr error
	for i := range list {
		n := (first + i) % len(list)
		err := f(list[n])
		if err == nil {
			r.mu.Lock()
			r.preferred = n
			r.mu.Unlock()
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		// The registry itself knows best why not.
		if firstErr == nil || !list[n].mirror {
			firstErr = err
		}
		if list[n].mirror {
			r.c.log.Info("mirror could not serve", "mirror", list[n].base.Host, "name", r.ref.Familiar(), "error", err)
		}
	}
	return firstErr
}

// origin is the registry itself, which writes go to.
func (r *Repository) origin(ctx context.Context) (*endpoint, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.list == nil {
		r.mu.Unlock()
		list, err := r.c.endpoints(ctx, r.ref.Domain, false)
		r.mu.Lock()
		if err != nil {
			return nil, err
		}
		if r.list == nil {
			r.list = list
		}
	}
	return r.list[len(r.list)-1], nil
}

// Distrust makes another endpoint than the last one be asked first: what it
// sent was not what its digest says. It reports whether there is another.
func (r *Repository) Distrust() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.list) < 2 {
		return false
	}
	r.preferred = (r.preferred + 1) % len(r.list)
	return true
}

func (r *Repository) call(e *endpoint, method, what string, query url.Values) call {
	q := call{method: method, e: e, url: e.url(r.ref.Path+"/"+what, query), header: http.Header{}, scope: r.scope("pull")}
	if !e.mirror {
		q.auth = r.auth
	}
	return q
}

func (r *Repository) scope(actions string) string { return "repository:" + r.ref.Path + ":" + actions }

// Resolve asks what a tag or digest names.
func (r *Repository) Resolve(ctx context.Context, tagOrDigest string) (ocispec.Descriptor, error) {
	var d ocispec.Descriptor
	err := r.each(ctx, func(e *endpoint) error {
		q := r.call(e, http.MethodHead, "manifests/"+tagOrDigest, nil)
		q.header.Set("Accept", strings.Join(ocispec.ManifestTypes(), ", "))
		resp, err := r.c.send(ctx, q)
		if err != nil {
			return r.wrap("resolve", tagOrDigest, err)
		}
		discard(resp)
		if resp.StatusCode != http.StatusOK {
			// The answer to HEAD has no message.
			d, _, err = r.manifestFrom(ctx, e, tagOrDigest)
			return err
		}
		d = ocispec.Descriptor{MediaType: mediaType(resp.Header), Digest: ocispec.Digest(resp.Header.Get("Docker-Content-Digest")), Size: resp.ContentLength}
		if isDigest(tagOrDigest) && d.Digest != "" && string(d.Digest) != tagOrDigest {
			return errdefs.Newf(errdefs.Invalid, "resolve", r.name(tagOrDigest), "the registry calls it %s", d.Digest)
		}
		if d.MediaType == "" || d.Size < 0 || d.Size > ocispec.MaxManifest || ocispec.CheckDigest(d.Digest) != nil {
			d, _, err = r.manifestFrom(ctx, e, tagOrDigest)
			return err
		}
		return nil
	})
	return d, err
}

// Manifest fetches the manifest or index of a tag or digest. Its digest is
// verified, its type is what header and content agree on; it is not otherwise
// checked.
func (r *Repository) Manifest(ctx context.Context, tagOrDigest string) (d ocispec.Descriptor, b []byte, err error) {
	err = r.each(ctx, func(e *endpoint) error {
		d, b, err = r.manifestFrom(ctx, e, tagOrDigest)
		return err
	})
	return d, b, err
}

func (r *Repository) manifestFrom(ctx context.Context, e *endpoint, tagOrDigest string) (ocispec.Descriptor, []byte, error) {
	fail := func(err error) (ocispec.Descriptor, []byte, error) {
		return ocispec.Descriptor{}, nil, r.wrap("fetch", tagOrDigest, err)
	}
	q := r.call(e, http.MethodGet, "manifests/"+tagOrDigest, nil)
	q.header.Set("Accept", strings.Join(ocispec.ManifestTypes(), ", "))
	var resp *http.Response
	var b []byte
	for attempt := 0; ; attempt++ {
		var err error
		if resp, err = r.c.send(ctx, q); err != nil {
			return fail(err)
		}
		if resp.StatusCode != http.StatusOK {
			return ocispec.Descriptor{}, nil, r.statusErr("fetch", tagOrDigest, resp)
		}
		b, err = readBounded(resp.Body, ocispec.MaxManifest)
		resp.Body.Close()
		if err == nil {
			break
		}
		if attempt+1 == maxAttempts || int64(len(b)) > ocispec.MaxManifest || ctx.Err() != nil {
			return fail(err)
		}
		if err := sleep(ctx, r.c.pause(attempt)); err != nil {
			return fail(err)
		}
	}
	t, err := ocispec.DetectType(b, mediaType(resp.Header))
	if err != nil {
		return fail(err)
	}
	d := ocispec.DescriptorOf(t, b)
	want := tagOrDigest
	if !isDigest(want) {
		want = resp.Header.Get("Docker-Content-Digest")
	}
	if want != "" {
		wd := ocispec.Descriptor{MediaType: t, Digest: ocispec.Digest(want), Size: int64(len(b))}
		if err := ocispec.Verify(wd, b); err != nil {
			return fail(err)
		}
		d.Digest = wd.Digest
	}
	return d, b, nil
}

// mediaType is what a header says, "" where it says nothing of use.
func mediaType(h http.Header) string {
	t, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err != nil || t == "application/json" || t == "text/plain" || t == "application/octet-stream" {
		return ""
	}
	return t
}

func isDigest(s string) bool { return strings.Contains(s, ":") }

func (r *Repository) name(tagOrDigest string) string {
	if isDigest(tagOrDigest) {
		return r.ref.FamiliarName() + "@" + tagOrDigest
	}
	return r.ref.FamiliarName() + ":" + tagOrDigest
}

// wrap gives an error its object, unless it has one.
func (r *Repository) wrap(op, tagOrDigest string, err error) error {
	if e, ok := errors.AsType[*errdefs.Error](err); ok && e.On != "" && e.Kind != errdefs.Invalid {
		return err
	}
	kind := errdefs.KindOf(err)
	if kind == errdefs.Internal {
		kind = errdefs.Unavailable
	}
	wrapped := errdefs.New(kind, op, r.name(tagOrDigest), err)
	if s := err.Error(); spokePlain(err) {
		wrapped = errdefs.WithHint(wrapped, "the registry does not use TLS: onggid --insecure-registry "+r.ref.Domain)
	} else if strings.Contains(s, "x509: ") {
		wrapped = errdefs.WithHint(wrapped, "put the authority's certificate into /etc/onggi/certs.d/"+r.ref.Domain+"/ca.crt")
	} else if dns, ok := errors.AsType[*net.DNSError](err); ok {
		wrapped = errdefs.WithHint(wrapped, unresolved(dns))
	}
	return wrapped
}

// hubHost serves what no registry is named for.
const hubHost = "registry-1.docker.io"

// unresolved says what to look at where a registry's name has no address.
func unresolved(err *net.DNSError) string {
	if err.Name == hubHost {
		return "see whether this machine has a name server and reaches Docker Hub; without, onggi image bootstrap busybox (or debian:bookworm) makes a base image"
	}
	if err.IsNotFound {
		return "check the spelling of " + err.Name + ", and that your name server knows it"
	}
	return "the name server does not answer: check the network and /etc/resolv.conf"
}

func (r *Repository) statusErr(op, tagOrDigest string, resp *http.Response) error {
	b, _ := readBounded(io.LimitReader(resp.Body, maxErrorBody), maxErrorBody)
	resp.Body.Close()
	return statusError(op, r.name(tagOrDigest), resp, b)
}

// Blob reads a blob from an offset on. The reader goes on after a broken
// connection where it was, and gives up after several attempts in a row
// without progress; it ends after d.Size bytes. It does not verify the digest.
func (r *Repository) Blob(ctx context.Context, d ocispec.Descriptor, offset int64) (io.ReadCloser, error) {
	if err := ocispec.CheckDescriptor(d); err != nil {
		return nil, errdefs.New(errdefs.Invalid, "fetch", r.name("blob"), err)
	}
	if offset < 0 || offset > d.Size {
		return nil, errdefs.Newf(errdefs.Invalid, "fetch", r.name(d.Digest.String()), "an offset of %d in %d bytes", offset, d.Size)
	}
	b := &blobReader{r: r, ctx: func() context.Context { return ctx }, d: d, at: offset, mark: offset}
	if offset == d.Size {
		return b, nil
	}
	if err := b.connect(); err != nil {
		return nil, err
	}
	return b, nil
}

// blobReader reads a blob over as many connections as it takes.
type blobReader struct {
	r        *Repository
	ctx      func() context.Context
	d        ocispec.Descriptor
	body     io.ReadCloser // nil: not connected
	at       int64
	mark     int64 // at, when failures was set to 0
	failures int
}

func (b *blobReader) connect() error {
	ctx := b.ctx()
	err := b.r.each(ctx, func(e *endpoint) error {
		q := b.r.call(e, http.MethodGet, "blobs/"+b.d.Digest.String(), nil)
		if b.at > 0 {
			q.header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.at, b.d.Size-1))
		}
		resp, err := b.r.c.send(ctx, q)
		if err != nil {
			return b.r.wrap("fetch", b.d.Digest.String(), err)
		}
		body, err := b.accept(resp)
		if err != nil {
			return err
		}
		b.body = body
		return nil
	})
	return err
}

// accept takes an answer's body from b.at on.
func (b *blobReader) accept(resp *http.Response) (io.ReadCloser, error) {
	switch {
	case resp.StatusCode == http.StatusOK:
		if resp.ContentLength >= 0 && resp.ContentLength != b.d.Size {
			resp.Body.Close()
			return nil, errdefs.Newf(errdefs.Invalid, "fetch", b.r.name(b.d.Digest.String()), "the registry has %d bytes of it, want %d", resp.ContentLength, b.d.Size)
		}
		// A server without ranges sends all of it again.
		if _, err := io.CopyN(io.Discard, resp.Body, b.at); err != nil {
			resp.Body.Close()
			return nil, b.r.wrap("fetch", b.d.Digest.String(), err)
		}
		return resp.Body, nil
	case resp.StatusCode == http.StatusPartialContent && b.at > 0:
		first, _, _ := strings.Cut(strings.TrimPrefix(resp.Header.Get("Content-Range"), "bytes "), "-")
		if n, err := strconv.ParseInt(first, 10, 64); err != nil || n != b.at {
			resp.Body.Close()
			return nil, errdefs.Newf(errdefs.Invalid, "fetch", b.r.name(b.d.Digest.String()), "asked for bytes from %d, got the range %q", b.at, resp.Header.Get("Content-Range"))
		}
		return resp.Body, nil
	}
	return nil, b.r.statusErr("fetch", b.d.Digest.String(), resp)
}

func (b *blobReader) Read(p []byte) (int, error) {
	for {
		if b.at >= b.d.Size {
			return 0, io.EOF
		}
		if b.body == nil {
			if err := b.connect(); err != nil {
				return 0, err
			}
		}
		if rest := b.d.Size - b.at; int64(len(p)) > rest {
			p = p[:rest]
		}
		n, err := b.body.Read(p)
		b.at += int64(n)
		if err == nil || n > 0 {
			return n, nil // an error comes back at the next read
		}
		b.body.Close()
		b.body = nil
		ctx := b.ctx()
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if b.at-b.mark >= freshBytes {
			b.failures = 0
		}
		b.mark = b.at
		if b.failures++; b.failures >= maxAttempts {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return 0, b.r.wrap("fetch", b.d.Digest.String(), fmt.Errorf("after %d of %d bytes: %w", b.at, b.d.Size, err))
		}
		b.r.c.log.Debug("blob interrupted", "name", b.r.ref.Familiar(), "digest", b.d.Digest, "at", b.at, "error", err)
		if err := sleep(ctx, b.r.c.pause(b.failures-1)); err != nil {
			return 0, err
		}
	}
}

func (b *blobReader) Close() error {
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}

// Small fetches a blob of at most limit bytes, and verifies it.
func (r *Repository) Small(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, errdefs.Newf(errdefs.Invalid, "fetch", r.name(d.Digest.String()), "%d bytes, more than the %d allowed", d.Size, limit)
	}
	if len(d.Data) > 0 && ocispec.Verify(d, d.Data) == nil {
		return d.Data, nil
	}
	for {
		rc, err := r.Blob(ctx, d, 0)
		if err != nil {
			return nil, err
		}
		b, err := readBounded(rc, limit)
		rc.Close()
		if err != nil {
			return nil, r.wrap("fetch", d.Digest.String(), err)
		}
		if err = ocispec.Verify(d, b); err == nil {
			return b, nil
		}
		r.mu.Lock()
		last := len(r.list) == 0 || r.preferred == len(r.list)-1
		r.mu.Unlock()
		if last || !r.Distrust() {
			return nil, r.wrap("fetch", d.Digest.String(), err)
		}
	}
}

// Tags lists the repository's tags.
func (r *Repository) Tags(ctx context.Context) ([]string, error) {
	var tags []string
	err := r.each(ctx, func(e *endpoint) error {
		tags = nil
		q := r.call(e, http.MethodGet, "tags/list", url.Values{"n": {"1000"}})
		for range maxPages {
			var page struct{ Tags []string }
			next, err := r.page(ctx, q, &page)
			if err != nil {
				return err
			}
			for _, t := range page.Tags {
				if reference.ValidTag(t) {
					tags = append(tags, t)
				}
			}
			if next == nil || len(page.Tags) == 0 {
				return nil
			}
			q.url = next
		}
		return errdefs.Newf(errdefs.Unavailable, "list tags of", r.ref.Familiar(), "more than %d pages", maxPages)
	})
	return tags, err
}

// page fetches one page of a listing and the address of the next.
func (r *Repository) page(ctx context.Context, q call, into any) (*url.URL, error) {
	resp, err := r.c.send(ctx, q)
	if err != nil {
		return nil, r.wrap("list", "tags", err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, r.statusErr("list", "tags", resp)
	}
	defer resp.Body.Close()
	b, err := readBounded(resp.Body, maxTagsPage)
	if err == nil {
		err = json.Unmarshal(b, into)
	}
	if err != nil {
		return nil, r.wrap("list", "tags", err)
	}
	link := resp.Header.Get("Link")
	if !strings.Contains(link, `rel="next"`) {
		return nil, nil
	}
	ref, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(link), "<"), ">")
	next, err := resp.Request.URL.Parse(ref)
	if err != nil || !q.e.is(next) {
		return nil, errdefs.Newf(errdefs.Invalid, "list tags of", r.ref.Familiar(), "the next page is at another server")
	}
	return next, nil
}

// Referrers lists the manifests that refer to a digest: signatures, SBOMs. A
// registry without that part of the protocol has none.
func (r *Repository) Referrers(ctx context.Context, d ocispec.Digest) (ocispec.Index, error) {
	var x ocispec.Index
	e, err := r.origin(ctx)
	if err != nil {
		return x, err
	}
	resp, err := r.c.send(ctx, r.call(e, http.MethodGet, "referrers/"+d.String(), nil))
	if err != nil {
		return x, r.wrap("list referrers of", d.String(), err)
	}
	if resp.StatusCode == http.StatusNotFound {
		discard(resp)
		_, b, err := r.Manifest(ctx, strings.Replace(d.String(), ":", "-", 1))
		if errdefs.Is(err, errdefs.NotFound) {
			return x, nil
		}
		if err != nil {
			return x, err
		}
		return ocispec.ParseIndex(b, "")
	}
	if resp.StatusCode != http.StatusOK {
		return x, r.statusErr("list referrers of", d.String(), resp)
	}
	defer resp.Body.Close()
	b, err := readBounded(resp.Body, ocispec.MaxManifest)
	if err != nil {
		return x, r.wrap("list referrers of", d.String(), err)
	}
	return ocispec.ParseIndex(b, ocispec.TypeIndex)
}

// Distribution looks up what a name means at its registry, and which platforms
// it is there for.
func (c *Client) Distribution(ctx context.Context, ref reference.Ref, auth Auth) (ocispec.Descriptor, []ocispec.Platform, error) {
	r := c.Repository(ref, auth)
	ref = ref.OrLatest()
	what := ref.Tag
	if ref.Digest != "" {
		what = ref.Digest
	}
	d, b, err := r.Manifest(ctx, what)
	if err != nil {
		return d, nil, err
	}
	var platforms []ocispec.Platform
	if ocispec.IsIndex(d.MediaType) {
		x, err := ocispec.ParseIndex(b, d.MediaType)
		if err != nil {
			return d, nil, err
		}
		for _, m := range x.Manifests {
			if m.Platform != nil {
				platforms = append(platforms, *m.Platform)
			}
		}
		return d, platforms, nil
	}
	m, err := ocispec.ParseManifest(b, d.MediaType)
	if err != nil {
		return d, nil, err
	}
	if ocispec.IsConfig(m.Config.MediaType) {
		cb, err := r.Small(ctx, m.Config, ocispec.MaxConfig)
		if err != nil {
			return d, nil, err
		}
		img, err := ocispec.ParseImage(cb)
		if err != nil {
			return d, nil, err
		}
		platforms = append(platforms, img.Platform)
	}
	return d, platforms, nil
}
