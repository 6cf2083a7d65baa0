package link

import (
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// OpenTap opens a tap that exists, in the network namespace whose path is
// netns, or in the caller's own where that is empty. Frames on it carry a struct
// virtio_net_hdr (IFF_VNET_HDR). The caller closes the file.
//
// The error is errdefs.ErrNotFound where there is no such namespace or
// interface, and errdefs.ErrFailedPrecondition where the interface is not a tap
// or somebody else has it open.
func OpenTap(netns, name string) (tap *os.File, err error) {
	open := func() error {
		// TUNSETIFF would make an interface that is not there.
		if _, err := net.InterfaceByName(name); err != nil {
			return fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
		}
		tap, err = openTap(name)
		return err
	}
	if netns == "" {
		err = open()
	} else {
		err = inNamespaceAt(netns, open)
	}
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open tap %s: %w", name, err)
	}
	return tap, nil
}

func inNamespaceAt(path string, f func() error) error {
	ns, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	defer ns.Close()
	return inNamespace(ns, f)
}
