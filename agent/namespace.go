//go:build linux

package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// makeNetNS makes a network namespace with nothing but loopback in it, held by
// a bind mount at path.
func makeNetNS(path string) error {
	return makeNamespace(path, "net", unix.CLONE_NEWNET, loopbackUp)
}

// makeNamespace makes a namespace, held by a bind mount at path, and prepares
// it from within. kind is its name in /proc/PID/ns.
func makeNamespace(path, kind string, flag int, prepare func() error) error {
	err := onOwnThread(func() error {
		if err := unix.Unshare(flag); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if prepare != nil {
			if err := prepare(); err != nil {
				return err
			}
		}
		return holdNamespace(fmt.Sprintf("/proc/self/task/%d/ns/%s", unix.Gettid(), kind), path)
	})
	if err != nil {
		return fmt.Errorf("make %s namespace: %w", kind, err)
	}
	return nil
}

// holdNamespace keeps the namespace that a file in /proc names at path.
func holdNamespace(ns, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, nil, 0o444); err != nil {
		return err
	}
	if err := unix.Mount(ns, path, "", unix.MS_BIND, ""); err != nil {
		os.Remove(path)
		return fmt.Errorf("bind to %s: %w", path, err)
	}
	return nil
}

// inNamespaces calls f in the namespaces that are held at paths.
func inNamespaces(f func() error, paths ...string) error {
	return onOwnThread(func() error {
		for _, path := range paths {
			fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return fmt.Errorf("enter namespace %s: %w", path, err)
			}
			err = unix.Setns(fd, 0)
			unix.Close(fd)
			if err != nil {
				return fmt.Errorf("enter namespace %s: %w", path, err)
			}
		}
		return f()
	})
}

// onOwnThread calls f on a thread whose namespaces f may change. The thread is
// never unlocked: the runtime ends it with the goroutine.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
