package api

import "encoding/json"

// ContainerSummary is one line of a container list.
type ContainerSummary struct {
	ID         string `json:"Id"`
	Names      []string
	Image      string
	ImageID    string
	Command    string
	Created    int64
	Ports      []Port
	SizeRw     int64
	SizeRootFs int64
	Labels     map[string]string
	State      string
	Status     string
	HostConfig struct{ NetworkMode string }

	NetworkSettings struct{ Networks map[string]json.RawMessage }
	Mounts          []MountPoint
}

// Port is a published or exposed port.
type Port struct {
	IP          string
	PrivatePort uint16
	PublicPort  uint16
	Type        string
}

// MountPoint is something mounted in a container.
type MountPoint struct {
	Type, Name, Source, Destination, Driver, Mode string
	RW                                            bool
}

// Container is what the command line needs of an inspected container; Raw
// holds all of it.
type Container struct {
	ID           string `json:"Id"`
	Name         string
	Image        string
	Created      string
	RestartCount int
	LogPath      string
	State        ContainerState
	Config       struct {
		Tty, OpenStdin, StdinOnce               bool
		AttachStdin, AttachStdout, AttachStderr bool
		Image                                   string
		Labels                                  map[string]string
	}
	HostConfig struct {
		AutoRemove    bool
		NetworkMode   string
		RestartPolicy struct{ Name string }
		LogConfig     struct{ Type string }
	}
	NetworkSettings struct {
		Ports map[string][]PortBinding
	}
}

// PortBinding is the host's side of a published port.
type PortBinding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

// ContainerState is the life-cycle part of an inspected container.
type ContainerState struct {
	Status                string
	Running, Paused       bool
	Restarting, OOMKilled bool
	Pid, ExitCode         int
	Error                 string
	StartedAt, FinishedAt string
	Health                *struct {
		Status        string
		FailingStreak int
	}
}

// ImageSummary is one line of an image list.
type ImageSummary struct {
	ID          string `json:"Id"`
	ParentID    string `json:"ParentId"`
	RepoTags    []string
	RepoDigests []string
	Created     int64
	Size        int64
	SharedSize  int64
	Containers  int64
	Labels      map[string]string
	Manifests   []ManifestSummary
}

// ManifestSummary is one platform, or something beside, of an image.
type ManifestSummary struct {
	ID        string
	Available bool
	Kind      string
	Size      struct{ Content, Total int64 }
	ImageData *struct {
		Platform   struct{ OS, Architecture, Variant string }
		Containers []string
	}
}

// HistoryItem is one step of an image's history.
type HistoryItem struct {
	ID        string `json:"Id"`
	Created   int64
	CreatedBy string
	Tags      []string
	Size      int64
	Comment   string
}

// Removed is one line of an image removal.
type Removed struct{ Untagged, Deleted string }

// Progress is one message of a stream that pulls, pushes, loads, imports or
// builds.
type Progress struct {
	Stream   string `json:"stream"`
	Status   string `json:"status"`
	ID       string `json:"id"`
	Progress *struct {
		Current, Total int64
		HideCounts     bool   `json:"hidecounts"`
		Units          string `json:"units"`
	} `json:"progressDetail"`
	Error *struct {
		Code    int    `json:"code"`
		Message string `json:"message"`
		Hint    string `json:"hint"`
	} `json:"errorDetail"`
	Aux json.RawMessage `json:"aux"`
}

// Event is one message of the event stream.
type Event struct {
	Type, Action string
	Actor        struct {
		ID         string
		Attributes map[string]string
	}
	Scope    string `json:"scope"`
	Time     int64  `json:"time"`
	TimeNano int64  `json:"timeNano"`
}

// NetworkSummary is one line of a network list.
type NetworkSummary struct {
	ID         string `json:"Id"`
	Name       string
	Driver     string
	Scope      string
	Created    string
	Internal   bool
	EnableIPv6 bool
	Labels     map[string]string
}

// Volume is one volume.
type Volume struct {
	Name, Driver, Mountpoint, Scope, CreatedAt string
	Labels, Options                            map[string]string
	UsageData                                  *struct{ Size, RefCount int64 }
}

// EngineVersion is the answer to GET /version.
type EngineVersion struct {
	Platform      struct{ Name string }
	Version       string
	APIVersion    string `json:"ApiVersion"`
	MinAPIVersion string
	GitCommit     string
	GoVersion     string
	Os, Arch      string
	KernelVersion string
	BuildTime     string
	Experimental  bool
	Components    []struct {
		Name, Version string
		Details       map[string]string
	}
}
