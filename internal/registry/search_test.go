package registry

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
)

func TestSearch(t *testing.T) {
	var asked string
	answer := `{"num_results":1,"results":[{"name":"team/app","star_count":7,"is_official":true,"is_automated":true,"description":"An app."}]}`
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		asked = r.URL.String()
		if answer == "" {
			http.NotFound(rw, r)
			return
		}
		rw.Write([]byte(answer))
	}))
	defer srv.Close()
	c := testClient(Options{})
	host := hostOfServer(srv)

	got, err := c.Search(t.Context(), host+"/team/a b", 3, Auth{})
	if err != nil || asked != "/v1/search?n=3&q=team%2Fa+b" || len(got) != 1 || got[0] != (SearchResult{StarCount: 7, IsOfficial: true, Name: "team/app", Description: "An app."}) {
		t.Errorf("%+v %v, asked %s", got, err, asked)
	}
	if _, err := c.Search(t.Context(), host+"/app", 0, Auth{}); err != nil || asked != "/v1/search?n=25&q=app" {
		t.Errorf("asked %s: %v", asked, err)
	}
	for _, tt := range []struct {
		term, answer string
		limit        int
		kind         errdefs.Kind
	}{
		{"https://" + host + "/app", answer, 0, errdefs.Invalid},
		{host + "/app", answer, 101, errdefs.Invalid},
		{host + "/app", answer, -1, errdefs.Invalid},
		{host + "/app", "", 0, errdefs.Unavailable},
		{host + "/app", "<html>", 0, errdefs.Unavailable},
		{host + "/app", strings.Repeat(" ", maxSearchBody+1), 0, errdefs.Unavailable},
	} {
		answer = tt.answer
		if _, err := c.Search(t.Context(), tt.term, tt.limit, Auth{}); errdefs.KindOf(err) != tt.kind {
			t.Errorf("%.40s %.10q %d: %v", tt.term, tt.answer, tt.limit, err)
		}
	}
	srv.Close()
	if _, err := c.Search(t.Context(), host+"/app", 0, Auth{}); errdefs.KindOf(err) != errdefs.Unavailable {
		t.Errorf("nobody there: %v", err)
	}
}
