package initproc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/onggi/onggi/internal/testenv"
)

// run starts a program that execs argv and returns its output and status.
func run(t *testing.T, b *Builder, argv ...string) (string, unix.WaitStatus, error) {
	t.Helper()
	b.Ready()
	b.Step("exec %q", argv[0])
	b.Call("close_range", unix.SYS_CLOSE_RANGE, 3, 0xffffffff, unix.CLOSE_RANGE_CLOEXEC)
	b.Call("execve", unix.SYS_EXECVE, b.Str(argv[0]), b.Strs(argv), b.Strs(nil))
	p, err := b.Program()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	proc, err := Start(p, nil, Stdio{Stdout: w, Stderr: w})
	w.Close()
	if err != nil {
		return "", 0, err
	}
	if err := proc.WaitReady(); err != nil {
		return "", 0, err
	}
	if err := proc.Release(); err != nil {
		t.Fatal(err)
	}
	if err := proc.WaitExec(); err != nil {
		return "", 0, err
	}
	defer proc.PidFD.Close()
	out, _ := io.ReadAll(r)
	var ws unix.WaitStatus
	if _, err := unix.Wait4(proc.PID, &ws, 0, nil); err != nil {
		t.Fatal(err)
	}
	return string(out), ws, nil
}

func TestExec(t *testing.T) {
	bb := testenv.Busybox(t)
	out, ws, err := run(t, NewBuilder(), bb, "sh", "-c", "echo hello; ls /proc/self/fd; exit 7")
	if err != nil || ws.ExitStatus() != 7 || !strings.HasPrefix(out, "hello\n0\n1\n2\n") {
		t.Errorf("%q, %v, %v", out, ws, err)
	}
	if n := strings.Count(out, "\n"); n > 5 { // ls has the directory open
		t.Errorf("descriptors leak into the app: %q", out)
	}
}

func TestStepErrorsNameTheStep(t *testing.T) {
	b := NewBuilder()
	b.Step("chdir to the moon")
	b.Call("chdir", unix.SYS_CHDIR, b.Str("/moon"))
	_, _, err := run(t, b, "/x")
	e, ok := errors.AsType[*StepError](err)
	if !ok || e.Name != "chdir to the moon" || e.Errno != syscall.ENOENT || e.IsExec() || e.ExitCode() != 125 {
		t.Errorf("got %v", err)
	}
	_, _, err = run(t, NewBuilder(), "/not/there")
	e, ok = errors.AsType[*StepError](err)
	if !ok || !e.IsExec() || e.ExitCode() != 127 {
		t.Errorf("got %v", err)
	}
}

