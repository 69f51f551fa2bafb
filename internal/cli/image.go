package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/onggi/onggi/internal/api"
)

func imageCommands() []command {
	return []command{
		{paths: []string{"images", "image ls", "image list"}, args: "[OPTIONS] [REPOSITORY[:TAG]]", short: "List images", max: 1, setup: setupImages},
		{paths: []string{"pull", "image pull"}, args: "[OPTIONS] NAME[:TAG|@DIGEST]", short: "Download an image from a registry", min: 1, max: 1, setup: setupPull},
		{paths: []string{"push", "image push"}, args: "[OPTIONS] NAME[:TAG]", short: "Upload an image to a registry", min: 1, max: 1, setup: setupPush},
		{paths: []string{"tag", "image tag"}, args: "SOURCE_IMAGE[:TAG] TARGET_IMAGE[:TAG]", short: "Give an image a further name", min: 2, max: 2, setup: setupTag},
		{paths: []string{"rmi", "image rm", "image remove"}, args: "[OPTIONS] IMAGE [IMAGE...]", short: "Remove images", min: 1, max: -1, setup: setupRmi},
		{paths: []string{"history", "image history"}, args: "[OPTIONS] IMAGE", short: "Show the steps that made an image", min: 1, max: 1, setup: setupHistory},
		{paths: []string{"save", "image save"}, args: "[OPTIONS] IMAGE [IMAGE...]", short: "Write images to a tar archive", min: 1, max: -1, setup: setupSave},
		{paths: []string{"load", "image load"}, args: "[OPTIONS]", short: "Read images from a tar archive", max: 0, setup: setupLoad},
		{paths: []string{"import", "image import"}, args: "[OPTIONS] file|URL|- [REPOSITORY[:TAG]]", short: "Make an image of a file system in a tar archive", min: 1, max: 2, setup: setupImport},
		{paths: []string{"image inspect"}, args: "[OPTIONS] IMAGE [IMAGE...]", short: "Show everything about images", min: 1, max: -1, setup: setupInspect("image")},
		{paths: []string{"image prune"}, args: "[OPTIONS]", short: "Remove images that nothing uses", max: 0, setup: setupPrune("images")},
		{paths: []string{"image bootstrap"}, args: "[OPTIONS] NAME[:TAG]", short: "Make a base image from Debian's packages, where no registry can be reached", min: 1, max: 1, setup: setupBootstrap},
		{paths: []string{"build", "image build", "builder build", "buildx build", "buildx b"}, args: "[OPTIONS] PATH | URL | -", short: "Build an image from a Dockerfile", exit: 1, raw: true, max: -1, setup: setupBuild},
		{paths: []string{"builder prune", "buildx prune"}, args: "[OPTIONS]", short: "Remove build cache", max: 0, setup: setupBuilderPrune},
		{paths: []string{"builder du", "buildx du"}, args: "[OPTIONS]", short: "Show what the build cache takes", max: 0, setup: setupBuilderDu},
		{paths: []string{"search"}, args: "[OPTIONS] TERM", short: "Search Docker Hub", min: 1, max: 1, setup: setupSearch},
	}
}

func setupImages(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	all := f.BoolP("all", "a", false, "intermediate ones too")
	digests := f.Bool("digests", false, "digests too")
	filter := f.StringArrayP("filter", "f", nil, "only those that match: dangling=true, reference=…")
	format := f.String("format", "", "table, json, or a Go template")
	noTrunc := f.Bool("no-trunc", false, "do not shorten")
	quiet := f.BoolP("quiet", "q", false, "ids only")
	tree := f.Bool("tree", false, "each image with its platforms")
	return func(ctx context.Context, args []string) error {
		if *tree && (*quiet || *digests || *noTrunc || *format != "") {
			return &usageError{text: "--tree excludes --quiet, --digests, --no-trunc and --format"}
		}
		set := *filter
		if len(args) == 1 {
			set = append(set, "reference="+args[0])
		}
		q, err := filters(set)
		if err != nil {
			return err
		}
		if *all {
			q.Set("all", "1")
		}
		if *format == "" && !*quiet && !*tree {
			*format = e.cfg.load().ImgFormat
		}
		if *tree {
			q.Set("manifests", "1")
		}
		var images []api.ImageSummary
		if err := e.call(ctx, "GET", "/images/json", q, nil, &images); err != nil {
			return err
		}
		if *tree {
			return e.show(imageTree(images), "", false)
		}
		l := &list{columns: []string{"Repository", "Tag", "ID", "CreatedSince", "Size"}, quiet: "ID", titles: map[string]string{"ID": "IMAGE ID", "CreatedSince": "CREATED"}}
		if *digests {
			l.columns = []string{"Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"}
		}
		now := time.Now()
		seen := map[string]bool{}
		for _, im := range images {
			for _, r := range imageRows(im, now, *noTrunc) {
				if *quiet && *format == "" {
					if seen[r["ID"]] {
						continue
					}
					seen[r["ID"]] = true
				}
				l.rows = append(l.rows, r)
			}
		}
		return e.show(l, *format, *quiet)
	}
}

