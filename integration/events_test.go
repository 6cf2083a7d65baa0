//go:build linux || freebsd

package integration

import (
	"context"
	"fmt"
	"strings"
	"time"

	eventtypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/typeurl/v2"
)

// taskEvent is what the tests look at in an event of a task.
type taskEvent struct {
	topic     string
	container string
	// process is the exec's id, or the container's for its first process.
	process string
	// status is the exit status, of exits and deletes.
	status uint32
}

func (e taskEvent) String() string {
	if e.topic == "/tasks/exit" || e.topic == "/tasks/delete" {
		return fmt.Sprintf("%s %s %d", e.topic, e.process, e.status)
	}
	return e.topic + " " + e.process
}

// subscription is the task events since it was made.
type subscription struct {
	envelopes <-chan *events.Envelope
	errs      <-chan error
}

func (r *rig) subscribe() *subscription {
	ctx, cancel := context.WithCancel(r.ctx)
	r.Cleanup(cancel)
	envelopes, errs := r.Client.EventService().Subscribe(ctx, `topic~="^/tasks/"`)
	return &subscription{envelopes, errs}
}

// next is the next event of a container.
func (s *subscription) next(ctx context.Context, container string, limit time.Duration) (taskEvent, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		select {
		case env := <-s.envelopes:
			e, err := parseEvent(env)
			if err != nil {
				return e, err
			}
			if e.container == container {
				return e, nil
			}
		case err := <-s.errs:
			return taskEvent{}, err
		case <-timer.C:
			return taskEvent{}, context.DeadlineExceeded
		case <-ctx.Done():
			return taskEvent{}, context.Cause(ctx)
		}
	}
}

func parseEvent(env *events.Envelope) (taskEvent, error) {
	v, err := typeurl.UnmarshalAny(env.Event)
	if err != nil {
		return taskEvent{}, err
	}
	e := taskEvent{topic: env.Topic}
	switch v := v.(type) {
	case *eventtypes.TaskCreate:
		e.container = v.ContainerID
	case *eventtypes.TaskStart:
		e.container = v.ContainerID
	case *eventtypes.TaskExecAdded:
		e.container, e.process = v.ContainerID, v.ExecID
	case *eventtypes.TaskExecStarted:
		e.container, e.process = v.ContainerID, v.ExecID
	case *eventtypes.TaskExit:
		e.container, e.process, e.status = v.ContainerID, v.ID, v.ExitStatus
	case *eventtypes.TaskDelete:
		e.container, e.process, e.status = v.ContainerID, v.ID, v.ExitStatus
	case *eventtypes.TaskOOM:
		e.container = v.ContainerID
	case *eventtypes.TaskPaused:
		e.container = v.ContainerID
	case *eventtypes.TaskResumed:
		e.container = v.ContainerID
	default:
		if !strings.HasPrefix(env.Topic, "/tasks/") {
			return e, fmt.Errorf("event %s of type %T", env.Topic, v)
		}
	}
	if e.process == "" {
		e.process = e.container
	}
	return e, nil
}