func TestJumpsRegistersAndData(t *testing.T) {
	b := NewBuilder()
	b.Step("jump")
	missing, done := b.NewLabel(), b.NewLabel()
	b.Call("chdir", unix.SYS_CHDIR, b.Str("/moon")).On(missing, syscall.ENOENT)
	b.Fail(syscall.EBADMSG)
	b.Mark(missing)
	b.Step("open a directory and go there")
	fd := b.NewReg()
	b.Call("openat", unix.SYS_OPENAT, unix.AT_FDCWD, b.Str("/proc"), unix.O_DIRECTORY, 0).Into(fd)
	b.Call("fchdir", unix.SYS_FCHDIR, fd)
	b.Step("getcwd")
	buf := b.Data(make([]byte, 64))
	b.Call("getcwd", unix.SYS_GETCWD, buf, 64)
	first := b.NewReg()
	b.Load(first, buf, 1)
	b.JumpIf(done, first, '/', 0xff)
	b.Fail(syscall.EXDEV)
	b.Mark(done)
	out, _, err := run(t, b, testenv.Busybox(t), "pwd")
	if err != nil || out != "/proc\n" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestTheFileInMemoryIsSealed(t *testing.T) {
	f, err := Binary()
	if err != nil {
		t.Fatal(err)
	}
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&(unix.F_SEAL_WRITE|unix.F_SEAL_SEAL) != unix.F_SEAL_WRITE|unix.F_SEAL_SEAL {
		t.Errorf("seals %#x, %v", seals, err)
	}
}

func TestReaperEndsWithTheAppsStatusAndReapsOrphans(t *testing.T) {
	testenv.NeedRoot(t)
	b := NewBuilder()
	b.Step("init")
	b.Reap()
	b.Ready()
	bb := testenv.Busybox(t)
	b.Step("exec %q", bb)
	b.Call("close_range", unix.SYS_CLOSE_RANGE, 3, 0xffffffff, unix.CLOSE_RANGE_CLOEXEC)
	b.Call("execve", unix.SYS_EXECVE, b.Str(bb), b.Strs([]string{"sh", "-c", "(sleep 0.01 &) ; sleep 0.05; exit 9"}), b.Strs([]string{"PATH=/bin:/usr/bin"}))
	p, err := b.Program()
	if err != nil {
		t.Fatal(err)
	}
	p.Clone = unix.CLONE_NEWPID
	proc, err := Start(p, nil, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(proc.WaitReady(), proc.Release(), proc.WaitExec()); err != nil {
		t.Fatal(err)
	}
	var ws unix.WaitStatus
	unix.Wait4(proc.PID, &ws, 0, nil)
	if ws.ExitStatus() != 9 {
		t.Errorf("status %v", ws)
	}
}

// forked is a program that goes on in a child, which is ready before the process
// that forked it says who it is, if that does at all.
func forked(t *testing.T, report bool) *Process {
	t.Helper()
	b := NewBuilder()
	child, pid := b.NewLabel(), b.NewReg()
	b.Call("clone", unix.SYS_CLONE, unix.CLONE_PARENT|int(unix.SIGCHLD), 0, 0, 0, 0).Into(pid)
	b.JumpIf(child, pid, 0, ^uint64(0))
	b.Call("nanosleep", unix.SYS_NANOSLEEP, b.Data(binary.LittleEndian.AppendUint64(make([]byte, 8), 20e6)), 0)
	if report {
		b.ReportPID(pid)
	}
	b.Exit(0)
	b.Mark(child)
	b.Ready()
	b.Exit(3)
	p, err := b.Program()
	if err != nil {
		t.Fatal(err)
	}
	p.Forks = true
	proc, err := Start(p, nil, Stdio{})
	if err != nil {
		t.Fatal(err)
	}
	return proc
}

func TestAChildThatIsReadyBeforeItIsNamed(t *testing.T) {
	proc := forked(t, true)
	if err := proc.WaitReady(); err != nil {
		t.Fatal(err)
	}
	if proc.PID == proc.first {
		t.Fatal("the process that forked is taken for the app")
	}
	proc.Release()
	var ws unix.WaitStatus
	if _, err := unix.Wait4(proc.PID, &ws, 0, nil); err != nil || ws.ExitStatus() != 3 {
		t.Errorf("status %v, %v", ws, err)
	}
}

func TestAForkThatIsNeverNamed(t *testing.T) {
	if err := forked(t, false).WaitReady(); err == nil || !strings.Contains(err.Error(), "killed while it forked") {
		t.Errorf("got %v", err)
	}
	var ws unix.WaitStatus
	unix.Wait4(-1, &ws, 0, nil) // the child, which the end of the socket ends
}

// The committed binary is what the source gives.
func TestTheEmbeddedBinaryIsBuiltFromTheSource(t *testing.T) {
	if _, err := os.Stat("../../../cmd/onggi-init/init.c"); err != nil {
		t.Skip("the source is not here: the test runs outside the repository")
	}
	gcc, err := exec.LookPath("x86_64-linux-gnu-gcc")
	if err != nil {
		t.Skip("no x86_64-linux-gnu-gcc here")
	}
	if v, _ := exec.Command(gcc, "-dumpfullversion").Output(); strings.TrimSpace(string(v)) != "12.2.0" {
		t.Skipf("gcc %s gives other bytes than Debian 12's 12.2.0", strings.TrimSpace(string(v)))
	}
	out := t.TempDir()
	cmd := exec.Command("make", "-s", "-B", "-C", "../../../cmd/onggi-init", "OUT="+out)
	if msg, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, msg)
	}
	got, err := os.ReadFile(out + "/onggi-init-amd64")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, initAMD64) {
		t.Error("the embedded onggi-init is not what the source gives: run make init")
	}
}

func BenchmarkStart(b *testing.B) {
	bb := "/bin/busybox"
	build := NewBuilder()
	build.Ready()
	build.Step("exec")
	build.Call("execve", unix.SYS_EXECVE, build.Str(bb), build.Strs([]string{"true"}), build.Strs(nil))
	p, err := build.Program()
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		proc, err := Start(p, nil, Stdio{})
		if err != nil {
			b.Fatal(err)
		}
		if err := errors.Join(proc.WaitReady(), proc.Release(), proc.WaitExec()); err != nil {
			b.Fatal(err)
		}
		unix.Wait4(proc.PID, nil, 0, nil)
		proc.PidFD.Close()
	}
}
