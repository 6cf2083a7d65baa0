//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/containerd/fifo"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// ioRoot is where the FIFOs of processes are.
const ioRoot = "/run/io"

// processIO carries the standard streams of one process between the host's
// connections and the FIFOs that containerd's task service opens. It has the
// place that a containerd client has on a host, and opens FIFOs by the same
// library: an open waits for its other end, so no reader sees an end of file
// before the first writer, and none misses a writer that came and went.
//
// The ends of streams are in band. Output is complete when its connection has
// been shut down for writing; input is when the host has done the same.
type processIO struct {
	// stdin, stdout and stderr are what the task service is given.
	stdin, stdout, stderr string

	dir     string
	outputs sync.WaitGroup
	relays  sync.WaitGroup

	// opened is closed once the task service has its ends; closeStdin is set
	// by then.
	opened     chan struct{}
	closeStdin func()

	closeOnce sync.Once
	closed    chan struct{}
	mu        sync.Mutex
	closers   []io.Closer
	pumps     map[string]pump // by the id of the stream
}

// stdioURIs are the stdio fields of a request to the task service: stream URIs,
// or nothing where the process has no such stream.
type stdioURIs struct {
	stdin, stdout, stderr string
}

// openProcessIO claims the streams of a process and makes their FIFOs below
// root. Data flows once the task service opens the FIFOs. The caller ends it
// with finish or abort.
func openProcessIO(root string, s *streams, uris stdioURIs) (_ *processIO, retErr error) {
	p := &processIO{opened: make(chan struct{}), closed: make(chan struct{}), pumps: map[string]pump{}}
	if uris == (stdioURIs{}) {
		return p, nil
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("standard streams: %w", err)
	}
	dir, err := os.MkdirTemp(root, "")
	if err != nil {
		return nil, fmt.Errorf("standard streams: %w", err)
	}
	p.dir = dir
	defer func() {
		if retErr != nil {
			p.abort()
		}
	}()

	if uris.stdin != "" {
		id, conn, f, err := p.open(s, "stdin", uris.stdin, unix.O_WRONLY)
		if err != nil {
			return nil, err
		}
		p.stdin = filepath.Join(dir, "stdin")
		in := newInlet(conn)
		p.keep(id, f, in)
		p.relays.Go(func() { p.relayInput(f, in) })
	}
	for _, out := range []struct {
		name, uri string
		path      *string
	}{{"stdout", uris.stdout, &p.stdout}, {"stderr", uris.stderr, &p.stderr}} {
		if out.uri == "" {
			// The task service fails to open an output without a name when any
			// other stream has one.
			*out.path = os.DevNull
			continue
		}
		id, conn, f, err := p.open(s, out.name, out.uri, unix.O_RDONLY)
		if err != nil {
			return nil, err
		}
		*out.path = filepath.Join(dir, out.name)
		o := newOutlet(conn)
		p.keep(id, f, o)
		p.outputs.Add(1)
		p.relays.Go(func() {
			defer p.outputs.Done()
			if err := o.run(f); err != nil {
				log.L.WithError(err).Warn("end of output could not be sent")
			}
		})
	}
	return p, nil
}

// open claims the stream that uri names and makes the FIFO for it.
func (p *processIO) open(s *streams, name, uri string, flag int) (id string, _ stream, _ *closeOnceFifo, err error) {
	id, err = agentproto.ParseStreamURI(uri)
	if err != nil {
		return "", nil, nil, fmt.Errorf("%s: %w: %w", name, err, errdefs.ErrInvalidArgument)
	}
	conn, err := s.claim(id)
	if err != nil {
		return "", nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	// O_NONBLOCK makes the library open in the background, O_CREAT that it makes
	// the FIFO.
	f, err := fifo.OpenFifo(context.Background(), filepath.Join(p.dir, name), flag|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
	if err != nil {
		conn.Close()
		return "", nil, nil, fmt.Errorf("%s: %w", name, err)
	}
	return id, conn, &closeOnceFifo{ReadWriteCloser: f}, nil
}

// keep has both ends of a stream closed with p.
func (p *processIO) keep(id string, f io.Closer, w pump) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closers = append(p.closers, f, w)
	p.pumps[id] = w
}

// closeOnceFifo is a FIFO that both its relay and processIO may close: the
// library forbids that.
type closeOnceFifo struct {
	io.ReadWriteCloser
	once sync.Once
	err  error
}

// SyscallConn implements syscall.Conn.
func (f *closeOnceFifo) SyscallConn() (syscall.RawConn, error) {
	sc, ok := f.ReadWriteCloser.(syscall.Conn)
	if !ok {
		return nil, fmt.Errorf("%T has no file descriptor", f.ReadWriteCloser)
	}
	return sc.SyscallConn()
}

func (f *closeOnceFifo) Close() error {
	f.once.Do(func() { f.err = f.ReadWriteCloser.Close() })
	return f.err
}

// relayInput copies in to f until the host shuts down its side, or the
// process's side is gone.
func (p *processIO) relayInput(f io.WriteCloser, in *inlet) {
	if err := in.run(f, p.closed); errors.Is(err, unix.EPIPE) {
		f.Close()
		return
	}
	// Writing nothing waits for the reader: one that opens the FIFO when the
	// last writer has been and gone would wait for another for ever.
	f.Write(nil)
	f.Close()
	// The task service keeps a writer of its own on the FIFO, so that a client
	// can leave and come back. The process sees the end of its input once that
	// is closed, too.
	select {
	case <-p.opened:
		p.closeStdin()
	case <-p.closed:
	}
}

// serviceOpened says that the task service has opened its ends of the FIFOs.
// closeStdin closes the one that it keeps for writing.
func (p *processIO) serviceOpened(closeStdin func()) {
	p.closeStdin = closeStdin
	close(p.opened)
}

// finish waits until all output has been sent, at most until ctx ends, and then
// closes and removes everything. The task service must have closed its ends.
func (p *processIO) finish(ctx context.Context) error {
	drained := make(chan struct{})
	go func() {
		p.outputs.Wait()
		close(drained)
	}()
	var err error
	select {
	case <-drained:
	case <-ctx.Done():
		err = fmt.Errorf("output was cut off: %w", context.Cause(ctx))
	}
	p.abort()
	return err
}

// abort closes and removes everything without waiting for data. It may be
// called more than once.
func (p *processIO) abort() {
	p.closeOnce.Do(func() {
		close(p.closed)
		p.mu.Lock()
		closers := p.closers
		p.mu.Unlock()
		for _, c := range closers {
			c.Close()
		}
		if p.dir != "" {
			os.RemoveAll(p.dir)
		}
	})
	p.relays.Wait()
}
