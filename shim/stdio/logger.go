package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/google/uuid"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/proc"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/tail"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// bounds are what a logger is allowed.
type bounds struct {
	// ready is how long it may take to say that it is ready.
	ready time.Duration
	// eof is how long it may live on after the end of its input before it is
	// asked to go by SIGTERM, and term how long after that before it is made to.
	eof, term time.Duration
}

// usual are the bounds but in tests. containerd's own shim sends SIGTERM at
// once and waits 12 s after it.
var usual = bounds{ready: 10 * time.Second, eof: 3 * time.Second, term: 10 * time.Second}

const (
	// crashGrace is how long a logger that has closed its end without a word may
	// take to turn out to have crashed. The first version of the protocol had no
	// word.
	crashGrace = 200 * time.Millisecond
	// loggerStderr bounds what is kept of a logger's complaints.
	loggerStderr = 4 << 10
	// loggerStderrGrace is how long they are read on after its exit.
	loggerStderrGrace = 500 * time.Millisecond
)

// loggerMark is the environment variable by which a logger is found whose pid
// nobody wrote down.
const loggerMark = "CONTAINERD_SHIM_BHYVE_LOGGER"

// logger is the program behind a binary:// URI, and its two pipes. Files 3 and
// 4 of the program are the container's standard output and error, and by file 5
// it says that it is ready: containerd's core/runtime/v2/logging.
type logger struct {
	path           string
	bounds         bounds
	log            *log.Entry
	stdout, stderr *os.File
	cmd            *exec.Cmd
	complaints     *tail.Buffer
	receipt        *receipt.Receipt

	// exited is closed when the process has been reaped; err is set by then.
	exited chan struct{}
	err    error
	// ended is closed when nothing is left of it; see end.
	ended chan struct{}
}

// startLogger starts the program at p for the process id, and returns when it
// is ready. The caller closes both pipes and then calls end.
func startLogger(ctx context.Context, p place, s Streams, b bounds) (_ *logger, err error) {
	args, err := loggerArgs(p.query)
	if err != nil {
		return nil, fmt.Errorf("logger %s: %w: %w", p.path, err, errdefs.ErrInvalidArgument)
	}
	mark := loggerMark + "=" + uuid.NewString()
	l := &logger{
		path:       p.path,
		bounds:     b,
		log:        log.G(ctx).WithFields(log.Fields{"logger": p.path, "process": s.ID}),
		cmd:        exec.Command(p.path, args...),
		complaints: &tail.Buffer{Max: loggerStderr},
		exited:     make(chan struct{}),
		ended:      make(chan struct{}),
	}
	l.cmd.Env = []string{"CONTAINER_ID=" + s.ID, "CONTAINER_NAMESPACE=" + s.Namespace, mark}
	l.cmd.Stderr = l.complaints
	l.cmd.WaitDelay = loggerStderrGrace
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}

	theirs, ours, err := l.pipes()
	defer closeAll(theirs)
	if err != nil {
		closeAll(ours)
		return nil, fmt.Errorf("logger %s: %w", p.path, err)
	}
	ready := ours[2]
	defer ready.Close()
	l.cmd.ExtraFiles = theirs
	if err := l.start(s.Receipts, mark); err != nil {
		closeAll(ours)
		return nil, fmt.Errorf("logger: %w", err)
	}
	// The logger alone has them now.
	closeAll(theirs)
	if err := l.awaitReady(ctx, ready, p.scheme == schemeBinaryV2); err != nil {
		closeAll(ours)
		// It has had its time.
		l.bounds.eof = 0
		l.end()
		<-l.ended
		return nil, fmt.Errorf("logger %s: %w", p.path, err)
	}
	return l, nil
}

