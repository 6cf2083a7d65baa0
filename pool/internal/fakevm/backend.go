// Package fakevm is a backend whose machines are real processes without a guest:
// they can be stopped, killed, adopted and saved like any other, and answer as
// an agent does. It is for tests of the pool.
package fakevm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// Name is Backend.Name.
const Name = "fake"

// Backend makes machines out of the test program itself, whose TestMain has to
// call Become.
type Backend struct {
	// Owner is an argument of each machine's process, to find them by.
	Owner string
	// Fail, if set, is asked before each operation whether it fails.
	Fail func(op string) error
}

var (
	_ hypervisor.Backend  = Backend{}
	_ hypervisor.Adopter  = Backend{}
	_ hypervisor.Restorer = Backend{}
	_ hypervisor.Searcher = Backend{}
)

// Name implements hypervisor.Backend.
func (Backend) Name() string { return Name }

// Capabilities implements hypervisor.Backend.
func (Backend) Capabilities(context.Context) (hypervisor.Capabilities, error) {
	return hypervisor.Capabilities{MaxVCPUs: 4}, nil
}

func (b Backend) fail(op string) error {
	if b.Fail == nil {
		return nil
	}
	return b.Fail(op)
}

// Launch implements hypervisor.Backend.
func (b Backend) Launch(ctx context.Context, cfg hypervisor.Config, book *receipt.Book) (hypervisor.Machine, error) {
	if err := b.fail("launch"); err != nil {
		return nil, err
	}
	return b.start(cfg, "", book)
}

// Restore implements hypervisor.Restorer.
func (b Backend) Restore(ctx context.Context, cfg hypervisor.Config, dir string, book *receipt.Book) (hypervisor.Machine, error) {
	if err := b.fail("restore"); err != nil {
		return nil, err
	}
	saved, err := load(dir)
	if err != nil {
		return nil, fmt.Errorf("restore: %w", err)
	}
	if saved.MemoryMiB != cfg.MemoryMiB {
		return nil, fmt.Errorf("restore: memory of %d MiB, saved were %d: %w", cfg.MemoryMiB, saved.MemoryMiB, errdefs.ErrFailedPrecondition)
	}
	return b.start(cfg, dir, book)
}

func (b Backend) start(cfg hypervisor.Config, from string, book *receipt.Book) (hypervisor.Machine, error) {
	m := &machine{backend: b, cfg: cfg, mark: uuid.NewString(), done: make(chan struct{})}
	line := &proc.Receipt{Arg: m.mark}
	var err error
	if m.line, err = book.Write(line); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, errors.Join(err, m.line.Strike())
	}
	cmd := exec.Command(self, m.mark, b.Owner)
	cmd.Env = append(os.Environ(), bornEnv+"="+encode(birth{
		Dir: cfg.Dir, From: from, SaveTo: cfg.CheckpointDir, MemoryMiB: cfg.MemoryMiB,
	}))
	// A session of its own: the kernel continues stopped process groups that are
	// orphaned by the end of a parent in the same one.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if m.attended, err = os.Create(filepath.Join(cfg.Dir, attendedName)); err != nil {
		return nil, errors.Join(err, m.line.Strike())
	}
	cmd.ExtraFiles = []*os.File{m.attended}
	if err := cmd.Start(); err != nil {
		m.attended.Close()
		return nil, errors.Join(err, m.line.Strike())
	}
	go func() {
		// Its status says nothing here.
		_ = cmd.Wait()
		close(m.done)
	}()
	if m.id, err = proc.Identify(cmd.Process.Pid); err == nil {
		line.ID = m.id
		err = m.line.Amend(line)
	}
	if err != nil {
		return nil, errors.Join(err, m.Destroy(context.Background()))
	}
	return m, nil
}

// Adopt implements hypervisor.Adopter.
func (b Backend) Adopt(ctx context.Context, r hypervisor.Record, book *receipt.Book) (hypervisor.Machine, error) {
	if err := b.fail("adopt"); err != nil {
		return nil, err
	}
	alive, err := r.Process.Alive()
	if err != nil {
		return nil, err
	}
	if !alive {
		return nil, fmt.Errorf("adopt machine %s: %w", r.ID, errdefs.ErrNotFound)
	}
	m := &machine{backend: b, cfg: hypervisor.Config{ID: r.ID, Dir: r.Dir}, mark: r.Mark, id: r.Process, done: make(chan struct{})}
	if m.line, err = book.Write(&proc.Receipt{ID: r.Process, Arg: r.Mark}); err != nil {
		return nil, err
	}
	if m.attended, err = os.Open(filepath.Join(r.Dir, attendedName)); err != nil {
		return nil, errors.Join(err, m.line.Strike())
	}
	go func() {
		_ = r.Process.Wait(context.Background())
		close(m.done)
	}()
	return m, nil
}

