package proc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Offsets in struct kinfo_file, sys/user.h, a variable number of bytes that
// begin with their count. Those of the file system and of the file are in
// kf_un.kf_file.
const (
	kinfoFileType   = 4
	kinfoFileFD     = 8
	kinfoFileFSID   = 288
	kinfoFileFileID = 304
	kinfoFileLeast  = 312

	// KF_TYPE_VNODE and KF_TYPE_FIFO.
	kinfoTypeVnode = 1
	kinfoTypeFIFO  = 4
)

// fileID is a file of a file system, by name or without.
type fileID struct{ system, file uint64 }

// shares looks through the open files of all processes, as procstat(1) does.
func (id ID) shares(fd int) (bool, error) {
	var file *fileID
	err := openFiles(id.Pid, func(n int, f fileID) {
		if n == fd {
			file = &f
		}
	})
	if alive, aerr := id.Alive(); aerr != nil || !alive {
		return false, errors.Join(aerr, errNotRunning)
	}
	if err == nil && file == nil {
		err = fmt.Errorf("no file of that number: %w", errdefs.ErrNotFound)
	}
	if err != nil {
		return false, err
	}
	shared := false
	err = forEach(func(other ID) {
		if shared || other == id {
			return
		}
		// One that is gone by now has nothing open.
		_ = openFiles(other.Pid, func(n int, f fileID) {
			// Numbers below zero are not of open files, but of directories, the
			// program and the like.
			shared = shared || n >= 0 && f == *file
		})
	})
	return shared, err
}

// openFiles calls f with those files of a process that are in a file system.
func openFiles(pid int, f func(fd int, file fileID)) error {
	data, err := unix.SysctlRaw("kern.proc.filedesc", pid)
	if errors.Is(err, unix.ESRCH) {
		return errNotRunning
	}
	if err != nil {
		return os.NewSyscallError("sysctl kern.proc.filedesc", err)
	}
	order := binary.LittleEndian
	for len(data) >= kinfoFileLeast {
		size := int(order.Uint32(data))
		if size < kinfoFileLeast || size > len(data) {
			// The end is a record of no size.
			break
		}
		switch order.Uint32(data[kinfoFileType:]) {
		case kinfoTypeVnode, kinfoTypeFIFO:
			f(int(int32(order.Uint32(data[kinfoFileFD:]))), fileID{
				system: order.Uint64(data[kinfoFileFSID:]), file: order.Uint64(data[kinfoFileFileID:]),
			})
		}
		data = data[size:]
	}
	return nil
}
