package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/ninep"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
)

// share is a host tree served to the guest over one connection of the link.
type share struct {
	stream string
	tree   *ninep.Tree
	conn   net.Conn
	served chan struct{}
	// patience is closeWait but in tests.
	patience time.Duration
}

// closeWait bounds the end of a share: requests of it may hang in the host's file
// system, as they do on NFS whose server has gone.
const closeWait = 15 * time.Second

// serveRoot serves a container's root file system.
// saved is the session that the guest has with it, nil for none yet.
func serveRoot(ctx context.Context, v *vm, stream string, s bundle.Share, saved *ninep.Saved) (*share, error) {
	tree, err := ninep.Dir(s.Source, ninep.Options{Exclusive: s.Exclusive})
	if err != nil {
		return nil, fmt.Errorf("share %s: %w", s.Source, err)
	}
	return serveTree(ctx, v, stream, tree, saved)
}

// serveVolume serves a volume. saved is as for serveRoot.
func serveVolume(ctx context.Context, v *vm, stream string, vol bundle.Volume, saved *ninep.Saved) (*share, error) {
	open := ninep.Dir
	if vol.SingleFile {
		open = ninep.SingleFile
	}
	tree, err := open(vol.Source, ninep.Options{ReadOnly: vol.ReadOnly, Private: !vol.Slave})
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", vol.Source, err)
	}
	return serveTree(ctx, v, stream, tree, saved)
}

// serveTree opens a stream for the tree, and serves it until close. It takes
// the tree over.
func serveTree(ctx context.Context, v *vm, stream string, tree *ninep.Tree, saved *ninep.Saved) (*share, error) {
	if saved != nil {
		if err := tree.Load(saved); err != nil {
			tree.Close()
			return nil, fmt.Errorf("go on with %s: %w", stream, err)
		}
	}
	conn, err := v.openStream(ctx, agentproto.PortNinep, stream)
	if err != nil {
		tree.Close()
		return nil, err
	}
	sh := &share{stream: stream, tree: tree, conn: conn, served: make(chan struct{}), patience: closeWait}
	ctx = context.WithoutCancel(ctx)
	go func() {
		defer close(sh.served)
		if err := tree.Serve(ctx, conn); err != nil && !errors.Is(err, net.ErrClosed) {
			log.G(ctx).WithError(err).WithField("stream", stream).Warn("file server ended")
		}
	}()
	return sh, nil
}

// proto is what the guest is told of it.
func (s *share) proto(b bundle.Share) *agentv1.Share {
	p := &agentv1.Share{Stream: s.stream, Target: b.Target}
	if b.Exclusive {
		p.Cache = agentv1.Cache_CACHE_EXCLUSIVE
	}
	return p
}

// close ends the session and returns when no request is left in the tree, so
// that the tree can be unmounted; errdefs.ErrUnavailable if one hangs.
func (s *share) close() error {
	s.conn.Close()
	closed := make(chan error, 1)
	go func() {
		<-s.served
		closed <- s.tree.Close()
	}()
	timeout := time.NewTimer(s.patience)
	defer timeout.Stop()
	select {
	case err := <-closed:
		return err
	case <-timeout.C:
		return fmt.Errorf("%s: a request hangs in the host's file system: %w", s.stream, errdefs.ErrUnavailable)
	}
}
