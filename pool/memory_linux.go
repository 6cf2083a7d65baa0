package pool

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// HostMemory reads MemTotal and MemAvailable of /proc/meminfo
// (Documentation/filesystems/proc.rst), which counts in KiB.
func HostMemory() (Memory, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return Memory{}, err
	}
	defer f.Close()
	var m Memory
	fields := map[string]*uint64{"MemTotal:": &m.Total, "MemAvailable:": &m.Available}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || fields[words[0]] == nil {
			continue
		}
		kib, err := strconv.ParseUint(words[1], 10, 64)
		if err != nil {
			return Memory{}, fmt.Errorf("/proc/meminfo: %w", err)
		}
		*fields[words[0]] = kib << 10
		delete(fields, words[0])
	}
	if err := lines.Err(); err != nil {
		return Memory{}, err
	}
	if len(fields) > 0 {
		return Memory{}, fmt.Errorf("/proc/meminfo: no MemTotal or MemAvailable")
	}
	return m, nil
}

// residentSelf is this process's resident memory in bytes: the second field of
// proc_pid_statm(5), in pages.
func residentSelf() uint64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	words := strings.Fields(string(data))
	if len(words) < 2 {
		return 0
	}
	pages, err := strconv.ParseUint(words[1], 10, 64)
	if err != nil {
		return 0
	}
	return pages * uint64(os.Getpagesize())
}
