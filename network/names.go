package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Asks says whether the guest with an address may have a domain name resolved. A
// guest whose policy has names may ask for these alone: what it asks for leaves
// the host too. named is true if the policy has the name. An address that is
// nobody's is errdefs.ErrNotFound.
func (n *Network) Asks(guest netip.Addr, domain string) (may, named bool, err error) {
	id := n.store.owner(guest)
	if id == "" {
		return false, false, fmt.Errorf("network of %s: %w", guest, errdefs.ErrNotFound)
	}
	r, err := n.store.load(id)
	if err != nil {
		return false, false, err
	}
	p, err := r.Policy.Compile(r.DNS)
	if err != nil {
		return false, false, err
	}
	if len(p.Names) == 0 {
		return true, false, nil
	}
	named = slices.ContainsFunc(p.Names, func(m policy.NamedMatch) bool { return m.Includes(domain) })
	return named, named, nil
}

// Resolved opens the addresses that a domain name has for ttl to the guest whose
// policy allows the name. Special addresses (policy.Special) are left out: who
// answers for a name must not open the host's own networks.
func (n *Network) Resolved(ctx context.Context, guest netip.Addr, domain string, addrs []netip.Addr, ttl time.Duration) error {
	addrs = slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !a.Is4() || policy.IsSpecial(a) })
	id := n.store.owner(guest)
	if id == "" {
		return fmt.Errorf("network of %s: %w", guest, errdefs.ErrNotFound)
	}
	if len(addrs) == 0 {
		return nil
	}
	// The policy's names have the same numbers until this is done.
	lock, r, err := n.lockExisting(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Close()
	if r.Address != guest {
		// It has gone and come again while this waited.
		return fmt.Errorf("network of %s: %w", guest, errdefs.ErrNotFound)
	}
	p, err := r.Policy.Compile(r.DNS)
	if err != nil {
		return err
	}
	for i, m := range p.Names {
		if !m.Includes(domain) {
			continue
		}
		if err := n.host.resolved(ctx, r, p, i, addrs, ttl); err != nil {
			return fmt.Errorf("network of %s: %w", id, err)
		}
	}
	select {
	case n.opened <- struct{}{}:
	default: // It has been told already.
	}
	return nil
}

// expirer is a host whose packet filter does not close addresses of names by
// itself.
type expirer interface {
	// expire closes what is over, and says when the next will be; a zero time if
	// there is none.
	expire(ctx context.Context, r *record, p *policy.Compiled) (time.Time, error)
}

// expireAgain is how long Expire waits after a failure.
const expireAgain = 5 * time.Second

// Expire closes the addresses that Resolved has opened when their time is over,
// until ctx ends. It has to run in the process that calls Resolved. What fails is
// logged, and tried again. errdefs.ErrNotImplemented where the packet filter does it
// by itself.
func (n *Network) Expire(ctx context.Context) error {
	e, ok := n.host.(expirer)
	if !ok {
		return fmt.Errorf("network %s: close addresses of names: %w", n.cfg.Bridge, errdefs.ErrNotImplemented)
	}
	for {
		var timer <-chan time.Time
		if next := n.expire(ctx, e); !next.IsZero() {
			timer = time.After(time.Until(next))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-n.opened:
		case <-timer:
		}
	}
}

// expire closes what is over of all sandboxes, and says when the next will be.
func (n *Network) expire(ctx context.Context, e expirer) (next time.Time) {
	at := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	records, err := n.store.records()
	if err != nil {
		log.G(ctx).WithError(err).Error("records of the network")
		at(time.Now().Add(expireAgain))
	}
	for _, r := range records {
		if len(r.Opened) == 0 {
			continue
		}
		t, err := n.expireOf(ctx, e, r.ID)
		if err != nil && !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).WithField("sandbox", r.ID).Error("addresses of names whose time is over are open")
			t = time.Now().Add(expireAgain)
		}
		at(t)
	}
	return next
}

func (n *Network) expireOf(ctx context.Context, e expirer, id string) (time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, repairTimeout)
	defer cancel()
	lock, r, err := n.lockExisting(ctx, id)
	if err != nil {
		return time.Time{}, err
	}
	defer lock.Close()
	p, err := r.Policy.Compile(r.DNS)
	if err != nil {
		return time.Time{}, err
	}
	return e.expire(ctx, r, p)
}
