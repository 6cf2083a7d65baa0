//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// applets are commands that tests expect of a busybox and that Debian's does not
// have. The program is one of them when it is called by its name.
var applets = map[string]func(args []string) error{
	"ipcs":  ipcs,
	"pgrep": pgrep,
}

var errNoProcess = errors.New("no process found")

// pgrep prints the pids of the processes whose name contains its argument.
func pgrep(args []string) error {
	all, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	found := errNoProcess
	for _, file := range all {
		name, err := os.ReadFile(file)
		if err != nil {
			continue // it has meanwhile ended
		}
		if strings.Contains(string(name), args[0]) {
			found = nil
			fmt.Println(filepath.Base(filepath.Dir(file)))
		}
	}
	return found
}

// ipcs prints the shared memory segments of its namespace: key and id lead each
// line (proc(5), /proc/sysvipc/shm).
func ipcs([]string) error {
	data, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(data)
	return err
}