// loggerArgs are the keys and values of a logger's URI in their order, each an
// argument of its own. As with containerd, a key without a value has an empty
// one.
func loggerArgs(query string) ([]string, error) {
	var args []string
	for part := range strings.SplitSeq(query, "&") {
		if part == "" {
			continue
		}
		key, value, _ := strings.Cut(part, "=")
		key, err := url.QueryUnescape(key)
		if err != nil {
			return nil, err
		}
		value, err = url.QueryUnescape(value)
		if err != nil {
			return nil, err
		}
		args = append(args, key, value)
	}
	return args, nil
}

// pipes makes the pipes for standard output, standard error and readiness. The
// logger's ends are in the order of its files. After an error the caller closes
// those that there are.
func (l *logger) pipes() (theirs, ours []*os.File, err error) {
	for _, ourWrite := range []bool{true, true, false} {
		r, w, err := os.Pipe()
		if err != nil {
			return theirs, ours, err
		}
		if ourWrite {
			theirs, ours = append(theirs, r), append(ours, w)
		} else {
			theirs, ours = append(theirs, w), append(ours, r)
		}
	}
	l.stdout, l.stderr = ours[0], ours[1]
	return theirs, ours, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// start starts the process with a receipt in book.
func (l *logger) start(book *receipt.Book, mark string) error {
	line := &Logger{proc.Receipt{Env: mark}}
	var err error
	if l.receipt, err = book.Write(line); err != nil {
		return err
	}
	if err := l.cmd.Start(); err != nil {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
		case errors.Is(err, fs.ErrPermission):
			err = fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied)
		}
		return errors.Join(err, l.receipt.Strike())
	}
	go func() {
		if err := l.cmd.Wait(); !errors.Is(err, exec.ErrWaitDelay) {
			l.err = err
		}
		close(l.exited)
	}()
	// Identify fails for a process that has exited already, of which more will
	// be heard.
	if line.ID, err = proc.Identify(l.cmd.Process.Pid); err == nil {
		// Without it the mark still names the process.
		l.receipt.Amend(line)
	}
	return nil
}

// awaitReady waits for the byte, or in the first version of the protocol for
// the end of the pipe.
func (l *logger) awaitReady(ctx context.Context, r *os.File, strict bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, l.bounds.ready,
		fmt.Errorf("not ready within %v: %w", l.bounds.ready, context.DeadlineExceeded))
	defer cancel()
	defer context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })()
	n, err := r.Read(make([]byte, 1))
	switch {
	case n > 0:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.Cause(ctx)
	case !errors.Is(err, io.EOF):
		return err
	}
	if l.exitsWithin(crashGrace) && l.err != nil {
		return fmt.Errorf("%w: %w", l.lastWords(), errdefs.ErrFailedPrecondition)
	}
	if strict {
		return fmt.Errorf("closed its pipe and is not ready: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// lastWords is how the process failed, once exited is closed.
func (l *logger) lastWords() error {
	if said := strings.TrimSpace(string(l.complaints.Bytes())); said != "" {
		return fmt.Errorf("%w: %s", l.err, said)
	}
	return l.err
}

// end sees the process out after the end of its input, in the background. Its
// receipt is struck out, and ended closed, when it is gone. It is called once.
func (l *logger) end() {
	entry := l.log
	go func() {
		defer close(l.ended)
		switch {
		case l.exitsWithin(l.bounds.eof):
			if l.err != nil {
				entry.WithError(l.lastWords()).Warn("logger failed")
			}
		case l.exitsAfter(syscall.SIGTERM, l.bounds.term):
		default:
			entry.Warn("logger does not end by itself: killed")
			l.cmd.Process.Kill()
			<-l.exited
		}
		if err := l.receipt.Strike(); err != nil {
			entry.WithError(err).Warn("logger's receipt was not struck out")
		}
	}()
}

func (l *logger) exitsAfter(signal syscall.Signal, grace time.Duration) bool {
	l.cmd.Process.Signal(signal)
	return l.exitsWithin(grace)
}

func (l *logger) exitsWithin(grace time.Duration) bool {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case <-l.exited:
		return true
	case <-timer.C:
		return false
	}
}
