package join

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// newMark is a name for an interface that no other has.
func newMark() string {
	suffix := make([]byte, 4)
	rand.Read(suffix)
	return fmt.Sprintf("bhyve-%x", suffix)
}

// AddTap makes the tap, and returns its hardware address, which is not the one
// that the guest will have. errdefs.ErrAlreadyExists if there is one: another
// machine has the namespace.
func (n *Namespace) AddTap() (mac net.HardwareAddr, err error) {
	err = netns.Do(n.file, func() error {
		mac, err = addTap(n.mark)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("tap in network namespace %s: %w", n.path, err)
	}
	// What QEMU is given has to differ from the tap's own.
	return append(net.HardwareAddr{mac[0] ^ 0x04}, mac[1:]...), nil
}

// addTap makes the tap in the thread's namespace. It gets the name last, which no
// two can have: one that is called Tap bears the mark of its machine at any time.
func addTap(mark string) (net.HardwareAddr, error) {
	err := netlink.LinkAdd(&netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: mark},
		Mode:      netlink.TUNTAP_MODE_TAP,
		Flags:     unix.IFF_NO_PI | unix.IFF_VNET_HDR,
	})
	if err != nil {
		return nil, err
	}
	tap, err := netlink.LinkByName(mark)
	if err != nil {
		return nil, err
	}
	err = netlink.LinkSetAlias(tap, mark)
	if err == nil {
		err = netlink.LinkSetName(tap, Tap)
	}
	if errors.Is(err, unix.EEXIST) {
		err = errAnother
	}
	if err != nil {
		return nil, errors.Join(err, netlink.LinkDel(tap))
	}
	return tap.Attrs().HardwareAddr, nil
}

var errAnother = fmt.Errorf("another machine is in the namespace: %w", errdefs.ErrAlreadyExists)

// Plug is AddTap with the tap of a machine that is there already: it is called
// tap in the network namespace at path from, which may be this one, and is down.
func (n *Namespace) Plug(from, tap string) error {
	err := netns.Do(n.file, func() error {
		if _, err := netlink.LinkByName(Tap); err == nil {
			return errAnother
		}
		return nil
	})
	if err == nil {
		err = setMark(from, tap, n.mark)
	}
	if err == nil {
		err = netns.Move(from, tap, n.file, Tap)
	}
	if err != nil {
		return fmt.Errorf("tap in network namespace %s: %w", n.path, err)
	}
	return nil
}

// setMark marks the interface of that name in the namespace at path.
// errdefs.ErrNotFound if there is none.
func setMark(path, name, mark string) error {
	ns, err := netns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return netns.Do(ns, func() error {
		link, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
		}
		if err != nil {
			return err
		}
		return netlink.LinkSetAlias(link, mark)
	})
}
