// Package process is what the processes of virtual machine monitors have in
// common: how one is started with a receipt, what becomes of its guest's
// console and of its own words, and how its end is learned.
package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
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
// console. Methods are safe for concurrent use after Start.
type Process struct {
	// Cmd is changed before Start only.
	Cmd *exec.Cmd

	receipt *receipt.Receipt
	console *Tail
	stderr  *Tail
	// exited is closed when the process has been reaped, ended when the guest's
	// last words are in console as well.
	exited, ended chan struct{}
	at            time.Time
}

// New returns a process that is yet to be started, with a working directory
// and an environment that holds nothing of the caller's.
func New(dir, program string, args ...string) *Process {
	p := &Process{
		Cmd:     exec.Command(program, args...),
		console: &Tail{Max: hypervisor.ConsoleTailSize},
		stderr:  &Tail{Max: stderrTailSize},
		exited:  make(chan struct{}),
		ended:   make(chan struct{}),
	}
	p.Cmd.Dir = dir
	// Errors in English.
	p.Cmd.Env = []string{"LC_ALL=C"}
	p.Cmd.Stderr = p.stderr
	// Out of reach of a terminal's Ctrl-C: the owner decides when it ends.
	p.Cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return p
}

// Start starts the process with a receipt in book. mark is one of its
// arguments, which no other process ever has (see proc.Receipt). After an
// error, Started tells whether there is a process.
func (p *Process) Start(logger *log.Entry, book *receipt.Book, mark string) error {
	console, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	// The process alone has it from its start on, so that it ends with it.
	defer stdout.Close()
	p.Cmd.Stdout = stdout

	line := &proc.Receipt{Arg: mark}
	if p.receipt, err = book.Write(line); err == nil {
		err = p.Cmd.Start()
	}
	if err != nil {
		console.Close()
		return err
	}
	read := make(chan struct{})
	go p.readConsole(logger, console, read)
	go p.wait(read)

	// Identify fails for a process that has exited already, which will have more
	// to say of it.
	if line.ID, err = proc.Identify(p.Pid()); err == nil {
		return p.receipt.Amend(line)
	}
	return nil
}

func (p *Process) wait(consoleRead <-chan struct{}) {
	// Its error is in ProcessState, or is of no interest: the copying of stderr.
	_ = p.Cmd.Wait()
	p.at = time.Now()
	close(p.exited)
	<-consoleRead
	close(p.ended)
}

// consoleLogLimit is how much of a guest's console goes to the debug log: a
// boot and its complaints, not what a hostile guest can write in a day.
const consoleLogLimit = 256 << 10

// readConsole reads what the guest writes until the process ends.
func (p *Process) readConsole(logger *log.Entry, console io.ReadCloser, done chan<- struct{}) {
	defer close(done)
	defer console.Close()
	source := io.TeeReader(console, p.console)
	if logger.Logger.IsLevelEnabled(log.DebugLevel) {
		// Longer lines end the logging early, like the limit.
		lines := bufio.NewScanner(io.LimitReader(source, consoleLogLimit))
		for lines.Scan() {
			logger.WithField("line", lines.Text()).Debug("guest console")
		}
	}
	io.Copy(io.Discard, source)
}

// Started says whether there has ever been a process.
func (p *Process) Started() bool { return p.Cmd.Process != nil }

// Pid is the process's number, after Start.
func (p *Process) Pid() int { return p.Cmd.Process.Pid }

// Exited is closed when the process has been reaped.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Ended is closed when the process has been reaped and all that it wrote has
// been read.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// HasExited says whether Exited is closed.
func (p *Process) HasExited() bool {
	select {
	case <-p.exited:
		return true
	default:
		return false
	}
}

// Status is how the process ended, and ExitedAt when that was seen. They are
// valid once Exited is closed.
func (p *Process) Status() syscall.WaitStatus { return p.Cmd.ProcessState.Sys().(syscall.WaitStatus) }

// ExitedAt is when the process was seen to be gone, see Status.
func (p *Process) ExitedAt() time.Time { return p.at }

// Console is the end of the guest's console.
func (p *Process) Console() []byte { return p.console.Bytes() }

// Stderr is the end of what the process itself has said.
func (p *Process) Stderr() []byte { return p.stderr.Bytes() }

// Said is the last line of Stderr.
func (p *Process) Said() string { return lastLine(p.stderr.Bytes()) }

// Kill ends the process by force and waits for that until ctx ends. It is
// legal at every point.
func (p *Process) Kill(ctx context.Context) error {
	if !p.Started() {
		return nil
	}
	if err := p.Cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("process %d has not exited: %w", p.Pid(), context.Cause(ctx))
	}
}

// Strike strikes out the receipt of a process that is gone or never was.
func (p *Process) Strike() error {
	if p.receipt == nil {
		return nil
	}
	return p.receipt.Strike()
}

// Dial calls dial with a context that ends with the process: a guest that is
// gone sends no refusal. After the process's end the error is
// hypervisor.ErrExited.
func (p *Process) Dial(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-p.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := dial(ctx)
	if p.HasExited() {
		if conn != nil {
			conn.Close()
		}
		return nil, hypervisor.ErrExited
	}
	return conn, err
}
