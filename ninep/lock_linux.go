package ninep

import "golang.org/x/sys/unix"

var hostLockType = [...]int16{lockRead: unix.F_RDLCK, lockWrite: unix.F_WRLCK, lockUnlock: unix.F_UNLCK}

// hostLock sets or removes an open file description lock (fcntl(2)). It does
// not wait: EAGAIN says that another is in the way.
func hostLock(fd int, typ uint8, extent byteRange) error {
	lk := unix.Flock_t{Type: hostLockType[typ], Start: extent.start, Len: extent.length}
	return ignoreEINTR(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &lk) })
}

// hostFindLock returns the type and extent of the first lock in the way, or
// lockUnlock.
func hostFindLock(fd int, typ uint8, extent byteRange) (uint8, byteRange, error) {
	lk := unix.Flock_t{Type: hostLockType[typ], Start: extent.start, Len: extent.length}
	err := ignoreEINTR(func() error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lk) })
	if err != nil {
		return 0, extent, err
	}
	switch lk.Type {
	case unix.F_RDLCK:
		return lockRead, byteRange{lk.Start, lk.Len}, nil
	case unix.F_WRLCK:
		return lockWrite, byteRange{lk.Start, lk.Len}, nil
	}
	return lockUnlock, extent, nil
}

// hostCloseLocker closes what hostLock was given, and gives up its locks.
func hostCloseLocker(fd int) { closeFD(fd) }
