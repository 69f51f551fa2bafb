package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"runtime"
	"sort"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

func systemCommands() []command {
	return []command{
		{paths: []string{"version"}, args: "[OPTIONS]", short: "Show the versions of client and engine", max: 0, setup: setupVersion},
		{paths: []string{"info", "system info"}, args: "[OPTIONS]", short: "Show what the engine is and has", max: 0, setup: setupInfo},
		{paths: []string{"events", "system events"}, args: "[OPTIONS]", short: "Show what happens in the engine", max: 0, setup: setupEvents},
		{paths: []string{"system df"}, args: "[OPTIONS]", short: "Show what takes the disk", max: 0, setup: setupDf},
		{paths: []string{"system prune"}, args: "[OPTIONS]", short: "Remove what is not used", max: 0, setup: setupSystemPrune},
		{paths: []string{"system dial-stdio"}, short: "Connect standard input and output to the engine, as ssh:// addresses do", max: 0, setup: setupDialStdio},
		{paths: []string{"inspect"}, args: "[OPTIONS] NAME|ID [NAME|ID...]", short: "Show everything about objects", min: 1, max: -1, setup: setupInspect("")},
	}
}

// commands is the whole table.
func commands() []command {
	var all []command
	for _, part := range [][]command{runCommands(), containerCommands(), imageCommands(), loginCommands(), systemCommands(), networkCommands(), volumeCommands(), copyCommands(), contextCommands(), whyCommands(), pluginCommands(), completionCommands()} {
		all = append(all, part...)
	}
	return all
}

func setupVersion(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	format := f.StringP("format", "f", "", "json, or a Go template")
	return func(ctx context.Context, args []string) error {
		client := map[string]any{"Version": Version, "ApiVersion": api.Version, "DefaultAPIVersion": api.Version, "GitCommit": Commit, "GoVersion": runtime.Version(), "Os": runtime.GOOS, "Arch": runtime.GOARCH, "Platform": map[string]any{"Name": "Onggi"}}
		var server map[string]any
		var raw json.RawMessage
		err := e.call(ctx, "GET", "/version", nil, nil, &raw)
		if err == nil {
			err = decode(raw, &server)
		}
		if *format != "" {
			all := map[string]any{"Client": client, "Server": server}
			if *format == "json" {
				data, _ := json.Marshal(all)
				fmt.Fprintf(e.out, "%s\n", data)
			} else if terr := e.template(*format, []any{all}); terr != nil {
				return terr
			}
			return err
		}
		fmt.Fprintf(e.out, "Client: Onggi\n Version:           %s\n API version:       %s\n Go version:        %s\n Git commit:        %s\n OS/Arch:           %s/%s\n", Version, api.Version, runtime.Version(), Commit, runtime.GOOS, runtime.GOARCH)
		if err != nil {
			return err
		}
		var v api.EngineVersion
		if err := json.Unmarshal(raw, &v); err != nil {
			return err
		}
		fmt.Fprintf(e.out, "\nServer: Onggi\n Engine:\n  Version:          %s\n  API version:      %s (minimum version %s)\n  Go version:       %s\n  Git commit:       %s\n  OS/Arch:          %s/%s\n  Kernel:           %s\n",
			v.Version, v.APIVersion, v.MinAPIVersion, v.GoVersion, v.GitCommit, v.Os, v.Arch, v.KernelVersion)
		for _, c := range v.Components {
			if c.Name != "Engine" {
				fmt.Fprintf(e.out, " %s:\n  Version:          %s\n", c.Name, c.Version)
			}
		}
		return nil
	}
}

// decode keeps numbers as they are written.
func decode(raw []byte, into any) error {
	d := json.NewDecoder(strings.NewReader(string(raw)))
	d.UseNumber()
	return d.Decode(into)
}