// Strays implements hypervisor.Searcher.
func (b Backend) Strays(_ context.Context, dir string, known func(string) bool) ([]hypervisor.Stray, error) {
	all, err := proc.WithEnv(bornEnv)
	if err != nil {
		return nil, err
	}
	var strays []hypervisor.Stray
	for id, data := range all {
		var of birth
		if err := json.Unmarshal([]byte(data), &of); err != nil {
			return nil, err
		}
		if rel, err := filepath.Rel(dir, of.Dir); err != nil || !filepath.IsLocal(rel) || known(of.Dir) {
			continue
		}
		attended, err := id.Shares(attendedFD)
		if err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
		if err == nil && !attended {
			strays = append(strays, hypervisor.Stray{Dir: of.Dir, Process: id, Destroy: id.Kill})
		}
	}
	return strays, nil
}

// machine is one process.
type machine struct {
	backend Backend
	cfg     hypervisor.Config
	mark    string
	id      proc.ID
	done    chan struct{}
	// attended is a file that the process and whoever owns it have open.
	attended *os.File

	mu   sync.Mutex
	line *receipt.Receipt
}

// The file's name in the machine's directory, and its number in the process.
const (
	attendedName = "attended"
	attendedFD   = 3
)

var (
	_ hypervisor.Machine      = (*machine)(nil)
	_ hypervisor.Parker       = (*machine)(nil)
	_ hypervisor.Transferable = (*machine)(nil)
	_ hypervisor.Checkpointer = (*machine)(nil)
)

func (m *machine) ID() string            { return m.cfg.ID }
func (m *machine) Pid() int              { return m.id.Pid }
func (m *machine) Done() <-chan struct{} { return m.done }
func (m *machine) ConsoleTail() []byte   { return nil }
func (m *machine) Exit() hypervisor.Exit { return hypervisor.Exit{Reason: hypervisor.ExitKilled} }

func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(m.cfg.Dir, socketName))
}

func (m *machine) PowerOff(context.Context) error { return m.id.Signal(unix.SIGTERM) }

// Destroy implements hypervisor.Machine.
func (m *machine) Destroy(ctx context.Context) error {
	if err := m.backend.fail("destroy"); err != nil {
		return err
	}
	m.mu.Lock()
	line := m.line
	m.mu.Unlock()
	if line == nil {
		return nil
	}
	if err := m.id.Kill(ctx); err != nil {
		return err
	}
	m.attended.Close()
	return line.Strike()
}

// Park implements hypervisor.Parker.
func (m *machine) Park(ctx context.Context) error {
	if err := m.backend.fail("park"); err != nil {
		return err
	}
	return m.id.Stop(ctx)
}

// Unpark implements hypervisor.Parker.
func (m *machine) Unpark(ctx context.Context) error { return m.id.Continue(ctx) }

// Record implements hypervisor.Transferable.
func (m *machine) Record() hypervisor.Record {
	return hypervisor.Record{Backend: Name, ID: m.cfg.ID, Dir: m.cfg.Dir, Process: m.id, Mark: m.mark}
}

// Disown implements hypervisor.Transferable.
func (m *machine) Disown() error {
	if err := m.backend.fail("disown"); err != nil {
		return err
	}
	m.mu.Lock()
	line := m.line
	m.line = nil
	m.mu.Unlock()
	m.attended.Close()
	return line.Strike()
}

// Checkpoint implements hypervisor.Checkpointer.
func (m *machine) Checkpoint(ctx context.Context) error {
	if err := m.backend.fail("checkpoint"); err != nil {
		return err
	}
	if err := m.id.Signal(unix.SIGUSR1); err != nil {
		return err
	}
	select {
	case <-m.done:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	_, err := load(m.cfg.CheckpointDir)
	return err
}
