package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/ninep"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
)

// share is a host tree served to the guest over one connection of the link.
type share struct {
	bundle.Share
	stream string
	tree   *ninep.Tree
	conn   net.Conn
	served chan struct{}
}

// serveShare opens the tree and a stream for it, and serves it until close.
func serveShare(ctx context.Context, v *vm, stream string, s bundle.Share) (_ *share, err error) {
	open := ninep.Dir
	if s.SingleFile {
		open = ninep.SingleFile
	}
	tree, err := open(s.Source, ninep.Options{ReadOnly: s.ReadOnly, Exclusive: s.Exclusive})
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", s.Source, err)
	}
	conn, err := v.openStream(ctx, agentproto.PortNinep, stream)
	if err != nil {
		tree.Close()
		return nil, fmt.Errorf("share %s: %w", s.Source, err)
	}
	sh := &share{Share: s, stream: stream, tree: tree, conn: conn, served: make(chan struct{})}
	ctx = context.WithoutCancel(ctx)
	go func() {
		defer close(sh.served)
		if err := tree.Serve(ctx, conn); err != nil && !errors.Is(err, net.ErrClosed) {
			log.G(ctx).WithError(err).WithField("share", s.Target).Warn("file server ended")
		}
	}()
	return sh, nil
}

func (s *share) proto() *agentv1.Share {
	p := &agentv1.Share{Stream: s.stream, Target: s.Target, ReadOnly: s.ReadOnly}
	if s.Exclusive {
		p.Cache = agentv1.Cache_CACHE_EXCLUSIVE
	}
	return p
}

// close ends the session and returns when no request is left in the tree, so
// that the tree can be unmounted.
func (s *share) close() error {
	s.conn.Close()
	<-s.served
	return s.tree.Close()
}
