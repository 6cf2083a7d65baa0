package ninep

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestDescriptorsAreBounded refers to more files than there may be descriptors
// for, and uses all of them.
func TestDescriptorsAreBounded(t *testing.T) {
	const budget, files = 8, 300
	tree, dir := serveDir(t, Options{MaxPinned: budget})
	c := mount(t, tree)
	before := openDescriptors(t)
	c.ok(msgTmkdir, uint32(0), "d", uint32(0o755), uint32(0))
	d := c.walk(0, "d")
	var fids []uint32
	for i := range files {
		name := fmt.Sprint(i)
		writeFile(t, name, dir, "d", name)
		fids = append(fids, c.walk(d, name))
	}
	if n := openDescriptors(t) - before; n > budget {
		t.Errorf("%d descriptors", n)
	}
	c.ok(msgTrenameat, uint32(0), "d", uint32(0), "moved")
	for i, fid := range fids {
		if got := c.read(c.open(c.walk(fid), 0), 0, 10); string(got) != fmt.Sprint(i) {
			t.Fatalf("file %d reads %q", i, got)
		}
	}
	if n := openDescriptors(t) - before; n > files+budget {
		t.Errorf("%d descriptors for %d open files", n, files)
	}
}

// TestNamesAreFollowed renames and removes entries whose nodes have no
// descriptor at that time.
func TestNamesAreFollowed(t *testing.T) {
	tree, dir := serveDir(t, Options{MaxPinned: 1})
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		writeFile(t, name, dir, name)
	}
	if err := os.MkdirAll(filepath.Join(dir, "x", "y"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, "deep", dir, "x", "y", "f")
	c := mount(t, tree)
	a, b, cc, d, e := c.walk(0, "a"), c.walk(0, "b"), c.walk(0, "c"), c.walk(0, "d"), c.walk(0, "e")
	x, y, f := c.walk(0, "x"), c.walk(0, "x", "y"), c.walk(0, "x", "y", "f")
	content := func(fid uint32, want string) {
		t.Helper()
		if got := c.read(c.open(c.walk(fid), 0), 0, 100); string(got) != want {
			t.Errorf("read %q, want %q", got, want)
		}
	}
	c.ok(msgTrenameat, uint32(0), "a", x, "a2")           // moved
	c.ok(msgTrenameat, uint32(0), "b", uint32(0), "c")    // over another
	c.ok(msgTunlinkat, uint32(0), "d", uint32(0))         // removed
	c.ok(msgTrenameat, uint32(0), "e", uint32(0), "e")    // to itself
	c.ok(msgTrenameat, x, "y", uint32(0), "y2")           // a directory
	c.ok(msgTrenameat, uint32(0), "y2", uint32(0), "y3")  // twice
	c.create(0, "d", openReadWrite, 0o644, 0)             // another of the same name
	c.ok(msgTrenameat, uint32(0), "d", uint32(0), "dnew") // which must not take the old one along
	content(a, "a")
	content(b, "b")
	content(cc, "c")
	content(d, "d")
	content(e, "e")
	content(f, "deep")
	if got, want := c.stat(y).qid, c.stat(c.walk(0, "y3")).qid; got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if st := c.stat(d); st.nlink != 0 {
		t.Errorf("the removed file has %d links", st.nlink)
	}
}

// TestStaleAfterForeignRename replaces a file on the host while its node has
// no descriptor. The client must be told, rather than be given another file.
func TestStaleAfterForeignRename(t *testing.T) {
	tree, dir := serveDir(t, Options{MaxPinned: 1})
	outside := writeFile(t, "secret", t.TempDir(), "secret")
	at := func(name string) string { return filepath.Join(dir, name) }
	writeFile(t, "a", dir, "a")
	writeFile(t, "b", dir, "b")
	writeFile(t, "c", dir, "c")
	c := mount(t, tree)
	a, b, last := c.walk(0, "a"), c.walk(0, "b"), c.walk(0, "c")
	c.stat(last) // takes the only descriptor
	if err := os.Rename(at("b"), at("a")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, at("b")); err != nil {
		t.Fatal(err)
	}
	for _, fid := range []uint32{a, b} {
		c.want(linuxESTALE, msgTlopen, fid, uint32(openReadWrite))
		c.want(linuxESTALE, msgTgetattr, fid, uint64(statsBasic))
	}
	c.clunk(a)
	c.clunk(b)
	if got := c.read(c.open(c.walk(0, "a"), 0), 0, 10); string(got) != "b" {
		t.Errorf("read %q", got)
	}
}

func TestFidsAreBounded(t *testing.T) {
	tree, dir := serveDir(t, Options{MaxFids: 10})
	writeFile(t, "", dir, "f")
	c := mount(t, tree)
	var last uint32
	for range 9 {
		last = c.walk(0, "f")
	}
	c.want(linuxENFILE, msgTwalk, walkFields(0, c.newFid(), "f"))
	c.want(linuxENFILE, msgTwalk, walkFields(0, c.newFid()))
	c.want(linuxENFILE, msgTattach, c.newFid(), noFid, "", "", uint32(5))
	c.clunk(last)
	c.walk(0, "f")
}
