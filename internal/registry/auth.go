package registry

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
)

// tokenKey is what a token is good for.
type tokenKey struct {
	host  string
	auth  Auth
	scope string
}

type token struct {
	value   string
	expires time.Time
}

const (
	minTokenLife  = time.Minute
	maxTokenLife  = time.Hour
	maxTokenBody  = 1 << 20
	tokenClientID = "onggi"
)

// authorization is the header for a request to its own endpoint, "" where
// nothing is known yet.
func (c *Client) authorization(q call) string {
	if u := q.e.base.User; q.e.mirror && u != nil {
		pass, _ := u.Password()
		return basic(u.Username(), pass)
	}
	if q.auth.RegistryToken != "" {
		return "Bearer " + q.auth.RegistryToken
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.tokens[tokenKey{q.e.base.Host, q.auth, q.scope}]; ok && time.Now().Before(t.expires) {
		return "Bearer " + t.value
	}
	if c.basic[q.e.base.Host] && q.auth.Username != "" && q.auth.Password != "" {
		return basic(q.auth.Username, q.auth.Password)
	}
	return ""
}

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// challenge is one way to authorise that a registry offers.
type challenge struct {
	scheme string
	params map[string]string
}

// authorise answers a 401. It reports whether to ask again.
func (c *Client) authorise(ctx context.Context, q call, resp *http.Response) (again bool, err error) {
	if q.auth.RegistryToken != "" {
		return false, nil
	}
	for _, ch := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		switch ch.scheme {
		case "bearer":
			t, _, err := c.fetchToken(ctx, q, ch, false)
			if err != nil {
				return false, err
			}
			c.mu.Lock()
			c.dropExpiredLocked()
			key := tokenKey{q.e.base.Host, q.auth, q.scope}
			same := c.tokens[key].value == t.value
			c.tokens[key] = t
			c.mu.Unlock()
			return !same, nil
		case "basic":
			if q.auth.Username == "" || q.auth.Password == "" {
				return false, nil
			}
			c.mu.Lock()
			tried := c.basic[q.e.base.Host]
			c.basic[q.e.base.Host] = true
			c.mu.Unlock()
			// A header that was sent and refused is wrong.
			sent := resp.Request != nil && resp.Request.Header.Get("Authorization") != ""
			return !tried || !sent, nil
		}
	}
	return false, nil
}

func (c *Client) dropExpiredLocked() {
	now := time.Now()
	for k, t := range c.tokens {
		if now.After(t.expires) {
			delete(c.tokens, k)
		}
	}
}

// fetchToken asks the token server that a challenge names. Only the scope that
// the call needs is asked for, whatever the challenge suggests.
func (c *Client) fetchToken(ctx context.Context, q call, ch challenge, offline bool) (token, string, error) {
	realm, err := c.checkRealm(q.e, ch.params["realm"])
	if err != nil {
		return token{}, "", errdefs.New(errdefs.Forbidden, "authorise at", q.e.base.Host, err)
	}
	auth := q.auth
	if !auth.IsZero() && !offline && !c.mayTell(q.e.base.Host, realm.Hostname(), auth) {
		c.log.Warn("account not sent: its registry refers to a token server elsewhere, through which nobody has logged in", "registry", q.e.base.Host, "server", realm.Host)
		auth = Auth{}
	}
	t, err := c.guarded(realm, c.reach(q.e.base.Host))
	if err != nil {
		return token{}, "", err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*c.o.Stall)
	defer cancel()
	req, err := tokenRequest(ctx, realm, ch.params["service"], q.scope, auth, offline)
	if err != nil {
		return token{}, "", err
	}
	req.Header.Set("User-Agent", c.o.UserAgent)
	// A token server that redirects could send the account anywhere, so
	// redirects are not followed.
	var resp *http.Response
	for attempt := 0; ; attempt++ {
		if resp, err = t.RoundTrip(req.Clone(ctx)); err == nil && !transient(resp.StatusCode) || attempt == 2 || ctx.Err() != nil || req.Body != nil || err != nil && permanent(err) {
			break
		}
		if err == nil {
			discard(resp)
		}
		if err := sleep(ctx, c.pause(attempt)); err != nil {
			return token{}, "", err
		}
	}
	if err != nil {
		return token{}, "", errdefs.New(errdefs.Unavailable, "authorise at", realm.Host, bare(err))
	}
	defer resp.Body.Close()
	b, err := readBounded(resp.Body, maxTokenBody)
	if err != nil {
		return token{}, "", errdefs.New(errdefs.Unavailable, "authorise at", realm.Host, err)
	}
	if resp.StatusCode != http.StatusOK {
		err := statusError("authorise at", realm.Host, resp, b)
		if !q.auth.IsZero() && auth.IsZero() {
			err = errdefs.WithHint(err, "onggi login "+q.e.base.Host+" (its token server "+realm.Host+" is at another domain and gets the account only after a login)")
		}
		return token{}, "", err
	}
	return decodeToken(realm.Host, b)
}

