package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/fifo"
)

// sink is where the output of a process goes. It may be closed more than once,
// and under a Write, which then returns.
type sink interface {
	io.WriteCloser
	// settle returns when the end of the stream may be told, for readers that
	// hear of it by other ways than the end of the data.
	settle()
}

// sinks are a process's outputs that are yet without a stream.
type sinks struct{ stdout, stderr sink }

func (s sinks) close() {
	for _, one := range []sink{s.stdout, s.stderr} {
		if one != nil {
			one.Close()
		}
	}
}

// openSinks opens what the outputs go to, and starts the logger if that is what
// it is. On error those that are open are returned as well.
func (o *IO) openSinks(ctx context.Context, where places, s Streams) (open sinks, err error) {
	if p := where.logger(); p != nil {
		if o.logger, err = startLogger(ctx, *p, s, usual); err != nil {
			return open, err
		}
		open = sinks{&pipe{o.logger.stdout}, &pipe{o.logger.stderr}}
		// One that the process does not have is at its end.
		if where.stdout == nil {
			open.stdout.Close()
			open.stdout = nil
		}
		if where.stderr == nil {
			open.stderr.Close()
			open.stderr = nil
		}
		return open, nil
	}
	if where.stdout != nil {
		if open.stdout, err = openSink(ctx, *where.stdout); err != nil {
			return open, fmt.Errorf("stdout: %w", err)
		}
	}
	if where.stderr != nil {
		if open.stderr, err = openSink(ctx, *where.stderr); err != nil {
			return open, fmt.Errorf("stderr: %w", err)
		}
	}
	return open, nil
}

func openSink(ctx context.Context, p place) (sink, error) {
	if p.scheme == schemeFile {
		// Modes as in containerd's own shim.
		if err := os.MkdirAll(filepath.Dir(p.path), 0o755); err != nil {
			return nil, err
		}
		return openFile(p.path, os.O_CREATE)
	}
	st, err := os.Stat(p.path)
	if err != nil {
		return nil, err
	}
	if st.Mode()&os.ModeNamedPipe == 0 {
		return openFile(p.path, 0)
	}
	return openFIFO(ctx, p.path)
}

// fifoSink is a FIFO that a client reads.
type fifoSink struct {
	io.WriteCloser
	// keep is a reading end that is never read: while it is open, a client may
	// leave and another attach without the process getting EPIPE in between.
	keep io.Closer

	once sync.Once
	err  error
}

func openFIFO(ctx context.Context, path string) (sink, error) {
	// Blocks until the client has its reading end open.
	w, err := fifo.OpenFifo(ctx, path, syscall.O_WRONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s for writing: %w", path, err)
	}
	keep, err := fifo.OpenFifo(ctx, path, syscall.O_RDONLY, 0)
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("open %s for reading: %w", path, err)
	}
	return &fifoSink{WriteCloser: w, keep: keep}, nil
}

func (f *fifoSink) settle() {}

func (f *fifoSink) Close() error {
	f.once.Do(func() { f.err = errors.Join(f.WriteCloser.Close(), f.keep.Close()) })
	return f.err
}

// fileSink is a file that is appended to, by the other output as well if that
// goes to the same.
type fileSink struct{ *os.File }

func openFile(path string, flag int) (sink, error) {
	// Non-blocking for what is no regular file: a terminal may be stopped.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|syscall.O_NONBLOCK|flag, 0o644)
	if err != nil {
		return nil, err
	}
	return fileSink{f}, nil
}

func (fileSink) settle() {}

// pipe is one of the two to a logger.
type pipe struct{ *os.File }

const (
	// settleMax bounds how long a logger may leave output in its pipe before the
	// end of the process is told.
	settleMax = time.Second
	// settleStep is how often the pipe is looked at: nothing wakes its writer
	// when it has been read.
	settleStep = 5 * time.Millisecond
)

// settle waits until the logger has read everything. nerdctl's stops reading
// when it hears from containerd that the process has ended, wherever it is.
func (p *pipe) settle() {
	limit := time.NewTimer(settleMax)
	defer limit.Stop()
	again := time.NewTicker(settleStep)
	defer again.Stop()
	for p.unread() > 0 {
		select {
		case <-again.C:
		case <-limit.C:
			return
		}
	}
}

// unread is how many bytes are in the pipe, as far as its writer can tell.
func (p *pipe) unread() int {
	n := 0
	raw, err := p.SyscallConn()
	if err != nil {
		return 0
	}
	raw.Control(func(fd uintptr) { n = unreadIn(int(fd)) })
	return n
}
