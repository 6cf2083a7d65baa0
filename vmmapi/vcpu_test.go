package vmmapi

import (
	"errors"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestVCPUBounds(t *testing.T) {
	h, f := newFake(t)
	vm := create(t, h, "x")
	for _, id := range []int{-1, fakeMaxVCPUs} {
		if _, err := vm.VCPU(id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("vCPU %d: %v", id, err)
		}
	}
	f.errs["topology"] = []error{syscall.ENXIO}
	if _, err := vm.VCPU(0); !errors.Is(err, ErrGone) {
		t.Errorf("of a machine that is being destroyed: %v", err)
	}
}

// TestRegisters: every register arrives under its own name, on its own vCPU.
func TestRegisters(t *testing.T) {
	h, _ := newFake(t)
	vm := create(t, h, "x")
	var vcpus []*VCPU
	for id := range 2 {
		c, err := vm.VCPU(id)
		if err != nil {
			t.Fatal(err)
		}
		vcpus = append(vcpus, c)
	}
	value := func(c *VCPU, r Register) uint64 { return uint64(1000*c.ID() + int(r)) }
	for r := Register(-1); r <= IDTR+1; r++ {
		for _, c := range vcpus {
			v := value(c, r)
			if err := c.SetRegister(r, v); r.hasValue() != (err == nil) || err != nil && !errdefs.IsInvalidArgument(err) {
				t.Errorf("set %s: %v", r, err)
			}
			d := Descriptor{v, uint32(v) + 1, uint32(v) + 2}
			if err := c.SetDescriptor(r, d); r.hasDescriptor() != (err == nil) || err != nil && !errdefs.IsInvalidArgument(err) {
				t.Errorf("set descriptor %s: %v", r, err)
			}
		}
	}
	for r := Register(-1); r <= IDTR+1; r++ {
		for _, c := range vcpus {
			v := value(c, r)
			if got, err := c.Register(r); r.hasValue() && (got != v || err != nil) || !r.hasValue() && !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s: %d, %v, want %d", r, got, err, v)
			}
			want := Descriptor{v, uint32(v) + 1, uint32(v) + 2}
			if got, err := c.Descriptor(r); r.hasDescriptor() && (got != want || err != nil) || !r.hasDescriptor() && !errdefs.IsInvalidArgument(err) {
				t.Errorf("descriptor %s: %v, %v, want %v", r, got, err, want)
			}
		}
	}
	for r := RAX; r <= IDTR; r++ {
		if r.String() == "" {
			t.Errorf("register %d has no name", int(r))
		}
	}
}

func TestCapabilities(t *testing.T) {
	h, f := newFake(t)
	vm := create(t, h, "x")
	c, err := vm.VCPU(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetCapability(UnrestrictedGuest, true); err != nil {
		t.Fatal(err)
	}
	for k, want := range map[Capability]bool{UnrestrictedGuest: true, ExitOnHLT: false} {
		if on, err := c.Capability(k); on != want || err != nil {
			t.Errorf("capability %d: %t, %v", k, on, err)
		}
	}
	f.errs["capability"] = []error{syscall.ENOENT}
	if _, err := c.Capability(EnableINVPCID); !errors.Is(err, ErrFailed) || errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "hardware") {
		t.Errorf("one that the hardware lacks: %v", err)
	}
	for _, k := range []Capability{0, EnableINVPCID + 1} {
		if err := c.SetCapability(k, true); !errdefs.IsInvalidArgument(err) {
			t.Errorf("set %d: %v", k, err)
		}
		if _, err := c.Capability(k); !errdefs.IsInvalidArgument(err) {
			t.Errorf("get %d: %v", k, err)
		}
	}
	if err := c.Reset(); err != nil || f.calls[len(f.calls)-1] != "resetVCPU 1" {
		t.Errorf("reset: %v, %v", err, f.calls)
	}
}

// TestStats: values are found by name, names are read once, and a vCPU that is
// not active is not asked for, which would make it.
func TestStats(t *testing.T) {
	h, f := newFake(t)
	vm := create(t, h, "x")
	f.machines["x"].active = []int{0, 1}
	for id := range 3 {
		c, err := vm.VCPU(id)
		if err != nil {
			t.Fatal(err)
		}
		before := count(f.calls, "stats")
		s, err := c.Stats()
		if id == 2 {
			if !errdefs.IsInvalidArgument(err) || count(f.calls, "stats") != before {
				t.Errorf("a vCPU that is not active: %v, calls %v", err, f.calls)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]uint64{"vcpu total runtime": uint64(100 + id), "Resident memory": 200, "total number of vm exits": 300}
		if !reflect.DeepEqual(s.Values, want) || !s.At.Equal(time.Unix(1000, 0)) {
			t.Errorf("got %v", s)
		}
	}
	if n := count(f.calls, "statName"); n != len(fakeStats)+1 {
		t.Errorf("names were asked for %d times, want once each and once for the end", n)
	}
}

func TestSetsTopologyClock(t *testing.T) {
	h, f := newFake(t)
	vm := create(t, h, "x")
	f.machines["x"].active = []int{0, 2}
	if ids, err := vm.ActiveVCPUs(); err != nil || !reflect.DeepEqual(ids, []int{0, 2}) {
		t.Errorf("active: %v, %v", ids, err)
	}
	if _, err := vm.SuspendedVCPUs(); err != nil || f.calls[len(f.calls)-1] != "cpus 1" {
		t.Errorf("suspended: %v, %v", err, f.calls)
	}
	if _, err := vm.DebugVCPUs(); err != nil || f.calls[len(f.calls)-1] != "cpus 2" {
		t.Errorf("held: %v, %v", err, f.calls)
	}
	if err := vm.SetTopology(Topology{Sockets: 1, Cores: 2, Threads: 1}); err != nil {
		t.Error(err)
	}
	if got, err := vm.Topology(); err != nil || got != (Topology{1, 2, 1, fakeMaxVCPUs}) {
		t.Errorf("topology %v, %v", got, err)
	}
	for _, bad := range []Topology{{}, {1, 1, 1, 4}, {0, 1, 1, 0}} {
		if err := vm.SetTopology(bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	now := time.Unix(1700000000, 0)
	if err := vm.SetClock(now); err != nil {
		t.Error(err)
	}
	if got, err := vm.Clock(); err != nil || !got.Equal(now) {
		t.Errorf("clock %v, %v", got, err)
	}
}

func count(calls []string, fn string) (n int) {
	for _, c := range calls {
		if c == fn {
			n++
		}
	}
	return n
}
