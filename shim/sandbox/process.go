package sandbox

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

// Exit is the end of a process.
type Exit struct {
	// Status is the exit code, or 128 plus the signal.
	Status uint32
	At     time.Time
}

// exitStatusKilled is what a process is said to have exited with when its
// machine died under it: as if by SIGKILL, which is what it amounts to.
const exitStatusKilled = 128 + 9

const (
	// exitDrainIdle is how long the exit of a process is held back while
	// nothing moves on its output. Something else then holds the output open (a
	// child left in the background), or the client does not read.
	exitDrainIdle = 2 * time.Second
	// exitDrainMax is the most that it is held back while something moves: a
	// child left in the background may write for ever. What is still on its way
	// then is delivered after the exit, up to Delete.
	exitDrainMax = 30 * time.Second
	// deleteDrainIdle is the same once the process is deleted: the guest has
	// closed its end by then, so only bytes on their way are waited for.
	deleteDrainIdle = 5 * time.Second
)

// process is one process of a container: its init, or one brought by exec.
// Guest and host each know a part: the guest runs it, the host owns its streams
// and the moment at which its end becomes public.
type process struct {
	// execID is empty for init.
	execID string
	// stdio is the client's, as State reports it.
	stdio stdio.Config

	mu     sync.Mutex
	io     *stdio.IO
	status task.Status
	exit   Exit
	moved  chan struct{} // closed, and replaced, when status changes
	told   map[reflect.Type]bool

	// exitSeen guards the one transition to stopped.
	exitSeen sync.Once
	// killOnce guards the watch for the exit after a SIGKILL.
	killOnce sync.Once
	// killed is set once the guest has answered a SIGKILL.
	killed atomic.Bool
	// reported is closed when the guest, or the machine's end, has told of the
	// process's exit. Its output may still be on its way.
	reported chan struct{}
	// exited is closed once exit is final, output has drained and the exit event
	// is queued for containerd: Wait returns.
	exited chan struct{}
}

func newProcess(execID string, cfg stdio.Config) *process {
	return &process{
		execID:   execID,
		stdio:    cfg,
		io:       stdio.None(),
		status:   task.Status_CREATED,
		moved:    make(chan struct{}),
		told:     map[reflect.Type]bool{},
		reported: make(chan struct{}),
		exited:   make(chan struct{}),
	}
}

func (p *process) setIO(io *stdio.IO) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.io = io
}

// streams are the process's streams: none before setIO.
func (p *process) streams() *stdio.IO {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.io
}

// move takes a process from one state to another, if that is where it is. The
// answer to a request may arrive after the event of what came next.
func (p *process) move(from, to task.Status) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status != from {
		return false
	}
	p.setStatus(to)
	return true
}

// setStatus changes the state and wakes await. The caller holds mu.
func (p *process) setStatus(s task.Status) {
	p.status = s
	close(p.moved)
	p.moved = make(chan struct{})
}

// await blocks until the process is in a state, or has stopped, and returns
// which of them it was.
func (p *process) await(ctx context.Context, want task.Status) (task.Status, error) {
	for {
		p.mu.Lock()
		s, moved := p.status, p.moved
		p.mu.Unlock()
		if s == want || s == task.Status_STOPPED {
			return s, nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return s, context.Cause(ctx)
		}
	}
}

func (p *process) snapshot() (task.Status, Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.status, p.exit
}

// everStarted is true for a process whose end is worth an event.
func (p *process) everStarted() bool {
	s, _ := p.snapshot()
	return s != task.Status_CREATED
}

// firstOf is true once for each type of event.
func (p *process) firstOf(event any) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := reflect.TypeOf(event)
	first := !p.told[t]
	p.told[t] = true
	return first
}

// finish makes e the process's exit, has it announced, and lets Wait return, in
// this order: who hears of it finds the process stopped, and whoever deletes it
// after Wait does so after the announcement.
func (p *process) finish(e Exit, announce func()) {
	p.mu.Lock()
	p.exit = e
	p.setStatus(task.Status_STOPPED)
	p.mu.Unlock()
	announce()
	close(p.exited)
}

// endUnpublished is the end of a process of which no exit will be seen, and
// none is published: it never ran. Whoever waits for it is told.
func (p *process) endUnpublished(e Exit) {
	p.exitSeen.Do(func() {
		close(p.reported)
		p.finish(e, func() {})
	})
}

// wait blocks until the process has exited and its output has drained.
func (p *process) wait(ctx context.Context) (Exit, error) {
	select {
	case <-p.exited:
		_, e := p.snapshot()
		return e, nil
	case <-ctx.Done():
		return Exit{}, fmt.Errorf("wait for exit: %w", context.Cause(ctx))
	}
}

func (p *process) isExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

func errNoProcess(container, execID string) error {
	if execID == "" {
		return fmt.Errorf("container %s: %w", container, errdefs.ErrNotFound)
	}
	return fmt.Errorf("process %s of container %s: %w", execID, container, errdefs.ErrNotFound)
}
