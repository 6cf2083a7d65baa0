package sandbox

import (
	"errors"
	"fmt"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/time/rate"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// agentLossGrace is how long the machine may outlive its event stream. A
// crashed agent takes its kernel with it within that time; a machine that
// lives on has lost its agent and is ended.
const agentLossGrace = 2 * time.Second

// complaintsAtOnce is how many lines the log has of events that mean nothing,
// before it has one a minute.
const complaintsAtOnce = 10

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
	stream, err := v.agent.events.Subscribe(s.ctx, &agentv1.SubscribeRequest{After: v.events.Load()})
	if err != nil {
		return fmt.Errorf("subscribe to the guest's events: %w", err)
	}
	// A guest can go on for as long as it lives: the log has the beginning of it.
	complaints := rate.Sometimes{First: complaintsAtOnce, Interval: time.Minute}
	complain := func(err error) {
		complaints.Do(func() {
			log.G(s.ctx).WithError(err).WithField("machine", v.ID()).Warn("the guest sent an event that is none, perhaps of many")
		})
	}
	for next := v.events.Load() + 1; ; next++ {
		env, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("receive from the guest's events: %w", err)
		}
		if env.Sequence != next {
			return fmt.Errorf("the guest's event %d is missing: got %d", next, env.Sequence)
		}
		// The stream itself must never wait for containerd: to stall it would
		// look like the end of the agent.
		if n := s.events.backlog(); n >= s.events.limit {
			return fmt.Errorf("containerd has not taken %d events, and the guest makes more", n)
		}
		if env.Event == nil {
			return errors.New("the guest sent an envelope without an event")
		}
		e, err := typeurl.UnmarshalAny(env.Event)
		if err != nil {
			complain(err)
		} else if err := s.guestEvent(e); err != nil {
			complain(fmt.Errorf("%T out of place: %w", e, err))
		}
		v.events.Store(next)
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
	id = c.ID
	p, err := c.process(execID)
	if err != nil {
		return err
	}

	if isBeginning(e) && !p.firstOf(e) {
		return errors.New("it has been told of")
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
		if c.wakes.CompareAndSwap(true, false) {
			return nil // It was paused when it was saved, and is being started.
		}
		return s.pauseEvent(id, p, task.Status_RUNNING)
	default:
		return errors.New("not an event that a guest may send")
	}
	return nil
}

// lookup finds a container by the guest's id for it, and also one that is still
// being created: its first event precedes the answer to Create.
func (s *Sandbox) lookup(guestID string) *Container {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.containers {
		if c.guestID == guestID {
			return c
		}
	}
	return nil
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

// isBeginning is true for events of which each process has one.
func isBeginning(e any) bool {
	switch e.(type) {
	case *apievents.TaskCreate, *apievents.TaskStart, *apievents.TaskExecAdded, *apievents.TaskExecStarted:
		return true
	}
	return false
}
