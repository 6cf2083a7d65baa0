package ninep

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Calls that are the same on both hosts. All of them, and those of the host
// files, work on descriptors and single names.

// ignoreEINTR repeats a call that a signal interrupted: the Go runtime sends
// itself signals, and network file systems below the tree give up for them.
func ignoreEINTR(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

func ignoreEINTRInt(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// descriptors are those that the sessions of this process have, all together, and
// maxDescriptors is how many they may have. Clients decide how many files they
// open; a process without a descriptor to spare could neither answer for its
// sandbox nor end it, so part of its limit is kept from them.
var descriptors, maxDescriptors atomic.Int64

func init() {
	limit := int64(descriptorLimit())
	maxDescriptors.Store(limit - limit/4)
}

// newFD counts the descriptor that open makes. There are no others in this
// package that outlive a call.
func newFD(open func() (int, error)) (int, error) {
	if descriptors.Add(1) > maxDescriptors.Load() {
		descriptors.Add(-1)
		return -1, linuxENFILE
	}
	fd, err := ignoreEINTRInt(open)
	if err != nil {
		descriptors.Add(-1)
		return -1, err
	}
	return fd, nil
}

// closeFD closes fd, which is newFD's, if it is one. An error would say that
// buffered data was lost, which only network file systems do, and which the client
// asks for with Tfsync.
func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd)
		descriptors.Add(-1)
	}
}

// pread fills p unless the file ends before.
func pread(fd int, p []byte, offset int64) (int, error) {
	return ignoreEINTRInt(func() (int, error) { return unix.Pread(fd, p, offset) })
}

// pwrite writes all of p, or says how much and why not.
func pwrite(fd int, p []byte, offset int64) (int, error) {
	written := 0
	for written < len(p) {
		n, err := ignoreEINTRInt(func() (int, error) {
			return unix.Pwrite(fd, p[written:], offset+int64(written))
		})
		if err != nil {
			return written, err
		}
		if n == 0 {
			return written, unix.EIO
		}
		written += n
	}
	return written, nil
}

func ftruncate(fd int, size int64) error {
	return ignoreEINTR(func() error { return unix.Ftruncate(fd, size) })
}

func seekDir(fd int, offset int64) error {
	_, err := unix.Seek(fd, offset, unix.SEEK_SET)
	return err
}

// descriptorLimit is how many descriptors the process may have.
func descriptorLimit() int {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 1024
	}
	return int(min(uint64(limit.Cur), 1<<20))
}

// hostOpenRoot opens what a tree starts from, following symbolic links.
func hostOpenRoot(path string) (int, error) {
	return newFD(func() (int, error) {
		return unix.Open(path, openPath|unix.O_CLOEXEC, 0)
	})
}

// hostOpenAt opens a directory's entry, itself if it is a symbolic link,
// without access to its content.
func hostOpenAt(dirFD int, name string) (int, error) {
	return newFD(func() (int, error) {
		return unix.Openat(dirFD, name, openPath|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	})
}

// hostOpenNew creates a regular file that must not exist, and opens it.
func hostOpenNew(dirFD int, name string, flags int) (int, error) {
	return newFD(func() (int, error) {
		return unix.Openat(dirFD, name, flags|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	})
}

// hostReopenForWrite opens a node's file for changing its size.
func hostReopenForWrite(fd int) (int, error) { return hostReopen(fd, unix.O_WRONLY) }

func hostMkdir(dirFD int, name string) error {
	return ignoreEINTR(func() error { return unix.Mkdirat(dirFD, name, 0o700) })
}

func hostSymlink(target string, dirFD int, name string) error {
	return ignoreEINTR(func() error { return unix.Symlinkat(target, dirFD, name) })
}

func hostRename(oldDirFD int, oldName string, newDirFD int, newName string) error {
	return ignoreEINTR(func() error { return unix.Renameat(oldDirFD, oldName, newDirFD, newName) })
}

func hostUnlink(dirFD int, name string, dir bool) error {
	flags := 0
	if dir {
		flags = unix.AT_REMOVEDIR
	}
	err := ignoreEINTR(func() error { return unix.Unlinkat(dirFD, name, flags) })
	if err == unix.EPERM && !dir {
		// POSIX's answer for a directory, where Linux has one that says so.
		var st unix.Stat_t
		if unix.Fstatat(dirFD, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&typeMask == typeDir {
			return linuxEISDIR
		}
	}
	return err
}
