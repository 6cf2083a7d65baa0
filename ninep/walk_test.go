package ninep

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// hostileNames are no names of directory entries; ".." is one for walking.
var hostileNames = map[string]errno{
	"":                       linuxEINVAL,
	".":                      linuxEINVAL,
	"a/b":                    linuxEINVAL,
	"/etc/passwd":            linuxEINVAL,
	"../x":                   linuxEINVAL,
	"x/":                     linuxEINVAL,
	"a\x00b":                 linuxEINVAL,
	strings.Repeat("x", 256): linuxENAMETOOLONG,
	"missing":                linuxENOENT,
}

func TestWalkRefusesWhatIsNoName(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := mount(t, tree)
	for name, e := range hostileNames {
		c.want(e, msgTwalk, walkFields(0, c.newFid(), name))
	}
}

func TestEveryOperationRefusesWhatIsNoName(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	outside := writeFile(t, "secret", t.TempDir(), "outside")
	writeFile(t, "x", dir, "file")
	c := mount(t, tree)
	file := c.walk(0, "file")
	names := []string{"", ".", "..", "a/b", "../x", outside, "a\x00", strings.Repeat("x", 256)}
	for _, name := range names {
		e := linuxEINVAL
		if len(name) > maxName {
			e = linuxENAMETOOLONG
		}
		c.want(e, msgTlcreate, c.walk(0), name, uint32(openReadWrite), uint32(0o600), uint32(0))
		c.want(e, msgTmkdir, uint32(0), name, uint32(0o700), uint32(0))
		c.want(e, msgTsymlink, uint32(0), name, "target", uint32(0))
		c.want(e, msgTmknod, uint32(0), name, uint32(typeFifo), uint32(0), uint32(0), uint32(0))
		c.want(e, msgTlink, uint32(0), file, name)
		c.want(e, msgTunlinkat, uint32(0), name, uint32(0))
		c.want(e, msgTunlinkat, uint32(0), name, uint32(unlinkRemoveDir))
		c.want(e, msgTrenameat, uint32(0), name, uint32(0), "new")
		c.want(e, msgTrenameat, uint32(0), "file", uint32(0), name)
	}
	if b, err := os.ReadFile(outside); err != nil || string(b) != "secret" {
		t.Errorf("the file outside: %q, %v", b, err)
	}
	c.want(linuxEINVAL, msgTsymlink, uint32(0), "link", "a\x00b", uint32(0))
	c.want(linuxENOENT, msgTsymlink, uint32(0), "link", "", uint32(0))
}

func TestWalkNeverFollowsSymlinks(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	outside := t.TempDir()
	writeFile(t, "secret", outside, "f")
	for name, target := range map[string]string{"abs": outside, "rel": "../..", "self": ".", "file": filepath.Join(outside, "f")} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		c := mount(t, tree)
		link := c.walk(0, name)
		if st := c.stat(link); st.mode&typeMask != typeSymlink || st.qid.typ != qidSymlink {
			t.Errorf("%s: %+v", name, st)
		}
		c.want(linuxENOTDIR, msgTwalk, walkFields(link, c.newFid(), "f"))
		c.want(linuxENOTDIR, msgTwalk, walkFields(link, c.newFid(), ".."))
		c.want(linuxELOOP, msgTlopen, link, uint32(0))
		c.want(linuxENOTDIR, msgTmkdir, link, "d", uint32(0o700), uint32(0))
		c.want(linuxENOTDIR, msgTunlinkat, link, "f", uint32(0))
		// How far a walk got says that the link was not passed.
		d := c.ok(msgTwalk, walkFields(0, c.newFid(), name, "f"))
		if n := d.u16(); n != 1 {
			t.Errorf("walk through %s: %d names", name, n)
		}
	}
}

func TestPartialWalkLeavesNewFidUnused(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := mount(t, tree)
	fid := c.newFid()
	if n := c.ok(msgTwalk, walkFields(0, fid, "a", "b", "missing", "x")).u16(); n != 2 {
		t.Errorf("walked %d names", n)
	}
	c.want(linuxEBADF, msgTgetattr, fid, uint64(statsBasic))
	c.ok(msgTwalk, walkFields(0, fid, "a"))
	c.want(linuxEBADF, msgTwalk, walkFields(0, fid, "a")) // in use
	c.want(linuxEBADF, msgTwalk, walkFields(77, c.newFid(), "a"))
	c.want(linuxEBADF, msgTwalk, walkFields(0, noFid))
	// A fid may move itself, unless it is open.
	c.ok(msgTwalk, walkFields(fid, fid, "b"))
	if got, want := c.stat(fid).qid, c.stat(c.walk(0, "a", "b")).qid; got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	c.open(fid, 0)
	c.want(linuxEBADF, msgTwalk, walkFields(fid, fid, ".."))
	// More names than the protocol has room for end the session.
	if _, err := c.call(msgTwalk, walkFields(0, c.newFid(), strings.Split(strings.Repeat("a ", 17), " ")...)); err == nil {
		t.Error("17 names were walked")
	}
}

