// Package hooks runs those OCI hooks of a container that belong on the host:
// prestart, createRuntime, poststart and poststop (the runtime specification,
// config.md "POSIX-platform Hooks"). They run in the shim's namespaces, with the
// machine's process as the container's pid. startContainer hooks are the guest's
// runtime's to run.
package hooks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/tail"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// Kind is when hooks run, in the words of config.json.
type Kind string

// The kinds that run on the host.
const (
	Prestart      Kind = "prestart"
	CreateRuntime Kind = "createRuntime"
	Poststart     Kind = "poststart"
	Poststop      Kind = "poststop"
)

const (
	// DefaultTimeout bounds a hook that has no timeout of its own. It is long
	// enough for network plugins that wait for an address.
	DefaultTimeout = time.Minute
	// outputKept bounds what is quoted of a hook's output.
	outputKept = 4 << 10
	// outputGrace is how long the output of a hook that has exited is waited
	// for: it may leave a daemon behind that holds it open.
	outputGrace = 500 * time.Millisecond
)

// Error is the failure of one hook. It unwraps to *exec.ExitError,
// context.DeadlineExceeded, errdefs.ErrNotFound for a program that is not
// there, or what else was the reason.
type Error struct {
	Kind  Kind
	Index int
	Path  string
	// Output is the end of what the hook wrote to standard output and error.
	Output string
	Err    error
}

func (e *Error) Error() string {
	s := fmt.Sprintf("%s hook %d, %s: %v", e.Kind, e.Index, e.Path, e.Err)
	if e.Output != "" {
		s += ": " + e.Output
	}
	return s
}

// Unwrap is for package errors.
func (e *Error) Unwrap() error { return e.Err }

// Run runs hooks one after the other, each in bounded time, with state on its
// standard input, and stops at the first that fails, with an *Error. Each has a
// receipt in book while it runs, if book is not nil.
func Run(ctx context.Context, book *receipt.Book, kind Kind, hooks []specs.Hook, state specs.State) error {
	data, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("encode state for hooks: %w", err)
	}
	for i, h := range hooks {
		output, err := run(ctx, book, h, data)
		if err != nil {
			return &Error{Kind: kind, Index: i, Path: h.Path, Output: output, Err: err}
		}
	}
	return nil
}

// run runs one hook, and returns the end of its output.
func run(ctx context.Context, book *receipt.Book, h specs.Hook, state []byte) (_ string, err error) {
	timeout := DefaultTimeout
	if h.Timeout != nil {
		timeout = time.Duration(*h.Timeout) * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout,
		fmt.Errorf("did not end within %v: %w", timeout, context.DeadlineExceeded))
	defer cancel()

	output := &tail.Buffer{Max: outputKept}
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	// Nothing of the shim's own environment, even if the hook has none.
	cmd.Env = append([]string{}, h.Env...)
	cmd.Stdout, cmd.Stderr = output, output
	cmd.WaitDelay = outputGrace
	// What the hook has started goes with it when its time is up.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		if err := unix.Kill(-cmd.Process.Pid, unix.SIGKILL); !errors.Is(err, unix.ESRCH) {
			return err
		}
		return os.ErrProcessDone
	}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		stdin.Close()
		return "", startError(err)
	}
	// The receipt comes after the start, as it names the process, and before the
	// state: a hook whose shim ends here reads no state, and does nothing.
	line, err := writeReceipt(book, cmd.Process.Pid)
	if err != nil {
		cancel()
	} else {
		// A hook need not read its input; Wait ends this.
		go func() {
			stdin.Write(state)
			stdin.Close()
		}()
	}
	werr := cmd.Wait()
	if line != nil {
		err = errors.Join(err, line.Strike())
	}
	switch {
	case ctx.Err() != nil && werr != nil:
		werr = context.Cause(ctx)
	case errors.Is(werr, exec.ErrWaitDelay):
		werr = nil
	}
	return strings.TrimSpace(string(output.Bytes())), errors.Join(err, werr)
}

func startError(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied)
	}
	return err
}

// writeReceipt records a hook that runs. One that has exited needs no record.
func writeReceipt(book *receipt.Book, pid int) (*receipt.Receipt, error) {
	if book == nil {
		return nil, nil
	}
	id, err := proc.Identify(pid)
	if errdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return book.Write(&proc.Receipt{ID: id})
}
