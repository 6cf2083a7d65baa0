package sandbox

import (
	"context"
	"strings"
	"testing"
	"time"

	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/sizing"
)

func limits(json string) typeurl.Any {
	return &anypb.Any{TypeUrl: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", Value: []byte(json)}
}

func TestUpdate(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	must(t, c.Update(b.within(), limits(`{"memory":{"limit":1048576}}`), map[string]string{"org.example": "theirs"}))
	if got := b.agent().limits; got != `{"memory":{"limit":1048576}}` {
		t.Errorf("the guest was asked for %s", got)
	}
	if err := c.Update(b.within(), limits(`{"memory":{"limit":1099511627776}}`), nil); !errdefs.IsOutOfRange(err) {
		t.Errorf("more than the machine has: %v", err)
	}
	err := c.Update(b.within(), limits(`{}`), map[string]string{"io.containerd.bhyve.vcpus": "4"})
	if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "io.containerd.bhyve.vcpus") {
		t.Errorf("an annotation of ours: %v", err)
	}
}

func TestStats(t *testing.T) {
	b := newBed(t)
	c := b.running("c1")
	a := b.agent()
	var err error
	a.stats, err = typeurl.MarshalAnyToProto(&cgroup2.Metrics{Memory: &cgroup2.MemoryStat{Usage: 4711}})
	must(t, err)
	if m, err := c.Stats(b.within()); err != nil || m.GetMemory().GetUsage() != 4711 {
		t.Errorf("got %v, %v", m, err)
	}
	for name, bad := range map[string]*anypb.Any{
		"nothing":     nil,
		"of no type":  {Value: []byte{1}},
		"of another":  {TypeUrl: "containerd.events.TaskOOM"},
		"of no sense": {TypeUrl: a.stats.TypeUrl, Value: []byte{0xff}},
	} {
		a.mu.Lock()
		a.stats = bad
		a.mu.Unlock()
		if m, err := c.Stats(b.within()); !errdefs.IsDataLoss(err) {
			t.Errorf("metrics that are %s: got %v, %v", name, m, err)
		}
	}
}

// measured is a machine that knows what it costs.
type measured struct{ *fakeMachine }

func (measured) Usage(context.Context) (hypervisor.Usage, error) {
	return hypervisor.Usage{RSS: 1 << 20}, nil
}

func TestUsage(t *testing.T) {
	b := newBed(t)
	if _, err := b.Usage(b.within()); !errdefs.IsUnavailable(err) {
		t.Errorf("without a machine: %v", err)
	}
	b.running("c1")
	if _, err := b.Usage(b.within()); !errdefs.IsNotImplemented(err) {
		t.Errorf("of a machine that cannot tell: %v", err)
	}
	b.mu.Lock()
	b.vm = &vm{Machine: measured{b.vm.Machine.(*fakeMachine)}, home: b.vm.home, agent: b.vm.agent, doze: b.vm.doze}
	b.mu.Unlock()
	if u, err := b.Usage(b.within()); err != nil || u.RSS != 1<<20 {
		t.Errorf("got %+v, %v", u, err)
	}
}

// An error that comes of a deadline says whose that was.
func TestWhoseDeadlineItWas(t *testing.T) {
	b := newBed(t)
	b.cfg.Machine.AgentTimeout = config.Duration{Duration: 300 * time.Millisecond}
	c := b.running("c1")
	b.agent().on("task.Kill", silence)
	short, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	for _, tc := range []struct {
		ctx  context.Context
		want string
	}{{short, "caller's deadline"}, {b.within(), "agent_timeout of 300ms"}} {
		if err := c.Kill(tc.ctx, "", 15, false); !errdefs.IsDeadlineExceeded(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("got %v, want one that says %q", err, tc.want)
		}
	}
	// The guest's own clock may be the first.
	b.agent().on("task.Kill", refusal(context.DeadlineExceeded))
	if err := c.Kill(b.within(), "", 15, false); !errdefs.IsDeadlineExceeded(err) || !strings.Contains(err.Error(), "agent_timeout of 300ms") {
		t.Errorf("got %v", err)
	}
}

// A quota for more processors than a machine can have gives it all it can have.
func TestAQuotaEndsAtWhatTheBackendCan(t *testing.T) {
	b := newBed(t)
	caps, err := b.backend.Capabilities(b.within())
	must(t, err)
	cfg, err := b.sized(b.within(), sizing.Request{CPUQuota: 1 << 40}, b.cfg)
	must(t, err)
	if cfg.Machine.VCPUs != caps.MaxVCPUs {
		t.Errorf("%d virtual CPUs, the backend can do %d", cfg.Machine.VCPUs, caps.MaxVCPUs)
	}
}
