package thaw

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// MaxClockError is how far the guest's wall clock may be from the host's.
const MaxClockError = 10 * time.Millisecond

// maxCorrections bounds the exchanges by which the clock is set right.
const maxCorrections = 8

// Clock is what is known of a guest's wall clock.
type Clock struct {
	// Error is how far it is ahead of the host's, give or take Bound: the way of
	// a message takes unknown time each way.
	Error, Bound time.Duration
	// Corrections counts the exchanges that it took to get it right.
	Corrections int
}

// IsRight says whether it is certain to be within MaxClockError of the host's.
func (c Clock) IsRight() bool { return c.Error.Abs()+c.Bound <= MaxClockError }

// IsWrong says whether it is certain not to be.
func (c Clock) IsWrong() bool { return c.Error.Abs()-c.Bound > MaxClockError }

func (c Clock) isUncertain() bool { return !c.IsRight() }

// ReadClock measures the guest's clock, and leaves it as it is.
func ReadClock(ctx context.Context, agent agentv1.ThawService) (Clock, error) {
	e, err := measure(ctx, agent, time.Now(), 0)
	if err != nil {
		return Clock{}, fmt.Errorf("read the guest's clock: %w", err)
	}
	return e.clock(), nil
}

// SetClock is for a machine that has a workload, which sees each step of its
// clock: one that may be right is left as it is.
func SetClock(ctx context.Context, agent agentv1.ThawService) (Clock, error) {
	now := time.Now()
	e, err := measure(ctx, agent, now, 0)
	if err != nil {
		return Clock{}, fmt.Errorf("read the guest's clock: %w", err)
	}
	c, err := correct(ctx, agent, now, e, Clock.IsWrong)
	if err != nil {
		return c, fmt.Errorf("set the guest's clock: %w", err)
	}
	return c, nil
}

// correct takes from the guest's clock the error e that it is known to have, and
// measures what is left, as long as another is worth it. base is a reading of the
// host's clock.
func correct(ctx context.Context, agent agentv1.ThawService, base time.Time, e interval, another func(Clock) bool) (Clock, error) {
	c := e.clock()
	for n := 1; n <= maxCorrections && another(c); n++ {
		measured, err := measure(ctx, agent, base, -c.Error)
		if err != nil {
			return c, err
		}
		e = measured.within(interval{e.from - c.Error, e.to - c.Error})
		c = e.clock()
		c.Corrections = n
	}
	return c, nil
}

// measure steps the guest's clock and says where its error is then.
func measure(ctx context.Context, agent agentv1.ThawService, base time.Time, step time.Duration) (interval, error) {
	sent := time.Since(base)
	resp, err := agent.Clock(ctx, &agentv1.ClockRequest{Step: durationpb.New(step)})
	if err != nil {
		return interval{}, err
	}
	received := time.Since(base)
	guest := resp.Clock.AsTime().Sub(base)
	// It was read at some time between sent and received.
	return interval{guest - received, guest - sent}, nil
}

// interval is where an error is certain to be.
type interval struct{ from, to time.Duration }

// clock has the middle of the interval for the error.
func (i interval) clock() Clock {
	bound := (i.to - i.from) / 2
	return Clock{Error: i.from + bound, Bound: bound}
}

// within is what both have in common. Where that is nothing, as of a clock that
// somebody else has set meanwhile, the later one counts.
func (i interval) within(before interval) interval {
	both := interval{max(i.from, before.from), min(i.to, before.to)}
	if both.from > both.to {
		return i
	}
	return both
}
