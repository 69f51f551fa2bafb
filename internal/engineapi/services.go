package engineapi

import (
	"context"
	"io"
	"net"
	"net/netip"

	containertypes "github.com/moby/moby/api/types/container"
	networktypes "github.com/moby/moby/api/types/network"
	systemtypes "github.com/moby/moby/api/types/system"
	"google.golang.org/grpc"

	"github.com/onggi/onggi/internal/api"
	"github.com/onggi/onggi/internal/build"
	"github.com/onggi/onggi/internal/container"
	"github.com/onggi/onggi/internal/image"
	"github.com/onggi/onggi/internal/network"
	"github.com/onggi/onggi/internal/ocispec"
	"github.com/onggi/onggi/internal/reference"
	"github.com/onggi/onggi/internal/registry"
	"github.com/onggi/onggi/internal/volume"
)

// Containers is what this package needs of the container service.
type Containers interface {
	containerLife
	containerLooks
	containerStreams
	containerExecs
}

type containerLife interface {
	Create(ctx context.Context, q container.CreateRequest) (id string, warnings []string, err error)
	Start(ctx context.Context, ref string, o container.StartOptions) error
	Stop(ctx context.Context, ref string, o container.StopOptions) error
	Restart(ctx context.Context, ref string, o container.StopOptions) error
	Kill(ctx context.Context, ref, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Rename(ctx context.Context, ref, name string) error
	Update(ctx context.Context, ref string, u containertypes.UpdateConfig) ([]string, error)
	Unlink(ctx context.Context, ref string) error
	Remove(ctx context.Context, ref string, o container.RemoveOptions) error
	Wait(ref string, cond containertypes.WaitCondition) (func(context.Context) (container.WaitResult, error), error)
	Prune(ctx context.Context, filters map[string][]string) (containertypes.PruneReport, error)
}

type containerLooks interface {
	CDIDevices() (found []systemtypes.DeviceInfo, warnings []string)
	List(ctx context.Context, o container.ListOptions) ([]containertypes.Summary, error)
	Inspect(ctx context.Context, ref string, size bool) (containertypes.InspectResponse, error)
	Top(ref, args string) (containertypes.TopResponse, error)
	Changes(ctx context.Context, ref string) ([]containertypes.FilesystemChange, error)
	Stats(ctx context.Context, ref string, stream, oneShot bool, emit func(containertypes.StatsResponse) bool) error
	Counts() (running, paused, stopped int)
	Endpoints() map[string][]container.EndpointView
	VolumeUsers() map[string]int
	UsersOfImage(id string) []string
	IDsOfImage(id string) []string
	NamesOfImage(id string) []string
	Connect(ctx context.Context, ref, network string, ep *networktypes.EndpointSettings) error
	Disconnect(ctx context.Context, ref, network, networkID string, force bool) error
	Commit(ctx context.Context, ref string, o container.CommitOptions) (imageID string, err error)
}

type containerStreams interface {
	Attach(ctx context.Context, ref string, o container.AttachOptions, ready func() (container.Stream, error)) error
	Resize(ctx context.Context, ref string, height, width uint16) error
	LogsTTY(ref string) (bool, error)
	Logs(ctx context.Context, ref string, o container.LogOptions, w io.Writer) error
	StatPath(ctx context.Context, ref, path string) (containertypes.PathStat, error)
	ArchivePath(ctx context.Context, ref, path string) (st containertypes.PathStat, write func(io.Writer) error, close func(), err error)
	ExtractPath(ctx context.Context, ref, path string, o container.ExtractOptions, r io.Reader) error
	Export(ctx context.Context, ref string) (write func(io.Writer) error, close func(), err error)
}

type containerExecs interface {
	ExecCreate(ctx context.Context, ref string, q containertypes.ExecCreateRequest) (id string, err error)
	ExecStart(ctx context.Context, id string, q containertypes.ExecStartRequest, ready func() (container.Stream, error)) error
	ExecResize(ctx context.Context, id string, height, width uint16) error
	ExecInspect(id string) (containertypes.ExecInspectResponse, error)
}

// Images is what this package needs of the image service.
type Images interface {
	Get(nameOrID string) (image.Image, error)
	GetFor(nameOrID string, p *ocispec.Platform) (image.Image, error)
	Parts(img image.Image) ([]image.Part, error)
	Statements(nameOrID string, p *ocispec.Platform) ([]image.Statement, error)
	List(o image.ListOptions) ([]image.Image, error)
	Usage(inUse func(id string) bool) image.Usage
	History(nameOrID string, p *ocispec.Platform) ([]image.HistoryItem, error)
	Tag(ctx context.Context, src string, ref reference.Ref) error
	Remove(ctx context.Context, nameOrID string, o image.RemoveOptions) ([]image.Removed, error)
	Prune(ctx context.Context, o image.PruneOptions) (image.PruneReport, error)
	Pull(ctx context.Context, q image.PullRequest, report func(image.Progress)) (image.Image, error)
	Push(ctx context.Context, q image.PushRequest, report func(image.Progress)) (image.PushResult, error)
	Save(ctx context.Context, q image.SaveRequest, w io.Writer) error
	Load(ctx context.Context, q image.LoadRequest, r io.Reader, report func(image.Progress)) ([]image.Loaded, error)
	Import(ctx context.Context, r io.Reader, q image.ImportRequest) (image.Image, error)
}

// Networks is what this package needs of the network service.
type Networks interface {
	Create(ctx context.Context, q network.CreateRequest) (network.Network, error)
	Get(nameOrID string) (network.Network, error)
	List(filters map[string][]string) ([]network.Network, error)
	Status(nameOrID string) (map[netip.Prefix]network.SubnetStatus, error)
	Remove(ctx context.Context, nameOrID string) error
	Prune(ctx context.Context, filters map[string][]string) ([]string, error)
}

// Volumes is what this package needs of the volume service.
type Volumes interface {
	Create(ctx context.Context, q volume.CreateRequest) (volume.Volume, error)
	Get(name string) (volume.Volume, error)
	List(filters map[string][]string) ([]volume.Volume, error)
	Remove(ctx context.Context, name string, force bool) error
	Size(name string) (int64, error)
	Prune(ctx context.Context, o volume.PruneOptions) (names []string, freed int64, err error)
}

// Registry is what this package needs of the registry client.
type Registry interface {
	Login(ctx context.Context, a registry.Auth) (token string, err error)
	Search(ctx context.Context, term string, limit int, a registry.Auth) ([]registry.SearchResult, error)
	Repository(ref reference.Ref, a registry.Auth) *registry.Repository
}

// Builder is what this package needs of the build service.
type Builder interface {
	Classic(ctx context.Context, q build.ClassicRequest, emit func(build.Message) error) error
	Cancel(id string) error
	HandleSession(ctx context.Context, conn net.Conn, headers map[string][]string) error
	Prune(ctx context.Context, q build.PruneRequest) (build.Pruned, error)
	DiskUsage(ctx context.Context, filters ...string) ([]*build.CacheRecord, error)
	GRPC(ctx context.Context) (*grpc.Server, error)
	ServeGRPC(ctx context.Context, conn net.Conn) error
	Why(ctx context.Context, ref string) (*api.BuildWhy, error)
	TakeDirectories(ctx context.Context, conn *net.UnixConn) error
}
