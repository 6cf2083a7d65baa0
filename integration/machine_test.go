//go:build linux || freebsd

package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

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
		{"machine killed", testMachineKilled},
		{"agent crashed", testAgentCrashed},
		{"client gone during boot", testClientGone},
		{"no guest image", testNoGuestImage},
		{"boot timeout", testBootTimeout},
		{"size", testMachineSize},
		{"twenty at once", testTwentyAtOnce},
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
	fifos, err := filepath.Glob("/run/containerd/fifo/*/" + id + "-stdin")
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
		name := filepath.Base(p.Args[0])
		if (strings.HasPrefix(name, "qemu-system-") || strings.HasPrefix(name, "bhyve:")) && hasWord(p.Args, id) {
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

// clockError is how much faster than the host's a guest's clock may have gone
// since its boot. The first seconds are told by a clock that is measured badly
// on a busy host.
const clockError = 1.5

// crowdTimeout bounds the start of a crowd on few processors.
const crowdTimeout = 5 * time.Minute

func testTwentyAtOnce(r *rig) {
	const crowd = 20
	ids := make([]string, crowd)
	results := make([]lab.Result, crowd)
	errs := make([]error, crowd)
	var wg sync.WaitGroup
	for i := range ids {
		ids[i] = r.newID()
		r.Cleanup(func() { r.removeContainer(ids[i]) })
		wg.Go(func() {
			cmd := r.Command(r.ctx, "run", "--detach", "--null-io", "--runtime", r.runtime, lab.Image, ids[i], "/bin/probe", "signals")
			results[i], errs[i] = r.Complete(cmd)
		})
	}
	started := make(chan struct{})
	go func() { wg.Wait(); close(started) }()
	began := time.Now()
	select {
	case <-started:
		r.Logf("%d sandboxes started in %v", crowd, time.Since(began).Round(time.Second))
	case <-time.After(crowdTimeout):
		r.Fatalf("not all of %d sandboxes started within %v", crowd, crowdTimeout)
	}
	seen := map[string]string{}
	fastest := 0.0
	for i, id := range ids {
		if errs[i] != nil || results[i].Code != 0 {
			r.Errorf("%v\n%s", errs[i], results[i])
			continue
		}
		boot := r.parseBoot(r.exec(id, nil, nil, nil, "/bin/probe", "boot").Stdout)
		if other, dup := seen[boot.BootID]; dup {
			r.Errorf("%s and %s share a kernel", id, other)
		}
		seen[boot.BootID] = id
		// A kernel that was starved while it measured its clock may tell the time
		// too fast, and let every timeout pass early.
		up, since := boot.UptimeSeconds, time.Since(began).Seconds()
		fastest = max(fastest, up/since)
		if up > clockError*since {
			r.Errorf("%s says that it has been up for %.0f s, of %.0f s since it was asked for", id, up, since)
		}
	}
	if len(seen) != crowd {
		r.Errorf("%d of %d answered", len(seen), crowd)
	}
	r.Logf("the oldest guest says that it is %.0f%% of the time old", 100*fastest)
}
