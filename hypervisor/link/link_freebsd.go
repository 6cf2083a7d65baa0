package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
)

// Link is one machine's tap, on no bridge and without a route, in a group of
// interfaces that pf(4) fences. Methods are safe for concurrent use.
type Link struct {
	heldTap
	closed atomic.Bool
}

// Open makes a link. The caller closes it, after the monitor: a tap cannot be
// destroyed while it is open. A receipt for the tap is written to book.
//
// errdefs.ErrFailedPrecondition is in the error where pf(4) does not fence the
// group: there is no unprotected link.
func Open(ctx context.Context, book *receipt.Book) (*Link, error) {
	if err := CheckFence(ctx); err != nil {
		return nil, fmt.Errorf("make link: %w", err)
	}
	l := &Link{}
	err := l.open(ctx, book)
	if err != nil {
		if l.line != nil {
			err = errors.Join(err, l.Close())
		}
		return nil, fmt.Errorf("make link: %w", err)
	}
	return l, nil
}

func (l *Link) open(ctx context.Context, book *receipt.Book) (err error) {
	if l.tap, l.line, err = createTap(book, newMark()); err != nil {
		return err
	}
	name := l.tap.Name
	guest := agentproto.GuestLinkAddr.WithZone(name).String()
	for _, argv := range [][]string{
		// The group first, so that no packet comes before the fence.
		{"/sbin/ifconfig", name, "group", Group},
		{"/sbin/ifconfig", name, "ether", agentproto.HostLinkMAC.String()},
		// Nobody else is there to have the same address: without duplicate
		// address detection it can be used at once. Router advertisements would
		// let the guest put routes into the host's kernel.
		{"/sbin/ifconfig", name, "inet6", "-ifdisabled", "-auto_linklocal", "-accept_rtadv", "no_dad", "up"},
		{"/sbin/ifconfig", name, "inet6", agentproto.HostLinkAddr.String() + "%" + name, "prefixlen", "64"},
		{"/usr/sbin/ndp", "-s", guest, agentproto.GuestLinkMAC.String()},
	} {
		if _, err := run(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

// Adopt takes over the link that a former owner has made with this tap, whether
// or not it still exists, with a receipt in book. The caller closes it.
func Adopt(tap, mark string, book *receipt.Book) (*Link, error) {
	t, err := adoptTap(tap, mark, book)
	if err != nil {
		return nil, fmt.Errorf("adopt link: %w", err)
	}
	return &Link{heldTap: t}, nil
}

// Disown lets go of a link that has another owner by now. It strikes out the
// receipt, and leaves the tap alone.
func (l *Link) Disown() error {
	l.closed.Store(true)
	return l.heldTap.Disown()
}

// Close destroys the tap, and with it what is left of its connections. Closing
// twice is legal.
func (l *Link) Close() error {
	l.closed.Store(true)
	return l.heldTap.Close()
}

// Dial opens a TCP connection to a port of the guest, in one attempt that is
// bounded by ctx. The result is a *net.TCPConn.
func (l *Link) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if port == 0 || port > 65535 {
		return nil, fmt.Errorf("dial link port %d: %w", port, errdefs.ErrInvalidArgument)
	}
	if l.closed.Load() {
		return nil, fmt.Errorf("dial link port %d: %w", port, os.ErrClosed)
	}
	// A paused machine answers nothing for as long as it is paused. That is not
	// the end of the connection; the end of the machine's process is.
	d := net.Dialer{KeepAlive: -1}
	guest := netip.AddrPortFrom(agentproto.GuestLinkAddr.WithZone(l.tap.Name), uint16(port))
	conn, err := d.DialContext(ctx, "tcp6", guest.String())
	if err != nil {
		return nil, fmt.Errorf("dial link port %d: %w", port, err)
	}
	return conn, nil
}
