//go:build linux

package agent

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

func publish(t *testing.T, l *eventLog, n int) {
	t.Helper()
	for i := range n {
		if err := l.Publish(t.Context(), "/tasks/start", &eventstypes.TaskStart{ContainerID: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
}

// subscription is a running subscribe.
type subscription struct {
	got chan uint64
	end chan error
}

func follow(t *testing.T, l *eventLog, after uint64) *subscription {
	t.Helper()
	s := &subscription{got: make(chan uint64, 100), end: make(chan error, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		s.end <- l.subscribe(ctx, after, func(e *agentv1.Envelope) error {
			s.got <- e.Sequence
			return nil
		})
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return s
}

func (s *subscription) expect(t *testing.T, first, last uint64) {
	t.Helper()
	for want := first; want <= last; want++ {
		select {
		case got := <-s.got:
			if got != want {
				t.Fatalf("event %d came, want %d", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("event %d did not come", want)
		}
	}
}

func (s *subscription) expectEnd(t *testing.T) error {
	t.Helper()
	select {
	case err := <-s.end:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the subscription did not end")
		return nil
	}
}

func TestEventsBeforeAndAfterSubscribe(t *testing.T) {
	l := newEventLog()
	publish(t, l, 3)
	s := follow(t, l, 0)
	s.expect(t, 1, 3)
	publish(t, l, 2)
	s.expect(t, 4, 5)
}

func TestEventsResume(t *testing.T) {
	l := newEventLog()
	publish(t, l, 5)
	first := follow(t, l, 0)
	first.expect(t, 1, 5)

	// The second one has seen three only, and takes the first one's place.
	second := follow(t, l, 3)
	second.expect(t, 4, 5)
	if err := first.expectEnd(t); !errdefs.IsAborted(err) {
		t.Errorf("the first subscriber ended with %v; want Aborted", err)
	}
	publish(t, l, 1)
	second.expect(t, 6, 6)

	// What was acknowledged is gone.
	if err := follow(t, l, 0).expectEnd(t); !errdefs.IsDataLoss(err) {
		t.Errorf("subscribe after 0: %v; want DataLoss", err)
	}
}

func TestEventsOverflow(t *testing.T) {
	l := newEventLog()
	l.keep = 10
	publish(t, l, 15)
	if err := follow(t, l, 4).expectEnd(t); !errdefs.IsDataLoss(err) {
		t.Errorf("subscribe after an event that is gone: %v; want DataLoss", err)
	}
	follow(t, l, 5).expect(t, 6, 15)
	if len(l.kept) != 10 {
		t.Errorf("%d events are kept, want 10", len(l.kept))
	}
}

func TestEventsFromTheFuture(t *testing.T) {
	l := newEventLog()
	publish(t, l, 1)
	if err := follow(t, l, 2).expectEnd(t); !errdefs.IsOutOfRange(err) {
		t.Errorf("subscribe after an event that never was: %v; want OutOfRange", err)
	}
}

func TestEventsClose(t *testing.T) {
	l := newEventLog()
	s := follow(t, l, 0)
	publish(t, l, 2)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	s.expect(t, 1, 2)
	if err := s.expectEnd(t); err != nil {
		t.Errorf("after close, the subscription ended with %v", err)
	}
	if err := l.wait(t.Context()); err != nil {
		t.Error(err)
	}
	if err := l.Publish(t.Context(), "/tasks/start", &eventstypes.TaskStart{}); !errdefs.IsUnavailable(err) {
		t.Errorf("publish after close: %v; want Unavailable", err)
	}
}

func TestEventsNamespace(t *testing.T) {
	l := newEventLog()
	if err := l.bindNamespace("k8s.io"); err != nil {
		t.Fatal(err)
	}
	if err := l.bindNamespace("default"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a second namespace: %v; want FailedPrecondition", err)
	}
	publish(t, l, 1)
	if got := l.kept[0].Namespace; got != "k8s.io" {
		t.Errorf("namespace %q, want k8s.io", got)
	}
}
