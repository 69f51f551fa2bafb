package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

const briefEntry = `{"Id":"76053a02836b","Names":["/web","/web/näme"],"Image":"bench/busybox","Command":"sh -c 'echo \"a\u0020\\<\"'","Created":1795767941,` +
	`"Ports":[{"IP":"0.0.0.0","PrivatePort":80,"PublicPort":65535,"Type":"tcp"},{"PrivatePort":81,"Type":"udp"}],"SizeRw":5,"SizeRootFs":9223372036854775807,"State":"running","Status":"Up 2 minutes"}`

// The quick way understands what the engine writes, or a thousand containers are
// slow without anybody's notice.
func TestBriefList(t *testing.T) {
	for _, s := range []string{"[]\n", "[" + briefEntry + "]\n", "[" + briefEntry + `,{"Id":"","Names":[],"Ports":[],"Created":0}]`} {
		var want []ContainerSummary
		if err := json.Unmarshal([]byte(s), &want); err != nil {
			t.Fatal(err)
		}
		if got, ok := briefList(s); !ok || !reflect.DeepEqual(got, want) {
			t.Errorf("%s\n%+v %v, want\n%+v", s, got, ok, want)
		}
	}
}

func FuzzBriefList(f *testing.F) {
	f.Add("[" + briefEntry + "," + briefEntry + "]\n")
	for _, s := range []string{``, `[`, `[,]`, `[{}{}]`, `[{},]`, `[{"Id":"a",}]`, `[{"Id":"` + "\xff\x00" + `"}]`, `[{"id":"a"}]`, `[{"I\u0064":"a\ud800"}]`, `[{"Created":01}]`, `[{"Created":}]`,
		`[{"Created":-1}]`, `[{"Created":9223372036854775808}]`, `[{"Ports":[{"PublicPort":65536}]}]`, `[{"Ports":[{"IP":"a"}],"Ports":[{}]}]`, `[{"Names":null}]`, `[{"Id":"a\"}]`, `[]]`, "[]\n\n", ` [ ] `} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := briefList(s)
		if !ok {
			return
		}
		var want []ContainerSummary
		if err := json.Unmarshal([]byte(s), &want); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %+v, want %+v %v", s, got, want, err)
		}
	})
}

func BenchmarkBriefList1000(b *testing.B) {
	var all []string
	for i := range 1000 {
		all = append(all, strings.Replace(briefEntry, "web", fmt.Sprintf("web-%d", i), 1))
	}
	s := "[" + strings.Join(all, ",") + "]\n"
	b.ReportAllocs()
	b.Run("own", func(b *testing.B) {
		for b.Loop() {
			if _, ok := briefList(s); !ok {
				b.Fatal("not understood")
			}
		}
	})
	b.Run("encoding/json", func(b *testing.B) {
		for b.Loop() {
			var list []ContainerSummary
			json.Unmarshal([]byte(s), &list)
		}
	})
}
