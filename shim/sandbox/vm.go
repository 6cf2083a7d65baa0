package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/guest"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/steps"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/bundle"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/cgroup"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/pod"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sizing"
)

// vm is a machine whose agent has answered.
type vm struct {
	hypervisor.Machine
	home  *home
	agent *agent
	doze  *doze
	// agentTimeout bounds one request to the agent.
	agentTimeout time.Duration
	// network is its containers', nil for none. admitting is held by who connects
	// it for a container that starts.
	network   *network
	admitting chan struct{}
	// room is what containers have of it.
	room bundle.Room
	// volumes are those that its containers use.
	volumes volumes

	// size and kernelArgs are what it was made with.
	size       config.Size
	kernelArgs []string
	// savable is true if the agent has been prepared for the machine's saving.
	savable bool
	// gate is passed by every request to the agent that changes something.
	gate gate
	// events is the number of the last event that the guest has told of.
	events atomic.Uint64
}

const (
	// powerOffWait is what an orderly power-off may take before the machine is
	// destroyed. Every file system that matters is unmounted by then, so
	// nothing is lost; containerd gives a shim 3 s to shut down.
	powerOffWait = 1500 * time.Millisecond
	// destroyWait bounds the forced end of a machine.
	destroyWait = 10 * time.Second
)

// machineRequest is what a sandbox's machine is made for.
type machineRequest struct {
	// id is the sandbox's.
	id string
	// bundle is the first bundle that belongs to the sandbox: its own or that of
	// its first container. member is the id that containerd knows it by.
	bundle, member string
	config         config.Config
	size           config.Size
	// cgroup is where the machine belongs on the host, as linux.cgroupsPath of a
	// spec has it.
	cgroup  string
	network networkRequest
	// hostname is its containers', empty for that of the guest's.
	hostname string
	// saved is what it is made of, nil for a machine that is new.
	saved *savedSandbox
	// pod is what to make of it; nil for one that its first container makes.
	pod *pod.Config
}

// machineID names the machine for people, and is unique on the host.
func machineID(r machineRequest) string {
	return r.id + "." + homeName(r.id, r.bundle)[:8]
}

// boot starts a machine and waits until its agent has answered. The phases are
// start (the monitor's process), link (the control port accepts), agent (it
// answers), events (it has a connection for them), cgroup (the machine's place on
// the host), pod (it has made one) and
// network (the containers' is set up); an error is a *hypervisor.LaunchError that
// names the one it was in. On error nothing is left.
func boot(ctx context.Context, obtain source, r machineRequest, h *home) (_ *vm, err error) {
	end := steps.Begin(ctx, "image")
	image, err := guest.Open(r.config.Guest.Dir)
	end()
	if err != nil {
		return nil, err
	}
	timeout := r.config.Machine.BootTimeout.Duration
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("boot_timeout of %s has passed: %w", timeout, context.DeadlineExceeded))
	defer cancel()
	began := time.Now()
	end = steps.Begin(ctx, "host")
	group, err := cgroup.Make(ctx, h.book, r.cgroup)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		if rerr := group.Remove(context.WithoutCancel(ctx)); rerr != nil {
			log.G(ctx).WithError(rerr).Error("control group of a machine that did not come up")
		}
	}()
	end()
	end = steps.Begin(ctx, "obtain")
	m, nw, from, err := obtain(ctx, r, image, hypervisor.Config{
		ID:        machineID(r),
		Dir:       h.machine(),
		VCPUs:     r.size.VCPUs,
		MemoryMiB: r.size.MemoryMiB,
		Kernel:    image.Kernel,
		Initrd:    image.Initrd,
		Cmdline:   r.config.Machine.KernelArgs,
		MemoryDir: r.config.Machine.MemoryDir,
	}, h.book)
	if err != nil {
		return nil, err
	}
	end()
	v := &vm{
		Machine: m, home: h, network: nw, agentTimeout: r.config.Machine.AgentTimeout.Duration,
		room: sizing.Room(r.config.Machine), doze: newDoze(m, r.config.Machine.Pause),
		size: r.size, kernelArgs: r.config.Machine.KernelArgs, admitting: make(chan struct{}, 1),
	}
	if r.saved != nil {
		v.savable = true
		v.events.Store(r.saved.Events)
	}
	phase := "link"
	var placing errgroup.Group
	defer func() {
		if err == nil {
			return
		}
		_ = placing.Wait()
		err = &hypervisor.LaunchError{ID: m.ID(), Phase: phase, Console: m.ConsoleTail(), Err: err}
		if derr := v.destroy(ctx); derr != nil {
			log.G(ctx).WithError(derr).Error("machine that did not come up could not be destroyed")
		}
	}()

	// It takes as long as the agent's answer: the kernel waits for all processors,
	// once for each hierarchy. Nothing of a workload runs before it is done.
	placing.Go(func() error {
		defer steps.Begin(ctx, "cgroup")()
		return group.Add(m.Pid())
	})
	launched := time.Now()
	end = steps.Begin(ctx, "dial")
	control, err := hypervisor.DialReady(ctx, m, agentproto.PortControl)
	if err != nil {
		return nil, err
	}
	end()
	v.agent = newAgent(control, v.doze)
	linked := time.Now()

	phase = "agent"
	hello, answered, err := v.greet(ctx)
	if err != nil {
		return nil, err
	}
	thawed := time.Now()
	// Not before the answer: a guest that wakes takes milliseconds for each
	// connection, and has nothing to tell yet.
	phase = "events"
	end = steps.Begin(ctx, "events")
	events, err := hypervisor.DialReady(ctx, m, agentproto.PortControl)
	if err != nil {
		return nil, err
	}
	v.agent.listen(events)
	end()
	phase = "cgroup"
	if err := placing.Wait(); err != nil {
		return nil, err
	}
	if r.saved == nil && r.config.Machine.Checkpoint {
		phase = "prepare to be saved"
		if err := v.prepare(ctx); err != nil {
			return nil, err
		}
	}
	if r.pod != nil {
		phase = "pod"
		if err := v.configurePod(ctx, r.pod); err != nil {
			return nil, err
		}
	}
	phase = "network"
	if err := v.configureNetwork(ctx); err != nil {
		return nil, err
	}
	v.forwardLoopback(ctx)
	log.G(ctx).WithFields(log.Fields{
		"sandbox":  r.id,
		"machine":  m.ID(),
		"pid":      m.Pid(),
		"boot_id":  hello.BootId,
		"kernel":   hello.Kernel,
		"t_launch": milliseconds(launched.Sub(began)),
		"t_link":   milliseconds(linked.Sub(began)),
		"t_agent":  milliseconds(answered.Sub(began)),
		"t_thawed": milliseconds(thawed.Sub(began)),
		"uptime":   milliseconds(hello.Uptime.AsDuration()),
	}).WithFields(from.fields()).Info("sandbox machine is up")
	return v, nil
}

