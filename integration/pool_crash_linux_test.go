package integration

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/host"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/lab"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// TestPoolMishaps is what happens to the daemon, its host and its disk, with real
// machines.
func TestPoolMishaps(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(*rig)
	}{
		{"host restarts", testPoolHostRestarts},
		{"full disk", testPoolFullDisk},
		{"race", testPoolRace},
		{"records lost", testPoolRecordsLost},
		{"shim killed " + beforeConfirmed, func(r *rig) { testPoolShimKilled(r, beforeConfirmed) }},
		{"shim killed " + afterGiven, func(r *rig) { testPoolShimKilled(r, afterGiven) }},
		{"shim killed " + beforeStart, func(r *rig) { testPoolShimKilled(r, beforeStart) }},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(newRig(t, lab.RuntimeBhyve)) })
	}
}

// poolTemplate is the status of the only template.
func (r *rig) poolTemplate(p *lab.Pool) *poolv1.TemplateStatus {
	r.Helper()
	return r.poolStatus(p).Templates[0]
}

func (r *rig) poolStatus(p *lab.Pool) *poolv1.StatusResponse {
	r.Helper()
	s, err := p.Client.Status(r.ctx, nil)
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// testPoolHostRestarts rebuilds the hot tier from the checkpoint, and does without
// that one when it is damaged.
func testPoolHostRestarts(r *rig) {
	p := r.pool()
	if err := errors.Join(p.AddTemplate(r.ctx, "--low", "0", "--high", "2"), p.Warm(r.ctx, 2)); err != nil {
		r.Fatal(err)
	}
	if err := errors.Join(p.LoseHost(r.ctx), p.Start(r.ctx), p.Warm(r.ctx, 2)); err != nil {
		r.Fatal(err)
	}
	if t := r.poolTemplate(p); t.MadeCold != 2 || t.MadeBoot != 0 {
		r.Errorf("after the restart machines came from %v", t)
	}
	flags := r.poolFlags("require", p.Socket())
	r.mustRun(flags, "/bin/true")

	if err := errors.Join(p.LoseHost(r.ctx), flipByte(p.Root(), "memory"), p.Start(r.ctx)); err != nil {
		r.Fatal(err)
	}
	r.mustRun(flags, "/bin/true")
	if t := r.poolTemplate(p); t.ClaimsCold != 0 || t.ClaimsBoot != 1 {
		r.Errorf("with a damaged checkpoint: %v", t)
	}
	if said := p.Log(); !strings.Contains(said, "memory was changed") {
		r.Errorf("the log says nothing of the damage:\n%s", said)
	}
	found, err := p.Client.GC(r.ctx, nil)
	if err != nil || !strings.Contains(strings.Join(found.Lines, "\n"), "memory was changed") {
		r.Errorf("gc: %v, %v", found.GetLines(), err)
	}
	r.wantNoFindings(p)
}

// flipByte changes one byte in the middle of the only file of this name below
// the pool's checkpoints.
func flipByte(root, name string) error {
	paths, err := filepath.Glob(filepath.Join(root, "checkpoints", "*", "machine", name))
	if err != nil || len(paths) != 1 {
		return fmt.Errorf("files: %q, %w", paths, err)
	}
	f, err := os.OpenFile(paths[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, st.Size()/2); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, st.Size()/2)
	return err
}

// testPoolFullDisk is a disk with no room for a machine's memory, until it has.
func testPoolFullDisk(r *rig) {
	p := r.pool()
	if err := os.MkdirAll(p.Root(), 0o700); err != nil {
		r.Fatal(err)
	}
	p.Kill()
	if err := unix.Mount("pool", p.Root(), "tmpfs", 0, "size=16m"); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		if err := unix.Unmount(p.Root(), unix.MNT_DETACH); err != nil {
			r.Error(err)
		}
	})
	if err := errors.Join(p.Start(r.ctx), p.AddTemplate(r.ctx, "--low", "0", "--high", "1")); err != nil {
		r.Fatal(err)
	}
	r.eventually(lab.Patience(2*time.Minute), func() error {
		if t := r.poolTemplate(p); t.Trouble == "" {
			return errors.New("status shows no trouble")
		}
		return nil
	})
	// Whoever wants a container gets one, and machines that wait are booted.
	r.mustRun(r.poolFlags("auto", p.Socket()), "/bin/true")
	if err := p.Warm(r.ctx, 1); err != nil {
		r.Fatal(err)
	}
	if t := r.poolTemplate(p); t.MadeBoot != 1 || t.Checkpoint != nil {
		r.Errorf("without room: %v", t)
	}
	r.wantNoFindings(p)

	if err := unix.Mount("pool", p.Root(), "tmpfs", unix.MS_REMOUNT, "size=1g"); err != nil {
		r.Fatal(err)
	}
	// The daemon may be trying just now.
	r.eventually(lab.Patience(2*time.Minute), func() error {
		_, err := p.Client.Checkpoint(r.ctx, &poolv1.TemplateRequest{Name: lab.PoolTemplate})
		return err
	})
	r.mustRun(r.poolFlags("require", p.Socket()), "/bin/true")
}

// testPoolRace is fifty claims for ten machines.
func testPoolRace(r *rig) {
	const machines, claimants = 10, 50
	p := r.pool()
	if err := errors.Join(p.AddTemplate(r.ctx, "--low", "0", "--high", "10", "--no-rehearsal"), p.Warm(r.ctx, machines)); err != nil {
		r.Fatal(err)
	}
	shape := r.poolTemplate(p).Template.Shape
	// Those who come too late are to get none of the checkpoint.
	if err := p.AddTemplate(r.ctx, "--low", "0", "--high", "10", "--no-rehearsal", "--no-checkpoint"); err != nil {
		r.Fatal(err)
	}
	dir := r.TB().TempDir()
	var mu sync.Mutex
	claimed := map[int]*client.Claimed{}
	late := 0
	var wg sync.WaitGroup
	for i := range claimants {
		wg.Go(func() {
			m, err := claimFrom(r, p.Socket(), filepath.Join(dir, fmt.Sprint(i)), shape)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errdefs.IsUnavailable(err):
				late++
			case err != nil:
				r.Error(err)
			case claimed[m.Pid()] != nil:
				r.Errorf("machine %d was handed out twice", m.Pid())
			default:
				claimed[m.Pid()] = m
			}
		})
	}
	wg.Wait()
	if len(claimed) != machines || late != claimants-machines {
		r.Errorf("%d claims got a machine and %d none, want %d and %d", len(claimed), late, machines, claimants-machines)
	}
	for _, m := range claimed {
		if err := m.Destroy(r.ctx); err != nil {
			r.Error(err)
		}
	}
	r.wantNoFindings(p)
}

func claimFrom(r *rig, socket, book string, shape *poolv1.Shape) (*client.Claimed, error) {
	conn, err := client.Dial(r.ctx, socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	receipts, err := receipt.Open(book)
	if err != nil {
		return nil, err
	}
	return conn.Claim(r.ctx, client.Want{Shape: shape}, host.Backend(), receipts)
}
