package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/platforms"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"
)

// containerdAddress is containerd's default, so that ctr finds it unasked.
const containerdAddress = defaults.DefaultAddress

// disabledPlugins are those that a lab has no use for, or that would look
// outside of it, on every system.
var disabledPlugins = []string{
	"io.containerd.internal.v1.opt",
	"io.containerd.nri.v1.nri",
	"io.containerd.snapshotter.v1.blockfile",
	"io.containerd.snapshotter.v1.btrfs",
	"io.containerd.snapshotter.v1.devmapper",
	"io.containerd.snapshotter.v1.erofs",
}

// guestPlatform is what runs in a guest, whatever the host is.
var guestPlatform = platforms.Only(platforms.Platform{OS: "linux", Architecture: runtime.GOARCH})

// daemon is the containerd process, which may be stopped and started again.
type daemon struct {
	config  string
	logPath string
	path    string
	env     []string

	cmd  *exec.Cmd
	done chan struct{}
}

func newDaemon(l *Lab) (*daemon, error) {
	config := map[string]any{
		"version":          3,
		"root":             filepath.Join(l.Dir, "containerd"),
		"state":            defaults.DefaultStateDir,
		"disabled_plugins": slices.Concat(disabledPlugins, disabledHere),
		"plugins":          l.plugins(),
		"grpc":             map[string]any{"address": containerdAddress},
		"debug":            map[string]any{"level": "debug"},
		"timeouts":         timeouts(),
	}
	data, err := toml.Marshal(config)
	if err != nil {
		return nil, err
	}
	d := &daemon{
		config:  filepath.Join(l.Dir, "containerd.toml"),
		logPath: filepath.Join(l.Dir, "containerd.log"),
		path:    filepath.Join(l.repo, artifacts.toolDir, "containerd"),
		env:     l.Env(),
	}
	return d, os.WriteFile(d.config, data, 0o644)
}

// Env is the environment of everything that runs in the lab: PATH leads to the
// shims and tools that were built here.
func (l *Lab) Env() []string {
	return append(os.Environ(),
		fmt.Sprintf("PATH=%s:%s:%s", filepath.Join(l.repo, artifacts.shimDir), filepath.Join(l.repo, artifacts.toolDir), os.Getenv("PATH")),
		"TMPDIR="+l.TempDir(),
		"CONTAINERD_ADDRESS="+containerdAddress,
		"CONTAINERD_NAMESPACE="+l.Namespace,
		"CONTAINERD_SHIM_BHYVE_CONFIG="+l.shimConfigPath(),
		// They would be on the standard error of every ctr.
		"CONTAINERD_SUPPRESS_DEPRECATION_WARNINGS=1",
		// Otherwise ctr's default is one that FreeBSD does not have.
		"CONTAINERD_SNAPSHOTTER="+snapshotter,
	)
}

// StartContainerd starts containerd and returns when it serves.
func (l *Lab) StartContainerd(ctx context.Context) error {
	if err := l.daemon.start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	if l.Client == nil {
		client, err := containerd.New(containerdAddress,
			containerd.WithDefaultNamespace(l.Namespace), containerd.WithDefaultPlatform(guestPlatform))
		if err != nil {
			return err
		}
		l.Client = client
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ctx, ended := context.WithCancelCause(ctx)
	defer ended(nil)
	go func() {
		select {
		case <-l.daemon.done:
			ended(errors.New("containerd exited"))
		case <-ctx.Done():
		}
	}()
	if err := Eventually(ctx, func() error {
		// A connection that was refused is tried again after a second or
		// more; the socket is there long before.
		conn, err := new(net.Dialer).DialContext(ctx, "unix", containerdAddress)
		if err != nil {
			return err
		}
		return conn.Close()
	}); err != nil {
		return fmt.Errorf("wait for containerd: %w\n%s", err, l.LogTail(20))
	}
	serving, err := l.Client.IsServing(ctx)
	if err == nil && !serving {
		err = errors.New("not serving")
	}
	if err != nil {
		return fmt.Errorf("containerd: %w\n%s", err, l.LogTail(20))
	}
	return nil
}

// StopContainerd asks containerd to end and waits for it. Shims and what they
// run stay.
func (l *Lab) StopContainerd(ctx context.Context) error { return l.daemon.stop(ctx) }

// KillContainerd ends containerd as a crash would.
func (l *Lab) KillContainerd() error {
	err := l.daemon.cmd.Process.Kill()
	<-l.daemon.done
	return err
}

// ContainerdPid is the running containerd's process id.
func (l *Lab) ContainerdPid() int { return l.daemon.cmd.Process.Pid }

func (d *daemon) start() error {
	log, err := os.OpenFile(d.logPath, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.CommandContext(context.Background(), d.path, "--config", d.config)
	cmd.Env, cmd.Stdout, cmd.Stderr = d.env, log, log
	// A session of its own: Ctrl-C in a terminal is for the program in front.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Its exit status says nothing that its log does not say better.
		_ = cmd.Wait()
	}()
	d.cmd, d.done = cmd, done
	return nil
}

// stopTimeout is how long containerd may take to end before it is killed.
const stopTimeout = 20 * time.Second

func (d *daemon) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if err := d.cmd.Process.Signal(unix.SIGTERM); errors.Is(err, os.ErrProcessDone) {
		return nil
	} else if err != nil {
		return err
	}
	select {
	case <-d.done:
		return nil
	case <-ctx.Done():
		d.cmd.Process.Kill()
		<-d.done
		return fmt.Errorf("containerd had to be killed: %w", context.Cause(ctx))
	}
}