// imageTree lists images, and below each one its platforms: in brackets those
// that are not here.
func imageTree(images []api.ImageSummary) *list {
	l := &list{columns: []string{"Image", "ID", "DiskUsage", "ContentSize", "Containers"}, titles: map[string]string{"DiskUsage": "DISK USAGE", "ContentSize": "CONTENT SIZE"}}
	add := func(name, id string, disk, content int64, containers int) {
		l.rows = append(l.rows, row{"Image": name, "ID": shortID(id), "DiskUsage": humanSize(disk), "ContentSize": humanSize(content), "Containers": strconv.Itoa(containers)})
	}
	sort.Slice(images, func(i, j int) bool { return treeName(images[i]) < treeName(images[j]) })
	for _, im := range images {
		var content int64
		used := 0
		var parts []api.ManifestSummary
		for _, m := range im.Manifests {
			if m.Available {
				content += m.Size.Content
			}
			if m.Kind == "image" && m.ImageData != nil {
				used += len(m.ImageData.Containers)
				parts = append(parts, m)
			}
		}
		add(treeName(im), im.ID, im.Size, content, used)
		for i, m := range parts {
			branch := "├─ "
			if i == len(parts)-1 {
				branch = "└─ "
			}
			p := m.ImageData.Platform
			name := strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
			if !m.Available {
				name = "(" + name + ")"
			}
			add(branch+name, m.ID, m.Size.Total, m.Size.Content, len(m.ImageData.Containers))
		}
	}
	return l
}

// treeName is what an image is called in a tree: all its tags.
func treeName(im api.ImageSummary) string {
	if len(im.RepoTags) == 0 {
		return "<untagged>"
	}
	tags := append([]string{}, im.RepoTags...)
	sort.Strings(tags)
	return strings.Join(tags, ", ")
}

func imageRows(im api.ImageSummary, now time.Time, noTrunc bool) []row {
	id := im.ID
	if !noTrunc {
		id = shortID(id)
	}
	digestOf := map[string]string{}
	for _, d := range im.RepoDigests {
		repo, dg, _ := strings.Cut(d, "@")
		digestOf[repo] = dg
	}
	created := time.Unix(im.Created, 0)
	base := func(repo, tag, digest string) row {
		since := ago(now.Sub(created)) + " ago"
		if im.Created == 0 {
			since = "N/A"
		}
		containers := "N/A"
		if im.Containers >= 0 {
			containers = strconv.FormatInt(im.Containers, 10)
		}
		return row{"ID": id, "Repository": repo, "Tag": tag, "Digest": digest, "CreatedSince": since, "CreatedAt": created.Format("2006-01-02 15:04:05 -0700 MST"),
			"Size": humanSize(im.Size), "VirtualSize": humanSize(im.Size), "SharedSize": "N/A", "UniqueSize": "N/A", "Containers": containers}
	}
	var rows []row
	tags := append([]string{}, im.RepoTags...)
	sort.Strings(tags)
	for _, t := range tags {
		repo, tag := splitTag(t)
		if repo == "<none>" {
			continue
		}
		d := digestOf[repo]
		if d == "" {
			d = "<none>"
		}
		rows = append(rows, base(repo, tag, d))
	}
	if len(rows) == 0 {
		for repo, d := range digestOf {
			rows = append(rows, base(repo, "<none>", d))
		}
	}
	if len(rows) == 0 {
		rows = append(rows, base("<none>", "<none>", "<none>"))
	}
	return rows
}

