//go:build linux || freebsd

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// TestMachine is about what only a machine of its own has.
func TestMachine(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"own kernel", testOwnKernel},
		{"own network", testOwnNetwork},
		{"link", testLink},
		{"default network", testDefaultNetwork},
		{"network namespace of the host", testNamespaceOfTheHost},
		{"nerdctl publishes", testNerdctlPublishes},
		{"pod network", testPodNetwork},
		{"machine killed", testMachineKilled},
		{"agent crashed", testAgentCrashed},
		{"client gone during boot", testClientGone},
		{"no guest image", testNoGuestImage},
		{"boot timeout", testBootTimeout},
		{"size", testMachineSize},
		{"parked", testParked},
		{"sizes", testSizes},
		{"one after the other", testCycles},
		{"many at once", testCrowd},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(newRig(t, lab.RuntimeBhyve)) })
	}
}

func testOwnKernel(r *rig) {
	host := r.hostBoot()
	first := r.parseBoot(r.mustRun(nil, "/bin/probe", "boot").Stdout)
	second := r.parseBoot(r.mustRun(nil, "/bin/probe", "boot").Stdout)
	if first.BootID == host.BootID || first.BootID == second.BootID {
		r.Errorf("boot ids are not all different: host %s, first %s, second %s", host.BootID, first.BootID, second.BootID)
	}
	if first.UptimeSeconds > commandTimeout.Seconds() {
		r.Errorf("the machine has been up for %v s", first.UptimeSeconds)
	}
}

func (r *rig) parseBoot(out string) (boot pattern.Boot) {
	r.Helper()
	if err := json.Unmarshal([]byte(out), &boot); err != nil {
		r.Fatalf("probe boot printed %q: %v", out, err)
	}
	return boot
}

// testOwnNetwork is that a container sees a loopback that works, and no trace
// of the link.
func testOwnNetwork(r *rig) {
	result := r.mustRun([]string{"--privileged"}, "/bin/sh", "-c", "ls /sys/class/net; ping -c 1 -W 2 127.0.0.1 >/dev/null && echo answered")
	r.expect(result, 0, "lo\nanswered\n")
}

// startInMachine starts a container in the machine's own PID namespace with
// all privileges: the most that a tenant can have.
func (r *rig) startInMachine() string {
	r.Helper()
	return r.startWith(nil, privileged, oci.WithHostNamespace(specs.PIDNamespace))
}

func testMachineKilled(r *rig) {
	events := r.subscribe()
	id := r.start(nil)
	if err := r.findMachine(id).Kill(); err != nil {
		r.Fatal(err)
	}
	r.wantDeath(events, id)
	r.waitStatus(id, "STOPPED")
}

// findMachine is the monitor of a container's machine.
func (r *rig) findMachine(id string) lab.Process {
	r.Helper()
	return r.findProcess(machineProgram, machineWord(id))
}

// testClientGone kills the client while the machine boots. containerd gives up
// on the task, and asks the shim to go once: the rig looks for what stays.
func testClientGone(r *rig) {
	id := r.newID()
	cmd := r.Command(r.ctx, "run", "--runtime", r.runtime, lab.Image, id, "/bin/true")
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	r.eventually(commandTimeout, func() error { return machineRuns(id) })
	if err := cmd.Process.Kill(); err != nil {
		r.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		r.Error("the client was done before it was killed")
	}
	r.eventually(commandTimeout, func() error {
		if result := r.ctr("container", "rm", id); result.Code != 0 {
			return fmt.Errorf("%s", result)
		}
		return nil
	})
	// A killed ctr leaves its FIFOs, whatever the runtime.
	fifos, err := filepath.Glob(defaults.DefaultFIFODir + "/*/" + id + "-stdin")
	if err != nil || len(fifos) != 1 {
		r.Fatalf("FIFOs of the killed client: %q, %v", fifos, err)
	}
	if err := os.RemoveAll(filepath.Dir(fifos[0])); err != nil {
		r.Fatal(err)
	}
}

// machineRuns is nil once there is a monitor for the container's machine.
func machineRuns(id string) error {
	all, err := lab.Processes()
	if err != nil {
		return err
	}
	for _, p := range all {
		if strings.HasPrefix(filepath.Base(p.Args[0]), machineProgram) && hasWord(p.Args[1:], machineWord(id)) {
			return nil
		}
	}
	return fmt.Errorf("no machine of %s yet", id)
}

func testAgentCrashed(r *rig) {
	events := r.subscribe()
	id := r.startInMachine()
	// A Go program prints its stacks and exits on SIGQUIT, and without process
	// 1 a kernel panics. SIGKILL would not reach it.
	r.exec(id, nil, nil, nil, "/bin/kill", "-QUIT", "1")
	r.wantDeath(events, id)
	r.waitStatus(id, "STOPPED")
}

func testNoGuestImage(r *rig) {
	config := filepath.Join(r.hostDir(), "shim.toml")
	dir := "/there/is/no/guest/image"
	if err := r.WriteShimConfig(config, lab.ShimConfig{GuestDir: dir}); err != nil {
		r.Fatal(err)
	}
	result := r.runWithin(refusalTime, []string{"--runtime-config-path", config}, "/bin/true")
	if result.Code == 0 || !strings.Contains(result.Stderr, dir) {
		r.Errorf("want an error that names the missing file from\n%s", result)
	}
}

func testBootTimeout(r *rig) {
	config := filepath.Join(r.hostDir(), "shim.toml")
	if err := r.WriteShimConfig(config, lab.ShimConfig{BootTimeout: time.Second}); err != nil {
		r.Fatal(err)
	}
	result := r.runWithin(refusalTime, []string{"--runtime-config-path", config}, "/bin/true")
	if result.Code == 0 || !strings.Contains(result.Stderr, "did not come up") {
		r.Errorf("want a machine that did not come up from\n%s", result)
	}
}

// runWithin is run for what has to end soon.
func (r *rig) runWithin(limit time.Duration, flags []string, command ...string) lab.Result {
	r.Helper()
	began := time.Now()
	result := r.run(flags, command...)
	if took := time.Since(began); took > limit {
		r.Errorf("took %v, more than %v: %s", took, limit, result)
	}
	return result
}