func setupInfo(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	format := f.StringP("format", "f", "", "json, or a Go template")
	return func(ctx context.Context, args []string) error {
		var raw json.RawMessage
		if err := e.call(ctx, "GET", "/info", nil, nil, &raw); err != nil {
			return err
		}
		switch *format {
		case "json":
			fmt.Fprintf(e.out, "%s\n", strings.TrimSpace(string(raw)))
			return nil
		case "":
		default:
			var m map[string]any
			if err := decode(raw, &m); err != nil {
				return err
			}
			return e.template(*format, []any{m})
		}
		var i struct {
			Containers, ContainersRunning, ContainersPaused, ContainersStopped, Images, NCPU int
			ServerVersion, Driver, LoggingDriver, CgroupDriver, CgroupVersion                string
			KernelVersion, OperatingSystem, OSType, Architecture, Name, ID, DockerRootDir    string
			DefaultRuntime                                                                   string
			MemTotal                                                                         int64
			SecurityOptions, Warnings, CDISpecDirs                                           []string
			DiscoveredDevices                                                                []struct{ Source, ID string }
			Runtimes                                                                         map[string]any
		}
		if err := json.Unmarshal(raw, &i); err != nil {
			return err
		}
		fmt.Fprintf(e.out, "Client:\n Version:    %s\n\nServer:\n Containers: %d\n  Running: %d\n  Paused: %d\n  Stopped: %d\n Images: %d\n Server Version: %s\n Storage Driver: %s\n Logging Driver: %s\n Cgroup Driver: %s\n Cgroup Version: %s\n",
			Version, i.Containers, i.ContainersRunning, i.ContainersPaused, i.ContainersStopped, i.Images, i.ServerVersion, i.Driver, i.LoggingDriver, i.CgroupDriver, i.CgroupVersion)
		list := func(head string, lines []string) {
			for k, l := range lines {
				if k == 0 {
					fmt.Fprintf(e.out, " %s:\n", head)
				}
				fmt.Fprintf(e.out, "  %s\n", l)
			}
		}
		var devices []string
		for _, d := range i.DiscoveredDevices {
			devices = append(devices, d.Source+": "+d.ID)
		}
		list("CDI spec directories", i.CDISpecDirs)
		list("Discovered Devices", devices)
		for k, o := range i.SecurityOptions {
			i.SecurityOptions[k] = strings.TrimPrefix(o, "name=")
		}
		list("Security Options", i.SecurityOptions)
		fmt.Fprintf(e.out, " Kernel Version: %s\n Operating System: %s\n OSType: %s\n Architecture: %s\n CPUs: %d\n Total Memory: %s\n Name: %s\n ID: %s\n Root Dir: %s\n",
			i.KernelVersion, i.OperatingSystem, i.OSType, i.Architecture, i.NCPU, binarySize(uint64(i.MemTotal)), i.Name, i.ID, i.DockerRootDir)
		for _, w := range i.Warnings {
			fmt.Fprintf(e.err, "%s\n", w)
		}
		return nil
	}
}

func setupEvents(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	filter := f.StringArrayP("filter", "f", nil, "only those that match: type=container, event=die")
	format := f.String("format", "", "json, or a Go template")
	since := f.String("since", "", "from a time, or a duration back")
	until := f.String("until", "", "up to a time, or a duration back")
	return func(ctx context.Context, args []string) error {
		q, err := filters(*filter)
		if err != nil {
			return err
		}
		for k, v := range map[string]string{"since": *since, "until": *until} {
			if v != "" {
				t, err := timestamp(v, time.Now())
				if err != nil {
					return flagError(k, v, "%v", err)
				}
				q.Set(k, t)
			}
		}
		resp, err := e.do(ctx, api.Request{Method: "GET", Path: "/events", Query: q})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		dec := json.NewDecoder(resp.Body)
		for {
			var raw json.RawMessage
			if err := dec.Decode(&raw); err != nil {
				if err == io.EOF || ctx.Err() != nil {
					return nil
				}
				return fmt.Errorf("read the events: %w", err)
			}
			if err := e.event(raw, *format); err != nil {
				return err
			}
		}
	}
}

func (e *env) event(raw json.RawMessage, format string) error {
	switch format {
	case "json":
		fmt.Fprintf(e.out, "%s\n", raw)
		return nil
	case "":
	default:
		var m map[string]any
		if err := decode(raw, &m); err != nil {
			return err
		}
		return e.template(format, []any{m})
	}
	var ev api.Event
	if err := json.Unmarshal(raw, &ev); err != nil {
		return err
	}
	var attrs []string
	for k, v := range ev.Actor.Attributes {
		attrs = append(attrs, k+"="+v)
	}
	sort.Strings(attrs)
	suffix := ""
	if len(attrs) > 0 {
		suffix = " (" + strings.Join(attrs, ", ") + ")"
	}
	fmt.Fprintf(e.out, "%s %s %s %s%s\n", time.Unix(0, ev.TimeNano).Format("2006-01-02T15:04:05.000000000Z07:00"), ev.Type, ev.Action, ev.Actor.ID, suffix)
	return nil
}

// usage is the answer to GET /system/df.
type usage struct {
	ImageUsage struct {
		counts
		Items []api.ImageSummary
	}
	ContainerUsage struct {
		counts
		Items []api.ContainerSummary
	}
	VolumeUsage struct {
		counts
		Items []api.Volume
	}
	BuildCacheUsage struct {
		counts
		Items []cacheRecord
	}
}

type counts struct {
	TotalCount, ActiveCount, TotalSize, Reclaimable int64
}

type cacheRecord struct {
	ID, Type, Description string
	InUse, Shared         bool
	Size                  int64
	CreatedAt, LastUsedAt *time.Time
	UsageCount            int
}

