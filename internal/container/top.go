package container

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/onggi/onggi/internal/errdefs"
)

// topColumn is a column of ps.
type topColumn struct {
	title string
	value func(process) string
}

// process is what /proc tells about one.
type process struct {
	pid, ppid, pgid, sid, threads, nice int
	comm, args, state, tty, user        string
	uid                                 uint32
	start                               time.Time
	now                                 time.Time
	cpu                                 time.Duration
	rss, vsz                            uint64 // KiB
	memTotal                            uint64
}

func (p process) pcpu() float64 {
	up := p.now.Sub(p.start).Seconds()
	if up <= 0 {
		return 0
	}
	return 100 * p.cpu.Seconds() / up
}

func clock(d time.Duration) string {
	s := int(d.Seconds())
	return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
}

func startTime(p process) string {
	if p.now.Sub(p.start) < 24*time.Hour {
		return p.start.Format("15:04")
	}
	return p.start.Format("Jan02")
}

func elapsed(p process) string {
	s := int(p.now.Sub(p.start).Seconds())
	switch {
	case s >= 86400:
		return fmt.Sprintf("%d-%02d:%02d:%02d", s/86400, s/3600%24, s/60%60, s%60)
	case s >= 3600:
		return fmt.Sprintf("%02d:%02d:%02d", s/3600, s/60%60, s%60)
	}
	return fmt.Sprintf("%02d:%02d", s/60, s%60)
}

func topTable() map[string]topColumn {
	num := func(title string, f func(process) int) topColumn {
		return topColumn{title, func(p process) string { return strconv.Itoa(f(p)) }}
	}
	return map[string]topColumn{
		"pid": num("PID", func(p process) int { return p.pid }), "ppid": num("PPID", func(p process) int { return p.ppid }),
		"pgid": num("PGID", func(p process) int { return p.pgid }), "sid": num("SID", func(p process) int { return p.sid }),
		"nlwp": num("NLWP", func(p process) int { return p.threads }), "ni": num("NI", func(p process) int { return p.nice }),
		"uid":   {"UID", func(p process) string { return strconv.Itoa(int(p.uid)) }},
		"user":  {"USER", func(p process) string { return p.user }},
		"comm":  {"COMMAND", func(p process) string { return p.comm }},
		"args":  {"COMMAND", func(p process) string { return p.args }},
		"stat":  {"STAT", func(p process) string { return p.state }},
		"s":     {"S", func(p process) string { return p.state[:1] }},
		"tty":   {"TT", func(p process) string { return p.tty }},
		"time":  {"TIME", func(p process) string { return clock(p.cpu) }},
		"etime": {"ELAPSED", elapsed},
		"start": {"START", startTime},
		"stime": {"STIME", startTime},
		"rss":   {"RSS", func(p process) string { return strconv.FormatUint(p.rss, 10) }},
		"vsz":   {"VSZ", func(p process) string { return strconv.FormatUint(p.vsz, 10) }},
		"c":     {"C", func(p process) string { return strconv.Itoa(int(p.pcpu())) }},
		"pcpu":  {"%CPU", func(p process) string { return fmt.Sprintf("%.1f", p.pcpu()) }},
		"pmem":  {"%MEM", func(p process) string { return fmt.Sprintf("%.1f", 100*float64(p.rss)/float64(max(p.memTotal, 1))) }},
	}
}

var topAliases = map[string]string{"cmd": "args", "command": "args", "ucmd": "comm", "uname": "user", "euser": "user", "euid": "uid", "ruser": "user", "tt": "tty", "tname": "tty", "%cpu": "pcpu", "%mem": "pmem", "rssize": "rss", "vsize": "vsz", "state": "s", "cputime": "time", "nice": "ni", "thcount": "nlwp", "start_time": "stime", "bsdstart": "start", "lstart": "start"}

