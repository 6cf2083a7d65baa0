package network

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// Network is one network of this host. It holds nothing open, and is safe for
// concurrent use, by several processes too.
type Network struct {
	cfg   Config
	store store
	host  host
	// opened tells Expire of addresses that have been opened.
	opened chan struct{}
}

// host is what a network does to the system that it is on. Each method may find
// any part of its work done already, and is called for one sandbox at a time.
type host interface {
	// prepare makes what all sandboxes share: the bridge with its address, and
	// rules that deny everything to everybody.
	prepare(ctx context.Context) error
	// tap names the tap of a new sandbox, whose machine's it may have been before.
	tap(addr netip.Addr, port *Port) string
	// attach makes the tap, or takes the machine's, joins it to the bridge and brings it up, with the
	// policy in force before.
	attach(ctx context.Context, r *record, p *policy.Compiled) error
	// detach takes all of that away, and the states of the sandbox's flows.
	detach(ctx context.Context, r *record) (Released, error)
	// setPolicy replaces the policy in one step.
	setPolicy(ctx context.Context, r *record, p *policy.Compiled) error
	// resolved opens addresses of the i-th of the policy's names for a time.
	resolved(ctx context.Context, r *record, p *policy.Compiled, i int, addrs []netip.Addr, ttl time.Duration) error
	// check returns what is not as attach has left it.
	check(ctx context.Context, r *record) error
	// counters are by the sandbox's anchor.
	counters(ctx context.Context, records []*record) (map[string]Counters, error)
	// sweep removes taps, rules and pipes of this network's that known says nobody
	// has, and names them.
	sweep(ctx context.Context, known func(anchor, tap string) bool) ([]string, error)
	// destroy undoes prepare.
	destroy(ctx context.Context) error
}

// Open returns the network of a configuration. It touches nothing yet.
func Open(cfg Config) (*Network, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := store{dir: filepath.Join(cfg.State, cfg.Bridge)}
	h, err := newHost(cfg, s)
	if err != nil {
		return nil, err
	}
	return newNetwork(cfg, s, h), nil
}

func newNetwork(cfg Config, s store, h host) *Network {
	return &Network{cfg: cfg, store: s, host: h, opened: make(chan struct{}, 1)}
}

// Config is the network's configuration.
func (n *Network) Config() Config { return n.cfg }

// Up makes the bridge and the rules that deny everything, as the first Add does.
func (n *Network) Up(ctx context.Context) error {
	if err := n.store.open(); err != nil {
		return err
	}
	if err := n.host.prepare(ctx); err != nil {
		return fmt.Errorf("network %s: %w", n.cfg.Bridge, err)
	}
	return nil
}

// anchorName names a sandbox's rules. pf has room for 63 bytes
// (PF_ANCHOR_NAME_SIZE, net/pfvar.h).
func anchorName(id string) string {
	const prefix, room = "sandbox-", 63
	if len(prefix)+len(id) <= room {
		return prefix + id
	}
	sum := fmt.Sprintf("-%x", sha256.Sum256([]byte(id)))[:17]
	return prefix + id[:room-len(prefix)-len(sum)] + sum
}

// Add gives the sandbox a network, or completes what an earlier Add has begun,
// and returns it. Errors: errdefs.ErrInvalidArgument,
// errdefs.ErrResourceExhausted if no address is free, errdefs.ErrAlreadyExists if
// a published port is another's, errdefs.ErrUnavailable where the host lacks a
// part. After an error nothing is left of a sandbox that had no network before.
func (n *Network) Add(ctx context.Context, req Request) (_ *Result, err error) {
	if err := validateID(req.ID); err != nil {
		return nil, err
	}
	p := n.cfg.Policy
	if req.Policy != nil {
		p = *req.Policy
	}
	if _, err := p.Compile(nil); err != nil {
		return nil, err
	}
	if err := n.store.open(); err != nil {
		return nil, err
	}
	lock, fresh, err := n.store.lock(ctx, req.ID)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	r, err := n.store.load(req.ID)
	isNew := errdefs.IsNotFound(err)
	if isNew && !fresh {
		// Another Add was killed before it had written a record.
		if err := n.store.freeAddresses(req.ID); err != nil {
			return nil, err
		}
	}
	if isNew {
		r, err = n.newRecord(req, p)
	}
	if err != nil {
		return nil, err
	}
	r.port = req.Port
	if err := n.attach(ctx, r); err != nil {
		if isNew {
			_, derr := n.release(context.WithoutCancel(ctx), r)
			err = errors.Join(err, derr)
		}
		return nil, fmt.Errorf("network of %s: %w", req.ID, err)
	}
	return &r.Result, nil
}

