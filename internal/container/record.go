package container

import (
	"encoding/json"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/opencontainers/go-digest"

	"github.com/onggi/onggi/internal/errdefs"
	"github.com/onggi/onggi/internal/metadb"
	"github.com/onggi/onggi/internal/ocispec"
)

const (
	recordBucket = "container"
	statusBucket = "container-state"

	// recordVersion is raised when an older engine could not read the record.
	recordVersion = 1
)

// Record is what was asked for, in normal form. A Record in memory is never
// changed; a changed one replaces it.
type Record struct {
	Version       int
	ID            string
	Name          string
	Created       time.Time
	ImageID       string
	ImageManifest *Manifest
	Config        *Config
	HostConfig    *HostConfig
	Networks      map[string]*network.EndpointSettings // by the name or ID that the request used
	Mounts        []Mount
	Platform      string
	Project       uint32 `json:",omitempty"` // of the quota that limits what it writes
}

// Manifest points at the image's manifest.
type Manifest struct {
	MediaType string
	Digest    string
	Size      int64
	Platform  *ocispec.Platform
}

func (m *Manifest) descriptor() *ocispec.Descriptor {
	return &ocispec.Descriptor{MediaType: m.MediaType, Digest: digest.Digest(m.Digest), Size: m.Size, Platform: m.Platform}
}

// Status is how a container stands; it is written at every change of state.
type Status struct {
	State         State
	PID           int
	ExitCode      int
	Error         string
	StartFailed   bool // Error is why the last start did not work
	OOMKilled     bool
	StartedAt     time.Time
	FinishedAt    time.Time
	RestartCount  int
	StopRequested bool                   // a person stopped it: "unless-stopped" keeps it so
	Backoff       time.Duration          // pause before the next restart
	Health        container.HealthStatus // of the current run; "" = none yet
	HealthStreak  int
	BootID        string
	Sandbox       SandboxStatus
}

// SandboxStatus is what the network gave to the current, or last, run.
type SandboxStatus struct {
	Endpoints []EndpointStatus
	Ports     []PortStatus
}

// EndpointStatus is one network of a run.
type EndpointStatus struct {
	NetworkName, NetworkID, EndpointID string
	IPv4, IPv6                         netip.Prefix
	Gateway4, Gateway6                 netip.Addr
	MAC                                string
	Aliases, DNSNames                  []string
}

// PortStatus is one published port.
type PortStatus struct {
	Port     uint16
	Proto    string
	HostIP   netip.Addr
	HostPort uint16
}

// statusRecord is a Status on disk: states by name, because numbers move.
type statusRecord struct {
	Status
	State string
}

func putRecord(tx *metadb.Tx, r *Record) error { return tx.Put(recordBucket, r.ID, r) }

func putStatus(tx *metadb.Tx, id string, s Status) error {
	return tx.Put(statusBucket, id, statusRecord{Status: s, State: s.State.String()})
}

func deleteRecords(tx *metadb.Tx, id string) error {
	if err := tx.Delete(statusBucket, id); err != nil {
		return err
	}
	return tx.Delete(recordBucket, id)
}

// loadRecords reads all containers. One that cannot be read is reported and
// left where it is: it may be a newer engine's.
func loadRecords(tx *metadb.Tx, bad func(id string, err error)) (map[string]*Container, error) {
	out := map[string]*Container{}
	err := tx.Each(recordBucket, func(id string, raw json.RawMessage) error {
		r := &Record{}
		if err := json.Unmarshal(raw, r); err != nil {
			bad(id, err)
			return nil
		}
		if r.Version > recordVersion || r.ID != id || r.Config == nil || r.HostConfig == nil {
			bad(id, errdefs.Newf(errdefs.Unsupported, "read", "record", "version %d is not understood", r.Version))
			return nil
		}
		out[id] = newContainer(r, Status{})
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = tx.Each(statusBucket, func(id string, raw json.RawMessage) error {
		var s statusRecord
		c := out[id]
		if c == nil {
			return nil
		}
		if err := json.Unmarshal(raw, &s); err != nil {
			bad(id, err)
			return nil
		}
		c.st = s.Status
		c.st.State = parseState(s.State)
		return nil
	})
	return out, err
}
