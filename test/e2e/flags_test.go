package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// flagNames are the flags of `docker run` of Docker 29.9.
const flagNames = `add-host annotation attach blkio-weight blkio-weight-device cap-add cap-drop cgroup-parent cgroupns cidfile cpu-count cpu-percent cpu-period cpu-quota
cpu-rt-period cpu-rt-runtime cpu-shares cpus cpuset-cpus cpuset-mems detach detach-keys device device-cgroup-rule device-read-bps device-read-iops device-write-bps
device-write-iops dns dns-option dns-search domainname entrypoint env env-file expose gpus group-add health-cmd health-interval health-retries health-start-interval
health-start-period health-timeout hostname init interactive io-maxbandwidth io-maxiops ip ip6 ipc isolation label label-file link link-local-ip log-driver log-opt
mac-address memory memory-reservation memory-swap memory-swappiness mount name network network-alias no-healthcheck oom-kill-disable oom-score-adj pid pids-limit
platform privileged publish publish-all pull quiet read-only restart rm runtime security-opt shm-size sig-proxy stop-signal stop-timeout storage-opt sysctl tmpfs tty
ulimit umask use-api-socket user userns uts volume volume-driver volumes-from workdir`

// A flagRow runs a shell script in a container that the flags describe, and
// says what it prints there.
type flagRow struct {
	flags  string // words of the command line; DIR is a directory of the test
	script string
	want   string // what it prints; with ^ in front a regular expression
	on     string // "v1" or "v2": only where the control groups are so
	needs  string // a file of the host without which the kernel cannot do it
}

// limit prints a limit of the container's control group on either version:
// the name after the slash is that of version 2.
const limit = `limit() { cat /sys/fs/cgroup/$1 2>/dev/null || cat /sys/fs/cgroup/$2; }; `

