package main

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/onggi/onggi/internal/build"
)

func TestBuilderConfig(t *testing.T) {
	for _, c := range []struct {
		in   string
		want build.Policy
		err  string
	}{
		{in: `{}`},
		{in: `{"gc":{"enabled":false},"entitlements":{"security-insecure":false,"network-host":true}}`, want: build.Policy{NoCollection: true, NoInsecure: true}},
		{in: `{"gc":{"defaultKeepStorage":"20GB","defaultMaxUsedSpace":"50%","defaultMinFreeSpace":"1g"},"history":{"maxAge":"48h","maxEntries":7}}`,
			want: build.Policy{Reserved: build.Space{Bytes: 20 << 30}, MaxUsed: build.Space{Percent: 50}, MinFree: build.Space{Bytes: 1 << 30}, History: 7, HistoryAge: 48 * time.Hour}},
		{in: `{"GC":{"Policy":[{"reservedSpace":"1kb","filter":["unused-for=48h","type=exec.cachemount","shared"]},{"keepStorage":"2kb","filter":{"until":{"1h":true}}},{"all":true,"keepDuration":3600}]}}`,
			want: build.Policy{Rules: []build.Rule{
				{Reserved: build.Space{Bytes: 1 << 10}, Unused: 48 * time.Hour, Filters: []string{"type==exec.cachemount,shared"}},
				{Reserved: build.Space{Bytes: 2 << 10}, Unused: time.Hour},
				{All: true, Unused: time.Hour},
			}}},
		{in: `{"gc":{"defaultKeepStorage":"lots"}}`, err: "lots"},
		{in: `{"gc":{"defaultMaxUsedSpace":"101%"}}`, err: "101%"},
		{in: `{"gc":{"policy":[{"filter":["colour=red"]}]}}`, err: "colour"},
		{in: `{"gc":{"policy":[{"filter":["until=soon"]}]}}`, err: "soon"},
		{in: `[]`, err: "array"},
	} {
		file := filepath.Join(t.TempDir(), "engine.json")
		if err := os.WriteFile(file, []byte(`{"builder":`+c.in+`}`), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := parse([]string{"--config-file", file})
		switch {
		case c.err != "":
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v", c.in, err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.in, err)
		case !reflect.DeepEqual(got.builder.policy, c.want):
			t.Errorf("%s:\ngot  %+v\nwant %+v", c.in, got.builder.policy, c.want)
		}
	}
}
