package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/netns"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/network/policy"
)

// follows has a ledger go on where another output of it ended.
func (r *rig) follows(out *output, before []entry) []entry {
	r.Helper()
	after := r.awaitLines(out, 3)
	if last := before[len(before)-1]; after[0].n != last.n+1 || after[0].run != last.run {
		r.Errorf("%+v comes after %+v", after[0], last)
	}
	return after
}

// testCheckpointTwice saves what was restored, and restores that: nothing is lost
// or doubled of input, output and files.
func testCheckpointTwice(r *rig) {
	c := r.ledgerContainer()
	task, out := r.task(c)
	r.awaitLines(out, 3)
	for _, word := range []string{"once", "twice"} {
		r.say(out, word)
		dir := r.saveAndEnd(task)
		before := r.parseLedger(out.String())
		task, out = r.task(c, containerd.WithRestoreImagePath(dir))
		r.follows(out, before)
	}
	r.say(out, "and again")
	lines := r.parseLedger(out.String())
	if in := r.ledgerOf(c.ID(), lines[len(lines)-1].n-1); in[0].n != 1 || in[0].run != lines[0].run {
		r.Errorf("the file begins with %+v", in[0])
	}
	if err := task.Kill(r.ctx, 9); err != nil {
		r.Error(err)
	}
}

// testCheckpointTerminal is a container with a terminal, which has another client
// and another size after it was restored.
func testCheckpointTerminal(r *rig) {
	c := r.ledgerContainer(oci.WithTTY)
	task, out := r.task(c)
	r.awaitLines(out, 3)
	r.say(out, "first")
	dir := r.saveAndEnd(task)
	before := r.parseLedger(out.String())

	task, out = r.task(c, containerd.WithRestoreImagePath(dir))
	r.follows(out, before)
	r.say(out, "second")
	if err := task.Resize(r.ctx, 123, 45); err != nil {
		r.Error(err)
	}
	r.expect(r.exec(c.ID(), nil, nil, nil, "/bin/sh", "-c", "stty size </proc/1/fd/0"), 0, "45 123\n")
	if err := task.Kill(r.ctx, 9); err != nil {
		r.Error(err)
	}
}

// testCheckpointVolume is a container with a file open in a directory of the
// host's: it goes on with it, as does a copy of it, which has the same directory.
func testCheckpointVolume(r *rig) {
	data := r.hostDir()
	volume := func(dir string) oci.SpecOpts {
		return oci.WithMounts([]specs.Mount{{Type: "bind", Source: dir, Destination: "/data", Options: []string{"rbind", "rw"}}})
	}
	args := oci.WithProcessArgs("/bin/probe", "ledger", "/data/ledger")
	c := r.ledgerContainer(args, volume(data))
	task, out := r.task(c)
	r.awaitLines(out, 3)
	ref := r.checkpoint(c.ID())
	r.awaitLines(out, len(r.parseLedger(out.String()))+2)
	dir := r.saveAndEnd(task)
	before := r.parseLedger(out.String())

	// What nobody but the host's users has changed meanwhile is seen.
	if err := os.WriteFile(filepath.Join(data, "news"), []byte("news\n"), 0o644); err != nil {
		r.Fatal(err)
	}
	task, out = r.task(c, containerd.WithRestoreImagePath(dir))
	after := r.follows(out, before)
	r.expect(r.exec(c.ID(), nil, nil, nil, "cat", "/data/news"), 0, "news\n")
	if err := task.Kill(r.ctx, 9); err != nil {
		r.Error(err)
	}
	r.removeTask(task)
	file := func() string {
		text, err := os.ReadFile(filepath.Join(data, "ledger"))
		if err != nil {
			r.Fatal(err)
		}
		return string(text)
	}
	text := file()
	if all := r.parseLedger(text); all[0] != before[0] || len(all) < after[len(after)-1].n {
		r.Errorf("the file on the host has %d lines from %+v on, the output %d", len(all), all[0], after[len(after)-1].n)
	}

	copied := r.newID()
	r.Cleanup(func() { r.forgetRestored(copied) })
	r.must("container", "restore", "--rw", "--live", copied, ref)
	r.eventually(commandTimeout, func() error {
		if all := r.parseLedger(strings.TrimPrefix(file(), text)); len(all) < 3 || all[0].run != before[0].run {
			return fmt.Errorf("of the copy there are %+v", all)
		}
		return nil
	})

	elsewhere := r.ledgerContainer(args, volume(r.hostDir()))
	if task, err := elsewhere.NewTask(r.ctx, cio.NullIO, containerd.WithRestoreImagePath(dir)); err == nil {
		r.Error("restored with another directory")
		r.removeTask(task)
	} else if !strings.Contains(err.Error(), "volume") {
		r.Errorf("with another directory: %v", err)
	}
}

