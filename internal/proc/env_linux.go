package proc

import (
	"errors"
	"fmt"
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
	err = forEach(func(other ID) {
		if shared || other == id {
			return
		}
		dir := fmt.Sprintf("/proc/%d/fd", other.Pid)
		// One that is gone by now has nothing open.
		open, _ := os.ReadDir(dir)
		for _, e := range open {
			path := filepath.Join(dir, e.Name())
			if name, err := os.Readlink(path); err != nil || filepath.Base(name) != last {
				continue
			}
			if other, err := os.Stat(path); err == nil && os.SameFile(file, other) {
				shared = true
				return
			}
		}
	})
	return shared, err
}
