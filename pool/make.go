package pool

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/thaw"
)

func openImage(dir string) (*guest.Image, error) { return guest.Open(dir) }

// create makes a machine of t, restored from cp or booted if that is nil, and
// returns its entry once the agent has answered. saveTo is where it will be
// saved, if it will be. It has rehearsed. On error nothing is left.
func (p *Pool) create(ctx context.Context, t Template, cp *checkpoint, saveTo string, rehearse rehearsal) (_ *entry, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, p.opts.BootTimeout,
		fmt.Errorf("no answer within the boot timeout of %s: %w", p.opts.BootTimeout, context.DeadlineExceeded))
	defer cancel()
	image, err := t.image()
	if err != nil {
		return nil, err
	}
	e, err := p.newEntry(t, cp)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.mu.Lock()
			e.State = stateDoomed
			p.mu.Unlock()
			err = errors.Join(err, p.discard(ctx, e))
		}
	}()

	cfg := hypervisor.Config{
		ID: e.ID, Dir: e.machineDir(), VCPUs: t.VCPUs, MemoryMiB: t.MemoryMiB,
		Kernel: image.Kernel, Initrd: image.Initrd, Cmdline: t.KernelArgs, CheckpointDir: saveTo,
	}
	if t.NIC {
		cfg.NIC = &hypervisor.NIC{MAC: portMAC}
	}
	if cp != nil {
		e.machine, err = p.opts.Backend.(hypervisor.Restorer).Restore(ctx, cfg, cp.machineDir(), e.book)
	} else {
		e.machine, err = p.opts.Backend.Launch(ctx, cfg, e.book)
	}
	if err != nil {
		return nil, err
	}
	p.step("make: launched")
	if err := prepare(ctx, e.machine, rehearse); err != nil {
		return nil, &hypervisor.LaunchError{ID: e.ID, Phase: "agent", Console: e.machine.ConsoleTail(), Err: err}
	}
	p.step("make: answered")
	return e, nil
}

// park stops the machine of an entry that create has returned, and makes it hot
// on disk.
func (p *Pool) park(ctx context.Context, e *entry) error {
	ctx, cancel := context.WithTimeout(ctx, parkTimeout)
	defer cancel()
	parker, ok := e.machine.(hypervisor.Parker)
	if !ok {
		return fmt.Errorf("park machine %s: %w", e.ID, errdefs.ErrNotImplemented)
	}
	if err := parker.Park(ctx); err != nil {
		return err
	}
	p.step("make: parked")
	r := e.record
	r.State, r.Ready = stateHot, time.Now()
	if err := setMachine(&r, e.machine); err != nil {
		return err
	}
	if err := e.save(r); err != nil {
		return err
	}
	p.step("make: hot")
	p.mu.Lock()
	e.record, e.parked = r, true
	p.mu.Unlock()
	return nil
}

// setMachine names the machine in the record, so that others can find it.
func setMachine(r *record, m hypervisor.Machine) error {
	t, ok := m.(hypervisor.Transferable)
	if !ok {
		return fmt.Errorf("hand over machine %s: %w", m.ID(), errdefs.ErrNotImplemented)
	}
	mr := t.Record()
	r.Machine = &mr
	return nil
}

// makeHot makes one machine for the hot tier of the template, which has counted
// it under making.
func (p *Pool) makeHot(s *stock, t Template, cp *checkpoint) {
	began := time.Now()
	e, err := p.create(p.ctx, t, cp, "", t.rehearses(cp))
	if err == nil {
		if err = p.park(p.ctx, e); err != nil {
			p.mu.Lock()
			e.State = stateDoomed
			p.mu.Unlock()
			err = errors.Join(err, p.discard(p.ctx, e))
		}
	}
	p.mu.Lock()
	p.admission.done(t.memory())
	p.making--
	s.making--
	keep := err == nil && !p.closed && !p.draining && p.templates[t.Name] == s && sameMachines(s.Template, t)
	// Once it is in the list and the lock is gone, a claim may write its record.
	var done <-chan struct{}
	var id, from string
	switch {
	case keep:
		done, id, from = e.machine.Done(), e.ID, tierName(e.Tier)
		if cp != nil {
			cp.failures = 0
			s.resave = backoff{}
		}
		s.hot = append(s.hot, e)
		s.retry = backoff{}
		s.ready(time.Now(), e.Tier)
	case err == nil:
		e.State = stateDoomed
	default:
		s.counts.failed++
		// A checkpoint that is refused is no reason to wait: there are boots.
		if !p.blame(s, cp, err) {
			s.retry.failed(time.Now(), err)
		}
	}
	p.announce()
	idle := p.making == 0
	p.mu.Unlock()
	if idle {
		// The daemon will do nothing for a while, its garbage is for the machines.
		debug.FreeOSMemory()
	}

	l := log.G(p.ctx).WithFields(log.Fields{"template": t.Name, "took": time.Since(began).Milliseconds()})
	switch {
	case keep:
		l.WithFields(log.Fields{"entry": id, "from": from}).Debug("machine is hot")
		p.work.Go(func() { p.guard(s, e, done) })
	case err == nil:
		_ = p.discard(p.ctx, e)
	case p.ctx.Err() == nil:
		l.WithError(err).Warn("a machine did not come up")
	}
	p.poke()
}

