package stdio

import (
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/bell"
)

// Hold keeps further input from the process until Release, and returns how much
// of it has been sent on its connection. It waits for what is being sent: the
// error is that of ctx if the guest does not take it.
func (o *IO) Hold(ctx context.Context) (sent int64, err error) {
	if o.stdin == nil {
		return 0, nil
	}
	if err := o.stdin.gate.take(ctx); err != nil {
		return 0, fmt.Errorf("stdin: the guest does not take what has been sent: %w", err)
	}
	return o.stdin.sent.count(), nil
}

// Release undoes a Hold that succeeded.
func (o *IO) Release() {
	if o.stdin != nil {
		o.stdin.gate.give()
	}
}

// AwaitOutput waits until as much of an output as the guest says that it has sent
// on its connection was handed to the client, or until there will be no more. The
// name is "stdout" or "stderr". The error is that of ctx.
func (o *IO) AwaitOutput(ctx context.Context, name string, sent int64) error {
	for _, out := range o.outputs {
		if out.name != name {
			continue
		}
		if err := out.delivered.await(ctx, sent); err != nil {
			return fmt.Errorf("%s: the client does not take what the process has written: %w", name, err)
		}
	}
	return nil
}

// Names are those of the streams that there are.
func (o *IO) Names() []string {
	var names []string
	if o.stdin != nil {
		names = append(names, "stdin")
	}
	for _, out := range o.outputs {
		names = append(names, out.name)
	}
	return names
}

// progress is how far a stream has come, in bytes, for those who wait for it.
type progress struct {
	mu      sync.Mutex
	n       int64
	ended   bool
	further bell.Bell
}

func (p *progress) add(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n += int64(n)
	p.further.Ring()
}

func (p *progress) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	p.further.Ring()
}

func (p *progress) count() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.n
}

func (p *progress) await(ctx context.Context, n int64) error {
	for {
		p.mu.Lock()
		done, further := p.ended || p.n >= n, p.further.Next()
		p.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-further:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tracked is a writer whose progress can be waited for.
type tracked struct {
	progress *progress
	w        io.Writer
}

func (t tracked) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.progress.add(n)
	return n, err
}

// gate is held by who writes, or by who wants nobody to.
type gate chan struct{}

func newGate() gate { return make(gate, 1) }

func (g gate) take(ctx context.Context) error {
	select {
	case g <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (g gate) give() { <-g }

// gated is a writer behind a gate.
type gated struct {
	gate gate
	w    io.Writer
}

func (w gated) Write(p []byte) (int, error) {
	w.gate <- struct{}{}
	defer w.gate.give()
	return w.w.Write(p)
}
