package stdio

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"

	"github.com/containerd/fifo"
)

// output copies one connection to one FIFO.
type output struct {
	conn outputConn
	w    io.WriteCloser
	// keep is a reading end that is never read: while it is open, a client may
	// leave and another attach without the process getting EPIPE in between.
	keep  io.Closer
	moved *atomic.Int64
}

type outputConn interface {
	net.Conn
	interruptible
}

func openOutput(ctx context.Context, path string, conn net.Conn, moved *atomic.Int64) (*output, error) {
	in, ok := conn.(outputConn)
	if !ok {
		return nil, fmt.Errorf("%T cannot be drained", conn)
	}
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
	return &output{conn: in, w: w, keep: keep, moved: moved}, nil
}

// copy runs until the guest ends the stream. The FIFO is closed with it: that
// is the client's end of file.
func (o *output) copy() error {
	defer o.close()
	_, err := io.Copy(counter{o.w, o.moved}, o.conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// Abort's deadline: the machine is gone. What it sent may still wait
		// here, behind a client that was slow to read.
		err = copyRest(counter{o.w, o.moved}, o.conn)
	}
	return err
}

func (o *output) close() {
	o.conn.Close()
	o.w.Close()
	o.keep.Close()
}

// counter counts what passes through a writer.
type counter struct {
	w io.Writer
	n *atomic.Int64
}

func (c counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n.Add(int64(n))
	return n, err
}
