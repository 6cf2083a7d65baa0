package sandbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"google.golang.org/protobuf/types/known/emptypb"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

const (
	// saveTimeout bounds the saving of a sandbox: its memory goes to disk.
	saveTimeout = 5 * time.Minute
	// quietTimeout bounds the wait until nothing is under way in the guest. Its
	// processes stand still meanwhile.
	quietTimeout = 20 * time.Second
)

// Checkpoint saves the sandbox with its processes to dir, for Create to make
// another of. Its container must be the only one; it is frozen meanwhile, and
// runs on afterwards or, with exit, has been killed. Signals wait for that, other
// requests for as long as they would for the guest. On error dir holds no saved
// sandbox, and the container runs on, or has ended with its machine.
//
// errdefs.ErrFailedPrecondition names what is in the way: a machine that was not
// made to be saved (config.Machine.Checkpoint), an exec that runs, an open file
// that has been removed, a client that does not read. errdefs.ErrNotImplemented
// is for pods and monitors that cannot.
func (c *Container) Checkpoint(ctx context.Context, dir string, exit bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, saveTimeout, fmt.Errorf("not saved within %s: %w", saveTimeout, context.DeadlineExceeded))
	defer cancel()
	if err := c.checkpoint(ctx, dir, exit); err != nil {
		return fmt.Errorf("checkpoint %s: %w", c.ID, err)
	}
	return nil
}

func (c *Container) checkpoint(ctx context.Context, dir string, exit bool) (err error) {
	if err := c.maySave(); err != nil {
		return err
	}
	machine, ok := c.vm.Machine.(hypervisor.Snapshotter)
	if !ok {
		return fmt.Errorf("machine %s cannot be saved: %w", c.vm.ID(), errdefs.ErrNotImplemented)
	}
	if err := c.vm.gate.close(ctx); err != nil {
		return fmt.Errorf("another request is at work in the guest: %w", err)
	}
	defer c.vm.gate.open()
	if init, err := c.process(""); err != nil {
		return err
	} else if init.killed.Load() {
		// Its exit is due, and its machine ends without it.
		return fmt.Errorf("it has been killed: %w", errdefs.ErrFailedPrecondition)
	}
	if err := vacantFor(dir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, clearSaved(dir))
		}
	}()

	awake, err := c.vm.doze.wake(ctx)
	if err != nil {
		return err
	}
	defer awake()
	began := time.Now()
	goOn, err := c.rest(ctx)
	if err != nil {
		return err
	}
	rested := time.Now()
	saved, err := c.describe()
	if err == nil {
		err = machine.Snapshot(ctx, saved.in(dir).machine())
	}
	if err == nil {
		err = saved.write(dir)
	}
	if err != nil || !exit {
		err = errors.Join(err, goOn())
	} else {
		err = c.endSaved(ctx)
	}
	if err != nil {
		return err
	}
	log.G(ctx).WithFields(log.Fields{
		"container": c.ID, "t_rest": milliseconds(rested.Sub(began)), "t_saved": milliseconds(time.Since(rested)),
	}).Info("sandbox has been saved")
	c.sandbox.events.send(&apievents.TaskCheckpointed{ContainerID: c.ID, Checkpoint: dir})
	return nil
}

// maySave refuses what is not worth trying.
func (c *Container) maySave() error {
	s := c.sandbox
	s.mu.Lock()
	alone := len(s.containers) == 1 && s.declared == nil
	s.mu.Unlock()
	p, err := c.process("")
	if err != nil {
		return err
	}
	status, _ := p.snapshot()
	switch {
	case !alone:
		return fmt.Errorf("its machine is a pod's: %w", errdefs.ErrNotImplemented)
	case status != task.Status_RUNNING && status != task.Status_PAUSED:
		return fmt.Errorf("it is %s, neither running nor paused: %w", strings.ToLower(status.String()), errdefs.ErrFailedPrecondition)
	case !c.vm.savable:
		return fmt.Errorf("its machine was not made to be saved (annotation io.containerd.bhyve.checkpoint, or machine.checkpoint of the configuration): %w", errdefs.ErrFailedPrecondition)
	}
	for _, x := range c.execs() {
		if status, _ := x.snapshot(); status != task.Status_STOPPED {
			return fmt.Errorf("its exec %s is %s, and nobody would have it after a restore: %w", x.execID, strings.ToLower(status.String()), errdefs.ErrFailedPrecondition)
		}
	}
	return nil
}

