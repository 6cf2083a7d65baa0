package stdio

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// input copies one FIFO to one connection.
type input struct {
	r     *os.File
	conn  net.Conn
	moved *atomic.Int64
	// finishing is set when the client has asked for the end of the stream:
	// what is in the FIFO still goes, what may yet come does not.
	finishing atomic.Bool
}

// halfCloser is a connection whose sending half can be shut down: TCP and vsock.
type halfCloser interface{ CloseWrite() error }

func openInput(path string, conn net.Conn, moved *atomic.Int64) (*input, error) {
	if _, ok := conn.(halfCloser); !ok {
		return nil, fmt.Errorf("%T cannot carry an end of stream", conn)
	}
	// Non-blocking: the client need not have opened its end yet, and reads have
	// to be interruptible.
	r, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return &input{r: r, conn: conn, moved: moved}, nil
}

// copy runs until the client closes its end of the FIFO, or finish is called,
// then shuts down the sending half of the connection.
func (in *input) copy() error {
	// The connection itself stays open: closing it could reset it under data
	// that the guest has not read yet. The process's end closes it.
	defer in.r.Close()
	err := in.waitWriter()
	if err == nil {
		_, err = io.Copy(counter{in.conn, in.moved}, in.r)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) && in.finishing.Load() {
		err = copyRest(counter{in.conn, in.moved}, in.r)
	}
	return errors.Join(err, in.conn.(halfCloser).CloseWrite())
}

// waitWriter waits for the FIFO's first writer. A read before that would find
// no writer and take it for the end of the stream.
func (in *input) waitWriter() error {
	raw, err := in.r.SyscallConn()
	if err != nil {
		return err
	}
	// The poll decides, not the wake-up: the runtime's poller is edge-triggered
	// and forgets an edge that came before the wait began.
	return raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return err == nil && n > 0
	})
}

// finish interrupts the copy's wait for more. Only the first call does: a
// second deadline would cut copyRest short.
func (in *input) finish() {
	if !in.finishing.Swap(true) {
		in.r.SetReadDeadline(time.Now())
	}
}

func (in *input) close() {
	in.r.Close()
	in.conn.Close()
}
