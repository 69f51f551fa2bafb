package network

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// hostsFile is a container's /etc/hosts. Names with spaces or line ends could
// smuggle lines in and are left out (CVE-2026-15809 is the same class).
func hostsFile(r SandboxRequest, eps []Endpoint, gateways []netip.Addr, links []hostLine) []byte {
	var b bytes.Buffer
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\nff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n")
	line := func(a netip.Addr, names ...string) {
		names = slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !plainName(n) })
		if a.IsValid() && len(names) > 0 {
			fmt.Fprintf(&b, "%s\t%s\n", a, strings.Join(names, " "))
		}
	}
	for _, h := range r.ExtraHosts {
		name, addr, _ := strings.Cut(h, ":")
		if addr == "host-gateway" {
			for _, gw := range gateways {
				line(gw, name)
			}
		} else if a, err := netip.ParseAddr(addr); err == nil {
			line(a, name)
		}
	}
	for _, l := range links {
		line(l.addr, l.names...)
	}
	full := ""
	if plainName(r.Domainname) && plainName(r.Hostname) {
		full = r.Hostname + "." + r.Domainname
	}
	short, _, dotted := strings.Cut(r.Hostname, ".")
	if !dotted {
		short = ""
	}
	for _, e := range eps {
		for _, p := range []netip.Prefix{e.IPv4, e.IPv6} {
			if p.IsValid() {
				line(p.Addr(), full, r.Hostname, short)
			}
		}
	}
	return b.Bytes()
}

// A hostLine is an address and its names.
type hostLine struct {
	addr  netip.Addr
	names []string
}

func plainName(s string) bool { return s != "" && !strings.ContainsAny(s, " \t\r\n#\x00") }

// resolvConf is a container's /etc/resolv.conf.
func resolvConf(servers []string, search, options []string) []byte {
	var b bytes.Buffer
	for _, s := range servers {
		if plainName(s) {
			fmt.Fprintf(&b, "nameserver %s\n", s)
		}
	}
	line := func(key string, list []string) {
		var ok []string
		for _, s := range list {
			if plainName(s) && s != "." {
				ok = append(ok, s)
			}
		}
		if len(ok) > 0 {
			fmt.Fprintf(&b, "%s %s\n", key, strings.Join(ok, " "))
		}
	}
	line("search", search)
	line("options", options)
	return b.Bytes()
}

// hostResolver is what the host's resolv.conf says.
type hostResolver struct{ servers, search, options []string }

// readHostResolver reads a resolv.conf; a missing one is empty.
func readHostResolver(path string) (h hostResolver) {
	data, err := os.ReadFile(path)
	if err != nil {
		return h
	}
	for _, line := range strings.Split(string(data), "\n") {
		f := strings.Fields(line)
		if len(f) < 2 || strings.HasPrefix(f[0], "#") || strings.HasPrefix(f[0], ";") {
			continue
		}
		switch f[0] {
		case "nameserver":
			h.servers = append(h.servers, f[1])
		case "search", "domain":
			h.search = f[1:]
		case "options":
			h.options = append(h.options, f[1:]...)
		}
	}
	return h
}

// reachable drops servers that a container cannot reach: loopback addresses.
func reachable(servers []string) []string {
	var out []string
	for _, s := range servers {
		host, _, _ := strings.Cut(s, "%")
		if a, err := netip.ParseAddr(host); err == nil && !a.IsLoopback() {
			out = append(out, s)
		}
	}
	return out
}
