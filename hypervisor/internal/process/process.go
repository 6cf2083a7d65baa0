// Package process is what the processes of virtual machine monitors have in
// common: how one is started with a receipt or taken over from another owner,
// what becomes of its guest's console and of its own words, how it is parked,
// and how its end is learned.
package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/log"
)

// stderrTailSize bounds what is kept of a monitor's own words.
const stderrTailSize = 4 << 10

// Process is one monitor's process. Its standard output is the guest's
// console. It does not end with its owner. Methods are safe for concurrent use
// after Start.
type Process struct {
	// Cmd is changed before Start only. It is nil for a process that was adopted.
	Cmd *exec.Cmd

	// id is the zero value for a process that ended before it was looked at.
	id      proc.ID
	receipt *receipt.Receipt
	console *output
	stderr  *output
	// owned ends with Disown.
	owned  context.Context
	disown context.CancelFunc

	// exited is closed when the process has ended and, if it is a child, has
	// been reaped; ended when the guest's last words are in console as well.
	exited, ended chan struct{}
	at            time.Time
	status        syscall.WaitStatus
	statusKnown   bool
}

func newProcess(dir string) *Process {
	p := &Process{
		console: newOutput(dir, consoleFIFO, hypervisor.ConsoleTailSize),
		stderr:  newOutput(dir, stderrFIFO, stderrTailSize),
		exited:  make(chan struct{}),
		ended:   make(chan struct{}),
	}
	p.owned, p.disown = context.WithCancel(context.Background())
	return p
}

// New returns a process that is yet to be started, with a working directory,
// where its outputs are too, and an environment that holds nothing of the
// caller's and names that directory, see Unattended.
func New(dir, program string, args ...string) *Process {
	p := newProcess(dir)
	p.Cmd = exec.Command(program, args...)
	p.Cmd.Dir = dir
	// Errors in English.
	p.Cmd.Env = []string{"LC_ALL=C", dirEnv + "=" + dir}
	// Out of reach of a terminal's Ctrl-C: the owner decides when it ends. A
	// session of its own, as a process group is orphaned by the end of a parent in
	// the same session, and the members of one that are stopped are then sent
	// SIGHUP and SIGCONT (setpgid(2)): a parked machine would end with its owner.
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return p
}

// Start starts the process with a receipt in book. mark is one of its
// arguments, which no other process ever has (see proc.Receipt). After an
// error, Started tells whether there is a process.
func (p *Process) Start(logger *log.Entry, book *receipt.Book, mark string) error {
	// The process alone has them from its start on, so that they end with it.
	stdout, err := p.console.create()
	if err != nil {
		return err
	}
	defer stdout.Close()
	stderr, err := p.stderr.create()
	if err != nil {
		return err
	}
	defer stderr.Close()
	p.Cmd.Stdout, p.Cmd.Stderr = stdout, stderr
	if err := errors.Join(p.console.open(), p.stderr.open()); err != nil {
		return err
	}

	line := &proc.Receipt{Arg: mark}
	if p.receipt, err = book.Write(line); err == nil {
		err = p.Cmd.Start()
	}
	if err != nil {
		p.console.close()
		p.stderr.close()
		return err
	}
	// Identify fails for a process that has exited already, which will have more
	// to say of it.
	line.ID, err = proc.Identify(p.Cmd.Process.Pid)
	p.id = line.ID
	go p.wait(logger, p.reap)
	if err == nil {
		return p.receipt.Amend(line)
	}
	return nil
}

// Adopt takes over a process that another owner has started in dir, with a
// receipt in book. The caller has seen it alive. What it has written until now
// and its former owner has read is not known.
func Adopt(logger *log.Entry, dir string, id proc.ID, book *receipt.Book, mark string) (*Process, error) {
	p := newProcess(dir)
	p.id = id
	var err error
	if p.receipt, err = book.Write(&proc.Receipt{ID: id, Arg: mark}); err != nil {
		return nil, err
	}
	for _, o := range []*output{p.console, p.stderr} {
		// It can be done without.
		if err := o.open(); err != nil {
			logger.WithError(err).Warn("an output of the machine's process cannot be read")
		}
	}
	go p.wait(logger, p.await)
	return p, nil
}

