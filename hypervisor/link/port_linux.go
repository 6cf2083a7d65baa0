package link

import (
	"fmt"
	"os"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// PortName is what OpenPort's taps are called. The guest's own name for its
// interface is another matter.
const PortName = "port"

// OpenPort makes a tap in a network namespace that holds nothing else, for a
// monitor to inherit. It is down, and lives as long as its file, also when it has
// been moved to another namespace. Frames on it carry a struct virtio_net_hdr
// (IFF_VNET_HDR). The caller closes both files.
func OpenPort() (tap, namespace *os.File, err error) {
	namespace, err = netns.NewWith(func() (err error) {
		tap, err = openTap(PortName)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("make port: %w", unavailable(err))
	}
	return tap, namespace, nil
}
