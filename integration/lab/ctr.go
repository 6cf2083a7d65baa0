package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Result is what a command that has ended has to say.
type Result struct {
	Args   []string
	Stdout string
	Stderr string
	// Code is the exit code; -1 where the command was killed.
	Code int
}

// String shows the whole of r, for a test's failure.
func (r Result) String() string {
	return fmt.Sprintf("%s: exit code %d\nstdout: %q\nstderr: %s", strings.Join(r.Args, " "), r.Code, r.Stdout, r.Stderr)
}

// Command is ctr with args in the lab's environment, for a caller that wires
// its streams. It is killed when ctx ends.
func (l *Lab) Command(ctx context.Context, args ...string) *exec.Cmd {
	return l.Tool(ctx, "ctr", adapt(args)...)
}

// Shim is this repository's shim with args, in the environment that containerd
// gives to shims.
func (l *Lab) Shim(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(l.repo, artifacts.shimDir, "containerd-shim-bhyve-v2"), args...)
	cmd.Env = append(l.Env(), "TTRPC_ADDRESS="+containerdAddress+".ttrpc")
	return cmd
}

// Address is containerd's socket.
func (l *Lab) Address() string { return containerdAddress }

// Tool is Command for another of the programs that were built for the tests.
func (l *Lab) Tool(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, l.ToolPath(name), args...)
	cmd.Env = l.Env()
	// A stream that someone inherited and keeps open must not keep Wait.
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// ToolPath is the absolute path of a program that was built for the tests.
func (l *Lab) ToolPath(name string) string { return filepath.Join(l.repo, artifacts.toolDir, name) }

// FindShim is the absolute path of a shim, as containerd finds it.
func (l *Lab) FindShim(name string) (string, error) {
	for _, dir := range []string{artifacts.shimDir, artifacts.toolDir} {
		if path := filepath.Join(l.repo, dir, name); exists(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("shim %q has not been built", name)
}

// Ctr runs ctr to its end. The error says that it could not be run or had to
// be killed: an exit code other than zero is in the Result.
func (l *Lab) Ctr(ctx context.Context, args ...string) (Result, error) {
	return l.Complete(l.Command(ctx, args...))
}

// Complete runs a Command to its end, and collects the output that it does not
// send elsewhere.
func (l *Lab) Complete(cmd *exec.Cmd) (Result, error) {
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	err := cmd.Run()
	r := Result{Args: cmd.Args, Stdout: stdout.String(), Stderr: stderr.String(), Code: -1}
	if cmd.ProcessState != nil {
		r.Code = cmd.ProcessState.ExitCode()
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && r.Code >= 0 {
		err = nil
	}
	return r, err
}

// LogTail returns the last lines of containerd's log, which the shims write
// into as well.
func (l *Lab) LogTail(lines int) string {
	data, err := os.ReadFile(l.daemon.logPath)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// CopyLog copies containerd's log to path, to be there after the lab.
func (l *Lab) CopyLog(path string) error {
	data, err := os.ReadFile(l.daemon.logPath)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

// LogSize is the length of containerd's log, to be given to LogSince.
func (l *Lab) LogSize() (int64, error) {
	info, err := os.Stat(l.daemon.logPath)
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// LogSince returns what has been logged since the log was size bytes long.
func (l *Lab) LogSince(size int64) (string, error) {
	data, err := os.ReadFile(l.daemon.logPath)
	if err != nil {
		return "", err
	}
	return string(data[min(size, int64(len(data))):]), nil
}