func TestParentIsClampedAtTheRoot(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := mount(t, tree)
	root, a := c.stat(0).qid, c.stat(c.walk(0, "a")).qid
	for _, names := range [][]string{{".."}, {"..", "..", ".."}, {"a", "..", ".."}, {"a", "b", "..", "..", "..", ".."}} {
		if got := c.stat(c.walk(0, names...)).qid; got != root {
			t.Errorf("%q leads to %+v, not to the root %+v", names, got, root)
		}
	}
	if got := c.stat(c.walk(0, "a", "b", "..")).qid; got != a {
		t.Errorf("a/b/.. is %+v, want %+v", got, a)
	}
	// The client's own renames are followed.
	b := c.walk(0, "a", "b")
	c.ok(msgTrenameat, c.walk(0, "a"), "b", uint32(0), "c")
	if got := c.stat(c.walk(b, "..")).qid; got != root {
		t.Errorf("after a rename, .. is %+v, want %+v", got, root)
	}
}

// TestParentAfterHostRename moves a directory out of the tree while the client
// has a fid in it: that must open no way to what is around it there.
func TestParentAfterHostRename(t *testing.T) {
	tree, dir := serveDir(t, Options{MaxPinned: 100})
	if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	writeFile(t, "secret", outside, "secret")
	c := mount(t, tree)
	b := c.walk(0, "a", "b")
	if err := os.Rename(filepath.Join(dir, "a", "b"), filepath.Join(outside, "b")); err != nil {
		t.Fatal(err)
	}
	c.want(linuxESTALE, msgTwalk, walkFields(b, c.newFid(), ".."))
	c.want(linuxESTALE, msgTwalk, walkFields(b, c.newFid(), "..", "secret"))
	if got := c.readdir(c.open(b, 0), 0, 4096); len(got) != 2 {
		t.Errorf("%d entries", len(got))
	}
}

// TestSymlinkSwappedDuringWalk replaces a directory by a symbolic link to the
// outside and back while the client walks through it and creates in it.
func TestSymlinkSwappedDuringWalk(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	outside := t.TempDir()
	writeFile(t, "secret", outside, "f")
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := os.Mkdir(at("real"), 0o755); err != nil {
		t.Fatal(err)
	}
	writeFile(t, "harmless", dir, "real", "f")
	if err := os.Symlink(outside, at("evil")); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Add(1)
	go func() {
		defer swapper.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, step := range [][2]string{{"real", "d"}, {"d", "real"}, {"evil", "d"}, {"d", "evil"}} {
				_ = os.Rename(at(step[0]), at(step[1]))
			}
		}
	}()
	defer swapper.Wait()
	defer close(stop)

	c := mount(t, tree)
	for i := range 2000 {
		fid := c.newFid()
		d, err := c.call(msgTwalk, walkFields(0, fid, "d", "f"))
		if err == nil && d.u16() == 2 {
			if _, err := c.call(msgTlopen, fid, uint32(openReadWrite)); err == nil {
				if got := c.read(fid, 0, 100); !bytes.Equal(got, []byte("harmless")) {
					t.Fatalf("read %q", got)
				}
			}
			c.clunk(fid)
		}
		dirFid := c.newFid()
		if d, err := c.call(msgTwalk, walkFields(0, dirFid, "d")); err == nil && d.u16() == 1 {
			// It may fail, but not succeed outside.
			_, _ = c.call(msgTlcreate, dirFid, fmt.Sprint("new", i), uint32(openReadWrite), uint32(0o600), uint32(0))
			c.clunk(dirFid)
		}
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 1 {
		t.Errorf("outside there are %v, %v", left, err)
	}
}

