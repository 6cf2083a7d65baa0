package integration

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
)

// Where the way from a claim to a container's start is cut off.
const (
	// beforeConfirmed: the shim has adopted the machine, and the daemon has not
	// heard of it.
	beforeConfirmed = "before it has confirmed"
	// afterGiven: the machine is the shim's, which has not heard of it.
	afterGiven = "after it was given a machine"
	// beforeStart: the container is created.
	beforeStart = "before the start"
)

// testPoolShimKilled kills a shim with a machine that was handed to it, or is on
// its way there. The machine goes with the shim, and the next container has
// another.
func testPoolShimKilled(r *rig, when string) {
	p := r.pool()
	if err := errors.Join(p.AddTemplate(r.ctx, "--low", "0", "--high", "2", "--no-rehearsal"), p.Warm(r.ctx, 2)); err != nil {
		r.Fatal(err)
	}
	waiting, err := p.Machines()
	if err != nil || len(waiting) != 2 {
		r.Fatalf("machines %v, %v", waiting, err)
	}

	events := r.subscribe()
	socket := p.Socket()
	var held <-chan struct{}
	if when != beforeStart {
		socket, held = r.holdSecond(socket, when == afterGiven)
	}
	c := r.newContainer([]containerd.NewContainerOpts{r.withConfig(r.poolConfig("require", socket))},
		oci.WithProcessArgs("/bin/probe", "pause"))
	created := make(chan error, 1)
	go func() {
		_, err := c.NewTask(r.ctx, cio.NullIO)
		created <- err
	}()
	select {
	case <-held:
	case err := <-created:
		if when != beforeStart || err != nil {
			r.Fatalf("create: %v", err)
		}
	case <-time.After(commandTimeout):
		r.Fatal("the shim does not come to where it is to be killed")
	}
	if s := r.poolStatus(p); s.Templates[0].Hot != 1 || s.Templates[0].ClaimsHot != 1 {
		r.Errorf("after the claim: %v", s)
	}
	if err := r.findProcess("containerd-shim-", c.ID()).Kill(); err != nil {
		r.Fatal(err)
	}
	if when == beforeStart {
		r.wantDeath(events, c.ID())
	} else if err := <-created; err == nil {
		r.Error("created by a shim that was killed")
	}

	r.eventually(commandTimeout, func() error {
		s := r.poolStatus(p)
		if t := s.Templates[0]; s.Claimed != 0 || t.Offered != 0 || t.Hot != 1 {
			return fmt.Errorf("the pool says %v", s)
		}
		left, err := r.alive(waiting)
		if err == nil && len(left) != 1 {
			err = fmt.Errorf("of machines %v there are %v", waiting, left)
		}
		return err
	})
	r.wantNoFindings(p)
	left, err := r.alive(waiting)
	if err != nil {
		r.Fatal(err)
	}
	next := r.start(r.poolFlags("require", p.Socket()))
	// A machine of the pool's does not bear its container's name.
	if _, pid := r.taskStatus(next); len(left) != 1 || pid != fmt.Sprint(left[0].Pid) {
		r.Errorf("the next container is in machine %s, want %v", pid, left)
	}
	if t := r.poolTemplate(p); t.ClaimsHot != 2 || t.Hot != 0 || t.MadeCold != 2 {
		r.Errorf("after the next container: %v", t)
	}
}

// alive are those of ids that run.
func (r *rig) alive(ids []proc.ID) (alive []proc.ID, err error) {
	for _, id := range ids {
		is, err := id.Alive()
		if err != nil {
			return nil, err
		}
		if is {
			alive = append(alive, id)
		}
	}
	return alive, nil
}

// holdSecond is a way to the daemon's socket on which the second message does not
// arrive, to the daemon or from it; held is closed when it is on its way.
func (r *rig) holdSecond(socket string, fromDaemon bool) (way string, held <-chan struct{}) {
	r.Helper()
	way = filepath.Join(r.hostDir(), "sock")
	l, err := net.Listen("unix", way)
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { l.Close() })
	reached := make(chan struct{})
	go func() {
		shim, err := l.Accept()
		if err != nil {
			return
		}
		defer shim.Close()
		daemon, err := net.Dial("unix", socket)
		if err != nil {
			r.Error(err)
			return
		}
		defer daemon.Close()
		hold := map[bool]chan struct{}{fromDaemon: reached}
		ended := make(chan error, 2)
		go func() { ended <- relay(daemon, shim, hold[false]) }()
		go func() { ended <- relay(shim, daemon, hold[true]) }()
		// The other way ends with this one.
		<-ended
	}()
	return way, reached
}

// relay passes messages on until the connection ends. If held is not nil, it is
// closed instead of passing the second one on, and what follows is not either.
func relay(to io.Writer, from io.Reader, held chan struct{}) error {
	for n := 1; ; n++ {
		// ttrpc's header: length, stream, type and flags (its PROTOCOL.md).
		message := make([]byte, 10)
		if _, err := io.ReadFull(from, message); err != nil {
			return err
		}
		message = append(message, make([]byte, binary.BigEndian.Uint32(message))...)
		if _, err := io.ReadFull(from, message[10:]); err != nil {
			return err
		}
		if n == 2 && held != nil {
			close(held)
			_, err := io.Copy(io.Discard, from)
			return err
		}
		if _, err := to.Write(message); err != nil {
			return err
		}
	}
}

// testPoolRecordsLost is a pool whose records somebody has removed, under a
// container that has a machine of it: that one is not taken for a leak, and what
// waits is.
func testPoolRecordsLost(r *rig) {
	p := r.pool()
	if err := errors.Join(p.AddTemplate(r.ctx, "--low", "0", "--high", "2", "--no-rehearsal"), p.Warm(r.ctx, 2)); err != nil {
		r.Fatal(err)
	}
	id := r.start(r.poolFlags("require", p.Socket()))
	p.Kill()
	entries, err := filepath.Glob(filepath.Join(filepath.Dir(p.Socket()), "entries", "*"))
	if err != nil || len(entries) != 2 {
		r.Fatalf("entries %q, %v", entries, err)
	}
	waiting, err := p.Machines()
	if err != nil {
		r.Fatal(err)
	}
	for _, dir := range entries {
		if err := os.RemoveAll(dir); err != nil {
			r.Fatal(err)
		}
	}
	if err := p.Start(r.ctx); err != nil {
		r.Fatal(err)
	}
	found, err := p.Client.Check(r.ctx, nil)
	if err != nil || len(found.Findings) != 1 || found.Findings[0].Kind != "machine" {
		r.Errorf("check: %v, %v, want a machine", found, err)
	}
	if result, err := p.Run(r.ctx, "gc"); err != nil || result.Code != 0 {
		r.Errorf("gc: %v\n%s", err, result)
	}
	r.wantNoFindings(p)
	left, err := r.alive(waiting)
	if _, pid := r.taskStatus(id); err != nil || len(left) != 1 || pid != fmt.Sprint(left[0].Pid) {
		r.Errorf("of machines %v there are %v, %v, want that of the container", waiting, left, err)
	}
	r.expect(r.exec(id, nil, nil, nil, "/bin/echo", "still here"), 0, "still here\n")
}
