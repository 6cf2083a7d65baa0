//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/log"
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

// unmounter is a mounted share.
type unmounter interface {
	// Unmount writes back what is not yet written and unmounts. When ctx ends
	// first, the connection is cut, and the data with it.
	Unmount(ctx context.Context) error
	// WriteBack writes back what is not yet written. It waits for the host for
	// as long as the connection is there.
	WriteBack() error
}

// mounter mounts shares for the services whose requests name them.
type mounter struct {
	shares *streams
	// mount takes conn over. It is a mountTable's but in tests.
	mount func(ctx context.Context, conn stream, target string, s *agentv1.Share) (unmounter, error)
}

// mountAt makes the directory target and mounts s there. On an error there is
// no such directory. NotFound if the host has opened no such stream.
func (m mounter) mountAt(ctx context.Context, target string, s *agentv1.Share) (unmounter, error) {
	conn, err := m.shares.claim(s.Stream)
	if err != nil {
		return nil, err
	}
	// Searchable by all, since a container's root may be another user's.
	if err := os.MkdirAll(target, 0o711); err != nil {
		conn.Close()
		return nil, err
	}
	mounted, err := m.mount(ctx, conn, target, s)
	if err != nil {
		return nil, errors.Join(err, os.Remove(target))
	}
	return mounted, nil
}

// share is a mounted 9p tree.
type share struct {
	target string
	socket connection
	// gone is called when it has been unmounted.
	gone func()
}

// connection is what a share's 9p goes over.
type connection interface {
	// cut ends it: what the kernel waits for then fails, whereas nothing
	// interrupts a mount or an unmount.
	cut()
	// close is for after the unmount.
	close()
}

// socket is a second descriptor of a connection on which the kernel speaks 9p
// by itself.
type socket struct {
	mu sync.Mutex
	fd int // -1 when closed
}

func (s *socket) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		unix.Shutdown(s.fd, unix.SHUT_RDWR)
	}
}

// close leaves the connection to the kernel.
func (s *socket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// mountTable mounts shares and knows those that are. It is safe for concurrent use.
type mountTable struct {
	// streams are the connections that trees are served on.
	streams *streams

	mu sync.Mutex
	// relayed is set once all mounts are to be made through a relay.
	relayed bool
	mounts  map[*share]mounted
}

// mounted is what is known of a share that is mounted.
type mounted struct {
	stream string
	relay  *nineRelay // nil if the kernel has the connection to itself
}

func newMountTable(shares *streams) *mountTable {
	return &mountTable{streams: shares, mounts: map[*share]mounted{}}
}

// mount mounts the tree that the host serves on conn, which it takes over in any
// case.
func (m *mountTable) mount(ctx context.Context, conn stream, target string, s *agentv1.Share) (unmounter, error) {
	m.mu.Lock()
	relayed := m.relayed
	m.mu.Unlock()
	is := mounted{stream: s.Stream}
	var sock connection
	var fd int
	var err error
	if relayed {
		is.relay, fd, err = newNineRelay(conn)
		if err != nil {
			conn.Close()
		}
		sock = is.relay
	} else {
		fd, err = detach(conn)
		sock = &socket{fd: fd}
	}
	if err != nil {
		return nil, fmt.Errorf("9p connection: %w", err)
	}
	sh, err := mountShare(ctx, fd, sock, target, s)
	if relayed {
		// The kernel has its own by now.
		unix.Close(fd)
	}
	if err != nil {
		return nil, err
	}
	sh.gone = func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.mounts, sh)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mounts[sh] = is
	return sh, nil
}

// mountShare mounts the tree that is served on fd, which sock is about.
func mountShare(ctx context.Context, fd int, sock connection, target string, s *agentv1.Share) (*share, error) {
	flags, data := shareOptions(fd, s)

	ctx, cancel := context.WithTimeout(ctx, mountTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, sock.cut)
	// The stream's id is the source because sources must differ: the kernel's
	// file cache goes by them.
	err := unix.Mount(s.Stream, target, "9p", flags, data)
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		sock.close()
		return nil, fmt.Errorf("mount 9p: %w", err)
	}
	return &share{target: target, socket: sock}, nil
}

// shareOptions are the arguments of mount(2) for s on the connection fd. The
// options are those of Documentation/filesystems/9p.rst.
//
// An exclusive tree is cached without ever asking again. For a shared one the
// cache is "mmap" rather than "none": as little is cached, and yet a program
// can map a file for shared writing, as databases do, which "none" refuses.
//
// Set-user-id programs and device nodes keep their meaning, as in the root file
// systems of any engine: it is the configuration, and the runtime by it, that
// takes it from them.
func shareOptions(fd int, s *agentv1.Share) (flags uintptr, data string) {
	if s.ReadOnly {
		flags = unix.MS_RDONLY
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

// Unmount implements unmounter. When only the write-back fails, the tree is
// unmounted all the same: another attempt would not find the data.
func (s *share) Unmount(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, unmountTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, s.socket.cut)()

	// A container that is still going down may hold the tree for a moment
	// longer, and the write-back then comes with its end. So the data goes
	// first.
	if err := syncFS(s.target); err != nil {
		log.G(ctx).WithError(err).WithField("target", s.target).Error("data was not written back")
	}
	err := unix.Unmount(s.target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(s.target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err != nil {
		return fmt.Errorf("unmount %s: %w", s.target, err)
	}
	s.socket.close()
	s.gone()
	return nil
}

// WriteBack implements unmounter.
func (s *share) WriteBack() error { return syncFS(s.target) }

func syncFS(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}
