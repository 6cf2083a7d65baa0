//go:build linux

package lab

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
)

// settleTime is how long after a task's deletion its shim may take to be gone
// altogether.
const settleTime = 10 * time.Second

// Snapshot is everything in a world that a sandbox could leave behind, each
// described by a line.
type Snapshot map[string]struct{}

// Leaks compares the world to what it was when the lab had started, and returns
// an error that lists what is there in addition. It waits a short while for
// what is on its way out.
//
// What has been reported once is not reported again.
func (l *Lab) Leaks(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, settleTime, fmt.Errorf("left behind after %v", settleTime))
	defer cancel()
	var now Snapshot
	err := Eventually(ctx, func() (err error) {
		if now, err = l.Snapshot(); err != nil {
			return err
		}
		return now.minus(l.clean)
	})
	if err != nil {
		maps.Copy(l.clean, now)
	}
	return err
}

func (s Snapshot) minus(before Snapshot) error {
	var added []string
	for _, line := range slices.Sorted(maps.Keys(s)) {
		if _, ok := before[line]; !ok {
			added = append(added, line)
		}
	}
	if added == nil {
		return nil
	}
	return fmt.Errorf("%d leaks:\n  %s", len(added), strings.Join(added, "\n  "))
}

// Snapshot looks at the world.
func (l *Lab) Snapshot() (Snapshot, error) {
	s := Snapshot{}
	for _, look := range []func(Snapshot) error{
		l.processes, l.openPipes, links, netfilter, mounts, l.files, l.cgroups,
	} {
		if err := look(s); err != nil {
			return nil, fmt.Errorf("look for leaks: %w", err)
		}
	}
	return s, nil
}

func (s Snapshot) add(format string, args ...any) { s[fmt.Sprintf(format, args...)] = struct{}{} }

// processes are all but process 1, this one, containerd and its children of a
// moment; a restarted containerd is no leak.
func (l *Lab) processes(s Snapshot) error {
	procs, err := Processes()
	if err != nil {
		return err
	}
	for _, p := range procs {
		if p.Pid == 1 || p.Pid == os.Getpid() || p.Pid == l.ContainerdPid() {
			continue
		}
		s.add("process %d: %s", p.Pid, p)
	}
	return nil
}

// openPipes are named pipes that containerd still holds: stdio of a task, or a
// shim's log.
func (l *Lab) openPipes(s Snapshot) error {
	dir := filepath.Join("/proc", strconv.Itoa(l.ContainerdPid()), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, fd := range fds {
		path := filepath.Join(dir, fd.Name())
		target, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(target, "/") {
			continue
		}
		if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeNamedPipe != 0 {
			s.add("named pipe open in containerd: %s", target)
		}
	}
	return nil
}

func links(s Snapshot) error {
	all, err := netlink.LinkList()
	if err != nil {
		return err
	}
	for _, link := range all {
		s.add("network interface %s (%s)", link.Attrs().Name, link.Type())
	}
	return nil
}

func netfilter(s Snapshot) error {
	conn, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := conn.ListTables()
	if err != nil {
		return err
	}
	for _, t := range tables {
		s.add("nftables table %s (family %d)", t.Name, t.Family)
		chains, err := conn.ListChainsOfTableFamily(t.Family)
		if err != nil {
			return err
		}
		for _, c := range chains {
			if c.Table.Name == t.Name {
				s.add("nftables chain %s in table %s", c.Name, t.Name)
			}
		}
	}
	return nil
}

func mounts(s Snapshot) error {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	for _, m := range all {
		s.add("mount %s (%s)", m.Mountpoint, m.FSType)
	}
	return nil
}

// files are everything below /run and the lab's TMPDIR, and what containerd
// keeps for each task. Snapshots and content are containerd's to collect.
func (l *Lab) files(s Snapshot) error {
	for _, root := range []string{
		"/run",
		"/dev/shm",
		l.TempDir(),
		filepath.Join(l.Dir, "containerd", "io.containerd.runtime.v2.task"),
	} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			switch {
			case os.IsNotExist(err):
				return nil
			case err != nil:
				return err
			// A mount is a leak by itself, and what is in it is not another.
			case d.IsDir() && path != root && isMountpoint(path):
				return fs.SkipDir
			// What a namespace has in it counts, not that it was once used.
			case d.IsDir() && filepath.Base(path) == l.Namespace:
				return nil
			}
			s.add("file %s", path)
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func isMountpoint(path string) bool {
	mounted, err := mountinfo.Mounted(path)
	return err == nil && mounted
}

func (l *Lab) cgroups(s Snapshot) error {
	dirs, err := cgroupDirs(l.Namespace)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.IsDir() {
				s.add("cgroup %s", filepath.Join(dir, e.Name()))
			}
		}
	}
	return nil
}
