//go:build linux || freebsd

package integration

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	sandboxapi "github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/typeurl/v2"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// TestSandboxAPI makes sandboxes through containerd's Sandbox API, as its CRI
// plugin does, and puts ctr's containers into them.
func TestSandboxAPI(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"life", testSandboxLife},
		{"stopped under its containers", testSandboxStopped},
		{"machine killed", testSandboxMachineKilled},
		{"shim killed", testSandboxShimKilled},
		{"containerd restarted", testSandboxRestart},
		{"refused", testSandboxRefused},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(newRig(t, lab.RuntimeBhyve)) })
	}
}

// sandboxer is containerd's controller that leaves sandboxes to their shims.
func (r *rig) sandboxer() sandboxapi.Controller { return r.Client.SandboxController("shim") }

// sandbox creates and starts a sandbox, and returns its id with ctr's flags for
// a container in it.
func (r *rig) sandbox(pod *cri.PodSandboxConfig) (id string, join []string) {
	r.Helper()
	id = r.newID()
	if err := r.createSandbox(id, pod); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.ctx, commandTimeout)
	defer cancel()
	got, err := r.sandboxer().Start(ctx, id)
	if err != nil {
		r.Fatal(err)
	}
	if got.Pid == 0 || time.Since(got.CreatedAt) > commandTimeout {
		r.Errorf("started as %+v", got)
	}
	return id, append([]string{"--sandbox", id}, shareFlags("ipc", "uts")...)
}

// createSandbox creates a sandbox that ends with the test.
func (r *rig) createSandbox(id string, pod *cri.PodSandboxConfig) error {
	r.Helper()
	return r.createSandboxWith(id, pod, nil)
}

// createSandboxWith is createSandbox with runtime options.
func (r *rig) createSandboxWith(id string, pod *cri.PodSandboxConfig, options typeurl.Any) error {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, commandTimeout)
	defer cancel()
	s := sandboxapi.Sandbox{ID: id, Sandboxer: "shim", Runtime: sandboxapi.RuntimeOpts{Name: r.runtime, Options: options}}
	if _, err := r.Client.SandboxStore().Create(ctx, s); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), commandTimeout)
		defer cancel()
		// It may be gone already.
		_ = r.sandboxer().Shutdown(ctx, id)
		if err := r.Client.SandboxStore().Delete(ctx, id); err != nil {
			r.Error(err)
		}
	})
	return r.sandboxer().Create(ctx, s, sandboxapi.WithOptions(pod))
}

func (r *rig) wantSandbox(id, state string) {
	r.Helper()
	st, err := r.sandboxer().Status(r.ctx, id, true)
	if err != nil || st.State != state {
		r.Errorf("sandbox %s is %q, %v, want %q", id, st.State, err, state)
	}
}

// lines runs a script in a container, and returns what it says line by line.
func (r *rig) lines(id string, script ...string) []string {
	r.Helper()
	out := r.mustOK(r.exec(id, nil, nil, nil, "/bin/sh", "-c", strings.Join(script, "\n"))).Stdout
	return strings.Split(strings.TrimSuffix(out, "\n"), "\n")
}

func testSandboxLife(r *rig) {
	id, join := r.sandbox(&cri.PodSandboxConfig{
		Hostname:  "the-pod",
		DnsConfig: &cri.DNSConfig{Servers: []string{"192.0.2.53"}, Searches: []string{"example.org"}},
		Linux: &cri.LinuxPodSandboxConfig{
			Sysctls:         map[string]string{"net.core.somaxconn": "123", "kernel.shmmni": "77"},
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}},
		},
	})
	r.wantSandbox(id, "SANDBOX_READY")

	one, two := r.start(join), r.start(join)
	first := r.lines(one, "hostname", "cat /etc/hostname", "grep -c localhost /etc/hosts", "cat /etc/resolv.conf",
		"cat /proc/sys/net/core/somaxconn", "cat /proc/sys/kernel/shmmni", "readlink /proc/self/ns/net", "echo shared > /dev/shm/x; echo here > /etc/hosts")
	want := []string{"the-pod", "the-pod", "2", "search example.org", "nameserver 192.0.2.53", "123", "77"}
	if got := strings.Join(first[:len(first)-1], "|"); got != strings.Join(want, "|") {
		r.Errorf("in the pod: %q, want %q", got, strings.Join(want, "|"))
	}
	second := r.lines(two, "readlink /proc/self/ns/net", "cat /dev/shm/x", "cat /etc/hosts")
	if got, want := strings.Join(second, "|"), first[len(first)-1]+"|shared|here"; got != want {
		r.Errorf("in its other container: %q, want %q", got, want)
	}

	metric, err := r.sandboxer().Metrics(r.ctx, id)
	if err != nil {
		r.Fatal(err)
	}
	data, err := typeurl.UnmarshalAny(metric.Data)
	if m, ok := data.(*stats.Metrics); err != nil || !ok || m.Pids.GetCurrent() < 2 || m.Memory.GetUsage() == 0 || m.CPU.GetUsageUsec() == 0 {
		r.Errorf("metrics are %v, %v", data, err)
	}

	for _, c := range []string{one, two} {
		r.must("task", "kill", "--signal", "SIGKILL", c)
		r.waitStatus(c, "STOPPED")
		r.must("task", "rm", c)
		r.wantSandbox(id, "SANDBOX_READY")
	}
	three := r.start(join)
	r.expect(r.exec(three, nil, nil, nil, "/bin/cat", "/dev/shm/x"), 0, "shared\n")
	r.removeContainer(three)

	if err := r.sandboxer().Stop(r.ctx, id); err != nil {
		r.Fatal(err)
	}
	r.wantSandbox(id, "SANDBOX_NOTREADY")
	if exit, err := r.sandboxer().Wait(r.ctx, id); err != nil || exit.ExitStatus != 0 {
		r.Errorf("exit is %+v, %v", exit, err)
	}
	if err := r.sandboxer().Shutdown(r.ctx, id); err != nil {
		r.Errorf("shutdown: %v", err)
	}
}

