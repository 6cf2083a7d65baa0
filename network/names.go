package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Asks says whether the guest with an address may have a domain name resolved. A
// guest whose policy has names may ask for these alone: what it asks for leaves
// the host too. named is true if the policy has the name. An address that is
// nobody's is errdefs.ErrNotFound.
func (n *Network) Asks(guest netip.Addr, domain string) (may, named bool, err error) {
	_, p, err := n.policyOf(guest)
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
	lock, _, err := n.store.lock(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Close()
	r, p, err := n.policyOf(guest)
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
	return nil
}

func (n *Network) policyOf(guest netip.Addr) (*record, *policy.Compiled, error) {
	id := n.store.owner(guest)
	if id == "" {
		return nil, nil, fmt.Errorf("network of %s: %w", guest, errdefs.ErrNotFound)
	}
	r, err := n.store.load(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := r.Policy.Compile(r.DNS)
	return r, p, err
}
