package ninep

import (
	"errors"
	"math"
	"slices"
	"sync"

	"golang.org/x/sys/unix"
)

// Lock types and the states in Rlock (P9_LOCK_*).
const (
	lockRead   = 0
	lockWrite  = 1
	lockUnlock = 2

	lockSuccess = 0
	lockBlocked = 1

	// maxLockers bounds the descriptors that a session's locks take.
	maxLockers = 4096
)

// lockKey is a lock owner on a file: the guest's processes own locks, however
// many fids they hold on the file.
type lockKey struct {
	dev, ino uint64
	client   string
	proc     uint32
}

// locker holds an owner's locks on a file by a descriptor opened for nothing
// else: hostLock ties them to it, and arbitrates with other sandboxes and host
// processes.
type locker struct {
	fd   int
	refs int // guarded by the table's mu; the table holds one
}

type lockTable struct {
	mu      sync.Mutex
	lockers map[lockKey]*locker
}

// acquire returns the owner's locker, put back with release, or nil.
func (t *lockTable) acquire(key lockKey) *locker {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lockers[key]
	if l != nil {
		l.refs++
	}
	return l
}

// create is acquire for a fid that is to be the reason for the locks: they go
// when it goes, because closing any descriptor of a file drops its process's
// locks. It opens the descriptor if the owner had none.
func (t *lockTable) create(key lockKey, f *fid, file *openFile) (*locker, error) {
	if l := t.attach(key, f, -1); l != nil {
		return l, nil
	}
	t.mu.Lock()
	full := len(t.lockers) >= maxLockers
	t.mu.Unlock()
	if full {
		return nil, linuxENOLCK
	}
	fd, err := hostReopen(file.fd, unix.O_RDWR)
	if err != nil {
		if fd, err = hostReopen(file.fd, unix.O_RDONLY); err != nil {
			return nil, err
		}
	}
	return t.attach(key, f, fd), nil
}

// attach ties the owner's locker to f. Without one, it makes one of fd, or
// returns nil if fd is -1; a superfluous fd is closed.
func (t *lockTable) attach(key lockKey, f *fid, fd int) *locker {
	t.mu.Lock()
	defer t.mu.Unlock()
	l := t.lockers[key]
	switch {
	case l != nil:
		closeFD(fd)
	case fd < 0:
		return nil
	default:
		l = &locker{fd: fd, refs: 1}
		t.lockers[key] = l
	}
	l.refs++
	// Without those that went with another fid, it has no more than there are.
	f.locks = slices.DeleteFunc(f.locks, func(k lockKey) bool { return t.lockers[k] == nil })
	if !slices.Contains(f.locks, key) {
		f.locks = append(f.locks, key)
	}
	return l
}

func (t *lockTable) release(l *locker) {
	t.mu.Lock()
	l.refs--
	last := l.refs == 0
	t.mu.Unlock()
	if last {
		hostCloseLocker(l.fd)
	}
}

// dropFid gives up the locks that were taken through f.
func (t *lockTable) dropFid(f *fid) {
	var gone []*locker
	t.mu.Lock()
	for _, key := range f.locks {
		if l := t.lockers[key]; l != nil {
			delete(t.lockers, key)
			gone = append(gone, l)
		}
	}
	f.locks = nil
	t.mu.Unlock()
	for _, l := range gone {
		t.release(l)
	}
}

// rangeOf checks what the client sent.
func rangeOf(start, length uint64) (byteRange, error) {
	if start > math.MaxInt64 || length > math.MaxInt64-start {
		return byteRange{}, linuxEINVAL
	}
	return byteRange{int64(start), int64(length)}, nil
}

// lockable returns the fid's open file and the owner's key, or an error if nothing
// can be locked there.
func (s *session) lockable(f *fid, proc uint32, client string) (*openFile, lockKey, error) {
	file, err := f.file()
	if err != nil {
		return nil, lockKey{}, err
	}
	if file.node.typ != typeRegular {
		return nil, lockKey{}, linuxEINVAL
	}
	a, err := hostStat(file.fd)
	if err != nil {
		return nil, lockKey{}, err
	}
	return file, lockKey{dev: a.dev, ino: a.ino, client: client, proc: proc}, nil
}

// lock answers Tlock: fid[4] type[1] flags[4] start[8] length[8] proc_id[4]
// client_id[s]. It never waits: the client asks again if it was told
// lockBlocked and its caller wants to wait.
func (s *session) lock(d *decoder, r *reply) error {
	id, typ, _ := d.u32(), d.u8(), d.u32()
	start, length, proc, client := d.u64(), d.u64(), d.u32(), d.str()
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	extent, err := rangeOf(start, length)
	if err != nil {
		return err
	}
	if typ > lockUnlock || len(client) > maxName {
		return linuxEINVAL
	}
	file, key, err := s.lockable(f, proc, client)
	if err != nil {
		return err
	}
	if s.tree.opts.Exclusive {
		r.u8(lockSuccess)
		return nil
	}
	var l *locker
	if typ == lockUnlock {
		l = s.locks.acquire(key)
		if l == nil {
			r.u8(lockSuccess)
			return nil
		}
	} else if l, err = s.locks.create(key, f, file); err != nil {
		return err
	}
	defer s.locks.release(l)

	err = hostLock(l.fd, typ, extent)
	switch {
	case err == nil:
		r.u8(lockSuccess)
	case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES):
		r.u8(lockBlocked)
	default:
		return err
	}
	return nil
}

// getlock answers Tgetlock with the lock that stands in the way of the one
// asked about, or with lockUnlock: fid[4] type[1] start[8] length[8] proc_id[4]
// client_id[s].
func (s *session) getlock(d *decoder, r *reply) error {
	id, typ := d.u32(), d.u8()
	start, length, proc, client := d.u64(), d.u64(), d.u32(), d.str()
	if err := d.done(); err != nil {
		return err
	}
	f, err := s.fids.acquire(id)
	if err != nil {
		return err
	}
	defer s.put(f)
	extent, err := rangeOf(start, length)
	if err != nil {
		return err
	}
	if typ > lockUnlock || len(client) > maxName {
		return linuxEINVAL
	}
	// Linux's client always says lockUnlock: any lock is of interest.
	if typ == lockUnlock {
		typ = lockWrite
	}
	file, key, err := s.lockable(f, proc, client)
	if err != nil {
		return err
	}
	holder := uint8(lockUnlock)
	if !s.tree.opts.Exclusive {
		holder, extent, err = s.findLock(file, key, typ, extent)
		if err != nil {
			return err
		}
	}
	r.u8(holder)
	r.u64(uint64(extent.start))
	r.u64(uint64(extent.length))
	r.u32(proc)
	r.str(client)
	return nil
}

// findLock asks the host, as the owner if it has locks: its own are not in its
// way.
func (s *session) findLock(file *openFile, key lockKey, typ uint8, extent byteRange) (uint8, byteRange, error) {
	if l := s.locks.acquire(key); l != nil {
		defer s.locks.release(l)
		return hostFindLock(l.fd, typ, extent)
	}
	fd, err := hostReopen(file.fd, unix.O_RDONLY)
	if err != nil {
		return 0, extent, err
	}
	defer closeFD(fd)
	return hostFindLock(fd, typ, extent)
}
