package ninep

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

func (c *client) getXattr(fid uint32, name string) []byte {
	c.t.Helper()
	x := c.newFid()
	size := c.ok(msgTxattrwalk, fid, x, name).u64()
	value := c.read(x, 0, maxMsize)
	if uint64(len(value)) != size {
		c.t.Errorf("%s: announced %d bytes, read %d", name, size, len(value))
	}
	c.clunk(x)
	return value
}

// setXattr returns how the clunk was answered.
func (c *client) setXattr(fid uint32, name, value string, flags uint32) error {
	c.t.Helper()
	x := c.walk(fid)
	c.ok(msgTxattrcreate, x, name, uint64(len(value)), flags)
	for offset := 0; offset < len(value); {
		part := value[offset:min(len(value), offset+10_000)]
		c.write(x, uint64(offset), part)
		offset += len(part)
	}
	_, err := c.call(msgTclunk, x)
	return err
}

func TestXattrs(t *testing.T) {
	needRoot(t)
	tree, dir := serveDir(t, Options{})
	writeFile(t, "", dir, "f")
	c := mount(t, tree)
	f := c.walk(0, "f")
	// What exec asks for.
	c.want(linuxENODATA, msgTxattrwalk, f, c.newFid(), "security.capability")
	c.want(linuxENODATA, msgTxattrwalk, f, c.newFid(), "user.none")
	c.want(linuxEOPNOTSUPP, msgTxattrwalk, f, c.newFid(), "unheard.of")
	for name, value := range map[string]string{
		"user.a": "1", "trusted.b": "two", "security.c": "\x00\x01", "user.empty": "",
		"user.long": strings.Repeat("v", 3000),
	} {
		if err := c.setXattr(f, name, value, 0); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := c.getXattr(f, name); string(got) != value {
			t.Errorf("%s: %q", name, got)
		}
	}
	list := string(c.getXattr(f, ""))
	for _, name := range []string{"user.a", "trusted.b", "security.c", "user.empty", "user.long"} {
		if !strings.Contains("\x00"+list, "\x00"+name+"\x00") {
			t.Errorf("%s is not in %q", name, list)
		}
	}
	if got := c.readXattrPart(f, "user.long", 2990, 100); len(got) != 10 {
		t.Errorf("%d bytes at the end of a value", len(got))
	}

	if err := c.setXattr(f, "user.a", "x", xattrCreate); err != linuxEEXIST {
		t.Errorf("create of an existing one: %v", err)
	}
	if err := c.setXattr(f, "user.new", "x", xattrReplace); err != linuxENODATA {
		t.Errorf("replace of a missing one: %v", err)
	}
	// Removal is an empty replacement.
	if err := c.setXattr(f, "user.a", "", xattrReplace); err != nil {
		t.Errorf("remove: %v", err)
	}
	c.want(linuxENODATA, msgTxattrwalk, f, c.newFid(), "user.a")
	if err := c.setXattr(f, "user.a", "", xattrReplace); err != linuxENODATA {
		t.Errorf("remove again: %v", err)
	}
	for _, name := range []string{"trusted.overlay.opaque", "security.selinux", "security.SMACK64EXEC", "security.ima", "security.evm"} {
		c.want(linuxEOPNOTSUPP, msgTxattrcreate, c.walk(f), name, uint64(1), uint32(0))
	}
	fd, err := hostOpenRoot(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer closeFD(fd)
	if got, err := hostGetXattr(fd, typeRegular, "trusted.b"); err != nil || !bytes.Equal(got, []byte("two")) {
		t.Errorf("on the host: %q, %v", got, err)
	}
}

func (c *client) readXattrPart(fid uint32, name string, offset uint64, count uint32) []byte {
	c.t.Helper()
	x := c.newFid()
	c.ok(msgTxattrwalk, fid, x, name)
	defer c.clunk(x)
	return c.read(x, offset, count)
}

func TestXattrFidsAreNothingElse(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	writeFile(t, "content", dir, "f")
	c := mount(t, tree)
	f := c.walk(0, "f")
	x := c.walk(f)
	c.ok(msgTxattrcreate, x, "user.x", uint64(4), uint32(0))
	c.want(linuxEBADF, msgTread, x, uint64(0), uint32(4))
	c.want(linuxEBADF, msgTlopen, x, uint32(0))
	c.want(linuxEBADF, msgTgetattr, x, uint64(statsBasic))
	c.want(linuxEBADF, msgTwalk, walkFields(x, c.newFid()))
	c.want(linuxEBADF, msgTxattrcreate, x, "user.x", uint64(4), uint32(0))
	c.want(linuxEINVAL, msgTwrite, x, uint64(1), uint32(1), []byte("a"))
	c.want(linuxEINVAL, msgTwrite, x, uint64(0), uint32(5), []byte("abcde"))
	c.write(x, 0, "ab")
	c.want(linuxEINVAL, msgTclunk, x) // incomplete
	c.want(linuxEBADF, msgTclunk, x)  // gone all the same
	c.want(linuxENODATA, msgTxattrwalk, f, c.newFid(), "user.x")

	list := c.newFid()
	c.ok(msgTxattrwalk, f, list, "")
	c.want(linuxEBADF, msgTwrite, list, uint64(0), uint32(1), []byte("a"))
	c.want(linuxEBADF, msgTreaddir, list, uint64(0), uint32(100))
	if got := c.read(list, 1<<62, 10); len(got) != 0 {
		t.Errorf("%q", got)
	}
	c.want(linuxE2BIG, msgTxattrcreate, c.walk(f), "user.x", uint64(1<<63), uint32(0))
	c.want(linuxEINVAL, msgTxattrcreate, c.walk(f), "", uint64(1), uint32(0))
	c.want(linuxEINVAL, msgTxattrcreate, c.walk(f), "user.x", uint64(1), uint32(8))
	c.want(linuxEBADF, msgTxattrcreate, c.open(c.walk(f), 0), "user.x", uint64(1), uint32(0))
}

func TestXattrMemoryIsBounded(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	writeFile(t, "", dir, "f")
	c := mount(t, tree)
	var fids []uint32
	for range maxXattrBytes / maxXattrSize {
		x := c.walk(0, "f")
		c.ok(msgTxattrcreate, x, "user.x", uint64(maxXattrSize), uint32(0))
		fids = append(fids, x)
	}
	c.want(linuxENOMEM, msgTxattrcreate, c.walk(0, "f"), "user.x", uint64(1), uint32(0))
	c.want(linuxEINVAL, msgTclunk, fids[0])
	c.ok(msgTxattrcreate, c.walk(0, "f"), "user.x", uint64(maxXattrSize), uint32(0))
}