var flagRows = []flagRow{
	// Life.
	{flags: "--rm --name flagged --hostname jar --domainname example.org", script: `hostname; cat /proc/sys/kernel/domainname`, want: "jar\nexample.org"},
	{flags: "--rm --entrypoint /bin/echo", script: "", want: "-c"},
	{flags: "--rm --workdir /srv/made --user 1234:77 --group-add 55 --group-add 66", script: `pwd; id -u; id -G`, want: "/srv/made\n1234\n77 55 66"},
	{flags: "--rm --user guest", script: `id -un; echo $HOME`, want: "guest\n/home"},
	{flags: "--rm --umask 0027", script: `umask; touch /f; stat -c %a /f`, want: "0027\n640"},
	{flags: "--rm --env A=1 -e A=2 -e EMPTY= --env-file DIR/env", script: `echo $A,$B,${EMPTY-unset},$C`, want: "2,from file,,has=more"},
	{flags: "--rm --tty", script: `test -t 1 && echo tty $TERM`, want: "tty xterm"},
	{flags: "--rm --init", script: `cat /proc/1/comm; (sleep 0.01 &); sleep 0.05; ps -o stat | grep -c Z`, want: "^(onggi-init|init)\n0"},
	{flags: "--rm --attach stderr", script: `echo out; echo err >&2`, want: "err"},
	{flags: "--rm --platform linux --pull never --quiet --sig-proxy=false --isolation default", script: `echo ran`, want: "ran"},
	{flags: "--rm --annotation org.example.a=b", script: `echo ran`, want: "ran"},

	// Namespaces.
	{flags: "--rm --pid host", script: `test $(ls -d /proc/[0-9]* | wc -l) -gt 5 && test $$ -ne 1 && echo host`, want: "host"},
	{flags: "--rm --pid container:other", script: `cat /proc/1/cmdline | tr '\0' ' '`, want: "sleep 1000"},
	{flags: "--rm --ipc container:sharer", script: `cat /dev/shm/given`, want: "shared"},
	{flags: "--rm --ipc host", script: `readlink /proc/self/ns/ipc`, want: "=ipc"},
	{flags: "--rm --ipc none", script: `ls -d /dev/shm 2>&1 | grep -c No`, want: "1"},
	{flags: "--rm --uts host", script: `readlink /proc/self/ns/uts`, want: "=uts"},
	{flags: "--rm --userns host", script: `readlink /proc/self/ns/user`, want: "=user"},
	{flags: "--rm --cgroupns host", script: `readlink /proc/self/ns/cgroup`, want: "=cgroup"},
	{flags: "--rm --cgroupns private", script: `cut -d: -f3 /proc/self/cgroup | sort -u`, want: "/"},
	{flags: "--rm --network host", script: `readlink /proc/self/ns/net`, want: "=net"},
	{flags: "--rm --cgroup-parent /onggi-e2e-parent --cgroupns host", script: `grep -c /onggi-e2e-parent/ /proc/self/cgroup | sed 's/^[1-9].*/in/'`, want: "in"},

	// Resources.
	{flags: "--rm --memory 64m --memory-reservation 32m --memory-swap 96m", script: limit + `limit memory/memory.limit_in_bytes memory.max; limit memory/memory.soft_limit_in_bytes memory.low`, want: "67108864\n33554432"},
	{flags: "--rm --memory 64m --memory-swap 96m", script: `cat /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes`, want: "100663296", on: "v1"},
	{flags: "--rm --memory 64m --memory-swap 96m", script: `cat /sys/fs/cgroup/memory.swap.max`, want: "33554432", on: "v2"},
	{flags: "--rm --memory 64m --memory-swap -1 --memory-swappiness 7 --oom-kill-disable", script: `cd /sys/fs/cgroup/memory; cat memory.swappiness; grep oom_kill_disable memory.oom_control; test $(cat memory.memsw.limit_in_bytes) -gt 1000000000000 && echo much`, want: "7\noom_kill_disable 1\nmuch", on: "v1"},
	{flags: "--rm --memory 64m --memory-swappiness 7 --oom-kill-disable", script: `cat /sys/fs/cgroup/memory.max`, want: "67108864\nwarning: OomKillDisable is not supported with control groups v2, and is discarded", on: "v2"},
	{flags: "--rm --cpus 0.5", script: `cat /sys/fs/cgroup/cpu.max 2>/dev/null || (cd /sys/fs/cgroup/cpu; echo $(cat cpu.cfs_quota_us cpu.cfs_period_us))`, want: "50000 100000"},
	{flags: "--rm --cpu-period 20000 --cpu-quota 5000", script: `cat /sys/fs/cgroup/cpu.max 2>/dev/null || (cd /sys/fs/cgroup/cpu; echo $(cat cpu.cfs_quota_us cpu.cfs_period_us))`, want: "5000 20000"},
	{flags: "--rm --cpu-shares 512", script: limit + `limit cpu/cpu.shares cpu.weight`, want: "^(512|59|20)"},
	{flags: "--rm --cpuset-cpus 0 --cpuset-mems 0", script: `grep -E 's_allowed_list' /proc/self/status | cut -f2`, want: "0\n0"},
	{flags: "--rm --pids-limit 33", script: limit + `limit pids/pids.max pids.max`, want: "33"},
	{flags: "--rm --pids-limit -1", script: limit + `limit pids/pids.max pids.max`, want: "max"},
	{flags: "--rm --ulimit nofile=99:120 --ulimit core=0", script: `ulimit -n; ulimit -Hn; ulimit -c`, want: "99\n120\n0"},
	{flags: "--rm --oom-score-adj 321", script: `cat /proc/self/oom_score_adj`, want: "321"},
	{flags: "--rm --device-read-bps BLOCK:1mb --device-write-bps BLOCK:2mb --device-read-iops BLOCK:30 --device-write-iops BLOCK:40", on: "v1",
		script: `cd /sys/fs/cgroup/blkio; for f in read_bps read_iops write_bps write_iops; do cut -d' ' -f2 blkio.throttle.${f}_device; done`, want: "1048576\n30\n2097152\n40"},
	{flags: "--rm --device-read-bps BLOCK:1mb --device-write-bps BLOCK:2mb --device-read-iops BLOCK:30 --device-write-iops BLOCK:40", on: "v2",
		script: `cut -d' ' -f2- /sys/fs/cgroup/io.max`, want: "rbps=1048576 wbps=2097152 riops=30 wiops=40"},
	{flags: "--rm --blkio-weight 300", script: `cat /sys/fs/cgroup/blkio/blkio.bfq.weight`, want: "300", on: "v1", needs: "/sys/fs/cgroup/blkio/blkio.bfq.io_serviced"},
	{flags: "--rm --shm-size 8m", script: `df -k /dev/shm | tail -1 | awk '{print $2}'`, want: "8192"},
	{flags: "--rm --ipc shareable --shm-size 8m", script: `df -k /dev/shm | tail -1 | awk '{print $2}'`, want: "8192"},

	// Security.
	{flags: "--rm --cap-drop ALL --cap-add NET_ADMIN --cap-add cap_chown", script: `grep CapEff /proc/self/status`, want: "CapEff:\t0000000000001001"},
	{flags: "--rm --privileged", script: `grep Seccomp: /proc/self/status; test -b BLOCK && echo device; touch /sys/fs/cgroup/x 2>/dev/null; mount -t tmpfs t /mnt 2>/dev/null || mkdir /mnt && mount -t tmpfs t /mnt && echo mounted`, want: "Seccomp:\t0\ndevice\nmounted"},
	{flags: "--rm --security-opt no-new-privileges", script: `grep NoNewPrivs /proc/self/status`, want: "NoNewPrivs:\t1"},
	{flags: "--rm --security-opt seccomp=unconfined", script: `grep Seccomp: /proc/self/status`, want: "Seccomp:\t0"},
	{flags: "--rm --security-opt seccomp=DIR/seccomp.json", script: `mkdir /made 2>&1 | grep -o 'not permitted'`, want: "not permitted"},
	{flags: "--rm --security-opt systempaths=unconfined", script: `grep -c -E ' /proc/(sys|kcore|keys) ' /proc/self/mountinfo`, want: "0"},
	{flags: "--rm --security-opt label=disable --security-opt apparmor=unconfined", script: `echo ran`, want: "ran"},
	{flags: "--rm --sysctl net.ipv4.ip_forward=0 --sysctl kernel.shmmax=12345678", script: `cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmax`, want: "0\n12345678"},
	{flags: "--rm --device /dev/fuse:/dev/melted:r", script: `test -c /dev/melted && echo there; (: >/dev/melted) 2>&1 | grep -o 'not permitted'`, want: "there\nnot permitted", needs: "/dev/fuse"},
	{flags: "--rm --device example.org/dev=one", script: `test -c /dev/melted && : </dev/melted && echo $WHOLE $PART; cat /given; id -G`, want: "spec one\nfile\n0 44", needs: "/dev/fuse"},
	{flags: "--rm --gpus all", script: `echo $GPU`, want: "all"},
	{flags: "--rm --gpus 1", script: `echo $GPU`, want: "zero"},
	{flags: `--rm --gpus device=all`, script: `echo $GPU`, want: "all"},
	{flags: "--rm --device-cgroup-rule", script: `mknod /tmp/k c 10 229 && : </tmp/k && echo opened`, want: "opened", needs: "/dev/fuse"},
	{flags: "--rm --cap-add MKNOD", script: `mknod /tmp/k c 10 229 && (: </tmp/k) 2>&1 | grep -o 'not permitted'`, want: "not permitted"},
	{flags: "--rm --read-only --tmpfs /scratch:size=1m,mode=700,exec", script: `(: >/f) 2>&1 | grep -o Read-only; df -k /scratch | tail -1 | awk '{print $2}'; stat -c %a /scratch; grep -c ' /scratch [^ ]*noexec' /proc/self/mountinfo`, want: "Read-only\n1024\n700\n0"},

	// Storage.
	{flags: "--rm --volume DIR/in:/in:ro -v made:/made", script: `cat /in/f; (: >/in/g) 2>&1 | grep -o Read-only; echo kept >/made/f`, want: "file\nRead-only"},
	{flags: "--rm --volume-driver local -v made:/again:ro", script: `cat /again/f`, want: "kept"},
	{flags: "--rm --volumes-from holder:ro", script: `cat /held/f; (: >/held/g) 2>&1 | grep -o Read-only`, want: "held\nRead-only"},
	{flags: "--rm --mount type=bind,src=DIR/in,dst=/in,readonly", script: `cat /in/f; (: >/in/sub/g) 2>&1 | grep -o Read-only`, want: "file\nRead-only"},
	{flags: "--rm --mount type=bind,src=DIR/tree,dst=/t,readonly", script: `(: >/t/below/g) 2>&1 | grep -o Read-only`, want: "Read-only"},
	{flags: "--rm --mount type=bind,src=DIR/tree,dst=/t,readonly,bind-recursive=writable", script: `(: >/t/g) 2>&1 | grep -o Read-only; : >/t/below/g && echo written`, want: "Read-only\nwritten"},
	{flags: "--rm --mount type=bind,src=DIR/tree,dst=/t,readonly,bind-recursive=readonly,bind-propagation=rprivate", script: `(: >/t/below/h) 2>&1 | grep -o Read-only`, want: "Read-only"},
	{flags: "--rm --mount type=bind,src=DIR/tree,dst=/t,bind-recursive=disabled", script: `awk '{print $5}' /proc/self/mountinfo | grep '^/t'`, want: "/t"},
	{flags: "--rm --mount type=bind,src=DIR/tree,dst=/t,bind-propagation=rslave", script: `grep ' /t ' /proc/self/mountinfo | grep -c master:`, want: "1"},
	{flags: "--rm --mount type=bind,src=DIR/absent/dir,dst=/new,bind-create-src", script: `test -d /new && echo made`, want: "made"},
	{flags: "--rm --mount type=volume,src=holding,dst=/held,volume-subpath=sub,volume-nocopy", script: `ls /held`, want: "below"},
	{flags: "--rm --mount type=volume,src=labelled,dst=/etc,volume-label=a=b", script: `test -f /etc/passwd && echo copied`, want: "copied"},
	{flags: "--rm --mount type=volume,src=empty,dst=/home,volume-nocopy", script: `ls -A /home`, want: ""},
	{flags: "--rm --mount type=tmpfs,dst=/t,tmpfs-size=2m,tmpfs-mode=1770", script: `df -k /t | tail -1 | awk '{print $2}'; stat -c %a /t`, want: "2048\n1770"},
	{flags: "--rm --mount type=image,src=busybox,dst=/img", script: `test -x /img/bin/busybox && echo image; (: >/img/f) 2>&1 | grep -o Read-only`, want: "image\nRead-only"},
	{flags: "--rm --mount type=image,src=busybox,dst=/img,image-subpath=etc/passwd", script: `grep -c root /img`, want: "1"},
	{flags: "--rm --mount type=image,src=busybox,dst=/img,image-subpath=etc", script: `grep -c root /img/passwd`, want: "1"},

	// Network.
	{flags: "--rm --network none", script: `ip -o link | wc -l`, want: "1"},
	{flags: "--rm --network container:other", script: `hostname`, want: "otherhost"},
	{flags: "--rm --add-host db:10.1.2.3 --add-host gate:host-gateway", script: `grep -w db /etc/hosts | cut -f1; test "$(grep -w gate /etc/hosts | cut -f1 | head -1)" = "$(ip route | awk '/default/{print $3}')" && echo gateway`, want: "10.1.2.3\ngateway"},
	{flags: "--rm --network host --dns-search example.org", script: `grep search /etc/resolv.conf; grep -c nameserver /etc/resolv.conf | sed 's/^[1-9]/some/'`, want: "search example.org\nsome", needs: "/etc/resolv.conf"},
	{flags: "--rm --dns 10.9.8.7 --dns-option ndots:3 --dns-search example.org", script: `grep -E 'search|ndots' /etc/resolv.conf`, want: "search example.org\noptions ndots:3"},
	{flags: "--rm --mac-address 02:42:aa:bb:cc:dd", script: `ip link show eth0 | grep -o 02:42:aa:bb:cc:dd`, want: "02:42:aa:bb:cc:dd"},
	{flags: "--rm --network fixed --ip 10.213.7.77 --ip6 fd00:213:7::77 --network-alias nick --link-local-ip 169.254.8.8", script: `ip addr show eth0 | grep -oE '10.213.7.77|fd00:213:7::77|169.254.8.8' | sort; nslookup nick | grep -c 10.213.7.77`, want: "10.213.7.77\n169.254.8.8\nfd00:213:7::77\n1"},
	{flags: "--rm --network fixed --network name=second,ip=10.213.8.88,mac-address=02:42:aa:bb:cc:ee", script: `ip -o -4 addr | grep -c 10.213; ip link | grep -c 02:42:aa:bb:cc:ee`, want: "2\n1"},
	{flags: "--rm --link other:pal", script: `wget -qO- http://pal:8000/f; wget -qO- http://other:8000/f`, want: "served\nserved"},
	{flags: "--rm --network fixed --link peer:pal", script: `wget -qO- http://pal:8000/f`, want: "served"},

	{flags: "--rm --use-api-socket", script: `test -S /var/run/docker.sock && echo socket`, want: "socket"},

	// What has an effect on Windows only is accepted, as by Docker.
	{flags: "--rm --cpu-count 1 --cpu-percent 50 --io-maxbandwidth 1m --io-maxiops 10", script: "echo ran", want: "ran"},
}

