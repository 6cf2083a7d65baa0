package ninep

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

func TestAPrivateTreeSeesNoLaterMounts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	// The thread is in a mount namespace of its own, and ends with the test.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		t.Skipf("no mount namespace: %v", err)
	}
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub")
	for _, mount := range []func() error{
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Mount("tmpfs", dir, "tmpfs", 0, "") },
		func() error { return unix.Mount("", dir, "", unix.MS_SHARED, "") },
		func() error { return os.Mkdir(sub, 0o755) },
	} {
		if err := mount(); err != nil {
			t.Fatal(err)
		}
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	private, err := hostCloneRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFD(private)
	live, err := hostOpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFD(live)

	if err := unix.Mount("tmpfs", sub, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join(sub, "mounted"), filepath.Join(dir, "file")} {
		if err := os.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		fd   int
		name string
		want error
	}{
		{live, "sub/mounted", nil},
		{live, "file", nil},
		{private, "sub/mounted", unix.ENOENT},
		{private, "file", nil},
	} {
		var st unix.Stat_t
		if err := unix.Fstatat(c.fd, c.name, &st, 0); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, err, c.want)
		}
	}
}