func TestSingleFile(t *testing.T) {
	dir := t.TempDir()
	name := writeFile(t, "content", dir, "config")
	writeFile(t, "secret", dir, "neighbour")
	tree := serveAt(t, name, SingleFile, Options{})
	c := mount(t, tree)
	entries := c.readdir(c.open(c.walk(0), 0), 0, 4096)
	if len(entries) != 3 || entries[2].name != "config" || entries[2].typ != 8 {
		t.Errorf("%+v", entries)
	}
	if got := c.readdir(c.open(c.walk(0), 0), entries[1].next, 4096); len(got) != 1 {
		t.Errorf("from the third: %+v", got)
	}
	if st := c.stat(0); st.mode != typeDir|0o555 || st.qid.typ != qidDir {
		t.Errorf("%+v", st)
	}
	c.want(linuxENOENT, msgTwalk, walkFields(0, c.newFid(), "neighbour"))
	c.want(linuxENOTDIR, msgTwalk, walkFields(c.walk(0, "config"), c.newFid(), ".."))
	if got, want := c.stat(c.walk(0, "..")).qid, c.stat(0).qid; got != want {
		t.Errorf(".. is %+v", got)
	}
	c.ok(msgTstatfs, uint32(0))
	c.want(linuxEROFS, msgTunlinkat, uint32(0), "config", uint32(0))
	c.want(linuxEROFS, msgTrenameat, uint32(0), "config", uint32(0), "x")
	c.want(linuxEROFS, msgTlcreate, c.walk(0), "new", uint32(0), uint32(0o600), uint32(0))
	c.want(linuxEROFS, msgTlink, uint32(0), c.walk(0, "config"), "x")
	c.setattr(linuxEROFS, 0, setMode, 0o777, 0, 0, 0, timespec{}, timespec{})
	c.want(linuxEOPNOTSUPP, msgTxattrwalk, uint32(0), c.newFid(), "")
	c.want(linuxEROFS, msgTxattrcreate, c.walk(0), "user.x", uint64(1), uint32(0))
	c.ok(msgTfsync, c.open(c.walk(0), 0), uint32(0))

	// The file itself can be written, and stays the same one.
	if err := os.Rename(name, filepath.Join(dir, "moved")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, "other", dir, "config")
	f := c.open(c.walk(0, "config"), openReadWrite)
	c.write(f, 0, "CON")
	if b, _ := os.ReadFile(filepath.Join(dir, "moved")); string(b) != "CONtent" {
		t.Errorf("the file has %q", b)
	}
}

func TestReadOnly(t *testing.T) {
	tree, dir := serveDir(t, Options{ReadOnly: true})
	writeFile(t, "content", dir, "f")
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	c := mount(t, tree)
	f := c.walk(0, "f")
	if got := c.read(c.open(c.walk(f), 0), 0, 100); string(got) != "content" {
		t.Errorf("read %q", got)
	}
	for _, flags := range []uint32{openWriteOnly, openReadWrite, openTruncate, openWriteOnly | openAppend} {
		c.want(linuxEROFS, msgTlopen, f, flags)
	}
	c.want(linuxEROFS, msgTlcreate, c.walk(0), "new", uint32(0), uint32(0o600), uint32(0))
	c.want(linuxEROFS, msgTmkdir, uint32(0), "new", uint32(0o700), uint32(0))
	c.want(linuxEROFS, msgTsymlink, uint32(0), "new", "x", uint32(0))
	c.want(linuxEROFS, msgTmknod, uint32(0), "new", uint32(typeFifo), uint32(0), uint32(0), uint32(0))
	c.want(linuxEROFS, msgTlink, uint32(0), f, "new")
	c.want(linuxEROFS, msgTrenameat, uint32(0), "f", uint32(0), "new")
	c.want(linuxEROFS, msgTunlinkat, uint32(0), "f", uint32(0))
	c.want(linuxEROFS, msgTunlinkat, uint32(0), "d", uint32(unlinkRemoveDir))
	c.want(linuxEROFS, msgTxattrcreate, c.walk(f), "user.x", uint64(1), uint32(0))
	c.want(linuxEROFS, msgTxattrcreate, c.walk(f), "user.x", uint64(0), uint32(xattrReplace))
	for _, valid := range []uint32{setMode, setUID, setGID, setSize, setAtime, setMtime, 0} {
		c.setattr(linuxEROFS, f, valid, 0o600, 1, 1, 0, timespec{}, timespec{})
	}
	if names, _ := os.ReadDir(dir); len(names) != 2 {
		t.Errorf("%v", names)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "f")); string(b) != "content" {
		t.Errorf("%q", b)
	}
}
