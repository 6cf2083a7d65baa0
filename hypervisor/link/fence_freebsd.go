package link

import (
	"bytes"
	"context"
	"fmt"

	"github.com/containerd/errdefs"
)

// CheckFence returns nil if pf(4) runs and fences the links' group, and else
// errdefs.ErrFailedPrecondition with what to do.
func CheckFence(ctx context.Context) error {
	const pfctl = "/sbin/pfctl"
	status, err := run(ctx, pfctl, "-s", "info")
	if err != nil {
		return fmt.Errorf("is pf loaded (pf_load in loader.conf, or kldload pf)? %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	if !bytes.HasPrefix(status, []byte("Status: Enabled")) {
		return fmt.Errorf("pf is not enabled (pf_enable in rc.conf, or pfctl -e): %w", errdefs.ErrFailedPrecondition)
	}
	rules, err := run(ctx, pfctl, "-s", "rules")
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return checkRules(rules)
}
