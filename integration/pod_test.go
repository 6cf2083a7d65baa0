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
	volume := append(append([]string{}, join...), "--mount", "type=bind,src="+r.hostDir()+",dst=/data,options=rbind:rw")
	one, two, other := r.start(volume), r.start(volume), r.start(join[:4])
	in := func(id string, script string) string {
		r.Helper()
		return strings.TrimSpace(r.mustOK(r.exec(id, nil, nil, nil, "/bin/sh", "-c", script)).Stdout)
	}
	want := func(what, got, want string) {
		r.Helper()
		if got != want {
			r.Errorf("%s: got %q, want %q", what, got, want)
		}
	}
	boot := r.parseBoot(in(pause, "/bin/probe boot"))
	for _, id := range []string{one, two, other} {
		want("kernel of "+id, r.parseBoot(in(id, "/bin/probe boot")).BootID, boot.BootID)
		want("network of "+id, in(id, "readlink /proc/self/ns/net"), in(pause, "readlink /proc/self/ns/net"))
	}
	want("host name", in(one, "hostname"), "the-pod")

	in(one, "echo shared > /dev/shm/x; echo mine > /x")
	want("shared memory", in(two, "cat /dev/shm/x"), "shared")
	want("shared memory of a stranger", in(other, "cat /dev/shm/x 2>/dev/null || echo none"), "none")
	want("root of another", in(two, "cat /x 2>/dev/null || echo none"), "none")

	// A volume is one tree to all of them: what one makes in it, another opens.
	in(one, "mkfifo /data/pipe; (cat /data/pipe > /data/got; mv /data/got /data/done) > /dev/null 2>&1 &")
	want("a FIFO in a volume", in(two, "echo met > /data/pipe; until test -e /data/done; do sleep 0.1; done; cat /data/done"), "met")
	in(one, "rm /data/*")

	sharing := append(append([]string{}, join...), shareFlags("pid")...)
	first, second := r.start(sharing), r.start(sharing)
	want("processes", in(first, "readlink /proc/self/ns/pid"), in(second, "readlink /proc/self/ns/pid"))
	if in(one, "readlink /proc/self/ns/pid") == in(first, "readlink /proc/self/ns/pid") {
		r.Error("processes are shared with a container that has not asked for it")
	}
	// An orphan of one's, reaped by the first process of all.
	in(first, "sh -c 'sleep 0.1 & exec true'")
	want("the first process leads nowhere", in(first, "ls /proc/1/root/ 2>/dev/null | wc -l; readlink /proc/1/exe 2>/dev/null || echo hidden"), "0\nhidden")

	r.must("task", "kill", "--signal", "SIGKILL", one)
	r.waitStatus(one, "STOPPED")
	want("after the death of another", in(two, "echo alive; cat /dev/shm/x"), "alive\nshared")
	r.must("task", "kill", "--all", "--signal", "SIGKILL", first)
	r.waitStatus(first, "STOPPED")
	want("after the death of one that shares processes", in(second, "echo alive"), "alive")
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