// guard waits for the end of a hot machine, which has none while all is well,
// and takes it out of the pool then.
func (p *Pool) guard(s *stock, e *entry, done <-chan struct{}) {
	select {
	case <-p.ctx.Done():
		return
	case <-e.settled:
		// Given away: what becomes of it is another's business.
		return
	case <-done:
	}
	p.mu.Lock()
	lost := e.State == stateHot
	if lost {
		s.drop(e)
		e.State = stateDoomed
	}
	p.mu.Unlock()
	if lost {
		exit := e.machine.Exit()
		log.G(p.ctx).WithFields(log.Fields{"entry": e.ID, "reason": string(exit.Reason), "detail": exit.Detail}).Warn("a parked machine has ended")
		_ = p.discard(p.ctx, e)
	}
}

// Prove has the agent answer a fresh nonce, and hangs up so that neither side
// has anything left of the connection: the machine will be stopped or saved.
func Prove(ctx context.Context, m hypervisor.Machine) (*agentv1.HelloResponse, error) {
	var hello *agentv1.HelloResponse
	err := talk(ctx, m, func(ctx context.Context, agent *ttrpc.Client) (err error) {
		hello, err = greet(ctx, agent)
		return err
	})
	return hello, err
}

// prepare is Prove, and a rehearsal.
func prepare(ctx context.Context, m hypervisor.Machine, r rehearsal) error {
	return talk(ctx, m, func(ctx context.Context, agent *ttrpc.Client) error {
		_, err := greet(ctx, agent)
		if err == nil && r >= rehearseThaw {
			err = thaw.Rehearse(ctx, agentv1.NewThawClient(agent))
		}
		if err == nil && r >= rehearseContainer {
			if _, err = agentv1.NewRehearsalClient(agent).Rehearse(ctx, &emptypb.Empty{}); err != nil {
				err = fmt.Errorf("rehearsal: %w", err)
			}
		}
		return err
	})
}

// talk calls f with a connection to the machine's agent, which ends with the
// machine, and returns once both sides have closed it.
func talk(ctx context.Context, m hypervisor.Machine, f func(context.Context, *ttrpc.Client) error) error {
	conn, err := hypervisor.DialReady(ctx, m, agentproto.PortControl)
	if err != nil {
		return err
	}
	hungUp := make(chan struct{})
	client := ttrpc.NewClient(conn, ttrpc.WithOnClose(func() { close(hungUp) }))
	defer client.Close()

	// A machine that ends leaves its connections open and silent.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-m.Done():
			cancel(hypervisor.ErrExited)
		case <-ctx.Done():
		}
	}()
	if err := f(ctx, client); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
		return err
	}
	if half, ok := conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
		select {
		case <-hungUp:
		case <-ctx.Done():
		}
	}
	return nil
}

func greet(ctx context.Context, agent *ttrpc.Client) (*agentv1.HelloResponse, error) {
	nonce := make([]byte, 16)
	rand.Read(nonce)
	hello, err := agentv1.NewSystemClient(agent).Hello(ctx, &agentv1.HelloRequest{Nonce: nonce})
	switch {
	case err != nil:
		return nil, fmt.Errorf("hello: %w", err)
	case !bytes.Equal(hello.Nonce, nonce):
		return nil, errors.New("hello: the answer is not to this question")
	case hello.ProtocolVersion != agentproto.Version:
		return nil, fmt.Errorf("hello: the guest image speaks protocol version %d, this program %d: %w",
			hello.ProtocolVersion, agentproto.Version, errdefs.ErrFailedPrecondition)
	}
	return hello, nil
}
