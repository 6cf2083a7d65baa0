package proc

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// PageOut gives the memory of those of a process's mappings back to the host that
// match says yes to. What is in files is written back first, and private memory
// goes to swap, if there is any; what has nowhere to go stays, as does what other
// processes have as well. All of it comes back as it is touched. Linux 5.10.
func (id ID) PageOut(match func(Mapping) bool) error {
	smaps, err := os.Open(fmt.Sprintf("/proc/%d/smaps", id.Pid))
	if gone(err) {
		return errNotRunning
	}
	if err != nil {
		return err
	}
	defer smaps.Close()
	var found []mapping
	err = readMaps(smaps, func(m mapping) {
		if match(m.Mapping) {
			found = append(found, m)
		}
	})
	if gone(err) {
		err = errNotRunning
	}
	if err != nil {
		return err
	}
	pidfd, err := id.open()
	if err != nil {
		return err
	}
	defer pidfd.Close()
	for _, m := range found {
		if err := id.pageOut(pidfd, m); err != nil {
			return fmt.Errorf("page out %s of process %s: %w", m.at, id, err)
		}
	}
	return nil
}

func (id ID) pageOut(pidfd *os.File, m mapping) error {
	if strings.HasSuffix(m.Perms, "s") {
		// By its mapping, as it may have no other name (proc_pid_map_files(5)).
		f, err := os.Open(fmt.Sprintf("/proc/%d/map_files/%s", id.Pid, m.at))
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(); err != nil {
			return err
		}
	}
	var start, end uintptr
	if _, err := fmt.Sscanf(m.at, "%x-%x", &start, &end); err != nil {
		return err
	}
	for start < end {
		// struct iovec; the addresses are not this process's.
		iov := [2]uintptr{start, end - start}
		n, _, errno := unix.Syscall6(unix.SYS_PROCESS_MADVISE, pidfd.Fd(), uintptr(unsafe.Pointer(&iov)), 1, unix.MADV_PAGEOUT, 0, 0)
		switch {
		case errno == unix.EINTR || errno == unix.EAGAIN:
		case errno == unix.ESRCH:
			return errNotRunning
		case errno != 0:
			return os.NewSyscallError("process_madvise", errno)
		case n == 0:
			return errors.New("process_madvise does nothing")
		default:
			start += n
		}
	}
	return nil
}
