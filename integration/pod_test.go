//go:build linux || freebsd

package integration

import (
	"fmt"
	"strings"
	"testing"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
)

// TestPod is about several containers in one machine, put there by the
// annotations of containerd's CRI plugin.
func TestPod(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"shares", testPodShares},
		{"deleted first to last", func(r *rig) { testPodDeleted(r, false) }},
		{"deleted last to first", func(r *rig) { testPodDeleted(r, true) }},
		{"shim killed", testPodShimKilled},
		{"machine killed", testPodMachineKilled},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(newRig(t, lab.RuntimeBhyve)) })
	}
}

// pod starts a container that stands for a pod, and returns it with flags that
// put a container into the pod.
func (r *rig) pod(flags ...string) (id string, join []string) {
	r.Helper()
	id = r.newID()
	r.startAs(id, append([]string{
		"--annotation", "io.kubernetes.cri.sandbox-id=" + id,
		"--annotation", "io.kubernetes.cri.container-type=sandbox",
	}, flags...))
	join = []string{
		"--annotation", "io.kubernetes.cri.sandbox-id=" + id,
		"--annotation", "io.kubernetes.cri.container-type=container",
	}
	return id, append(join, shareFlags("ipc", "uts")...)
}

// shareFlags are those for namespaces of a pod. The path only has to be one: it
// is of the host.
func shareFlags(types ...string) []string {
	var flags []string
	for _, t := range types {
		flags = append(flags, "--with-ns", t+":/proc/1/ns/"+t)
	}
	return flags
}

func testPodShares(r *rig) {
	pause, join := r.pod("--hostname", "the-pod")
	one, two, stranger := r.start(join), r.start(join), r.start(join[:4])
	want := func(what string, got []string, want ...string) {
		r.Helper()
		if strings.Join(got, "|") != strings.Join(want, "|") {
			r.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	const kernel, network = "cat /proc/sys/kernel/random/boot_id", "readlink /proc/self/ns/net"
	machine := r.lines(pause, kernel, network)
	want("the first", r.lines(one, kernel, network, "hostname", "echo shared > /dev/shm/x; echo mine > /x"), append(machine, "the-pod")...)
	want("the second", r.lines(two, kernel, network, "hostname", "cat /dev/shm/x", "cat /x 2>/dev/null || echo none"),
		append(machine, "the-pod", "shared", "none")...)
	want("one that shares no IPC", r.lines(stranger, kernel, network, "cat /dev/shm/x 2>/dev/null || echo none"), append(machine, "none")...)

	const processes = "readlink /proc/self/ns/pid"
	sharing := append(append([]string{}, join...), shareFlags("pid")...)
	first, second := r.start(sharing), r.start(sharing)
	shared := r.lines(first, processes)
	if own := r.lines(one, processes); own[0] == shared[0] {
		r.Error("processes are shared with a container that has not asked for it")
	}
	// Process 1 of both is nobody's: it leads nowhere.
	want("one that shares processes", r.lines(second, processes, "ls /proc/1/root/ 2>/dev/null | wc -l", "readlink /proc/1/exe 2>/dev/null || echo hidden"),
		shared[0], "0", "hidden")

	r.must("task", "kill", "--signal", "SIGKILL", one)
	r.waitStatus(one, "STOPPED")
	want("after the death of another", r.lines(two, "cat /dev/shm/x"), "shared")
	r.must("task", "kill", "--all", "--signal", "SIGKILL", first)
	r.waitStatus(first, "STOPPED")
	want("after the death of one that shares processes", r.lines(second, "echo alive"), "alive")
}

func testPodDeleted(r *rig, backwards bool) {
	pause, join := r.pod()
	ids := []string{pause, r.start(join), r.start(join)}
	if backwards {
		ids[0], ids[2] = ids[2], ids[0]
	}
	for i, id := range ids {
		r.must("task", "kill", "--signal", "SIGKILL", id)
		r.waitStatus(id, "STOPPED")
		r.must("task", "rm", id)
		for _, other := range ids[i+1:] {
			r.expect(r.exec(other, nil, nil, nil, "/bin/echo", "alive"), 0, "alive\n")
		}
	}
	r.eventually(commandTimeout, func() error {
		if machineRuns(pause) == nil {
			return fmt.Errorf("the machine of %s outlives its last container", pause)
		}
		return nil
	})
}

func testPodShimKilled(r *rig) {
	pause, join := r.pod()
	one := r.start(join)
	// One subscription each: it passes over what others do.
	events := map[string]*subscription{pause: r.subscribe(), one: r.subscribe()}
	if err := r.findProcess("containerd-shim-bhyve", pause).Kill(); err != nil {
		r.Fatal(err)
	}
	for _, id := range []string{pause, one} {
		r.wantDeath(events[id], id)
	}
	r.eventually(commandTimeout, func() error {
		if machineRuns(pause) == nil {
			return fmt.Errorf("the machine of %s outlives its shim", pause)
		}
		return nil
	})
}

func testPodMachineKilled(r *rig) {
	pause, join := r.pod()
	one := r.start(join)
	// One subscription each: it passes over what others do.
	events := map[string]*subscription{pause: r.subscribe(), one: r.subscribe()}
	if err := r.findMachine(pause).Kill(); err != nil {
		r.Fatal(err)
	}
	for _, id := range []string{pause, one} {
		r.wantDeath(events[id], id)
		r.waitStatus(id, "STOPPED")
	}
}
