package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

// Want is what a claimant asks for.
type Want struct {
	// Shape is that of the machine that is needed.
	Shape *poolv1.Shape
	// Template, if set, is the only one that will do.
	Template string
	// Claimant adopts the machine.
	Claimant proc.ID
	// Boot has a machine booted where no tier has one.
	Boot bool
}

// Offer is a machine that waits for its claimant to adopt it.
type Offer struct {
	Entry    string
	Template string
	Tier     poolv1.Tier
	Machine  hypervisor.Record
	Parked   bool
	// Age is how long ago the machine became ready.
	Age time.Duration
}

// Claim offers a machine to the claimant, from the first tier that has one. What
// was offered is never offered again.
//
// Errors: errdefs.ErrNotFound if no template has this shape,
// errdefs.ErrFailedPrecondition if the claimant is not alive or the pool is
// draining, errdefs.ErrUnavailable if the tiers are empty and Want.Boot is not
// set, errdefs.ErrResourceExhausted if the host has no memory for another.
func (p *Pool) Claim(ctx context.Context, w Want) (*Offer, error) {
	if alive, err := w.Claimant.Alive(); err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	} else if !alive {
		return nil, fmt.Errorf("claim: process %s does not exist: %w", w.Claimant, errdefs.ErrFailedPrecondition)
	}
	for {
		s, e, err := p.popHot(w)
		if err != nil {
			return nil, fmt.Errorf("claim: %w", err)
		}
		if e == nil {
			return p.claimNew(ctx, s, w)
		}
		p.step("claim: taken")
		offer, err := p.offer(e, w.Claimant)
		if err == nil {
			p.countClaim(s, poolv1.Tier_TIER_HOT)
			return offer, nil
		}
		log.G(p.ctx).WithError(err).WithField("entry", e.ID).Warn("a hot machine could not be offered")
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
			p.putBack(s, e)
			return nil, fmt.Errorf("claim: %w: %w", err, errdefs.ErrUnavailable)
		}
		// What is on disk of it is not known.
		p.doom(ctx, e)
		if ctx.Err() != nil {
			return nil, err
		}
	}
}

// popHot takes the machine that was parked last, whose memory is the least
// likely to have been swapped out. Without one the entry is nil.
func (p *Pool) popHot(w Want) (*stock, *entry, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.draining {
		return nil, nil, fmt.Errorf("the pool is being emptied: %w", errdefs.ErrFailedPrecondition)
	}
	var found *stock
	shape := w.Shape.Key()
	for _, s := range p.templates {
		if w.Template != "" && s.Name != w.Template || s.Shape().Key() != shape {
			continue
		}
		// Two templates of one shape: the one that has machines.
		if found == nil || len(s.hot) > len(found.hot) || len(s.hot) == len(found.hot) && s.Name < found.Name {
			found = s
		}
	}
	if found == nil {
		p.unfit.count++
		p.unfit.last = w.Shape.Describe()
	}
	switch {
	case found == nil && w.Template != "" && p.templates[w.Template] != nil:
		return nil, nil, fmt.Errorf("template %s is %s, which is not what is wanted: %w",
			w.Template, p.templates[w.Template].Shape().Describe(), errdefs.ErrFailedPrecondition)
	case found == nil && w.Template != "":
		return nil, nil, errNoTemplate(w.Template)
	case found == nil:
		return nil, nil, fmt.Errorf("no template has this shape: %w", errdefs.ErrNotFound)
	}
	found.lastClaim = time.Now()
	defer p.poke()
	for len(found.hot) > 0 {
		e := found.hot[len(found.hot)-1]
		found.hot = found.hot[:len(found.hot)-1]
		// Out of the lists before the lock goes: no other claim can find it. One
		// that has just ended is left to guard.
		select {
		case <-e.machine.Done():
			continue
		default:
			e.State = stateOffered
			return found, e, nil
		}
	}
	return found, nil, nil
}