func tokenRequest(ctx context.Context, realm *url.URL, service, scope string, auth Auth, offline bool) (*http.Request, error) {
	v := realm.Query()
	if auth.IdentityToken != "" {
		v = url.Values{"grant_type": {"refresh_token"}, "refresh_token": {auth.IdentityToken}, "client_id": {tokenClientID}}
	}
	if service != "" {
		v.Set("service", service)
	}
	for s := range strings.FieldsSeq(scope) {
		v.Add("scope", s)
	}
	if auth.IdentityToken != "" {
		v.Set("scope", scope)
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, realm.String(), strings.NewReader(v.Encode()))
		if err == nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		return req, err
	}
	if offline {
		v.Set("offline_token", "true")
		v.Set("client_id", tokenClientID)
	}
	if auth.Username != "" {
		v.Set("account", auth.Username)
	}
	u := *realm
	u.RawQuery = v.Encode()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err == nil && auth.Username != "" {
		req.SetBasicAuth(auth.Username, auth.Password)
	}
	return req, err
}

func decodeToken(host string, b []byte) (token, string, error) {
	var doc struct {
		Token       string    `json:"token"`
		AccessToken string    `json:"access_token"`
		Refresh     string    `json:"refresh_token"`
		ExpiresIn   int64     `json:"expires_in"`
		IssuedAt    time.Time `json:"issued_at"`
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		// A date of another form is no reason to fail.
		var again struct {
			Token       string `json:"token"`
			AccessToken string `json:"access_token"`
		}
		if json.Unmarshal(b, &again) != nil {
			return token{}, "", errdefs.Newf(errdefs.Unavailable, "authorise at", host, "the answer is not a token")
		}
		doc.Token, doc.AccessToken = again.Token, again.AccessToken
	}
	t := doc.Token
	if t == "" {
		t = doc.AccessToken
	}
	if t == "" || strings.ContainsFunc(t, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return token{}, "", errdefs.Newf(errdefs.Unavailable, "authorise at", host, "the answer has no token")
	}
	life := min(max(time.Duration(min(doc.ExpiresIn, 1<<20))*time.Second, minTokenLife), maxTokenLife)
	// The clocks may differ, so life counts from now; a little is kept back.
	return token{t, time.Now().Add(life - 5*time.Second)}, doc.Refresh, nil
}

// Login checks an account at the registry a.ServerAddress names ("" for Docker
// Hub). It returns the identity token that the registry gave for it, if any.
func (c *Client) Login(ctx context.Context, a Auth) (identity string, err error) {
	host := hostOf(a.ServerAddress)
	if host == "" {
		host = "docker.io"
	}
	list, err := c.endpoints(ctx, host, true)
	if err != nil {
		return "", err
	}
	e := list[0]
	q := call{method: http.MethodGet, e: e, url: e.url("", nil), bare: true}
	resp, err := c.send(ctx, q)
	if err != nil {
		return "", errdefs.New(errdefs.Unavailable, "log in to", host, err)
	}
	b, _ := readBounded(resp.Body, maxErrorBody)
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return "", nil // it asks nobody who they are
	}
	if resp.StatusCode != http.StatusUnauthorized {
		return "", statusError("log in to", host, resp, b)
	}
	q.auth, q.bare, q.url = a, false, e.url("", nil)
	for _, ch := range parseChallenges(resp.Header.Values("WWW-Authenticate")) {
		switch ch.scheme {
		case "bearer":
			// Typing a password for this registry is consent to the token server
			// it names; realm.go's other rules hold.
			_, identity, err = c.fetchToken(ctx, q, ch, true)
			if err != nil {
				return "", err
			}
			if u, err := url.Parse(ch.params["realm"]); err == nil {
				c.trustRealm(e.base.Host, u.Hostname())
			}
			return identity, nil
		case "basic":
			c.mu.Lock()
			c.basic[e.base.Host] = true
			c.mu.Unlock()
			q.once = true
			resp, err := c.follow(ctx, q)
			if err != nil {
				return "", errdefs.New(errdefs.Unavailable, "log in to", host, err)
			}
			b, _ := readBounded(resp.Body, maxErrorBody)
			resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				return "", statusError("log in to", host, resp, b)
			}
			return "", nil
		}
	}
	return "", errdefs.Newf(errdefs.Unauthorized, "log in to", host, "it offers no way to authorise that is known here")
}

