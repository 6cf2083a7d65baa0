package proc

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// shares looks through the open files of all processes (proc_pid_fd(5)).
func (id ID) shares(fd int) (bool, error) {
	path := fmt.Sprintf("/proc/%d/fd/%d", id.Pid, fd)
	name, err := os.Readlink(path)
	var file os.FileInfo
	if err == nil {
		file, err = os.Stat(path)
	}
	if alive, aerr := id.Alive(); aerr != nil || !alive {
		return false, errors.Join(aerr, errNotRunning)
	}
	if gone(err) {
		return false, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		return false, err
	}
	// The last part of a name is the same in every mount namespace. Only files
	// that have it are looked at: looking at others may wait for a server.
	last := filepath.Base(name)
	shared := false
	var unknown error
	err = forEach(func(other ID) {
		if shared || unknown != nil || other == id {
			return
		}
		has, err := hasOpen(other.Pid, last, file)
		shared = has
		// Where all of this is in a container, its first process may be closed to
		// root in it; whatever it is, it has not opened this file.
		if err == nil || other.Pid == 1 && errors.Is(err, fs.ErrPermission) {
			return
		}
		// One that is gone by now has nothing open.
		if alive, aerr := other.Alive(); aerr != nil || alive {
			unknown = fmt.Errorf("process %s: %w", other, errors.Join(err, aerr))
		}
	})
	return shared, errors.Join(err, unknown)
}

// hasOpen says whether a process has a file open, the last part of whose name is
// given.
func hasOpen(pid int, last string, file os.FileInfo) (bool, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	open, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range open {
		path := filepath.Join(dir, e.Name())
		name, err := os.Readlink(path)
		if err == nil && filepath.Base(name) != last {
			continue
		}
		var other os.FileInfo
		if err == nil {
			other, err = os.Stat(path)
		}
		switch {
		// Closed since.
		case gone(err):
		case err != nil:
			return false, err
		case os.SameFile(file, other):
			return true, nil
		}
	}
	return false, nil
}
