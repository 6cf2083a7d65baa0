//go:build linux || freebsd

package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor/host"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/tail"
	poolv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/api/v1"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/client"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/pool/internal/fakevm"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// patience is how long a test waits for what must happen on a busy machine.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	if handled, err := host.BecomeMachine(os.Args); handled {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fakevm.Become()
	if dir := os.Getenv(daemonEnv); dir != "" {
		if err := daemonMain(dir); err != nil {
			fmt.Fprintln(os.Stderr, "daemon:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// rig is the directories of one pool, and who claims from it.
type rig struct {
	*testing.T
	dir      string
	patience time.Duration
	backend  fakevm.Backend
	memory   func() (Memory, error)
	claimIn  time.Duration
	reserve  uint64
}

func newRig(t *testing.T) *rig {
	t.Helper()
	// Below TMPDIR by a short name: paths of sockets are short.
	dir, err := os.MkdirTemp("", "pool")
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{T: t, dir: dir, patience: patience, backend: fakevm.Backend{Owner: dir}, memory: plenty}
	if err := os.MkdirAll(r.guestDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := fakevm.Image(r.guestDir()); err != nil {
		t.Fatal(err)
	}
	// The first, so that it comes after everything else has ended, however the
	// test did.
	t.Cleanup(func() {
		for _, id := range r.undoEntries() {
			t.Errorf("entry %s is left", id)
		}
		for _, id := range r.machines() {
			t.Errorf("a machine is left: %s", id)
			_ = id.Kill(context.Background())
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

func plenty() (Memory, error) { return Memory{Total: 1 << 40, Available: 1 << 40}, nil }

func (r *rig) guestDir() string { return filepath.Join(r.dir, "guest") }
func (r *rig) socket() string   { return filepath.Join(r.dir, "sock") }

func options(dir string) Options {
	return Options{
		Root: filepath.Join(dir, "root"), State: filepath.Join(dir, "state"), Concurrency: 4,
		Memory: plenty, ClaimTimeout: patience,
	}
}

// machines are those that run, whoever has them.
func (r *rig) machines() []proc.ID {
	r.Helper()
	ids, err := (&proc.Receipt{Arg: r.dir}).Find()
	if err != nil {
		r.Fatal(err)
	}
	return ids
}

// undoEntries gives back what the entries of a daemon that has ended have of the
// host's, and returns those that have something. Real machines bear no mark of
// the rig's, so nothing else would find them.
func (r *rig) undoEntries() (left []string) {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	books, err := filepath.Glob(filepath.Join(options(r.dir).State, entriesDir, "*", "receipts-*"))
	if err != nil {
		r.Error(err)
	}
	for _, path := range books {
		book, err := receipt.Open(path)
		if err != nil {
			r.Error(err)
			continue
		}
		if book.Len() == 0 {
			continue
		}
		left = append(left, filepath.Base(filepath.Dir(path)))
		if err := book.UndoAll(ctx); err != nil {
			r.Error(err)
		}
	}
	return left
}

// open opens the pool in this process, and serves it.
func (r *rig) open(ctx context.Context) *Pool {
	r.Helper()
	o := options(r.dir)
	o.Backend, o.Memory, o.Reserve = r.backend, r.memory, r.reserve
	if r.claimIn > 0 {
		o.ClaimTimeout = r.claimIn
	}
	p, err := Open(ctx, o)
	if err != nil {
		r.Fatal(err)
	}
	l, err := Listen(r.socket())
	if err != nil {
		r.Fatal(err)
	}
	serving, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(serving, p, l) }()
	r.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if !p.closed {
			if _, err := p.Drain(ctx); err != nil {
				r.Error(err)
			}
		}
		stop()
		if err := errors.Join(<-ended, p.Close(ctx)); err != nil && !errors.Is(err, os.ErrClosed) {
			r.Error(err)
		}
	})
	return p
}

func (r *rig) context() context.Context {
	r.Helper()
	ctx, cancel := context.WithTimeout(r.Context(), r.patience)
	r.Cleanup(cancel)
	return ctx
}

func (r *rig) dial() *client.Client {
	r.Helper()
	c, err := client.Dial(r.Context(), r.socket())
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Close() })
	return c
}

// template is a small one that keeps nothing by itself.
func (r *rig) template(change ...func(*poolv1.Template)) *poolv1.Template {
	t := &poolv1.Template{
		Name: "small", GuestDir: r.guestDir(), High: 20,
		Shape: &poolv1.Shape{Vcpus: 1, MemoryMib: 128},
	}
	for _, f := range change {
		f(t)
	}
	return t
}

func cold(t *poolv1.Template) { t.Cold = true }

func (r *rig) add(c *client.Client, t *poolv1.Template) *poolv1.Template {
	r.Helper()
	stored, err := c.AddTemplate(r.Context(), &poolv1.AddTemplateRequest{Template: t})
	if err != nil {
		r.Fatal(err)
	}
	return stored
}

func (r *rig) warm(c *client.Client, name string, n int) {
	r.Helper()
	if err := c.Warm(r.context(), name, n, func(int, int) {}); err != nil {
		r.Fatal(err)
	}
}

// claim takes a machine and proves that it answers. It is destroyed when the
// test ends.
func (r *rig) claim(c *client.Client, t *poolv1.Template) (*client.Claimed, error) {
	return r.claimWant(c, client.Want{Shape: t.Shape})
}

func (r *rig) claimWant(c *client.Client, want client.Want) (*client.Claimed, error) {
	book, err := receipt.Open(filepath.Join(r.TempDir(), "receipts"))
	if err != nil {
		return nil, err
	}
	m, err := c.Claim(r.context(), want, fakevm.Backend{}, book)
	if err != nil {
		if book.Len() > 0 {
			r.Errorf("%d receipts after a claim that failed", book.Len())
		}
		return nil, err
	}
	r.Cleanup(func() {
		if err := m.Destroy(context.Background()); err != nil {
			r.Error(err)
		}
		if book.Len() > 0 {
			r.Errorf("%d receipts after Destroy", book.Len())
		}
	})
	if _, err := Prove(r.context(), m.Machine); err != nil {
		return nil, err
	}
	return m, nil
}

func (r *rig) status(c *client.Client) *poolv1.StatusResponse {
	r.Helper()
	s, err := c.Status(r.Context(), nil)
	if err != nil {
		r.Fatal(err)
	}
	return s
}

// eventually waits for a condition to become nil.
func (r *rig) eventually(condition func() error) {
	r.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.NewTimer(r.patience)
	defer deadline.Stop()
	for {
		err := condition()
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			r.Fatal(err)
		}
	}
}

// A daemon in a process of its own, that can be killed.
const (
	daemonEnv = "POOLTEST_DAEMON"
	// crashEnv is "NAME#N": the daemon kills itself at the Nth step of this name.
	crashEnv = "POOLTEST_CRASH"
	// traceEnv is a file that the name of each step is appended to.
	traceEnv = "POOLTEST_TRACE"
)

func daemonMain(dir string) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM)
	defer stop()
	o := options(dir)
	o.Backend = fakevm.Backend{Owner: dir}
	if os.Getenv(realEnv) != "" {
		o.Backend = host.Backend()
		o.BootTimeout = bootPatience
	}
	o.Step = stepper()
	// What is offered when the daemon is killed is held for so long.
	o.ClaimTimeout = 5 * time.Second
	p, err := Open(ctx, o)
	if err != nil {
		return err
	}
	l, err := Listen(filepath.Join(dir, "sock"))
	if err != nil {
		return err
	}
	if err := Serve(ctx, p, l); err != nil {
		return err
	}
	return p.Close(context.Background())
}

