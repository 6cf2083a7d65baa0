package netns

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// Move takes an interface, which is down, from the namespace at path from to
// another, or to the same, under a name that is free in both. A tap stays its
// process's: what that sends comes out there. errdefs.ErrNotFound if there is no
// such namespace or interface.
func Move(from, name string, to *os.File, newName string) error {
	ns, err := Open(from)
	if err != nil {
		return err
	}
	defer ns.Close()
	err = Do(ns, func() error {
		device, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
		}
		if err != nil {
			return err
		}
		if err := netlink.LinkSetName(device, newName); err != nil {
			return fmt.Errorf("call it %s: %w", newName, err)
		}
		return netlink.LinkSetNsFd(device, int(to.Fd()))
	})
	if err != nil {
		return fmt.Errorf("move interface %s from network namespace %s: %w", name, from, err)
	}
	return nil
}
