package link

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// OpenTap opens a tap that exists, in the network namespace whose path is
// given, or in the caller's own where that is empty. Frames on it carry a struct
// virtio_net_hdr (IFF_VNET_HDR). The caller closes the file.
//
// The error is errdefs.ErrNotFound where there is no such namespace or
// interface, and errdefs.ErrFailedPrecondition where the interface is not a tap
// or somebody else has it open.
func OpenTap(namespace, name string) (tap *os.File, err error) {
	open := func() error {
		// TUNSETIFF would make an interface that is not there.
		if _, err := net.InterfaceByName(name); err != nil {
			return fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
		}
		tap, err = openTap(name)
		return err
	}
	if namespace == "" {
		err = open()
	} else {
		err = doAt(namespace, open)
	}
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	return tap, nil
}

// doAt is netns.Do in the namespace at path.
func doAt(path string, f func() error) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Do(ns, f)
}
