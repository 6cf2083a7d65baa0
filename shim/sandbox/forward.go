package sandbox

import (
	"context"
	"errors"
	"net"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/splice"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/join"
)

// forwardLoopback leads what processes of the host open to the loopback of the
// client's network namespace to the containers' loopback, until the machine ends:
// CRI's port-forward enters the namespace and connects there. Who cannot have it
// has everything else.
func (v *vm) forwardLoopback(ctx context.Context) {
	n := v.network
	if n == nil || n.ns == nil || n.line == nil {
		return
	}
	l, err := n.ns.Loopback()
	if err != nil {
		if !errdefs.IsNotImplemented(err) {
			log.G(ctx).WithError(err).Warn("ports of the containers are not to be had by the loopback of their network namespace")
		}
		return
	}
	ctx, release := whileAlive(context.WithoutCancel(ctx), v.Machine)
	context.AfterFunc(ctx, func() { l.Close() })
	go func() {
		defer release()
		if err := v.forwardAll(ctx, l); !errors.Is(err, net.ErrClosed) {
			log.G(ctx).WithError(err).Warn("ports of the containers are not forwarded any more")
		}
	}()
}

func (v *vm) forwardAll(ctx context.Context, l *join.Loopback) error {
	for {
		conn, port, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			target, err := v.openStream(ctx, agentproto.PortForward, strconv.Itoa(int(port)))
			if err != nil {
				log.G(ctx).WithError(err).WithField("port", port).Debug("connection to a container was not forwarded")
				// The client sees a reset, as if nobody listened.
				_ = conn.SetLinger(0)
				conn.Close()
				return
			}
			// Each link has what stdio needs, too.
			splice.Join(ctx, conn, target.(splice.Conn))
		}()
	}
}