// elsewhere are the flags that other tests of this package show.
var elsewhere = map[string]string{
	"detach-keys": "TestRunFlags/inspected", "log-driver": "TestLogDriverLosesNothing", "log-opt": "TestLogOptions", "runtime": "TestOtherRuntimes",
	"health-cmd": "TestHealth", "health-interval": "TestHealth", "health-retries": "TestHealth", "health-start-interval": "TestHealth", "health-start-period": "TestHealth", "health-timeout": "TestHealth", "restart": "TestRestartPolicies",
	"detach": "TestRunFlags/inspected", "cidfile": "TestRunFlags/inspected", "label": "TestRunFlags/inspected", "label-file": "TestRunFlags/inspected", "expose": "TestRunFlags/inspected",
	"publish": "TestRunFlags/inspected", "publish-all": "TestRunFlags/inspected", "stop-signal": "TestRunFlags/inspected", "stop-timeout": "TestRunFlags/inspected", "interactive": "TestRunFlags/inspected",
	"no-healthcheck": "TestRunFlags/inspected", "cpu-rt-period": "TestRunFlags/refused", "cpu-rt-runtime": "TestRunFlags/refused", "blkio-weight-device": "TestRunFlags/refused", "storage-opt": "TestStorageSize",
}

func TestRunFlags(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() { // the parent of a container's control group is its user's
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/onggi-e2e-parent")
		for _, g := range append(groups, "/sys/fs/cgroup/onggi-e2e-parent") {
			os.Remove(g)
		}
	})
	e := newEngine(t, "--cdi-spec-dir", filepath.Join(dir, "cdi"))
	e.busybox()
	os.Chmod(filepath.Dir(dir), 0o755)
	write(t, dir, map[string]string{
		"cdi/example.json": fmt.Sprintf(`{"cdiVersion":"0.7.0","kind":"example.org/dev","containerEdits":{"env":["WHOLE=spec"],"additionalGids":[44]},"devices":[{"name":"one","containerEdits":{"env":["PART=one"],
			"deviceNodes":[{"path":"/dev/melted","hostPath":"/dev/fuse"}],"mounts":[{"hostPath":%q,"containerPath":"/given","options":["ro","bind"]}]}}]}`, filepath.Join(dir, "in/f")),
		"cdi/gpu.yaml": "cdiVersion: 0.6.0\nkind: nvidia.com/gpu\ndevices:\n- name: all\n  containerEdits: {env: [GPU=all]}\n- name: \"0\"\n  containerEdits: {env: [GPU=zero]}\n- name: hooked\n  containerEdits: {hooks: [{hookName: createContainer, path: /bin/true}]}\n",
		"env":          "# comment\nB=from file\nC=has=more\n", "in/f": "file\n", "in/sub/f": "", "tree/below/f": "", "labels": "from=file\n",
		"seccomp.json": `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}`,
	})
	mountTree(t, filepath.Join(dir, "tree"))
	e.do("network", "create", "--subnet", "10.213.7.0/24", "--subnet", "fd00:213:7::/64", "--ipv6", "fixed")
	e.do("network", "create", "--subnet", "10.213.8.0/24", "second")
	serve := "mkdir /www; echo served >/www/f; exec httpd -f -p 8000 -h /www"
	e.do("run", "-d", "--name", "other", "-h", "otherhost", "busybox", "sleep", "1000")
	e.do("exec", "-d", "other", "sh", "-c", serve)
	e.do("run", "-d", "--name", "peer", "--network", "fixed", "busybox", "sh", "-c", serve)
	e.do("run", "-d", "--name", "sharer", "--ipc", "shareable", "busybox", "sh", "-c", "echo shared >/dev/shm/given; exec sleep 1000")
	e.do("exec", "sharer", "sh", "-c", "until [ -s /dev/shm/given ]; do sleep 0.01; done")
	e.do("run", "--name", "holder", "-v", "holding:/held", "busybox", "sh", "-c", "echo held >/held/f; mkdir -p /held/sub/below")

	used := map[string]bool{}
	for _, row := range flagRows {
		words := e.flagWords(row.flags, dir)
		for _, w := range words {
			if name, ok := strings.CutPrefix(w, "--"); ok {
				name, _, _ = strings.Cut(name, "=")
				used[name] = true
			}
		}
		t.Run(row.flags, func(t *testing.T) {
			if row.on != "" && row.on != cgroupVersion() {
				t.Skipf("for control groups %s", row.on)
			}
			if row.needs != "" {
				if _, err := os.Stat(row.needs); err != nil {
					t.Skipf("this kernel has no %s", row.needs)
				}
			}
			args := append(append([]string{"run"}, words...), "busybox", "sh", "-c", strings.ReplaceAll(row.script, "BLOCK", blockDevice()))
			if slices.Contains(words, "--entrypoint") {
				args = args[:len(args)-1]
				args = slices.Delete(args, len(args)-2, len(args)-1)
			}
			r := e.try(args...)
			got := strings.ReplaceAll(strings.TrimSpace(r.out+r.err), "\r", "")
			switch {
			case strings.HasPrefix(row.want, "="):
				own, _ := os.Readlink("/proc/self/ns/" + row.want[1:])
				equal(t, got, own)
			case strings.HasPrefix(row.want, "^"):
				if !regexp.MustCompile(row.want).MatchString(got) {
					t.Errorf("got\n%s\nwant %s", got, row.want)
				}
			default:
				equal(t, got, row.want)
			}
		})
	}
	t.Run("inspected", func(t *testing.T) { inspectedFlags(t, e, dir) })
	t.Run("updated", func(t *testing.T) { updatedLimits(t, e) })
	t.Run("refused", func(t *testing.T) { refusedFlags(e) })
	var missing []string
	for name := range elsewhere {
		used[name] = true
	}
	for _, name := range strings.Fields(flagNames) {
		if !used[name] {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		t.Errorf("no row shows what these flags do: %v", missing)
	}
}

