package sandbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

const (
	// eventBacklog is how many events may wait for containerd before those who
	// make more have to wait as well. None is dropped.
	eventBacklog = 1024
	// publishTimeout bounds the handing over of one event. The publisher
	// retries by itself what it could not deliver.
	publishTimeout = 5 * time.Second
	// agentLossGrace is how long the machine may outlive its event stream. A
	// crashed agent takes its kernel with it within that time; a machine that
	// lives on has lost its agent and is ended.
	agentLossGrace = 2 * time.Second
)

// eventQueue hands events to containerd one by one, in order.
type eventQueue struct {
	queue chan any
	once  sync.Once
	stop  chan struct{}
	done  chan struct{}
	// giveUp ends the publishing, of what is under way as well.
	giveUp context.CancelFunc
}

func newEventQueue(ctx context.Context, publisher events.Publisher) *eventQueue {
	ctx, giveUp := context.WithCancel(ctx)
	q := &eventQueue{queue: make(chan any, eventBacklog), stop: make(chan struct{}), done: make(chan struct{}), giveUp: giveUp}
	publish := func(e any) {
		ctx, cancel := context.WithTimeout(ctx, publishTimeout)
		defer cancel()
		if err := publisher.Publish(ctx, runtime.GetTopic(e), e); err != nil {
			log.G(ctx).WithError(err).WithField("topic", runtime.GetTopic(e)).Error("event was not published")
		}
	}
	go func() {
		defer close(q.done)
		for {
			select {
			case e := <-q.queue:
				publish(e)
			case <-q.stop:
				for {
					select {
					case e := <-q.queue:
						publish(e)
					default:
						return
					}
				}
			}
		}
	}()
	return q
}

func (q *eventQueue) send(e any) {
	select {
	case q.queue <- e:
	case <-q.stop:
	}
}

// close publishes what is queued, for as long as ctx lives.
func (q *eventQueue) close(ctx context.Context) error {
	q.once.Do(func() { close(q.stop) })
	defer q.giveUp()
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("publish the last events: %w", context.Cause(ctx))
	}
}

// watchEvents turns the guest's events into containerd's for the life of the
// machine.
//
// The guest's order is the order: its Task service already holds the exit of
// init back until the exits of all execs are out. What is left to the host is
// to hold each exit until the process's output has been delivered, without
// changing that order within a container.
func (s *Sandbox) watchEvents(v *vm) {
	err := s.receiveEvents(v)
	select {
	case <-v.Done():
		return
	case <-time.After(agentLossGrace):
	}
	log.G(s.ctx).WithError(err).WithField("machine", v.ID()).Error("the agent is gone and its machine is not: ending it")
	if err := v.destroy(s.ctx); err != nil {
		log.G(s.ctx).WithError(err).Error("machine could not be destroyed")
	}
}

func (s *Sandbox) receiveEvents(v *vm) error {
	stream, err := v.agent.events.Subscribe(s.ctx, &agentv1.SubscribeRequest{})
	if err != nil {
		return fmt.Errorf("subscribe to the guest's events: %w", err)
	}
	for next := uint64(1); ; next++ {
		env, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("receive from the guest's events: %w", err)
		}
		if env.Sequence != next {
			return fmt.Errorf("the guest's event %d is missing: got %d", next, env.Sequence)
		}
		if env.Event == nil {
			return errors.New("the guest sent an envelope without an event")
		}
		e, err := typeurl.UnmarshalAny(env.Event)
		if err != nil {
			log.G(s.ctx).WithError(err).Warn("the guest sent an event of an unknown type")
			continue
		}
		if err := s.guestEvent(e); err != nil {
			log.G(s.ctx).WithError(err).Warnf("the guest sent a %T out of place", e)
		}
	}
}

// guestEvent publishes the host's version of one event of the guest's. The
// guest's own paths and pids stay in the guest.
func (s *Sandbox) guestEvent(e any) error {
	id, execID := "", ""
	switch e := e.(type) {
	case *apievents.TaskDelete:
		// Published by Container.Delete, once the host's side is gone as well.
		return nil
	case *apievents.TaskExecAdded:
		id, execID = e.ContainerID, e.ExecID
	case *apievents.TaskExecStarted:
		id, execID = e.ContainerID, e.ExecID
	case *apievents.TaskExit:
		id, execID = e.ContainerID, e.ID
		if execID == id {
			execID = ""
		}
	case interface{ GetContainerID() string }:
		id = e.GetContainerID()
	default:
		return errors.New("not a task event")
	}
	c := s.lookup(id)
	if c == nil {
		return fmt.Errorf("container %q is not in this sandbox", id)
	}
	p, err := c.process(execID)
	if err != nil {
		return err
	}

	switch e := e.(type) {
	case *apievents.TaskCreate:
		s.events.send(c.createEvent(s.Pid()))
	case *apievents.TaskStart:
		p.move(task.Status_CREATED, task.Status_RUNNING)
		s.events.send(&apievents.TaskStart{ContainerID: id, Pid: s.Pid()})
	case *apievents.TaskExecAdded:
		s.events.send(&apievents.TaskExecAdded{ContainerID: id, ExecID: execID})
	case *apievents.TaskExecStarted:
		p.move(task.Status_CREATED, task.Status_RUNNING)
		s.events.send(&apievents.TaskExecStarted{ContainerID: id, ExecID: execID, Pid: s.Pid()})
	case *apievents.TaskExit:
		c.processExited(p, Exit{Status: e.ExitStatus, At: e.ExitedAt.AsTime()})
	case *apievents.TaskOOM:
		s.events.send(&apievents.TaskOOM{ContainerID: id})
	case *apievents.TaskPaused:
		return s.pauseEvent(id, p, task.Status_PAUSED)
	case *apievents.TaskResumed:
		return s.pauseEvent(id, p, task.Status_RUNNING)
	default:
		return errors.New("not an event that a guest may send")
	}
	return nil
}

// lookup also finds a container that is still being created: its first event
// precedes the answer to Create.
func (s *Sandbox) lookup(id string) *Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.containers[id]
}

func exitEvent(containerID, execID string, pid uint32, e Exit) *apievents.TaskExit {
	id := execID
	if id == "" {
		id = containerID
	}
	return &apievents.TaskExit{
		ContainerID: containerID,
		ID:          id,
		Pid:         pid,
		ExitStatus:  e.Status,
		ExitedAt:    timestamppb.New(e.At),
	}
}
