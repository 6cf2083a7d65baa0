//go:build linux

package agent

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

// fakeKernel notes what is done to it, and refuses one thing.
type fakeKernel struct {
	steps  []string
	refuse string

	clock       time.Time
	entropy     []byte
	machine, me string
}

var errRefused = errors.New("refused")

func (k *fakeKernel) step(name string) error {
	k.steps = append(k.steps, name)
	if name == k.refuse {
		return errRefused
	}
	return nil
}

func (k *fakeKernel) now() time.Time               { return k.clock }
func (k *fakeKernel) setClock(t time.Time) error   { k.clock = t; return k.step("clock") }
func (k *fakeKernel) addEntropy(p []byte) error    { k.entropy = p; return k.step("entropy") }
func (k *fakeKernel) setMachineID(id string) error { k.machine = id; return k.step("machine id") }
func (k *fakeKernel) bootID() (string, error)      { return "boot", k.step("boot id") }
func (k *fakeKernel) hostname() (string, error)    { return k.me, nil }
func (k *fakeKernel) setHostname(n string) error   { k.me = n; return k.step("host name") }

var thawNow = time.Date(2026, 11, 22, 1, 2, 3, 4, time.UTC)

func thawRequest() *agentv1.ThawRequest {
	return &agentv1.ThawRequest{
		Nonce: []byte("nonce"), Now: timestamppb.New(thawNow), Entropy: bytes.Repeat([]byte{7}, 32),
		MachineId: "0123456789abcdef0123456789abcdef", Hostname: "web-1",
	}
}

func TestThawInOrder(t *testing.T) {
	k := &fakeKernel{me: "sandbox"}
	th := &thawing{kernel: k}
	if id, err := th.knownBootID(); id != "" || err != nil || len(k.steps) != 0 {
		t.Errorf("the boot id was read before the thaw: %q, %v", id, err)
	}
	if err := th.admit(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("work before the thaw: %v", err)
	}
	want := []string{"clock", "entropy", "machine id", "boot id", "host name"}
	for range 2 {
		k.steps = nil
		resp, err := th.Thaw(t.Context(), thawRequest())
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(k.steps, want) {
			t.Errorf("steps %q, want %q", k.steps, want)
		}
		if string(resp.Nonce) != "nonce" || resp.BootId != "boot" || resp.MachineId != k.machine || resp.Hostname != "web-1" ||
			!resp.Clock.AsTime().Equal(thawNow) || resp.Uptime.AsDuration() <= 0 || len(k.entropy) != 32 {
			t.Errorf("answer %v", resp)
		}
	}
	if err := th.admit(); err != nil {
		t.Error(err)
	}
	if id, err := th.knownBootID(); id != "boot" || err != nil {
		t.Errorf("after the thaw: %q, %v", id, err)
	}
	r := thawRequest()
	r.Hostname = ""
	if resp, err := th.Thaw(t.Context(), r); err != nil || resp.Hostname != "web-1" {
		t.Errorf("without a host name: %v, %v", resp, err)
	}
}

func TestRehearsalOfAThawIsNone(t *testing.T) {
	k := &fakeKernel{me: "sandbox"}
	th := &thawing{kernel: k}
	r := thawRequest()
	r.Rehearsal = true
	resp, err := th.Thaw(t.Context(), r)
	if err != nil || resp.BootId != "" || string(resp.Nonce) != "nonce" {
		t.Errorf("answer %v, %v", resp, err)
	}
	if want := []string{"clock", "entropy", "machine id", "host name"}; !slices.Equal(k.steps, want) {
		t.Errorf("steps %q, want %q", k.steps, want)
	}
	if th.admit() == nil {
		t.Error("work was let in")
	}
}

func TestThawStopsWhereItFails(t *testing.T) {
	all := []string{"clock", "entropy", "machine id", "boot id", "host name"}
	for i, refuse := range all {
		k := &fakeKernel{refuse: refuse}
		th := &thawing{kernel: k}
		_, err := th.Thaw(t.Context(), thawRequest())
		if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), refuse) {
			t.Errorf("%s: %v", refuse, err)
		}
		if !slices.Equal(k.steps, all[:i+1]) {
			t.Errorf("%s: steps %q", refuse, k.steps)
		}
		if th.admit() == nil {
			t.Errorf("%s: work was let in", refuse)
		}
	}
}

func TestThawRefusesBeforeItStarts(t *testing.T) {
	for name, change := range map[string]func(*agentv1.ThawRequest){
		"no time":             func(r *agentv1.ThawRequest) { r.Now = nil },
		"no entropy":          func(r *agentv1.ThawRequest) { r.Entropy = nil },
		"too little entropy":  func(r *agentv1.ThawRequest) { r.Entropy = r.Entropy[1:] },
		"too much entropy":    func(r *agentv1.ThawRequest) { r.Entropy = make([]byte, maxEntropy+1) },
		"no machine id":       func(r *agentv1.ThawRequest) { r.MachineId = "" },
		"a machine id of 0":   func(r *agentv1.ThawRequest) { r.MachineId = strings.Repeat("0", 32) },
		"an upper-case id":    func(r *agentv1.ThawRequest) { r.MachineId = strings.ToUpper(r.MachineId) },
		"a long host name":    func(r *agentv1.ThawRequest) { r.Hostname = strings.Repeat("x", 65) },
		"a host name of two":  func(r *agentv1.ThawRequest) { r.Hostname = "a b" },
		"a host name of dots": func(r *agentv1.ThawRequest) { r.Hostname = ".." },
	} {
		r := proto.CloneOf(thawRequest())
		change(r)
		k := &fakeKernel{}
		if _, err := (&thawing{kernel: k}).Thaw(t.Context(), r); !errdefs.IsInvalidArgument(err) || len(k.steps) != 0 {
			t.Errorf("%s: %v, after %q", name, err, k.steps)
		}
	}
}

func TestClockSteps(t *testing.T) {
	k := &fakeKernel{clock: thawNow}
	th := &thawing{kernel: k}
	resp, err := th.Clock(t.Context(), &agentv1.ClockRequest{})
	if err != nil || !resp.Clock.AsTime().Equal(thawNow) || len(k.steps) != 0 {
		t.Errorf("read: %v, %v, after %q", resp, err, k.steps)
	}
	resp, err = th.Clock(t.Context(), &agentv1.ClockRequest{Step: durationpb.New(-3 * time.Millisecond)})
	if err != nil || !resp.Clock.AsTime().Equal(thawNow.Add(-3*time.Millisecond)) {
		t.Errorf("step: %v, %v", resp, err)
	}
	if _, err := th.Clock(t.Context(), &agentv1.ClockRequest{Step: &durationpb.Duration{Nanos: -1, Seconds: 1}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("a step that is none: %v", err)
	}
}
