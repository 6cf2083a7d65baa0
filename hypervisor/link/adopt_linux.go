package link

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// Adopt returns the link whose tap is given, which a monitor has got from a
// former owner. The caller closes the link, and keeps tap: the link needs it no
// more. Linux tells the network namespace of a tap's file since 5.0.
func Adopt(tap *os.File) (*Link, error) {
	l := &Link{}
	err := l.adopt(tap)
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("adopt link: %w", err)
	}
	return l, nil
}

func (l *Link) adopt(tap *os.File) error {
	raw, err := tap.SyscallConn()
	if err != nil {
		return err
	}
	var ns int
	var nsErr error
	if err := raw.Control(func(fd uintptr) { ns, nsErr = unix.IoctlRetInt(int(fd), unix.TUNGETDEVNETNS) }); err != nil {
		return err
	}
	if nsErr != nil {
		return os.NewSyscallError("TUNGETDEVNETNS", nsErr)
	}
	l.namespace = os.NewFile(uintptr(ns), "network namespace of the link")
	return netns.Do(l.namespace, func() error {
		dev, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		l.index = dev.Index
		return nil
	})
}
