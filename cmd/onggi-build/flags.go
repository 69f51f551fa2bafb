package main

import (
	"encoding/csv"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
)

// options are the flags of a build.
type options struct {
	tags, args, labels, contexts, secrets, ssh, allow             []string
	squash                                                        bool
	outputs, cacheFrom, cacheTo, attest, annotations              []string
	addHost, noCacheFilter, platforms, ulimits                    []string
	file, target, progress, network, iidFile, metaFile            string
	call, provenance, sbom, cgroupParent, shmSize                 string
	memory, memorySwap, cpusetCPUs, cpusetMems, builder           string
	cpuShares, cpuPeriod, cpuQuota                                int64
	noCache, pull, push, load, quiet, check, debug, help, explain bool

	dirs map[string]string // local directories, by the name that the build knows them by
}

func parseFlags(args []string) (*options, string, error) {
	o := &options{}
	f := pflag.NewFlagSet("build", pflag.ContinueOnError)
	f.Usage = func() {}
	f.StringArrayVar(&o.addHost, "add-host", nil, "line of /etc/hosts in the steps: name:address")
	f.StringArrayVar(&o.allow, "allow", nil, "privilege that steps may use: network.host, security.insecure")
	f.StringArrayVar(&o.annotations, "annotation", nil, "annotation of the result: key=value")
	f.StringArrayVar(&o.attest, "attest", nil, "attestation: type=sbom, type=provenance")
	f.StringArrayVar(&o.args, "build-arg", nil, "argument: NAME=value, or NAME to hand ours on")
	f.StringArrayVar(&o.contexts, "build-context", nil, "further context: name=path")
	f.StringVar(&o.builder, "builder", "", "accepted for Docker's sake")
	f.StringArrayVar(&o.cacheFrom, "cache-from", nil, "cache to use: type=registry,ref=…")
	f.StringArrayVar(&o.cacheTo, "cache-to", nil, "cache to write: type=inline")
	f.StringVar(&o.call, "call", "build", "what to do: build, check, outline, targets")
	f.StringVar(&o.cgroupParent, "cgroup-parent", "", "parent of the steps' control group")
	f.BoolVar(&o.check, "check", false, "check the Dockerfile only")
	f.BoolVarP(&o.debug, "debug", "D", false, "more detail in errors")
	f.BoolVar(&o.explain, "explain", false, "tell for each step why it ran (also afterwards: onggi why build)")
	f.StringVarP(&o.file, "file", "f", "", "the Dockerfile, or - for standard input")
	f.StringVar(&o.iidFile, "iidfile", "", "write the image's id to this file")
	f.StringArrayVar(&o.labels, "label", nil, "label: key=value")
	f.BoolVar(&o.load, "load", true, "the result is in the engine at once; accepted for Docker's sake")
	f.StringVar(&o.metaFile, "metadata-file", "", "write what is known of the result to this file")
	f.StringVar(&o.network, "network", "", "network of the steps: default, none, host")
	f.BoolVar(&o.noCache, "no-cache", false, "run every step")
	f.StringArrayVar(&o.noCacheFilter, "no-cache-filter", nil, "run every step of this stage")
	f.StringArrayVarP(&o.outputs, "output", "o", nil, "where the result goes: path, or type=local|tar|oci|docker|image,dest=…")
	f.StringArrayVar(&o.platforms, "platform", envList("DOCKER_DEFAULT_PLATFORM"), "platform of the result")
	f.StringVar(&o.progress, "progress", os.Getenv("BUILDKIT_PROGRESS"), "auto, plain, tty, quiet, json")
	f.StringVar(&o.provenance, "provenance", "", "shorthand of --attest type=provenance")
	f.BoolVar(&o.pull, "pull", false, "look for newer base images")
	f.BoolVar(&o.push, "push", false, "push the result")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "print the image's id only")
	f.StringVar(&o.sbom, "sbom", "", "shorthand of --attest type=sbom")
	f.StringArrayVar(&o.secrets, "secret", nil, "secret for steps: id=…[,src=path|,env=NAME]")
	f.StringVar(&o.shmSize, "shm-size", "", "size of /dev/shm in the steps")
	f.StringArrayVar(&o.ssh, "ssh", nil, "agent or key for steps: default, or id=path")
	f.StringArrayVarP(&o.tags, "tag", "t", nil, "name of the result")
	f.StringVar(&o.target, "target", "", "stage to build")
	f.StringArrayVar(&o.ulimits, "ulimit", nil, "limit in the steps: name=soft[:hard]")
	f.StringVarP(&o.memory, "memory", "m", "", "limit of memory in the steps")
	f.StringVar(&o.memorySwap, "memory-swap", "", "limit of memory and swap together")
	f.Int64VarP(&o.cpuShares, "cpu-shares", "c", 0, "relative weight of the steps")
	f.Int64Var(&o.cpuPeriod, "cpu-period", 0, "period of the quota, in microseconds")
	f.Int64Var(&o.cpuQuota, "cpu-quota", 0, "quota in a period, in microseconds")
	f.StringVar(&o.cpusetCPUs, "cpuset-cpus", "", "CPUs to run on")
	f.StringVar(&o.cpusetMems, "cpuset-mems", "", "memory nodes")
	f.BoolVarP(&o.help, "help", "h", false, "this text")
	for _, n := range []string{"rm", "force-rm", "compress"} {
		f.Bool(n, n == "rm", "accepted for Docker's sake")
	}
	f.BoolVar(&o.squash, "squash", false, "one layer")
	resources := f.StringArray("resource", nil, "limit of the steps: memory=2g, cpu-quota=50000 and so on, as the flags of that name")
	if err := f.Parse(args); err != nil {
		return nil, "", fmt.Errorf("%w\nusage: onggi build [OPTIONS] PATH | URL | -", err)
	}
	if o.help {
		fmt.Printf("Usage:  onggi build [OPTIONS] PATH | URL | -\n\nBuild an image from a Dockerfile\n\nOptions:\n%s", f.FlagUsages())
		return o, "", nil
	}
	switch {
	case f.NArg() != 1:
		return nil, "", fmt.Errorf("onggi build takes 1 argument, the context, got %d\nusage: onggi build [OPTIONS] PATH | URL | -\ntry:   onggi build .", f.NArg())
	}
	for _, r := range *resources {
		k, v, _ := strings.Cut(r, "=")
		if !slices.Contains([]string{"memory", "memory-swap", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems"}, k) {
			return nil, "", fmt.Errorf("--resource %q: want memory=, memory-swap=, cpu-shares=, cpu-period=, cpu-quota=, cpuset-cpus= or cpuset-mems=", r)
		}
		if err := f.Set(k, v); err != nil {
			return nil, "", fmt.Errorf("--resource: %w", err)
		}
	}
	if o.check {
		o.call = "check"
	}
	return o, f.Arg(0), nil
}

