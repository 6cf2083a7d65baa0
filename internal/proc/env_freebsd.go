package proc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

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
	var unknown error
	err = forEach(func(other ID) {
		if shared || unknown != nil || other == id {
			return
		}
		err := openFiles(other.Pid, func(n int, f fileID) {
			// Numbers below zero are not of open files, but of directories, the
			// program and the like.
			shared = shared || n >= 0 && f == *file
		})
		if err == nil {
			return
		}
		// One that is gone by now has nothing open.
		if alive, aerr := other.Alive(); aerr != nil || alive {
			unknown = fmt.Errorf("process %s: %w", other, errors.Join(err, aerr))
		}
	})
	return shared, errors.Join(err, unknown)
}

const (
	// filesTimeout bounds the question for a process's files, filesInterval is how
	// often it is repeated.
	filesTimeout  = time.Second
	filesInterval = time.Millisecond
)

// fileTable is the list of a process's open files. It cannot be had while another
// program takes the process's place (EBUSY, p_candebug in sys/kern/kern_prot.c),
// or if there are more than a moment ago, when the room was measured (ENOMEM).
func fileTable(pid int) ([]byte, error) {
	deadline := time.NewTimer(filesTimeout)
	defer deadline.Stop()
	tick := time.NewTicker(filesInterval)
	defer tick.Stop()
	for {
		data, err := unix.SysctlRaw("kern.proc.filedesc", pid)
		if errors.Is(err, unix.ESRCH) {
			return nil, errNotRunning
		}
		if !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.EBUSY) {
			return data, os.NewSyscallError("sysctl kern.proc.filedesc", err)
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			return nil, os.NewSyscallError("sysctl kern.proc.filedesc", err)
		}
	}
}

// openFiles calls f with those files of a process that are in a file system.
func openFiles(pid int, f func(fd int, file fileID)) error {
	data, err := fileTable(pid)
	if err != nil {
		return err
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
