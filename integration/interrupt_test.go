//go:build linux

package integration

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// TestInterrupt stops `make run` in the middle. Its lab is inside of the
// tests' lab, which sees what it leaves behind.
func TestInterrupt(t *testing.T) {
	for _, rt := range runtimes {
		for _, signal := range []unix.Signal{unix.SIGINT, unix.SIGKILL} {
			t.Run(rt.name+" "+unix.SignalName(signal), func(t *testing.T) {
				testInterrupt(newRig(t, rt.runtime), signal)
			})
		}
	}
}

func testInterrupt(r *rig, signal unix.Signal) {
	parent := r.hostDir()
	cmd := r.Tool(r.ctx, "lab", "-runtime", r.runtime)
	cmd.Env = append(cmd.Env, lab.ParentEnv+"="+parent)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		r.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	defer cmd.Process.Kill()
	lines := bufio.NewScanner(stderr)
	var said []string
	for lines.Scan() {
		said = append(said, lines.Text())
		if strings.Contains(lines.Text(), "ctr run") {
			break
		}
	}
	r.eventually(commandTimeout, func() error { return isRunning(r.runtime) })

	if err := cmd.Process.Signal(signal); err != nil {
		r.Fatalf("%v; it said %q", err, said)
	}
	err = cmd.Wait()
	if signal == unix.SIGKILL {
		// Nobody is left who could remove the directory: the next lab does.
		r.eventually(commandTimeout, r.isAlone)
		next := r.Tool(r.ctx, "lab", "-runtime", lab.RuntimeRunc)
		next.Env = cmd.Env
		if result, err := r.Complete(next); err != nil || result.Code != 0 {
			r.Errorf("the lab after the killed one: %v\n%s", err, result)
		}
	} else if code := cmd.ProcessState.ExitCode(); code != 128+int(signal) {
		r.Errorf("exit code %d (%v), want %d", code, err, 128+int(signal))
	}
	left, err := os.ReadDir(parent)
	if err != nil {
		r.Fatal(err)
	}
	for _, e := range left {
		r.Errorf("left behind: %s", filepath.Join(parent, e.Name()))
	}
}

// isRunning is nil once a shim of the runtime is there, or its machine, and so a
// container is on its way.
func isRunning(runtime string) error {
	want := "qemu-system-"
	if runtime == lab.RuntimeRunc {
		want = "containerd-shim-runc-v2"
	}
	all, err := lab.Processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		if strings.HasPrefix(filepath.Base(p.Args[0]), want) {
			return nil
		}
	}
	return fmt.Errorf("no process %s yet", want)
}

// isAlone is nil once there are no processes but the lab's own.
func (r *rig) isAlone() error {
	all, err := lab.Processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		if p.Pid != 1 && p.Pid != os.Getpid() && p.Pid != r.ContainerdPid() {
			return fmt.Errorf("process %d: %s", p.Pid, p)
		}
	}
	return nil
}
