package sandbox

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

const (
	// eventBacklog is how many events may wait for containerd before a guest may
	// make no more: some ten megabytes of them. While containerd is away, nobody
	// starts anything, so what runs out first is processes that can exit.
	eventBacklog = 1 << 16
	// publishTimeout bounds one try to hand over an event.
	publishTimeout = 5 * time.Second
	// publishPauseMin and publishPauseMax are the shortest and the longest pause
	// between two tries.
	publishPauseMin = 50 * time.Millisecond
	publishPauseMax = 2 * time.Second
)

// eventQueue hands events to containerd one by one, in order. One that
// containerd does not take, because it is being restarted, is tried again until
// it does: the others wait behind it.
type eventQueue struct {
	mu      sync.Mutex
	waiting []any
	closed  bool

	more chan struct{} // has room for one: there is something new to see
	done chan struct{}
	// giveUp ends the publishing, of what is under way as well.
	giveUp context.CancelFunc
	// limit is eventBacklog, but for tests.
	limit int
}

func newEventQueue(ctx context.Context, publisher events.Publisher) *eventQueue {
	ctx, giveUp := context.WithCancel(ctx)
	q := &eventQueue{more: make(chan struct{}, 1), done: make(chan struct{}), giveUp: giveUp, limit: eventBacklog}
	go func() {
		defer close(q.done)
		for {
			e, closed := q.next()
			switch {
			case e != nil:
				if err := publishUntilTaken(ctx, publisher, e); err != nil {
					log.G(ctx).WithError(err).Errorf("%d events were not published", q.backlog()+1)
					return
				}
				continue
			case closed:
				return
			}
			select {
			case <-q.more:
			case <-ctx.Done():
				return
			}
		}
	}()
	return q
}

// publishUntilTaken tries until containerd has the event; its error is the end
// of ctx. An event that containerd refuses as such is no better the next time,
// and is left out.
func publishUntilTaken(ctx context.Context, publisher events.Publisher, e any) error {
	l := log.G(ctx).WithField("topic", runtime.GetTopic(e))
	for pause := publishPauseMin; ; pause = min(2*pause, publishPauseMax) {
		err := publish(ctx, publisher, e)
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return err
		case errdefs.IsInvalidArgument(err), errdefs.IsNotImplemented(err):
			l.WithError(err).Error("containerd refuses an event")
			return nil
		case pause == publishPauseMin:
			l.WithError(err).Warn("containerd does not take an event; it and those after it wait")
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func publish(ctx context.Context, publisher events.Publisher, e any) error {
	ctx, cancel := context.WithTimeout(ctx, publishTimeout)
	defer cancel()
	return publisher.Publish(ctx, runtime.GetTopic(e), e)
}

// send queues an event. It never waits. After close it does nothing.
func (q *eventQueue) send(e any) {
	q.mu.Lock()
	if !q.closed {
		q.waiting = append(q.waiting, e)
	}
	q.mu.Unlock()
	q.wake()
}

func (q *eventQueue) wake() {
	select {
	case q.more <- struct{}{}:
	default:
	}
}

// next takes the first event off the queue, nil if there is none; with closed,
// there will be none.
func (q *eventQueue) next() (e any, closed bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.waiting = nil
		return nil, q.closed
	}
	e, q.waiting[0] = q.waiting[0], nil
	q.waiting = q.waiting[1:]
	return e, false
}

// backlog is how many events nobody has begun to publish.
func (q *eventQueue) backlog() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// close publishes what is queued, for as long as ctx lives.
func (q *eventQueue) close(ctx context.Context) error {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.wake()
	defer q.giveUp()
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("publish the last events: %w", context.Cause(ctx))
	}
}
