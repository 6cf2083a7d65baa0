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
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/image"
)

// CrictlClient is crictl: each container in a pod of its own, without a network.
type CrictlClient struct {
	lab *Lab

	mu   sync.Mutex
	pods map[string]pod
}

// pod is what CRI calls a container that the test named.
type pod struct{ id, container, dir string }

// NewCrictlClient returns a client for l, and has CRI pull the lab's image from
// the lab's registry.
func NewCrictlClient(ctx context.Context, l *Lab) (*CrictlClient, error) {
	base, err := image.Busybox(Image, artifacts.busybox, l.Probe())
	if err != nil {
		return nil, err
	}
	if err := errors.Join(l.registry.Push(ctx, base), l.PushCRIImages(ctx)); err != nil {
		return nil, err
	}
	c := &CrictlClient{lab: l, pods: map[string]pod{}}
	for _, name := range []string{Image, image.PauseName} {
		if _, err := c.do(ctx, "pull", name); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// Name implements Client.
func (c *CrictlClient) Name() string { return "crictl" }

// Command is crictl with args, for what Client has no word for.
func (c *CrictlClient) Command(ctx context.Context, args ...string) *exec.Cmd {
	socket := "unix://" + c.lab.Address()
	return c.lab.Tool(ctx, "crictl", append([]string{
		"--runtime-endpoint", socket, "--image-endpoint", socket, "--timeout", callTimeout.String(),
	}, args...)...)
}

func (c *CrictlClient) do(ctx context.Context, args ...string) (Result, error) {
	return ok(c.lab.Complete(c.Command(ctx, args...)))
}

// handlers are CRI's names of the runtimes.
var handlers = map[string]string{RuntimeBhyve: HandlerBhyve, RuntimeRunc: HandlerRunc}

// object is a part of CRI's requests in JSON (k8s.io/cri-api, api.proto).
type object = map[string]any

// Create runs a pod and creates the container in it, not yet started.
func (c *CrictlClient) Create(ctx context.Context, ct Container) error {
	dir, err := os.MkdirTemp(c.lab.TempDir(), "crictl-")
	if err != nil {
		return err
	}
	p := pod{dir: dir}
	defer func() { c.put(ct.ID, p) }()
	podFile, containerFile := filepath.Join(dir, "pod.json"), filepath.Join(dir, "container.json")
	if err := errors.Join(
		writeJSON(podFile, object{
			"metadata":      object{"name": ct.ID, "uid": ct.ID, "namespace": "lab"},
			"hostname":      ct.ID,
			"log_directory": dir,
			"linux":         object{},
		}),
		writeJSON(containerFile, criContainer(ct)),
	); err != nil {
		return err
	}
	r, err := c.do(ctx, "runp", "--runtime", handlers[ct.Runtime], podFile)
	if err != nil {
		return err
	}
	p.id = strings.TrimSpace(r.Stdout)
	if r, err = c.do(ctx, "create", p.id, containerFile, podFile); err != nil {
		return err
	}
	p.container = strings.TrimSpace(r.Stdout)
	return nil
}

func criContainer(ct Container) object {
	security := object{"readonly_rootfs": ct.ReadOnlyRoot}
	if ct.UID != 0 {
		security["run_as_user"] = object{"value": ct.UID}
		security["run_as_group"] = object{"value": ct.UID}
	}
	var envs, mounts []object
	for _, e := range ct.Env {
		key, value, _ := strings.Cut(e, "=")
		envs = append(envs, object{"key": key, "value": value})
	}
	for _, m := range ct.Mounts {
		mounts = append(mounts, object{"container_path": m.Target, "host_path": m.Source, "readonly": m.ReadOnly})
	}
	return object{
		"metadata":    object{"name": ct.ID},
		"image":       object{"image": Image},
		"command":     ct.Command,
		"working_dir": ct.Cwd,
		"envs":        envs,
		"mounts":      mounts,
		"log_path":    "log",
		"linux":       object{"security_context": security},
	}
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

func (c *CrictlClient) put(id string, p pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pods[id] = p
}

func (c *CrictlClient) get(id string) pod {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pods[id]
}

// Run implements Client.
func (c *CrictlClient) Run(ctx context.Context, ct Container) (result Result, err error) {
	// It is removed even if the time is up.
	defer func() { err = errors.Join(err, c.Remove(context.WithoutCancel(ctx), ct.ID)) }()
	if err := c.Start(ctx, ct); err != nil {
		return Result{}, err
	}
	var state State
	if err := Eventually(ctx, func() error {
		if state, err = c.State(ctx, ct.ID); err == nil && state.Running {
			err = errNotYet
		}
		return err
	}); err != nil {
		return Result{}, err
	}
	if result, err = c.do(ctx, "logs", c.get(ct.ID).container); err != nil {
		return result, err
	}
	result.Code = state.ExitCode
	return result, nil
}

// Start implements Client.
func (c *CrictlClient) Start(ctx context.Context, ct Container) error {
	if err := c.Create(ctx, ct); err != nil {
		return err
	}
	_, err := c.do(ctx, "start", c.get(ct.ID).container)
	return err
}

// Exec implements Client.
func (c *CrictlClient) Exec(ctx context.Context, id string, p ExecProcess) *exec.Cmd {
	args := []string{"exec"}
	if p.Stdin || p.TTY {
		args = append(args, "--interactive")
	}
	if p.TTY {
		args = append(args, "--tty")
	}
	return c.Command(ctx, append(append(args, c.get(id).container), p.Command...)...)
}

// terminated is how crictl tells an exit code (k8s.io/client-go,
// tools/remotecommand).
var terminated = regexp.MustCompile(`command terminated with exit code (\d+)`)

// ExitCode implements Client.
func (c *CrictlClient) ExitCode(r Result) int { return exitCodeIn(r, terminated) }

// Stop implements Client.
func (c *CrictlClient) Stop(ctx context.Context, id string, grace time.Duration) error {
	_, err := c.do(ctx, "stop", "--timeout", strconv.Itoa(int(grace.Seconds())), c.get(id).container)
	return err
}

// State implements Client.
func (c *CrictlClient) State(ctx context.Context, id string) (State, error) {
	p := c.get(id)
	if p.container == "" {
		return State{}, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	r, err := c.do(ctx, "inspect", p.container)
	if isNotFound(r) {
		return State{}, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	if err != nil {
		return State{}, err
	}
	var v struct {
		Status struct {
			State    string `json:"state"`
			ExitCode int    `json:"exitCode"`
		} `json:"status"`
	}
	if err := json.Unmarshal([]byte(r.Stdout), &v); err != nil {
		return State{}, fmt.Errorf("inspection of %s: %w", id, err)
	}
	return State{Running: v.Status.State == "CONTAINER_RUNNING", ExitCode: v.Status.ExitCode}, nil
}

// Remove implements Client: the pod goes with the container.
func (c *CrictlClient) Remove(ctx context.Context, id string) error {
	p := c.get(id)
	c.put(id, pod{})
	var errs []error
	if p.id != "" {
		if r, err := c.do(ctx, "rmp", "--force", p.id); err != nil && !isNotFound(r) {
			errs = append(errs, err)
		}
	}
	if p.dir != "" {
		errs = append(errs, os.RemoveAll(p.dir))
	}
	return errors.Join(errs...)
}
