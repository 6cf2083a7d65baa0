package pool

import (
	"slices"
	"time"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
)

// wanted is how many machines are to be on their way into the hot tier beyond
// those that are. The caller holds Pool.mu.
func (s *stock) wanted(now time.Time) int {
	have := len(s.hot) + s.making
	// Between the watermarks nothing is done, so that a claim now and then does
	// not set off a boot each time.
	switch {
	case have < s.Low:
		s.refilling = true
	case have >= s.High:
		s.refilling = false
	}
	want := s.warm
	if s.refilling {
		want = max(want, s.High)
	}
	if have >= want || !s.retry.due(now) {
		return 0
	}
	// While there is trouble, one at a time is enough to see it pass.
	if s.retry.failures > 0 {
		return min(1, max(0, 1-s.making))
	}
	return want - have
}

// wantsCheckpoint says whether one is to be made now. The caller holds Pool.mu.
func (s *stock) wantsCheckpoint(now time.Time) bool {
	return s.Cold && !s.saving && s.usable() == nil && s.resave.due(now)
}

// awaitsCheckpoint says whether hot machines had better wait for the checkpoint
// that they can be made from: a restore takes a fraction of a boot. The caller
// holds Pool.mu.
func (s *stock) awaitsCheckpoint() bool {
	return s.Cold && s.usable() == nil && s.resave.failures == 0
}

// idle is how many parked machines have nobody to wait for. The caller holds
// Pool.mu.
func (s *stock) idle(now time.Time) int {
	if s.IdleTimeout == 0 || s.warm > 0 || now.Sub(s.lastClaim) < s.IdleTimeout {
		return 0
	}
	return max(0, len(s.hot)-s.Low)
}

func (s *stock) drop(e *entry) {
	s.hot = slices.DeleteFunc(s.hot, func(other *entry) bool { return other == e })
}

// refillWindow is what refill rates are averaged over.
const refillWindow = time.Minute

// ready counts a machine that has become hot. The caller holds Pool.mu.
func (s *stock) ready(now time.Time, from poolv1.Tier) {
	if from == poolv1.Tier_TIER_COLD {
		s.counts.madeCold++
	} else {
		s.counts.madeBoot++
	}
	s.readied = append(s.recent(now), now)
}

func (s *stock) recent(now time.Time) []time.Time {
	return slices.DeleteFunc(s.readied, func(t time.Time) bool { return now.Sub(t) > refillWindow })
}

// counts are since the daemon's start.
type counts struct {
	hot, cold, boot, missed             uint64
	madeCold, madeBoot, evicted, failed uint64
}

func (c *counts) claim(tier poolv1.Tier) {
	switch tier {
	case poolv1.Tier_TIER_HOT:
		c.hot++
	case poolv1.Tier_TIER_COLD:
		c.cold++
	default:
		c.boot++
	}
}

// backoff is when something that fails is tried again: after a second, and twice
// as long each time.
type backoff struct {
	failures int
	next     time.Time
	err      error
}

const (
	firstRetry = time.Second
	lastRetry  = 2 * time.Minute
)

func (b *backoff) due(now time.Time) bool { return !now.Before(b.next) }

func (b *backoff) failed(now time.Time, err error) {
	wait := lastRetry
	if b.failures < 7 {
		wait = min(lastRetry, firstRetry<<b.failures)
	}
	b.failures++
	b.next, b.err = now.Add(wait), err
}

func tierName(t poolv1.Tier) string {
	switch t {
	case poolv1.Tier_TIER_HOT:
		return "hot"
	case poolv1.Tier_TIER_COLD:
		return "cold"
	case poolv1.Tier_TIER_BOOT:
		return "boot"
	}
	return "none"
}
