// Package command runs programs of the system's, where what they do has no library
// and no system call: pfctl(8), ifconfig(8).
package command

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// Runner runs programs. It is safe for concurrent use.
type Runner struct {
	timeout time.Duration
	// slots has room for those that run; nil for any number.
	slots chan struct{}
}

// New is a Runner that bounds how long a program runs, and how many do at a time: 0
// is any number.
func New(timeout time.Duration, atOnce int) *Runner {
	r := &Runner{timeout: timeout}
	if atOnce > 0 {
		r.slots = make(chan struct{}, atOnce)
	}
	return r
}

// pipesWait is how long the pipes of a program that has ended, or was killed, may be
// held by what it has started.
const pipesWait = time.Second

// Run runs the program argv[0], a path, with what follows as its arguments and with a
// standard input, and returns its standard output. No shell sees any of it, and
// nothing of this process's environment is the program's.
//
// The error of a program that has failed ends with what it said on its standard error.
// One that was ended, or never began, as ctx was done is ctx's cause, and one that took
// too long context.DeadlineExceeded.
func (r *Runner) Run(ctx context.Context, stdin string, argv ...string) ([]byte, error) {
	if r.slots != nil {
		select {
		case r.slots <- struct{}{}:
			defer func() { <-r.slots }()
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, r.timeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// In words that callers look for.
	cmd.Env = []string{"LC_ALL=C"}
	if stdin != "" {
		cmd.Stdin = strings.NewReader(stdin)
	}
	cmd.WaitDelay = pipesWait
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	if ended := context.Cause(ctx); ended != nil {
		err = fmt.Errorf("%w: %w", ended, err)
	}
	return nil, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(stderr.Bytes()))
}
