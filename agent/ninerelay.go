//go:build linux

package agent

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/internal/bell"
)

// nineRelay stands between the kernel's 9p client and the host's server, whose
// place another one can take while no request is under way. It knows no more of
// the protocol than where a message ends: each request of the client's has one
// reply.
type nineRelay struct {
	kernel net.Conn // the other end is the kernel's

	mu      sync.Mutex
	host    stream
	pending int       // requests that have not been answered
	held    bool      // no request goes to the host
	lost    bool      // the host went while nothing went to it
	changed bell.Bell // is rung when one of these has changed
	cutOff  bool
}

// The header of every 9p message: size[4] type[1] tag[2].
const nineHeader = 7

// newNineRelay starts a relay to host, which it takes over, and returns the
// descriptor that is to be the kernel's, for the caller to close.
func newNineRelay(host stream) (_ *nineRelay, fd int, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[1]), "9p")
	kernel, err := net.FileConn(f)
	f.Close()
	if err != nil {
		unix.Close(fds[0])
		return nil, -1, err
	}
	r := &nineRelay{kernel: kernel, host: host}
	go r.requests()
	go r.replies(host)
	return r, fds[0], nil
}

// requests carries the client's requests until the client has gone.
func (r *nineRelay) requests() {
	defer r.cut()
	in := bufio.NewReaderSize(r.kernel, 64<<10)
	var buf []byte
	for {
		message, err := readMessage(in, &buf)
		if err != nil {
			return
		}
		host, ok := r.begin()
		if !ok {
			return
		}
		if _, err := host.Write(message); err != nil {
			return
		}
	}
}

// begin waits until a request may go to the host, and counts it.
func (r *nineRelay) begin() (stream, bool) {
	for {
		r.mu.Lock()
		if r.cutOff {
			r.mu.Unlock()
			return nil, false
		}
		if !r.held {
			r.pending++
			defer r.mu.Unlock()
			return r.host, true
		}
		changed := r.changed.Next()
		r.mu.Unlock()
		<-changed
	}
}

// replies carries the replies of one server until it has gone, or been replaced.
func (r *nineRelay) replies(host stream) {
	in := bufio.NewReaderSize(host, 64<<10)
	var buf []byte
	for {
		message, err := readMessage(in, &buf)
		if err == nil {
			_, err = r.kernel.Write(message)
		}
		r.mu.Lock()
		current := r.host == host
		if err == nil && current {
			r.pending--
			r.changed.Ring()
		}
		r.mu.Unlock()
		if err != nil && current {
			r.gone(err)
		}
		if err != nil || !current {
			return
		}
	}
}

// gone is the end of the server. In a copy of a machine that is what becomes of
// all connections, and another server may yet come.
func (r *nineRelay) gone(err error) {
	r.mu.Lock()
	r.lost = r.held
	held := r.held
	r.mu.Unlock()
	if held {
		return
	}
	if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		log.L.WithError(err).Warn("file server is gone")
	}
	r.cut()
}

// readMessage reads one message into buf, which it makes longer if need be.
func readMessage(in *bufio.Reader, buf *[]byte) ([]byte, error) {
	header, err := in.Peek(nineHeader)
	if err != nil {
		return nil, err
	}
	size := int(binary.LittleEndian.Uint32(header))
	if size < nineHeader || size > shareMsize {
		return nil, fmt.Errorf("9p message of %d bytes: want %d to %d", size, nineHeader, shareMsize)
	}
	if len(*buf) < size {
		*buf = make([]byte, size)
	}
	_, err = io.ReadFull(in, (*buf)[:size])
	return (*buf)[:size], err
}

// hold keeps further requests from the host, and returns when none is under way.
func (r *nineRelay) hold(ctx context.Context) error {
	r.mu.Lock()
	r.held = true
	for r.pending > 0 && !r.cutOff {
		changed := r.changed.Next()
		r.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			r.release()
			return fmt.Errorf("a request to the file server is not answered: %w", context.Cause(ctx))
		}
		r.mu.Lock()
	}
	defer r.mu.Unlock()
	if r.cutOff {
		return fmt.Errorf("the file server is gone: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

// release undoes hold.
func (r *nineRelay) release() {
	r.mu.Lock()
	r.held = false
	lost := r.lost
	r.changed.Ring()
	r.mu.Unlock()
	if lost {
		r.cut()
	}
}

// attach replaces the host, which it closes. The relay is held.
func (r *nineRelay) attach(host stream) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.host.Close()
	r.host, r.lost = host, false
	if r.cutOff {
		host.Close()
		return
	}
	go r.replies(host)
}

// cut ends the connection on both sides: what the kernel waits for fails.
func (r *nineRelay) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cutOff = true
	r.kernel.Close()
	r.host.Close()
	r.changed.Ring()
}

// close is cut: once the kernel has unmounted, nobody is at the other end.
func (r *nineRelay) close() { r.cut() }
