package main

import (
	"encoding/json"
	"reflect"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var documents = []string{
	`{}`, ` { "ociVersion" : "1.0.2" } `, `{"ociVersion":null,"process":null}`, `{"process":{"args":["a","b\n\u00e9"],"env":[],"rlimits":null}}`,
	`{"linux":{"resources":{"memory":{"limit":-1,"swappiness":60},"devices":[{"allow":true,"major":1,"access":"rwm"}]}}}`,
	`{"mounts":[{"destination":"/x","options":["ro"]},{"destination":"/y","uidMappings":[{"containerID":1,"hostID":2,"size":3}]}]}`,
	`{"annotations":{"a":"b","a":"c"},"unknown":{"x":[1,2.5,-3e9,{"y":null}],"z":true},"hostname":"h"}`,
	`{"ociversion":"1.0.0"}`, `{"hostname":5}`, `{"process":{"oomScoreAdj":1.5}}`, `{"process":{"user":{"uid":-1}}}`, `{"process":{"user":{"uid":4294967296}}}`,
	`{"a":01}`, `{"a":1`, `{"a":}`, `[]`, `null`, ``, `{} x`, `{"hostname":"` + "\x01" + `"}`, `{"hostname":"` + "\xff" + `"}`, `{"process":{"terminal":tru}}`,
	`{"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"syscalls":[{"names":["x"],"args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]}]}}}`,
	`{"process":{"capabilities":{"bounding":["CAP_KILL"]}},"process":{"cwd":"/"}}`, `{"x":- }`, `{"x":1.}`, `{"vm":{"hypervisor":{"path":"/x"}}}`,
}

func same(t *testing.T, data []byte) {
	t.Helper()
	var a, b specs.Spec
	errA, errB := json.Unmarshal(data, &a), decodeConfig(data, &b)
	if (errA == nil) != (errB == nil) || errA == nil && !reflect.DeepEqual(a, b) {
		t.Errorf("%q:\n%+v %v\n%+v %v", data, a, errA, b, errB)
	}
}

func TestDecodeAsEncodingJSON(t *testing.T) {
	for _, doc := range documents {
		same(t, []byte(doc))
	}
	example, err := json.Marshal(exampleSpec())
	if err != nil {
		t.Fatal(err)
	}
	same(t, example)
	var s specs.Spec
	d := decoder{data: example}
	if !d.value(reflect.ValueOf(&s).Elem()) {
		t.Error("the example is not plain")
	}
}

func FuzzDecode(f *testing.F) {
	for _, doc := range documents {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < 1<<16 {
			same(t, data)
		}
	})
}
