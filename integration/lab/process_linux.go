package lab

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

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
