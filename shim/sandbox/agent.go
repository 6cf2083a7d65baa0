package sandbox

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/thaw"
)

// agent is the guest's side of the control port.
type agent struct {
	task    taskapi.TTRPCTaskService
	system  agentv1.SystemService
	thaw    agentv1.ThawService
	bundle  agentv1.BundleService
	shares  agentv1.SharesService
	net     agentv1.NetworkService
	pod     agentv1.PodService
	volumes agentv1.VolumesService
	// checkpoints is for machines that are saved with their containers.
	checkpoints agentv1.CheckpointsService
	// events has a connection of its own: while the reader of a ttrpc stream
	// does not read, every other call on the connection waits.
	events agentv1.EventsClient

	conns []*ttrpc.Client
}

func newAgent(control net.Conn, d *doze) *agent {
	c := ttrpc.NewClient(control, ttrpc.WithUnaryClientInterceptor(d.intercept))
	return &agent{
		task:        taskapi.NewTTRPCTaskClient(c),
		system:      agentv1.NewSystemClient(c),
		thaw:        agentv1.NewThawClient(c),
		bundle:      agentv1.NewBundleClient(c),
		shares:      agentv1.NewSharesClient(c),
		net:         agentv1.NewNetworkClient(c),
		pod:         agentv1.NewPodClient(c),
		volumes:     agentv1.NewVolumesClient(c),
		checkpoints: agentv1.NewCheckpointsClient(c),
		conns:       []*ttrpc.Client{c},
	}
}

// listen makes conn the one that events come by.
func (a *agent) listen(conn net.Conn) {
	e := ttrpc.NewClient(conn)
	a.events = agentv1.NewEventsClient(e)
	a.conns = append(a.conns, e)
}

// hello proves that the agent answers now, and that it is the agent that this
// shim was built with.
func (a *agent) hello(ctx context.Context) (*agentv1.HelloResponse, error) {
	nonce := make([]byte, 16)
	rand.Read(nonce)
	resp, err := a.system.Hello(ctx, &agentv1.HelloRequest{Nonce: nonce})
	if err != nil {
		return nil, fmt.Errorf("hello: %w", err)
	}
	if !bytes.Equal(resp.Nonce, nonce) {
		return nil, errors.New("hello: the answer is not to this question")
	}
	if resp.ProtocolVersion != agentproto.Version {
		return nil, fmt.Errorf("hello: the guest image speaks protocol version %d, this shim %d; build both from one tree: %w",
			resp.ProtocolVersion, agentproto.Version, errdefs.ErrFailedPrecondition)
	}
	return resp, nil
}

// become makes the machine one of its kind, and gives it the host's clock.
func (a *agent) become(ctx context.Context) (thaw.Proof, error) {
	p, err := thaw.Do(ctx, a.thaw, thaw.Identity{})
	if err == nil && !p.Clock.IsRight() {
		log.G(ctx).WithField("clock_error", p.Clock.Error).WithField("give_or_take", p.Clock.Bound).
			Warn("the guest's clock may be wrong: the link is slow")
	}
	return p, err
}

// setClock gives the host's clock to a machine that has a workload. It is worth
// the try, and no more: what asked for it does not fail with it.
func (a *agent) setClock(ctx context.Context) {
	c, err := thaw.SetClock(ctx, a.thaw)
	logger := log.G(ctx).WithField("clock_error", c.Error).WithField("give_or_take", c.Bound)
	switch {
	case err != nil:
		logger.WithError(err).Warn("the guest's clock could not be looked at")
	case c.Corrections > 0:
		logger.WithField("corrections", c.Corrections).Info("the guest's clock was wrong and has been set")
	}
}

func (a *agent) close() {
	for _, c := range a.conns {
		c.Close()
	}
}
