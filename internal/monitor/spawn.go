package monitor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/onggi/onggi/internal/linux"
)

// program is the path of onggi-monitor.
func (o Options) program() (string, error) {
	if o.Binary != "" {
		return filepath.Abs(o.Binary)
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(self), "onggi-monitor"), nil
}

// spawn starts a monitor in a session of its own and waits until it listens. If
// another one is there already, the new one ends at once.
func spawn(o Options) error {
	program, err := o.program()
	if err != nil {
		return err
	}
	dir := filepath.Join(o.ExecRoot, stateDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	out, err := os.OpenFile(filepath.Join(dir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command(program, "keeper", o.ExecRoot)
	cmd.Args[0] = "onggi-monitor"
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=" + os.Getenv("PATH")}
	cmd.Stderr = out
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	go cmd.Wait()
	// It closes its end when it listens, or when it ends.
	if !linux.WaitReadable(int(linux.RawFD(r)), 10*time.Second) {
		return fmt.Errorf("%s did not begin to listen within ten seconds", program)
	}
	return nil
}
