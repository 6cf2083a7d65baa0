package ninep

import (
	"sync"

	"golang.org/x/sys/unix"
)

// FreeBSD has no locks of a part of a file that belong to a descriptor: those of
// fcntl(2) belong to the process, which loses them with the first of its
// descriptors of that file that it closes, and those of F_SETLK_REMOTE outlive
// it. So the guests of this process are told apart here, range by range, and
// towards everybody else, other sandboxes included, this process has one lock of
// flock(2) on the whole file, as strong as the strongest of theirs. It ends with
// the process, and excludes the locks of fcntl(2) as well.
//
// Two sandboxes may thus be refused what Linux would have granted: locks of
// different parts of a file. None gets a lock that it must not have.

// lockedFile is a file that guests of this process have locks on.
type lockedFile struct {
	fd   int // has the flock, and no other use
	held heldRanges
}

type fileKey struct {
	dev, ino uint64
}

// lockedFiles is the process's, not a session's: the same file may be in several
// trees. Nothing waits while it is held.
var lockedFiles = struct {
	sync.Mutex
	byKey map[fileKey]*lockedFile
}{byKey: make(map[fileKey]*lockedFile)}

// flockOf maps the types of locks.
var flockOf = [...]int{lockRead: unix.LOCK_SH, lockWrite: unix.LOCK_EX, lockUnlock: unix.LOCK_UN}

func flock(fd int, typ uint8) error {
	return ignoreEINTR(func() error { return unix.Flock(fd, flockOf[typ]|unix.LOCK_NB) })
}

// hostLock sets or removes a lock whose owner is fd. It does not wait: EAGAIN
// says that another is in the way.
func hostLock(fd int, typ uint8, extent byteRange) error {
	a, err := hostStat(fd)
	if err != nil {
		return err
	}
	lockedFiles.Lock()
	defer lockedFiles.Unlock()
	key := fileKey{a.dev, a.ino}
	f := lockedFiles.byKey[key]
	if f == nil {
		if typ == lockUnlock {
			return nil
		}
		own, err := hostReopen(fd, unix.O_RDONLY)
		if err != nil {
			return err
		}
		f = &lockedFile{fd: own}
		lockedFiles.byKey[key] = f
	}
	if typ != lockUnlock {
		if _, blocked := f.held.blocker(fd, typ, extent); blocked {
			return unix.EAGAIN
		}
	}
	held := f.held.with(fd, typ, extent)
	if want := held.strongest(); want != f.held.strongest() {
		err = flock(f.fd, want)
	}
	if err == nil {
		f.held = held
	}
	if len(f.held) == 0 {
		delete(lockedFiles.byKey, key)
		closeFD(f.fd)
	}
	return err
}

// hostFindLock returns the type and extent of a lock in the way, or lockUnlock.
func hostFindLock(fd int, typ uint8, extent byteRange) (uint8, byteRange, error) {
	a, err := hostStat(fd)
	if err != nil {
		return 0, extent, err
	}
	lockedFiles.Lock()
	defer lockedFiles.Unlock()
	f := lockedFiles.byKey[fileKey{a.dev, a.ino}]
	if f == nil {
		return findForeignLock(fd, typ, extent)
	}
	if held, blocked := f.held.blocker(fd, typ, extent); blocked {
		return held.typ, held.byteRange, nil
	}
	if f.held.strongest() == lockWrite || typ == lockRead {
		return lockUnlock, extent, nil
	}
	// The process reads, and somebody else may: the kernel would name the
	// process's own lock, so that there is only trying.
	if err := flock(f.fd, lockWrite); err != nil {
		return lockRead, wholeFile, nil
	}
	return lockUnlock, extent, flock(f.fd, lockRead)
}

// findForeignLock asks for the locks of others on a file that the process has
// none of.
func findForeignLock(fd int, typ uint8, extent byteRange) (uint8, byteRange, error) {
	lk := unix.Flock_t{Type: unix.F_RDLCK, Start: extent.start, Len: extent.length}
	if typ == lockWrite {
		lk.Type = unix.F_WRLCK
	}
	err := ignoreEINTR(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_GETLK, &lk) })
	switch {
	case err != nil:
		return 0, extent, err
	case lk.Type == unix.F_RDLCK:
		return lockRead, byteRange{lk.Start, lk.Len}, nil
	case lk.Type == unix.F_WRLCK:
		return lockWrite, byteRange{lk.Start, lk.Len}, nil
	}
	return lockUnlock, extent, nil
}

// hostCloseLocker closes what hostLock was given, and gives up its locks.
func hostCloseLocker(fd int) {
	// Giving up needs nobody's leave, and the descriptor is good for fstat(2).
	_ = hostLock(fd, lockUnlock, wholeFile)
	closeFD(fd)
}
