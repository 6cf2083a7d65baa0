package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// watcher is a host that can tell when somebody else has removed rules.
type watcher interface {
	// watch calls removed at its beginning and then whenever rules that all
	// sandboxes share may be gone, on the calling goroutine, until ctx ends.
	watch(ctx context.Context, removed func()) error
}

// stopLogger is a host that can tell of packets that it has stopped.
type stopLogger interface {
	stopped(ctx context.Context, f func(anchor string, s Stopped)) error
}

// repairTimeout bounds the repair of one sandbox: who has its lock may hang.
const repairTimeout = 20 * time.Second

// Repair makes what is missing of a sandbox's network, if it has one still.
// errdefs.ErrNotFound if not.
func (n *Network) Repair(ctx context.Context, id string) error {
	lock, r, err := n.lockExisting(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := n.attach(ctx, r); err != nil {
		return fmt.Errorf("network of %s: %w", id, err)
	}
	return nil
}

// Keep repairs what others take away of the rules, as the reload of a firewall
// does, until ctx ends. What cannot be mended is logged. errdefs.ErrNotImplemented
// where the host does not tell.
func (n *Network) Keep(ctx context.Context) error {
	w, ok := n.host.(watcher)
	if !ok {
		return fmt.Errorf("network %s: watch the rules: %w", n.cfg.Bridge, errdefs.ErrNotImplemented)
	}
	return w.watch(ctx, func() {
		records, err := n.store.records()
		if err != nil {
			log.G(ctx).WithError(err).Error("records of the network")
			return
		}
		for _, r := range records {
			// One that is not complete is an Add's or a Del's that is at work.
			if r.Ready && !r.Leaving && ctx.Err() == nil {
				n.mend(ctx, r.ID)
			}
		}
	})
}

// mend repairs one sandbox that needs it.
func (n *Network) mend(ctx context.Context, id string) {
	why := n.Check(ctx, id)
	if why == nil || errdefs.IsNotFound(why) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	err := n.Repair(ctx, id)
	entry := log.G(ctx).WithField("sandbox", id)
	switch {
	case errdefs.IsNotFound(err): // It has gone meanwhile.
	case err != nil:
		entry.WithError(err).Error("somebody has changed the network of a sandbox, and it could not be mended")
	default:
		entry.WithError(why).Debug("what was found")
		entry.Warn("somebody has changed the network of a sandbox: mended")
	}
}

// Stopped is a packet that was stopped.
type Stopped struct {
	// ID is the sandbox's, empty for one that has gone.
	ID string
	// Why is "denied" or "spoofed", as in Counters.
	Why string
	// EtherType is the packet's, and Protocol that of what is in an IPv4 packet.
	EtherType uint16
	Protocol  uint8
	// Source and Destination are an IPv4 packet's, with port 0 where there is none.
	Source, Destination netip.AddrPort
	// MAC is the sender's of a spoofed packet.
	MAC net.HardwareAddr
}

// Stopped calls f with packets that were stopped, some a minute for each sandbox,
// until ctx ends. errdefs.ErrNotImplemented where they are told elsewhere: to the
// kernel's log on Linux without Config.LogGroup, to pflog(4) on FreeBSD.
func (n *Network) Stopped(ctx context.Context, f func(Stopped)) error {
	l, ok := n.host.(stopLogger)
	if !ok {
		return fmt.Errorf("network %s: packets that were stopped: %w", n.cfg.Bridge, errdefs.ErrNotImplemented)
	}
	return l.stopped(ctx, func(anchor string, s Stopped) {
		if records, err := n.store.records(); err == nil {
			for _, r := range records {
				if r.Anchor == anchor {
					s.ID = r.ID
				}
			}
		}
		f(s)
	})
}
