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
	// Open for writing as well, so that there is always a writer: a client may
	// leave, and another attach, without an end of file in between. Only finish
	// ends the stream, as containerd's own shim has it. Non-blocking, so that
	// reads can be interrupted. fifo(7) allows both on Linux; so does FreeBSD.
	r, err := os.OpenFile(path, os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return &input{r: r, conn: conn, moved: moved}, nil
}

// copy runs until finish is called, or the guest reads no more, then shuts down
// the sending half of the connection.
func (in *input) copy() error {
	// The connection itself stays open: closing it could reset it under data
	// that the guest has not read yet. The process's end closes it.
	defer in.r.Close()
	_, err := io.Copy(counter{in.conn, in.moved}, in.r)
	if errors.Is(err, os.ErrDeadlineExceeded) && in.finishing.Load() {
		err = copyRest(counter{in.conn, in.moved}, in.r)
	}
	return errors.Join(err, in.conn.(halfCloser).CloseWrite())
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
