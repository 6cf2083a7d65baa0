package link

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// inNewNamespace runs f on a thread of its own in a new network namespace, and
// returns the namespace. It lasts while it is open, or something in it is.
func inNewNamespace(f func() error) (*os.File, error) {
	var ns *os.File
	err := onLostThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		var err error
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

// inNamespace runs f on a thread of its own in a network namespace.
func inNamespace(ns *os.File, f func() error) error {
	return onLostThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace %s: %w", ns.Name(), err)
		}
		return f()
	})
}

// onLostThread runs f on a thread that ends with it, and whose namespaces f may
// therefore change. The goroutine stays locked to the thread: when it returns,
// the runtime ends the thread rather than use it for others.
func onLostThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
