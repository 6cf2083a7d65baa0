package proc

import (
	"bytes"
	"fmt"
)

// WithEnv are the processes that were started with this variable in their
// environment, and its value in each. They may have exited.
func WithEnv(name string) (map[ID]string, error) {
	found := map[ID]string{}
	err := forEach(func(id ID) {
		// As in Find: a pid that has been reused since makes a stale identity.
		env, err := environment(id.Pid)
		if err != nil {
			return
		}
		for v := range bytes.SplitSeq(env, []byte{0}) {
			if value, ok := bytes.CutPrefix(v, []byte(name+"=")); ok {
				found[id] = string(value)
			}
		}
	})
	if err != nil {
		return nil, fmt.Errorf("find processes by %s in their environment: %w", name, err)
	}
	return found, nil
}

// Shares says whether another process has the file open that this one has open
// as fd, whatever has become of its name. errdefs.ErrNotFound if the process has
// exited or has no such file.
func (id ID) Shares(fd int) (bool, error) {
	shared, err := id.shares(fd)
	if err != nil {
		return false, fmt.Errorf("who shares file %d of process %s: %w", fd, id, err)
	}
	return shared, nil
}
