package ociruntime

import "slices"

// otherOptions are the mount options that are neither attributes nor
// propagation.
var otherOptions = []string{"bind", "rbind", "remount", "defaults", "idmap", "ridmap", "tmpcopyup", "sync", "async", "dirsync", "mand", "nomand",
	"lazytime", "nolazytime", "iversion", "noiversion", "silent", "loud", "acl", "noacl"}

// MountOptions are the options that mounts of a configuration may have, beside
// those of their file systems.
func MountOptions() []string {
	out := slices.Clone(otherOptions)
	for name := range attrs {
		out = append(out, name, "r"+name)
	}
	for name := range propagations {
		out = append(out, name, "r"+name)
	}
	slices.Sort(out)
	return out
}

// Capabilities are those that this kernel has.
func Capabilities() []string {
	var out []string
	for n := range min(lastCap()+1, len(capNames)) {
		out = append(out, "CAP_"+capNames[n])
	}
	return out
}
