package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strconv"
	"sync/atomic"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
)

// CtrClient is containerd's own ctr.
type CtrClient struct {
	lab   *Lab
	execs atomic.Int64
}

// NewCtrClient returns a client for l.
func NewCtrClient(l *Lab) *CtrClient { return &CtrClient{lab: l} }

// Name implements Client.
func (c *CtrClient) Name() string { return "ctr" }

func ctrRun(c Container, flags ...string) []string {
	args := append([]string{"run", "--runtime", c.Runtime}, flags...)
	for _, e := range c.Env {
		args = append(args, "--env", e)
	}
	if c.Cwd != "" {
		args = append(args, "--cwd", c.Cwd)
	}
	if c.UID != 0 {
		args = append(args, "--user", fmt.Sprintf("%d:%[1]d", c.UID))
	}
	if c.ReadOnlyRoot {
		args = append(args, "--read-only")
	}
	for _, m := range c.Mounts {
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		args = append(args, "--mount", fmt.Sprintf("type=bind,src=%s,dst=%s,options=rbind:%s", m.Source, m.Target, mode))
	}
	return append(append(args, Image, c.ID), c.Command...)
}

// Run implements Client.
func (c *CtrClient) Run(ctx context.Context, ct Container) (Result, error) {
	return c.lab.Ctr(ctx, ctrRun(ct, "--rm")...)
}

// Start implements Client.
func (c *CtrClient) Start(ctx context.Context, ct Container) error {
	_, err := ok(c.lab.Ctr(ctx, ctrRun(ct, "--detach", "--null-io")...))
	return err
}

// Exec implements Client.
func (c *CtrClient) Exec(ctx context.Context, id string, p ExecProcess) *exec.Cmd {
	args := []string{"task", "exec", "--exec-id", "client-" + strconv.FormatInt(c.execs.Add(1), 10)}
	if p.TTY {
		args = append(args, "--tty")
	}
	return c.lab.Command(ctx, append(append(args, id), p.Command...)...)
}

// ExitCode implements Client.
func (c *CtrClient) ExitCode(r Result) int { return r.Code }

// Stop implements Client: ctr itself can only send signals.
func (c *CtrClient) Stop(ctx context.Context, id string, grace time.Duration) error {
	for _, signal := range []string{"SIGTERM", "SIGKILL"} {
		if _, err := ok(c.lab.Ctr(ctx, "task", "kill", "--signal", signal, id)); err != nil {
			return err
		}
		wait, cancel := context.WithTimeout(ctx, grace)
		err := Until(wait, func() bool {
			s, err := c.State(ctx, id)
			return err == nil && !s.Running
		})
		cancel()
		if err == nil {
			return nil
		}
		grace = stopTimeout
	}
	return fmt.Errorf("container %s outlives SIGKILL", id)
}

// State implements Client. ctr does not tell the exit code, containerd does.
func (c *CtrClient) State(ctx context.Context, id string) (State, error) {
	ctx = c.lab.Context(ctx)
	container, err := c.lab.Client.LoadContainer(ctx, id)
	if err != nil {
		return State{}, err
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return State{}, err
	}
	status, err := task.Status(ctx)
	if err != nil {
		return State{}, err
	}
	return State{Running: status.Status == containerd.Running, ExitCode: int(status.ExitStatus)}, nil
}

var errUnexpected = errors.New("unexpected exit code")

// Remove implements Client.
func (c *CtrClient) Remove(ctx context.Context, id string) error {
	var errs []error
	for _, args := range [][]string{{"task", "rm", "--force", id}, {"container", "rm", id}} {
		r, err := c.lab.Ctr(ctx, args...)
		if err != nil || r.Code != 0 && !isNotFound(r) {
			errs = append(errs, fmt.Errorf("%s: %w", r, cmp.Or(err, errUnexpected)))
		}
	}
	return errors.Join(errs...)
}