// inspectedFlags are those whose effect is outside the container.
func inspectedFlags(t *testing.T, e *engine, dir string) {
	id := e.do("run", "--detach", "--name", "seen", "--cidfile", dir+"/cid", "--label", "a=b", "--label-file", dir+"/labels", "--expose", "7000-7001", "-p", "127.0.0.1:38080-38081:8080-8081",
		"--publish-all", "--stop-signal", "USR1", "--stop-timeout", "60", "--no-healthcheck", "busybox", "sh", "-c", "trap 'exit 7' USR1; echo ready; while :; do sleep 0.01; done")
	data, _ := os.ReadFile(dir + "/cid")
	equal(t, string(data), id)
	equal(t, e.do("inspect", "-f", "{{.Config.Labels.a}} {{.Config.Labels.from}} {{len .NetworkSettings.Ports}} {{.Config.Healthcheck.Test}}", "seen"), "b file 4 [NONE]")
	equal(t, e.do("port", "seen", "8081"), "127.0.0.1:38081")
	if got := e.do("port", "seen", "7001"); !regexp.MustCompile(`^0\.0\.0\.0:[0-9]{4,}\n\[::\]:[0-9]{4,}$`).MatchString(got) {
		t.Errorf("published of itself: %s", got)
	}
	e.until("ready", "logs", "seen")
	e.do("stop", "seen")
	equal(t, e.do("inspect", "-f", "{{.State.ExitCode}}", "seen"), "7")
	e.do("run", "-d", "--name", "stubborn", "--stop-timeout", "0", "busybox", "sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.01; done")
	e.until("ready", "logs", "stubborn")
	e.do("stop", "stubborn")
	equal(t, e.do("inspect", "-f", "{{.State.ExitCode}}", "stubborn"), "137")
	equal(t, strings.TrimSpace(e.tryIn(strings.NewReader("typed"), "run", "--rm", "--interactive", "busybox", "cat").out), "typed")
	t.Run("keys", func(t *testing.T) { detachKeys(t, e) })
	// A new name is known to the neighbours at once, the old one is not.
	e.do("rename", "peer", "renamed")
	equal(t, e.do("run", "--rm", "--network", "fixed", "busybox", "sh", "-c", "wget -qO- http://renamed:8000/f; nslookup peer >/dev/null || echo forgotten"), "served\nforgotten")
}

