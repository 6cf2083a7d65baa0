package cgroup

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/cgroups/v3"
	"github.com/moby/sys/mountinfo"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// sleeper is a process that lives until its standard input ends.
func sleeper(t *testing.T) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, func() { in.Close(); _ = cmd.Wait() }
}

// memberOf is true if a process is in the group at path somewhere.
func memberOf(t *testing.T, pid int, path string) bool {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(strings.Split(string(data), "\n"), func(line string) bool {
		_, p, _ := strings.Cut(line, ":/")
		return "/"+p == path
	})
}

// remains are the directories of a group.
func remains(t *testing.T, path string) []string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, m := range mounts {
		if dir := filepath.Join(m.Mountpoint, path); exists(dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func TestGroup(t *testing.T) {
	if os.Getuid() != 0 || cgroups.Mode() == cgroups.Unavailable {
		t.Skip("needs root and control groups")
	}
	book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts.json"))
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/shim-test-%d/c1", os.Getpid())
	t.Cleanup(func() { _ = removeDirectory(filepath.Dir(path)) })
	g, err := Make(t.Context(), book, path)
	if err != nil {
		t.Fatal(err)
	}
	pid, end := sleeper(t)
	defer end()
	if err := g.Add(pid); err != nil {
		t.Fatal(err)
	}
	if !memberOf(t, pid, path) {
		t.Error("the process is not in the group")
	}
	if err := g.Remove(t.Context()); err == nil {
		t.Error("a group with a process in it was removed")
	}
	end()
	// As `delete` does it, from the book.
	if book.Len() != 1 {
		t.Errorf("%d receipts", book.Len())
	}
	if err := book.UndoAll(t.Context()); err != nil {
		t.Error(err)
	}
	if left := remains(t, path); len(left) > 0 || book.Len() > 0 {
		t.Errorf("left are %q", left)
	}
	if err := g.Remove(t.Context()); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

func TestNoGroup(t *testing.T) {
	book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts.json"))
	if err != nil {
		t.Fatal(err)
	}
	g, err := Make(t.Context(), book, "")
	if g != nil || err != nil || g.Add(1) != nil || g.Remove(t.Context()) != nil || book.Len() != 0 {
		t.Errorf("got %v, %v", g, err)
	}
}

// Version 2, wherever this host has it: below its own place for a host that has
// only that, or beside version 1.
func TestV2(t *testing.T) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil || len(mounts) == 0 || os.Getuid() != 0 {
		t.Skip("needs root and control groups of version 2")
	}
	mountpoint, path := mounts[0].Mountpoint, fmt.Sprintf("/shim-test-%d-v2/c1", os.Getpid())
	t.Cleanup(func() { _ = removeV2(mountpoint, filepath.Dir(path)) })
	d, err := makeV2(mountpoint, path)
	if err != nil {
		t.Fatal(err)
	}
	pid, end := sleeper(t)
	defer end()
	if err := d.add(pid); err != nil {
		t.Fatal(err)
	}
	if !memberOf(t, pid, path) {
		t.Error("the process is not in the group")
	}
	if err := removeV2(mountpoint, path); err == nil {
		t.Error("a group with a process in it was removed")
	}
	end()
	for range 2 {
		if err := removeV2(mountpoint, path); err != nil {
			t.Error(err)
		}
	}
	if exists(filepath.Join(mountpoint, path)) {
		t.Error("the group is still there")
	}
}
