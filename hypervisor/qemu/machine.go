//go:build linux

package qemu

import (
	"bufio"
	"bytes"
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
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
	"github.com/containerd/log"
)

// stderrTailSize bounds what is kept of QEMU's own words.
const stderrTailSize = 4 << 10

// machine is one QEMU process and what it needs. Everything but the channels
// is set before Launch returns and not changed after.
type machine struct {
	id      string
	cmd     *exec.Cmd
	socket  socket
	link    channel
	process *receipt.Receipt
	monitor *monitor
	console *tail
	stderr  *tail

	// consoleEnd is closed when the guest's last words are in console.
	consoleEnd chan struct{}
	// exited is closed when the process has been reaped, done when exit has
	// been worked out as well.
	exited, done chan struct{}
	exit         hypervisor.Exit
	// destroying is held by the one Destroy that is under way.
	destroying chan struct{}
}

var _ hypervisor.Machine = (*machine)(nil)

func newMachine(cfg hypervisor.Config) *machine {
	stderr := &tail{max: stderrTailSize}
	return &machine{
		id:         cfg.ID,
		cmd:        command(cfg.Dir, stderr),
		socket:     socket{cfg.Dir},
		console:    &tail{max: hypervisor.ConsoleTailSize},
		stderr:     stderr,
		consoleEnd: make(chan struct{}),
		exited:     make(chan struct{}),
		done:       make(chan struct{}),
		destroying: make(chan struct{}, 1),
	}
}

// ID implements hypervisor.Machine.
func (m *machine) ID() string { return m.id }

// Pid implements hypervisor.Machine.
func (m *machine) Pid() int { return m.cmd.Process.Pid }

// Done implements hypervisor.Machine.
func (m *machine) Done() <-chan struct{} { return m.done }

// Exit implements hypervisor.Machine.
func (m *machine) Exit() hypervisor.Exit {
	select {
	case <-m.done:
		return m.exit
	default:
		return hypervisor.Exit{}
	}
}

// ConsoleTail implements hypervisor.Machine.
func (m *machine) ConsoleTail() []byte { return m.console.Bytes() }

// Dial implements hypervisor.Machine.
func (m *machine) Dial(ctx context.Context, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A guest that is gone sends no refusal.
	go func() {
		select {
		case <-m.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	conn, err := m.link.Dial(ctx, port)
	select {
	case <-m.exited:
		if conn != nil {
			conn.Close()
		}
		return nil, fmt.Errorf("dial port %d of machine %s: %w", port, m.id, hypervisor.ErrExited)
	default:
	}
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.id, err)
	}
	return conn, nil
}

// PowerOff implements hypervisor.Machine. The guest does not hear of it: its
// kernel has no driver for the ACPI power button, and an agent that listens can
// be asked directly.
func (m *machine) PowerOff(ctx context.Context) error {
	select {
	case <-m.exited:
		return fmt.Errorf("power off machine %s: %w", m.id, hypervisor.ErrExited)
	default:
	}
	err := m.monitor.execute(ctx, "quit", nil, nil)
	// QEMU may be gone before its answer is read.
	if errors.Is(err, errMonitorClosed) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("power off machine %s: %w", m.id, err)
	}
	return nil
}

// Destroy implements hypervisor.Machine.
func (m *machine) Destroy(ctx context.Context) error {
	select {
	case m.destroying <- struct{}{}:
		defer func() { <-m.destroying }()
	case <-ctx.Done():
		return fmt.Errorf("destroy machine %s: %w", m.id, context.Cause(ctx))
	}
	if err := m.release(ctx); err != nil {
		return fmt.Errorf("destroy machine %s: %w", m.id, err)
	}
	return nil
}

// release gives back what launch has taken, as far as it came, in reverse
// order. Every step may be repeated.
func (m *machine) release(ctx context.Context) error {
	if m.cmd.Process != nil {
		if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return err
		}
		select {
		case <-m.done:
		case <-ctx.Done():
			return fmt.Errorf("process %d has not exited: %w", m.Pid(), context.Cause(ctx))
		}
	}
	var errs []error
	if m.process != nil {
		errs = append(errs, m.process.Strike())
	}
	errs = append(errs, m.socket.remove())
	if m.link != nil {
		errs = append(errs, m.link.Close())
	}
	return errors.Join(errs...)
}

// wait reaps the process and works out how it ended. connected is closed when
// launch no longer changes m.
func (m *machine) wait(connected <-chan struct{}) {
	// Its error is in ProcessState, or is of no interest: the copying of stderr.
	_ = m.cmd.Wait()
	at := time.Now()
	close(m.exited)
	<-m.consoleEnd
	<-connected
	var shutdown string
	if m.monitor != nil {
		// The last event may still be in the socket; its end comes after it.
		<-m.monitor.closed
		shutdown = m.monitor.Shutdown()
	}
	m.exit = classify(shutdown, m.cmd.ProcessState.Sys().(syscall.WaitStatus), lastLine(m.stderr.Bytes()))
	m.exit.At = at
	close(m.done)
}

// classify puts an end into the field's terms. shutdown is what the monitor
// last said, see ShutdownCause in QEMU's qapi/run-state.json.
func classify(shutdown string, status syscall.WaitStatus, said string) hypervisor.Exit {
	exit := hypervisor.Exit{Reason: hypervisor.ExitError}
	switch {
	case status.Signaled():
		exit.Reason = hypervisor.ExitKilled
		exit.Detail = "signal: " + status.Signal().String()
	case status.ExitStatus() != 0:
		exit.Detail = fmt.Sprintf("exit status %d", status.ExitStatus())
	case shutdown == "":
		exit.Detail = "exit status 0 without a word on the monitor"
	default:
		exit.Detail = shutdown
		switch shutdown {
		case "guest-shutdown", "host-qmp-quit":
			exit.Reason = hypervisor.ExitPowerOff
		case "guest-reset", "guest-panic":
			exit.Reason = hypervisor.ExitReset
		case "host-signal":
			// SIGTERM and the like, on which QEMU closes down in order.
			exit.Reason = hypervisor.ExitKilled
		}
	}
	if said != "" {
		exit.Detail += "; " + said
	}
	return exit
}

func lastLine(text []byte) string {
	text = bytes.TrimSpace(text)
	return string(text[bytes.LastIndexByte(text, '\n')+1:])
}

// consoleLogLimit is how much of a guest's console goes to the debug log: a
// boot and its complaints, not what a hostile guest can write in a day.
const consoleLogLimit = 256 << 10

// readConsole reads what the guest writes until QEMU ends.
func (m *machine) readConsole(logger *log.Entry, console io.ReadCloser) {
	defer close(m.consoleEnd)
	defer console.Close()
	source := io.TeeReader(console, m.console)
	if logger.Logger.IsLevelEnabled(log.DebugLevel) {
		// Longer lines end the logging early, like the limit.
		lines := bufio.NewScanner(io.LimitReader(source, consoleLogLimit))
		for lines.Scan() {
			logger.WithField("line", lines.Text()).Debug("guest console")
		}
	}
	io.Copy(io.Discard, source)
}
