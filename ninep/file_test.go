package ninep

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCreateOwnershipAndMode(t *testing.T) {
	needRoot(t)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	tree, dir := serveDir(t, Options{})
	c := mount(t, tree)
	c.attach(1, 1234)

	c.create(1, "file", openReadWrite, 0o6755, 77)
	c.ok(msgTmkdir, uint32(1), "dir", uint32(0o3777), uint32(77))
	c.ok(msgTsymlink, uint32(1), "link", "/etc/passwd", uint32(77))
	c.ok(msgTmknod, uint32(1), "fifo", uint32(typeFifo|0o666), uint32(0), uint32(0), uint32(77))
	c.ok(msgTmknod, uint32(1), "sock", uint32(typeSocket|0o777), uint32(0), uint32(0), uint32(77))
	c.ok(msgTmknod, uint32(1), "char", uint32(typeChar|0o622), uint32(300), uint32(70000), uint32(77))
	c.ok(msgTmknod, uint32(1), "regular", uint32(0o641), uint32(0), uint32(0), uint32(77))
	for name, mode := range map[string]uint32{
		"file": typeRegular | 0o6755, "dir": typeDir | 0o3777, "link": typeSymlink | 0o777,
		"fifo": typeFifo | 0o666, "sock": typeSocket | 0o777, "char": typeChar | 0o622, "regular": typeRegular | 0o641,
	} {
		host, guest := hostAttr(t, dir, name), c.stat(c.walk(0, name))
		if host.uid != 1234 || host.gid != 77 || host.mode != mode {
			t.Errorf("%s on the host: %d:%d %o, want 1234:77 %o", name, host.uid, host.gid, host.mode, mode)
		}
		if guest.uid != 1234 || guest.gid != 77 || guest.mode != mode {
			t.Errorf("%s in the guest: %d:%d %o, want 1234:77 %o", name, guest.uid, guest.gid, guest.mode, mode)
		}
	}
	// new_encode_dev(300, 70000)
	if got, want := c.stat(c.walk(0, "char")).rdev, uint64(70000&0xff|300<<8|(70000&^0xff)<<12); got != want {
		t.Errorf("rdev %#x, want %#x", got, want)
	}
	d := c.ok(msgTreadlink, c.walk(0, "link"))
	if got := d.str(); got != "/etc/passwd" {
		t.Errorf("readlink: %q", got)
	}
	c.want(17, msgTmkdir, uint32(1), "dir", uint32(0o700), uint32(0))
	c.want(linuxEINVAL, msgTmknod, uint32(1), "odd", uint32(typeDir|0o700), uint32(0), uint32(0), uint32(0))
}

func TestWriteByOtherThanRootClearsSetuid(t *testing.T) {
	needRoot(t)
	tree, dir := serveDir(t, Options{})
	c := mount(t, tree)
	c.attach(1, 1000)
	f := c.create(1, "prog", openReadWrite, 0o6775, 1000)
	root := c.open(c.walk(0, "prog"), openWriteOnly)
	c.write(root, 0, "x")
	if m := hostAttr(t, dir, "prog").mode; m&modeBits != 0o6775 {
		t.Errorf("after root's write: %o", m)
	}
	c.write(f, 0, "y")
	if m := hostAttr(t, dir, "prog").mode; m&modeBits != 0o775 {
		t.Errorf("after the user's write: %o", m)
	}
}

func TestReadWrite(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	c := mount(t, tree)
	f := c.create(0, "f", openReadWrite, 0o644, 0)
	c.write(f, 0, "hello")
	const far = 5<<30 + 17
	c.write(f, far, "world")
	if got := c.read(f, far-3, 100); string(got) != "\x00\x00\x00world" {
		t.Errorf("read %q", got)
	}
	if got := c.read(f, far+5, 10); len(got) != 0 {
		t.Errorf("read %q at the end", got)
	}
	a := hostAttr(t, dir, "f")
	if a.size != far+5 || a.blocks*512 > 1<<20 {
		t.Errorf("%d bytes in %d blocks", a.size, a.blocks)
	}
	if st := c.stat(f); st.size != far+5 {
		t.Errorf("size %d", st.size)
	}
	c.ok(msgTfsync, f, uint32(0))
	c.ok(msgTfsync, f, uint32(1))

	c.want(linuxEINVAL, msgTread, f, uint64(math.MaxUint64), uint32(10))
	c.want(linuxEFBIG, msgTwrite, f, uint64(math.MaxInt64), uint32(1), []byte{1})
	if got := c.read(f, 0, math.MaxUint32); len(got) != maxMsize-dataHeaderSize {
		t.Errorf("a read of everything gave %d bytes", len(got))
	}
	// Through a second fid, to the largest message.
	g := c.open(c.walk(0, "f"), openWriteOnly)
	big := bytes.Repeat([]byte("0123456789abcdef"), (maxMsize-ioHeaderSize)/16)
	c.write(g, 0, string(big))
	if got := c.read(f, 0, maxMsize-dataHeaderSize); !bytes.Equal(got[:len(big)], big) {
		t.Error("what was written was not read")
	}
	c.want(linuxEBADF, msgTread, g, uint64(0), uint32(1))
}

