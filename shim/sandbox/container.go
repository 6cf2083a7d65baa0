package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/steps"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/stdio"
)

// Container is one container in the sandbox: an OCI bundle that the guest
// runs, its processes, and the host trees that it is served.
type Container struct {
	ID string
	// Bundle is the bundle's directory on the host.
	Bundle string
	rootfs []*types.Mount
	// guestID is its id in the guest: its own, unless it was restored from what
	// was another container then.
	guestID string

	sandbox *Sandbox
	book    *receipt.Book
	// steps are those of its way up.
	steps *steps.Record
	// ready is set once Create has succeeded; guarded by sandbox.mu.
	ready bool

	// Written by Create only, before ready.
	vm            *vm
	resources     *specs.LinuxResources // as the host's spec has them
	unmountRootfs func(context.Context) error
	hooks         hostHooks

	// wakes is true while the guest's next word of the container's resumption is
	// that of its start.
	wakes atomic.Bool

	mu sync.Mutex
	// restored is set from its restoring to its start.
	restored *restored
	// shares are what its bundle consists of in the guest.
	shares []*agentv1.Share
	// roots are the trees of those that are its own, by their targets.
	roots map[string]*share
	// trees end the serving of its files, or its part in it.
	trees     []func(context.Context) error
	processes map[string]*process // by exec id, init under ""
}

// receiptsFile is the container's receipt book in its bundle.
const receiptsFile = "receipts.json"

// OpenReceipts opens the receipt book of the bundle in dir.
func OpenReceipts(dir string) (*receipt.Book, error) {
	return receipt.Open(filepath.Join(dir, receiptsFile))
}

// Stdio is the stdio of a process as its client asked for it.
func (c *Container) Stdio(execID string) (stdio.Config, error) {
	p, err := c.process(execID)
	if err != nil {
		return stdio.Config{}, err
	}
	return p.stdio, nil
}

// Status returns the state of a process, and its exit if it has stopped.
func (c *Container) Status(execID string) (task.Status, Exit, error) {
	p, err := c.process(execID)
	if err != nil {
		return task.Status_UNKNOWN, Exit{}, err
	}
	s, e := p.snapshot()
	if execID == "" || s == task.Status_STOPPED {
		return s, e, nil
	}
	// The freezer is the container's: what it holds, it holds as a whole.
	if init, err := c.process(""); err == nil {
		if is, _ := init.snapshot(); is == task.Status_PAUSED || is == task.Status_PAUSING {
			s = is
		}
	}
	return s, e, nil
}

// Start starts init, or a process that Exec has added.
func (c *Container) Start(ctx context.Context, execID string) error {
	p, err := c.process(execID)
	if err != nil {
		return err
	}
	if execID == "" {
		ctx = c.steps.In(ctx)
		end := steps.Begin(ctx, "start")
		defer func() {
			end()
			log.G(ctx).WithField("container", c.ID).WithField("steps", c.steps.String()).Info("container has started")
		}()
		if err := c.vm.admitNetwork(ctx); err != nil {
			return fmt.Errorf("start %s: %w", c.ID, err)
		}
	}
	if err := p.streams().StartInput(ctx); err != nil {
		return fmt.Errorf("start %s: %w", c.ID, err)
	}
	if execID == "" && c.isRestored() {
		return c.startRestored(ctx, p)
	}
	err = c.call(ctx, "start", func(ctx context.Context) error {
		_, err := c.vm.agent.task.Start(ctx, &taskapi.StartRequest{ID: c.guestID, ExecID: execID})
		return err
	})
	if err != nil {
		return err
	}
	p.move(task.Status_CREATED, task.Status_RUNNING)
	if execID == "" {
		return c.runPoststart(ctx)
	}
	return nil
}

// Wait blocks until a process has exited and its output has been delivered.
func (c *Container) Wait(ctx context.Context, execID string) (Exit, error) {
	p, err := c.process(execID)
	if err != nil {
		return Exit{}, err
	}
	return p.wait(ctx)
}

