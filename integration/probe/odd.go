//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// checkOdd compares /odd to what package image put there.
func checkOdd() error {
	mode := func(name string, want uint32, uid, gid uint32) check {
		return check{name, func() error {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join("/odd", name), &st); err != nil {
				return err
			}
			if st.Mode != want || st.Uid != uid || st.Gid != gid {
				return fmt.Errorf("mode %o owner %d:%d, want %o %d:%d", st.Mode, st.Uid, st.Gid, want, uid, gid)
			}
			return nil
		}}
	}
	target := func(name, want string) check {
		return check{name, func() error {
			got, err := os.Readlink(filepath.Join("/odd", name))
			if err == nil && got != want {
				err = fmt.Errorf("points to %q, want %q", got, want)
			}
			return err
		}}
	}
	return runAll([]check{
		mode("setuid", unix.S_IFREG|0o4755, 0, 0),
		mode("setgid", unix.S_IFREG|0o2755, 0, 1000),
		mode("sticky", unix.S_IFDIR|0o1777, 0, 0),
		mode("owned", unix.S_IFREG|0o640, 1000, 4_000_000),
		mode("link", unix.S_IFREG|0o640, 1000, 4_000_000),
		mode("fifo", unix.S_IFIFO|0o600, 0, 0),
		mode(strings.Repeat("n", 255), unix.S_IFREG|0o644, 0, 0),
		mode("sp ace\nnewline", unix.S_IFREG|0o644, 0, 0),
		target("dangling", "/nowhere/at/all"),
		target("relative", "../etc/passwd"),
		{"xattr of the image", func() error { return wantXattr("/odd/xattr", "user.lab", "kept") }},
		{"links share an inode", func() error {
			a, err := os.Stat("/odd/owned")
			if err != nil {
				return err
			}
			b, err := os.Stat("/odd/link")
			if err != nil {
				return err
			}
			if !os.SameFile(a, b) {
				return fmt.Errorf("owned and link are different files")
			}
			return nil
		}},
	})
}

func wantXattr(path, name, want string) error {
	buf := make([]byte, 256)
	n, err := unix.Lgetxattr(path, name, buf)
	if err != nil {
		return fmt.Errorf("getxattr %s: %w", name, err)
	}
	if got := string(buf[:n]); got != want {
		return fmt.Errorf("%s is %q, want %q", name, got, want)
	}
	return nil
}