func TestOpenFlags(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	writeFile(t, "0123456789", dir, "f")
	c := mount(t, tree)
	f := c.open(c.walk(0, "f"), openWriteOnly|openAppend)
	c.write(f, 0, "AB")
	if got, _ := os.ReadFile(filepath.Join(dir, "f")); string(got) != "0123456789AB" {
		t.Errorf("after appending: %q", got)
	}
	c.open(c.walk(0, "f"), openWriteOnly|openTruncate)
	if a := hostAttr(t, dir, "f"); a.size != 0 {
		t.Errorf("O_TRUNC left %d bytes", a.size)
	}
	read := c.open(c.walk(0, "f"), 0)
	c.want(linuxEBADF, msgTwrite, read, uint64(0), uint32(1), []byte{1})
	c.want(linuxEBADF, msgTlopen, read, uint32(0))
	c.want(linuxEINVAL, msgTlopen, c.walk(0, "f"), uint32(3))
	c.want(linuxENOTDIR, msgTlopen, c.walk(0, "f"), uint32(openDirectory))
	c.want(linuxEISDIR, msgTlopen, c.walk(0), uint32(openReadWrite))
	d := c.open(c.walk(0), openDirectory)
	c.want(linuxEISDIR, msgTread, d, uint64(0), uint32(10))
	c.want(linuxEBADF, msgTwrite, d, uint64(0), uint32(1), []byte{1})
	c.want(linuxENOTDIR, msgTreaddir, read, uint64(0), uint32(100))

	// Create: existing files are opened unless O_EXCL forbids it, and never
	// anything that is not a regular file.
	writeFile(t, "there", dir, "old")
	if got := c.read(c.create(0, "old", openReadWrite, 0o600, 0), 0, 10); string(got) != "there" {
		t.Errorf("opened %q", got)
	}
	if m := hostAttr(t, dir, "old").mode; m&modeBits != 0o644 {
		t.Errorf("opening by create changed the mode to %o", m)
	}
	c.want(linuxEEXIST, msgTlcreate, c.walk(0), "old", uint32(openExclusive), uint32(0o600), uint32(0))
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for name, e := range map[string]errno{"fifo": linuxENXIO, "link": linuxELOOP} {
		c.want(e, msgTlcreate, c.walk(0), name, uint32(openReadWrite), uint32(0o600), uint32(0))
		c.want(e, msgTlopen, c.walk(0, name), uint32(openReadWrite))
	}
	c.want(linuxEINVAL, msgTlcreate, c.walk(0), "new", uint32(3), uint32(0o600), uint32(0))
}

func TestDevicesAreNotOpened(t *testing.T) {
	needRoot(t)
	tree, _ := serveDir(t, Options{})
	c := mount(t, tree)
	// /dev/zero, which would be easy to notice.
	c.ok(msgTmknod, uint32(0), "zero", uint32(typeChar|0o666), uint32(1), uint32(5), uint32(0))
	for _, flags := range []uint32{0, openWriteOnly, openReadWrite, openTruncate} {
		c.want(linuxENXIO, msgTlopen, c.walk(0, "zero"), flags)
	}
	c.want(linuxENXIO, msgTlcreate, c.walk(0), "zero", uint32(0), uint32(0o600), uint32(0))
	c.setattr(linuxEINVAL, c.walk(0, "zero"), setSize, 0, 0, 0, 0, timespec{}, timespec{})
}

