//go:build linux

package agent

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRuntimeIsSettledWhereCrunTrustsItself(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounts a file system")
	}
	from, dir := filepath.Join(t.TempDir(), "crun"), filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(from, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	if err := settleRuntime(from, dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "crun"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// The two questions of crun's is_self_cloned, in its order.
	if _, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("F_GET_SEALS: %v, want EINVAL: crun takes the file for one in memory without seals", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Flags&unix.ST_RDONLY == 0 {
		t.Errorf("flags %#x, %v: not read-only", st.Flags, err)
	}
	if _, err := os.OpenFile(f.Name(), os.O_WRONLY, 0); !errors.Is(err, unix.EROFS) {
		t.Errorf("open for writing: %v, want EROFS", err)
	}
	if _, err := os.Stat(from); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is still in the image: %v", err)
	}
}
