package process

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// machineOf is a machine that does nothing but wait for its process.
func machineOf(p *Process) *Machine {
	m := NewMachine("test", p)
	go func() {
		<-p.Ended()
		m.End(hypervisor.Exit{Reason: hypervisor.ExitKilled})
	}()
	return m
}

func stopped(t *testing.T, m *Machine) bool {
	t.Helper()
	is, err := m.Process.ID().Stopped()
	if err != nil {
		t.Fatal(err)
	}
	return is
}

func TestPark(t *testing.T) {
	p, _ := start(t, "read _; :")
	m := machineOf(p)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 3 {
		if err := errors.Join(m.Park(ctx), m.Park(ctx)); err != nil {
			t.Fatal(err)
		}
		if !stopped(t, m) {
			t.Error("parked, and not stopped")
		}
		if err := errors.Join(m.Unpark(ctx), m.Unpark(ctx)); err != nil {
			t.Fatal(err)
		}
		if stopped(t, m) {
			t.Error("stopped after it was unparked")
		}
	}
	if err := m.Park(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Wake(); err != nil {
		t.Fatal(err)
	}
	if err := m.Unpark(ctx); err != nil {
		t.Fatal(err)
	}
	// Its death while it is parked is noticed.
	if err := m.Park(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-time.After(patience):
		t.Fatal("not done")
	}
	for _, err := range []error{m.Park(ctx), m.Unpark(ctx)} {
		if !errors.Is(err, hypervisor.ErrExited) {
			t.Errorf("got %v", err)
		}
	}
	if err := m.Wake(); err != nil {
		t.Error(err)
	}
}
