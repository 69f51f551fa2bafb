package engineapi

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/registry"
)

func TestOpenURL(t *testing.T) {
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/there.tar":
			io.WriteString(w, "content")
		case "/secret":
			w.WriteHeader(http.StatusForbidden)
		default:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer web.Close()
	for _, src := range []string{web.URL + "/there.tar", strings.TrimPrefix(web.URL, "http://") + "/there.tar"} {
		body, err := openURL(t.Context(), src)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(body)
		body.Close()
		if string(b) != "content" {
			t.Errorf("%s: %q", src, b)
		}
	}
	for src, want := range map[string]errdefs.Kind{
		web.URL + "/nothing": errdefs.NotFound, web.URL + "/secret": errdefs.Forbidden, "%2Fdata": errdefs.Invalid, "file:///etc/passwd": errdefs.Invalid, "http://": errdefs.Invalid,
	} {
		if _, err := openURL(t.Context(), src); errdefs.KindOf(err) != want || err == nil {
			t.Errorf("%s: %v", src, err)
		}
	}
}

func TestSearchFilter(t *testing.T) {
	r := registry.SearchResult{StarCount: 7, IsOfficial: true}
	for _, tt := range []struct {
		key, value string
		keep, ok   bool
	}{
		{"stars", "7", true, true}, {"stars", "8", false, true}, {"stars", "many", false, false},
		{"is-official", "true", true, true}, {"is-official", "false", false, true}, {"is-official", "perhaps", false, false},
		{"is-automated", "true", false, true}, {"is-automated", "false", true, true},
	} {
		keep, err := searchFilter(map[string][]string{tt.key: {tt.value}})
		if (err == nil) != tt.ok || err == nil && keep(r) != tt.keep {
			t.Errorf("%s=%s: %v", tt.key, tt.value, err)
		}
	}
}
