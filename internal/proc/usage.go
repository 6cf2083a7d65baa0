package proc

import "fmt"

// Usage is what a process takes from the host.
type Usage struct {
	// RSS is resident memory in bytes. PSS counts shared pages in proportion,
	// PrivateDirty only what this process has written; both are 0 where the
	// system cannot tell.
	RSS, PSS, PrivateDirty uint64
	// CPUNanoseconds is processor time, user and system.
	CPUNanoseconds uint64
}

// Usage asks the system. errdefs.ErrNotFound if the process has exited.
func (id ID) Usage() (Usage, error) {
	u, err := usageOf(id.Pid)
	if err == nil {
		// Only now: it was this process's if the pid is still its.
		err = id.mustBeAlive()
	}
	if err != nil {
		return Usage{}, fmt.Errorf("usage of process %s: %w", id, err)
	}
	return u, nil
}

func (id ID) mustBeAlive() error {
	alive, err := id.Alive()
	if err == nil && !alive {
		err = errNotRunning
	}
	return err
}