// topColumns reads ps options: "-ef" (the default), "aux", "-o a,b=TITLE".
func topColumns(args string) ([]topColumn, error) {
	table := topTable()
	pick := func(names ...string) (out []topColumn) {
		for _, n := range names {
			out = append(out, table[n])
		}
		return out
	}
	retitle := func(c topColumn, title string) topColumn { c.title = title; return c }
	f := strings.Fields(args)
	if len(f) == 0 {
		f = []string{"-ef"}
	}
	var custom []topColumn
	for i := 0; i < len(f); i++ {
		a := f[i]
		list, isO := "", false
		switch {
		case a == "-o" || a == "-eo" || a == "o" || a == "--format" || a == "axo" || a == "-Ao" || a == "-axo":
			if i+1 >= len(f) {
				return nil, invalid("ps options %q: -o without columns", clip(args))
			}
			i++
			list, isO = f[i], true
		case strings.HasPrefix(a, "-o"):
			list, isO = a[2:], true
		case strings.HasPrefix(a, "--format="):
			list, isO = a[len("--format="):], true
		}
		if !isO {
			continue
		}
		for n := range strings.SplitSeq(list, ",") {
			name, title, named := strings.Cut(n, "=")
			name = strings.ToLower(name)
			if real, ok := topAliases[name]; ok {
				name = real
			}
			col, ok := table[name]
			if !ok {
				return nil, errdefs.WithHint(invalid("ps column %q is not known", clip(n)), "try pid,ppid,user,comm,args,time,etime,rss,vsz,pcpu,pmem,stat,tty")
			}
			if named {
				col.title = title
			}
			custom = append(custom, col)
		}
	}
	if custom != nil {
		if !slices.ContainsFunc(custom, func(c topColumn) bool { return c.title == "PID" }) && !strings.Contains(args, "pid") {
			return nil, invalid("Couldn't find PID field in ps output")
		}
		return custom, nil
	}
	switch {
	case strings.Contains(f[0], "u") && !strings.HasPrefix(f[0], "-"):
		cols := pick("user", "pid", "pcpu", "pmem", "vsz", "rss", "tty", "stat", "start", "time", "args")
		cols[6] = retitle(cols[6], "TTY")
		return cols, nil
	case strings.HasPrefix(f[0], "-") && strings.Contains(f[0], "f"):
		cols := pick("user", "pid", "ppid", "c", "stime", "tty", "time", "args")
		cols[0], cols[5], cols[7] = retitle(cols[0], "UID"), retitle(cols[5], "TTY"), retitle(cols[7], "CMD")
		return cols, nil
	}
	cols := pick("pid", "tty", "time", "comm")
	cols[1], cols[3] = retitle(cols[1], "TTY"), retitle(cols[3], "CMD")
	return cols, nil
}

// procs is what is common to all processes at one moment.
type procs struct {
	boot, now time.Time
	memory    uint64
	users     map[uint32]string
}

func readProcs() procs {
	p := procs{now: time.Now(), memory: HostMemory() >> 10, users: map[uint32]string{}}
	f := strings.Fields(readWord("/proc/uptime"))
	if len(f) > 0 {
		if up, err := strconv.ParseFloat(f[0], 64); err == nil {
			p.boot = p.now.Add(-time.Duration(up * float64(time.Second)))
		}
	}
	if pw, err := os.Open("/etc/passwd"); err == nil {
		defer pw.Close()
		sc := bufio.NewScanner(pw)
		for sc.Scan() {
			if f := strings.Split(sc.Text(), ":"); len(f) > 2 {
				if uid, ok := plainNumber(f[2]); ok {
					p.users[uid] = f[0]
				}
			}
		}
	}
	return p
}

func (ps procs) process(pid int) (process, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	stat := readWord(dir + "/stat")
	open, end := strings.IndexByte(stat, '('), strings.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return process{}, os.ErrNotExist
	}
	f := strings.Fields(stat[end+1:])
	if len(f) < 22 {
		return process{}, os.ErrNotExist
	}
	n := func(i int) int { v, _ := strconv.Atoi(f[i]); return v }
	const hz = 100
	p := process{
		pid: pid, comm: stat[open+1 : end], state: f[0], ppid: n(1), pgid: n(2), sid: n(3), nice: n(16), threads: n(17), tty: ttyName(n(4)),
		cpu: time.Duration(n(11)+n(12)) * time.Second / hz, start: ps.boot.Add(time.Duration(n(19)) * time.Second / hz), now: ps.now,
		vsz: uint64(n(20)) >> 10, rss: uint64(n(21)) * uint64(os.Getpagesize()) >> 10, memTotal: ps.memory,
	}
	if p.pid == p.sid {
		p.state += "s"
	}
	if p.threads > 1 {
		p.state += "l"
	}
	cmd, _ := os.ReadFile(dir + "/cmdline")
	p.args = strings.TrimRight(strings.ReplaceAll(string(cmd), "\x00", " "), " ")
	if p.args == "" {
		p.args = "[" + p.comm + "]"
	}
	for line := range strings.Lines(readWord(dir + "/status")) {
		if v, ok := strings.CutPrefix(line, "Uid:"); ok {
			if uf := strings.Fields(v); len(uf) > 1 {
				u, _ := strconv.ParseUint(uf[1], 10, 32)
				p.uid = uint32(u)
			}
		}
	}
	if p.user = ps.users[p.uid]; p.user == "" {
		p.user = strconv.Itoa(int(p.uid))
	}
	return p, nil
}

func ttyName(dev int) string {
	major, minor := dev>>8&0xfff, dev&0xff|dev>>12&0xfff00
	switch {
	case dev == 0:
		return "?"
	case major >= 136 && major <= 143:
		return "pts/" + strconv.Itoa((major-136)<<8+minor)
	case major == 4 && minor < 64:
		return "tty" + strconv.Itoa(minor)
	case major == 4:
		return "ttyS" + strconv.Itoa(minor-64)
	}
	return "?"
}