func (p *Process) wait(logger *log.Entry, end func() bool) {
	go p.console.read(logger)
	go p.stderr.read(nil)
	if !end() {
		return
	}
	p.at = time.Now()
	close(p.exited)
	<-p.console.done
	<-p.stderr.done
	close(p.ended)
}

// reap waits for a child.
func (p *Process) reap() bool {
	// A daemon has a hundred of them, and Cmd's way to wait takes a thread.
	_ = p.id.Wait(context.Background())
	// Its error is in ProcessState.
	_ = p.Cmd.Wait()
	p.status, p.statusKnown = p.Cmd.ProcessState.Sys().(syscall.WaitStatus), true
	return true
}

// await waits for a process that is not a child, until it is given up.
func (p *Process) await() bool {
	var err error
	p.status, p.statusKnown, err = p.id.WaitStatus(p.owned)
	if err != nil && p.owned.Err() == nil {
		log.L.WithError(err).Error("the end of a machine's process will not be noticed")
	}
	return err == nil
}

// Started says whether there has ever been a process.
func (p *Process) Started() bool { return p.Cmd == nil || p.Cmd.Process != nil }

// ID is the process, by pid and start time, after Start.
func (p *Process) ID() proc.ID { return p.id }

// Pid is the process's number, after Start.
func (p *Process) Pid() int {
	if p.Cmd != nil {
		return p.Cmd.Process.Pid
	}
	return p.id.Pid
}

// Exited is closed when the process has ended, and been reaped if it is a
// child.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Ended is closed when the process has exited and all that it wrote has been
// read.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Disowned is closed by Disown. The others need not be closed any more then.
func (p *Process) Disowned() <-chan struct{} { return p.owned.Done() }

// HasExited says whether Exited is closed.
func (p *Process) HasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// Status is how the process ended, if known: not every system tells that to
// those who are not the parent. It is valid once Exited is closed.
func (p *Process) Status() (status syscall.WaitStatus, known bool) { return p.status, p.statusKnown }

// ExitedAt is when the process was seen to be gone, see Status.
func (p *Process) ExitedAt() time.Time { return p.at }

// Console is the end of the guest's console.
func (p *Process) Console() []byte { return p.console.tail.Bytes() }

// Stderr is the end of what the process itself has said.
func (p *Process) Stderr() []byte { return p.stderr.tail.Bytes() }

// Said is the last line of Stderr.
func (p *Process) Said() string { return p.stderr.tail.LastLine() }

// Kill ends the process by force and waits for that until ctx ends. It is
// legal at every point, also while the process is stopped.
func (p *Process) Kill(ctx context.Context) error {
	if !p.Started() {
		return nil
	}
	if p.Cmd == nil {
		if err := p.id.Kill(ctx); err != nil {
			return err
		}
	} else if err := p.Cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d has not exited: %w", p.Pid(), context.Cause(ctx))
	}
}

// Forget removes what is left of a process that is gone or never was: its
// outputs and its receipt.
func (p *Process) Forget() error {
	err := errors.Join(p.console.remove(), p.stderr.remove())
	if p.receipt != nil {
		err = errors.Join(err, p.receipt.Strike())
	}
	return err
}

// Disown lets go of a process that goes on with another owner. A child is
// reaped all the same when it ends.
func (p *Process) Disown() error {
	p.disown()
	p.console.close()
	p.stderr.close()
	return p.receipt.Strike()
}

// Dial calls dial with a context that ends with the process: a guest that is
// gone sends no refusal. After the process's end the error is
// hypervisor.ErrExited.
func (p *Process) Dial(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := p.WhileRunning(ctx)
	defer cancel()
	conn, err := dial(ctx)
	if p.HasExited() {
		if conn != nil {
			conn.Close()
		}
		return nil, hypervisor.ErrExited
	}
	return conn, err
}

// WhileRunning is ctx, ended by the process's end and by Disown as well.
func (p *Process) WhileRunning(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-p.exited:
			cancel()
		case <-p.owned.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}
