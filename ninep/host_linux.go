package ninep

import (
	"bytes"
	"encoding/binary"
	"strconv"

	"golang.org/x/sys/unix"
)

const (
	openPath     = unix.O_PATH
	hostDataSync = unix.O_DSYNC
	// hostMinDirBuffer holds the longest struct linux_dirent64.
	hostMinDirBuffer = 512
)

// hostCloneRoot is hostOpenRoot of a copy of the mounts at and below path, which
// is there for as long as something of it is open: mounts that are made or
// removed later are not seen in it (open_tree(2), mount_setattr(2)).
func hostCloneRoot(path string) (int, error) {
	fd, err := newFD(func() (int, error) {
		return unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	})
	if err != nil {
		return -1, err
	}
	err = ignoreEINTR(func() error {
		return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Propagation: unix.MS_PRIVATE})
	})
	if err != nil {
		closeFD(fd)
		return -1, err
	}
	return fd, nil
}

// procPath names the file that fd refers to, whatever it is called by now, for
// system calls that do not take an O_PATH descriptor. The kernel goes from this
// link straight to the file: if that is a symbolic link, it is not followed.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// hostReopen gives access to fd's file, which the caller knows to be a regular
// file or a directory.
func hostReopen(fd, flags int) (int, error) {
	return newFD(func() (int, error) {
		return unix.Open(procPath(fd), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
}

func hostStat(fd int) (attr, error) { return statxAt(fd, "", unix.AT_EMPTY_PATH) }

// hostStatParent is hostStat of the directory above the directory fd.
func hostStatParent(fd int) (attr, error) { return statxAt(fd, "..", 0) }

func statxAt(fd int, name string, flags int) (attr, error) {
	var st unix.Statx_t
	err := ignoreEINTR(func() error {
		return unix.Statx(fd, name, flags|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	})
	if err != nil {
		return attr{}, err
	}
	at := func(t unix.StatxTimestamp) timespec { return timespec{t.Sec, int64(t.Nsec)} }
	return attr{
		dev: unix.Mkdev(st.Dev_major, st.Dev_minor), ino: st.Ino,
		mode: uint32(st.Mode), uid: st.Uid, gid: st.Gid, nlink: uint64(st.Nlink),
		major: st.Rdev_major, minor: st.Rdev_minor,
		size: st.Size, blksize: uint64(st.Blksize), blocks: st.Blocks,
		atime: at(st.Atime), mtime: at(st.Mtime), ctime: at(st.Ctime), btime: at(st.Btime),
		hasBtime: st.Mask&unix.STATX_BTIME != 0,
	}, nil
}

// hostBirthIsStable is false for overlayfs, where writing to a file for the
// first time replaces it by a copy with a birth time of its own.
func hostBirthIsStable(fd int) bool {
	var st unix.Statfs_t
	err := ignoreEINTR(func() error { return unix.Fstatfs(fd, &st) })
	return err == nil && st.Type != unix.OVERLAYFS_SUPER_MAGIC
}

func hostStatfs(fd int) (statfsInfo, error) {
	var st unix.Statfs_t
	if err := ignoreEINTR(func() error { return unix.Fstatfs(fd, &st) }); err != nil {
		return statfsInfo{}, err
	}
	return statfsInfo{
		bsize: uint32(st.Bsize), blocks: st.Blocks, bfree: st.Bfree, bavail: st.Bavail,
		files: st.Files, ffree: st.Ffree,
		fsid: uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32,
	}, nil
}

func hostChmod(fd int, mode uint32) error {
	return ignoreEINTR(func() error { return unix.Chmod(procPath(fd), mode) })
}

// hostChown leaves alone what is -1.
func hostChown(fd, uid, gid int) error {
	return ignoreEINTR(func() error { return unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH) })
}

func hostSetTimes(fd int, atime, mtime timeChange) error {
	times := []unix.Timespec{hostTime(atime), hostTime(mtime)}
	return ignoreEINTR(func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(fd), times, 0) })
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
		return unix.Timespec{Nsec: -1}
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
	return ignoreEINTR(func() error { return unix.Linkat(fd, "", dirFD, name, unix.AT_EMPTY_PATH) })
}

func hostMknod(dirFD int, name string, typ, major, minor uint32) error {
	return ignoreEINTR(func() error {
		return unix.Mknodat(dirFD, name, typ|0o600, int(unix.Mkdev(major, minor)))
	})
}

func fdatasync(fd int) error {
	return ignoreEINTR(func() error { return unix.Fdatasync(fd) })
}

func hostReadDir(fd int, buf []byte) (int, error) {
	return ignoreEINTRInt(func() (int, error) { return unix.Getdents(fd, buf) })
}

// hostDirEntry parses the struct linux_dirent64 (getdents64(2)) at the start
// of buf and returns its size, 0 if there is none.
func hostDirEntry(buf []byte) (dirEntry, int) {
	const nameAt = 19
	if len(buf) < nameAt {
		return dirEntry{}, 0
	}
	size := int(binary.NativeEndian.Uint16(buf[16:]))
	if size < nameAt || size > len(buf) {
		return dirEntry{}, 0
	}
	name, _, _ := bytes.Cut(buf[nameAt:size], []byte{0})
	return dirEntry{
		ino:  binary.NativeEndian.Uint64(buf),
		next: int64(binary.NativeEndian.Uint64(buf[8:])),
		typ:  buf[18],
		name: name,
	}, size
}

// readAll calls read with buffers of growing size until the result fits:
// extended attributes may change between asking for the size and reading.
func readAll(read func([]byte) (int, error)) ([]byte, error) {
	for size := 256; ; size *= 4 {
		buf := make([]byte, min(size, maxXattrSize))
		n, err := read(buf)
		if err == unix.ERANGE && len(buf) < maxXattrSize {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n:n], nil
	}
}

func hostGetXattr(fd int, _ uint32, name string) ([]byte, error) {
	return readAll(func(buf []byte) (int, error) { return unix.Getxattr(procPath(fd), name, buf) })
}

func hostListXattr(fd int, _ uint32) ([]byte, error) {
	return readAll(func(buf []byte) (int, error) { return unix.Listxattr(procPath(fd), buf) })
}

func hostSetXattr(fd int, _ uint32, name string, value []byte, flags uint32) error {
	return unix.Setxattr(procPath(fd), name, value, int(flags))
}

func hostRemoveXattr(fd int, _ uint32, name string) error {
	return unix.Removexattr(procPath(fd), name)
}