// newRecord takes an address and writes down what will be made.
func (n *Network) newRecord(req Request, p policy.Policy) (*record, error) {
	id := req.ID
	addr, err := n.store.take(id, n.cfg.First, n.cfg.Last)
	if err != nil {
		return nil, errors.Join(err, n.store.forget(id))
	}
	r := &record{Policy: p, Result: Result{
		ID: id, Bridge: n.cfg.Bridge, Tap: n.host.tap(addr, req.Port), Anchor: anchorName(id),
		Address: addr, MAC: MAC(macOf(addr)), Gateway: n.cfg.Gateway, MTU: n.cfg.MTU, DNS: n.cfg.resolvers(),
		NetNS: req.NetNS, Interface: req.Interface, Network: req.Network,
	}}
	if err := n.store.save(r); err != nil {
		return nil, errors.Join(err, n.store.forget(id))
	}
	return r, nil
}

func (n *Network) attach(ctx context.Context, r *record) error {
	p, err := r.Policy.Compile(r.DNS)
	if err != nil {
		return err
	}
	if r.Leaving {
		// Of a Del that was not finished.
		r.Leaving, r.Ready = false, false
		if err := n.store.save(r); err != nil {
			return err
		}
	}
	if err := n.host.prepare(ctx); err != nil {
		return err
	}
	if err := n.host.attach(ctx, r, p); err != nil {
		return err
	}
	if r.Ready {
		return nil
	}
	r.Ready = true
	return n.store.save(r)
}

// Del takes the sandbox's network away. What is not there is no error.
func (n *Network) Del(ctx context.Context, id string) (Released, error) {
	if err := validateID(id); err != nil {
		return Released{}, err
	}
	if err := n.store.open(); err != nil {
		return Released{}, err
	}
	lock, _, err := n.store.lock(ctx, id)
	if err != nil {
		return Released{}, err
	}
	defer lock.Close()
	r, err := n.store.load(id)
	if errdefs.IsNotFound(err) {
		return Released{}, n.store.forget(id)
	}
	if err != nil {
		return Released{}, err
	}
	return n.release(ctx, r)
}

// release undoes attach and newRecord. The caller has the lock.
func (n *Network) release(ctx context.Context, r *record) (Released, error) {
	r.Leaving = true
	if err := n.store.save(r); err != nil {
		return Released{}, err
	}
	released, err := n.host.detach(ctx, r)
	if err != nil {
		return released, fmt.Errorf("network of %s: %w", r.ID, err)
	}
	return released, n.store.forget(r.ID)
}

