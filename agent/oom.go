//go:build linux

package agent

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// oomCounts says which OOM kills of a container have been told of.
//
// containerd's task service watches memory.events, and the kernel tells of a
// change up to 10 ms late (CGROUP_FILE_NOTIFY_MIN_INTV in its cgroup.c): after
// the exit of an exec that was killed. The counter itself is exact. Whoever looks
// at it when there is something to tell, an exit or a notice, finds what is new,
// and each kill is told of once and before the exit.
type oomCounts struct {
	root string // of the control groups

	mu     sync.Mutex
	groups map[string]*oomGroup // by container
}

type oomGroup struct {
	dir  string
	told uint64
}

func newOOMCounts(root string) *oomCounts {
	return &oomCounts{root: root, groups: map[string]*oomGroup{}}
}

// watch begins to count for a container whose first process is pid.
func (c *oomCounts) watch(container string, pid uint32) error {
	group, err := controlGroup(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.groups[container] = &oomGroup{dir: filepath.Join(c.root, group)}
	return nil
}

func (c *oomCounts) forget(container string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.groups, container)
}

// tell calls publish if there are kills that have not been told of. It holds
// others up meanwhile, so that whoever comes second comes after the first has
// published. Without a count, because nobody watches or the group has gone, it
// calls publish if unsure is true.
func (c *oomCounts) tell(container string, unsure bool, publish func() error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.groups[container]
	if g == nil {
		return publishIf(unsure, publish)
	}
	n, err := oomKills(g.dir)
	if err != nil {
		return publishIf(unsure, publish)
	}
	news := n > g.told
	g.told = n
	return publishIf(news, publish)
}

func publishIf(yes bool, publish func() error) error {
	if !yes {
		return nil
	}
	return publish()
}

// controlGroup is the path in version 2's hierarchy (cgroups(7), /proc/pid/cgroup).
func controlGroup(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("control group: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		if path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return path, nil
		}
	}
	return "", fmt.Errorf("control group: none of version 2 in %s", file)
}

// oomKills is how many processes of a group the kernel has killed for want of
// memory (cgroup-v2.rst, memory.events).
func oomKills(dir string) (uint64, error) {
	f, err := os.Open(filepath.Join(dir, "memory.events"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if n, ok := strings.CutPrefix(lines.Text(), "oom_kill "); ok {
			return strconv.ParseUint(n, 10, 64)
		}
	}
	return 0, errors.New("memory.events has no oom_kill")
}
