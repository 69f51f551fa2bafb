package image

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/ocispec"
)

func readerOf(b []byte) func(context.Context) io.Reader {
	return func(context.Context) io.Reader { return bytes.NewReader(b) }
}

func TestChanges(t *testing.T) {
	for in, want := range map[string]string{
		`CMD ["a","b"]`:                        `{"Cmd":["a","b"]}`,
		`CMD echo hi`:                          `{"Cmd":["/bin/sh","-c","echo hi"]}`,
		`cmd []`:                               `{}`,
		`ENTRYPOINT ["/x"]`:                    `{"Entrypoint":["/x"]}`,
		`ENV A=b`:                              `{"Env":["A=b"]}`,
		`ENV A b c`:                            `{"Env":["A=b c"]}`,
		`ENV A="b c" D=e\ f`:                   `{"Env":["A=b c","D=e f"]}`,
		`LABEL "a b"="c"`:                      `{"Labels":{"a b":"c"}}`,
		`EXPOSE 80 90-91/udp`:                  `{"ExposedPorts":{"80/tcp":{},"90/udp":{},"91/udp":{}}}`,
		`VOLUME /a /b`:                         `{"Volumes":{"/a":{},"/b":{}}}`,
		`VOLUME ["/a b"]`:                      `{"Volumes":{"/a b":{}}}`,
		`USER me:us`:                           `{"User":"me:us"}`,
		`WORKDIR /x`:                           `{"WorkingDir":"/x"}`,
		`STOPSIGNAL SIGINT`:                    `{"StopSignal":"SIGINT"}`,
		`ONBUILD RUN x`:                        `{"OnBuild":["RUN x"]}`,
		`HEALTHCHECK NONE`:                     `{"Healthcheck":{"Test":["NONE"]}}`,
		`HEALTHCHECK --retries=3 CMD ["a"]`:    `{"Healthcheck":{"Test":["CMD","a"],"Retries":3}}`,
		`HEALTHCHECK --timeout=1s CMD curl -f`: `{"Healthcheck":{"Test":["CMD-SHELL","curl -f"],"Timeout":1000000000}}`,
		`# a comment`:                          `{}`,
		``:                                     `{}`,
	} {
		var c ocispec.ImageConfig
		if err := applyChanges(&c, []string{in}); err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if b, _ := json.Marshal(c); string(b) != want {
			t.Errorf("%s: %s, want %s", in, b, want)
		}
	}
	for _, in := range []string{"RUN x", "FROM y", "ENV", "ENV A", "LABEL x", "EXPOSE x", "EXPOSE 5-3", "EXPOSE 80/icmp", "ONBUILD FROM x", "ONBUILD ONBUILD x", "HEALTHCHECK x", "HEALTHCHECK CMD", "HEALTHCHECK --retries=x CMD a", `ENV A="b`, "SHELL sh"} {
		var c ocispec.ImageConfig
		if err := applyChanges(&c, []string{in}); !errdefs.Is(err, errdefs.Invalid) || !strings.Contains(err.Error(), strings.Fields(in)[0]) {
			t.Errorf("%s: %v", in, err)
		}
	}
}

// Variables are those of the configuration that is changed.
func TestChangesExpand(t *testing.T) {
	env := []string{"PATH=/bin", "HOME=/root", "EMPTY="}
	for in, want := range map[string]string{
		`PATH=/usr/bin:$PATH`:   `PATH=/usr/bin:/bin`,
		`A=${PATH}x B=$HOME`:    `A=/binx B=/root`,
		`A='$PATH' B="$PATH's"`: `A='$PATH' B="/bin's"`,
		`A=\$PATH B=a\ b`:       `A=$PATH B=a\ b`,
		`${NO:-x}${EMPTY:-y}${HOME:-z}${HOME:+set}${NO:+set}`: `xy/rootset`,
		`$ $1 ${ $NO.`: `$ $1 ${ .`,
	} {
		if got := expand(in, env); got != want {
			t.Errorf("%s: %q, want %q", in, got, want)
		}
	}
	c := ocispec.ImageConfig{Env: env}
	if err := applyChanges(&c, []string{"ENV PATH=/opt:$PATH", "WORKDIR $HOME", "CMD echo $PATH"}); err != nil {
		t.Fatal(err)
	}
	if b, _ := json.Marshal(c); string(b) != `{"Env":["PATH=/opt:/bin","HOME=/root","EMPTY="],"Cmd":["/bin/sh","-c","echo $PATH"],"WorkingDir":"/root"}` {
		t.Errorf("%s", b)
	}
}

func FuzzChanges(f *testing.F) {
	for _, s := range []string{`ENV A="b c" D=e\ f`, `HEALTHCHECK --retries=3 CMD ["a"]`, `EXPOSE 90-91/udp`, `LABEL 'a`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var c ocispec.ImageConfig
		if applyChanges(&c, []string{s}) == nil && len(c.ExposedPorts) > 1<<16 {
			t.Errorf("%d ports", len(c.ExposedPorts))
		}
	})
}

// Whatever is in an archive, nothing of it leaves the directory, and reading
// ends.
func FuzzLoadArchive(f *testing.F) {
	entry, _ := json.Marshal([]dockerEntry{{Config: "c.json", RepoTags: []string{"a:b"}, Layers: []string{"l.tar"}}})
	f.Add(tarOf(file{name: "manifest.json", body: string(entry)}, file{name: "c.json", body: `{"rootfs":{"type":"layers","diff_ids":[]}}`}))
	f.Add(tarOf(file{name: "oci-layout", body: "{}"}, file{name: "index.json", body: `{"schemaVersion":2,"manifests":[]}`}))
	f.Add(gz(tarOf(file{name: "../../x", body: "y"})))
	f.Fuzz(func(t *testing.T, b []byte) {
		archive, err := readBundle(context.Background(), io.LimitReader(bytes.NewReader(b), 1<<20), t.TempDir())
		if err != nil {
			return
		}
		archive.dockerImages(LoadRequest{})
		archive.ociImages(LoadRequest{})
	})
}
