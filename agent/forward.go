//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/splice"
)

// forwardTimeout bounds a connection to a port of the containers'.
const forwardTimeout = 10 * time.Second

// forwarder connects the host to ports of the containers' loopback, as CRI's
// port-forward does for its clients.
type forwarder struct {
	// netns is the containers' network namespace.
	netns string
}

// serve accepts connections until l is closed.
func (f *forwarder) serve(ctx context.Context, l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept connection to forward: %w", err)
		}
		go func() {
			defer conn.Close()
			if err := f.forward(ctx, conn); err != nil {
				log.G(ctx).WithError(err).Debug("connection was not forwarded")
			}
		}()
	}
}

func (f *forwarder) forward(ctx context.Context, conn net.Conn) error {
	host, ok := conn.(splice.Conn)
	if !ok {
		return fmt.Errorf("%T has no half-close: %w", conn, errdefs.ErrNotImplemented)
	}
	if err := conn.SetDeadline(time.Now().Add(prefaceTimeout + forwardTimeout)); err != nil {
		return err
	}
	id, err := agentproto.ReadPreface(conn)
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(id, 10, 16)
	if err != nil || port == 0 {
		return errors.Join(fmt.Errorf("port %q: %w", id, errdefs.ErrInvalidArgument), agentproto.AnswerPreface(conn, false))
	}
	target, err := f.dial(ctx, uint16(port))
	if err != nil {
		return errors.Join(err, agentproto.AnswerPreface(conn, false))
	}
	defer target.Close()
	if err := agentproto.AnswerPreface(conn, true); err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	splice.Join(ctx, host, target)
	return nil
}

// dial connects to a port by the containers' loopback, of IPv4 or else of IPv6.
func (f *forwarder) dial(ctx context.Context, port uint16) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		var conn net.Conn
		err := inNamespaces(func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			return err
		}, f.netns)
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
