package join

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
)

// table names the rules in a client's namespace.
const table = "bhyve"

// soOriginalDst is SO_ORIGINAL_DST, linux/netfilter_ipv4.h.
const soOriginalDst = 80

// Loopback accepts the TCP connections that processes in a namespace of the
// host's open to its loopback: in their eyes a container listens there. CRI's
// port-forward is such a process.
type Loopback struct{ l *net.TCPListener }

// Loopback takes over the connections to 127.0.0.0/8 that are opened in the
// namespace. The rules end with it, or with Receipt's Undo.
func (n *Namespace) Loopback() (*Loopback, error) {
	var l *net.TCPListener
	err := netns.Do(n.file, func() (err error) {
		l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return err
		}
		if err := redirectTo(l.Addr().(*net.TCPAddr).AddrPort()); err != nil {
			l.Close()
			return err
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("loopback of network namespace %s: %w", n.path, err)
	}
	return &Loopback{l: l}, nil
}

// Accept returns the next connection and the port that it is for. net.ErrClosed
// is in the error after Close.
func (l *Loopback) Accept() (*net.TCPConn, uint16, error) {
	conn, err := l.l.AcceptTCP()
	if err != nil {
		return nil, 0, err
	}
	raw, err := conn.SyscallConn()
	var port uint16
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			// A struct sockaddr_in, by a call of x/sys whose result has room for it.
			var addr *unix.IPv6Mreq
			if addr, err = unix.GetsockoptIPv6Mreq(int(fd), unix.IPPROTO_IP, soOriginalDst); err == nil {
				port = binary.BigEndian.Uint16(addr.Multiaddr[2:])
			}
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		conn.Close()
		return nil, 0, fmt.Errorf("original destination: %w", err)
	}
	return conn, port, nil
}

// Close ends Accept.
func (l *Loopback) Close() error { return l.l.Close() }

// redirectTo leads TCP connections to the loopback to one address of it, in the
// thread's namespace.
func redirectTo(to netip.AddrPort) error {
	const protocol, destination, addrLen = unix.IPPROTO_TCP, 16, 4
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: table})
	chain := c.AddChain(&nftables.Chain{
		Name: "loopback", Table: t, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	// That of a shim that was killed.
	c.FlushChain(chain)
	c.AddRule(&nftables.Rule{Table: t, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: destination, Len: addrLen},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: addrLen, Mask: net.CIDRMask(8, 32), Xor: make([]byte, addrLen)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{127, 0, 0, 0}},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, to.Port())},
		&expr.Redir{RegisterProtoMin: 1},
	}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("nftables: redirect: %w", err)
	}
	return nil
}

// noRedirect undoes redirectTo.
func noRedirect() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("nftables: %w", err)
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: table})
	err = c.Flush()
	// A kernel without nf_tables says EINVAL: there was no redirect either.
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("nftables: remove redirect: %w", err)
	}
	return nil
}