func envList(name string) []string {
	if v := os.Getenv(name); v != "" {
		return []string{v}
	}
	return nil
}

// fields splits key=value,key=value; a first field without a key gets def.
func fields(s, def string) (map[string]string, error) {
	row, err := csv.NewReader(strings.NewReader(s)).Read()
	if err != nil {
		return nil, fmt.Errorf("%q: %w", s, err)
	}
	m := map[string]string{}
	for i, f := range row {
		k, v, ok := strings.Cut(f, "=")
		switch {
		case ok:
			m[strings.ToLower(strings.TrimSpace(k))] = v
		case i == 0 && def != "":
			m[def] = f
		default:
			return nil, fmt.Errorf("%q: %q is not key=value", s, f)
		}
	}
	return m, nil
}

// frontendAttrs are what the Dockerfile frontend is asked for.
func (o *options) frontendAttrs() (map[string]string, error) {
	a := map[string]string{}
	set := func(k, v string) {
		if v != "" {
			a[k] = v
		}
	}
	for _, s := range o.args {
		k, v, ok := strings.Cut(s, "=")
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				continue
			}
		}
		a["build-arg:"+k] = v
	}
	for _, k := range []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"} {
		for _, n := range []string{k, strings.ToLower(k)} {
			if _, given := a["build-arg:"+n]; !given && os.Getenv(n) != "" && os.Getenv("ONGGI_BUILD_PROXY") == "1" {
				a["build-arg:"+n] = os.Getenv(n)
			}
		}
	}
	for _, s := range o.labels {
		k, v, _ := strings.Cut(s, "=")
		a["label:"+k] = v
	}
	if o.noCache {
		a["no-cache"] = ""
	} else if len(o.noCacheFilter) > 0 {
		a["no-cache"] = strings.Join(o.noCacheFilter, ",")
	}
	if o.pull {
		a["image-resolve-mode"] = "pull"
	}
	var hosts []string
	for _, h := range o.addHost {
		name, addr, ok := strings.Cut(h, "=")
		if !ok {
			if name, addr, ok = strings.Cut(h, ":"); !ok {
				return nil, fmt.Errorf("--add-host %q: want name:address", h)
			}
		}
		hosts = append(hosts, name+"="+addr)
	}
	set("add-hosts", strings.Join(hosts, ","))
	set("target", o.target)
	set("platform", strings.Join(o.platforms, ","))
	set("cgroup-parent", o.cgroupParent)
	set("ulimit", strings.Join(o.ulimits, ","))
	set("cpusetcpus", o.cpusetCPUs)
	set("cpusetmems", o.cpusetMems)
	for k, v := range map[string]string{"shm-size": o.shmSize, "memory": o.memory, "memswap": o.memorySwap} {
		if v == "" {
			continue
		}
		n, err := size(v)
		if err != nil {
			return nil, fmt.Errorf("--%s: %w", k, err)
		}
		a[k] = strconv.FormatInt(n, 10)
	}
	for k, v := range map[string]int64{"cpushares": o.cpuShares, "cpuperiod": o.cpuPeriod, "cpuquota": o.cpuQuota} {
		if v != 0 {
			a[k] = strconv.FormatInt(v, 10)
		}
	}
	switch o.network {
	case "", "default", "bridge":
	case "none", "host":
		a["force-network-mode"] = o.network
	default:
		return nil, fmt.Errorf("--network %q: want default, none or host", o.network)
	}
	for _, s := range o.attest {
		m, err := fields(s, "type")
		if err != nil {
			return nil, fmt.Errorf("--attest: %w", err)
		}
		kind := m["type"]
		if i := strings.Index(s, ","); i >= 0 {
			a["attest:"+kind] = s[i+1:]
		} else {
			a["attest:"+kind] = ""
		}
	}
	for kind, v := range map[string]string{"provenance": o.provenance, "sbom": o.sbom} {
		switch v {
		case "", "false":
		case "true":
			a["attest:"+kind] = ""
		default:
			a["attest:"+kind] = v
		}
	}
	switch o.call {
	case "", "build":
	case "check":
		a["requestid"] = "frontend.lint"
	case "outline", "targets":
		a["requestid"] = "frontend." + o.call
	default:
		return nil, fmt.Errorf("--call %q: want build, check, outline or targets", o.call)
	}
	return a, nil
}