// parseChallenges reads WWW-Authenticate headers.
func parseChallenges(headers []string) []challenge {
	var out []challenge
	for _, h := range headers {
		if len(h) > 16<<10 || len(out) > 16 {
			break
		}
		out = append(out, parseChallenge(h)...)
	}
	// The better one first.
	for i, ch := range out {
		if ch.scheme == "bearer" && i > 0 {
			out[0], out[i] = out[i], out[0]
			break
		}
	}
	return out
}

// parseChallenge reads one header, which may hold several challenges:
// scheme key="value", key=value, scheme …
func parseChallenge(s string) []challenge {
	var out []challenge
	for {
		s = strings.TrimLeft(s, " \t,")
		if s == "" {
			return out
		}
		i := strings.IndexAny(s, " \t=,")
		if i < 0 {
			return append(out, challenge{strings.ToLower(s), map[string]string{}})
		}
		word := strings.ToLower(s[:i])
		rest := strings.TrimLeft(s[i:], " \t")
		if !strings.HasPrefix(rest, "=") || len(out) == 0 {
			if word != "" {
				out = append(out, challenge{word, map[string]string{}})
			}
			s = strings.TrimPrefix(rest, "=")
			continue
		}
		var v string
		v, s = parseValue(strings.TrimLeft(rest[1:], " \t"))
		params := out[len(out)-1].params
		if _, twice := params[word]; !twice {
			params[word] = v
		}
	}
}

// parseValue reads a token or a quoted string.
func parseValue(s string) (v, rest string) {
	if !strings.HasPrefix(s, `"`) {
		i := strings.IndexAny(s, ", \t")
		if i < 0 {
			return s, ""
		}
		return s[:i], s[i:]
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:]
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String(), ""
}

// statusError words an answer that is not what was asked for.
func statusError(op, on string, resp *http.Response, body []byte) error {
	kind := errdefs.Unavailable
	var hint string
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		kind, hint = errdefs.Unauthorized, "onggi login, then again"
	case http.StatusForbidden:
		kind, hint = errdefs.Forbidden, "the account may lack the right; see onggi login"
	case http.StatusNotFound:
		kind = errdefs.NotFound
	case http.StatusMethodNotAllowed, http.StatusNotImplemented:
		kind = errdefs.Unsupported
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		kind = errdefs.Invalid
	case http.StatusTooManyRequests:
		hint = "the registry limits how often it may be asked; log in, or wait"
		if d, ok := retryAfter(resp.Header); ok {
			hint = fmt.Sprintf("the registry asks to wait %v", d.Round(time.Second))
		}
	}
	return errdefs.WithHint(errdefs.Newf(kind, op, on, "%s", statusText(resp, body)), hint)
}

// statusText is the registry's own message, bounded and without control
// characters, since it ends up on a terminal.
func statusText(resp *http.Response, body []byte) string {
	var doc struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"`
	}
	var parts []string
	if json.Unmarshal(body, &doc) == nil {
		for _, e := range doc.Errors {
			code := strings.ToLower(strings.ReplaceAll(e.Code, "_", " "))
			if code == strings.ToLower(e.Message) {
				code = ""
			}
			parts = append(parts, strings.Trim(code+": "+e.Message, ": "))
		}
		if len(parts) == 0 && doc.Details != "" {
			parts = append(parts, doc.Details)
		}
	}
	if len(parts) == 0 {
		switch resp.StatusCode { // a HEAD has no body; these are what it would say
		case http.StatusUnauthorized:
			parts = append(parts, "unauthorized: authentication required")
		case http.StatusForbidden:
			parts = append(parts, "denied: requested access to the resource is denied")
		default:
			parts = append(parts, "the registry answered "+resp.Status)
		}
	}
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.Join(parts, "; "))
	if len(s) > 500 {
		s = s[:500] + "…"
	}
	return s
}
