//go:build linux || freebsd

package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/types/known/durationpb"

	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/internal/fakevm"
)

func (r *rig) eventuallyHot(c *client.Client, want uint32) {
	r.Helper()
	r.eventually(func() error {
		s := r.status(c).Templates[0]
		if s.Hot != want || s.Making != 0 {
			return fmt.Errorf("want %d hot, have %v", want, s)
		}
		return nil
	})
}

func watermarks(low, high uint32) func(*poolv1.Template) {
	return func(t *poolv1.Template) { t.Low, t.High = low, high }
}

func TestRefillFromLowToHigh(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template(watermarks(2, 4)))
	r.eventuallyHot(c, 4)
	for range 2 {
		if _, err := r.claim(c, tmpl); err != nil {
			t.Fatal(err)
		}
	}
	// Two left are not below the low watermark.
	if s := r.status(c).Templates[0]; s.MadeBoot != 4 {
		t.Errorf("%d machines were made, want 4", s.MadeBoot)
	}
	if _, err := r.claim(c, tmpl); err != nil {
		t.Fatal(err)
	}
	r.eventuallyHot(c, 4)
	if s := r.status(c).Templates[0]; s.MadeBoot != 7 {
		t.Errorf("%d machines were made, want 7", s.MadeBoot)
	}
}

func TestIdleMachinesGo(t *testing.T) {
	r := newRig(t)
	p := r.open(t.Context())
	c := r.dial()
	r.add(c, r.template(watermarks(1, 3), func(t *poolv1.Template) { t.IdleTimeout = durationpb.New(time.Hour) }))
	r.eventuallyHot(c, 3)
	p.tend(time.Now().Add(59 * time.Minute))
	r.eventuallyHot(c, 3)
	p.tend(time.Now().Add(61 * time.Minute))
	r.eventuallyHot(c, 1)
	r.eventually(func() error {
		if n := len(r.machines()); n != 1 {
			return fmt.Errorf("%d machines run", n)
		}
		return nil
	})
}

func TestHostMemoryDecides(t *testing.T) {
	const mib = 1 << 20
	r := newRig(t)
	var available atomic.Uint64
	available.Store(3 * 128 * mib)
	r.memory = func() (Memory, error) { return Memory{Total: 1 << 30, Available: available.Load()}, nil }
	r.reserve = 128 * mib
	p := r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template(watermarks(0, 4)))
	r.warm(c, tmpl.Name, 2)

	// Below the reserve nothing is made, and what waits goes.
	available.Store(127 * mib)
	if _, err := r.claimWant(c, client.Want{Shape: tmpl.Shape, Boot: true}); err != nil {
		t.Errorf("a claim from the hot tier: %v", err)
	}
	p.tend(time.Now())
	r.eventuallyHot(c, 0)
	if _, err := r.claimWant(c, client.Want{Shape: tmpl.Shape, Boot: true}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("a boot without memory: %v, want resource exhausted", err)
	}
	if s := r.status(c); s.Memory.Promised != 0 || s.Templates[0].Evicted != 1 {
		t.Errorf("after all that: %v", s)
	}
}

func TestFailuresAreToldAndTriedAgain(t *testing.T) {
	errBroken := errors.New("broken")
	for _, op := range []string{"launch", "park"} {
		t.Run(op, func(t *testing.T) {
			r := newRig(t)
			var failures atomic.Int32
			r.backend.Fail = func(o string) error {
				if o == op && failures.Add(1) <= 2 {
					return errBroken
				}
				return nil
			}
			r.open(t.Context())
			c := r.dial()
			r.add(c, r.template(watermarks(1, 1)))
			r.eventually(func() error {
				if s := r.status(c).Templates[0]; s.Failed == 0 || s.Trouble == "" && s.Hot == 0 {
					return fmt.Errorf("nothing is said of it: %v", s)
				}
				return nil
			})
			r.eventuallyHot(c, 1)
			if s := r.status(c).Templates[0]; s.Trouble != "" {
				t.Errorf("there is still trouble: %s", s.Trouble)
			}
		})
	}
}

// What cannot be released is told of, and released when somebody asks again.
func TestCheckAndGC(t *testing.T) {
	r := newRig(t)
	var stuck atomic.Bool
	stuck.Store(true)
	r.backend.Fail = func(op string) error {
		if op == "destroy" && stuck.Load() {
			return errors.New("stuck")
		}
		return nil
	}
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template())
	r.warm(c, tmpl.Name, 1)
	if _, err := c.Evict(t.Context(), &poolv1.EvictRequest{}); err == nil {
		t.Error("evicted what is stuck")
	}
	state := options(r.dir).State
	if err := os.MkdirAll(filepath.Join(state, entriesDir, "stray"), 0o700); err != nil {
		t.Fatal(err)
	}
	unfinishedDir := filepath.Join(options(r.dir).Root, checkpointsDir, unfinished+"x.1")
	if err := os.MkdirAll(unfinishedDir, 0o700); err != nil {
		t.Fatal(err)
	}
	found, err := c.Check(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(found.Lines, "\n")
	for _, want := range []string{"could not be released", "stray", "never finished"} {
		if !strings.Contains(text, want) {
			t.Errorf("check says nothing of %q: %q", want, text)
		}
	}
	stuck.Store(false)
	if found, err := c.GC(t.Context(), nil); err != nil || len(found.Lines) != 3 {
		t.Errorf("gc: %v, %v", found, err)
	}
	if found, err := c.Check(t.Context(), nil); err != nil || len(found.Lines) != 0 {
		t.Errorf("check after gc: %v, %v", found, err)
	}
	if err := r.noMachines(); err != nil {
		t.Error(err)
	}
}

