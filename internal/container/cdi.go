package container

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/onggi/onggi/internal/errdefs"
)

// gpuVendors are the CDI vendors that --gpus chooses from, the first found.
var gpuVendors = []string{"nvidia.com", "amd.com"}

// gpuWords are the capabilities that a request for GPUs may name.
var gpuWords = []string{"gpu", "nvidia", "amd", "compute", "compat32", "graphics", "utility", "video", "display"}

// devices reads the CDI specifications of this machine as they are now: they
// change when a driver is updated.
func (s *Service) devices() (*cdi.Cache, error) {
	c, err := cdi.NewCache(cdi.WithSpecDirs(s.o.CDIDirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, errdefs.New(errdefs.Internal, "read", "CDI specifications", err)
	}
	return c, nil
}

// CDIDevices lists the devices that --device may name, and what is wrong with
// the specifications.
func (s *Service) CDIDevices() (found []system.DeviceInfo, warnings []string) {
	c, err := s.devices()
	if err != nil {
		return nil, []string{err.Error()}
	}
	for _, name := range c.ListDevices() {
		found = append(found, system.DeviceInfo{Source: "cdi", ID: name})
	}
	for file, errs := range c.GetErrors() {
		warnings = append(warnings, "CDI: Error associated with spec file "+file+": "+errors.Join(errs...).Error())
	}
	slices.Sort(warnings)
	return found, warnings
}

// cdiNames turns a request for devices into their CDI names.
func cdiNames(r container.DeviceRequest, vendors []string) ([]string, error) {
	if r.Driver == "cdi" {
		switch {
		case r.Count != 0:
			return nil, invalid("unexpected count in CDI device request")
		case len(r.Options) > 0:
			return nil, invalid("unexpected options in CDI device request")
		}
		return r.DeviceIDs, nil
	}
	vendor := ""
	for _, v := range gpuVendors {
		named := strings.TrimSuffix(r.Driver, ".cdi") == strings.TrimSuffix(v, ".com")
		if vendor == "" && slices.Contains(vendors, v) && (named || r.Driver == "" && wantsGPU(r.Capabilities)) {
			vendor = v
		}
	}
	if vendor == "" {
		return nil, errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "", "", "could not select device driver %q with capabilities: %v", r.Driver, r.Capabilities),
			"GPUs are found by a CDI specification in /etc/cdi or /var/run/cdi; nvidia-ctk cdi generate makes one")
	}
	ids := slices.Clone(r.DeviceIDs)
	switch {
	case r.Count != 0 && len(ids) > 0:
		return nil, invalid("cannot set both Count and DeviceIDs on device request")
	case r.Count < 0:
		ids = []string{"all"}
	}
	for i := range max(r.Count, 0) {
		ids = append(ids, strconv.Itoa(i))
	}
	for i, id := range ids {
		if !strings.Contains(id, "=") {
			ids[i] = vendor + "/gpu=" + id
		}
	}
	return ids, nil
}

// wantsGPU: one of the lists of capabilities is made of words for GPUs only.
func wantsGPU(any [][]string) bool {
	return slices.ContainsFunc(any, func(all []string) bool {
		return slices.Contains(all, "gpu") && !slices.ContainsFunc(all, func(w string) bool { return !slices.Contains(gpuWords, w) })
	})
}

// addDevices puts what the CDI specifications say about the requested devices
// into in: nodes and rules, and the rest as edits.
func (s *Service) addDevices(in *specInput) error {
	if len(in.Host.DeviceRequests) == 0 {
		return nil
	}
	c, err := s.devices()
	if err != nil {
		return err
	}
	var names []string
	for _, r := range in.Host.DeviceRequests {
		n, err := cdiNames(r, c.ListVendors())
		if err != nil {
			return err
		}
		names = append(names, n...)
	}
	if len(names) == 0 {
		return nil
	}
	if len(s.o.CDIDirs) == 0 {
		return errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "", "", "could not select device driver %q: CDI is switched off", "cdi"), "let cdi-spec-dirs name a directory in the engine's configuration")
	}
	edits := &specs.Spec{Process: &specs.Process{}, Linux: &specs.Linux{Resources: &specs.LinuxResources{}}}
	if _, err := c.InjectDevices(edits, names...); err != nil {
		err = errdefs.Newf(errdefs.Invalid, "", "", "CDI device injection failed: %w", err)
		return errdefs.WithHint(err, "onggi info lists the devices that are there")
	}
	if edits.Hooks != nil && in.Host.Runtime == runtimeName {
		return errdefs.WithHint(errdefs.Newf(errdefs.Unsupported, "add", "devices "+strings.Join(names, ", "), "their CDI specification has hooks, which the engine's own runtime does not run"), "--runtime runc")
	}
	in.Devices = append(in.Devices, edits.Linux.Devices...)
	in.DeviceRules = append(in.DeviceRules, edits.Linux.Resources.Devices...)
	in.Edits = edits
	return nil
}