// cacheList shows what the build cache holds.
func cacheList(records []cacheRecord, whole bool) *list {
	l := &list{columns: []string{"ID", "Type", "Size", "CreatedSince", "LastUsedSince", "UsageCount", "Shared", "Description"}, titles: map[string]string{
		"ID": "CACHE ID", "Type": "CACHE TYPE", "CreatedSince": "CREATED", "LastUsedSince": "LAST USED", "UsageCount": "USAGE"}}
	since := func(t *time.Time) string {
		if t == nil || t.IsZero() {
			return ""
		}
		return ago(time.Since(*t)) + " ago"
	}
	for _, b := range records {
		id, text := b.ID, b.Description
		if !whole {
			id, text = shortID(id), ellipsis(text, 60)
		}
		l.rows = append(l.rows, row{"ID": id, "Type": b.Type, "Size": humanSize(b.Size), "CreatedSince": since(b.CreatedAt), "LastUsedSince": since(b.LastUsedAt),
			"UsageCount": fmt.Sprint(b.UsageCount), "InUse": fmt.Sprint(b.InUse), "Shared": fmt.Sprint(b.Shared), "Description": text})
	}
	return l
}

func setupDf(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	format := f.String("format", "", "table, json, or a Go template")
	verbose := f.BoolP("verbose", "v", false, "every object")
	return func(ctx context.Context, args []string) error {
		q := url.Values{}
		if *verbose {
			q.Set("verbose", "1")
		}
		var u usage
		if err := e.call(ctx, "GET", "/system/df", q, nil, &u); err != nil {
			return err
		}
		if *verbose {
			return e.dfVerbose(&u)
		}
		l := &list{columns: []string{"Type", "TotalCount", "Active", "Size", "Reclaimable"}, titles: map[string]string{"TotalCount": "TOTAL"}}
		for _, k := range []struct {
			kind string
			c    counts
		}{{"Images", u.ImageUsage.counts}, {"Containers", u.ContainerUsage.counts}, {"Local Volumes", u.VolumeUsage.counts}, {"Build Cache", u.BuildCacheUsage.counts}} {
			free := humanSize(k.c.Reclaimable)
			if k.c.TotalSize > 0 {
				free += fmt.Sprintf(" (%d%%)", k.c.Reclaimable*100/k.c.TotalSize)
			}
			l.rows = append(l.rows, row{"Type": k.kind, "TotalCount": fmt.Sprint(k.c.TotalCount), "Active": fmt.Sprint(k.c.ActiveCount), "Size": humanSize(k.c.TotalSize), "Reclaimable": free})
		}
		return e.show(l, *format, false)
	}
}

func (e *env) dfVerbose(u *usage) error {
	now := time.Now()
	images := &list{columns: []string{"Repository", "Tag", "ID", "CreatedSince", "Size", "SharedSize", "Containers"}, titles: map[string]string{"ID": "IMAGE ID", "CreatedSince": "CREATED"}}
	for _, im := range u.ImageUsage.Items {
		for _, r := range imageRows(im, now, false) {
			r["SharedSize"] = humanSize(max(im.SharedSize, 0))
			images.rows = append(images.rows, r)
		}
	}
	containers := &list{columns: []string{"ID", "Image", "Command", "LocalVolumes", "Size", "RunningFor", "Status", "Names"}, titles: map[string]string{"ID": "CONTAINER ID", "RunningFor": "CREATED"}}
	for _, c := range u.ContainerUsage.Items {
		containers.rows = append(containers.rows, psRow(&c, now, false, false))
	}
	volumes := &list{columns: []string{"Name", "Links", "Size"}, titles: map[string]string{"Name": "VOLUME NAME"}}
	for _, v := range u.VolumeUsage.Items {
		r := row{"Name": v.Name, "Links": "0", "Size": "N/A"}
		if v.UsageData != nil {
			r["Links"], r["Size"] = fmt.Sprint(v.UsageData.RefCount), humanSize(v.UsageData.Size)
		}
		volumes.rows = append(volumes.rows, r)
	}
	cache := cacheList(u.BuildCacheUsage.Items, false)
	for _, part := range []struct {
		title string
		list  *list
	}{{"Images space usage:", images}, {"\nContainers space usage:", containers}, {"\nLocal Volumes space usage:", volumes}, {"\nBuild cache usage:", cache}} {
		fmt.Fprintf(e.out, "%s\n\n", part.title)
		if err := e.show(part.list, "", false); err != nil {
			return err
		}
	}
	return nil
}