// Resize sets the size of a process's terminal in characters.
func (c *Container) Resize(ctx context.Context, execID string, width, height uint32) error {
	if _, err := c.process(execID); err != nil {
		return err
	}
	return c.call(ctx, "resize terminal", func(ctx context.Context) error {
		_, err := c.vm.agent.task.ResizePty(ctx, &taskapi.ResizePtyRequest{ID: c.guestID, ExecID: execID, Width: width, Height: height})
		return err
	})
}

// CloseStdin ends a process's standard input, in order, after what the client
// has already written.
func (c *Container) CloseStdin(execID string) error {
	p, err := c.process(execID)
	if err != nil {
		return err
	}
	p.streams().CloseStdin()
	return nil
}

// Pids returns the container's processes in the guest's numbering.
func (c *Container) Pids(ctx context.Context) ([]*task.ProcessInfo, error) {
	var resp *taskapi.PidsResponse
	err := c.call(ctx, "list processes", func(ctx context.Context) (err error) {
		resp, err = c.vm.agent.task.Pids(ctx, &taskapi.PidsRequest{ID: c.guestID})
		return err
	})
	return resp.GetProcesses(), err
}

func (c *Container) process(execID string) (*process, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.processes[execID]
	if p == nil {
		return nil, errNoProcess(c.ID, execID)
	}
	return p, nil
}

// addProcess takes the process's place before it is made.
func (c *Container) addProcess(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.processes[p.execID]; taken {
		return fmt.Errorf("process %s of container %s: %w", p.execID, c.ID, errdefs.ErrAlreadyExists)
	}
	c.processes[p.execID] = p
	return nil
}

func (c *Container) removeProcess(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.processes[p.execID] == p {
		delete(c.processes, p.execID)
	}
}

// execs are the processes other than init.
func (c *Container) execs() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	var execs []*process
	for id, p := range c.processes {
		if id != "" {
			execs = append(execs, p)
		}
	}
	return execs
}

func (c *Container) createEvent(pid uint32) *apievents.TaskCreate {
	c.mu.Lock()
	cfg := c.processes[""].stdio
	c.mu.Unlock()
	return &apievents.TaskCreate{
		ContainerID: c.ID,
		Bundle:      c.Bundle,
		Rootfs:      c.rootfs,
		IO:          &apievents.TaskIO{Stdin: cfg.Stdin, Stdout: cfg.Stdout, Stderr: cfg.Stderr, Terminal: cfg.Terminal},
		Pid:         pid,
	}
}

// processExited takes note that p has ended in the guest, and makes it public
// once its output has drained. Exits of one container wait side by side, and
// init's waits for all others: it is the last.
func (c *Container) processExited(p *process, e Exit) {
	p.exitSeen.Do(func() {
		close(p.reported)
		pid := c.sandbox.Pid()
		go func() {
			drain, cancel := context.WithTimeout(c.sandbox.ctx, exitDrainMax)
			p.streams().WaitDrained(drain, exitDrainIdle)
			cancel()
			if p.execID == "" {
				for _, x := range c.execs() {
					// The guest reports init's exit last: what it has not
					// reported by now it never will.
					c.processEnded(x, Exit{Status: exitStatusKilled, At: e.At})
					<-x.exited
				}
				c.writeBack()
				if err := recordExit(c.Bundle, e); err != nil {
					log.G(c.sandbox.ctx).WithError(err).WithField("container", c.ID).Warn("exit is not on record")
				}
			}
			p.finish(e, func() { c.sandbox.events.send(exitEvent(c.ID, p.execID, pid, e)) })
		}()
	})
}

// writeBack has the files of a container that has ended, or is paused, be on the
// host before anyone hears of it: clients look at them from then on, and not
// only after Delete.
func (c *Container) writeBack() {
	select {
	case <-c.vm.Done():
		return
	default:
	}
	if err := c.call(c.sandbox.ctx, "write back the files of", func(ctx context.Context) error {
		_, err := c.vm.agent.shares.WriteBack(ctx, &agentv1.WriteBackRequest{Id: c.guestID})
		return err
	}); err != nil {
		log.G(c.sandbox.ctx).WithError(err).WithField("container", c.ID).Warn("files may be older than the container's end")
	}
}

