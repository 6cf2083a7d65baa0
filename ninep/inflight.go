package ninep

import (
	"context"
	"fmt"
	"sync"
)

// request is a message that is being served.
type request struct {
	typ  uint8
	tag  uint16
	body []byte
	// done is closed when the reply has been queued.
	done chan struct{}
	// flushed is the request that a Tflush is about, if it was still being
	// served when the Tflush arrived.
	flushed *request
}

// inFlight holds the requests between arrival and reply, and the replies
// between being made and being written. A slot is taken for the whole way, so
// the queue of replies never blocks.
type inFlight struct {
	slots   chan struct{}
	replies chan *reply

	mu   sync.Mutex
	tags map[uint16]*request
}

func newInFlight() inFlight {
	return inFlight{
		slots:   make(chan struct{}, maxInFlight),
		replies: make(chan *reply, maxInFlight),
		tags:    make(map[uint16]*request),
	}
}

func (q *inFlight) acquire(ctx context.Context) error {
	select {
	case q.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (q *inFlight) releaseSlot() { <-q.slots }

func (q *inFlight) count() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.tags)
}

func (q *inFlight) find(tag uint16) *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.tags[tag]
}

// add refuses a tag in use: no client could tell the two replies apart.
func (q *inFlight) add(req *request) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, taken := q.tags[req.tag]; taken {
		return fmt.Errorf("%w: tag %d is in use", errMalformed, req.tag)
	}
	q.tags[req.tag] = req
	return nil
}

// complete queues the reply and frees the tag in one step: the client may use
// it again as soon as it has the reply, and the reply to a Tflush that did not
// find the tag any more must come later in the queue.
func (q *inFlight) complete(req *request, r *reply) {
	q.mu.Lock()
	delete(q.tags, req.tag)
	q.replies <- r
	q.mu.Unlock()
	close(req.done)
}

func (q *inFlight) close() { close(q.replies) }
