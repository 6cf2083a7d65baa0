package stdio

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// input copies one FIFO to one connection, from start on.
//
// Nothing is read before the process is started. A client that pipes a little
// into ctr has come to the end of it by the time that the FIFO is read; ctr
// tells of that end by CloseIO, and can do so only for a process that it has
// been told of.
type input struct {
	path  string
	conn  net.Conn
	moved *atomic.Int64
	// sent counts what has been written to conn, by who has the gate.
	sent *progress
	gate gate

	mu      sync.Mutex
	r       *os.File // nil before start
	started bool
	// finishing is set when the client has asked for the end of the stream:
	// what is in the FIFO still goes, what may yet come does not.
	finishing bool
	closed    bool
}

// halfCloser is a connection whose sending half can be shut down: TCP and vsock.
type halfCloser interface{ CloseWrite() error }

func openInput(path string, conn net.Conn, moved *atomic.Int64) (*input, error) {
	if _, ok := conn.(halfCloser); !ok {
		return nil, fmt.Errorf("%T cannot carry an end of stream", conn)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	return &input{path: path, conn: conn, moved: moved, sent: &progress{}, gate: newGate()}, nil
}

// start opens the FIFO, unless that has been done, and returns what copies it.
func (in *input) start() (copy func() error, err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.started || in.closed {
		return nil, nil
	}
	// Open for writing as well, so that there is always a writer: a client may
	// leave, and another attach, without an end of file in between. Only finish
	// ends the stream, as containerd's own shim has it. Non-blocking, so that
	// reads can be interrupted. fifo(7) allows both on Linux; so does FreeBSD.
	r, err := os.OpenFile(in.path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	in.started, in.r = true, r
	if in.finishing {
		r.SetReadDeadline(time.Now())
	}
	return func() error { return in.copy(r) }, nil
}

// copy runs until finish is called, or the guest reads no more, then shuts down
// the sending half of the connection.
func (in *input) copy(r *os.File) error {
	// The connection itself stays open: closing it could reset it under data
	// that the guest has not read yet. The process's end closes it.
	defer r.Close()
	to := counter{gated{in.gate, tracked{in.sent, in.conn}}, in.moved}
	_, err := io.Copy(to, r)
	// Only finish sets a deadline.
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = copyRest(to, r)
	}
	return errors.Join(err, in.conn.(halfCloser).CloseWrite())
}

// finish interrupts the copy's wait for more, or that of a copy yet to start.
// Only the first call does: a second deadline would cut copyRest short.
func (in *input) finish() {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.finishing && in.r != nil {
		in.r.SetReadDeadline(time.Now())
	}
	in.finishing = true
}

func (in *input) close() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.closed = true
	if in.r != nil {
		in.r.Close()
	}
	in.conn.Close()
}
