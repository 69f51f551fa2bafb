package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
)

const (
	maxRedirects = 5
	maxAttempts  = 6
	maxErrorBody = 64 << 10
	maxBackoff   = 8 * time.Second
	stallBytes   = 1 << 10 // fewer than this in Options.Stall is no progress
)

// call is one request of the protocol, which may take several of HTTP.
type call struct {
	method string
	e      *endpoint
	url    *url.URL
	header http.Header
	auth   Auth
	scope  string // what a token has to allow
	// body gives the content anew for every attempt; nil for none.
	body func(context.Context) (io.ReadCloser, error)
	size int64 // of body, -1 if unknown
	once bool  // do not repeat after an error
	bare bool  // without authorisation, whatever the answer
	// foreign: the URL came from the registry and is at another origin.
	foreign bool
}

// send makes the request, with authorisation, redirects and repetition. The
// response's status is whatever it is after those.
func (c *Client) send(ctx context.Context, q call) (*http.Response, error) {
	authorised := 0
	for attempt := 0; ; attempt++ {
		resp, err := c.follow(ctx, q)
		if ctx.Err() != nil {
			if err == nil {
				resp.Body.Close()
			}
			return nil, context.Cause(ctx)
		}
		if err == nil && resp.StatusCode == http.StatusUnauthorized && !q.foreign && !q.bare && authorised < 2 {
			authorised++
			again, aerr := c.authorise(ctx, q, resp)
			if aerr != nil {
				discard(resp)
				return nil, aerr
			}
			if again {
				discard(resp)
				attempt--
				continue
			}
		}
		if err == nil && !transient(resp.StatusCode) {
			return resp, nil
		}
		if err != nil && attempt == 0 && c.downgrade(q, err) {
			u := *q.url
			u.Scheme = "http"
			q.url = &u
			continue
		}
		if q.once || attempt+1 >= maxAttempts || err != nil && permanent(err) {
			return resp, err
		}
		wait := c.pause(attempt)
		if err == nil {
			asked, ok := retryAfter(resp.Header)
			if ok && asked > c.o.MaxWait {
				return resp, nil // the caller reports the status
			}
			wait = max(wait, asked)
			discard(resp)
		}
		if err := sleep(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// follow makes one attempt, along redirects.
func (c *Client) follow(ctx context.Context, q call) (*http.Response, error) {
	u, authorised := q.url, !q.foreign && !q.bare
	for range maxRedirects + 1 {
		resp, err := c.roundTrip(ctx, q, u, authorised)
		if err != nil {
			return nil, err
		}
		if q.method != http.MethodGet && q.method != http.MethodHead {
			return resp, nil
		}
		switch resp.StatusCode {
		case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		default:
			return resp, nil
		}
		next, err := target(u, resp.Header.Get("Location"))
		discard(resp)
		if err != nil {
			return nil, err
		}
		// Once away, the secret does not come back.
		authorised = authorised && sameOrigin(u, next)
		u = next
	}
	return nil, fmt.Errorf("%s: more than %d redirects: %w", redact(q.url), maxRedirects, errRefused)
}

// errRefused marks what repeating does not help.
var errRefused = errors.New("refused")

// target reads a Location. It must not lead from a secure connection to an
// insecure one.
func target(from *url.URL, location string) (*url.URL, error) {
	if location == "" {
		return nil, fmt.Errorf("%s: no Location in the answer: %w", redact(from), errRefused)
	}
	u, err := from.Parse(location)
	if err != nil || u.Host == "" || u.User != nil || u.Scheme != "https" && u.Scheme != "http" {
		return nil, fmt.Errorf("%s: a Location that is not a URL: %w", redact(from), errRefused)
	}
	if from.Scheme == "https" && u.Scheme != "https" {
		return nil, fmt.Errorf("%s: sent on from HTTPS to plain HTTP at %s: %w", redact(from), u.Host, errRefused)
	}
	return u, nil
}

func sameOrigin(a, b *url.URL) bool {
	return a.Scheme == b.Scheme && a.Hostname() == b.Hostname() && portOf(a) == portOf(b)
}

func portOf(u *url.URL) string {
	if p := u.Port(); p != "" {
		return p
	}
	if u.Scheme == "http" {
		return "80"
	}
	return "443"
}

// redact spells a URL without what may be a secret in it.
func redact(u *url.URL) string { return u.Scheme + "://" + u.Host + u.EscapedPath() }

func (c *Client) roundTrip(ctx context.Context, q call, u *url.URL, authorised bool) (*http.Response, error) {
	home := q.e.is(u)
	var t http.RoundTripper
	var err error
	if home {
		t, err = c.transport(u.Host, q.e.insecure)
	} else {
		t, err = c.guarded(u, max(c.reach(q.e.base.Host), reachPrivate))
	}
	if err != nil {
		return nil, err
	}
	rctx, cancel := context.WithCancelCause(ctx)
	watch := newWatch(c.o.Stall, cancel)
	trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { c.sawPeer(u.Host, i.Conn) }}
	var body io.ReadCloser
	if q.body != nil {
		if body, err = q.body(rctx); err != nil {
			cancel(nil)
			return nil, fmt.Errorf("%w: %w", errRefused, err)
		}
		body = &uploadBody{body, watch}
	}
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(rctx, trace), q.method, u.String(), body)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	if q.body != nil {
		req.ContentLength = q.size
		if q.size == 0 {
			req.Body = http.NoBody
		}
	}
	for k, v := range q.header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", c.o.UserAgent)
	if authorised && home {
		if a := c.authorization(q); a != "" {
			req.Header.Set("Authorization", a)
		}
	}
	resp, err := t.RoundTrip(req)
	if err != nil {
		cause := context.Cause(rctx)
		cancel(nil)
		watch.stop()
		if cause != nil {
			err = cause
		}
		return nil, fmt.Errorf("%s %s: %w", q.method, redact(u), bare(err))
	}
	resp.Body = &watchedBody{rc: resp.Body, w: watch, cancel: cancel, cause: func() error { return context.Cause(rctx) }}
	return resp, nil
}

// bare takes the URL out of an error, since its query may be a secret.
func bare(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		return ue.Err
	}
	return err
}

