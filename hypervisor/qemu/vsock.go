//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"unsafe"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/link"
	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"
)

// channel is the link as a machine needs it: package link's tap, or vsock.
type channel interface {
	Dial(ctx context.Context, port uint32) (net.Conn, error)
	Close() error
}

const vhostVsockPath = "/dev/vhost-vsock"

// vhostVsockSetGuestCID is VHOST_VSOCK_SET_GUEST_CID, _IOW(0xAF, 0x60, __u64)
// in linux/vhost.h.
const vhostVsockSetGuestCID = 0x4008af60

// haveVsock says whether this host has vhost-vsock.
func haveVsock() bool {
	_, err := os.Stat(vhostVsockPath)
	return err == nil
}

// vsockLink is a vhost device with an address of its own. The address is taken
// for as long as the device is open anywhere, so it needs no receipt.
type vsockLink struct {
	// device is nil if only the machine has it open.
	device *os.File
	cid    uint32
}

// openVsock takes a random free address. The kernel says whether it is free:
// there is no list to keep, nor to get out of step.
func openVsock() (*vsockLink, error) {
	device, err := os.OpenFile(vhostVsockPath, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	// 0 to 2 and the last one have meanings (vsock(7)); small ones are what
	// people choose by hand.
	const first, attempts = 1 << 16, 64
	for range attempts {
		cid := first + rand.Uint32N(unix.VMADDR_CID_ANY-first)
		arg := uint64(cid)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), vhostVsockSetGuestCID, uintptr(unsafe.Pointer(&arg)))
		switch errno {
		case 0:
			return &vsockLink{device: device, cid: cid}, nil
		case unix.EADDRINUSE:
			continue
		}
		err = os.NewSyscallError("VHOST_VSOCK_SET_GUEST_CID", errno)
		break
	}
	device.Close()
	if err == nil {
		err = fmt.Errorf("no free address in %d attempts", attempts)
	}
	return nil, fmt.Errorf("vsock: %w", err)
}

func (v *vsockLink) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return vsock.DialContext(ctx, v.cid, port, nil)
}

func (v *vsockLink) Close() error {
	if v.device == nil {
		return nil
	}
	if err := v.device.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

var (
	_ channel = (*vsockLink)(nil)
	_ channel = (*link.Link)(nil)
)
