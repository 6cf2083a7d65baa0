//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/integration/pattern"
)

// checkFS checks that dir, empty and writable, behaves as a local file system
// does.
func checkFS(dir string) error {
	if err := os.Chdir(dir); err != nil {
		return err
	}
	return runAll([]check{
		{"modes", modes},
		{"owners", owners},
		{"times", times},
		{"symbolic links", symlinks},
		{"hard links", hardlinks},
		{"rename over a file", renameOver},
		{"rename a directory", renameDir},
		{"rename without replacing", renameNoReplace},
		{"unlinked and still open", unlinkedOpen},
		{"removed directory is not empty", notEmpty},
		{"exclusive create", exclusive},
		{"append", appends},
		{"truncate and holes", truncates},
		{"large file offsets", largeOffset},
		{"fallocate or an honest error", fallocates},
		{"fifo", fifo},
		{"unix socket", unixSocket},
		{"device node", deviceNode},
		{"extended attributes", xattrs},
		{"shared map is written back", sharedMap},
		{"execute a new program", execute},
		{"map a program's text", mapText},
		{"flock", flocks},
		{"record locks", recordLocks},
		{"many entries", manyEntries},
		{"name of 255 bytes", longName},
		{"name of 256 bytes is refused", tooLongName},
		{"two descriptors see each other's writes", twoDescriptors},
		{"fsync", fsync},
		{"statfs", statfs},
		{"nobody may not write what is root's", permissions},
	})
}

func modes() error {
	for _, mode := range []uint32{0o600, 0o755, 0o4711, 0o2750, 0o1777, 0} {
		name := fmt.Sprintf("mode-%o", mode)
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			return err
		}
		if err := unix.Chmod(name, mode); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Stat(name, &st); err != nil {
			return err
		}
		if got := st.Mode & 0o7777; got != mode {
			return fmt.Errorf("chmod %o gave %o", mode, got)
		}
	}
	return nil
}

func owners() error {
	if err := os.WriteFile("owner", nil, 0o644); err != nil {
		return err
	}
	if err := os.Symlink("owner", "owner-link"); err != nil {
		return err
	}
	for _, name := range []string{"owner", "owner-link"} {
		if err := os.Lchown(name, 1000, 4_000_000); err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		if st.Uid != 1000 || st.Gid != 4_000_000 {
			return fmt.Errorf("%s belongs to %d:%d", name, st.Uid, st.Gid)
		}
	}
	return nil
}

func times() error {
	if err := os.WriteFile("times", []byte("x"), 0o644); err != nil {
		return err
	}
	info, err := os.Stat("times")
	if err != nil {
		return err
	}
	// A file system on another machine has another machine's clock.
	if d := time.Since(info.ModTime()).Abs(); d > 5*time.Second {
		return fmt.Errorf("a new file's time is %v off", d)
	}
	want := time.Unix(1_000_000_000, 123_456_789)
	if err := os.Chtimes("times", want, want); err != nil {
		return err
	}
	if info, err = os.Stat("times"); err != nil {
		return err
	}
	// A file system may keep whole seconds of what it is told to keep: the 9p
	// client of Linux 6.1 was seen to, whatever its server could.
	if got := info.ModTime(); !got.Equal(want) && !got.Equal(want.Truncate(time.Second)) {
		return fmt.Errorf("set %v, got %v", want, got)
	}
	return nil
}

func symlinks() error {
	if err := os.WriteFile("target", []byte("through"), 0o644); err != nil {
		return err
	}
	if err := os.Symlink("target", "symlink"); err != nil {
		return err
	}
	if err := os.Symlink("loop", "loop"); err != nil {
		return err
	}
	if _, err := os.ReadFile("loop"); !errors.Is(err, unix.ELOOP) {
		return fmt.Errorf("a link to itself gave %v, want ELOOP", err)
	}
	return wantContent("symlink", "through")
}

