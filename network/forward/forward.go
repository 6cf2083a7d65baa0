// Package forward answers on published ports in place of guests, to whoever asks on
// the host itself. It is for packet filters that redirect what comes from elsewhere,
// and not what the host sends to its own addresses.
package forward

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/splice"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Port is a port of the host's that leads to one of a guest's.
type Port struct {
	policy.Published
	// Address is the guest's.
	Address netip.Addr
}

func (p Port) guest() string { return netip.AddrPortFrom(p.Address, p.Guest).String() }

// host is where to listen: on every address of the host's if none is named.
func (p Port) host() string {
	addr := p.HostIP
	if !addr.IsValid() {
		addr = netip.IPv4Unspecified()
	}
	return netip.AddrPortFrom(addr, p.Host).String()
}

const (
	// dialTimeout bounds the connection to a guest, which may be paused.
	dialTimeout = 10 * time.Second
	// atOnce bounds the flows of a port; further ones are refused.
	atOnce = 1024
	// udpIdle ends a flow of datagrams. pf keeps its own as long (udp.multiple).
	udpIdle = time.Minute
	// maxDatagram is what UDP over IPv4 has room for.
	maxDatagram = 65507
)

// Set is the ports that are answered. The zero value has none. It is for one
// goroutine at a time.
type Set struct{ open map[Port]*listener }

// listener answers on one port until it is closed.
type listener struct {
	stop context.CancelFunc
	done sync.WaitGroup
}

func (l *listener) close() {
	l.stop()
	l.done.Wait()
}

// Update answers on the ports that are wanted and on no others. Flows of those that
// stay are not disturbed, others end. An error names the ports that cannot be had,
// such as one that a program of the host's has; the others are answered, and the
// next Update tries again.
func (s *Set) Update(want []Port) error {
	for p, l := range s.open {
		if !slices.Contains(want, p) {
			l.close()
			delete(s.open, p)
		}
	}
	var errs []error
	for _, p := range want {
		if s.open[p] != nil {
			continue
		}
		l, err := listen(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("published port: %w", err))
			continue
		}
		if s.open == nil {
			s.open = map[Port]*listener{}
		}
		s.open[p] = l
	}
	return errors.Join(errs...)
}

// Close ends all of it.
func (s *Set) Close() { _ = s.Update(nil) }

func listen(p Port) (*listener, error) {
	ctx, stop := context.WithCancel(context.Background())
	l := &listener{stop: stop}
	var serve func()
	var err error
	switch policy.ProtocolName(p.Protocol) {
	case "tcp":
		serve, err = l.tcp(ctx, p)
	case "udp":
		serve, err = l.udp(ctx, p)
	default:
		err = fmt.Errorf("protocol %d", p.Protocol)
	}
	if err != nil {
		stop()
		return nil, err
	}
	l.done.Go(serve)
	return l, nil
}

// tcp listens, and returns what accepts.
func (l *listener) tcp(ctx context.Context, p Port) (func(), error) {
	socket, err := net.Listen("tcp4", p.host())
	if err != nil {
		return nil, err
	}
	context.AfterFunc(ctx, func() { socket.Close() })
	slots := make(chan struct{}, atOnce)
	return func() {
		for {
			conn, err := socket.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				// Out of files, say: those that are open will end.
				pause(ctx)
				continue
			}
			select {
			case slots <- struct{}{}:
			default:
				conn.Close()
				continue
			}
			l.done.Go(func() {
				defer func() { <-slots }()
				forward(ctx, conn.(*net.TCPConn), p)
			})
		}
	}, nil
}

// pause is how a failing accept is kept from taking a processor.
func pause(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-time.After(100 * time.Millisecond):
	}
}

// forward joins a connection with one to the guest.
func forward(ctx context.Context, conn *net.TCPConn, p Port) {
	guest, err := dial(ctx, "tcp4", conn.RemoteAddr(), p)
	if err != nil {
		// A reset, as from a port where nobody listens.
		_ = conn.SetLinger(0)
		conn.Close()
		return
	}
	splice.Join(ctx, conn, guest.(*net.TCPConn))
}

// errStranger refuses who is not on this host: what others may have is the packet
// filter's to say.
var errStranger = errors.New("not from this host")

func dial(ctx context.Context, network string, client net.Addr, p Port) (net.Conn, error) {
	from, err := netip.ParseAddrPort(client.String())
	if err != nil {
		return nil, err
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(own, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr() == from.Addr().Unmap()
	}) {
		return nil, errStranger
	}
	dialer := net.Dialer{Timeout: dialTimeout}
	return dialer.DialContext(ctx, network, p.guest())
}
