//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// patience is how long an attempt to reach the host may take. The host is one
// hop away; an answer that is let through comes within milliseconds.
const patience = 2 * time.Second

// checkLink tries to reach the host over the link's interface, which is in
// process 1's network namespace. Port is one that the host listens on, with
// TCP and UDP. It wants a container with the machine's PID namespace and all
// capabilities: the most that a tenant can have.
func checkLink(port string) error {
	number, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	iface, err := joinLink()
	if err != nil {
		return err
	}
	host := agentproto.HostLinkAddr.WithZone(iface.Name)
	addr := net.JoinHostPort(host.String(), port)
	return runAll([]check{
		{"no other interface leads anywhere", func() error { return onlyInterface(iface.Name) }},
		{"tcp to a listener", func() error { return noTCP(addr) }},
		{"tcp to port 22", func() error { return noTCP(net.JoinHostPort(host.String(), "22")) }},
		{"udp to a listener", func() error { return noDatagram("udp6", addr) }},
		{"udp to all nodes", func() error {
			return noDatagram("udp6", net.JoinHostPort("ff02::1%"+iface.Name, port))
		}},
		{"icmpv6 echo", func() error { return noEcho(iface, agentproto.HostLinkAddr.As16()) }},
		{"icmpv6 echo to all nodes", func() error {
			return noEcho(iface, [16]byte{0: 0xff, 1: 0x02, 15: 1})
		}},
		{"arp for an IPv4 address of the host", func() error { return noARP(iface) }},
		{"vsock to the host", func() error { return noVsock(uint32(number)) }},
	})
}

// joinLink puts the thread into the network namespace of the link's interface:
// that of one of process 1's threads, which need not all be in the same.
func joinLink() (*net.Interface, error) {
	namespaces, err := filepath.Glob("/proc/1/task/*/ns/net")
	if err != nil {
		return nil, err
	}
	err = errors.New("process 1 has no threads: not the machine's PID namespace")
	for _, path := range namespaces {
		var iface *net.Interface
		if iface, err = joinNamespace(path); err == nil {
			return iface, nil
		}
	}
	return nil, err
}

func joinNamespace(path string) (*net.Interface, error) {
	ns, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("join %s: %w", path, err)
	}
	return linkInterface()
}

// linkInterface is the interface that has the guest's link address.
func linkInterface() (*net.Interface, error) {
	all, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, iface := range all {
		addrs, err := iface.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.Equal(agentproto.GuestLinkAddr.AsSlice()) {
				return &iface, nil
			}
		}
	}
	return nil, fmt.Errorf("no interface has %s: the link is no tap", agentproto.GuestLinkAddr)
}

func onlyInterface(link string) error {
	all, err := net.Interfaces()
	if err != nil {
		return err
	}
	for _, iface := range all {
		if iface.Name != link && iface.Flags&net.FlagUp != 0 && iface.Flags&net.FlagLoopback == 0 {
			return fmt.Errorf("%s is up", iface.Name)
		}
	}
	return nil
}

var errReached = errors.New("the host answered")

func noTCP(addr string) error {
	c, err := net.DialTimeout("tcp6", addr, patience)
	if err == nil {
		c.Close()
		return fmt.Errorf("connected to %s: %w", addr, errReached)
	}
	// A refusal is an answer too.
	if errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("%w: %w", errReached, err)
	}
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, unix.EHOSTUNREACH) {
		return nil
	}
	return err
}

func noDatagram(network, addr string) error {
	c, err := net.Dial(network, addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("from the guest")); err != nil {
		return err
	}
	return wantTimeout(c.Read(make([]byte, 64)))
}

// noEcho sends an ICMPv6 echo request (RFC 4443, section 4.1).
func noEcho(iface *net.Interface, to [16]byte) error {
	const echoRequest, echoReply = 128, 129
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := receiveTimeout(fd); err != nil {
		return err
	}
	request := []byte{echoRequest, 0, 0, 0, 0x12, 0x34, 0, 1}
	if err := unix.Sendto(fd, request, 0, &unix.SockaddrInet6{Addr: to, ZoneId: uint32(iface.Index)}); err != nil {
		return err
	}
	buf := make([]byte, 256)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		n, from, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EAGAIN) {
			return nil
		}
		if err != nil {
			return err
		}
		// This machine's own answer to what it sent to all nodes is not the host's.
		if a, ok := from.(*unix.SockaddrInet6); ok && n > 0 && buf[0] == echoReply && slices.Equal(a.Addr[:], agentproto.HostLinkAddr.AsSlice()) {
			return errReached
		}
	}
	return nil
}

// noARP broadcasts an ARP request for an address that the host could have
// (RFC 826), and listens for any ARP reply.
func noARP(iface *net.Interface) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(bigEndian(unix.ETH_P_ARP)))
	if err != nil {
		// A kernel without packet sockets cannot send one.
		if errors.Is(err, unix.EAFNOSUPPORT) {
			return nil
		}
		return err
	}
	defer unix.Close(fd)
	if err := receiveTimeout(fd); err != nil {
		return err
	}
	request := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	request = append(request, agentproto.GuestLinkMAC...)
	request = append(request, 127, 0, 0, 2)
	request = append(request, 0, 0, 0, 0, 0, 0, 127, 0, 0, 1)
	to := &unix.SockaddrLinklayer{
		Protocol: bigEndian(unix.ETH_P_ARP), Ifindex: iface.Index, Halen: 6,
		Addr: [8]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	}
	if err := unix.Sendto(fd, request, 0, to); err != nil {
		return err
	}
	n, _, err := unix.Recvfrom(fd, make([]byte, 256), 0)
	if errors.Is(err, unix.EAGAIN) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("an ARP packet of %d bytes: %w", n, errReached)
}

func noVsock(port uint32) error {
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, &unix.SockaddrVM{CID: unix.VMADDR_CID_HOST, Port: port}); err == nil {
		return errReached
	}
	return nil
}

func wantTimeout(_ int, err error) error {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	if err == nil || errors.Is(err, unix.ECONNREFUSED) {
		return errReached
	}
	return err
}

func receiveTimeout(fd int) error {
	tv := unix.NsecToTimeval(patience.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
}

func bigEndian(v uint16) uint16 { return v<<8 | v>>8 }
