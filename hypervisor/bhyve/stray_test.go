package bhyve

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// tapOfStray is a tap that is known by its process alone.
type tapOfStray struct{ undone *bool }

func (tapOfStray) Kind() string                 { return "tap of a test" }
func (r tapOfStray) Undo(context.Context) error { *r.undone = true; return nil }

func TestStrays(t *testing.T) {
	r := newRig(t, running)
	m := r.launch(t)
	strays := func() []hypervisor.Stray {
		t.Helper()
		s, err := r.Strays(t.Context(), filepath.Dir(r.cfg.Dir), func(string) bool { return false })
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if s := strays(); len(s) != 0 {
		t.Errorf("with an owner: %+v", s)
	}
	id := m.(hypervisor.Transferable).Record().Process
	if err := m.(hypervisor.Transferable).Disown(); err != nil {
		t.Fatal(err)
	}
	undone := false
	r.tapsOf = func(_ context.Context, pid int) ([]receipt.Resource, error) {
		if pid != id.Pid {
			return nil, errors.New("not its process")
		}
		return []receipt.Resource{tapOfStray{&undone}}, nil
	}
	s := strays()
	if len(s) != 1 || s[0].Process != id || s[0].Dir != r.cfg.Dir {
		t.Fatalf("without one: %+v", s)
	}
	// What its end leaves, beside another that was left before.
	r.vmm.others = []string{vmName("stray.1"), "freebsd"}
	if err := s[0].Destroy(t.Context()); err != nil || !undone {
		t.Errorf("destroy: %v, tap undone: %v", err, undone)
	}
	if alive, err := id.Alive(); err != nil || alive {
		t.Errorf("it lives: %v", err)
	}
	if !slices.Equal(r.vmm.destroyed, []string{vmName("stray.1")}) {
		t.Errorf("destroyed %v", r.vmm.destroyed)
	}

	s = strays()
	if len(s) != 1 || s[0].ID != "stray.1" || s[0].Process.Pid != 0 {
		t.Fatalf("a virtual machine without a process: %+v", s)
	}
	r.vmm.others = nil
	if err := s[0].Destroy(t.Context()); err != nil || len(r.vmm.destroyed) != 1 {
		t.Errorf("one that is gone: %v, destroyed %v", err, r.vmm.destroyed)
	}
}
