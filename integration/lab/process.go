package lab

import (
	"strings"

	"golang.org/x/sys/unix"
)

// Process is a process of the world.
type Process struct {
	Pid int
	// Args is the command line, or the name in brackets where there is none.
	Args []string
	// Zombie is a process that has ended and was not waited for.
	Zombie bool
}

func (p Process) String() string {
	state := ""
	if p.Zombie {
		state = " (zombie)"
	}
	return strings.Join(p.Args, " ") + state
}

// Kill sends SIGKILL to a process of the world.
func (p Process) Kill() error { return unix.Kill(p.Pid, unix.SIGKILL) }