func setupPull(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	allTags := f.BoolP("all-tags", "a", false, "every tag of the repository")
	platform := f.String("platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "platform, where the image has several")
	quiet := f.BoolP("quiet", "q", false, "print the name only")
	f.Bool("disable-content-trust", true, "accepted for Docker's sake")
	return func(ctx context.Context, args []string) error {
		if *allTags {
			return errors.New("--all-tags is not supported yet: name the tags")
		}
		if err := e.pull(ctx, args[0], *platform, *quiet, e.out); err != nil {
			return err
		}
		fmt.Fprintln(e.out, canonical(args[0]))
		return nil
	}
}

// canonical writes a name out in full, as Docker prints it after a pull.
func canonical(name string) string {
	domain, _, ok := strings.Cut(name, "/")
	switch {
	case !ok:
		name = "docker.io/library/" + name
	case !strings.ContainsAny(domain, ".:") && domain != "localhost":
		name = "docker.io/" + name
	}
	if _, tag := splitTag(name); tag == "" && !strings.Contains(name, "@") {
		name += ":latest"
	}
	return name
}

// pull downloads an image and shows how it goes on w.
func (e *env) pull(ctx context.Context, name, platform string, quiet bool, w io.Writer) error {
	repo, tag := splitTag(name)
	if r, d, ok := strings.Cut(name, "@"); ok {
		repo, tag = r, d
		if n, t := splitTag(r); t != "" {
			repo = n
		}
	} else if tag == "" {
		tag = "latest"
		if !quiet {
			fmt.Fprintln(w, "Using default tag: latest")
		}
	}
	q := url.Values{"fromImage": {repo}, "tag": {tag}}
	if platform != "" {
		q.Set("platform", platform)
	}
	auth, err := e.registryAuth(name)
	if err != nil {
		return err
	}
	resp, err := e.do(ctx, api.Request{Method: "POST", Path: "/images/create", Query: q, Header: auth})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if quiet {
		w = io.Discard
	}
	return showProgress(resp.Body, w, nil)
}

func setupPush(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	allTags := f.BoolP("all-tags", "a", false, "every tag of the repository")
	platform := f.String("platform", "", "one platform only, without the index around it")
	quiet := f.BoolP("quiet", "q", false, "print the name only")
	f.Bool("disable-content-trust", true, "accepted for Docker's sake")
	return func(ctx context.Context, args []string) error {
		name, tag := splitTag(args[0])
		if *allTags && tag != "" {
			return &usageError{text: "--all-tags excludes a tag"}
		}
		if !*allTags && tag == "" {
			tag = "latest"
			if !*quiet {
				fmt.Fprintln(e.out, "Using default tag: latest")
			}
		}
		q := url.Values{}
		if tag != "" {
			q.Set("tag", tag)
		}
		if *platform != "" {
			q.Set("platform", *platform)
		}
		auth, err := e.registryAuth(args[0])
		if err != nil {
			return err
		}
		if auth == nil {
			auth = map[string]string{"X-Registry-Auth": base64.URLEncoding.EncodeToString([]byte("{}"))}
		}
		resp, err := e.do(ctx, api.Request{Method: "POST", Path: "/images/" + escape(name) + "/push", Query: q, Header: auth})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		w := e.out
		if *quiet {
			w = io.Discard
		}
		if err := showProgress(resp.Body, w, nil); err != nil {
			return err
		}
		if *quiet {
			fmt.Fprintln(e.out, canonical(args[0]))
		}
		return nil
	}
}

// escape keeps the slashes of an image's name.
func escape(name string) string {
	parts := strings.Split(name, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return strings.Join(parts, "/")
}

func setupTag(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		repo, tag := splitTag(args[1])
		return e.call(ctx, "POST", "/images/"+escape(args[0])+"/tag", url.Values{"repo": {repo}, "tag": {tag}}, nil, nil)
	}
}

func setupRmi(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	force := f.BoolP("force", "f", false, "also where stopped containers use them")
	noPrune := f.Bool("no-prune", false, "keep untagged parents")
	platforms := f.StringSlice("platform", nil, "these platforms only; the name stays for the others")
	return func(ctx context.Context, args []string) error {
		q := url.Values{}
		if *force {
			q.Set("force", "1")
		}
		if *noPrune {
			q.Set("noprune", "1")
		}
		if len(*platforms) > 0 {
			q["platforms"] = *platforms
		}
		return e.each(args, func(name string) error {
			var gone []api.Removed
			err := e.call(ctx, "DELETE", "/images/"+escape(name), q, nil, &gone)
			if *force && isNotFound(err) {
				fmt.Fprintf(e.err, "onggi: %s\n", err)
				return nil
			}
			for _, r := range gone {
				line := removedLine(r)
				fmt.Fprintln(e.out, strings.ToUpper(line[:1])+line[1:])
			}
			return err
		})
	}
}

func setupHistory(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	format := f.String("format", "", "table, json, or a Go template")
	human := f.BoolP("human", "H", true, "sizes and dates for people")
	noTrunc := f.Bool("no-trunc", false, "do not shorten")
	quiet := f.BoolP("quiet", "q", false, "ids only")
	platform := f.String("platform", "", "platform, where the image has several")
	return func(ctx context.Context, args []string) error {
		q := url.Values{}
		if *platform != "" {
			q.Set("platform", *platform)
		}
		var items []api.HistoryItem
		if err := e.call(ctx, "GET", "/images/"+escape(args[0])+"/history", q, nil, &items); err != nil {
			return err
		}
		l := &list{columns: []string{"ID", "CreatedSince", "CreatedBy", "Size", "Comment"}, quiet: "ID", titles: map[string]string{"ID": "IMAGE", "CreatedSince": "CREATED"}}
		now := time.Now()
		for _, h := range items {
			id, by := h.ID, strings.ReplaceAll(h.CreatedBy, "\t", " ")
			if !*noTrunc {
				if id != "<missing>" {
					id = shortID(id)
				}
				by = ellipsis(by, 45)
			}
			at := time.Unix(h.Created, 0)
			since, size := ago(now.Sub(at))+" ago", humanSize(h.Size)
			if !*human {
				since, size = at.Format(time.RFC3339), strconv.FormatInt(h.Size, 10)
			}
			if h.Created <= 0 {
				since = "N/A"
			}
			l.rows = append(l.rows, row{"ID": id, "CreatedSince": since, "CreatedAt": at.Format(time.RFC3339), "CreatedBy": by, "Size": size, "Comment": h.Comment})
		}
		return e.show(l, *format, *quiet)
	}
}

func setupSave(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	output := f.StringP("output", "o", "", "write to this file")
	platform := f.StringSlice("platform", nil, "these platforms only")
	return func(ctx context.Context, args []string) error {
		w, done, err := e.output(*output)
		if err != nil {
			return err
		}
		q := url.Values{"names": args}
		for _, p := range *platform {
			q.Add("platform", p)
		}
		return done(e.stream(ctx, api.Request{Method: "GET", Path: "/images/get", Query: q}, w))
	}
}

func setupLoad(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	input := f.StringP("input", "i", "", "read this file")
	quiet := f.BoolP("quiet", "q", false, "no progress")
	platforms := f.StringSlice("platform", nil, "these platforms only")
	return func(ctx context.Context, args []string) error {
		q := url.Values{"quiet": {map[bool]string{true: "1", false: "0"}[*quiet]}}
		if len(*platforms) > 0 {
			q["platform"] = *platforms
		}
		in := io.Reader(e.in)
		if *input != "" {
			file, err := os.Open(*input)
			if err != nil {
				return err
			}
			defer file.Close()
			in = file
		} else if isTerminal(e.in) {
			return &hinted{errors.New("an archive is expected on standard input, not a terminal"), "onggi load -i FILE"}
		}
		resp, err := e.do(ctx, api.Request{Method: "POST", Path: "/images/load", Query: q,
			Header: map[string]string{"Content-Type": "application/x-tar"}, Body: in})
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		return showProgress(resp.Body, e.out, nil)
	}
}

func setupImport(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	change := f.StringArrayP("change", "c", nil, "Dockerfile instruction to apply")
	message := f.StringP("message", "m", "", "message")
	platform := f.String("platform", "", "platform of the result")
	return func(ctx context.Context, args []string) error {
		name := ""
		if len(args) == 2 {
			name = args[1]
		}
		var body io.Reader
		src := "-"
		switch {
		case args[0] == "-":
			body = e.in
		case strings.HasPrefix(args[0], "http://") || strings.HasPrefix(args[0], "https://"):
			src = args[0]
		default:
			file, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer file.Close()
			body = file
		}
		return e.importTar(ctx, src, body, name, *message, *platform, *change)
	}
}

func (e *env) importTar(ctx context.Context, src string, body io.Reader, name, message, platform string, changes []string) error {
	q := url.Values{"fromSrc": {src}, "message": {message}, "changes": changes}
	if name != "" {
		repo, tag := splitTag(name)
		q.Set("repo", repo)
		q.Set("tag", tag)
	}
	if platform != "" {
		q.Set("platform", platform)
	}
	resp, err := e.do(ctx, api.Request{Method: "POST", Path: "/images/create", Query: q, Header: map[string]string{"Content-Type": "application/x-tar"}, Body: body})
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return showProgress(resp.Body, e.out, nil)
}

func setupSearch(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	filter := f.StringArrayP("filter", "f", nil, "only those that match")
	format := f.String("format", "", "table, json, or a Go template")
	limit := f.Int("limit", 0, "number of results")
	noTrunc := f.Bool("no-trunc", false, "do not shorten")
	return func(ctx context.Context, args []string) error {
		q, err := filters(*filter)
		if err != nil {
			return err
		}
		q.Set("term", args[0])
		if *limit > 0 {
			q.Set("limit", strconv.Itoa(*limit))
		}
		var found []struct {
			Name, Description string
			StarCount         int  `json:"star_count"`
			IsOfficial        bool `json:"is_official"`
		}
		if err := e.call(ctx, "GET", "/images/search", q, nil, &found); err != nil {
			return err
		}
		l := &list{columns: []string{"Name", "Description", "StarCount", "IsOfficial"}, titles: map[string]string{"StarCount": "STARS", "IsOfficial": "OFFICIAL"}}
		for _, s := range found {
			if !*noTrunc {
				s.Description = ellipsis(s.Description, 45)
			}
			l.rows = append(l.rows, row{"Name": s.Name, "Description": s.Description, "StarCount": strconv.Itoa(s.StarCount), "IsOfficial": map[bool]string{true: "[OK]"}[s.IsOfficial]})
		}
		return e.show(l, *format, false)
	}
}

func setupBuild(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		path, host := e.sibling("onggi-build"), e.host
		if host == "" {
			host = "unix://" + api.DefaultSocket
		}
		local := strings.HasPrefix(host, "unix://")
		// An engine must be there before the build's client opens its session.
		if !local || !e.listening(ctx) {
			if err := e.call(ctx, "GET", "/_ping", nil, nil, nil); err != nil {
				return err
			}
		}
		env := append(os.Environ(), "ONGGI_CONFIG="+configDir(e.cfg.dir))
		missing := func(err error) error {
			return &hinted{fmt.Errorf("start the build's client: %w", err), "install onggi-build beside onggi"}
		}
		if local {
			found, err := exec.LookPath(path)
			if err == nil { // it takes our place
				err = syscall.Exec(found, append([]string{path}, args...), append(env, "ONGGI_HOST="+host))
			}
			return missing(err)
		}
		remote := host
		host, stop, err := e.relay(ctx)
		if err != nil {
			return err
		}
		defer stop()
		cmd := exec.Command(path, args...)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = e.in, e.out, e.err
		cmd.Env = append(env, "ONGGI_HOST="+host, "ONGGI_REMOTE="+remote)
		if err := cmd.Run(); err != nil {
			if x, ok := err.(*exec.ExitError); ok {
				return exitCode(max(x.ExitCode(), 1))
			}
			return missing(err)
		}
		return nil
	}
}

