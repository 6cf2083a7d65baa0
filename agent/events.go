//go:build linux

package agent

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/bell"
)

// eventsKept bounds the events that are kept: some hundred bytes each, and more
// than a host that takes a second to dial again can miss.
const eventsKept = 4096

// eventLog is the task service's publisher and the Events service: it numbers
// events, and keeps them until the host says that it has them. When there are
// more than fit, the oldest go, and a subscriber that would have needed them
// gets DataLoss rather than a gap.
type eventLog struct {
	keep int

	mu        sync.Mutex
	namespace string
	kept      []*agentv1.Envelope // sequence numbers are consecutive
	next      uint64
	more      bell.Bell // is rung when there is more to see
	closed    bool
	present   int                     // subscribers; the ended one may linger
	endOther  context.CancelCauseFunc // ends the present subscriber
}

func newEventLog() *eventLog {
	return &eventLog{keep: eventsKept, next: 1, endOther: func(error) {}}
}

// bindNamespace sets the containerd namespace of all events. A machine belongs
// to one: FailedPrecondition for another.
func (l *eventLog) bindNamespace(ns string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.namespace == "" {
		l.namespace = ns
	}
	if l.namespace != ns {
		return fmt.Errorf("namespace %q: this machine belongs to %q: %w", ns, l.namespace, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// Publish implements shim.Publisher. It never blocks.
func (l *eventLog) Publish(_ context.Context, topic string, event events.Event) error {
	body, err := typeurl.MarshalAnyToProto(event)
	if err != nil {
		return fmt.Errorf("publish %s: %w", topic, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("publish %s: %w", topic, errdefs.ErrUnavailable)
	}
	l.kept = append(l.kept, &agentv1.Envelope{
		Sequence:    l.next,
		Namespace:   l.namespace,
		Topic:       topic,
		Event:       body,
		PublishedAt: timestamppb.New(time.Now()),
	})
	l.next++
	if excess := len(l.kept) - l.keep; excess > 0 {
		l.drop(excess)
	}
	l.more.Ring()
	return nil
}

// Close implements shim.Publisher: it ends the subscriber, once that has seen
// everything.
func (l *eventLog) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.closed {
		l.closed = true
		l.more.Ring()
	}
	return nil
}

// drop forgets the n oldest events.
func (l *eventLog) drop(n int) {
	clear(l.kept[:n])
	l.kept = l.kept[n:]
}

// Subscribe implements agentv1.EventsService.
func (l *eventLog) Subscribe(ctx context.Context, r *agentv1.SubscribeRequest, srv agentv1.Events_SubscribeServer) error {
	err := l.subscribe(ctx, r.After, srv.Send)
	log.G(ctx).WithError(err).Debug("event subscriber left")
	return errgrpc.ToGRPC(err)
}

func (l *eventLog) subscribe(ctx context.Context, after uint64, send func(*agentv1.Envelope) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	l.mu.Lock()
	l.endOther(fmt.Errorf("another subscriber came: %w", errdefs.ErrAborted))
	l.endOther = cancel
	l.present++
	defer l.leave()
	if after >= l.next {
		last := l.next - 1
		l.mu.Unlock()
		return fmt.Errorf("subscribe after event %d: the last one was %d: %w", after, last, errdefs.ErrOutOfRange)
	}
	if len(l.kept) > 0 && after >= l.kept[0].Sequence {
		l.drop(int(after - l.kept[0].Sequence + 1))
	}
	l.mu.Unlock()

	for {
		batch, more, err := l.since(after)
		if err != nil {
			return err
		}
		for _, e := range batch {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err := send(e); err != nil {
				return fmt.Errorf("send event %d: %w", e.Sequence, err)
			}
			after = e.Sequence
		}
		if more == nil {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (l *eventLog) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.present--
	l.more.Ring()
}

// wait returns once the log is closed and the subscriber has had everything.
func (l *eventLog) wait(ctx context.Context) error {
	for {
		l.mu.Lock()
		done, more := l.closed && l.present == 0, l.more.Next()
		l.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return fmt.Errorf("send the last events: %w", context.Cause(ctx))
		}
	}
}

// since returns the events after the given one, and what tells of the next, nil
// if there will be none.
func (l *eventLog) since(after uint64) (batch []*agentv1.Envelope, more <-chan struct{}, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	first := l.next - uint64(len(l.kept))
	if after+1 < first {
		return nil, nil, fmt.Errorf("events %d to %d are not kept any more: %w", after+1, first-1, errdefs.ErrDataLoss)
	}
	batch = append(batch, l.kept[after+1-first:]...)
	if !l.closed {
		more = l.more.Next()
	}
	return batch, more, nil
}
