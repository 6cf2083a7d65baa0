package lab

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
)

// settleTime is how long after a task's deletion its shim may take to be gone
// altogether.
var settleTime = Patience(10 * time.Second)

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
		l.processes, mounts, l.files, l.system,
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

// files are everything below the lab's TMPDIR and the system's directories for
// state, and what containerd keeps for each task. Snapshots and content are containerd's to collect.
func (l *Lab) files(s Snapshot) error {
	for _, root := range append([]string{
		l.TempDir(),
		filepath.Join(l.Dir, "containerd", "io.containerd.runtime.v2.task"),
	}, stateDirs...) {
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
			case d.IsDir() && slices.Contains([]string{l.Namespace, CRINamespace}, filepath.Base(path)):
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
