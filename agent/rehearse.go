//go:build linux

package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/process"
	"github.com/containerd/errdefs"
	"github.com/containerd/go-runc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// rehearsal is the Rehearsal service.
type rehearsal struct{ running sync.Mutex }

const (
	// rehearsalID cannot be a container's: theirs are in the host's namespaces.
	rehearsalID  = "rehearsal"
	rehearsalDir = "/run/rehearsal"
)

// Rehearse implements agentv1.RehearsalService. It goes past the task service,
// which would tell of it.
func (r *rehearsal) Rehearse(ctx context.Context, _ *emptypb.Empty) (_ *emptypb.Empty, err error) {
	if !r.running.TryLock() {
		return nil, fmt.Errorf("a rehearsal is under way: %w", errdefs.ErrFailedPrecondition)
	}
	defer r.running.Unlock()
	defer func() {
		if uerr := os.RemoveAll(rehearsalDir); err == nil {
			err = uerr
		}
	}()
	rootfs := filepath.Join(rehearsalDir, "rootfs")
	if err := os.MkdirAll(rootfs, 0o711); err != nil {
		return nil, err
	}
	// The guest's own root, without what is mounted in it: it has the libraries of a
	// program that ends by itself, the runtime.
	if err := unix.Mount("/", rootfs, "", unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		return nil, &os.PathError{Op: "bind", Path: rootfs, Err: err}
	}
	defer func() {
		if uerr := unix.Unmount(rootfs, unix.MNT_DETACH); err == nil && uerr != nil {
			err = &os.PathError{Op: "unmount", Path: rootfs, Err: uerr}
		}
	}()
	config, err := json.Marshal(rehearsalSpec(rootfs))
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(rehearsalDir, "config.json"), config, 0o600); err != nil {
		return nil, err
	}
	none, err := runc.NewNullIO()
	if err != nil {
		return nil, err
	}
	defer none.Close()
	rt := process.NewRunc(ociRoot, rehearsalDir, rehearsalID, ociRuntime, false)
	status, err := rt.Run(ctx, rehearsalID, rehearsalDir, &runc.CreateOpts{IO: none})
	if err != nil || status != 0 {
		// Mostly there is nothing left of it.
		removeContainer(ctx, rehearsalID, rehearsalID)
		return nil, errors.Join(fmt.Errorf("rehearsal exited with %d", status), err)
	}
	return &emptypb.Empty{}, nil
}

// rehearsalSpec is a container like most, without a network of its own.
func rehearsalSpec(rootfs string) *specs.Spec {
	capabilities := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SETGID", "CAP_SETUID"}
	return &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: rootfs, Readonly: true},
		Process: &specs.Process{
			Args: []string{ociRuntime, "--version"}, Cwd: "/", NoNewPrivileges: true,
			Env: []string{"PATH=/bin"},
			Capabilities: &specs.LinuxCapabilities{
				Bounding: capabilities, Effective: capabilities, Permitted: capabilities,
			},
		},
		Hostname: rehearsalID,
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/run", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: runtimeDir, Type: "bind", Source: runtimeDir, Options: []string{"bind", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: "/" + rehearsalID,
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: agentproto.SandboxNetNS},
			},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys"},
			ReadonlyPaths: []string{"/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}
