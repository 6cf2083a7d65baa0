package check

import (
	"context"
	"errors"
	"os"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/link"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/qemu"
)

func system() []item {
	return []item{
		{name: "root", look: root},
		{name: "QEMU", look: monitor},
		{name: "hardware virtualization", optional: true, look: accelerated},
		{name: "link", look: tap},
		{name: "checkpoints", optional: true, look: checkpoints},
	}
}

func root(context.Context) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("run this as root, which containerd runs as")
	}
	return "yes", nil
}

func monitor(ctx context.Context) (string, error) {
	if _, err := qemu.New().Capabilities(ctx); err != nil {
		return "", err
	}
	return "installed", nil
}

func accelerated(ctx context.Context) (string, error) {
	caps, err := qemu.New().Capabilities(ctx)
	if err != nil {
		return "", errors.New("unknown without QEMU")
	}
	if !caps.Accelerated {
		return "", errors.New("guests run in software, many times slower: enable VT-x or AMD-V in the firmware, or nested virtualization in the hypervisor that this host runs on, and load kvm_intel or kvm_amd")
	}
	return "KVM", nil
}

func checkpoints(ctx context.Context) (string, error) {
	caps, err := qemu.New().Capabilities(ctx)
	if err != nil {
		return "", errors.New("unknown without QEMU")
	}
	if !caps.Checkpoint {
		return "", errors.New("machines cannot be saved")
	}
	return "machines can be saved, and containers where machine.checkpoint says so", nil
}

// tap makes a link as a machine would, and takes it away again.
func tap(ctx context.Context) (string, error) {
	caps, err := qemu.New().Capabilities(ctx)
	if err == nil && caps.Vsock {
		return "vsock", nil
	}
	l, err := link.Open(ctx, nil)
	if err != nil {
		return "", err
	}
	return "tap", l.Close()
}
