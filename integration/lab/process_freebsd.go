package lab

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// Offsets in struct kinfo_proc (sys/user.h, amd64), and SZOMB (sys/proc.h).
const (
	kinfoSize   = 1088
	kinfoPid    = 72
	kinfoStat   = 388
	kinfoComm   = 447
	kinfoFlag   = 368
	commLength  = 19
	statZombie  = 5
	flagKProc   = 0x00000004 // P_KPROC
	sysctlProcs = "kern.proc.proc"
)

// Processes lists the host's processes but for the kernel's own.
func Processes() ([]Process, error) {
	data, err := unix.SysctlRaw(sysctlProcs)
	if err != nil {
		return nil, fmt.Errorf("sysctl %s: %w", sysctlProcs, err)
	}
	var all []Process
	for ; len(data) >= kinfoSize; data = data[kinfoSize:] {
		if binary.LittleEndian.Uint32(data[kinfoFlag:])&flagKProc != 0 {
			continue
		}
		p := Process{Pid: int(binary.LittleEndian.Uint32(data[kinfoPid:])), Zombie: data[kinfoStat] == statZombie}
		cmdline, err := unix.SysctlRaw("kern.proc.args", p.Pid)
		if args := strings.Trim(string(cmdline), "\x00"); err == nil && args != "" {
			p.Args = strings.Split(args, "\x00")
			// A title that the program has set (setproctitle(3)): "bhyve: NAME".
			if len(p.Args) == 1 {
				p.Args = strings.Fields(args)
			}
		} else {
			name, _, _ := strings.Cut(string(data[kinfoComm:kinfoComm+commLength]), "\x00")
			p.Args = []string{"[" + name + "]"}
		}
		all = append(all, p)
	}
	return all, nil
}
