package container

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// What a request for devices means in CDI's names.
func TestCDINames(t *testing.T) {
	gpu := [][]string{{"gpu"}}
	for _, c := range []struct {
		r       container.DeviceRequest
		vendors string
		want    string // "" = refused
	}{
		{container.DeviceRequest{Driver: "cdi", DeviceIDs: []string{"a.org/b=c", "a.org/b=d"}}, "", "a.org/b=c a.org/b=d"},
		{container.DeviceRequest{Driver: "cdi", Count: 1}, "", ""},
		{container.DeviceRequest{Driver: "cdi", Options: map[string]string{"a": "b"}}, "", ""},
		{container.DeviceRequest{Count: -1, Capabilities: gpu}, "nvidia.com", "nvidia.com/gpu=all"},
		{container.DeviceRequest{Count: 2, Capabilities: gpu}, "amd.com other.org", "amd.com/gpu=0 amd.com/gpu=1"},
		{container.DeviceRequest{DeviceIDs: []string{"GPU-x", "nvidia.com/mig=1"}, Capabilities: [][]string{{"gpu", "utility"}}}, "amd.com nvidia.com", "nvidia.com/gpu=GPU-x nvidia.com/mig=1"},
		{container.DeviceRequest{Driver: "amd", Count: -1}, "amd.com nvidia.com", "amd.com/gpu=all"},
		{container.DeviceRequest{Driver: "nvidia", Count: -1}, "amd.com", ""},
		{container.DeviceRequest{Count: -1, Capabilities: gpu}, "", ""},
		{container.DeviceRequest{Count: -1, Capabilities: [][]string{{"tpu"}}}, "nvidia.com", ""},
		{container.DeviceRequest{Count: 1, DeviceIDs: []string{"0"}, Capabilities: gpu}, "nvidia.com", ""},
	} {
		got, err := cdiNames(c.r, strings.Fields(c.vendors))
		if strings.Join(got, " ") != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v with %q: %v, %v", c.r, c.vendors, got, err)
		}
	}
}
