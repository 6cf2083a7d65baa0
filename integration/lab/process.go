//go:build linux

package lab

import (
	"os"
	"path/filepath"
	"strconv"
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

// Processes lists the world's processes.
func Processes() ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var all []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if p, ok := readProcess(pid); ok {
			all = append(all, p)
		}
	}
	return all, nil
}

// readProcess reports false for a process that has meanwhile gone.
func readProcess(pid int) (Process, bool) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Process{}, false
	}
	cmdline, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return Process{}, false
	}
	// The name is in parentheses and may itself contain some: proc(5).
	name, rest, ok := cutLast(string(stat), ") ")
	if !ok {
		return Process{}, false
	}
	p := Process{Pid: pid, Zombie: strings.HasPrefix(rest, "Z")}
	if args := strings.Trim(string(cmdline), "\x00"); args != "" {
		p.Args = strings.Split(args, "\x00")
	} else {
		_, name, _ = strings.Cut(name, "(")
		p.Args = []string{"[" + name + "]"}
	}
	return p, true
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

// Kill sends SIGKILL to a process of the world.
func (p Process) Kill() error { return unix.Kill(p.Pid, unix.SIGKILL) }
