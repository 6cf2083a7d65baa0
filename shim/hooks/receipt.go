package hooks

import (
	"context"
	"fmt"

	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

func init() {
	receipt.Register((*Debt)(nil).Kind(), func() receipt.Resource { return new(Debt) })
}

// Debt is a container's poststop hooks, which are due once any of its hooks
// has begun: they take back what those have set up. As a receipt it is paid by
// whoever removes the container, a `delete` after a killed shim included.
//
// Receipts are undone newest first and poststop hooks come last. So an empty
// Debt, which does nothing, is written before all other receipts, and amended
// when the first hook is about to run.
type Debt struct {
	Hooks []specs.Hook `json:"hooks,omitempty"`
	State specs.State  `json:"state"`
}

// Kind implements receipt.Resource.
func (*Debt) Kind() string { return "poststop-hooks" }

// Undo implements receipt.Resource. A hook that fails is logged, and counts as
// one that succeeded, as the specification has it (runtime.md, lifecycle step
// 13). When ctx ends first, the debt stays; whoever pays it then begins anew.
func (d *Debt) Undo(ctx context.Context) error {
	for i := range d.Hooks {
		err := Run(ctx, nil, Poststop, d.Hooks[i:i+1], d.State)
		if ctx.Err() != nil {
			return fmt.Errorf("poststop hooks of %s: %w", d.State.ID, context.Cause(ctx))
		}
		if err != nil {
			log.G(ctx).WithError(err).WithField("container", d.State.ID).Warn("hook failed")
		}
	}
	return nil
}
