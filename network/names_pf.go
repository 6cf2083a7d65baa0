package network

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/pf"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// opened is an address of a domain name, while the policy opens it.
type opened struct {
	// Name numbers the name in the compiled policy of the record.
	Name    int        `json:"name"`
	Address netip.Addr `json:"address"`
	Until   time.Time  `json:"until"`
}

// openIdle is how long an address stays open after its record's time is over and a
// flow to it was seen. It is as on Linux (package nft).
const openIdle = 5 * time.Minute

// maxOpened bounds a sandbox's open addresses: who answers for a name that a guest
// may ask for must not fill the record, nor pf's tables. nft has 65535 for a name.
const maxOpened = 4096

// resolved writes down the addresses before it opens them: pf's tables have no end
// for an address, and somebody has to know when to take it out.
func (h *freebsd) resolved(ctx context.Context, r *record, p *policy.Compiled, i int, addrs []netip.Addr, ttl time.Duration) error {
	until := time.Now().Add(ttl)
	for _, addr := range addrs {
		have := slices.IndexFunc(r.Opened, func(o opened) bool { return o.Name == i && o.Address == addr })
		if have < 0 {
			r.Opened = append(r.Opened, opened{Name: i, Address: addr, Until: until})
		} else if o := &r.Opened[have]; o.Until.Before(until) {
			o.Until = until
		}
	}
	if len(r.Opened) > maxOpened {
		return fmt.Errorf("more than %d addresses of domain names: %w", maxOpened, errdefs.ErrResourceExhausted)
	}
	if err := h.store.save(r); err != nil {
		return err
	}
	return h.pf.Open(ctx, h.sandbox(r, p), i, addrs)
}

// expire implements expirer.
func (h *freebsd) expire(ctx context.Context, r *record, p *policy.Compiled) (next time.Time, err error) {
	now := time.Now()
	over := func(o opened) bool { return !o.Until.After(now) }
	if slices.ContainsFunc(r.Opened, over) {
		states, err := h.pf.States(ctx, r.Address)
		if err != nil {
			return now, err
		}
		closed := map[int][]netip.Addr{}
		var kept []opened
		for _, o := range r.Opened {
			used := slices.ContainsFunc(states, func(s pf.State) bool { return s.Open && s.To.Addr() == o.Address })
			switch {
			case over(o) && used:
				o.Until = now.Add(openIdle)
			case over(o):
				closed[o.Name] = append(closed[o.Name], o.Address)
				continue
			}
			kept = append(kept, o)
		}
		for i, addrs := range closed {
			if err := h.pf.Close(ctx, h.sandbox(r, p), i, addrs); err != nil {
				return now, err
			}
		}
		r.Opened = kept
		if err := h.store.save(r); err != nil {
			return now, err
		}
	}
	for _, o := range r.Opened {
		if next.IsZero() || o.Until.Before(next) {
			next = o.Until
		}
	}
	return next, nil
}

// keptOpen are the record's open addresses of names that another policy allows in
// the same words, by its numbers.
func (r *record) keptOpen(was, is *policy.Compiled) []opened {
	var kept []opened
	for _, o := range r.Opened {
		i := slices.IndexFunc(is.Names, func(m policy.NamedMatch) bool { return reflect.DeepEqual(m, was.Names[o.Name]) })
		if i >= 0 {
			o.Name = i
			kept = append(kept, o)
		}
	}
	return kept
}

// openOf are the addresses by the policy's names.
func openOf(all []opened, p *policy.Compiled) [][]netip.Addr {
	names := make([][]netip.Addr, len(p.Names))
	for _, o := range all {
		names[o.Name] = append(names[o.Name], o.Address)
	}
	return names
}