// testCheckpointNetwork is a container on the default network, and a copy of it that
// has an address of its own beside it.
func testCheckpointNetwork(r *rig) {
	r.beyond()
	flags, n := r.withNetwork(policy.Policy{Allow: []policy.Rule{{Peers: []string{friend}, Protocol: "tcp", Ports: []string{"80"}}}})
	id := r.start(append(flags, "--hostname", "the-original", "--annotation", savable+"=true"), "/bin/probe", "ledger", "/ledger")
	before := r.ledgerOf(id, 1)
	r.wantHosts(id, "the-original", r.wantOnNetwork(n, id).Address.String())
	ref := r.checkpoint(id)
	copied := r.newID()
	r.Cleanup(func() { r.forgetRestored(copied) })
	r.must("container", "restore", "--rw", "--live", copied, ref)
	if in := r.ledgerOf(copied, len(before)); in[0] != before[0] {
		r.Errorf("the copy is of another process: %+v", in[0])
	}
	a, b := r.wantOnNetwork(n, id), r.wantOnNetwork(n, copied)
	if a.Address == b.Address || a.MAC.String() == b.MAC.String() {
		r.Errorf("both have %s and %s", a.Address, a.MAC)
	}
	// Its name is in its spec, which is the original's.
	r.wantHosts(copied, "the-original", b.Address.String())

	// The copy, too, can be saved, and goes on under its own id.
	ref = r.checkpoint(copied)
	r.forgetRestored(copied)
	r.must("container", "restore", "--rw", "--live", copied, ref)
	r.wantOnNetwork(n, copied)
	r.forgetRestored(copied)
	r.removeContainer(id)
	r.eventuallyNobodyOn(n)
}

// testCheckpointNamespace is a server at the address of a network namespace: who is
// restored there answers there, on a connection of before as well. There cannot be
// two.
func testCheckpointNamespace(r *rig) {
	_, path := r.filledNamespace()
	c := r.ledgerContainer(oci.WithProcessArgs("/bin/probe", "web", "8080"),
		oci.WithLinuxNamespace(specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: path}))
	task, _ := r.task(c)
	r.wantWeb(filledAddress)
	conn, err := net.Dial("tcp4", filledAddress+":8080")
	if err != nil {
		r.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		r.Fatal(err)
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n"); err != nil {
		r.Fatal(err)
	}
	ref, copied := r.checkpoint(c.ID()), r.newID()
	r.Cleanup(func() { r.forgetRestored(copied) })
	if result := r.ctr("container", "restore", "--rw", "--live", copied, ref); result.Code == 0 || !strings.Contains(result.Stderr, "already exists") {
		r.Errorf("two at one address: %s", result)
	}
	r.wantWeb(filledAddress)

	dir := r.saveAndEnd(task)
	task, _ = r.task(c, containerd.WithRestoreImagePath(dir))
	r.wantWeb(filledAddress)
	if _, err := io.WriteString(conn, "\r\n"); err != nil {
		r.Fatal(err)
	}
	if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), " 200 ") {
		r.Errorf("on the connection of before: %q, %v", answer, err)
	}
	r.removeTask(task)
}

// testCheckpointFilled is a server in a namespace that its client fills between its
// creation and its start, as ctr and nerdctl do by CNI, and with another address the
// next time.
func testCheckpointFilled(r *rig) {
	// A container with such hooks gets a namespace to fill.
	hooked := func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}}
		return nil
	}
	c := r.ledgerContainer(oci.WithProcessArgs("/bin/probe", "web", "8080"), hooked)
	const other = "10.9.0.3"
	start := func(addr string, opts ...containerd.NewTaskOpts) containerd.Task {
		r.Helper()
		task, err := c.NewTask(r.ctx, cio.NullIO, opts...)
		if err != nil {
			r.Fatal(err)
		}
		ns, err := netns.Open(fmt.Sprintf("/proc/%d/ns/net", task.Pid()))
		if err != nil {
			r.Fatal(err)
		}
		defer ns.Close()
		r.fill(ns, addr)
		if err := task.Start(r.ctx); err != nil {
			r.Fatal(err)
		}
		r.wantWeb(addr)
		return task
	}
	dir := r.saveAndEnd(start(filledAddress))
	r.eventually(commandTimeout, func() error {
		if _, err := net.InterfaceByName("pod0"); err == nil {
			return errors.New("the namespace is still there")
		}
		return nil
	})
	task := start(other, containerd.WithRestoreImagePath(dir))
	out := r.mustOK(r.exec(c.ID(), nil, nil, nil, "ip", "-4", "-o", "addr", "show", "net1")).Stdout
	if strings.Count(out, " inet ") != 1 || !strings.Contains(out, other+"/24") {
		r.Errorf("in the guest there is %q", out)
	}
	r.removeTask(task)
}
