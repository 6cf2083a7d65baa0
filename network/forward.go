package network

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/fsnotify/fsnotify"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/forward"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// redirector is a host whose packet filter redirects what comes to published ports
// from elsewhere, and not what the host itself sends there.
type redirector interface {
	// unanswered are the published ports that do not answer the host.
	unanswered(p *policy.Compiled) []policy.Published
}

// forwardAgain is when Forward tries ports again that it could not have.
const forwardAgain = 30 * time.Second

// Forward answers the host itself on published ports, until ctx ends. A port that
// cannot be had is logged, and tried again. errdefs.ErrNotImplemented where the packet
// filter does it.
func (n *Network) Forward(ctx context.Context) (err error) {
	h, ok := n.host.(redirector)
	if !ok {
		return fmt.Errorf("network %s: answer the host on published ports: %w", n.cfg.Bridge, errdefs.ErrNotImplemented)
	}
	if err := n.store.open(); err != nil {
		return err
	}
	changes, err := n.store.watch()
	if err != nil {
		return fmt.Errorf("network %s: watch the records: %w", n.cfg.Bridge, err)
	}
	defer changes.Close()
	var ports forward.Set
	defer ports.Close()
	for {
		var again <-chan time.Time
		want, err := n.unanswered(h)
		if err == nil {
			err = ports.Update(want)
		}
		if err != nil {
			log.G(ctx).WithError(err).Warn("published ports that do not answer the host")
			again = time.After(forwardAgain)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again:
		case <-changes.Events:
		case err := <-changes.Errors:
			return fmt.Errorf("network %s: watch the records: %w", n.cfg.Bridge, err)
		}
	}
}

// unanswered are the ports of all sandboxes that do not answer the host.
func (n *Network) unanswered(h redirector) ([]forward.Port, error) {
	records, err := n.store.records()
	if err != nil {
		return nil, err
	}
	var all []forward.Port
	for _, r := range records {
		if !r.Ready || r.Leaving {
			continue
		}
		p, err := r.Policy.Compile(r.DNS)
		if err != nil {
			return nil, err
		}
		for _, port := range h.unanswered(p) {
			all = append(all, forward.Port{Published: port, Address: r.Address})
		}
	}
	return all, nil
}

// changed is a file that is there once somebody wanted to know of changed records:
// its times change with them. It is beside the network's directory, and stays: who
// watches it is not to miss the network's coming back.
func (s store) changed() string {
	return filepath.Join(filepath.Dir(s.dir), ".changed-"+filepath.Base(s.dir))
}

// announce tells who watches that a record has changed.
func (s store) announce() {
	now := time.Now()
	_ = os.Chtimes(s.changed(), now, now)
}

// watch has an event for each announcement.
func (s store) watch() (*fsnotify.Watcher, error) {
	f, err := os.OpenFile(s.changed(), os.O_CREATE|os.O_RDONLY, 0o600)
	if err != nil {
		return nil, err
	}
	f.Close()
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	if err := w.Add(s.changed()); err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}
