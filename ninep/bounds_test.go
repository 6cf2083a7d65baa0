package ninep

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A client that opens files, and keeps some that have no name any more, leaves
// the process descriptors of its own; and has them again when it lets go.
func TestTheProcessKeepsDescriptors(t *testing.T) {
	tree, _ := serveDir(t, Options{MaxPinned: 4})
	c := mount(t, tree)
	const room = 20
	most := maxDescriptors.Load()
	maxDescriptors.Store(descriptors.Load() + room)
	t.Cleanup(func() { maxDescriptors.Store(most) })
	before := openDescriptors(t)

	var open []uint32
	for i := 0; ; i++ {
		name, fid := fmt.Sprint(i), c.walk(0)
		open = append(open, fid)
		_, err := c.call(msgTlcreate, fid, name, uint32(openReadWrite), uint32(0o600), uint32(0))
		if errors.Is(err, linuxENFILE) {
			break
		}
		if err != nil || i > room {
			t.Fatalf("file %d: %v, want ENFILE by now", i, err)
		}
		c.ok(msgTunlinkat, uint32(0), name, uint32(0))
	}
	if n := openDescriptors(t) - before; n > room {
		t.Errorf("%d descriptors, want at most %d", n, room)
	}
	for _, fid := range open {
		c.clunk(fid)
	}
	c.clunk(c.create(0, "again", openReadWrite, 0o600, 0))
}

// How deep a tree is does not say how much stack the server takes.
func TestTheWayToADeepFileIsBounded(t *testing.T) {
	const pinned, depth = 8, 100
	defer func(most int) { maxDepth = most }(maxDepth)
	maxDepth = depth
	tree, _ := serveDir(t, Options{MaxPinned: pinned})
	c := mount(t, tree)
	at := uint32(0)
	for range depth + 2 {
		c.ok(msgTmkdir, at, "d", uint32(0o755), uint32(0))
		at = c.walk(at, "d")
	}
	for range pinned {
		c.walk(0, "d") // takes a descriptor
	}
	c.want(linuxENAMETOOLONG, msgTgetattr, at, uint64(statsBasic))
}

// A read never waits: it would hold up the end of the session.
func TestFilesAreOpenedNonBlocking(t *testing.T) {
	file := writeFile(t, "", t.TempDir(), "f")
	tree := serveAt(t, file, SingleFile, Options{})
	f, err := newSession(tree).open(tree.only, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.close()
	if flags, err := unix.FcntlInt(uintptr(f.fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x of %s, %v", flags, filepath.Base(file), err)
	}
}

// A fid does not remember locks that went with another one.
func TestLocksOfAFidAreBounded(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	writeFile(t, "", dir, "f")
	c := mount(t, tree)
	kept := c.open(c.walk(0, "f"), openReadWrite)
	for proc := range uint32(50) {
		other := c.open(c.walk(0, "f"), openReadWrite)
		for _, fid := range []uint32{kept, other} {
			c.ok(msgTlock, fid, uint8(lockRead), uint32(0), uint64(0), uint64(1), proc, "guest")
		}
		c.clunk(other)
	}
	for s := range tree.active {
		if n := len(s.fids.fids[kept].locks); n > 1 {
			t.Errorf("%d locks", n)
		}
	}
}
