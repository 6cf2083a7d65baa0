package pool

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

// keep looks after the tiers until the pool closes.
func (p *Pool) keep() {
	tick := time.NewTicker(tendInterval)
	defer tick.Stop()
	for {
		p.tend(time.Now())
		select {
		case <-p.wake:
		case <-tick.C:
		case <-p.ctx.Done():
			return
		}
	}
}

// tend starts what is due, and waits for none of it.
func (p *Pool) tend(now time.Time) {
	if err := p.removeCheckpoints(); err != nil {
		log.G(p.ctx).WithError(err).Warn("a checkpoint that is not needed any more could not be removed")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || p.draining {
		return
	}
	stocks := p.byNeed()
	for _, e := range p.surplus(stocks, now) {
		p.work.Go(func() { _ = p.discard(p.ctx, e) })
	}
	for _, s := range stocks {
		if s.wantsCheckpoint(now) && p.startSaving(s) != nil {
			return
		}
		if s.awaitsCheckpoint() {
			continue
		}
		for range s.wanted(now) {
			if p.startMaking(s) != nil {
				return
			}
		}
	}
}

// byNeed lists the templates, those with the fewest machines first, so that one
// which is claimed a lot does not keep another from its first. The caller holds
// mu.
func (p *Pool) byNeed() []*stock {
	var list []*stock
	for _, s := range p.templates {
		list = append(list, s)
	}
	slices.SortFunc(list, func(a, b *stock) int {
		return cmp.Or(cmp.Compare(len(a.hot)+a.making, len(b.hot)+b.making), cmp.Compare(a.Name, b.Name))
	})
	return list
}

// surplus takes out of the hot tier what is to go: what is idle, and while the
// host is short of memory one machine at a time, above the low watermarks first.
// The caller holds mu.
func (p *Pool) surplus(stocks []*stock, now time.Time) (gone []*entry) {
	take := func(s *stock, n int, why string) {
		taken := p.takeHot(s, n)
		s.counts.evicted += uint64(len(taken))
		if len(taken) > 0 {
			log.G(p.ctx).WithFields(log.Fields{"template": s.Name, "machines": len(taken)}).Infof("evicting: %s", why)
		}
		gone = append(gone, taken...)
	}
	for _, s := range stocks {
		take(s, s.idle(now), "idle")
	}
	if len(gone) > 0 || !p.admission.pressed() {
		return gone
	}
	slices.Reverse(stocks)
	defer slices.Reverse(stocks)
	for _, keep := range []func(*stock) int{func(s *stock) int { return s.Low }, func(*stock) int { return 0 }} {
		for _, s := range stocks {
			if len(s.hot) > keep(s) {
				take(s, 1, "the host is short of memory")
				return gone
			}
		}
	}
	return nil
}

// admit counts a machine as being made, if there is room for it. The caller
// holds mu, and counts it under making.
func (p *Pool) admit(t Template) error {
	if p.making >= p.opts.Concurrency {
		return fmt.Errorf("%d machines are being made: %w", p.making, errdefs.ErrUnavailable)
	}
	return p.admission.take(t.memory())
}

func (p *Pool) startSaving(s *stock) error {
	if err := p.admit(s.Template); err != nil {
		return err
	}
	s.saving = true
	p.making++
	t := s.Template
	p.work.Go(func() { _ = p.saveCold(p.ctx, s, t) })
	return nil
}

func (p *Pool) startMaking(s *stock) error {
	if err := p.admit(s.Template); err != nil {
		return err
	}
	s.making++
	p.making++
	t, c := s.Template, s.usable()
	c.use()
	p.work.Go(func() {
		p.makeHot(s, t, c)
		p.mu.Lock()
		c.unuse()
		p.mu.Unlock()
	})
	return nil
}

// mayMake returns why nothing is made of a template. The caller holds mu.
func (p *Pool) mayMake(s *stock, name string) error {
	switch {
	case p.closed || p.draining:
		return fmt.Errorf("the pool is being emptied: %w", errdefs.ErrFailedPrecondition)
	case s == nil:
		return errNoTemplate(name)
	}
	return nil
}

// Progress is one machine of a Warm.
type Progress struct {
	Done, Total int
}

// Warm has machines made until hot of them wait, whatever the watermarks say,
// and returns then. tell hears of each. The first machine that does not come up
// ends it.
func (p *Pool) Warm(ctx context.Context, name string, hot int, tell func(Progress) error) error {
	if hot < 0 || hot > maxHot {
		return fmt.Errorf("warm %s: %d machines: want 0 to %d: %w", name, hot, maxHot, errdefs.ErrInvalidArgument)
	}
	p.mu.Lock()
	s := p.templates[name]
	if err := p.mayMake(s, name); err != nil {
		p.mu.Unlock()
		return err
	}
	s.warm = max(s.warm, hot)
	s.lastClaim = time.Now()
	s.retry, s.resave = backoff{}, backoff{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		s.warm = 0
		p.mu.Unlock()
	}()
	told := -1
	for {
		p.poke()
		p.mu.Lock()
		have, changed, err := len(s.hot), p.changed, p.mayMake(p.templates[name], name)
		if err == nil && s.retry.err != nil {
			err = fmt.Errorf("warm %s: %w", name, s.retry.err)
		}
		p.mu.Unlock()
		if have != told {
			told = have
			if terr := tell(Progress{Done: min(have, hot), Total: hot}); terr != nil {
				return terr
			}
		}
		if have >= hot {
			return nil
		}
		if err != nil {
			return err
		}
		// Claims take as the pool makes; and memory may never be there.
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("warm %s: %d of %d: %w", name, have, hot, context.Cause(ctx))
		case <-p.ctx.Done():
			return fmt.Errorf("warm %s: the pool is closed: %w", name, errdefs.ErrUnavailable)
		}
	}
}

// Evict destroys the n longest parked machines of a template, or of all of them
// if name is empty; n zero is all. With cold the checkpoint goes as well. What
// the template wants kept is then made anew.
func (p *Pool) Evict(ctx context.Context, name string, n int, cold bool) (hot, checkpoints int, err error) {
	p.mu.Lock()
	if name != "" && p.templates[name] == nil {
		p.mu.Unlock()
		return 0, 0, errNoTemplate(name)
	}
	var gone []*entry
	for _, s := range p.byNeed() {
		if name != "" && s.Name != name {
			continue
		}
		count := len(s.hot)
		if n > 0 {
			count = min(n, count)
		}
		taken := p.takeHot(s, count)
		s.counts.evicted += uint64(len(taken))
		gone = append(gone, taken...)
		if cold && s.cold != nil {
			s.cold = nil
			checkpoints++
		}
	}
	p.mu.Unlock()
	p.step("evict: taken")
	if err := p.releaseAll(ctx, gone); err != nil {
		return len(gone), checkpoints, err
	}
	return len(gone), checkpoints, p.removeCheckpoints()
}

// Drain has the pool make and offer nothing more until Resume, and destroys what
// waits. Checkpoints stay.
func (p *Pool) Drain(ctx context.Context) (int, error) {
	p.mu.Lock()
	p.draining = true
	p.announce()
	p.mu.Unlock()
	hot, _, err := p.Evict(ctx, "", 0, false)
	return hot, err
}

// Resume ends a Drain.
func (p *Pool) Resume() {
	p.mu.Lock()
	p.draining = false
	p.mu.Unlock()
	p.poke()
}

// tierOf is the tier of a machine that has just been made.
func tierOf(c *checkpoint) poolv1.Tier {
	if c == nil {
		return poolv1.Tier_TIER_BOOT
	}
	return poolv1.Tier_TIER_COLD
}
