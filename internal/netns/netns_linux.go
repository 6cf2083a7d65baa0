// Package netns runs functions in other network namespaces than the process's.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// New makes a network namespace with nothing but a loopback interface, which is
// down. It lasts while the file is open, or something in it is.
func New() (*os.File, error) { return NewWith(func() error { return nil }) }

// NewWith is New, with what f makes in the namespace: see Do.
func NewWith(f func() error) (*os.File, error) {
	var ns *os.File
	err := onLostThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		if ns, err = os.Open("/proc/thread-self/ns/net"); err != nil {
			return err
		}
		return f()
	})
	if err != nil && ns != nil {
		ns.Close()
		ns = nil
	}
	return ns, err
}

// Open opens the namespace at path, such as /run/netns/NAME or
// /proc/PID/ns/net. errdefs.ErrNotFound if there is none, and
// errdefs.ErrInvalidArgument if it is something else.
func Open(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("network namespace %s: %w", path, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		f.Close()
		return nil, fmt.Errorf("%s is not a network namespace: %w", path, errdefs.ErrInvalidArgument)
	}
	return f, nil
}

// Do runs f on a thread in the namespace. Goroutines that f starts are not in
// it; sockets that f opens stay in it.
func Do(ns *os.File, f func() error) error {
	return onLostThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// onLostThread runs f on a thread that ends with it: the goroutine stays locked
// to it, and the runtime does not use such a thread again.
func onLostThread(f func() error) error {
	done := make(chan error)
	go func() {
		// Also where f ends the goroutine, as a test does that fails.
		defer close(done)
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