// detachKeys leave a container running.
func detachKeys(t *testing.T, e *engine) {
	script, err := exec.LookPath("script")
	if err != nil {
		t.Skip("no script(1) to give a terminal")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	term := exec.CommandContext(ctx, script, "-q", "-c", fmt.Sprintf("%s -H unix://%s run -it --name left --detach-keys ctrl-a,d busybox cat", e.cli, e.sock), "/dev/null")
	keys, _ := term.StdinPipe()
	shown, _ := term.StdoutPipe()
	if err := term.Start(); err != nil {
		t.Fatal(err)
	}
	io.WriteString(keys, "typed\n")
	r := bufio.NewReader(shown)
	for range 2 { // the terminal's echo, and cat
		r.ReadString('\n')
	}
	io.WriteString(keys, "\x01d")
	io.Copy(io.Discard, r)
	if err := term.Wait(); err != nil {
		t.Errorf("detaching: %v", err)
	}
	equal(t, e.do("inspect", "-f", "{{.State.Status}}", "left"), "running")
}

// updatedLimits: update changes the limits of a running container.
func updatedLimits(t *testing.T, e *engine) {
	e.do("run", "-d", "--name", "limited", "--memory", "64m", "busybox", "sleep", "1000")
	e.refuse(1, []string{"memoryswap", "add --memory-swap"}, "update", "--memory", "256m", "limited") // twice the memory is the limit with swap
	in := func(script string) string { return e.do("exec", "limited", "sh", "-c", limit+script) }
	e.do("update", "--memory", "96m", "--memory-swap", "128m", "--memory-reservation", "48m", "--cpus", "0.7", "--cpu-shares", "2048", "--cpuset-cpus", "0", "--pids-limit", "44", "--restart", "always", "limited")
	equal(t, in("limit memory/memory.limit_in_bytes memory.max; limit memory/memory.soft_limit_in_bytes memory.low; limit pids/pids.max pids.max; limit cpuset/cpuset.cpus cpuset.cpus"), "100663296\n50331648\n44\n0")
	if got := in("limit cpu/cpu.cfs_quota_us cpu.max; limit cpu/cpu.shares cpu.weight"); !regexp.MustCompile(`^70000( 100000)?\n(2048|1[0-9]{2}|[78][0-9])$`).MatchString(got) {
		t.Errorf("processors: %q", got)
	}
	equal(t, e.do("inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.RestartPolicy.Name}}", "limited"), "100663296 always")
	// CPUs are counted or have a quota; no limit is a limit too.
	e.refuse(1, []string{"NanoCPUs has already been set"}, "update", "--cpu-quota", "20000", "limited")
	e.do("update", "--cpus", "0.2", "--pids-limit", "-1", "--memory-swap", "-1", "limited")
	if got := in("limit cpu/cpu.cfs_quota_us cpu.max; limit pids/pids.max pids.max"); !regexp.MustCompile(`^20000( 100000)?\nmax$`).MatchString(got) {
		t.Errorf("quota: %q", got)
	}
	e.refuse(1, []string{"larger than memory limit"}, "update", "--memory", "256m", "--memory-swap", "128m", "limited")
	// What is killed for want of memory is told, though the container lives on.
	e.refuse(137, nil, "exec", "limited", "tail", "-n", "1", "/dev/zero")
	told := func() int {
		return strings.Count(e.do("events", "--since", "0", "--until", "0s", "--filter", "container=limited", "--format", "{{.Action}}"), "oom")
	}
	for i := 0; told() == 0; i++ {
		if i == 1000 {
			t.Fatal("no event tells of the end of memory")
		}
	}
	// What is measured is there.
	got := e.do("stats", "--no-stream", "--format", "{{.Name}} {{.CPUPerc}} {{.MemUsage}} {{.NetIO}} {{.BlockIO}} {{.PIDs}}", "limited")
	if !regexp.MustCompile(`^limited [0-9.]+% [0-9.]+[kKM]iB / 96MiB [0-9.]+k?B / [0-9.]+k?B [0-9.]+[kM]?B / [0-9.]+[kM]?B [1-9]$`).MatchString(got) {
		t.Errorf("stats: %s", got)
	}
	if n := told(); n != 1 {
		t.Errorf("one kill was told of %d times", n)
	}
	if got := e.do("top", "limited", "-o", "pid,user,args"); !regexp.MustCompile(`^PID +USER +COMMAND\n[0-9]+ +root +sleep 1000$`).MatchString(got) {
		t.Errorf("top: %q", got)
	}
}

// A size of what a container writes is kept where the file system has quotas.
func TestStorageSize(t *testing.T) {
	if os.Getenv("ONGGI_VM") == "" {
		t.Skip("the kernel may have no quotas of ext4 (CONFIG_QFMT_V2): the VM lane's has")
	}
	t.Run("ext4", func(t *testing.T) {
		e := prepareEngine(t)
		e.small(128, "-O", "project,quota", "-E", "quotatype=prjquota")
		bounded(t, e, "prjquota")
	})
	t.Run("xfs", func(t *testing.T) {
		e := prepareEngine(t)
		e.disk(320, "mkfs.xfs")
		bounded(t, e, "prjquota,nouuid") // busybox mounts it by another device for --cleanup
	})
}

// bounded shows that a container has room as it is said.
func bounded(t *testing.T, e *engine, options string) {
	e.wrap[6] = strings.Replace(e.wrap[6], "-o loop", "-o loop,"+options, 1)
	e.start()
	e.busybox()
	e.do("run", "--name", "bounded", "--storage-opt", "size=4m", "busybox", "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=20 2>&1 | grep -o 'space left\\|quota exceeded' ; df -k / | tail -1 | awk '{print $2}'; rm /big; echo still >/etc/new; mv /etc/new /etc/passwd; cat /etc/passwd")
	if got := e.do("logs", "bounded"); !regexp.MustCompile(`^(No )?(space left|[Qq]uota exceeded)\n4096\nstill$`).MatchString(got) {
		t.Errorf("got %q", got)
	}
	e.do("run", "--rm", "busybox", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=20")
	e.do("rm", "bounded")
	e.refuse(125, []string{"size"}, "run", "--rm", "--storage-opt", "size=some", "busybox", "true")
}

// refusedFlags are those that this machine cannot satisfy: what is said then.
func refusedFlags(e *engine) {
	e.refuse(125, []string{"quota"}, "run", "--rm", "--storage-opt", "size=1g", "busybox", "true")
	if v := cgroupVersion(); v == "v2" {
		e.refuse(125, []string{"real-time"}, "run", "--rm", "--cpu-rt-period", "1000000", "--cpu-rt-runtime", "95000", "busybox", "true")
	} else {
		e.refuse(125, []string{"parent groups real-time"}, "run", "--rm", "--cpu-rt-period", "1000000", "--cpu-rt-runtime", "95000", "busybox", "true")
	}
	if info := e.do("info"); !strings.Contains(info, "/cdi\n") || !strings.Contains(info, "\n  cdi: example.org/dev=one\n") {
		e.t.Errorf("info tells nothing of CDI:\n%s", info)
	}
	e.refuse(125, []string{"unresolvable CDI devices"}, "run", "--rm", "--device", "example.org/dev=two", "busybox", "true")
	e.refuse(125, []string{"could not select device driver", "[[gpu tea]]"}, "run", "--rm", "--gpus", "capabilities=tea", "busybox", "true")
	e.refuse(1, []string{"bind source path does not exist: /nowhere"}, "create", "--mount", "type=bind,source=/nowhere,target=/x", "busybox")
	e.refuse(125, []string{"invalid mount config", "bind mounts"}, "run", "--rm", "-v", "named:/x:shared", "busybox", "true")
	e.refuse(125, []string{"has hooks"}, "run", "--rm", "--gpus", "device=hooked", "busybox", "true")
	// Weights work where the disk's scheduler is BFQ; the error names the file.
	if b, _ := os.ReadFile("/sys/block/" + filepath.Base(blockDevice()) + "/queue/scheduler"); !strings.Contains(string(b), "[bfq]") && cgroupVersion() == "v1" {
		e.refuse(125, []string{"weight_device"}, "run", "--rm", "--blkio-weight-device", blockDevice()+":300", "busybox", "true")
	}
}

// until waits until a command prints what is wanted.
func (e *engine) until(want string, args ...string) {
	e.t.Helper()
	var out string
	for range 2000 {
		if out = strings.TrimSpace(e.try(args...).out); out == want {
			return
		}
		time.Sleep(5 * time.Millisecond) // polling another process
	}
	e.t.Fatalf("onggi %v: got %q, want %q", args, out, want)
}

// flagWords splits a row's flags and fills in what depends on the machine.
func (e *engine) flagWords(flags, dir string) []string {
	flags = strings.NewReplacer("DIR", dir, "BLOCK", blockDevice()).Replace(flags)
	words := strings.Fields(flags)
	for i, w := range words {
		if w == "--device-cgroup-rule" {
			words = slices.Insert(words, i+1, "c 10:229 rmw", "--cap-add", "MKNOD")
			break
		}
	}
	return words
}

// mountTree mounts a tmpfs below a directory, for recursive binds, and shares
// it, for propagation.
func mountTree(t *testing.T, dir string) {
	t.Helper()
	below := filepath.Join(dir, "below")
	for _, args := range [][]string{{"mount", "--bind", dir, dir}, {"mount", "--make-shared", dir}, {"mount", "-t", "tmpfs", "below", below}} {
		command(t, args...)
	}
	t.Cleanup(func() { command(t, "umount", below); command(t, "umount", dir) })
}

func cgroupVersion() string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return "v2"
	}
	return "v1"
}

