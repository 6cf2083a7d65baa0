package ninep

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
)

const (
	// defaultMaxFids is enough for a guest to have a very large source tree
	// cached (v9fs holds a fid per cached directory entry); a fid and its node
	// take some 400 bytes.
	defaultMaxFids = 1 << 19
	// defaultMaxPinned is what hardly any workload exceeds.
	defaultMaxPinned = 4096
)

// Options say how a tree is served.
type Options struct {
	// ReadOnly refuses every change with EROFS, whatever the client's mount
	// says.
	ReadOnly bool
	// Exclusive says that nobody but the client of a single session uses the
	// files while they are served. Its kernel then arbitrates file locks
	// alone, and the host is not asked.
	Exclusive bool
	// Private keeps mounts that the host makes or removes below the tree later
	// out of it, where the host's mounts could appear in it.
	Private bool
	// MaxFids bounds the files that one session may refer to at a time. 0
	// means 524288.
	MaxFids int
	// MaxPinned is how many of these the session keeps a descriptor for while
	// they are not used; each open file has a descriptor besides. 0 means 4096,
	// or a quarter of the process's limit if that is less.
	MaxPinned int
}

// Tree is a directory or a single file that can be served. It holds
// descriptors: Close it.
type Tree struct {
	opts Options
	root *node
	// only is the file of a single-file tree, whose root is synthetic.
	only     *node
	onlyName string
	// dev is the device whose inode numbers are used as they are in qids.
	dev uint64
	// birthIsStable says that a file's creation time never changes.
	birthIsStable bool

	ctx    context.Context
	cancel context.CancelCauseFunc

	qids qids

	mu       sync.Mutex
	closed   bool
	sessions sync.WaitGroup
	active   map[*session]struct{}
	// loaded is what the next session starts as, nil for a new one.
	loaded *session
}

// Dir serves the directory at path and what is below it, other file systems
// mounted there included. A symbolic link at path itself is followed, as
// mount(8) would. It returns errdefs.ErrNotFound if nothing is there and
// errdefs.ErrInvalidArgument if it is no directory.
func Dir(path string, opts Options) (*Tree, error) {
	n, a, err := openRoot(path, opts)
	if err != nil {
		return nil, err
	}
	if n.typ != typeDir {
		n.release()
		return nil, fmt.Errorf("serve %s: not a directory: %w", path, errdefs.ErrInvalidArgument)
	}
	return newTree(n, a, opts), nil
}

// SingleFile serves a synthetic, unchangeable directory that contains nothing
// but the file at path, under the last element of path. The file is pinned
// now: renaming or replacing it on the host later does not change what is
// served, and nothing else of its directory can be reached. It returns
// errdefs.ErrNotFound if nothing is there and errdefs.ErrInvalidArgument if it
// is a directory.
func SingleFile(path string, opts Options) (*Tree, error) {
	n, a, err := openRoot(path, opts)
	if err != nil {
		return nil, err
	}
	name := filepath.Base(path)
	if n.typ == typeDir || checkName(name) != nil {
		n.release()
		return nil, fmt.Errorf("serve %s: not a file: %w", path, errdefs.ErrInvalidArgument)
	}
	root := &node{fd: -1, typ: typeDir}
	root.refs.Store(1)
	t := newTree(root, a, opts)
	t.only, t.onlyName = n, name
	return t, nil
}

func openRoot(path string, opts Options) (*node, attr, error) {
	open := hostOpenRoot
	if opts.Private {
		open = hostCloneRoot
	}
	fd, err := open(path)
	if err != nil {
		if e := toErrno(err); e == linuxENOENT || e == linuxENOTDIR {
			err = fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
		}
		return nil, attr{}, fmt.Errorf("serve %s: %w", path, err)
	}
	a, err := hostStat(fd)
	if err != nil {
		closeFD(fd)
		return nil, attr{}, fmt.Errorf("serve %s: %w", path, err)
	}
	n := &node{fd: fd, typ: a.mode & typeMask, id: identity{dev: a.dev, ino: a.ino}}
	n.refs.Store(1)
	return n, a, nil
}