// machineDied ends every process as if it had been killed. The order is that
// of processExited.
func (c *Container) machineDied(at time.Time) {
	c.mu.Lock()
	var ended []*process
	for _, p := range c.processes {
		ended = append(ended, p)
	}
	c.mu.Unlock()
	for _, p := range ended {
		p.streams().Abort()
		c.processEnded(p, Exit{Status: exitStatusKilled, At: at})
	}
}

// processEnded is processExited for an end that the guest has not reported. An
// exec that never ran has no exit to publish.
func (c *Container) processEnded(p *process, e Exit) {
	if p.execID == "" || p.everStarted() {
		c.processExited(p, e)
	} else {
		p.endUnpublished(e)
	}
}

// deleteEvent is sent when nothing of the container is left on either side.
func (c *Container) deleteEvent(e Exit) *apievents.TaskDelete {
	return &apievents.TaskDelete{
		ContainerID: c.ID,
		Pid:         c.sandbox.Pid(),
		ExitStatus:  e.Status,
		ExitedAt:    timestamppb.New(e.At),
	}
}

// createBundle makes the bundle in the guest, with its shares mounted.
func (c *Container) createBundle(ctx context.Context, config any) error {
	data, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode the guest's spec: %w", err)
	}
	req := &agentv1.CreateBundleRequest{Id: c.guestID, Config: data}
	c.mu.Lock()
	req.Shares = c.shares
	c.mu.Unlock()
	return c.call(ctx, "make the guest's bundle for", func(ctx context.Context) error {
		_, err := c.vm.agent.bundle.Create(ctx, req)
		return err
	})
}

func (c *Container) deleteBundle(ctx context.Context) error {
	return c.call(ctx, "remove the guest's bundle of", func(ctx context.Context) error {
		_, err := c.vm.agent.bundle.Delete(ctx, &agentv1.DeleteBundleRequest{Id: c.guestID})
		return err
	})
}

func (c *Container) closeTrees(ctx context.Context) error {
	c.mu.Lock()
	trees := c.trees
	c.trees = nil
	c.mu.Unlock()
	var errs []error
	for _, end := range trees {
		errs = append(errs, end(ctx))
	}
	return errors.Join(errs...)
}

// release gives back everything of the host's that the container holds. It is
// for the end of the sandbox; Delete does the same in order with the guest.
func (c *Container) release(ctx context.Context) error {
	c.mu.Lock()
	processes := slices.Collect(maps.Values(c.processes))
	c.mu.Unlock()
	c.closeStreams(ctx, processes...)
	return errors.Join(c.closeTrees(ctx), c.book.UndoAll(ctx))
}

// closeStreams closes the streams of processes and waits for their loggers.
func (c *Container) closeStreams(ctx context.Context, processes ...*process) {
	for _, p := range processes {
		p.streams().Close()
	}
	for _, p := range processes {
		if err := p.streams().AwaitLogger(ctx); err != nil {
			log.G(ctx).WithError(err).WithField("container", c.ID).Warn("a logger is left to its receipt")
		}
	}
}

// awaitExit returns once the exit of init is on its way to containerd, if there
// is to be one: the machine has ended, and release has been called.
func (c *Container) awaitExit(ctx context.Context) {
	c.sandbox.mu.Lock()
	ready := c.ready
	c.sandbox.mu.Unlock()
	if !ready {
		return
	}
	p, err := c.process("")
	if err != nil {
		return
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
	}
}

// streamPrefix starts the ids of a process's standard streams.
func (c *Container) streamPrefix(execID string) string {
	if execID == "" {
		return "io/" + c.guestID + "/init"
	}
	return "io/" + c.guestID + "/exec/" + execID
}

func (c *Container) openStdio(ctx context.Context, execID string, cfg stdio.Config) (*stdio.IO, error) {
	id := c.ID
	if execID != "" {
		id = execID
	}
	ns, _ := namespaces.Namespace(c.sandbox.ctx)
	return stdio.Open(ctx, cfg, stdio.Streams{
		Prefix:    c.streamPrefix(execID),
		ID:        id,
		Namespace: ns,
		Dial:      c.dialStdio,
		Receipts:  c.book,
	})
}

func (c *Container) dialStdio(ctx context.Context, id string) (net.Conn, error) {
	return c.vm.openStream(ctx, agentproto.PortStdio, id)
}
