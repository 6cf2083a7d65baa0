//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	agentv1 "github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto/v1"
)

const (
	// shareMsize is the largest 9p message. It is the most that the kernel's
	// client takes on a file descriptor (net/9p/trans_fd.c, MAX_SOCK_BUF).
	shareMsize = 1 << 20

	// mountTimeout and unmountTimeout bound the waits for a host that does not
	// answer: the kernel's own have no bound.
	mountTimeout   = 30 * time.Second
	unmountTimeout = 30 * time.Second
)

// share is a mounted 9p tree. The kernel speaks 9p on the connection by itself;
// fd is a second descriptor of it, only to cut it by.
type share struct {
	target string
	fd     int
}

// mountShare mounts the tree that the host serves on conn, which it takes over
// in any case.
func mountShare(ctx context.Context, conn stream, target string, s *agentv1.Share) (unmounter, error) {
	fd, err := detach(conn)
	if err != nil {
		return nil, fmt.Errorf("9p connection: %w", err)
	}
	flags, data := shareOptions(fd, s)

	ctx, cancel := context.WithTimeout(ctx, mountTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { unix.Shutdown(fd, unix.SHUT_RDWR) })
	err = unix.Mount("share", target, "9p", flags, data)
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		unix.Close(fd)
		return nil, fmt.Errorf("mount 9p: %w", err)
	}
	return &share{target: target, fd: fd}, nil
}

// shareOptions are the arguments of mount(2) for s on the connection fd. The
// options are those of Documentation/filesystems/9p.rst.
//
// An exclusive tree is cached without ever asking again. For a shared one the
// cache is "mmap" rather than "none": as little is cached, and yet a program
// can map a file for shared writing, as databases do, which "none" refuses.
//
// Set-user-id programs of the tree keep their meaning, as in any root file
// system. Device nodes do not: a container's devices come from its
// configuration.
func shareOptions(fd int, s *agentv1.Share) (flags uintptr, data string) {
	flags = unix.MS_NODEV
	if s.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	cache := "mmap"
	if s.Cache == agentv1.Cache_CACHE_EXCLUSIVE {
		cache = "loose"
	}
	return flags, strings.Join([]string{
		"trans=fd",
		fmt.Sprintf("rfdno=%d,wfdno=%d", fd, fd),
		"version=9p2000.L",
		// The guest's kernel checks permissions, as for a local file system.
		"access=client",
		fmt.Sprintf("msize=%d", shareMsize),
		"cache=" + cache,
	}, ",")
}

// detach takes the socket away from Go: its poller would otherwise be woken
// with each message that the kernel receives on it.
func detach(conn stream) (fd int, err error) {
	defer conn.Close()
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("%T has no file descriptor", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(orig uintptr) {
		fd, err = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
	})
	return fd, errors.Join(cerr, err)
}

// Unmount implements unmounter.
func (s *share) Unmount(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, unmountTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { unix.Shutdown(s.fd, unix.SHUT_RDWR) })
	defer stop()
	// A container that is still going down may hold the tree for a moment
	// longer, and the write-back then comes with its end. So the data goes
	// first.
	syncErr := syncFS(s.target)
	err := unix.Unmount(s.target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(s.target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", s.target, err)
	}
	unix.Close(s.fd)
	if syncErr != nil {
		return fmt.Errorf("write back %s: %w", s.target, syncErr)
	}
	return nil
}

func syncFS(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}