// blockDevice is the first disk of the machine.
func blockDevice() string {
	f, err := os.Open("/proc/partitions")
	if err != nil {
		return "/dev/null"
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		var major, minor, blocks int
		var name string
		if n, _ := fmt.Sscan(sc.Text(), &major, &minor, &blocks, &name); n == 4 && blocks > 0 {
			if _, err := os.Stat("/sys/block/" + name); err == nil {
				return "/dev/" + name
			}
		}
	}
	return "/dev/null"
}

// command runs a command of the host that must work.
func command(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// A container with --use-api-socket has the engine's socket, where Docker's would
// be, and the client's credentials; so has one that binds Docker's where there is
// no Docker.
func TestAPISocket(t *testing.T) {
	e := newEngine(t)
	e.busybox()
	write(t, e.dir, map[string]string{"config/config.json": `{"auths": {"registry.example": {"auth": "dTpw"}}}`})
	const script = `test -S /var/run/docker.sock && cat $DOCKER_CONFIG/config.json && stat -c %a $DOCKER_CONFIG/config.json`
	check := func(how, got string) {
		t.Helper()
		if !strings.Contains(got, `"registry.example"`) || !strings.Contains(got, `"dTpw"`) || !strings.HasSuffix(got, "600") {
			t.Errorf("%s: %q", how, got)
		}
	}
	check("run", e.do("run", "--rm", "--use-api-socket", "busybox", "sh", "-c", script))
	id := e.do("create", "--use-api-socket", "busybox", "sh", "-c", script)
	check("create", e.do("start", "-a", id))
	equal(t, e.do("run", "--rm", "--use-api-socket", "-e", "DOCKER_CONFIG=/own", "busybox", "sh", "-c", "echo $DOCKER_CONFIG; test -e /run/secrets || echo none"), "/own\nnone")
	if _, err := os.Lstat("/var/run/docker.sock"); err == nil {
		t.Log("Docker is here: its socket is bound as it is")
		return
	}
	for _, flag := range []string{"-v=/var/run/docker.sock:/s:ro", "--mount=type=bind,src=/run/docker.sock,dst=/s"} {
		equal(t, e.do("run", "--rm", flag, "busybox", "sh", "-c", "test -S /s && echo socket"), "socket")
	}
	if _, err := os.Lstat("/var/run/docker.sock"); err == nil {
		t.Error("a bind of Docker's socket made it on the host")
	}
}
