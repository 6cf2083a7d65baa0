package sandbox

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// A shim that is told to go while its machine boots must not leave it behind:
// by a signal, or by a containerd whose client has gone and which asks for the
// shutdown once.
func TestTheEndDuringABoot(t *testing.T) {
	for name, end := range map[string]func(*bed, context.Context) error{
		"Close": func(b *bed, ctx context.Context) error { return b.Close(ctx) },
		"Shutdown": func(b *bed, ctx context.Context) error {
			done, err := b.Shutdown(ctx)
			if !done {
				b.t.Error("refused for the sake of a container that is not there")
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) { testTheEndDuringABoot(t, end) })
	}
}

func testTheEndDuringABoot(t *testing.T, end func(*bed, context.Context) error) {
	for name, launch := range map[string]func(context.Context) error{
		"that can be stopped": silence,
		"that comes up all the same": func(ctx context.Context) error {
			<-ctx.Done()
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.backend.launch = launch
			r := b.request("c1")
			created := make(chan error, 1)
			go func() { _, err := b.Create(b.within(), r); created <- err }()
			b.eventually("booting", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return b.state == stateCreating })
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
			defer cancel()
			must(t, end(b, ctx))
			if err := <-created; err == nil {
				t.Error("created in a sandbox that is closed")
			}
			for _, m := range b.backend.launched() {
				if !m.wasDestroyed() {
					t.Error("the machine lives on")
				}
			}
			noReceipts(t, r.Bundle)
			if _, err := b.Create(b.within(), b.request("c2")); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("create after close: %v", err)
			}
		})
	}
}

func TestCloseWithARunningContainer(t *testing.T) {
	b := newBed(t)
	r := b.request("c1")
	c := b.create(r)
	must(t, c.Start(b.within(), ""))
	waited := b.wait(c, "")
	must(t, b.Close(b.within()))
	b.wantExit(waited, exitStatusKilled)
	if !b.events.has("exit c1 137") {
		t.Errorf("closed before the exit was published: %q", b.events.names())
	}
	if !b.machineNow().wasDestroyed() {
		t.Error("the machine lives on")
	}
	noReceipts(t, r.Bundle)
}

// containerd may be gone as well: the end of the shim does not wait for it.
func TestCloseWithoutContainerd(t *testing.T) {
	b := newBed(t)
	defer b.events.hold()()
	b.running("c1")
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	began := time.Now()
	if err := b.Close(ctx); !errdefs.IsDeadlineExceeded(err) {
		t.Errorf("got %v: events were lost in silence", err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("took %v, had 2s", took)
	}
}
