package serialsh

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// Link is a serial line.
type Link interface {
	io.ReadWriteCloser
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
}

// Open opens the serial line at path: a terminal's device, whose speed is left as
// it is, or a UNIX socket, as QEMU makes it of a machine's port.
func Open(ctx context.Context, path string) (Link, error) {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case info.Mode().Type() == fs.ModeSocket:
		conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return conn.(*net.UnixConn), nil
	case info.Mode()&fs.ModeCharDevice == 0:
		return nil, fmt.Errorf("%s is neither a terminal nor a socket", path)
	}
	// Not to wait for a carrier.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	tty, err := console.ConsoleFromFile(f)
	if err == nil {
		err = tty.SetRaw()
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return pollable(f)
}

// pollable takes f over and returns a file that deadlines work for: not for one
// whose descriptor was asked for.
func pollable(f *os.File) (*os.File, error) {
	defer f.Close()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