// milliseconds are what times are logged in: a claim takes few of them.
func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// greet is the first talk with the agent: who it is, and from now on, and what
// time it is. It also returns when the agent had answered.
func (v *vm) greet(ctx context.Context) (_ *agentv1.HelloResponse, answered time.Time, err error) {
	ctx, release := whileAlive(ctx, v.Machine)
	defer release()
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
	}()
	end := steps.Begin(ctx, "hello")
	hello, err := v.agent.hello(ctx)
	if err != nil {
		return nil, time.Time{}, err
	}
	answered = time.Now()
	end()
	defer steps.Begin(ctx, "thaw")()
	p, err := v.agent.become(ctx)
	hello.BootId = p.BootID
	return hello, answered, err
}

// prepare has the agent make the mounts of a machine that can be saved.
func (v *vm) prepare(ctx context.Context) error {
	ctx, release := whileAlive(ctx, v.Machine)
	defer release()
	if _, err := v.agent.checkpoints.Prepare(ctx, &emptypb.Empty{}); err != nil {
		return fmt.Errorf("prepare: %w", errgrpc.ToNative(err))
	}
	v.savable = true
	return nil
}

// whileAlive is ctx, ended by the machine's end as well. Connections of a dead
// machine stay open and silent, so whoever waits on one needs it.
func whileAlive(ctx context.Context, m hypervisor.Machine) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		select {
		case <-m.Done():
			exit := m.Exit()
			cancel(fmt.Errorf("%w: %s (%s): %w", hypervisor.ErrExited, exit.Reason, exit.Detail, errdefs.ErrUnavailable))
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// openStream opens a data stream on the link, in bounded time.
func (v *vm) openStream(ctx context.Context, port uint32, id string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, v.agentTimeout)
	defer cancel()
	ctx, release := whileAlive(ctx, v.Machine)
	defer release()
	done, err := v.doze.wake(ctx)
	if err != nil {
		return nil, fmt.Errorf("open stream %q: %w: %w", id, err, errdefs.ErrUnavailable)
	}
	defer done()
	conn, err := v.Dial(ctx, port)
	switch {
	case errors.Is(err, hypervisor.ErrExited):
		return nil, fmt.Errorf("open stream %q: %w: %w", id, err, errdefs.ErrUnavailable)
	case err != nil:
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err = agentproto.OpenStream(conn, id)
	if !stop() {
		return nil, fmt.Errorf("open stream %q: %w", id, context.Cause(ctx))
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// destroy ends the machine by force. It uses the values of ctx, not its end.
func (v *vm) destroy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), destroyWait)
	defer cancel()
	if v.agent != nil {
		v.agent.close()
	}
	// A tap is held by its machine.
	return errors.Join(v.Destroy(ctx), v.network.close(ctx))
}

// powerOff asks the guest for an orderly end and waits for it, for a moment more
// than the grace that its processes are given.
func (v *vm) powerOff(ctx context.Context, grace time.Duration) {
	select {
	case <-v.Done():
		return
	default:
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+powerOffWait)
	defer cancel()
	if _, err := v.agent.system.PowerOff(ctx, &agentv1.PowerOffRequest{Grace: durationpb.New(grace)}); err != nil {
		log.G(ctx).WithError(err).Debug("the guest did not take the power-off")
		return
	}
	select {
	case <-v.Done():
	case <-ctx.Done():
		log.G(ctx).WithField("machine", v.ID()).Debug("the guest did not power off in time")
	}
}
