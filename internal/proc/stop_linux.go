package proc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// threadsOf reads the state of each thread: T is stopped by a signal, t by a
// debugger (proc_pid_stat(5), field 3).
func threadsOf(pid int) (map[int]bool, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	entries, err := os.ReadDir(dir)
	if gone(err) {
		return nil, errNotRunning
	}
	if err != nil {
		return nil, err
	}
	threads := make(map[int]bool, len(entries))
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name(), "stat"))
		if gone(err) {
			// It ended since, as threads do.
			continue
		}
		if err != nil {
			return nil, err
		}
		tid, err := strconv.Atoi(e.Name())
		// The state follows the name in parentheses, see parseStat.
		end := bytes.LastIndexByte(data, ')')
		if err != nil || end < 0 || len(data) < end+3 {
			return nil, fmt.Errorf("unexpected status %q of thread %s", data, e.Name())
		}
		threads[tid] = data[end+2] == 'T'
	}
	return threads, nil
}

// gone says whether err is of a process or thread that does not exist any more.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