// listening reports that somebody listens at the engine's address.
func (e *env) listening(ctx context.Context) bool {
	conn, err := e.client.Dial(ctx)
	if err == nil {
		conn.Close()
	}
	return err == nil
}

// buildxFlags are flags of Docker's buildx that choose among builders; there is
// one here, the engine.
func buildxFlags(f *pflag.FlagSet) {
	f.String("builder", "", "accepted for Docker's sake")
	f.BoolP("debug", "D", false, "accepted for Docker's sake")
	f.Duration("timeout", 0, "accepted for Docker's sake")
}

func setupBuilderPrune(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	all := f.BoolP("all", "a", false, "all cache that is not used, not only what nothing refers to")
	filter := f.StringArray("filter", nil, "only those that match: until=24h, type=…")
	force := f.BoolP("force", "f", false, "do not ask")
	f.Bool("verbose", false, "accepted for Docker's sake: every part is listed")
	space := map[string]*string{}
	for _, s := range []struct{ name, usage string }{{"keep-storage", "size to keep, as --reserved-space"}, {"reserved-space", "size that is always kept"}, {"max-used-space", "most that may be kept"}, {"min-free-space", "free space of the disk to reach"}} {
		space[s.name] = f.String(s.name, "", s.usage)
	}
	buildxFlags(f)
	return func(ctx context.Context, args []string) error {
		q, err := filters(*filter)
		if err != nil {
			return err
		}
		if *all {
			q.Set("all", "1")
		}
		for name, v := range space {
			if *v == "" {
				continue
			}
			n, err := bytesOf(*v)
			if err != nil {
				return flagError(name, *v, "%v", err)
			}
			q.Set(name, strconv.FormatInt(n, 10))
		}
		question := "all dangling build cache"
		if *all {
			question = "all build cache"
		}
		if !*force && !e.confirm("This will remove "+question+".") {
			return nil
		}
		_, err = e.prune(ctx, "build", q)
		return err
	}
}

