package proc

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
)

// tick is a second's hundredth, whatever the kernel's own (proc(5),
// sysconf(_SC_CLK_TCK)).
const tick = 1e9 / 100

func usageOf(pid int) (u Usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if gone(err) {
		return u, errNotRunning
	}
	if err != nil {
		return u, err
	}
	// utime and stime are fields 14 and 15 of proc_pid_stat(5), see parseStat.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	const utime, stime = 14 - 3, 15 - 3
	if len(fields) <= stime {
		return u, fmt.Errorf("unexpected process status %q", stat)
	}
	for _, f := range []int{utime, stime} {
		n, err := strconv.ParseUint(string(fields[f]), 10, 64)
		if err != nil {
			return u, err
		}
		u.CPUNanoseconds += n * tick
	}
	rollup, err := os.Open(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if gone(err) {
		return u, errNotRunning
	}
	if err != nil {
		return u, err
	}
	defer rollup.Close()
	err = readMaps(rollup, func(m mapping) { u.RSS, u.PSS, u.PrivateDirty = m.rss, m.pss, m.privateDirty })
	if gone(err) {
		err = errNotRunning
	}
	return u, err
}

// Mapping is a part of a process's memory.
type Mapping struct {
	// Path is the file that is mapped, empty for anonymous memory.
	Path string
	// Perms are the permissions as in "rw-p".
	Perms string
	// Size is in bytes.
	Size uint64
}

// PrivateDirty is the memory in bytes that the process alone has written, in
// those of its mappings that match says yes to.
func (id ID) PrivateDirty(match func(Mapping) bool) (bytes uint64, err error) {
	smaps, err := os.Open(fmt.Sprintf("/proc/%d/smaps", id.Pid))
	if gone(err) {
		err = errNotRunning
	}
	if err != nil {
		return 0, err
	}
	defer smaps.Close()
	err = readMaps(smaps, func(m mapping) {
		if match(m.Mapping) {
			bytes += m.privateDirty
		}
	})
	if gone(err) {
		err = errNotRunning
	}
	if err == nil {
		err = id.mustBeAlive()
	}
	return bytes, err
}

// mapping is one of proc_pid_smaps(5).
type mapping struct {
	Mapping
	rss, pss, privateDirty uint64
	// at is where it is, as in "7f00-7fff".
	at string
}

// readMaps calls f with every mapping: a line of addresses and path, and then
// the fields, in kB.
func readMaps(r io.Reader, f func(mapping)) error {
	var m *mapping
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		name, value, found := strings.Cut(lines.Text(), ":")
		if !found || strings.ContainsAny(name, " -") {
			if m != nil {
				f(*m)
			}
			m = &mapping{}
			if fields := strings.SplitN(lines.Text(), " ", 6); len(fields) == 6 {
				m.at, m.Perms, m.Path = fields[0], fields[1], strings.TrimSpace(fields[5])
			}
			continue
		}
		var to *uint64
		switch name {
		case "Size":
			to = &m.Size
		case "Rss":
			to = &m.rss
		case "Pss":
			to = &m.pss
		case "Private_Dirty":
			to = &m.privateDirty
		default:
			continue
		}
		kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return fmt.Errorf("unexpected line %q", lines.Text())
		}
		*to = kb << 10
	}
	if m != nil {
		f(*m)
	}
	return lines.Err()
}