func testSandboxStopped(r *rig) {
	id, join := r.sandbox(&cri.PodSandboxConfig{Hostname: "h"})
	one := r.start(join)
	events := r.subscribe()
	if err := r.sandboxer().Stop(r.ctx, id, sandboxapi.WithTimeout(time.Second)); err != nil {
		r.Fatal(err)
	}
	r.wantDeath(events, one)
	r.waitStatus(one, "STOPPED")
	r.must("task", "rm", "--force", one)
	r.wantSandbox(id, "SANDBOX_NOTREADY")
	if result := r.ctr(append(append([]string{"run", "--runtime", r.runtime}, join...), lab.Image, r.newID(), "/bin/true")...); result.Code == 0 {
		r.Errorf("a container in a stopped sandbox: %s", result)
	}
	r.removeContainer(fmt.Sprintf("c%d", lastID.Load()))
}

func testSandboxMachineKilled(r *rig) {
	id, join := r.sandbox(&cri.PodSandboxConfig{Hostname: "h"})
	one := r.start(join)
	events := r.subscribe()
	if err := r.findMachine(id).Kill(); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.ctx, commandTimeout)
	defer cancel()
	if exit, err := r.sandboxer().Wait(ctx, id); err != nil || exit.ExitStatus != 137 {
		r.Errorf("exit is %+v, %v", exit, err)
	}
	r.wantSandbox(id, "SANDBOX_NOTREADY")
	r.wantDeath(events, one)
}

func testSandboxShimKilled(r *rig) {
	id, join := r.sandbox(&cri.PodSandboxConfig{Hostname: "h"})
	containers := []string{r.start(join), r.start(join)}
	var events []*subscription
	for range containers {
		events = append(events, r.subscribe())
	}
	// The one that its first container came with has gone by now.
	r.removeContainer(containers[0])
	if err := r.findProcess("containerd-shim-bhyve", id).Kill(); err != nil {
		r.Fatal(err)
	}
	r.wantDeath(events[1], containers[1])
	r.eventually(commandTimeout, func() error {
		if machineRuns(id) == nil {
			return fmt.Errorf("the machine of %s outlives its shim", id)
		}
		return nil
	})
}

func testSandboxRestart(r *rig) {
	id, join := r.sandbox(&cri.PodSandboxConfig{Hostname: "h"})
	one := r.start(join)
	if err := errors.Join(r.KillContainerd(), r.StartContainerd(r.ctx)); err != nil {
		r.Fatal(err)
	}
	r.wantSandbox(id, "SANDBOX_READY")
	r.expect(r.exec(one, nil, nil, nil, "/bin/echo", "still here"), 0, "still here\n")
	two := r.start(join)
	r.expect(r.exec(two, nil, nil, nil, "/bin/hostname"), 0, "h\n")
	for _, c := range []string{one, two} {
		r.removeContainer(c)
	}
	r.wantSandbox(id, "SANDBOX_READY")
	if err := errors.Join(r.sandboxer().Stop(r.ctx, id), r.sandboxer().Shutdown(r.ctx, id)); err != nil {
		r.Error(err)
	}
}

func testSandboxRefused(r *rig) {
	for name, pod := range map[string]*cri.PodSandboxConfig{
		"a DNS server that is two":   {DnsConfig: &cri.DNSConfig{Servers: []string{"192.0.2.1\nnameserver 192.0.2.2"}}},
		"an annotation of no effect": {Annotations: map[string]string{"io.containerd.bhyve.nonsense": "1"}},
	} {
		if err := r.createSandbox(r.newID(), pod); err == nil {
			r.Errorf("%s: created", name)
		}
	}
	id := r.newID()
	if err := r.createSandbox(id, &cri.PodSandboxConfig{Linux: &cri.LinuxPodSandboxConfig{Sysctls: map[string]string{"kernel.panic": "0"}}}); err != nil {
		r.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.ctx, commandTimeout)
	defer cancel()
	if _, err := r.sandboxer().Start(ctx, id); err == nil || !strings.Contains(err.Error(), "kernel.panic") {
		r.Errorf("a sysctl of the machine's: %v", err)
	}

	const dir = "/there/is/no/guest/image"
	file := filepath.Join(r.hostDir(), "shim.toml")
	if err := r.WriteShimConfig(file, lab.ShimConfig{GuestDir: dir}); err != nil {
		r.Fatal(err)
	}
	options, err := typeurl.MarshalAny(&runtimeoptions.Options{ConfigPath: file})
	if err != nil {
		r.Fatal(err)
	}
	id = r.newID()
	if err := r.createSandboxWith(id, &cri.PodSandboxConfig{}, options); err != nil {
		r.Fatal(err)
	}
	if _, err := r.sandboxer().Start(ctx, id); err == nil || !strings.Contains(err.Error(), dir) {
		r.Errorf("with a configuration of its own: %v", err)
	}
}
