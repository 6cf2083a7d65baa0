package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// savable is a container that can be saved, as far as the host knows.
func (b *bed) savable(id string) *Container {
	b.t.Helper()
	b.cfg.Machine.Checkpoint = true
	c := b.running(id)
	// The guest has mounted its root: Tversion, of 9P2000.L, and Rversion.
	root := b.agent().stream("9p/" + id + "/rootfs")
	hello := append([]byte{21, 0, 0, 0, 100, 0xff, 0xff, 0, 0, 1, 0, 8, 0}, "9P2000.L"...)
	_, err := root.Write(hello)
	must(b.t, err)
	_, err = root.Read(make([]byte, len(hello)))
	must(b.t, err)
	return c
}

// errStep is why a step of a save has failed.
var errStep = errors.New("this step fails")

// A save that fails in any step leaves no saved sandbox, and a guest that goes on
// or has ended with its machine.
func TestSaveFailsInEachStep(t *testing.T) {
	for name, tc := range map[string]struct {
		agent string // the request that the agent refuses
		save  func(*bed, string) error
		dies  bool
	}{
		"nothing fails":         {},
		"suspend":               {agent: "checkpoints.Suspend"},
		"the machine":           {save: func(*bed, string) error { return errStep }},
		"the machine half done": {save: func(_ *bed, dir string) error { return errors.Join(errStep, half(dir)) }},
		"the description": {save: func(_ *bed, dir string) error {
			return os.Mkdir(filepath.Join(filepath.Dir(dir), savedFile), 0o700) // In the way.
		}},
		"the machine dies": {dies: true, save: func(b *bed, dir string) error {
			b.machineNow().die(hypervisor.ExitKilled)
			return errors.Join(hypervisor.ErrExited, half(dir))
		}},
		"resume": {agent: "checkpoints.Resume", dies: true, save: func(_ *bed, dir string) error { return half(dir) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			c := b.savable("c1")
			m := b.machineNow()
			m.snapshot = func(_ context.Context, dir string) error {
				if tc.save == nil {
					return nil
				}
				return tc.save(b, dir)
			}
			var resumed atomic.Bool
			b.agent().on("checkpoints.Resume", func(context.Context) error { resumed.Store(true); return nil })
			if tc.agent != "" {
				b.agent().on(tc.agent, func(context.Context) error { return errStep })
			}
			dir := t.TempDir()
			err := c.Checkpoint(b.within(), dir, false)
			if name == "nothing fails" {
				must(t, err)
				_, err = readSaved(dir)
				must(t, err)
			} else if err == nil {
				t.Error("saved, although a step has failed")
			} else if _, err := readSaved(dir); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("what is there can be read: %v", err)
			} else if _, err := os.Stat(filepath.Join(dir, savedMachineDir)); !os.IsNotExist(err) {
				t.Errorf("a machine is left: %v", err)
			}
			if tc.dies {
				b.wantExit(b.wait(c, ""), exitStatusKilled)
				return
			}
			if !resumed.Load() {
				t.Error("the guest still stands still")
			}
			if status, _, err := c.Status(""); status != task.Status_RUNNING || err != nil {
				t.Errorf("it is %s, %v", status, err)
			}
			// Requests pass again.
			must(t, c.Resize(b.within(), "", 80, 25))
		})
	}
}

// once cannot be given back at the first attempt.
type once struct{}

var onceTried atomic.Bool

func init() { receipt.Register(once{}.Kind(), func() receipt.Resource { return new(once) }) }

func (once) Kind() string { return "given back at the second attempt" }

func (once) Undo(context.Context) error {
	if onceTried.CompareAndSwap(false, true) {
		return errStep
	}
	return nil
}

// A container that has ended to be saved is saved, whatever of its machine's is
// left on the host.
func TestSavedAndEnded(t *testing.T) {
	b := newBed(t)
	c := b.savable("c1")
	b.machineNow().snapshot = func(context.Context, string) error { return nil }
	onceTried.Store(false)
	line, err := b.home.book.Write(once{})
	must(t, err)
	b.vm.network = &network{line: line}
	dir := t.TempDir()
	must(t, c.Checkpoint(b.within(), dir, true))
	b.wantExit(b.wait(c, ""), exitStatusKilled)
	if _, err := readSaved(dir); err != nil || !onceTried.Load() {
		t.Errorf("tried to give it back: %t; what was saved: %v", onceTried.Load(), err)
	}
}

// half leaves something of a machine.
func half(dir string) error { return os.WriteFile(filepath.Join(dir, "state"), []byte("half"), 0o600) }
