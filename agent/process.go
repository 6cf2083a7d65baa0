//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// guestProcess is what is known here of a process, beside what containerd's
// task service knows.
type guestProcess struct {
	io *processIO
	// exited is closed when the process's exit has been published.
	exited   chan struct{}
	exitOnce sync.Once
}

// processKey names a process; the container's first one has no exec id.
type processKey struct{ container, exec string }

// exitWatcher tells of each exit once it has been published, and publishes what
// ran out of memory before that.
type exitWatcher struct {
	shim.Publisher
	sawExit func(processKey)
	ooms    *oomCounts
}

// Publish implements shim.Publisher.
func (w exitWatcher) Publish(ctx context.Context, topic string, event events.Event) error {
	switch e := event.(type) {
	case *eventstypes.TaskOOM:
		// Where there is no count, this is it.
		return w.ooms.tell(e.ContainerID, true, func() error { return w.Publisher.Publish(ctx, topic, e) })
	case *eventstypes.TaskExit:
		oom := &eventstypes.TaskOOM{ContainerID: e.ContainerID}
		ooms := w.ooms.tell(e.ContainerID, false, func() error { return w.Publisher.Publish(ctx, runtime.TaskOOMEventTopic, oom) })
		err := errors.Join(ooms, w.Publisher.Publish(ctx, topic, e))
		key := processKey{e.ContainerID, e.ID}
		if e.ID == e.ContainerID {
			key.exec = ""
		}
		w.sawExit(key)
		return err
	}
	return w.Publisher.Publish(ctx, topic, event)
}

// awaitExitEvent waits until the exit of a process that has ended is published.
// The task service wakes those who wait for a process first and publishes then,
// so a caller that is quick would see the deletion before the exit.
func (s *taskService) awaitExitEvent(ctx context.Context, key processKey) {
	p := s.process(key)
	if p == nil {
		return
	}
	st, err := s.TTRPCTaskService.State(ctx, &task.StateRequest{ID: key.container, ExecID: key.exec})
	if err != nil || st.Status != tasktypes.Status_STOPPED {
		return
	}
	timeout := time.NewTimer(exitEventTimeout)
	defer timeout.Stop()
	select {
	case <-p.exited:
	case <-ctx.Done():
	case <-timeout.C:
		key.log(ctx).Warn("no exit event of a process that has ended")
	}
}

// sawExit is called for every process that has run, and twice where the task
// service cannot tell two processes with one pid apart.
func (s *taskService) sawExit(key processKey) {
	if p := s.process(key); p != nil {
		p.exitOnce.Do(func() { close(p.exited) })
	}
}

// lastWords waits until the exits of all processes that have run are published
// and their output is sent, at most until ctx ends. The processes must be gone.
func (s *taskService) lastWords(ctx context.Context) error {
	s.mu.Lock()
	procs := maps.Clone(s.procs)
	s.mu.Unlock()
	for key, p := range procs {
		select {
		case <-p.io.opened:
		default:
			continue
		}
		select {
		case <-p.exited:
		case <-ctx.Done():
			return fmt.Errorf("task %s, process %q: no exit: %w", key.container, key.exec, context.Cause(ctx))
		}
		if err := p.io.finish(ctx); err != nil {
			return fmt.Errorf("task %s, process %q: %w", key.container, key.exec, err)
		}
	}
	return nil
}

// openIO opens the standard streams of a new process. AlreadyExists if there is
// such a process.
func (s *taskService) openIO(key processKey, uris stdioURIs) (*processIO, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, exists := s.procs[key]; exists {
		return nil, fmt.Errorf("process: %w", errdefs.ErrAlreadyExists)
	}
	pio, err := openProcessIO(ioRoot, s.stdio, uris)
	if err != nil {
		return nil, err
	}
	s.procs[key] = &guestProcess{io: pio, exited: make(chan struct{})}
	return pio, nil
}

func (s *taskService) process(key processKey) *guestProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.procs[key]
}

func (s *taskService) forget(key processKey) *guestProcess {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.procs[key]
	delete(s.procs, key)
	return p
}

// dropIO ends the streams of a process that never ran.
func (s *taskService) dropIO(key processKey) {
	if p := s.forget(key); p != nil {
		p.io.abort()
	}
}

// finishIO ends the streams of a process that has ended.
func (s *taskService) finishIO(ctx context.Context, key processKey) {
	p := s.forget(key)
	if p == nil {
		return
	}
	select {
	case <-p.io.opened:
	default:
		// An exec that was never started: no one will ever write.
		p.io.abort()
		return
	}
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if err := p.io.finish(ctx); err != nil {
		key.log(ctx).WithError(err).Warn("delete task")
	}
}

func (s *taskService) execsOf(container string) []processKey {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []processKey
	for key := range s.procs {
		if key.container == container {
			keys = append(keys, key)
		}
	}
	return keys
}

func (k processKey) log(ctx context.Context) *log.Entry {
	return log.G(ctx).WithFields(log.Fields{"container_id": k.container, "exec_id": k.exec})
}