// putBack makes a machine hot again that could not be offered for want of room on
// disk, as it would be with any other. Nobody has heard of it. Should the daemon
// end now, its record may say that it is on offer, and its time runs out.
func (p *Pool) putBack(s *stock, e *entry) {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := !p.draining && p.templates[e.Template] == s && s.Shape().Key() == e.Shape
	select {
	case <-e.machine.Done():
		// Guard has left it to the claim.
		wanted = false
	default:
	}
	if !wanted {
		e.State = stateDoomed
		p.work.Go(func() { _ = p.discard(p.ctx, e) })
		return
	}
	e.State = stateHot
	s.hot = append(s.hot, e)
}

// claimNew makes a machine for a claim that found the hot tier empty, when it is
// its turn. More at once than are made at the same time would not be made sooner,
// and would have to be promised memory all at once.
func (p *Pool) claimNew(ctx context.Context, s *stock, w Want) (*Offer, error) {
	select {
	case p.claiming <- struct{}{}:
		defer func() { <-p.claiming }()
	case <-p.ctx.Done():
		return nil, fmt.Errorf("claim: the pool ends: %w", errdefs.ErrUnavailable)
	case <-ctx.Done():
		return nil, fmt.Errorf("claim: wait for others that are being made: %w", context.Cause(ctx))
	}
	p.mu.Lock()
	t, cp := s.Template, s.usable()
	p.mu.Unlock()
	if cp != nil {
		offer, err := p.claimFrom(ctx, s, t, cp, w)
		if err == nil || ctx.Err() != nil || errdefs.IsResourceExhausted(err) {
			return offer, err
		}
		log.G(ctx).WithError(err).WithField("template", t.Name).Warn("the checkpoint did not give a machine")
	}
	if w.Boot {
		return p.claimFrom(ctx, s, t, nil, w)
	}
	p.mu.Lock()
	s.counts.missed++
	p.mu.Unlock()
	return nil, fmt.Errorf("claim: template %s has no machine ready: %w", t.Name, errdefs.ErrUnavailable)
}

func (p *Pool) claimFrom(ctx context.Context, s *stock, t Template, cp *checkpoint, w Want) (*Offer, error) {
	p.mu.Lock()
	err := p.admission.take(t.memory())
	if err == nil {
		cp.use()
	}
	p.mu.Unlock()
	if short := new(shortage); errors.As(err, &short) {
		return nil, fmt.Errorf("claim: %w: %w", err, errdefs.ErrResourceExhausted)
	}
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	// It is given up when the pool closes as well.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.ctx, cancel)()

	e, err := p.create(ctx, t, cp, "", noRehearsal)
	p.mu.Lock()
	p.admission.done(t.memory())
	cp.unuse()
	if err != nil {
		s.counts.failed++
		p.blame(s, cp, err)
	} else {
		e.State = stateOffered
	}
	p.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("claim: %w", err)
	}
	offer, err := p.offer(e, w.Claimant)
	if err != nil {
		p.doom(ctx, e)
		return nil, fmt.Errorf("claim: %w", err)
	}
	p.countClaim(s, e.Tier)
	return offer, nil
}

func (p *Pool) countClaim(s *stock, tier poolv1.Tier) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.counts.claim(tier)
}

// offer records to whom an entry that nobody else can take any more is offered,
// and then watches over the offer.
func (p *Pool) offer(e *entry, to proc.ID) (*Offer, error) {
	r := e.record
	r.State, r.Claimant, r.Offered = stateOffered, to, time.Now()
	if r.Ready.IsZero() {
		r.Ready = r.Offered
	}
	if r.Machine == nil {
		if err := setMachine(&r, e.machine); err != nil {
			return nil, err
		}
	}
	if err := e.save(r); err != nil {
		return nil, err
	}
	p.step("claim: offered")
	tier := r.Tier
	if e.parked {
		tier = poolv1.Tier_TIER_HOT
	}
	p.mu.Lock()
	e.record = r
	p.mu.Unlock()
	p.work.Go(func() { p.watchOffer(e, p.opts.ClaimTimeout) })
	return &Offer{
		Entry: r.ID, Template: r.Template, Tier: tier, Machine: *r.Machine,
		Parked: e.parked, Age: r.Offered.Sub(r.Ready),
	}, nil
}

