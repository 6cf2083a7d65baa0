package ninep

import (
	"encoding/binary"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From FreeBSD's sys/fcntl.h and sys/un.h.
const (
	openPath        = 0x00400000 // O_PATH
	openEmptyPath   = 0x02000000 // O_EMPTY_PATH
	atEmptyPath     = 0x4000     // AT_EMPTY_PATH
	hostDataSync    = 0x01000000 // O_DSYNC
	maxUnixSockName = 103        // sizeof(sockaddr_un.sun_path) - 1

	// hostMinDirBuffer is DIRBLKSIZ at its largest: getdirentries(2) refuses
	// less than a file system's block of entries.
	hostMinDirBuffer = 4096
)

// hostCloneRoot is hostOpenRoot: FreeBSD's mounts do not propagate, and there is
// no copy of them to be had.
func hostCloneRoot(path string) (int, error) { return hostOpenRoot(path) }

// hostReopen gives access to fd's file, which the caller knows to be a regular
// file or a directory.
func hostReopen(fd, flags int) (int, error) {
	return newFD(func() (int, error) {
		return unix.Openat(fd, "", flags|openEmptyPath|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
}

func hostStat(fd int) (attr, error) {
	var st unix.Stat_t
	if err := ignoreEINTR(func() error { return unix.Fstat(fd, &st) }); err != nil {
		return attr{}, err
	}
	return attrOf(&st), nil
}

// hostStatParent is hostStat of the directory above the directory fd.
func hostStatParent(fd int) (attr, error) {
	var st unix.Stat_t
	if err := ignoreEINTR(func() error { return unix.Fstatat(fd, "..", &st, 0) }); err != nil {
		return attr{}, err
	}
	return attrOf(&st), nil
}

func attrOf(st *unix.Stat_t) attr {
	at := func(t unix.Timespec) timespec { return timespec{int64(t.Sec), int64(t.Nsec)} }
	mode := uint32(st.Mode)
	if mode&typeMask == typeSymlink {
		// Here it has one of its own, made under the umask, which means nothing;
		// Linux knows but this one.
		mode |= 0o777
	}
	return attr{
		dev: st.Dev, ino: st.Ino,
		mode: mode, uid: st.Uid, gid: st.Gid, nlink: st.Nlink,
		major: devMajor(st.Rdev), minor: devMinor(st.Rdev),
		size: uint64(st.Size), blksize: uint64(st.Blksize), blocks: uint64(st.Blocks),
		atime: at(st.Atim), mtime: at(st.Mtim), ctime: at(st.Ctim), btime: at(st.Btim),
		// File systems that do not keep it say -1.
		hasBtime: st.Btim.Sec >= 0,
	}
}

// Device numbers are those of __makedev, __major and __minor in sys/types.h,
// 64 bits wide since FreeBSD 12; unix.Mkdev and its like still mix those of
// minors beyond 8 bits with the major's.

func makeDev(major, minor uint32) uint64 {
	return uint64(major&^0xff)<<32 | uint64(major&0xff)<<8 | uint64(minor&0xff00)<<24 | uint64(minor&^0xff00)
}

func devMajor(dev uint64) uint32 { return uint32(dev>>32)&^0xff | uint32(dev>>8)&0xff }

func devMinor(dev uint64) uint32 { return uint32(dev>>24)&0xff00 | uint32(dev)&^0xff00 }

// hostBirthIsStable is false because UFS moves the birth time back when an
// older modification time is set (utimensat(2)).
func hostBirthIsStable(int) bool { return false }

func hostStatfs(fd int) (statfsInfo, error) {
	var st unix.Statfs_t
	if err := ignoreEINTR(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return statfsInfo{}, err
	}
	// Signed there: below zero once only root's reserve is left.
	return statfsInfo{
		bsize: uint32(st.Bsize), blocks: st.Blocks, bfree: st.Bfree, bavail: uint64(max(st.Bavail, 0)),
		files: st.Files, ffree: uint64(max(st.Ffree, 0)),
		fsid: uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32,
	}, nil
}

func hostChmod(fd int, mode uint32) error {
	return ignoreEINTR(func() error { return unix.Fchmodat(fd, "", mode, atEmptyPath) })
}

// hostChown leaves alone what is -1.
func hostChown(fd, uid, gid int) error {
	return ignoreEINTR(func() error { return unix.Fchownat(fd, "", uid, gid, atEmptyPath) })
}

func hostSetTimes(fd int, atime, mtime timeChange) error {
	times := []unix.Timespec{hostTime(atime), hostTime(mtime)}
	return ignoreEINTR(func() error { return unix.UtimesNanoAt(fd, "", times, atEmptyPath) })
}

func hostTime(c timeChange) unix.Timespec {
	switch c.action {
	case timeKeep:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case timeNow:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	// A client's nanoseconds must not be taken for one of the two above.
	if c.to.nsec < 0 || c.to.nsec > 999_999_999 {
		return unix.Timespec{Nsec: 1_000_000_000}
	}
	return unix.Timespec{Sec: c.to.sec, Nsec: c.to.nsec}
}

func hostReadlink(fd int) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := ignoreEINTRInt(func() (int, error) { return unix.Readlinkat(fd, "", buf) })
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func hostLink(fd, dirFD int, name string) error {
	return ignoreEINTR(func() error { return unix.Linkat(fd, "", dirFD, name, atEmptyPath) })
}

// hostMknod takes three roads: mknod(2) makes neither regular files nor
// sockets here.
func hostMknod(dirFD int, name string, typ, major, minor uint32) error {
	switch typ {
	case typeRegular:
		fd, err := hostOpenNew(dirFD, name, unix.O_WRONLY)
		closeFD(fd)
		return err
	case typeSocket:
		return makeSocket(dirFD, name)
	case typeFifo:
		return ignoreEINTR(func() error { return unix.Mknodat(dirFD, name, unix.S_IFIFO|0o600, 0) })
	}
	return ignoreEINTR(func() error {
		return unix.Mknodat(dirFD, name, typ|0o600, makeDev(major, minor))
	})
}

// makeSocket binds a socket to the name, which stays when the socket is
// closed. Names must fit into a socket address.
func makeSocket(dirFD int, name string) error {
	if len(name) > maxUnixSockName {
		return linuxENAMETOOLONG
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	addr := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	for i := range len(name) {
		addr.Path[i] = int8(name[i])
	}
	size := unsafe.Offsetof(addr.Path) + uintptr(len(name)) + 1
	addr.Len = uint8(size)
	_, _, e := unix.Syscall6(unix.SYS_BINDAT, uintptr(dirFD), uintptr(fd),
		uintptr(unsafe.Pointer(&addr)), size, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

func fdatasync(fd int) error {
	return ignoreEINTR(func() error {
		if _, _, e := unix.Syscall(unix.SYS_FDATASYNC, uintptr(fd), 0, 0); e != 0 {
			return e
		}
		return nil
	})
}

func hostReadDir(fd int, buf []byte) (int, error) {
	var base uintptr
	return ignoreEINTRInt(func() (int, error) { return unix.Getdirentries(fd, buf, &base) })
}

// hostDirEntry parses the struct dirent (dir(5)) at the start of buf and
// returns its size, 0 if there is none.
func hostDirEntry(buf []byte) (dirEntry, int) {
	const nameAt = 24
	if len(buf) < nameAt {
		return dirEntry{}, 0
	}
	size := int(binary.NativeEndian.Uint16(buf[16:]))
	length := int(binary.NativeEndian.Uint16(buf[20:]))
	if size < nameAt+length || size > len(buf) {
		return dirEntry{}, 0
	}
	e := dirEntry{
		ino:  binary.NativeEndian.Uint64(buf),
		next: int64(binary.NativeEndian.Uint64(buf[8:])),
		typ:  buf[18],
		name: buf[nameAt : nameAt+length],
	}
	if e.ino == 0 {
		e.name = nil
	}
	return e, size
}

// Extended attributes need a descriptor with access, which special files and
// symbolic links cannot give. Linux's user namespace is FreeBSD's; those that
// only privileged processes may write are kept in the system namespace, under
// their full names behind a prefix: ZFS refuses names that begin like Linux's
// (ZFS_XA_NS_PREFIX_FORBIDDEN). Linux's system namespace is refused: it is POSIX
// ACLs, which would be kept here and not obeyed.

const (
	userXattr   = "user."
	systemXattr = "linux."
)

var systemXattrs = []string{"security.", "trusted."}

func xattrSpace(name string) (space int, rest string, err error) {
	if rest, ok := strings.CutPrefix(name, userXattr); ok && rest != "" {
		return unix.EXTATTR_NAMESPACE_USER, rest, nil
	}
	if !isSystemXattr(name) {
		return 0, "", linuxEOPNOTSUPP
	}
	return unix.EXTATTR_NAMESPACE_SYSTEM, systemXattr + name, nil
}

func isSystemXattr(name string) bool {
	return slices.ContainsFunc(systemXattrs, func(space string) bool {
		return len(name) > len(space) && strings.HasPrefix(name, space)
	})
}

// withXattrs calls f with a descriptor that extended attributes can be
// reached through.
func withXattrs(fd int, typ uint32, f func(fd int) error) error {
	if typ != typeRegular && typ != typeDir {
		return linuxEOPNOTSUPP
	}
	open, err := hostReopen(fd, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer closeFD(open)
	return ignoreEINTR(func() error { return f(open) })
}

// extattr makes one of the system calls extattr_get_fd, extattr_set_fd and
// extattr_delete_fd (extattr(2)), or extattr_list_fd if name is empty.
func extattr(call uintptr, fd, space int, name string, buf []byte) (int, error) {
	data := unsafe.Pointer(unsafe.SliceData(buf))
	if name == "" {
		n, _, e := unix.Syscall6(call, uintptr(fd), uintptr(space), uintptr(data), uintptr(len(buf)), 0, 0)
		return result(n, e)
	}
	cname, err := unix.BytePtrFromString(name)
	if err != nil {
		return 0, err
	}
	n, _, e := unix.Syscall6(call, uintptr(fd), uintptr(space), uintptr(unsafe.Pointer(cname)),
		uintptr(data), uintptr(len(buf)), 0)
	return result(n, e)
}

func result(n uintptr, e unix.Errno) (int, error) {
	if e != 0 {
		return 0, e
	}
	return int(n), nil
}

func hostGetXattr(fd int, typ uint32, name string) (value []byte, err error) {
	space, rest, err := xattrSpace(name)
	if err != nil {
		return nil, err
	}
	err = withXattrs(fd, typ, func(fd int) error {
		// A value longer than the buffer is cut without an error.
		buf := make([]byte, maxXattrSize+1)
		n, err := extattr(unix.SYS_EXTATTR_GET_FD, fd, space, rest, buf)
		if err != nil {
			return err
		}
		if n > maxXattrSize {
			return linuxE2BIG
		}
		value = append([]byte(nil), buf[:n]...)
		return nil
	})
	return value, err
}

func hostListXattr(fd int, typ uint32) (list []byte, err error) {
	err = withXattrs(fd, typ, func(fd int) error {
		list = nil
		for _, space := range []int{unix.EXTATTR_NAMESPACE_USER, unix.EXTATTR_NAMESPACE_SYSTEM} {
			buf := make([]byte, maxXattrSize)
			n, err := extattr(unix.SYS_EXTATTR_LIST_FD, fd, space, "", buf)
			if err != nil {
				return err
			}
			for rest := buf[:n]; len(rest) > 0 && len(rest) > int(rest[0]); {
				name := rest[1 : 1+int(rest[0])]
				rest = rest[1+int(rest[0]):]
				linux := userXattr + string(name)
				if space == unix.EXTATTR_NAMESPACE_SYSTEM {
					var ok bool
					if linux, ok = strings.CutPrefix(string(name), systemXattr); !ok || !isSystemXattr(linux) {
						continue // FreeBSD's own, such as ACLs
					}
				}
				list = append(append(list, linux...), 0)
			}
		}
		return nil
	})
	return list, err
}

// hostSetXattr checks flags beforehand, because the system call knows none:
// another writer can come in between.
func hostSetXattr(fd int, typ uint32, name string, value []byte, flags uint32) error {
	space, rest, err := xattrSpace(name)
	if err != nil {
		return err
	}
	return withXattrs(fd, typ, func(fd int) error {
		if flags != 0 {
			_, err := extattr(unix.SYS_EXTATTR_GET_FD, fd, space, rest, nil)
			if err == nil && flags&xattrCreate != 0 {
				return linuxEEXIST
			}
			if err != nil && flags&xattrReplace != 0 {
				return linuxENODATA
			}
		}
		_, err := extattr(unix.SYS_EXTATTR_SET_FD, fd, space, rest, value)
		return err
	})
}

func hostRemoveXattr(fd int, typ uint32, name string) error {
	space, rest, err := xattrSpace(name)
	if err != nil {
		return err
	}
	return withXattrs(fd, typ, func(fd int) error {
		_, err := extattr(unix.SYS_EXTATTR_DELETE_FD, fd, space, rest, nil)
		return err
	})
}