func newTree(root *node, a attr, opts Options) *Tree {
	if opts.MaxFids <= 0 {
		opts.MaxFids = defaultMaxFids
	}
	if opts.MaxPinned <= 0 {
		opts.MaxPinned = min(defaultMaxPinned, descriptorLimit()/4)
	}
	t := &Tree{opts: opts, root: root, dev: a.dev, active: map[*session]struct{}{}}
	if root.fd >= 0 {
		t.birthIsStable = hostBirthIsStable(root.fd)
	}
	t.ctx, t.cancel = context.WithCancelCause(context.Background())
	return t
}

// Serve speaks 9P2000.L on conn until the client closes it (nil), ctx ends
// (its cause), the tree is closed (errdefs.ErrUnavailable), or the client
// breaks the protocol or the connection fails (an error that says how). It
// owns conn and closes it. When it returns, everything that the session held
// has been released. Sessions of one tree may run concurrently; they share
// nothing but the files.
func (t *Tree) Serve(ctx context.Context, conn net.Conn) error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		conn.Close()
		return errTreeClosed
	}
	t.sessions.Add(1)
	t.mu.Unlock()
	defer t.sessions.Done()

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(t.ctx, func() { cancel(errTreeClosed) })
	defer stop()
	s := t.begin()
	defer t.end(s)
	s.conn, s.fail = conn, cancel
	return s.run(ctx)
}

// begin is a new session, or the one that was loaded.
func (t *Tree) begin() *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.loaded
	t.loaded = nil
	if s == nil {
		s = newSession(t)
	}
	t.active[s] = struct{}{}
	return s
}

func (t *Tree) end(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.active, s)
}

var errTreeClosed = fmt.Errorf("9p tree closed: %w", errdefs.ErrUnavailable)

// Close ends the tree's sessions, waits for them and releases the tree. It may
// be called more than once.
func (t *Tree) Close() error {
	t.mu.Lock()
	again := t.closed
	t.closed = true
	loaded := t.loaded
	t.loaded = nil
	t.mu.Unlock()
	if loaded != nil {
		loaded.dropFids()
	}
	t.cancel(errTreeClosed)
	t.sessions.Wait()
	if again {
		return nil
	}
	if t.only != nil {
		t.only.release()
	}
	t.root.release()
	return nil
}

// qidOf names a file. On the tree's own device the path is the inode number,
// so that the guest shows the host's; files of other devices mounted below it
// get a mixture of both numbers.
func (t *Tree) qidOf(a attr) qid {
	q := qid{path: t.qidPath(a.dev, a.ino)}
	switch a.mode & typeMask {
	case typeDir:
		q.typ = qidDir
	case typeSymlink:
		q.typ = qidSymlink
	}
	// The client takes files with equal path but different versions for
	// different files, so this must never change during a file's life; it
	// tells apart files that had the same inode number one after the other.
	if t.birthIsStable {
		birth := uint64(a.btime.sec)*1e9 + uint64(a.btime.nsec)
		q.version = uint32(birth) ^ uint32(birth>>32)
	}
	if known, ok := t.qids.known[fileNumber{a.dev, a.ino}]; ok {
		q.version, q.path = known.version, known.path
	}
	return q
}

func (t *Tree) qidPath(dev, ino uint64) uint64 {
	if known, ok := t.qids.known[fileNumber{dev, ino}]; ok {
		return known.path
	}
	switch {
	case t.qids.salt != 0:
		return mix(ino ^ mix(dev^t.qids.salt))
	case dev == t.dev:
		return ino
	}
	return mix(ino ^ mix(dev))
}

// mix is the finalizer of SplitMix64: a bijection that spreads every bit.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