func hardlinks() error {
	if err := os.WriteFile("name1", []byte("1"), 0o644); err != nil {
		return err
	}
	if err := os.Link("name1", "name2"); err != nil {
		return err
	}
	if err := os.WriteFile("name2", []byte("2"), 0o644); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat("name1", &st); err != nil {
		return err
	}
	if st.Nlink != 2 {
		return fmt.Errorf("%d links, want 2", st.Nlink)
	}
	if err := os.Remove("name2"); err != nil {
		return err
	}
	return wantContent("name1", "2")
}

func renameOver() error {
	for _, name := range []string{"new", "old"} {
		if err := os.WriteFile(name, []byte(name), 0o644); err != nil {
			return err
		}
	}
	old, err := os.Open("old")
	if err != nil {
		return err
	}
	defer old.Close()
	if err := os.Rename("new", "old"); err != nil {
		return err
	}
	if err := wantContent("old", "new"); err != nil {
		return err
	}
	data, err := io.ReadAll(old)
	if err != nil || string(data) != "old" {
		return fmt.Errorf("the replaced file, still open, reads %q, %v", data, err)
	}
	if _, err := os.Stat("new"); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the old name is still there: %v", err)
	}
	return nil
}

func renameDir() error {
	if err := os.MkdirAll("dir1/sub", 0o755); err != nil {
		return err
	}
	if err := os.WriteFile("dir1/sub/file", []byte("moved"), 0o644); err != nil {
		return err
	}
	if err := os.Rename("dir1", "dir2"); err != nil {
		return err
	}
	if err := os.Rename("dir2", "dir2/sub/dir3"); !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("a directory moved into itself: %v, want EINVAL", err)
	}
	return wantContent("dir2/sub/file", "moved")
}

func renameNoReplace() error {
	for _, name := range []string{"keep", "taken"} {
		if err := os.WriteFile(name, []byte(name), 0o644); err != nil {
			return err
		}
	}
	err := unix.Renameat2(unix.AT_FDCWD, "keep", unix.AT_FDCWD, "taken", unix.RENAME_NOREPLACE)
	// EINVAL is a file system saying that it cannot promise this.
	if !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("got %v, want EEXIST or EINVAL", err)
	}
	return wantContent("taken", "taken")
}

func unlinkedOpen() error {
	f, err := os.Create("unlinked")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("before "); err != nil {
		return err
	}
	if err := os.Remove("unlinked"); err != nil {
		return err
	}
	if _, err := f.WriteString("after"); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	buf := make([]byte, 32)
	n, err := f.ReadAt(buf, 0)
	if string(buf[:n]) != "before after" {
		return fmt.Errorf("read %q, %v", buf[:n], err)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("fstat: %w", err)
	}
	if info.Size() != int64(len("before after")) {
		return fmt.Errorf("size %d", info.Size())
	}
	if err := f.Truncate(3); err != nil {
		return fmt.Errorf("ftruncate: %w", err)
	}
	if err := f.Chmod(0o400); err != nil {
		return fmt.Errorf("fchmod: %w", err)
	}
	return nil
}

func notEmpty() error {
	if err := os.MkdirAll("full/inside", 0o755); err != nil {
		return err
	}
	if err := unix.Rmdir("full"); !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("rmdir gave %v, want ENOTEMPTY", err)
	}
	return os.RemoveAll("full")
}

func exclusive() error {
	const flags = os.O_CREATE | os.O_EXCL | os.O_WRONLY
	f, err := os.OpenFile("once", flags, 0o644)
	if err != nil {
		return err
	}
	f.Close()
	if _, err := os.OpenFile("once", flags, 0o644); !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("the second create gave %v, want EEXIST", err)
	}
	return nil
}

func longName() error {
	name := strings.Repeat("l", 255)
	if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
		return err
	}
	return wantContent(name, "x")
}

func tooLongName() error {
	err := os.WriteFile(strings.Repeat("l", 256), nil, 0o644)
	if !errors.Is(err, unix.ENAMETOOLONG) {
		return fmt.Errorf("got %v, want ENAMETOOLONG", err)
	}
	return nil
}

