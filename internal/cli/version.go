package cli

// Version and Commit are set when a release is linked.
var (
	Version = "0.1.0-dev"
	Commit  = "unknown"
)