func TestUnlinkAndRenameWhileOpen(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	c := mount(t, tree)
	f := c.create(0, "a", openReadWrite, 0o644, 0)
	c.write(f, 0, "one")
	g := c.create(0, "b", openReadWrite, 0o644, 0)
	c.write(g, 0, "two")

	c.ok(msgTrenameat, uint32(0), "a", uint32(0), "b")
	if got := c.read(g, 0, 10); string(got) != "two" {
		t.Errorf("the file renamed over reads %q", got)
	}
	if st := c.stat(g); st.nlink != 0 {
		t.Errorf("the file renamed over has %d links", st.nlink)
	}
	c.ok(msgTunlinkat, uint32(0), "b", uint32(0))
	c.write(f, 3, "!")
	if got := c.read(f, 0, 10); string(got) != "one!" {
		t.Errorf("the removed file reads %q", got)
	}
	c.setattr(0, f, setSize|setMode, 0o600, 0, 0, 2, timespec{}, timespec{})
	if st := c.stat(f); st.size != 2 || st.mode&modeBits != 0o600 {
		t.Errorf("the removed file has size %d, mode %o", st.size, st.mode)
	}
	// An unopened fid of a removed file still can be opened.
	h := c.create(0, "c", openReadWrite, 0o644, 0)
	c.write(h, 0, "three")
	clone := c.walk(h)
	c.ok(msgTunlinkat, uint32(0), "c", uint32(0))
	if got := c.read(c.open(clone, 0), 0, 10); string(got) != "three" {
		t.Errorf("a clone of the removed file reads %q", got)
	}

	// A directory moves, with fids inside.
	c.ok(msgTmkdir, uint32(0), "d", uint32(0o755), uint32(0))
	d := c.walk(0, "d")
	in := c.create(d, "in", openReadWrite, 0o644, 0)
	c.ok(msgTmkdir, uint32(0), "e", uint32(0o755), uint32(0))
	c.ok(msgTrenameat, uint32(0), "d", c.walk(0, "e"), "f")
	c.write(in, 0, "moved")
	c.create(d, "new", openReadWrite, 0o644, 0)
	for _, name := range []string{"in", "new"} {
		if _, err := os.Stat(filepath.Join(dir, "e", "f", name)); err != nil {
			t.Error(err)
		}
	}
	c.want(39, msgTunlinkat, c.walk(0, "e"), "f", uint32(unlinkRemoveDir))
	c.want(linuxEISDIR, msgTunlinkat, c.walk(0, "e"), "f", uint32(0))
	c.want(linuxEINVAL, msgTunlinkat, c.walk(0, "e"), "f", uint32(1))
}

func TestHardLinks(t *testing.T) {
	needRoot(t)
	tree, dir := serveDir(t, Options{})
	writeFile(t, "x", dir, "a")
	if err := os.Symlink("/etc/shadow", filepath.Join(dir, "s")); err != nil {
		t.Fatal(err)
	}
	c := mount(t, tree)
	c.ok(msgTlink, uint32(0), c.walk(0, "a"), "b")
	// A symbolic link itself, not what it points to.
	c.ok(msgTlink, uint32(0), c.walk(0, "s"), "s2")
	a, b := c.stat(c.walk(0, "a")), c.stat(c.walk(0, "b"))
	if a.qid != b.qid || a.nlink != 2 {
		t.Errorf("%+v and %+v", a, b)
	}
	if m := hostAttr(t, dir, "s2").mode; m&typeMask != typeSymlink {
		t.Errorf("the linked symbolic link has mode %o", m)
	}
	c.want(linuxEEXIST, msgTlink, uint32(0), c.walk(0, "a"), "b")
	c.want(1, msgTlink, uint32(0), c.walk(0), "dir")
}

func TestQidsAreStable(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	writeFile(t, "x", dir, "a")
	c := mount(t, tree)
	before := c.stat(c.walk(0, "a")).qid
	f := c.open(c.walk(0, "a"), openReadWrite)
	c.write(f, 0, "changed")
	c.setattr(0, f, setMode, 0o600, 0, 0, 0, timespec{}, timespec{})
	c.ok(msgTrenameat, uint32(0), "a", uint32(0), "b")
	if after := c.stat(c.walk(0, "b")).qid; after != before {
		t.Errorf("%+v became %+v", before, after)
	}
	if other := c.stat(c.create(0, "a", openReadWrite, 0o644, 0)).qid; other == before {
		t.Errorf("two files with qid %+v", other)
	}
}

