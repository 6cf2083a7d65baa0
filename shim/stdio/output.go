package stdio

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
)

// output copies one connection to one sink.
type output struct {
	// name is that of the stream: "stdout".
	name  string
	conn  outputConn
	sink  sink
	moved *atomic.Int64
	// delivered counts what has come out of conn and was handed to the sink.
	delivered *progress
}

type outputConn interface {
	net.Conn
	interruptible
}

// newOutput takes both ends over, unless it fails.
func newOutput(name string, s sink, conn net.Conn, moved *atomic.Int64) (*output, error) {
	in, ok := conn.(outputConn)
	if !ok {
		return nil, fmt.Errorf("%T cannot be drained", conn)
	}
	return &output{name: name, conn: in, sink: s, moved: moved, delivered: &progress{}}, nil
}

// copy runs until the guest ends the stream. The sink is closed with it: that
// is the reader's end of file.
func (o *output) copy() error {
	defer o.close()
	defer o.delivered.end()
	to := counter{tracked{o.delivered, o.sink}, o.moved}
	_, err := io.Copy(to, o.conn)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// Abort's deadline: the machine is gone. What it sent may still wait
		// here, behind a client that was slow to read.
		err = copyRest(to, o.conn)
	}
	if err == nil {
		o.sink.settle()
	}
	return err
}

func (o *output) close() {
	o.conn.Close()
	o.sink.Close()
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
