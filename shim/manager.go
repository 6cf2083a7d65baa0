// Package shim is the containerd shim itself: how its process is started,
// cleaned up after and described, and how its parts are put together. The Task
// service is in shim/task, what it does in shim/sandbox.
package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sandbox"
)

// RuntimeName is the runtime's name in containerd.
const RuntimeName = "io.containerd.bhyve.v2"

// Version is the shim's, set when it is built.
var Version = "devel"

// addressFile holds the socket's address in the bundle, for `delete`.
const addressFile = "address"

// Manager implements containerd's shim.Shim.
type Manager struct{}

var _ shim.Shim = Manager{}

// Name implements shim.Shim.
func (Manager) Name() string { return RuntimeName }

// Start starts the shim's process for the bundle in the working directory, or
// finds the one that already serves the bundle's sandbox, and returns its
// address.
func (Manager) Start(ctx context.Context, params *bootapi.BootstrapParams) (_ *bootapi.BootstrapResult, err error) {
	result := &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc"}
	group, err := sandboxOf(params.GetInstanceID())
	if err != nil {
		return nil, err
	}
	dir := params.GetSocketDir()
	if dir == "" {
		dir = filepath.Join(defaults.DefaultStateDir, "s")
	}
	result.Address, err = shim.CreateSocketAddress(ctx, dir, params.GetContainerdGrpcAddress(), group, false)
	if err != nil {
		return nil, err
	}
	if err := checkSocketPath(strings.TrimPrefix(result.Address, "unix://")); err != nil {
		return nil, err
	}
	listener, err := shim.NewSocket(result.Address)
	if err != nil {
		if !shim.SocketEaddrinuse(err) {
			return nil, fmt.Errorf("shim socket: %w", err)
		}
		if shim.CanConnect(result.Address) {
			return result, nil
		}
		// Left by a shim that was killed.
		if err := shim.RemoveSocket(result.Address); err != nil {
			return nil, fmt.Errorf("remove stale shim socket: %w", err)
		}
		if listener, err = shim.NewSocket(result.Address); err != nil {
			return nil, fmt.Errorf("shim socket: %w", err)
		}
	}
	// The socket's file belongs to the process that will serve it.
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	defer func() {
		if err != nil {
			shim.RemoveSocket(result.Address)
		}
	}()
	if err := os.WriteFile(addressFile, []byte(result.Address), 0o600); err != nil {
		return nil, err
	}
	// containerd sends runtime options along, and nothing else.
	if ext := params.GetExtensions(); len(ext) > 0 && ext[0].GetValue() != nil {
		if err := config.SaveOptions(".", ext[0].Value); err != nil {
			return nil, err
		}
	}
	socket, err := listener.File()
	if err != nil {
		return nil, err
	}
	defer socket.Close()
	return result, spawn(ctx, params, socket)
}

// maxSocketPath is what the system's struct sockaddr_un holds (unix(4)), less a
// NUL: 103 bytes on FreeBSD, where pkg/shim would try more.
const maxSocketPath = len(unix.RawSockaddrUnix{}.Path) - 1

// checkSocketPath says what the system would only call an invalid argument.
func checkSocketPath(path string) error {
	if len(path) > maxSocketPath {
		return fmt.Errorf("shim socket %s has a path of %d bytes, want at most %d: give containerd a shorter state directory: %w",
			path, len(path), maxSocketPath, errdefs.ErrInvalidArgument)
	}
	return nil
}

// sandboxOf is the id that containers of one sandbox share.
func sandboxOf(id string) (string, error) {
	spec, err := bundle.Load(".")
	switch {
	case errdefs.IsNotFound(err), errdefs.IsInvalidArgument(err):
		// The bundle of a sandbox of the Sandbox API may have no spec. A malformed
		// one is for Create to refuse, where the answer is typed.
		return id, nil
	case err != nil:
		return "", err
	}
	if group := bundle.SandboxID(spec); group != "" {
		return group, nil
	}
	return id, nil
}

// spawn starts this program again as the sandbox's shim, serving socket.
func spawn(ctx context.Context, params *bootapi.BootstrapParams, socket *os.File) error {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"-namespace", ns, "-id", params.GetInstanceID(), "-address", params.GetContainerdGrpcAddress()}
	if params.GetLogLevel() <= bootapi.LogLevel_LOG_LEVEL_DEBUG {
		args = append(args, "-debug")
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=4")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.ExtraFiles = []*os.File{socket} // fd 3, where pkg/shim looks for it
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start shim: %w", err)
	}
	if err := shim.AdjustOOMScore(cmd.Process.Pid); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return err
	}
	return cmd.Process.Release()
}

// Stop cleans up after a shim that is gone: it gives back whatever the bundle's
// receipts name. containerd calls it with the bundle in -bundle, and where the
// host's system lets it, as the working directory.
func (Manager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	dir, err := bundleDir(ctx, id)
	if err != nil {
		return shim.StopStatus{}, err
	}
	if err := sandbox.CleanUp(ctx, id, dir); err != nil {
		return shim.StopStatus{}, err
	}
	if address, err := shim.ReadAddress(filepath.Join(dir, addressFile)); err == nil && !shim.CanConnect(address) {
		if err := shim.RemoveSocket(address); err != nil && !errors.Is(err, os.ErrNotExist) {
			log.G(ctx).WithError(err).Warn("shim socket was not removed")
		}
	}
	exit, err := sandbox.ReadExit(dir)
	if err != nil {
		// It ended with its shim, by the hand that killed it.
		exit = sandbox.Exit{Status: 128 + uint32(syscall.SIGKILL), At: time.Now()}
	}
	return shim.StopStatus{ExitStatus: int(exit.Status), ExitedAt: exit.At}, nil
}

func bundleDir(ctx context.Context, id string) (string, error) {
	if opts, ok := ctx.Value(shim.OptsKey{}).(shim.Opts); ok && opts.BundlePath != "" {
		return opts.BundlePath, nil
	}
	cwd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	// The shim of a pod is started in the bundle of one of its containers.
	return filepath.Join(filepath.Dir(cwd), id), nil
}

// Info implements shim.Shim.
func (m Manager) Info(context.Context, io.Reader) (*types.RuntimeInfo, error) {
	features, err := typeurl.MarshalAnyToProto(guestFeatures())
	if err != nil {
		return nil, err
	}
	return &types.RuntimeInfo{
		Name:     m.Name(),
		Version:  &types.RuntimeVersion{Version: Version},
		Features: features,
	}, nil
}

// guestFeatures says what a spec may ask for, as far as clients look at it: CRI
// offers recursive read-only mounts to its clients only if a runtime knows them.
func guestFeatures() *features.Features {
	return &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		MountOptions:  []string{"bind", "rbind", "private", "rprivate", "slave", "rslave", "ro", "rro", "rw"},
		Linux: &features.Linux{
			Namespaces: []string{"cgroup", "ipc", "mount", "network", "pid", "uts"},
		},
	}
}
