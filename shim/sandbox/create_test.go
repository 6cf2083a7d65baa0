package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"go.uber.org/goleak"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
)

func TestTheFirstContainersBootOneMachine(t *testing.T) {
	b := newBed(t)
	const n = 8
	release := make(chan struct{})
	b.backend.launch = func(context.Context) error { <-release; return nil }
	var wg sync.WaitGroup
	for i := range n {
		r := b.request("c" + string(rune('a'+i)))
		wg.Go(func() {
			if _, err := b.Create(b.within(), r); err != nil {
				t.Error(err)
			}
		})
	}
	b.eventually("all are waiting", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return len(b.containers) == n
	})
	close(release)
	wg.Wait()
	if launched := len(b.backend.launched()); launched != 1 {
		t.Errorf("%d machines were launched", launched)
	}
}

func TestOneIdIsOneContainer(t *testing.T) {
	b := newBed(t)
	results := make(chan error, 4)
	for range cap(results) {
		r := b.request("c1")
		go func() {
			_, err := b.Create(b.within(), r)
			results <- err
		}()
	}
	made := 0
	for range cap(results) {
		switch err := <-results; {
		case err == nil:
			made++
		case !errdefs.IsAlreadyExists(err):
			t.Error(err)
		}
	}
	if made != 1 {
		t.Errorf("%d containers of one id", made)
	}
}

func TestABootThatFails(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*bed, *CreateRequest)
		phase string
		kind  func(error) bool
		named string
	}{
		"no guest image": {func(b *bed, r *CreateRequest) { r.Config.Guest.Dir = "/nonexistent" }, "", errdefs.IsNotFound, "/nonexistent"},
		"the monitor does not start": {func(b *bed, r *CreateRequest) {
			b.backend.launch = refusal(errdefs.ErrUnavailable)
		}, "", errdefs.IsUnavailable, "refused"},
		"the guest does not come up": {func(b *bed, r *CreateRequest) {
			r.Config.Machine.BootTimeout = config.Duration{Duration: 300 * time.Millisecond}
			b.backend.furnish = func(a *fakeAgent) { a.on("system.Hello", silence) }
		}, "agent", errdefs.IsDeadlineExceeded, "last line of the console"},
		"and what was waited for is said": {func(b *bed, r *CreateRequest) {
			r.Config.Machine.BootTimeout = config.Duration{Duration: 300 * time.Millisecond}
			b.backend.furnish = func(a *fakeAgent) { a.on("system.Hello", silence) }
		}, "agent", errdefs.IsDeadlineExceeded, "boot_timeout of 300ms"},
		"the guest is of another version": {func(b *bed, r *CreateRequest) {
			b.backend.furnish = func(a *fakeAgent) { a.protocol++ }
		}, "agent", errdefs.IsFailedPrecondition, "protocol version"},
		"the guest cannot be thawed": {func(b *bed, r *CreateRequest) {
			b.backend.furnish = func(a *fakeAgent) { a.on("thaw.Thaw", refusal(errdefs.ErrUnavailable)) }
		}, "agent", func(err error) bool { return err != nil }, "thaw"},
		"the machine dies while it boots": {func(b *bed, r *CreateRequest) {
			b.backend.furnish = func(a *fakeAgent) {
				a.on("system.Hello", func(ctx context.Context) error {
					b.eventually("launched", func() bool { return len(b.backend.launched()) == 1 })
					b.machineNow().die(hypervisor.ExitReset)
					return silence(ctx)
				})
			}
		}, "agent", func(err error) bool { return errors.Is(err, hypervisor.ErrExited) }, "reset"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			r := b.request("c1")
			good := r
			tc.spoil(b, &r)
			_, err := b.Create(b.within(), r)
			if err == nil || !tc.kind(err) || !strings.Contains(err.Error(), tc.named) {
				t.Errorf("got %v, want one that names %q", err, tc.named)
			}
			var launch *hypervisor.LaunchError
			if errors.As(err, &launch) != (tc.phase != "") || launch != nil && launch.Phase != tc.phase {
				t.Errorf("got %#v, want a LaunchError of phase %q", err, tc.phase)
			}
			for _, m := range b.backend.launched() {
				if !m.wasDestroyed() {
					t.Error("the machine lives on")
				}
			}
			if b.Pid() != 0 {
				t.Errorf("pid is %d", b.Pid())
			}
			noReceipts(t, r.Bundle)

			// And again, with the cause gone.
			b.backend.launch, b.backend.furnish = nil, nil
			if _, err := b.Create(b.within(), good); err != nil {
				t.Errorf("second attempt: %v", err)
			}
		})
	}
}

