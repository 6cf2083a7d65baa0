package sandbox

import (
	"context"
	"sync"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/bell"
)

// gate keeps requests to the agent and the saving of its machine apart: what is
// under way in the guest would be under way in every copy of it. The zero value
// is open.
type gate struct {
	mu      sync.Mutex
	inside  int
	shut    bool
	changed bell.Bell
}

// enter waits while the gate is shut. Each success is undone by leave.
func (g *gate) enter(ctx context.Context) error {
	return g.await(ctx, func() bool { return !g.shut }, func() { g.inside++ })
}

func (g *gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside--
	g.changed.Ring()
}

// close shuts the gate and waits until nobody is inside. It is undone by open.
func (g *gate) close(ctx context.Context) error {
	if err := g.await(ctx, func() bool { return !g.shut }, func() { g.shut = true }); err != nil {
		return err
	}
	if err := g.await(ctx, func() bool { return g.inside == 0 }, func() {}); err != nil {
		g.open()
		return err
	}
	return nil
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shut = false
	g.changed.Ring()
}

// await does something as soon as a condition holds.
func (g *gate) await(ctx context.Context, holds func() bool, do func()) error {
	for {
		g.mu.Lock()
		if holds() {
			do()
			g.mu.Unlock()
			return nil
		}
		changed := g.changed.Next()
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