func TestTemplateChanges(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	old := r.add(c, r.template(cold))
	r.checkpointDir(c)
	r.warm(c, old.Name, 2)
	before := r.machines()

	// Other watermarks are no other machines.
	r.add(c, r.template(cold, watermarks(1, 2)))
	if s := r.status(c).Templates[0]; s.Hot != 2 || s.Checkpoint == nil {
		t.Errorf("after a change of watermarks: %v", s)
	}
	// Another image is: machines and checkpoint of the old one go.
	if err := fakevm.Image(r.guestDir()); err != nil {
		t.Fatal(err)
	}
	fresh := r.add(c, r.template(cold))
	if _, err := r.claim(c, old); !errdefs.IsNotFound(err) {
		t.Errorf("the old image is still handed out: %v", err)
	}
	r.checkpointDir(c)
	r.warm(c, fresh.Name, 1)
	m, err := r.claim(c, fresh)
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range before {
		if alive, _ := id.Alive(); alive || id.Pid == m.Pid() {
			t.Errorf("machine %s of the old image is still there", id)
		}
	}
	// One that changes under the template is noticed.
	if err := fakevm.Image(r.guestDir()); err != nil {
		t.Fatal(err)
	}
	if err := c.Warm(r.context(), fresh.Name, 3, func(int, int) {}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("machines of an image that has changed: %v, want failed precondition", err)
	}
}

func TestTemplatesAreValidated(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	for name, tc := range map[string]struct {
		change func(*poolv1.Template)
		kind   func(error) bool
	}{
		"no name":        {func(t *poolv1.Template) { t.Name = "" }, errdefs.IsInvalidArgument},
		"a path":         {func(t *poolv1.Template) { t.Name = "../x" }, errdefs.IsInvalidArgument},
		"too long":       {func(t *poolv1.Template) { t.Name = strings.Repeat("x", 49) }, errdefs.IsInvalidArgument},
		"relative image": {func(t *poolv1.Template) { t.GuestDir = "guest" }, errdefs.IsInvalidArgument},
		"no image":       {func(t *poolv1.Template) { t.GuestDir = "/nonexistent" }, errdefs.IsNotFound},
		"no shape":       {func(t *poolv1.Template) { t.Shape = nil }, errdefs.IsInvalidArgument},
		"no vCPU":        {func(t *poolv1.Template) { t.Shape.Vcpus = 0 }, errdefs.IsInvalidArgument},
		"many vCPUs":     {func(t *poolv1.Template) { t.Shape.Vcpus = 1 << 31 }, errdefs.IsInvalidArgument},
		"little memory":  {func(t *poolv1.Template) { t.Shape.MemoryMib = 64 }, errdefs.IsInvalidArgument},
		"low above high": {watermarks(3, 2), errdefs.IsInvalidArgument},
		"far too many":   {watermarks(0, 1<<31), errdefs.IsInvalidArgument},
		"network":        {func(t *poolv1.Template) { t.Shape.Nic = true }, errdefs.IsNotImplemented},
	} {
		_, err := c.AddTemplate(t.Context(), &poolv1.AddTemplateRequest{Template: r.template(tc.change)})
		if !tc.kind(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := c.AddTemplate(t.Context(), &poolv1.AddTemplateRequest{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("nothing: %v", err)
	}
	if s := r.status(c); len(s.Templates) != 0 {
		t.Errorf("stored: %v", s.Templates)
	}
}

func TestDrainAndResume(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	c := r.dial()
	tmpl := r.add(c, r.template(watermarks(2, 2)))
	r.eventuallyHot(c, 2)
	if _, err := c.Drain(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.claim(c, tmpl); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a claim while draining: %v, want failed precondition", err)
	}
	r.eventually(r.noMachines)
	if _, err := c.Resume(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	r.eventuallyHot(c, 2)
}

// There is one daemon for a directory.
func TestSecondDaemonIsRefused(t *testing.T) {
	r := newRig(t)
	r.open(t.Context())
	o := options(r.dir)
	o.Backend = r.backend
	if _, err := Open(t.Context(), o); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("a second pool: %v", err)
	}
}
