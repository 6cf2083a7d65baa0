package check

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/bhyve"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/link"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi"
)

func system() []item {
	return []item{
		{name: "root", look: root},
		{name: "vmm(4)", look: vmm},
		{name: "bhyve(8)", look: programs},
		{name: "pf(4)", look: fence},
		{name: "tap(4)", look: tap},
		{name: "dummynet(4)", optional: true, look: dummynet},
		{name: "nullfs(5)", look: nullfs},
		{name: "ZFS snapshots", optional: true, look: zfs},
		{name: "checkpoints in the kernel", optional: true, look: kernelCheckpoint},
		{name: "checkpoints in bhyve(8)", optional: true, look: userCheckpoint},
		{name: "virtual machines without an owner", optional: true, look: orphans},
	}
}

func root(context.Context) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("run this as root, which containerd runs as")
	}
	return "yes", nil
}

// vmm makes a virtual machine: hardware, module, /dev and a jail's permissions
// show only then. Its errors say what to do.
func vmm(context.Context) (string, error) {
	host := vmmapi.ThisHost()
	if err := host.Check(); err != nil {
		return "", err
	}
	n, err := host.MaxVCPUs()
	return fmt.Sprintf("loaded, at most %d vCPUs a machine", n), err
}

func programs(context.Context) (string, error) {
	for _, path := range []string{"/usr/sbin/bhyve", "/usr/sbin/iasl", "/sbin/ifconfig", "/usr/sbin/ndp"} {
		if _, err := os.Stat(path); err != nil {
			return "", fmt.Errorf("%w: it is part of the base system, install that in full", err)
		}
	}
	return "installed, and what it needs", nil
}

func fence(ctx context.Context) (string, error) {
	return "keeps guests from the host", link.CheckFence(ctx)
}

// tap makes a link as a machine would, and takes it away again.
func tap(ctx context.Context) (found string, err error) {
	dir, err := os.MkdirTemp("", "bhyve-check-")
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	book, err := receipt.Open(filepath.Join(dir, "receipts"))
	if err != nil {
		return "", err
	}
	l, err := link.Open(ctx, book)
	if err != nil {
		return "", err
	}
	return "made " + l.Tap() + " and removed it", l.Close()
}

// loaded says whether the kernel has a module, built in or not.
func loaded(ctx context.Context, module string) bool {
	return exec.CommandContext(ctx, "/sbin/kldstat", "-q", "-m", module).Run() == nil
}

// dummynet is of use to who limits a bandwidth (package network).
func dummynet(ctx context.Context) (string, error) {
	if !loaded(ctx, "dummynet") {
		return "", errors.New(`a bandwidth in a network's policy is refused; for one, "kldload dummynet", and dummynet_load="YES" in /boot/loader.conf`)
	}
	if _, err := os.Stat("/sbin/dnctl"); err != nil {
		return "", fmt.Errorf("%w: it is part of the base system's package ipfw, and a bandwidth is refused without it", err)
	}
	return "loaded", nil
}

func nullfs(ctx context.Context) (string, error) {
	if !loaded(ctx, "nullfs") {
		return "", errors.New(`containerd's native snapshotter mounts with it: "kldload nullfs", and nullfs_load="YES" in /boot/loader.conf`)
	}
	return "loaded", nil
}

func zfs(ctx context.Context) (string, error) {
	if !loaded(ctx, "zfs") {
		return "", errors.New(`the native snapshotter copies every layer; for the zfs one, zfs_load="YES" in /boot/loader.conf, zfs_enable="YES" in /etc/rc.conf, and a dataset mounted at containerd's io.containerd.snapshotter.v1.zfs directory`)
	}
	return "loaded", nil
}

func kernelCheckpoint(context.Context) (string, error) {
	supported, err := vmmapi.ThisHost().SupportsCheckpoint()
	if err != nil {
		return "", errors.New("unknown without vmm")
	}
	if !supported {
		return "", errors.New("build the kernel with options BHYVE_SNAPSHOT; without it no machine can be saved")
	}
	return "supported", nil
}

func userCheckpoint(ctx context.Context) (string, error) {
	usage, _ := exec.CommandContext(ctx, "/usr/sbin/bhyve", "-h").CombinedOutput()
	if !strings.Contains(string(usage), "-r:") {
		return "", errors.New("build world with WITH_BHYVE_SNAPSHOT=yes; without it no machine can be saved")
	}
	return "supported", nil
}

func orphans(context.Context) (string, error) {
	left, err := bhyve.Orphans()
	if err != nil {
		return "", err
	}
	if len(left) > 0 {
		return "", fmt.Errorf("%s: the next machine that starts destroys them, or bhyvectl --destroy --vm=NAME", strings.Join(left, ", "))
	}
	return "none", nil
}