func setupSystemPrune(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	all := f.BoolP("all", "a", false, "all images that are not used, not only those without a name")
	filter := f.StringArray("filter", nil, "only those that match: until=24h, label=…")
	force := f.BoolP("force", "f", false, "do not ask")
	volumes := f.Bool("volumes", false, "anonymous volumes too")
	return func(ctx context.Context, args []string) error {
		q, err := filters(*filter)
		if err != nil {
			return err
		}
		images := *filter
		what := []string{"all stopped containers", "all networks not used by at least one container"}
		if *volumes {
			what = append(what, "all anonymous volumes not used by at least one container")
		}
		if *all {
			images = append(images, "dangling=false")
			what = append(what, "all images without at least one container associated to them")
		} else {
			what = append(what, "all dangling images")
		}
		what = append(what, "unused build cache")
		if !*force && !e.confirm("This will remove:\n  - "+strings.Join(what, "\n  - ")+"\n") {
			return nil
		}
		iq, err := filters(images)
		if err != nil {
			return err
		}
		bq := url.Values{"filters": q["filters"]}
		if *all {
			bq.Set("all", "1")
		}
		type part struct {
			what string
			q    url.Values
		}
		parts := []part{{"containers", q}, {"networks", q}, {"images", iq}, {"build", bq}}
		if *volumes {
			parts = append(parts[:2], append([]part{{"volumes", q}}, parts[2:]...)...)
		}
		var total int64
		quiet := *e
		for _, p := range parts {
			var b strings.Builder
			quiet.out = &b
			n, err := quiet.prune(ctx, p.what, p.q)
			if err != nil {
				return fmt.Errorf("prune %s: %w", p.what, err)
			}
			total += n
			text, _, _ := strings.Cut(b.String(), "Total reclaimed space")
			io.WriteString(e.out, text)
		}
		fmt.Fprintf(e.out, "Total reclaimed space: %s\n", humanSize(total))
		return nil
	}
}

// kinds are the objects that inspect looks for, in Docker's order.
var kinds = []struct{ name, path string }{
	{"container", "/containers/%s/json"}, {"image", "/images/%s/json"}, {"network", "/networks/%s"}, {"volume", "/volumes/%s"},
}

// setupInspect shows objects of one kind, or of the first that has the name.
func setupInspect(kind string) func(*env, *pflag.FlagSet) func(context.Context, []string) error {
	return func(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
		format := f.StringP("format", "f", "", "json, or a Go template")
		size := f.BoolP("size", "s", false, "sizes too")
		typ, platform := &kind, new(string)
		if kind == "" {
			typ = f.String("type", "", "container, image, network or volume")
		}
		if kind == "image" {
			platform = f.String("platform", "", "platform, where the image has several")
		}
		if kind == "network" {
			f.BoolP("verbose", "v", false, "accepted for Docker's sake")
		}
		return func(ctx context.Context, args []string) error {
			var found []json.RawMessage
			ferr := e.each(args, func(name string) error {
				raw, err := e.lookup(ctx, *typ, name, *platform, *size)
				if err == nil {
					found = append(found, raw)
				}
				return err
			})
			if err := e.showObjects(found, *format); err != nil {
				return err
			}
			return ferr
		}
	}
}

// showObjects prints what inspect found.
func (e *env) showObjects(found []json.RawMessage, format string) error {
	switch format {
	case "":
		data, err := json.MarshalIndent(found, "", "    ")
		if err != nil {
			return err
		}
		if found == nil {
			data = []byte("[]")
		}
		fmt.Fprintf(e.out, "%s\n", data)
		return nil
	case "json":
		data, _ := json.Marshal(found)
		fmt.Fprintf(e.out, "%s\n", data)
		return nil
	}
	items := make([]any, 0, len(found))
	for _, raw := range found {
		items = append(items, raw)
	}
	return e.template(format, items)
}

func (e *env) lookup(ctx context.Context, kind, name, platform string, size bool) (json.RawMessage, error) {
	known := false
	for _, k := range kinds {
		if kind != "" && kind != k.name {
			continue
		}
		known = true
		var raw json.RawMessage
		q := url.Values{}
		if size && k.name == "container" {
			q.Set("size", "1")
		}
		if platform != "" {
			q.Set("platform", platform)
		}
		arg := url.PathEscape(name)
		if k.name == "image" {
			arg = escape(name)
		}
		err := e.call(ctx, "GET", fmt.Sprintf(k.path, arg), q, nil, &raw)
		if err == nil {
			return raw, nil
		}
		if !isNotFound(err) || kind != "" {
			return nil, err
		}
	}
	if !known {
		return nil, &hinted{fmt.Errorf("there is no kind of object %q", kind), "--type container, image, network or volume"}
	}
	return nil, &hinted{errors.New("no such object: " + name), "onggi ps -a, onggi images, onggi network ls or onggi volume ls"}
}