// rest brings everything in the guest to rest: nothing is under way between guest
// and host when it returns. goOn undoes it.
func (c *Container) rest(ctx context.Context) (goOn func() error, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, quietTimeout, fmt.Errorf("waited for %s: %w", quietTimeout, context.DeadlineExceeded))
	defer cancel()
	init, err := c.process("")
	if err != nil {
		return nil, err
	}
	streams := init.streams()
	sent, err := streams.Hold(ctx)
	if err != nil {
		return nil, errStuck(err)
	}
	prefix := c.streamPrefix("") + "/"
	ctx, release := whileAlive(ctx, c.vm.Machine)
	defer release()
	resp, err := c.vm.agent.checkpoints.Suspend(ctx, &agentv1.SuspendRequest{
		Inputs: []*agentv1.StreamPosition{{Stream: prefix + "stdin", Bytes: sent}},
	})
	goOn = func() error {
		defer streams.Release()
		return c.goOn()
	}
	if err != nil {
		// The guest may not know that nobody waits for its answer any more.
		return nil, errors.Join(c.agentError(ctx, "suspend", err), goOn())
	}
	for _, o := range resp.Outputs {
		name, own := strings.CutPrefix(o.GetStream(), prefix)
		if !own {
			continue // Of an exec, which has ended.
		}
		if err := streams.AwaitOutput(ctx, name, o.GetBytes()); err != nil {
			return nil, errors.Join(errStuck(err), goOn())
		}
	}
	return goOn, nil
}

// errStuck is the error of a stream that does not come to rest.
func errStuck(err error) error {
	return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
}

// goOn lets the guest go on, or ends its machine: what stands still for ever must not
// be said to run.
func (c *Container) goOn() error {
	err := c.resumeSaved(c.sandbox.ctx)
	if err == nil {
		return nil
	}
	return errors.Join(err, c.vm.destroy(c.sandbox.ctx))
}

// resumeSaved lets the guest go on. It uses the values of ctx, not its end.
func (c *Container) resumeSaved(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.vm.agentTimeout)
	defer cancel()
	ctx, release := whileAlive(ctx, c.vm.Machine)
	defer release()
	if _, err := c.vm.agent.checkpoints.Resume(ctx, &emptypb.Empty{}); err != nil {
		return c.agentError(ctx, "resume", err)
	}
	return nil
}

// describe is what is not in the machine's memory. The guest is at rest.
func (c *Container) describe() (*savedSandbox, error) {
	init, err := c.process("")
	if err != nil {
		return nil, err
	}
	status, _ := init.snapshot()
	if status != task.Status_RUNNING && status != task.Status_PAUSED {
		return nil, fmt.Errorf("it has ended meanwhile: %w", errdefs.ErrFailedPrecondition)
	}
	ns, _ := namespaces.Namespace(c.sandbox.ctx)
	s := &savedSandbox{
		Format: savedFormat, Namespace: ns,
		Size: c.vm.size, KernelArgs: c.vm.kernelArgs, MAC: c.vm.network.address(),
		Events: c.vm.events.Load(), Name: c.ID, Container: c.guestID,
		Paused: status == task.Status_PAUSED, Terminal: init.stdio.Terminal, Streams: init.streams().Names(),
		Roots: map[string]savedTree{},
	}
	c.mu.Lock()
	roots := c.roots
	c.mu.Unlock()
	for target, sh := range roots {
		if s.Roots[target], err = sh.save(); err != nil {
			return nil, fmt.Errorf("%s: %w", target, err)
		}
	}
	s.Volumes, s.VolumeStreams, err = c.vm.volumes.save()
	return s, err
}

// in is s as it is in dir.
func (s *savedSandbox) in(dir string) *savedSandbox {
	s.dir = dir
	return s
}

// endSaved is the end of a container that lives on as it was saved. Nothing of
// it may run again: its files are those that its copies will need.
func (c *Container) endSaved(ctx context.Context) error {
	c.sandbox.mu.Lock()
	c.sandbox.beginStop()
	c.sandbox.mu.Unlock()
	err := c.vm.destroy(ctx)
	select {
	case <-c.vm.Done():
	default:
		return err
	}
	if err != nil {
		// No reason to lose what was saved: there is nothing else of it any more.
		log.G(ctx).WithError(err).WithField("container", c.ID).Warn("what its machine held is left to the receipts")
	}
	return nil
}
