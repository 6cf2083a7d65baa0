package integration

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// runtimes are those under test, the reference first.
var runtimes = []struct{ name, runtime string }{
	{"runc", lab.RuntimeRunc},
	{"bhyve", lab.RuntimeBhyve},
}

// privileged gives a container everything that it can be given.
var privileged = oci.WithPrivileged

// unpacksModes: containerd keeps special mode bits when it unpacks an image.
const unpacksModes = true

// cyclesByDefault is few: every test is one more.
const cyclesByDefault = 3

// machineProgram begins the name of a monitor's program.
const machineProgram = "qemu-system-"

// machineWord is what tells a container's monitor from the others.
func machineWord(id string) string { return id }

// wantPlace checks that a container's machine is in the host's control group of
// the container.
func (r *rig) wantPlace(id string) {
	r.Helper()
	data, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(r.findMachine(id).Pid), "cgroup"))
	if err != nil {
		r.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.HasSuffix(strings.TrimSpace(line), "/"+r.Namespace+"/"+id) {
			return
		}
	}
	r.Errorf("the machine of %s is in the control groups\n%s", id, data)
}

// hostBoot is what the probe says of this host.
func (r *rig) hostBoot() pattern.Boot {
	r.Helper()
	out, err := exec.CommandContext(r.ctx, r.Probe(), "boot").Output()
	if err != nil {
		r.Fatal(err)
	}
	return r.parseBoot(string(out))
}

// listenAtHostEnd listens in the namespace of the link's host end, which the
// shim holds open.
func (r *rig) listenAtHostEnd(id string) sockets {
	r.Helper()
	ns := r.linkNamespace(r.findProcess("containerd-shim-bhyve", id).Pid)
	defer ns.Close()
	opened := make(chan sockets)
	go func() {
		// The thread ends with the goroutine: it is in the wrong namespace for
		// any other.
		runtime.LockOSThread()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			opened <- sockets{err: err}
			return
		}
		opened <- listen()
	}()
	return <-opened
}

// linkNamespace is the network namespace, other than the one it is in, that a
// process has open.
func (r *rig) linkNamespace(pid int) *os.File {
	r.Helper()
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	own, err := os.Readlink(filepath.Join(dir, "ns/net"))
	if err != nil {
		r.Fatal(err)
	}
	fds, err := os.ReadDir(filepath.Join(dir, "fd"))
	if err != nil {
		r.Fatal(err)
	}
	for _, fd := range fds {
		path := filepath.Join(dir, "fd", fd.Name())
		if target, err := os.Readlink(path); err == nil && strings.HasPrefix(target, "net:[") && target != own {
			f, err := os.Open(path)
			if err != nil {
				r.Fatal(err)
			}
			return f
		}
	}
	r.Fatalf("process %d has no other network namespace open: the link is no tap", pid)
	return nil
}

// clients are the programs that people run containers by.
func clients(t *testing.T) []lab.Client {
	t.Helper()
	nerdctl, err := lab.NewNerdctlClient(theLab)
	if err != nil {
		t.Fatal(err)
	}
	crictl, err := lab.NewCrictlClient(theLab.Context(t.Context()), theLab)
	if err != nil {
		t.Fatal(err)
	}
	return []lab.Client{lab.NewCtrClient(theLab), nerdctl, crictl}
}