func stepper() func(string) {
	at, n, _ := strings.Cut(os.Getenv(crashEnv), "#")
	left, _ := strconv.Atoi(n)
	var trace *os.File
	if path := os.Getenv(traceEnv); path != "" {
		trace, _ = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	}
	lock := make(chan struct{}, 1)
	return func(name string) {
		lock <- struct{}{}
		defer func() { <-lock }()
		if trace != nil {
			fmt.Fprintln(trace, name)
		}
		if name != at {
			return
		}
		if left--; left == 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			// Nothing happens between the signal's sending and its arrival.
			select {}
		}
	}
}

// daemon is a running daemonMain.
type daemon struct {
	cmd    *exec.Cmd
	output *tail.Buffer
	done   chan struct{}
}

// said is what the daemon has logged so far.
func (d *daemon) said() string { return string(d.output.Bytes()) }

func (r *rig) startDaemon(env ...string) *daemon {
	r.Helper()
	self, err := os.Executable()
	if err != nil {
		r.Fatal(err)
	}
	d := &daemon{cmd: exec.Command(self), output: &tail.Buffer{Max: 1 << 20}, done: make(chan struct{})}
	d.cmd.Env = append(append(os.Environ(), daemonEnv+"="+r.dir), env...)
	d.cmd.Stderr = d.output
	if err := os.Remove(r.socket()); err != nil && !os.IsNotExist(err) {
		r.Fatal(err)
	}
	if err := d.cmd.Start(); err != nil {
		r.Fatal(err)
	}
	go func() { _ = d.cmd.Wait(); close(d.done) }()
	r.Cleanup(func() { d.kill() })
	return d
}

// serves waits until the daemon answers, or has ended.
func (r *rig) serves(d *daemon) *client.Client {
	r.Helper()
	var c *client.Client
	r.eventually(func() (err error) {
		select {
		case <-d.done:
			return nil
		default:
		}
		c, err = client.Dial(r.Context(), r.socket())
		return err
	})
	if c != nil {
		r.Cleanup(func() { c.Close() })
	}
	return c
}

func (d *daemon) kill() {
	_ = d.cmd.Process.Kill()
	<-d.done
}
