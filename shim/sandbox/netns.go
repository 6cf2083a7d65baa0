package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/pod"
)

// pin is the host's network namespace of a declared sandbox, held open for as
// long as the machine may want it.
type pin struct {
	file *os.File // nil for none
	// namespace is false for a file that is something else.
	namespace bool
}

// pinNetNS opens what a sandbox was given for a network namespace. There must be
// a file; one that is no namespace is kept all the same, and gives no network:
// the Sandbox API only says that it is a path, and clients use it for networks
// that are not the kernel's.
func pinNetNS(ctx context.Context, p pod.Config) (pin, error) {
	if p.NetNS == "" {
		return pin{}, nil
	}
	f, err := os.Open(p.NetNS)
	if errors.Is(err, fs.ErrNotExist) {
		return pin{}, fmt.Errorf("network namespace %s: %w", p.NetNS, errdefs.ErrNotFound)
	}
	if err != nil {
		return pin{}, fmt.Errorf("network namespace: %w", err)
	}
	held := pin{file: f, namespace: isNetNS(f)}
	if !held.namespace {
		log.G(ctx).WithField("sandbox", p.ID).Warnf("%s is not a network namespace: the sandbox has no network but a loopback", p.NetNS)
	}
	return held, nil
}

func (p pin) release() {
	if p.file != nil {
		p.file.Close()
	}
}
