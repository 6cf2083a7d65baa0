//go:build linux

package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// socketName is the QMP socket in the machine's directory.
const socketName = "qmp.sock"

// socket is a UNIX socket whose directory may have a path of any length. The
// addresses of such sockets hold 107 bytes (unix(7)); a path through an open
// directory in /proc is always shorter.
type socket struct{ dir string }

func (s socket) path() string { return filepath.Join(s.dir, socketName) }

// through calls f with a short path to the socket that is good for the call.
func (s socket) through(f func(path string) error) error {
	dir, err := os.Open(s.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), socketName))
}

// listen makes the socket, and returns the listening file for QEMU to inherit.
func (s socket) listen() (f *os.File, err error) {
	// Whoever had it before is gone: the directory belongs to this machine.
	if err := s.remove(); err != nil {
		return nil, err
	}
	err = s.through(func(path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: path})
		if err != nil {
			return err
		}
		defer l.Close()
		l.SetUnlinkOnClose(false)
		f, err = l.File()
		return err
	})
	return f, err
}

func (s socket) dial(ctx context.Context) (conn net.Conn, err error) {
	err = s.through(func(path string) error {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", path)
		return err
	})
	return conn, err
}

func (s socket) remove() error {
	if err := os.Remove(s.path()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