func setupBuilderDu(e *env, f *pflag.FlagSet) func(context.Context, []string) error {
	filter := f.StringArray("filter", nil, "only those that match: type=…, inuse, shared, private")
	format := f.String("format", "", "table, json, or a Go template")
	verbose := f.Bool("verbose", false, "whole ids and descriptions")
	buildxFlags(f)
	return func(ctx context.Context, args []string) error {
		var u usage
		if err := e.call(ctx, "GET", "/system/df", url.Values{"type": {"build-cache"}, "verbose": {"1"}}, nil, &u); err != nil {
			return err
		}
		l := cacheList(u.BuildCacheUsage.Items, *verbose)
		var total, free int64
		kept := l.rows[:0]
		for i, r := range l.rows {
			c := &u.BuildCacheUsage.Items[i]
			if !cacheMatches(c, *filter) {
				continue
			}
			kept = append(kept, r)
			total += c.Size
			if !c.InUse {
				free += c.Size
			}
		}
		l.rows = kept
		if err := e.show(l, *format, false); err != nil {
			return err
		}
		if *format == "" {
			fmt.Fprintf(e.out, "Reclaimable:\t%s\nTotal:\t\t%s\n", humanSize(free), humanSize(total))
		}
		return nil
	}
}

func cacheMatches(c *cacheRecord, set []string) bool {
	for _, f := range set {
		k, v, _ := strings.Cut(f, "=")
		ok := false
		switch k {
		case "type":
			ok = c.Type == v
		case "id":
			ok = strings.HasPrefix(c.ID, v)
		case "inuse":
			ok = c.InUse
		case "shared":
			ok = c.Shared
		case "private":
			ok = !c.Shared
		case "description":
			ok = strings.Contains(c.Description, v)
		}
		if !ok {
			return false
		}
	}
	return true
}

// registryAuth is the header with the credentials for an image's registry; nil
// without any.
func (e *env) registryAuth(image string) (map[string]string, error) {
	a, err := e.cfg.credentials(registryOf(image))
	if err != nil || a == nil {
		return nil, err
	}
	data, err := json.Marshal(a)
	if err != nil {
		return nil, err
	}
	return map[string]string{"X-Registry-Auth": base64.URLEncoding.EncodeToString(data)}, nil
}

// registryOf is the key of an image's registry in config.json.
func registryOf(image string) string {
	name := canonical(image)
	host, _, _ := strings.Cut(name, "/")
	if host == "docker.io" {
		return "https://index.docker.io/v1/"
	}
	return host
}