func manyEntries() error {
	// More than fit into one buffer of getdents.
	const count = 300
	if err := os.Mkdir("many", 0o755); err != nil {
		return err
	}
	for i := range count {
		if err := unix.Mknod(filepath.Join("many", pattern.EntryName(i)), unix.S_IFREG|0o644, 0); err != nil {
			return err
		}
	}
	if err := checkEntries("many", count); err != nil {
		return err
	}
	return os.RemoveAll("many")
}

// checkEntries is that dir has the entries of the pattern, each once, and no
// others.
func checkEntries(dir string, count int) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(entries) != count {
		return fmt.Errorf("readdir gave %d entries, want %d", len(entries), count)
	}
	// ReadDir sorts by name, as the pattern's names are.
	for i, e := range entries {
		if e.Name() != pattern.EntryName(i) {
			return fmt.Errorf("entry %d is %q, want %q", i, e.Name(), pattern.EntryName(i))
		}
	}
	return nil
}

func fifo() error {
	if err := unix.Mkfifo("fifo", 0o600); err != nil {
		return err
	}
	written := make(chan error, 1)
	go func() { written <- os.WriteFile("fifo", []byte("through the pipe"), 0) }()
	if err := wantContent("fifo", "through the pipe"); err != nil {
		return err
	}
	return <-written
}

func unixSocket() error {
	l, err := net.Listen("unix", "socket")
	if err != nil {
		return err
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Write([]byte("hello"))
			c.Close()
		}
	}()
	c, err := net.Dial("unix", "socket")
	if err != nil {
		return err
	}
	defer c.Close()
	data, err := io.ReadAll(c)
	if err != nil || string(data) != "hello" {
		return fmt.Errorf("read %q, %v", data, err)
	}
	return nil
}

func deviceNode() error {
	// The numbers of /dev/null, Documentation/admin-guide/devices.txt.
	if err := unix.Mknod("null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat("null", &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return fmt.Errorf("mode %o, device %#x", st.Mode, st.Rdev)
	}
	return nil
}

func xattrs() error {
	if err := os.WriteFile("xattr", nil, 0o644); err != nil {
		return err
	}
	if err := unix.Setxattr("xattr", "user.probe", []byte("value"), unix.XATTR_CREATE); err != nil {
		return fmt.Errorf("setxattr: %w", err)
	}
	if err := wantXattr("xattr", "user.probe", "value"); err != nil {
		return err
	}
	buf := make([]byte, 1024)
	n, err := unix.Listxattr("xattr", buf)
	if err != nil {
		return fmt.Errorf("listxattr: %w", err)
	}
	if names := strings.Split(string(buf[:n]), "\x00"); !slices.Contains(names, "user.probe") {
		return fmt.Errorf("listxattr gave %q", names)
	}
	if err := unix.Removexattr("xattr", "user.probe"); err != nil {
		return fmt.Errorf("removexattr: %w", err)
	}
	if _, err := unix.Getxattr("xattr", "user.probe", buf); !errors.Is(err, unix.ENODATA) {
		return fmt.Errorf("the removed attribute gave %v, want ENODATA", err)
	}
	return nil
}

func execute() error {
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return err
	}
	if err := os.WriteFile("program", self, 0o755); err != nil {
		return err
	}
	out, err := exec.Command("./program", "gen", "3").Output()
	if err != nil || len(out) != 3 {
		return fmt.Errorf("wrote %d bytes, want 3: %w", len(out), err)
	}
	return nil
}

func permissions() error {
	if err := os.WriteFile("private", []byte("secret"), 0o600); err != nil {
		return err
	}
	out, err := exec.Command("/bin/su", "user", "-c", "cat private || echo x > private").CombinedOutput()
	if err == nil {
		return fmt.Errorf("a user could: %s", out)
	}
	return wantContent("private", "secret")
}

func wantContent(name, want string) error {
	data, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	if string(data) != want {
		return fmt.Errorf("%s reads %q, want %q", name, data, want)
	}
	return nil
}