// A caller that gives up must not take the others' boot with it for good.
func TestABootWhoseCallerGivesUp(t *testing.T) {
	b := newBed(t)
	ctx, giveUp := context.WithCancel(context.Background())
	var launches atomic.Int32
	b.backend.launch = func(ctx context.Context) error {
		if launches.Add(1) == 1 {
			return silence(ctx)
		}
		return nil
	}
	first := make(chan error, 1)
	r1, r2 := b.request("c1"), b.request("c2")
	go func() { _, err := b.Create(ctx, r1); first <- err }()
	b.eventually("the first is booting", func() bool { return launches.Load() == 1 })
	second := make(chan error, 1)
	go func() { _, err := b.Create(b.within(), r2); second <- err }()
	b.eventually("the second waits", func() bool { b.mu.Lock(); defer b.mu.Unlock(); return len(b.containers) == 2 })
	giveUp()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the first got %v", err)
	}
	if err := <-second; err != nil {
		t.Errorf("the second got %v", err)
	}
}

// Every step of Create that can fail, in a sandbox that already runs: nothing
// of the container is left on either side, and its id can be used again.
func TestACreateThatFailsLeavesNothing(t *testing.T) {
	for name, tc := range map[string]struct {
		spoil func(*bed, *CreateRequest)
		kind  func(error) bool
	}{
		"no config.json": {func(b *bed, r *CreateRequest) {
			must(b.t, os.Remove(filepath.Join(r.Bundle, "config.json")))
		}, errdefs.IsNotFound},
		"malformed config.json": {func(b *bed, r *CreateRequest) {
			must(b.t, os.WriteFile(filepath.Join(r.Bundle, "config.json"), []byte("{"), 0o600))
		}, errdefs.IsInvalidArgument},
		"stdio to a server": {func(b *bed, r *CreateRequest) { r.Stdio.Stdout = "http:///x" }, errdefs.IsNotImplemented},
		"no root directory": {func(b *bed, r *CreateRequest) { must(b.t, os.Remove(filepath.Join(r.Bundle, "rootfs"))) }, errdefs.IsNotFound},
		"hooks": {func(b *bed, r *CreateRequest) {
			*r = b.request(r.ID, func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/nonexistent"}}} })
		}, errdefs.IsNotFound},
		"a missing volume": {func(b *bed, r *CreateRequest) {
			*r = b.request(r.ID, func(s *specs.Spec) {
				s.Mounts = []specs.Mount{{Destination: "/mnt", Type: "bind", Source: "/nonexistent"}}
			})
		}, errdefs.IsNotFound},
		"a file stream refused": {func(b *bed, r *CreateRequest) {
			b.agent().on("stream 9p/c2/rootfs", refusal(errdefs.ErrUnavailable))
		}, func(err error) bool { return err != nil }},
		"the bundle refused": {func(b *bed, r *CreateRequest) {
			b.agent().on("bundle.Create", refusal(errdefs.ErrUnavailable))
		}, errdefs.IsUnavailable},
		"the bundle's answer lost": {func(b *bed, r *CreateRequest) {
			a := b.agent()
			a.on("bundle.Create", func(ctx context.Context) error {
				a.mu.Lock()
				a.bundles["c2"] = true
				a.mu.Unlock()
				return silence(ctx)
			})
		}, errdefs.IsDeadlineExceeded},
		"a stdio stream refused": {func(b *bed, r *CreateRequest) {
			r.Stdio.Stdout, _ = b.output()
			b.agent().on("stream io/c2/init/stdout", refusal(errdefs.ErrUnavailable))
		}, func(err error) bool { return err != nil }},
		"no FIFO": {func(b *bed, r *CreateRequest) { r.Stdio.Stdout = "/nonexistent/fifo" }, func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		"the task refused": {func(b *bed, r *CreateRequest) {
			r.Stdio.Stdout, _ = b.output()
			b.agent().on("task.Create", refusal(errdefs.ErrInvalidArgument))
		}, errdefs.IsInvalidArgument},
		"the task's answer lost": {func(b *bed, r *CreateRequest) {
			a := b.agent()
			a.on("task.Create", func(ctx context.Context) error {
				_ = a.addTask("c2/")
				return silence(ctx)
			})
		}, errdefs.IsDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			b.cfg.Machine.AgentTimeout = config.Duration{Duration: time.Second}
			// A machine that runs and is empty: nothing in it comes or goes by
			// itself.
			c := b.running("c1")
			b.agent().exit("c1", "", 0)
			_, err := c.Delete(b.within(), "")
			must(t, err)
			before := goleak.IgnoreCurrent()

			r := b.request("c2")
			good := r
			tc.spoil(b, &r)
			_, err = b.Create(b.within(), r)
			if err == nil || !tc.kind(err) {
				t.Errorf("got %v", err)
			}
			noReceipts(t, r.Bundle)
			a := b.agent()
			if a.hasBundle("c2") || a.hasTask("c2") {
				t.Errorf("left in the guest: bundle %v, task %v", a.hasBundle("c2"), a.hasTask("c2"))
			}
			if _, err := b.Container("c2"); !errdefs.IsNotFound(err) {
				t.Errorf("the container is there: %v", err)
			}
			a.mu.Lock()
			clear(a.hooks)
			a.mu.Unlock()
			// The fake's own goroutines that never answer are not the sandbox's.
			if !errdefs.IsDeadlineExceeded(err) {
				goleak.VerifyNone(t, before)
			}

			must(t, os.MkdirAll(filepath.Join(good.Bundle, "rootfs"), 0o755))
			if _, err := os.Stat(filepath.Join(good.Bundle, "config.json")); err != nil || strings.Contains(name, "malformed") {
				good = b.request("c2")
			}
			if _, err := b.Create(b.within(), good); err != nil {
				t.Errorf("second attempt: %v", err)
			}
		})
	}
}

// A root filesystem that containerd does not mount may be anywhere: `ctr run
// --rootfs` names it in the spec.
func TestRootfsNamedInTheSpec(t *testing.T) {
	elsewhere := t.TempDir()
	b := newBed(t)
	r := b.request("c1", func(s *specs.Spec) { s.Root.Path = elsewhere })
	must(t, os.Remove(filepath.Join(r.Bundle, "rootfs")))
	b.create(r) // which serves a directory that is there
}

// bindMount is how containerd's native snapshotter has a directory mounted.
func bindMount(source string) *types.Mount {
	if runtime.GOOS == "freebsd" {
		return &types.Mount{Type: "nullfs", Source: source, Options: []string{"rw"}}
	}
	return &types.Mount{Type: "bind", Source: source, Options: []string{"rbind", "rw"}}
}

func TestAMountedRootfsIsUnmounted(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root to mount")
	}
	lower := t.TempDir()
	must(t, os.WriteFile(filepath.Join(lower, "marker"), nil, 0o644))
	bind := []*types.Mount{bindMount(lower)}
	mounted := func(r CreateRequest) bool {
		_, err := os.Stat(filepath.Join(r.Bundle, "rootfs", "marker"))
		return err == nil
	}

	b := newBed(t)
	r := b.request("c1")
	r.Rootfs = bind
	c := b.create(r)
	if !mounted(r) {
		t.Error("not mounted")
	}
	must(t, c.Start(b.within(), ""))
	b.agent().exit("c1", "", 0)
	if _, err := c.Delete(b.within(), ""); err != nil {
		t.Fatal(err)
	}
	if mounted(r) {
		t.Error("still mounted after Delete")
	}

	for name, spoil := range map[string]func(*CreateRequest){
		"second mount fails": func(r *CreateRequest) {
			r.Rootfs = append(r.Rootfs[:1:1], bindMount("/nonexistent"))
		},
		"guest refuses": func(*CreateRequest) { b.agent().on("bundle.Create", refusal(errdefs.ErrUnavailable)) },
	} {
		r := b.request("c2")
		r.Rootfs = bind
		spoil(&r)
		if _, err := b.Create(b.within(), r); err == nil {
			t.Errorf("%s: created", name)
		}
		if mounted(r) {
			t.Errorf("%s: still mounted", name)
		}
		noReceipts(t, r.Bundle)
	}
}