// Check compares the host with the sandbox's record. errdefs.ErrNotFound if the
// sandbox has no network, and errdefs.ErrFailedPrecondition with everything that
// is missing or otherwise than it was made. Add mends it.
func (n *Network) Check(ctx context.Context, id string) error {
	if err := validateID(id); err != nil {
		return err
	}
	r, err := n.store.load(id)
	if err != nil {
		return err
	}
	err = n.host.check(ctx, r)
	if owner := n.store.owner(r.Address); owner != id {
		err = errors.Join(err, fmt.Errorf("address %s belongs to %q", r.Address, owner))
	}
	if !r.Ready || r.Leaving {
		err = errors.Join(err, errors.New("it was never completed, or not all taken away"))
	}
	if err != nil {
		return fmt.Errorf("network of %s: %w: %w", id, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// GC releases the networks of sandboxes that keep, if it is given, does not want,
// and removes what has no record: addresses, taps, rules. It names what it has
// removed. It goes on after a failure.
func (n *Network) GC(ctx context.Context, keep func(id string) bool) ([]string, error) {
	if err := n.store.open(); err != nil {
		return nil, err
	}
	ids, err := n.store.ids()
	if err != nil {
		return nil, err
	}
	owners, err := n.store.owners()
	if err != nil {
		return nil, err
	}
	for _, id := range owners {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	var removed []string
	var errs []error
	for _, id := range slices.Compact(ids) {
		gone, err := n.collect(ctx, id, keep)
		if gone {
			removed = append(removed, "sandbox "+id)
		}
		errs = append(errs, err)
	}
	// A record is written before anything is made that it names, so what has
	// none by now had none when it was seen.
	swept, err := n.host.sweep(ctx, func(anchor, tap string) bool {
		records, err := n.store.records()
		return err != nil || slices.ContainsFunc(records, func(r *record) bool {
			return anchor != "" && r.Anchor == anchor || tap != "" && r.Tap == tap
		})
	})
	return append(removed, swept...), errors.Join(append(errs, err)...)
}

// collect removes what has no record, and what keep does not want.
func (n *Network) collect(ctx context.Context, id string, keep func(string) bool) (bool, error) {
	if err := validateID(id); err != nil {
		return false, err
	}
	lock, _, err := n.store.lock(ctx, id)
	if err != nil {
		return false, err
	}
	defer lock.Close()
	r, err := n.store.load(id)
	switch {
	case errdefs.IsNotFound(err):
		return true, n.store.forget(id)
	case err != nil:
		return false, err
	case keep == nil || keep(id):
		return false, nil
	}
	_, err = n.release(ctx, r)
	return err == nil, err
}

// Destroy takes the network itself off the host: bridge and rules. It is for an
// administrator, or a test; the last Del leaves them. errdefs.ErrFailedPrecondition
// while a sandbox has a network.
func (n *Network) Destroy(ctx context.Context) error {
	ids, err := n.store.ids()
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return fmt.Errorf("network %s: %d sandboxes have an address: %w", n.cfg.Bridge, len(ids), errdefs.ErrFailedPrecondition)
	}
	if err := n.host.destroy(ctx); err != nil {
		return fmt.Errorf("network %s: %w", n.cfg.Bridge, err)
	}
	return n.store.destroy()
}

// SetPolicy replaces the sandbox's policy while it runs, in one step. Flows that
// the new one allows are not disturbed, others end. errdefs.ErrNotFound if the
// sandbox has no network.
func (n *Network) SetPolicy(ctx context.Context, id string, p policy.Policy) error {
	lock, r, err := n.lockExisting(ctx, id)
	if err != nil {
		return err
	}
	defer lock.Close()
	c, err := p.Compile(r.DNS)
	if err != nil {
		return err
	}
	// The record last: what is in force after a crash in between is mended by the
	// next Add to what was asked for before, as if this had not been called.
	if err := n.host.setPolicy(ctx, r, c); err != nil {
		return fmt.Errorf("network of %s: %w", id, err)
	}
	r.Policy = p
	return n.store.save(r)
}

// lockExisting locks a sandbox that has a record, for the caller to unlock by
// Close. errdefs.ErrNotFound if it has none.
func (n *Network) lockExisting(ctx context.Context, id string) (*os.File, *record, error) {
	if err := validateID(id); err != nil {
		return nil, nil, err
	}
	if _, err := n.store.load(id); err != nil {
		return nil, nil, err
	}
	lock, _, err := n.store.lock(ctx, id)
	if err != nil {
		return nil, nil, err
	}
	r, err := n.store.load(id)
	if errdefs.IsNotFound(err) {
		// It has gone while this waited for the lock, which made its directory.
		err = errors.Join(err, n.store.forget(id))
	}
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	return lock, r, nil
}

// Info is what is known of a sandbox's network.
type Info struct {
	Result
	Policy   policy.Policy `json:"policy"`
	Counters Counters      `json:"counters"`
	// Ready is false while Add or Del is at work, and after one that was killed.
	Ready bool `json:"ready"`
}

// List is every sandbox that has a record, by address.
func (n *Network) List(ctx context.Context) ([]Info, error) {
	records, err := n.store.records()
	if err != nil {
		return nil, err
	}
	return n.infos(ctx, records)
}

// Show is one sandbox; errdefs.ErrNotFound if it has no network.
func (n *Network) Show(ctx context.Context, id string) (*Info, error) {
	if err := validateID(id); err != nil {
		return nil, err
	}
	r, err := n.store.load(id)
	if err != nil {
		return nil, err
	}
	infos, err := n.infos(ctx, []*record{r})
	if err != nil {
		return nil, err
	}
	return &infos[0], nil
}

func (n *Network) infos(ctx context.Context, records []*record) ([]Info, error) {
	counters, err := n.host.counters(ctx, records)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	infos := make([]Info, len(records))
	for i, r := range records {
		infos[i] = Info{Result: r.Result, Policy: r.Policy, Counters: counters[r.Anchor], Ready: r.Ready && !r.Leaving}
	}
	return infos, nil
}