// downgrade turns an endpoint that may be insecure, and does not speak TLS,
// to plain HTTP.
func (c *Client) downgrade(q call, err error) bool {
	if !q.e.insecure || q.e.mirror || q.url.Scheme != "https" || q.url.Host != q.e.base.Host || !spokePlain(err) {
		return false
	}
	q.e.plain.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plain[q.e.base.Host] = true
	return true
}

// spokePlain reports whether the other side answered TLS with plain HTTP.
func spokePlain(err error) bool {
	e, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok && string(e.RecordHeader[:]) == "HTTP/"
}

// permanent reports whether an attempt's error would only repeat itself.
func permanent(err error) bool {
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return dns.IsNotFound
	}
	s := err.Error()
	return errors.Is(err, errRefused) || strings.Contains(s, "tls: ") || strings.Contains(s, "x509: ") ||
		strings.Contains(s, "connection refused")
}

func transient(status int) bool {
	switch status {
	case http.StatusTooManyRequests, http.StatusRequestTimeout, http.StatusInternalServerError, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return false
}

func (c *Client) pause(attempt int) time.Duration {
	d := min(c.o.Backoff<<attempt, maxBackoff)
	return d/2 + rand.N(d/2+1)
}

func retryAfter(h http.Header) (time.Duration, bool) {
	s := h.Get("Retry-After")
	if s == "" {
		return 0, false
	}
	if n, err := strconv.ParseUint(s, 10, 63); err == nil {
		return time.Duration(min(n, 1<<30)) * time.Second, true
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, time.Until(t)), true
	}
	return 0, false
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// discard ends a response so that its connection can be used again.
func discard(resp *http.Response) {
	io.CopyN(io.Discard, resp.Body, maxErrorBody)
	resp.Body.Close()
}

// readBounded reads a body that must not be longer than limit.
func readBounded(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errdefs.Newf(errdefs.Invalid, "", "", "more than the %d bytes allowed", limit)
	}
	return b, err
}

// errStalled is the cause of a transfer that was given up.
var errStalled = errors.New("no progress")

// watch cancels a request that makes no progress. For an answer the time inside
// reads counts, for an upload the time between them.
type watch struct {
	d      time.Duration
	cancel context.CancelCauseFunc
	mu     sync.Mutex
	timer  *time.Timer
	got    int           // bytes since the timer was set
	left   time.Duration // of the timer, while nobody reads
	due    time.Time
}

// newWatch makes a watch that rests.
func newWatch(d time.Duration, cancel context.CancelCauseFunc) *watch {
	w := &watch{d: d, cancel: cancel, left: d}
	w.timer = time.AfterFunc(time.Hour, func() { cancel(fmt.Errorf("%w in %v", errStalled, d)) })
	w.timer.Stop()
	return w
}

// run lets the time count.
func (w *watch) run() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.due = time.Now().Add(w.left)
	w.timer.Reset(w.left)
}

// rest stops the time; n bytes have moved.
func (w *watch) rest(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer.Stop()
	w.left = max(time.Until(w.due), time.Millisecond)
	if w.got += n; w.got >= stallBytes {
		w.got, w.left = 0, w.d
	}
}

func (w *watch) stop() { w.timer.Stop() }

// uploadBody watches the content of a request.
type uploadBody struct {
	io.ReadCloser
	w *watch
}

func (b *uploadBody) Read(p []byte) (int, error) {
	b.w.rest(len(p)) // what was asked for before has gone out
	n, err := b.ReadCloser.Read(p)
	if err == nil {
		b.w.run()
	}
	return n, err
}

// watchedBody watches the content of an answer, and ends its request at Close.
type watchedBody struct {
	rc     io.ReadCloser
	w      *watch
	cancel context.CancelCauseFunc
	cause  func() error
}

func (b *watchedBody) Read(p []byte) (int, error) {
	b.w.run()
	n, err := b.rc.Read(p)
	b.w.rest(n)
	if err != nil && err != io.EOF {
		if cause := b.cause(); cause != nil {
			err = cause
		}
	}
	return n, err
}

func (b *watchedBody) Close() error {
	b.w.stop()
	b.cancel(nil)
	return b.rc.Close()
}
