//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/bell"
)

// pumpBuffer is what a FIFO holds at most by default (pipe(7)).
const pumpBuffer = 64 << 10

// pump carries one standard stream between the FIFO of a process and the host's
// connection, which may change while the machine is suspended.
type pump interface {
	// attach replaces the connection, which it closes, by another, or by none.
	// The machine is suspended.
	attach(conn stream)
	// Close closes the connection that there is by now.
	io.Closer
}

// line is the connection of a pump.
type line struct {
	mu     sync.Mutex
	conn   stream // nil when it was replaced by none
	bytes  int64  // that have passed on conn
	moved  bell.Bell
	ended  bool // nothing will pass any more
	closed bool
}

func newLine(conn stream) line { return line{conn: conn} }

// Close implements pump.
func (l *line) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.conn == nil {
		return nil
	}
	return l.conn.Close()
}

// attach implements pump.
func (l *line) attach(conn stream) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil {
		l.conn.Close()
	}
	if conn != nil && (l.closed || l.ended) {
		conn.Close()
		conn = nil
	}
	l.conn, l.bytes = conn, 0
	l.moved.Ring()
}

// now is the connection, and what is closed when something has changed.
func (l *line) now() (stream, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.conn, l.moved.Next()
}

// passed counts n bytes that have passed on conn, unless it has been replaced.
func (l *line) passed(conn stream, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn == conn {
		l.bytes += int64(n)
		l.moved.Ring()
	}
}

// end says that nothing will pass any more.
func (l *line) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	l.moved.Ring()
}

func (l *line) count() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// outlet is the pump of an output.
type outlet struct {
	line
	// turn is held while data is on its way from the FIFO to the connection, and
	// by who wants none to be.
	turn chan struct{}
}

func newOutlet(conn stream) *outlet {
	return &outlet{line: newLine(conn), turn: make(chan struct{}, 1)}
}

// hold keeps everything that a process writes in its FIFO until release.
func (o *outlet) hold(ctx context.Context) error {
	select {
	case o.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the host does not take the output that there is: %w", context.Cause(ctx))
	}
}

func (o *outlet) release() { <-o.turn }

// run copies f to the connection until every writer of f is gone, and marks the
// end.
func (o *outlet) run(f io.ReadCloser) error {
	defer o.Close()
	defer f.Close()
	defer o.end()
	buf := make([]byte, pumpBuffer)
	for {
		if err := awaitReadable(f); err != nil {
			return nil // It was closed, by who wants no more of it.
		}
		o.turn <- struct{}{}
		n, err := f.Read(buf)
		conn, _ := o.now()
		if n > 0 && conn != nil {
			// There may be no one to read any more, which must not block the process
			// that still writes.
			if wn, _ := conn.Write(buf[:n]); wn > 0 {
				o.passed(conn, wn)
			}
		}
		if err != nil && conn != nil && errors.Is(err, io.EOF) {
			err = conn.CloseWrite()
			<-o.turn
			return err
		}
		<-o.turn
		if err != nil {
			return nil
		}
	}
}

// awaitReadable returns when a read of f would not wait, or with an error when f
// is closed. It takes nothing out of f.
func awaitReadable(f io.Reader) error {
	sc, ok := f.(syscall.Conn)
	if !ok {
		return fmt.Errorf("%T has no file descriptor", f)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	var perr error
	err = raw.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n := 0
		for {
			if n, perr = unix.Poll(p, 0); perr != unix.EINTR {
				break
			}
		}
		return n > 0 || perr != nil
	})
	return errors.Join(err, os.NewSyscallError("poll", perr))
}

// inlet is the pump of an input.
type inlet struct {
	line
	held bool // the end of the connection is not that of the input
}

func newInlet(conn stream) *inlet { return &inlet{line: newLine(conn)} }

func (i *inlet) release() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.held = false
	i.moved.Ring()
}

// hold returns when n bytes have arrived, or will not any more. From then on
// until release the connection may end without ending the input.
func (i *inlet) hold(ctx context.Context, n int64) error {
	i.mu.Lock()
	i.held = true
	i.mu.Unlock()
	for {
		i.mu.Lock()
		done, moved := i.ended || i.bytes >= n, i.moved.Next()
		i.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			i.release()
			return fmt.Errorf("the process does not take the input that there is: %w", context.Cause(ctx))
		}
	}
}

// run copies the connection to f, and returns at the connection's end, or with
// an error of f. It is given up when quit is closed, if it has no connection.
func (i *inlet) run(f io.Writer, quit <-chan struct{}) error {
	defer i.Close()
	defer i.end()
	buf := make([]byte, pumpBuffer)
	for {
		conn, moved := i.now()
		if conn == nil {
			select {
			case <-moved:
				continue
			case <-quit:
				return nil
			}
		}
		n, err := conn.Read(buf)
		i.passed(conn, n)
		if n > 0 {
			if _, werr := f.Write(buf[:n]); werr != nil {
				return werr
			}
		}
		if err == nil {
			continue
		}
		if !i.replaced(conn, quit) {
			return nil
		}
	}
}

// replaced says whether there is another connection than conn, which has ended.
// There may come one while the inlet is held.
func (i *inlet) replaced(conn stream, quit <-chan struct{}) bool {
	for {
		i.mu.Lock()
		now, held, moved := i.conn, i.held, i.moved.Next()
		i.mu.Unlock()
		if now != conn || !held {
			return now != conn
		}
		select {
		case <-moved:
		case <-quit:
			return false
		}
	}
}
