package stdio

import (
	"errors"
	"io"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// interruptible is what a stream is read from: a FIFO's *os.File, or a
// connection of the link. A copy from it is cut short by a read deadline.
type interruptible interface {
	syscall.Conn
	SetReadDeadline(time.Time) error
}

// copyRest copies what src holds now, and stops where a read would wait. It is
// the end of a copy that was cut short: past its deadline, Read itself returns
// nothing, not even what is there.
func copyRest(dst io.Writer, src interruptible) error {
	if err := src.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	raw, err := src.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, 64<<10)
	for {
		var n int
		var rerr error
		if err := raw.Read(func(fd uintptr) bool {
			n, rerr = unix.Read(int(fd), buf)
			return true
		}); err != nil {
			return err
		}
		switch {
		case errors.Is(rerr, unix.EINTR):
			continue
		case errors.Is(rerr, unix.EAGAIN):
			return nil
		case rerr != nil:
			return rerr
		case n == 0:
			return nil
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return err
		}
	}
}
