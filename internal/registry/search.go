package registry

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/reference"
)

// A SearchResult is a repository that a registry's index found.
type SearchResult struct {
	StarCount   int    `json:"star_count"`
	IsOfficial  bool   `json:"is_official"`
	Name        string `json:"name"`
	IsAutomated bool   `json:"is_automated"` // Docker: always false
	Description string `json:"description"`
}

const (
	defaultResults = 25
	maxResults     = 100
	maxSearchBody  = 1 << 20
)

// Search asks the index of Docker Hub, or of the registry that a term's first
// part names, for repositories: the first version's API, which the second has
// nothing for. limit 0 is the usual number.
func (c *Client) Search(ctx context.Context, term string, limit int, a Auth) ([]SearchResult, error) {
	if strings.Contains(term, "://") {
		return nil, errdefs.Newf(errdefs.Invalid, "", "", "invalid repository name: repository name (%.100s) should not have a scheme", term)
	}
	if limit == 0 {
		limit = defaultResults
	}
	if limit < 1 || limit > maxResults {
		return nil, errdefs.Newf(errdefs.Invalid, "", "", "limit %d is outside the range of [1, %d]", limit, maxResults)
	}
	host, name, found := strings.Cut(term, "/")
	if !found || !strings.ContainsAny(host, ".:") && host != "localhost" {
		host, name = reference.DefaultDomain, term
	}
	host = hostOf(host)
	list, err := c.endpoints(ctx, host, true)
	if err != nil {
		return nil, err
	}
	e := list[0]
	if host == reference.DefaultDomain {
		e.base.Host, name = "index.docker.io", strings.TrimPrefix(name, "library/")
	}
	u := e.url("", url.Values{"q": {name}, "n": {strconv.Itoa(limit)}})
	u.Path = "/v1/search"
	resp, err := c.send(ctx, call{method: http.MethodGet, e: e, url: u, auth: a, scope: "registry:catalog:search", once: true})
	if err != nil {
		return nil, errdefs.New(errdefs.Unavailable, "search", host, err)
	}
	defer resp.Body.Close()
	body, err := readBounded(resp.Body, maxSearchBody)
	if err != nil {
		return nil, errdefs.New(errdefs.Unavailable, "search", host, err)
	}
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.Unavailable, "search", host, "the registry has no index that could be searched"), "onggi search TERM, without a registry, asks Docker Hub")
	default:
		return nil, statusError("search", host, resp, body)
	}
	var doc struct {
		Results []SearchResult `json:"results"`
	}
	if err := json.Unmarshal(body, &doc); err != nil {
		return nil, errdefs.Newf(errdefs.Unavailable, "search", host, "the answer is no list of results: %w", err)
	}
	for i := range doc.Results {
		doc.Results[i].IsAutomated = false
	}
	return doc.Results, nil
}
