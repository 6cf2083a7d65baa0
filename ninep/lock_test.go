package ninep

import (
	"math"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// locking makes one Tlock and returns the status.
func (c *client) locking(fid uint32, typ uint8, start, length uint64, proc uint32) uint8 {
	c.t.Helper()
	return c.ok(msgTlock, fid, typ, uint32(0), start, length, proc, "guest").u8()
}

func TestLocks(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	writeFile(t, "0123456789", dir, "f")
	a, b := mount(t, tree), mount(t, tree)
	fa, fb := a.open(a.walk(0, "f"), openReadWrite), b.open(b.walk(0, "f"), openReadWrite)

	steps := []struct {
		c             *client
		fid           uint32
		typ           uint8
		start, length uint64
		proc          uint32
		want          uint8
	}{
		{a, fa, lockWrite, 0, 5, 1, lockSuccess},
		{b, fb, lockWrite, 4, 1, 1, lockBlocked}, // the same pid in another guest
		{a, fa, lockRead, 4, 1, 2, lockBlocked},  // another process of the same guest
		{b, fb, lockWrite, 5, 0, 1, lockSuccess}, // to the end
		{a, fa, lockRead, 1 << 40, 1, 1, lockBlocked},
		{a, fa, lockUnlock, 2, 1, 1, lockSuccess}, // splits
		{b, fb, lockRead, 2, 1, 1, lockSuccess},
		{b, fb, lockRead, 3, 1, 1, lockBlocked},
		{a, fa, lockUnlock, 0, 0, 9, lockSuccess}, // holds none
		{a, fa, lockUnlock, 0, 0, 1, lockSuccess},
		{b, fb, lockWrite, 0, 0, 1, lockSuccess},
	}
	for i, s := range steps {
		if got := s.c.locking(s.fid, s.typ, s.start, s.length, s.proc); got != s.want {
			t.Errorf("step %d: status %d, want %d", i, got, s.want)
		}
	}
	d := a.ok(msgTgetlock, fa, uint8(lockUnlock), uint64(3), uint64(1), uint32(1), "guest")
	if typ, start := d.u8(), d.u64(); typ != lockWrite || start != 0 {
		t.Errorf("getlock: type %d from %d", typ, start)
	}
	d = b.ok(msgTgetlock, fb, uint8(lockWrite), uint64(3), uint64(1), uint32(1), "guest")
	if typ := d.u8(); typ != lockUnlock {
		t.Errorf("the owner's own lock is in its way: type %d", typ)
	}

	// The end of a session ends its locks.
	b.conn.Close()
	if err := b.ended(); err != nil {
		t.Error(err)
	}
	if got := a.locking(fa, lockWrite, 0, 0, 1); got != lockSuccess {
		t.Errorf("after the other session: status %d", got)
	}
	// And that of a fid those taken through it.
	a.clunk(fa)
	fa = a.open(a.walk(0, "f"), openReadWrite)
	if got := a.locking(fa, lockWrite, 0, 0, 2); got != lockSuccess {
		t.Errorf("after the other fid: status %d", got)
	}
}

func TestLocksOfAnExclusiveTree(t *testing.T) {
	tree, dir := serveDir(t, Options{Exclusive: true})
	writeFile(t, "", dir, "f")
	c := mount(t, tree)
	f := c.open(c.walk(0, "f"), openReadWrite)
	for proc := range uint32(2) {
		if got := c.locking(f, lockWrite, 0, 0, proc); got != lockSuccess {
			t.Errorf("status %d", got)
		}
	}
	if typ := c.ok(msgTgetlock, f, uint8(lockWrite), uint64(0), uint64(0), uint32(9), "guest").u8(); typ != lockUnlock {
		t.Errorf("getlock: type %d", typ)
	}
}

// TestLocksOfHostProcesses has the test's process be one.
func TestLocksOfHostProcesses(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	writeFile(t, "0123456789", dir, "f")
	c := mount(t, tree)
	f := c.open(c.walk(0, "f"), openReadWrite)
	host, err := os.OpenFile(filepath.Join(dir, "f"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	set := func(typ int16) error {
		return unix.FcntlFlock(host.Fd(), unix.F_SETLK, &unix.Flock_t{Type: typ, Start: 2, Len: 3})
	}
	if err := set(unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	if got := c.locking(f, lockRead, 4, 0, 1); got != lockBlocked {
		t.Errorf("status %d beside the host's lock", got)
	}
	if err := set(unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	if got := c.locking(f, lockWrite, 4, 0, 1); got != lockSuccess {
		t.Errorf("status %d after the host's lock", got)
	}
	if err := set(unix.F_RDLCK); err != unix.EAGAIN {
		t.Errorf("the host beside the guest's lock: %v", err)
	}
}

func TestLockNonsense(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	writeFile(t, "", dir, "f")
	c := mount(t, tree)
	f := c.open(c.walk(0, "f"), openReadWrite)
	lock := func(want errno, fid uint32, typ uint8, start, length uint64, client string) {
		t.Helper()
		c.want(want, msgTlock, fid, typ, uint32(0), start, length, uint32(1), client)
		c.want(want, msgTgetlock, fid, typ, start, length, uint32(1), client)
	}
	lock(linuxEINVAL, f, 3, 0, 0, "")
	lock(linuxEINVAL, f, lockWrite, math.MaxUint64, 1, "")
	lock(linuxEINVAL, f, lockWrite, math.MaxInt64, 1, "")
	lock(linuxEINVAL, f, lockWrite, 0, 0, string(make([]byte, 300)))
	lock(linuxEINVAL, c.open(c.walk(0), 0), lockWrite, 0, 0, "")
	lock(linuxEBADF, c.walk(0, "f"), lockWrite, 0, 0, "")
}
