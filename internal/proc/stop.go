package proc

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// stopPoll is how often the process table is looked at. Nothing tells.
const stopPoll = 2 * time.Millisecond

// Stop sends SIGSTOP and returns once the process table shows every thread of
// the process stopped. When that cannot be seen before ctx ends, the process is
// made to run again and the error is ctx's. errdefs.ErrNotFound if the process
// has exited.
func (id ID) Stop(ctx context.Context) error { return id.stop(ctx, id.Stopped) }

func (id ID) stop(ctx context.Context, stopped func() (bool, error)) error {
	if err := id.Signal(unix.SIGSTOP); err != nil {
		return err
	}
	err := id.await(ctx, stopped)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("stop process %s: %w", id, err)
	if errdefs.IsNotFound(err) {
		return err
	}
	return errors.Join(err, id.Signal(unix.SIGCONT))
}

// Continue sends SIGCONT and returns once the process table shows no thread of
// the process stopped. errdefs.ErrNotFound if the process has exited.
func (id ID) Continue(ctx context.Context) error {
	if err := id.Signal(unix.SIGCONT); err != nil {
		return err
	}
	if err := id.await(ctx, id.running); err != nil {
		return fmt.Errorf("continue process %s: %w", id, err)
	}
	return nil
}

// await looks at the process until it is as wanted.
func (id ID) await(ctx context.Context, wanted func() (bool, error)) error {
	tick := time.NewTicker(stopPoll)
	defer tick.Stop()
	for {
		if ok, err := wanted(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// Stopped says whether every thread of the process is stopped by a signal.
// errdefs.ErrNotFound if the process has exited.
func (id ID) Stopped() (bool, error) {
	// A thread that ran when the list was made can have made another before it
	// was looked at. Once two lists are the same, all of them were stopped when
	// the second was made.
	before, err := id.threads()
	if err != nil || !all(before, true) {
		return false, err
	}
	after, err := id.threads()
	return err == nil && maps.Equal(before, after), err
}

// running says whether no thread of the process is stopped by a signal.
func (id ID) running() (bool, error) {
	threads, err := id.threads()
	return err == nil && all(threads, false), err
}

// all says whether there are threads, and all of them are so.
func all(stopped map[int]bool, so bool) bool {
	for _, s := range stopped {
		if s != so {
			return false
		}
	}
	return len(stopped) > 0
}

// threads returns for each thread of the process whether it is stopped.
func (id ID) threads() (map[int]bool, error) {
	threads, err := threadsOf(id.Pid)
	if err != nil {
		return nil, err
	}
	// Only now: it was this process's list if the pid is still its.
	return threads, id.mustBeAlive()
}