// watchOffer takes an offer back when its claimant has died, or has not
// confirmed in time.
func (p *Pool) watchOffer(e *entry, limit time.Duration) {
	p.mu.Lock()
	claimant := e.Claimant
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	died := make(chan error, 1)
	go func() { died <- claimant.Wait(ctx) }()
	reason := "has died"
	select {
	case <-e.settled:
		return
	case err := <-died:
		if p.ctx.Err() != nil {
			return
		}
		if err != nil {
			reason = "has not confirmed in time"
		}
	}
	if p.settle(e, claimant, stateDoomed) != nil {
		return
	}
	log.G(p.ctx).WithFields(log.Fields{"entry": e.ID, "claimant": claimant.String()}).Warnf("the claimant %s: its machine is destroyed", reason)
	_ = p.discard(p.ctx, e)
}

// settle ends an offer, one way or the other, once.
func (p *Pool) settle(e *entry, claimant proc.ID, to state) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.State != stateOffered || e.Claimant != claimant {
		return fmt.Errorf("entry %s is not offered to process %s: %w", e.ID, claimant, errdefs.ErrNotFound)
	}
	select {
	case <-e.settled:
		return fmt.Errorf("entry %s is not on offer any more: %w", e.ID, errdefs.ErrNotFound)
	default:
	}
	close(e.settled)
	e.State = to
	return nil
}

// doom has an entry destroyed that could not be offered.
func (p *Pool) doom(ctx context.Context, e *entry) {
	p.mu.Lock()
	e.State = stateDoomed
	p.mu.Unlock()
	_ = p.discard(ctx, e)
}

// Confirm makes the machine of an offer the claimant's: it has adopted it, and
// the pool lets go. errdefs.ErrNotFound if it is not offered to this claimant
// any more. After any error the claimant has to destroy what it has adopted.
func (p *Pool) Confirm(ctx context.Context, id string, claimant proc.ID) error {
	e, err := p.entry(id)
	if err == nil {
		err = p.settle(e, claimant, stateGiven)
	}
	if err != nil {
		return fmt.Errorf("confirm: %w", err)
	}
	p.step("confirm: settled")
	r := e.record
	if err := e.save(r); err != nil {
		// On disk it is still on offer. The claimant hears of it and gives up.
		p.doom(ctx, e)
		return fmt.Errorf("confirm: %w", err)
	}
	p.step("confirm: given")
	if err := p.letGo(e); err != nil {
		log.G(ctx).WithError(err).WithField("entry", id).Warn("receipts of a machine that was given away are still there")
	}
	p.step("confirm: receipts")
	p.work.Go(func() { p.watchGiven(e) })
	return nil
}

// letGo strikes out what the pool has of a machine that is another's.
func (p *Pool) letGo(e *entry) error {
	if e.machine != nil {
		if err := e.machine.(hypervisor.Transferable).Disown(); err != nil {
			return err
		}
	}
	e.machine = nil
	return removeFile(e.bookPath(e.Book))
}

// watchGiven keeps the entry's directory, which the machine's sockets are in,
// and the checkpoint that it was made from until the machine's end.
func (p *Pool) watchGiven(e *entry) {
	if err := e.Machine.Process.Wait(p.ctx); err != nil || p.ctx.Err() != nil {
		return
	}
	if err := e.remove(); err != nil {
		log.G(p.ctx).WithError(err).WithField("entry", e.ID).Warn("what is left of a machine could not be removed")
		return
	}
	p.mu.Lock()
	delete(p.entries, e.ID)
	p.mu.Unlock()
	p.poke()
}

// Abandon gives up what was offered to the claimant: it is destroyed.
func (p *Pool) Abandon(ctx context.Context, id string, claimant proc.ID) error {
	e, err := p.entry(id)
	if err == nil {
		err = p.settle(e, claimant, stateDoomed)
	}
	if err != nil {
		return fmt.Errorf("abandon: %w", err)
	}
	return p.discard(ctx, e)
}

func (p *Pool) entry(id string) (*entry, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.entries[id]
	if e == nil {
		return nil, fmt.Errorf("entry %q: %w", id, errdefs.ErrNotFound)
	}
	return e, nil
}
