package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
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

// groupPath is where a test makes groups, and a book for their receipts.
func groupPath(t *testing.T) (string, *receipt.Book) {
	t.Helper()
	if os.Getuid() != 0 || cgroups.Mode() == cgroups.Unavailable {
		t.Skip("needs root and control groups")
	}
	book, err := receipt.Open(filepath.Join(t.TempDir(), "receipts.json"))
	if err != nil {
		t.Fatal(err)
	}
	above := fmt.Sprintf("/shim-test-%d", os.Getpid())
	t.Cleanup(func() { unmake(t, above) })
	return above + "/c1", book
}

// unmake removes a group, and those below it.
func unmake(t *testing.T, path string) {
	t.Helper()
	for _, dir := range remains(t, path) {
		var dirs []string
		err := filepath.WalkDir(dir, func(sub string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, sub)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		for _, dir := range slices.Backward(dirs) {
			// Controllers that are mounted together have two paths.
			if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Error(err)
			}
		}
	}
}

func TestGroup(t *testing.T) {
	path, book := groupPath(t)
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
		t.Error("a group with its machine in it was removed")
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

// What was there before, and what others have come to use, is not removed, and
// keeps nothing else from being cleaned up.
func TestGroupOfOthers(t *testing.T) {
	for _, tc := range []struct {
		what string
		// before and during are what others do before and after the group is made.
		before, during func(t *testing.T, path string)
	}{
		{"there before", makeForeign, nil},
		{"there before, and in use", join, nil},
		{"used meanwhile", nil, join},
		{"divided meanwhile", nil, func(t *testing.T, path string) { makeForeign(t, path+"/sub") }},
	} {
		t.Run(tc.what, func(t *testing.T) {
			path, book := groupPath(t)
			if tc.before != nil {
				tc.before(t, path)
			}
			g, err := Make(t.Context(), book, path)
			if err != nil {
				t.Fatal(err)
			}
			pid, end := sleeper(t)
			defer end()
			if err := g.Add(pid); err != nil {
				t.Fatal(err)
			}
			if tc.during != nil {
				tc.during(t, path)
			}
			end()
			if err := book.UndoAll(t.Context()); err != nil {
				t.Error(err)
			}
			if left := remains(t, path); len(left) == 0 || book.Len() > 0 {
				t.Errorf("left are %q, and %d receipts", left, book.Len())
			}
		})
	}
}

func makeForeign(t *testing.T, path string) {
	t.Helper()
	if _, err := makeDirectory(path); err != nil {
		t.Fatal(err)
	}
}

// join has somebody else's process in a group until the end of the test.
func join(t *testing.T, path string) {
	t.Helper()
	d, err := makeDirectory(path)
	if err != nil {
		t.Fatal(err)
	}
	pid, end := sleeper(t)
	t.Cleanup(end)
	if err := d.add(pid); err != nil {
		t.Fatal(err)
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
	t.Cleanup(func() { unmake(t, filepath.Dir(path)) })
	dirs, err := absent(filepath.Join(mountpoint, path))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("absent: %q, %v", dirs, err)
	}
	r := record{Dirs: dirs}
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
	r.Pid = pid
	if err := r.Undo(t.Context()); err == nil {
		t.Error("a group with its machine in it was removed")
	}
	end()
	for range 2 {
		if err := r.Undo(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if exists(filepath.Join(mountpoint, path)) {
		t.Error("the group is still there")
	}
}
