package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	cgroup2 "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/config"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/shim/pod"
)

// declare makes the bed's sandbox one of the Sandbox API.
func (b *bed) declare() pod.Config {
	b.t.Helper()
	p := pod.Config{
		ID: "pod", Bundle: b.t.TempDir(), Hostname: "h",
		Sysctls: map[string]string{"net.x": "1"},
		Files:   []pod.File{{Path: "/etc/hosts", Content: []byte("127.0.0.1 localhost\n")}},
	}
	must(b.t, b.Declare(p, b.cfg))
	return p
}

func (b *bed) declaredAndStarted() pod.Config {
	b.t.Helper()
	p := b.declare()
	must(b.t, b.StartDeclared(b.within(), "pod"))
	return p
}

func (b *bed) waitEnd() <-chan Exit {
	ended := make(chan Exit, 1)
	go func() {
		e, err := b.WaitEnd(b.within(), "pod")
		if err != nil {
			b.t.Error(err)
		}
		ended <- e
	}()
	return ended
}

func (b *bed) wantSandbox(ready bool, pid uint32) Status {
	b.t.Helper()
	st, err := b.Status("pod")
	must(b.t, err)
	if st.Ready != ready || st.Pid != pid {
		b.t.Errorf("status is %+v", st)
	}
	return st
}

func TestADeclaredSandbox(t *testing.T) {
	b := newBed(t)
	p := b.declare()
	if n := len(b.backend.launched()); n != 0 {
		t.Errorf("%d machines before the start", n)
	}
	b.wantSandbox(false, 0)
	must(t, b.StartDeclared(b.within(), "pod"))
	if st := b.wantSandbox(true, fakePid); st.Created.IsZero() || !st.Exit.At.IsZero() || st.NetNS != p.NetNS || st.Machine == "" {
		t.Errorf("status is %+v", st)
	}
	got := b.agent().pod
	if got.GetHostname() != "h" || got.GetSysctls()["net.x"] != "1" || len(got.GetFiles()) != 1 || got.Files[0].Name != "hosts" {
		t.Errorf("the guest's pod is %v", got)
	}
	must(t, b.Ping(b.within(), "pod"))
	if m, err := b.Metrics(b.within(), "pod"); !errdefs.IsDataLoss(err) {
		t.Errorf("metrics that are none: %v, %v", m, err)
	}
	stats, err := typeurl.MarshalAnyToProto(&cgroup2.Metrics{Memory: &cgroup2.MemoryStat{Usage: 4711}})
	must(t, err)
	a := b.agent()
	a.mu.Lock()
	a.podStats = stats
	a.mu.Unlock()
	if m, err := b.Metrics(b.within(), "pod"); err != nil || m.GetMemory().GetUsage() != 4711 {
		t.Errorf("metrics: %v, %v", m, err)
	}

	// Containers come and go, and it stays.
	for _, id := range []string{"c1", "c2"} {
		c := b.running(id)
		b.agent().exit(id, "", 0)
		b.wantExit(b.wait(c, ""), 0)
		_, err := c.Delete(b.within(), "")
		must(t, err)
		if done, err := b.Shutdown(b.within()); done || err != nil {
			t.Errorf("a task's shutdown ended the sandbox: %v, %v", done, err)
		}
	}
	b.wantSandbox(true, fakePid)

	ended := b.waitEnd()
	must(t, b.Stop(b.within(), "pod", 0))
	if e := <-ended; e.Status != 0 || e.At.IsZero() {
		t.Errorf("exit is %+v", e)
	}
	if st := b.wantSandbox(false, 0); st.Exit.At.IsZero() {
		t.Errorf("status is %+v", st)
	}
	must(t, b.Stop(b.within(), "pod", 0))
	if err := b.Ping(b.within(), "pod"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("ping of a stopped sandbox: %v", err)
	}
	if err := b.StartDeclared(b.within(), "pod"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start of a stopped sandbox: %v", err)
	}
}

func TestRequestsOutOfPlace(t *testing.T) {
	b := newBed(t)
	ask := map[string]func(id string) error{
		"start":   func(id string) error { return b.StartDeclared(b.within(), id) },
		"status":  func(id string) error { _, err := b.Status(id); return err },
		"wait":    func(id string) error { _, err := b.WaitEnd(b.within(), id); return err },
		"ping":    func(id string) error { return b.Ping(b.within(), id) },
		"metrics": func(id string) error { _, err := b.Metrics(b.within(), id); return err },
		"stop":    func(id string) error { return b.Stop(b.within(), id, 0) },
	}
	for name, f := range ask {
		if err := f("pod"); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s before the creation: %v", name, err)
		}
	}
	p := b.declare()
	for name, f := range ask {
		if err := f("another"); !errdefs.IsNotFound(err) {
			t.Errorf("%s of another: %v", name, err)
		}
	}
	p.ID = "another"
	if err := b.Declare(p, b.cfg); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second creation: %v", err)
	}
	if _, err := b.Create(b.within(), b.request("c1")); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a container before the start: %v", err)
	}
	ended := b.waitEnd()
	must(t, b.Stop(b.within(), "pod", 0))
	<-ended

	b = newBed(t)
	b.running("c1")
	if err := b.Declare(p, b.cfg); !errdefs.IsAlreadyExists(err) {
		t.Errorf("creation in a shim with a container: %v", err)
	}
}

