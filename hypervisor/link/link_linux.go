package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/errdefs"
	"github.com/mdlayher/socket"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// device is the tap's name. Every link has a network namespace to itself, so
// that it need not be unique.
const device = "link"

// Link is one machine's tap, in a network namespace that holds nothing else.
// Both exist only as open files: they vanish with the last process that has
// them open, and need no receipt. Methods are safe for concurrent use.
type Link struct {
	namespace *os.File
	tap       *os.File
	index     int
}

// Open makes a link, ready to be handed to a virtual machine monitor. The
// caller closes it. book is for systems where a tap outlives its users, which
// Linux is not.
//
// errdefs.ErrUnavailable is in the error where the host lacks a part: the tun
// driver, network namespaces, IPv6 or nftables. There is no unprotected link.
func Open(_ context.Context, _ *receipt.Book) (*Link, error) {
	l := &Link{}
	var err error
	l.namespace, err = netns.NewWith(func() (err error) {
		if l.tap, err = openTap(device); err != nil {
			return err
		}
		// The filter first, so that no packet comes before it.
		if err := filterIngress(); err != nil {
			return fmt.Errorf("nftables (is nf_tables in this kernel?): %w", err)
		}
		l.index, err = configure(device, agentproto.HostLinkMAC, agentproto.HostLinkAddr, agentproto.GuestLinkMAC, agentproto.GuestLinkAddr)
		return err
	})
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("make link: %w", unavailable(err))
	}
	return l, nil
}

// unavailable adds the kind to errors that say that the kernel cannot do it.
func unavailable(err error) error {
	for _, e := range []error{os.ErrNotExist, unix.ENODEV, unix.ENXIO, unix.EOPNOTSUPP, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT} {
		if errors.Is(err, e) {
			return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
		}
	}
	return err
}

// Tap is the tap's file, for the monitor to inherit. Frames on it carry a
// struct virtio_net_hdr (IFF_VNET_HDR). Close it once the monitor has its copy:
// from then on the tap ends with the monitor.
func (l *Link) Tap() *os.File { return l.tap }

// Close lets go of the link. Connections stay open until they are closed
// themselves. Closing twice is legal.
func (l *Link) Close() error {
	var errs []error
	for _, f := range []*os.File{l.tap, l.namespace} {
		if f == nil {
			continue
		}
		if err := f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Dial opens a TCP connection to a port of the guest, in one attempt that is
// bounded by ctx. The result is a *net.TCPConn.
func (l *Link) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	if port == 0 || port > 65535 {
		return nil, fmt.Errorf("dial link port %d: %w", port, errdefs.ErrInvalidArgument)
	}
	conn, err := l.dial(ctx, int(port))
	if err != nil {
		return nil, fmt.Errorf("dial link port %d: %w", port, err)
	}
	return conn, nil
}

func (l *Link) dial(ctx context.Context, port int) (net.Conn, error) {
	// A socket belongs for life to the namespace that it was made in. SyscallConn
	// rather than Fd keeps the namespace's file open meanwhile.
	raw, err := l.namespace.SyscallConn()
	if err != nil {
		return nil, err
	}
	var s *socket.Conn
	var serr error
	err = raw.Control(func(fd uintptr) {
		s, serr = socket.Socket(unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP, "link", &socket.Config{NetNS: int(fd)})
	})
	if err != nil {
		return nil, fmt.Errorf("link: %w", os.ErrClosed)
	}
	if serr != nil {
		return nil, serr
	}
	defer s.Close()
	guest := &unix.SockaddrInet6{Port: port, ZoneId: uint32(l.index), Addr: agentproto.GuestLinkAddr.As16()}
	if _, err := s.Connect(ctx, guest); err != nil {
		return nil, err
	}
	return tcpConn(s)
}

// tcpConn makes a connected socket into one of package net's.
func tcpConn(s *socket.Conn) (net.Conn, error) {
	raw, err := s.SyscallConn()
	if err != nil {
		return nil, err
	}
	var f *os.File
	var dupErr error
	err = raw.Control(func(fd uintptr) {
		var dup int
		if dup, dupErr = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); dupErr == nil {
			f = os.NewFile(uintptr(dup), "link")
		}
	})
	if err := errors.Join(err, dupErr); err != nil {
		return nil, err
	}
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	// A paused machine answers nothing for as long as it is paused. That is not
	// the end of the connection; the end of the machine's process is.
	if err := conn.(*net.TCPConn).SetKeepAlive(false); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// openTap makes a tap in the thread's network namespace (Documentation/
// networking/tuntap.rst). Without TUNSETPERSIST it lives as long as the file.
func openTap(name string) (*os.File, error) {
	const path = "/dev/net/tun"
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	req, err := unix.NewIfreq(name)
	if err == nil {
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = os.NewSyscallError("TUNSETIFF", unix.IoctlIfreq(fd, unix.TUNSETIFF, req))
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	// Only now: the runtime's poller never hears of a file that it was shown
	// before it was a device.
	return os.NewFile(uintptr(fd), path), nil
}

// configure gives a device in the thread's network namespace its one address
// and its one neighbour, and brings it up.
func configure(name string, mac net.HardwareAddr, addr netip.Addr, peerMAC net.HardwareAddr, peer netip.Addr) (index int, err error) {
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	// Router advertisements would let the guest put routes into the host's
	// kernel without bound.
	for _, knob := range []string{"accept_ra", "accept_redirects"} {
		if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/"+knob, []byte("0"), 0); err != nil {
			return 0, fmt.Errorf("IPv6 on the link: %w", err)
		}
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"MAC", func() error { return netlink.LinkSetHardwareAddr(dev, mac) }},
		// nl.IN6_ADDR_GEN_MODE_NONE: no second address made from the MAC.
		{"address generation", func() error { return netlink.LinkSetIP6AddrGenMode(dev, 1) }},
		{"ARP", func() error { return netlink.LinkSetARPOff(dev) }},
		{"address", func() error {
			// Nobody else is there to have the same address: without duplicate
			// address detection it can be used a second sooner.
			return netlink.AddrAdd(dev, &netlink.Addr{IPNet: &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(64, 128)}, Flags: unix.IFA_F_NODAD})
		}},
		{"up", func() error { return netlink.LinkSetUp(dev) }},
		{"neighbour", func() error {
			return netlink.NeighSet(&netlink.Neigh{
				LinkIndex: dev.Attrs().Index, Family: unix.AF_INET6, State: unix.NUD_PERMANENT,
				IP: peer.AsSlice(), HardwareAddr: peerMAC,
			})
		}},
	} {
		if err := step.do(); err != nil {
			return 0, fmt.Errorf("set %s of the link: %w", step.name, err)
		}
	}
	return dev.Attrs().Index, nil
}
