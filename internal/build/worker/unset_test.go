package worker

import (
	"strings"
	"testing"
)

func TestUnset(t *testing.T) {
	config := func(label string) string {
		return `{"architecture":"amd64","config":{"Env":["PATH=/bin","A=1"],"ExposedPorts":{"80/tcp":{},"53/udp":{}},"Labels":{"a":"b","org.onggi.unset":"` + label + `"},"User":"u","Volumes":{"/a":{},"/b":{}}},"x.unknown":[1]}`
	}
	for label, want := range map[string]string{
		"VOLUME=/a EXPOSE=80 env=A": `{"architecture":"amd64","config":{"Env":["PATH=/bin"],"ExposedPorts":{"53/udp":{}},"Labels":{"a":"b"},"User":"u","Volumes":{"/b":{}}},"x.unknown":[1]}`,
		"VOLUME EXPOSE":             `{"architecture":"amd64","config":{"Env":["PATH=/bin","A=1"],"Labels":{"a":"b"},"User":"u"},"x.unknown":[1]}`,
		"":                          `{"architecture":"amd64","config":{"Env":["PATH=/bin","A=1"],"ExposedPorts":{"53/udp":{},"80/tcp":{}},"Labels":{"a":"b"},"User":"u","Volumes":{"/a":{},"/b":{}}},"x.unknown":[1]}`,
	} {
		if got, err := unset([]byte(config(label))); err != nil || string(got) != want {
			t.Errorf("%q: %v\ngot  %s\nwant %s", label, err, got, want)
		}
	}
	if _, err := unset([]byte(config("USER"))); err == nil || !strings.Contains(err.Error(), "USER") {
		t.Errorf("an unknown word: %v", err)
	}
	for _, raw := range []string{"", "{}", `{"config":{}}`, `{"config":{"Labels":{"a":"b"}}}`, `[]`} {
		if got, err := unset([]byte(raw)); err != nil || string(got) != raw {
			t.Errorf("%s became %s, %v", raw, got, err)
		}
	}
}
