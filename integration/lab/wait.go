package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// pollInterval is how often Eventually asks again.
const pollInterval = 20 * time.Millisecond

// Eventually calls condition until it returns nil, and returns its last error
// if ctx ends first. It is for conditions that the kernel announces to no one;
// what can be waited for is waited for.
func Eventually(ctx context.Context, condition func() error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := condition()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w, and still: %w", context.Cause(ctx), err)
		}
	}
}

var errNotYet = errors.New("not yet")

// Until is Eventually for a condition that has nothing to say.
func Until(ctx context.Context, condition func() bool) error {
	return Eventually(ctx, func() error {
		if condition() {
			return nil
		}
		return errNotYet
	})
}