// What is no network namespace is held open all the same, and gives no network.
func TestANetworkThatIsNone(t *testing.T) {
	b := newBed(t)
	file := filepath.Join(t.TempDir(), "netns")
	must(t, os.WriteFile(file, nil, 0o400))
	p := pod.Config{ID: "pod", Bundle: t.TempDir(), NetNS: filepath.Join(t.TempDir(), "none")}
	if err := b.Declare(p, b.cfg); !errdefs.IsNotFound(err) {
		t.Errorf("with a namespace that is not there: %v", err)
	}
	p.NetNS = file
	b.cfg.Network.Mode = config.NetworkDefault
	must(t, b.Declare(p, b.cfg))
	if got := b.declared.network(); got != (networkRequest{}) {
		t.Errorf("it would have %+v", got)
	}
	must(t, b.StartDeclared(b.within(), "pod"))
	if st := b.wantSandbox(true, fakePid); st.NetNS != file {
		t.Errorf("status is %+v", st)
	}
	held := b.declared.netns.file
	must(t, b.Stop(b.within(), "pod", 0))
	ended := b.waitEnd()
	<-ended
	if _, err := held.Stat(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("it is still held: %v", err)
	}
}

func TestAPodThatTheGuestRefuses(t *testing.T) {
	b := newBed(t)
	b.backend.furnish = func(a *fakeAgent) { a.on("pod.Configure", refusal(errdefs.ErrInvalidArgument)) }
	b.declare()
	err := b.StartDeclared(b.within(), "pod")
	var launch *hypervisor.LaunchError
	if !errdefs.IsInvalidArgument(err) || !errors.As(err, &launch) || launch.Phase != "pod" {
		t.Errorf("got %v", err)
	}
	if !b.machineNow().wasDestroyed() {
		t.Error("the machine lives on")
	}
	b.wantSandbox(false, 0)
}

func TestAStopWithContainers(t *testing.T) {
	b := newBed(t)
	b.declaredAndStarted()
	c := b.running("c1")
	b.create(b.request("c2"))
	waited := b.wait(c, "")
	must(t, b.Stop(b.within(), "pod", time.Millisecond))
	b.wantExit(waited, exitStatusKilled)
	b.published("exit c1 137")
	if e, err := c.Delete(b.within(), ""); err != nil || e.Status != exitStatusKilled {
		t.Errorf("delete after the stop: %+v, %v", e, err)
	}
}

func TestADeclaredSandboxWhoseMachineDies(t *testing.T) {
	b := newBed(t)
	b.declaredAndStarted()
	ended := b.waitEnd()
	b.machineNow().die(hypervisor.ExitReset)
	if e := <-ended; e.Status != exitStatusKilled || e.At.IsZero() {
		t.Errorf("exit is %+v", e)
	}
	b.wantSandbox(false, 0)
	must(t, b.Stop(b.within(), "pod", 0))
	if e, err := b.WaitEnd(b.within(), "pod"); err != nil || e.Status != exitStatusKilled {
		t.Errorf("a stop after the death makes the exit %+v, %v", e, err)
	}
}

func TestAWaitThatIsGivenUp(t *testing.T) {
	b := newBed(t)
	b.declare()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := b.WaitEnd(ctx, "pod"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// CRI lets a container see another's processes, and cannot say whose.
func TestAContainerThatWatchesAnother(t *testing.T) {
	b := newBed(t)
	p := pod.Config{ID: "pod", Bundle: t.TempDir(), TargetPID: true}
	must(t, b.Declare(p, b.cfg))
	must(t, b.StartDeclared(b.within(), "pod"))
	watching := func(id string) CreateRequest {
		return b.request(id, func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/proc/4242/ns/pid"}}
		})
	}
	if _, err := b.Create(b.within(), watching("w0")); !errdefs.IsNotImplemented(err) {
		t.Errorf("with nobody to watch: %v", err)
	}
	b.running("c1")
	b.create(watching("w1"))
	a := b.agent()
	a.mu.Lock()
	var spec specs.Spec
	must(t, json.Unmarshal(a.configs["w1"], &spec))
	a.mu.Unlock()
	if !slices.Contains(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace, Path: "/proc/7/ns/pid"}) {
		t.Errorf("namespaces are %v", spec.Linux.Namespaces)
	}
	b.running("c2")
	if _, err := b.Create(b.within(), watching("w2")); !errdefs.IsNotImplemented(err) {
		t.Errorf("with two to choose from: %v", err)
	}
}

func TestContainersOfADeclaredSandbox(t *testing.T) {
	b := newBed(t)
	b.declaredAndStarted()
	b.create(b.request("c1", func(s *specs.Spec) {
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.UTSNamespace, Path: "/proc/4242/ns/uts"}}
	}))
	a := b.agent()
	a.mu.Lock()
	defer a.mu.Unlock()
	var spec specs.Spec
	must(t, json.Unmarshal(a.configs["c1"], &spec))
	if !slices.Contains(spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UTSNamespace, Path: "/run/sandbox/uts"}) {
		t.Errorf("namespaces are %v", spec.Linux.Namespaces)
	}
	if !slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/etc/hosts" }) {
		t.Errorf("mounts are %v", spec.Mounts)
	}
}