func TestSetattr(t *testing.T) {
	needRoot(t)
	tree, dir := serveDir(t, Options{})
	writeFile(t, "0123456789", dir, "f")
	if err := os.Symlink("nowhere", filepath.Join(dir, "s")); err != nil {
		t.Fatal(err)
	}
	c := mount(t, tree)
	f := c.walk(0, "f")
	c.setattr(0, f, setMode|setUID|setGID, 0o4711, 12, 34, 0, timespec{}, timespec{})
	if st := c.stat(f); st.mode != typeRegular|0o4711 || st.uid != 12 || st.gid != 34 {
		t.Errorf("%+v", st)
	}
	c.setattr(0, f, setSize, 0, 0, 0, 4, timespec{}, timespec{})
	c.setattr(0, f, setAtime|setAtimeTo|setMtime|setMtimeTo, 0, 0, 0, 0, timespec{1, 2}, timespec{-3, 4})
	if st := c.stat(f); st.size != 4 || st.atime != (timespec{1, 2}) || st.mtime != (timespec{-3, 4}) {
		t.Errorf("%+v", st)
	}
	c.setattr(0, f, setMtime, 0, 0, 0, 0, timespec{}, timespec{9, 9})
	if st := c.stat(f); st.atime != (timespec{1, 2}) || st.mtime.sec < 1e9 {
		t.Errorf("now: %+v", st)
	}
	c.setattr(linuxEINVAL, f, setMtime|setMtimeTo, 0, 0, 0, 0, timespec{}, timespec{1, 1<<30 - 1})
	c.setattr(linuxEFBIG, f, setSize, 0, 0, 0, math.MaxUint64, timespec{}, timespec{})

	// Symbolic links are changed themselves.
	s := c.walk(0, "s")
	c.setattr(0, s, setUID|setMtime|setMtimeTo, 0, 5, 0, 0, timespec{}, timespec{7, 0})
	if st := c.stat(s); st.uid != 5 || st.mtime.sec != 7 {
		t.Errorf("%+v", st)
	}
	c.setattr(linuxEOPNOTSUPP, s, setMode, 0o600, 0, 0, 0, timespec{}, timespec{})
	c.setattr(linuxEINVAL, s, setSize, 0, 0, 0, 0, timespec{}, timespec{})
	c.setattr(linuxEISDIR, c.walk(0), setSize, 0, 0, 0, 0, timespec{}, timespec{})
}

func TestStatfs(t *testing.T) {
	tree, _ := serveDir(t, Options{})
	c := mount(t, tree)
	d := c.ok(msgTstatfs, uint32(0))
	if typ, bsize, blocks := d.u32(), d.u32(), d.u64(); typ != v9fsMagic || bsize == 0 || blocks == 0 {
		t.Errorf("type %#x, %d blocks of %d", typ, blocks, bsize)
	}
	d.take(5 * 8)
	if n := d.u32(); n != maxName || d.done() != nil {
		t.Errorf("namelen %d", n)
	}
}

// TestReaddirWhileDeleting removes what has been read before reading on, as rm
// does, with replies large and small.
func TestReaddirWhileDeleting(t *testing.T) {
	for count, files := range map[uint32]int{maxMsize: 10_000, 4096: 1000, 300: 500} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			tree, dir := serveDir(t, Options{})
			for i := range files {
				writeFile(t, "", dir, fmt.Sprintf("file-%05d-%s", i, "xxxxxxxxxxxxxxxxxx"[:i%18]))
			}
			c := mount(t, tree)
			d := c.open(c.walk(0), openDirectory)
			seen := make(map[string]bool)
			for offset := uint64(0); ; {
				entries := c.readdir(d, offset, count)
				if len(entries) == 0 {
					break
				}
				for _, e := range entries {
					if seen[e.name] {
						t.Fatalf("%s came twice", e.name)
					}
					seen[e.name] = true
					offset = e.next
					if e.name != "." && e.name != ".." {
						c.ok(msgTunlinkat, uint32(0), e.name, uint32(0))
					}
				}
			}
			if len(seen) != files+2 {
				t.Errorf("%d entries, want %d", len(seen), files+2)
			}
			c.want(linuxENOENT, msgTunlinkat, uint32(0), "file-00000-", uint32(0))
		})
	}
}

func TestReaddirRewindAndResume(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	for i := range 100 {
		writeFile(t, "", dir, fmt.Sprint(i))
	}
	c := mount(t, tree)
	d := c.open(c.walk(0), openDirectory)
	all := c.readdir(d, 0, maxMsize)
	if len(all) != 102 {
		t.Fatalf("%d entries", len(all))
	}
	for _, e := range all {
		switch e.name {
		case ".", "..":
			if e.qid.path != c.stat(0).qid.path || e.typ != dirTypeDir {
				t.Errorf("%s at the root is %+v", e.name, e)
			}
		default:
			if e.qid.path != c.stat(c.walk(0, e.name)).qid.path {
				t.Errorf("%s: inode numbers differ", e.name)
			}
		}
	}
	again := c.readdir(d, all[40].next, maxMsize)
	if len(again) != 61 || again[0].name != all[41].name {
		t.Errorf("from the middle: %d entries, the first is %s", len(again), again[0].name)
	}
	c.want(linuxEINVAL, msgTreaddir, d, uint64(0), uint32(direntOverhead))
	c.want(linuxEINVAL, msgTreaddir, d, uint64(math.MaxUint64), uint32(1000))
	if got := c.readdir(d, 0, maxMsize); len(got) != 102 {
		t.Errorf("after errors: %d entries", len(got))
	}
}
