package lab

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Container is one container of the lab's image, in words that every client
// understands.
type Container struct {
	// ID is the test's name for it. It is unique in the lab.
	ID string
	// Runtime is RuntimeBhyve or RuntimeRunc.
	Runtime string
	Command []string
	// Env has strings of the form NAME=VALUE.
	Env []string
	Cwd string
	// UID is the user and group to run as; zero is root.
	UID          int
	ReadOnlyRoot bool
	Mounts       []BindMount
}

// BindMount is a directory or file of the host's in a container.
type BindMount struct {
	Source, Target string
	ReadOnly       bool
}

// ExecProcess is a further process in a container.
type ExecProcess struct {
	Command []string
	// Stdin keeps standard input connected; TTY makes all of it a terminal.
	Stdin, TTY bool
}

// State is what a client says of a container.
type State struct {
	Running bool
	// ExitCode is meaningful where it does not run.
	ExitCode int
}

// Client is a program by which people run containers, as the tests need it.
// Errors say that the program failed, not what runs in a container.
type Client interface {
	// Name is the program's.
	Name() string
	// Run runs c to its end and removes it. The result's output and exit code
	// are the container's.
	Run(ctx context.Context, c Container) (Result, error)
	// Start starts c and leaves it running, its output to whoever wants it.
	Start(ctx context.Context, c Container) error
	// Exec is the command that runs p in a container, for a caller that wires
	// its streams. Not every client's exit code is that of p: see ExitCode.
	Exec(ctx context.Context, id string, p ExecProcess) *exec.Cmd
	// ExitCode is that of the process that an Exec ran; -1 where it did not.
	ExitCode(r Result) int
	// Stop ends a container by SIGTERM, and by SIGKILL if it is still there
	// after grace.
	Stop(ctx context.Context, id string, grace time.Duration) error
	// State looks at a container. The error is one of errdefs.ErrNotFound where
	// there is none.
	State(ctx context.Context, id string) (State, error)
	// Remove removes a container whether it runs or not.
	Remove(ctx context.Context, id string) error
}

// ok turns an exit code other than zero into an error.
func ok(r Result, err error) (Result, error) {
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("%s", r)
	}
	return r, err
}

// isNotFound: the command failed because there is no such thing, in any of the
// words that clients have for it.
func isNotFound(r Result) bool {
	said := strings.ToLower(r.Stderr)
	return r.Code != 0 && (strings.Contains(said, "not found") || strings.Contains(said, "no such"))
}

// exitCodeIn is the exit code in the message of a client that has one of its own
// for all failures.
func exitCodeIn(r Result, message *regexp.Regexp) int {
	if r.Code == 0 {
		return 0
	}
	if m := message.FindStringSubmatch(r.Stderr); m != nil {
		if code, err := strconv.Atoi(m[1]); err == nil {
			return code
		}
	}
	return -1
}