// size reads 64m, 1g.
func size(s string) (int64, error) {
	t := strings.TrimSuffix(strings.ToLower(s), "b")
	unit := int64(1)
	if t != "" {
		if i := strings.IndexByte("kmgt", t[len(t)-1]); i >= 0 {
			unit = 1 << (10 * (i + 1))
			t = t[:len(t)-1]
		}
	}
	n, err := strconv.ParseInt(t, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	return n * unit, nil
}

// dockerfile returns the directory and the name of the Dockerfile.
func dockerfile(context, file string) (dir, name string, err error) {
	if file == "" {
		file = filepath.Join(context, "Dockerfile")
		if _, err := os.Stat(file); err != nil {
			if low := filepath.Join(context, "dockerfile"); exists(low) {
				file = low
			} else if alt := filepath.Join(context, "Containerfile"); exists(alt) {
				file = alt
			}
		}
	}
	fi, err := os.Stat(file)
	if err != nil {
		return "", "", fmt.Errorf("read the Dockerfile: %w\ntry:   onggi build -f PATH %s", err, context)
	}
	if fi.IsDir() {
		return "", "", fmt.Errorf("read the Dockerfile: %s is a directory\ntry:   onggi build -f PATH %s", file, context)
	}
	return filepath.Dir(file), filepath.Base(file), nil
}

func exists(p string) bool { _, err := os.Stat(p); return err == nil }
