package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/pelletier/go-toml/v2"
)

// NerdctlClient is nerdctl, with everything that it keeps inside of the lab.
type NerdctlClient struct {
	lab    *Lab
	config string
}

// NewNerdctlClient returns a client for l, and writes its configuration.
func NewNerdctlClient(l *Lab) (*NerdctlClient, error) {
	c := &NerdctlClient{lab: l, config: filepath.Join(l.Dir, "nerdctl.toml")}
	data, err := toml.Marshal(map[string]any{
		"address":         l.Address(),
		"namespace":       l.Namespace,
		"snapshotter":     snapshotter,
		"cni_path":        l.CNIPlugins(),
		"cni_netconfpath": l.cniDir(),
		"data_root":       filepath.Join(l.Dir, "nerdctl"),
		"cgroup_manager":  "cgroupfs",
		"hosts_dir":       []string{l.hostsDir()},
	})
	if err != nil {
		return nil, err
	}
	return c, os.WriteFile(c.config, data, 0o644)
}

// Name implements Client.
func (c *NerdctlClient) Name() string { return "nerdctl" }

// Command is nerdctl with args, for what Client has no word for.
func (c *NerdctlClient) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := c.lab.Tool(ctx, "nerdctl", args...)
	cmd.Env = append(cmd.Env, "NERDCTL_TOML="+c.config)
	return cmd
}

func (c *NerdctlClient) do(ctx context.Context, args ...string) (Result, error) {
	return ok(c.lab.Complete(c.Command(ctx, args...)))
}

func (c *NerdctlClient) run(ctx context.Context, ct Container, flags ...string) *exec.Cmd {
	args := append([]string{"run", "--runtime", ct.Runtime, "--name", ct.ID, "--pull", "never", "--net", "none"}, flags...)
	for _, e := range ct.Env {
		args = append(args, "--env", e)
	}
	if ct.Cwd != "" {
		args = append(args, "--workdir", ct.Cwd)
	}
	if ct.UID != 0 {
		args = append(args, "--user", fmt.Sprintf("%d:%[1]d", ct.UID))
	}
	if ct.ReadOnlyRoot {
		args = append(args, "--read-only")
	}
	for _, m := range ct.Mounts {
		volume := m.Source + ":" + m.Target
		if m.ReadOnly {
			volume += ":ro"
		}
		args = append(args, "--volume", volume)
	}
	return c.Command(ctx, append(append(args, Image), ct.Command...)...)
}

// Run implements Client: detached, by way of the log. In the foreground, nerdctl
// 2.1 loses or withholds the end of long output, whatever the runtime is.
func (c *NerdctlClient) Run(ctx context.Context, ct Container) (result Result, err error) {
	// It is removed even if the time is up.
	defer func() { err = errors.Join(err, c.Remove(context.WithoutCancel(ctx), ct.ID)) }()
	started, err := ok(c.lab.Complete(c.run(ctx, ct, "--detach")))
	if err != nil {
		return started, err
	}
	ended, err := c.do(ctx, "wait", ct.ID)
	if err != nil {
		return ended, err
	}
	code, err := strconv.Atoi(strings.TrimSpace(ended.Stdout))
	if err != nil {
		return ended, fmt.Errorf("exit code of %s: %w", ct.ID, err)
	}
	if err := awaitLogger(ctx, strings.TrimSpace(started.Stdout)); err != nil {
		return ended, fmt.Errorf("logger of %s: %w", ct.ID, err)
	}
	if result, err = c.do(ctx, "logs", ct.ID); err != nil {
		return result, err
	}
	result.Code = code
	return result, nil
}

// awaitLogger returns when nerdctl's logger of the container with this id has
// ended: it writes the last of the output after the container's exit is known,
// and `nerdctl logs` shows what is there.
func awaitLogger(ctx context.Context, id string) error {
	return Eventually(ctx, func() error {
		all, err := Processes()
		if err != nil {
			return err
		}
		for _, p := range all {
			if !slices.Contains(p.Args, "_NERDCTL_INTERNAL_LOGGING") {
				continue
			}
			// It may have ended since.
			env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.Pid))
			if err == nil && strings.Contains(string(env), "CONTAINER_ID="+id+"\x00") {
				return fmt.Errorf("process %d still writes", p.Pid)
			}
		}
		return nil
	})
}

// Start implements Client.
func (c *NerdctlClient) Start(ctx context.Context, ct Container) error {
	_, err := ok(c.lab.Complete(c.run(ctx, ct, "--detach")))
	return err
}

// Exec implements Client.
func (c *NerdctlClient) Exec(ctx context.Context, id string, p ExecProcess) *exec.Cmd {
	args := []string{"exec"}
	if p.Stdin {
		args = append(args, "--interactive")
	}
	if p.TTY {
		args = append(args, "--tty")
	}
	return c.Command(ctx, append(append(args, id), p.Command...)...)
}

// execFailed is how nerdctl tells an exit code; its own is 1 (pkg/cmd/container,
// exec.go).
var execFailed = regexp.MustCompile(`exec failed with exit code (\d+)`)

// ExitCode implements Client.
func (c *NerdctlClient) ExitCode(r Result) int { return exitCodeIn(r, execFailed) }

// Stop implements Client.
func (c *NerdctlClient) Stop(ctx context.Context, id string, grace time.Duration) error {
	_, err := c.do(ctx, "stop", "--time", strconv.Itoa(int(grace.Seconds())), id)
	return err
}

// State implements Client.
func (c *NerdctlClient) State(ctx context.Context, id string) (State, error) {
	r, err := c.do(ctx, "container", "inspect", id)
	if isNotFound(r) {
		return State{}, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return State{}, err
	}
	var all []struct {
		State struct {
			Running  bool
			ExitCode int
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil || len(all) != 1 {
		return State{}, fmt.Errorf("inspection of %s: %w: %s", id, err, r.Stdout)
	}
	return State(all[0].State), nil
}

// Remove implements Client.
func (c *NerdctlClient) Remove(ctx context.Context, id string) error {
	if r, err := c.do(ctx, "rm", "--force", id); err != nil && !isNotFound(r) {
		return err
	}
	return nil
}
