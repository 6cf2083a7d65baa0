package ninep

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestVersion(t *testing.T) {
	tree, _ := serveDir(t, Options{})
	c := connect(t, tree)
	d := c.ok(msgTversion, uint32(1<<30), protocolVersion)
	if msize := d.u32(); msize != maxMsize {
		t.Errorf("msize %d", msize)
	}
	c.attach(0, 0)
	f := c.create(0, "f", openReadWrite, 0o600, 0)
	// Again: everything is forgotten.
	c.version(minMsize)
	c.want(linuxEBADF, msgTread, f, uint64(0), uint32(1))
	c.attach(0, 0)
	if got := c.readdir(c.open(c.walk(0), 0), 0, 1<<20); len(got) != 3 {
		t.Errorf("%+v", got)
	}
	c.want(linuxEINVAL, msgTversion, uint32(100), protocolVersion)
	if v := c.ok(msgTversion, uint32(8192), "9P2000.u"); v.u32() == 0 || v.str() != unknownVersion {
		t.Error("9P2000.u was accepted")
	}
	if _, err := c.call(msgTattach, uint32(0), noFid, "", "", uint32(0)); err != errConnClosed {
		t.Errorf("attach without a version: %v", err)
	}
	if err := c.ended(); !errors.Is(err, errMalformed) {
		t.Errorf("Serve: %v", err)
	}
}

func TestReplyLargerThanMsize(t *testing.T) {
	if unix.PathMax < minMsize {
		t.Skipf("a host whose paths have at most %d bytes makes no reply too large for %d", unix.PathMax, minMsize)
	}
	tree, dir := serveDir(t, Options{})
	if err := os.Symlink(string(bytes.Repeat([]byte("x"), unix.PathMax-1)), filepath.Join(dir, "long")); err != nil {
		t.Fatal(err)
	}
	c := connect(t, tree)
	c.version(minMsize)
	c.attach(0, 0)
	c.want(linuxEMSGSIZE, msgTreadlink, c.walk(0, "long"))
}

func TestAttach(t *testing.T) {
	tree, _ := serveDir(t, Options{})
	c := mount(t, tree)
	c.want(linuxEINVAL, msgTattach, uint32(5), uint32(6), "", "", uint32(0))
	c.want(linuxENOENT, msgTattach, uint32(5), noFid, "", "/etc", uint32(0))
	c.want(linuxEBADF, msgTattach, uint32(0), noFid, "", "", uint32(0))
	c.want(linuxEOPNOTSUPP, msgTauth, uint32(5), "", "", uint32(0))
	c.ok(msgTattach, uint32(5), noFid, "user", "/", noUID)
	c.create(c.walk(5), "f", openReadWrite, 0o600, noUID)
	if c.stat(5).qid != c.stat(0).qid {
		t.Error("two attaches, two roots")
	}
	for _, typ := range []uint8{msgTrename, 200, 6} {
		c.want(linuxEOPNOTSUPP, typ, uint32(5))
	}
	c.want(linuxEOPNOTSUPP, msgTremove, uint32(5))
	c.want(linuxEBADF, msgTremove, uint32(5)) // clunked by the first
}

// TestUnknownFids uses fids that do not exist in every operation.
func TestUnknownFids(t *testing.T) {
	tree, _ := serveDir(t, Options{})
	c := mount(t, tree)
	const bad = uint32(99)
	zero32, zero64 := uint32(0), uint64(0)
	for typ, body := range map[uint8][]byte{
		msgTstatfs: fields(bad), msgTlopen: fields(bad, zero32), msgTlcreate: fields(bad, "n", zero32, zero32, zero32),
		msgTsymlink: fields(bad, "n", "t", zero32), msgTmknod: fields(bad, "n", zero32, zero32, zero32, zero32),
		msgTreadlink: fields(bad), msgTgetattr: fields(bad, zero64), msgTxattrwalk: fields(bad, uint32(7), "user.x"),
		msgTsetattr:     fields(bad, zero32, zero32, zero32, zero32, zero64, zero64, zero64, zero64, zero64),
		msgTxattrcreate: fields(bad, "user.x", zero64, zero32), msgTreaddir: fields(bad, zero64, zero32),
		msgTfsync: fields(bad, zero32), msgTlock: fields(bad, uint8(0), zero32, zero64, zero64, zero32, ""),
		msgTgetlock: fields(bad, uint8(0), zero64, zero64, zero32, ""), msgTlink: fields(bad, bad, "n"),
		msgTmkdir: fields(bad, "n", zero32, zero32), msgTrenameat: fields(bad, "n", bad, "m"),
		msgTunlinkat: fields(bad, "n", zero32), msgTwalk: walkFields(bad, 7), msgTread: fields(bad, zero64, zero32),
		msgTwrite: fields(bad, zero64, zero32), msgTclunk: fields(bad), msgTremove: fields(bad),
	} {
		c.want(linuxEBADF, typ, body)
		// The same message cut short, or with something behind it, is none.
		for _, broken := range [][]byte{body[:len(body)-1], append(body[:len(body):len(body)], 0)} {
			m := mount(t, tree)
			if _, err := m.call(typ, broken); err != errConnClosed && !errors.As(err, new(errno)) {
				t.Errorf("type %d, %d bytes: %v", typ, len(broken), err)
			}
			if err := m.ended(); !errors.Is(err, errMalformed) {
				t.Errorf("type %d, %d bytes: the session ended with %v", typ, len(broken), err)
			}
		}
	}
}

func TestMalformedFramesEndTheSession(t *testing.T) {
	size := func(n uint32) []byte {
		return append(binary.LittleEndian.AppendUint32(nil, n), msgTclunk, 1, 0)
	}
	for name, frame := range map[string][]byte{
		"too small":       size(6),
		"zero":            size(0),
		"larger than us":  size(maxMsize + 1),
		"enormous":        size(0xffffffff),
		"write too short": frame(msgTwrite, 1, fields(uint32(0), uint64(0), uint32(0xffffffff), []byte("abc"))),
		"string too long": frame(msgTmkdir, 1, append(fields(uint32(0)), 0xff, 0xff, 'a')),
	} {
		t.Run(name, func(t *testing.T) {
			tree, _ := serveDir(t, Options{})
			c := mount(t, tree)
			c.mu.Lock()
			c.waiting[1] = make(chan message, 1) // there may be a reply yet
			c.mu.Unlock()
			if _, err := c.conn.Write(frame); err != nil {
				t.Fatal(err)
			}
			if err := c.ended(); !errors.Is(err, errMalformed) {
				t.Errorf("Serve: %v", err)
			}
		})
	}
	t.Run("cut short", func(t *testing.T) {
		tree, _ := serveDir(t, Options{})
		c := mount(t, tree)
		if _, err := c.conn.Write(size(100)); err != nil {
			t.Fatal(err)
		}
		c.conn.Close()
		if err := c.ended(); err == nil {
			t.Error("Serve saw a clean end")
		}
	})
}

func TestEndOfSession(t *testing.T) {
	tree, _ := serveDir(t, Options{})
	closed := mount(t, tree)
	closed.create(0, "f", openReadWrite, 0o600, 0)
	closed.conn.Close()
	if err := closed.ended(); err != nil {
		t.Errorf("closed by the client: %v", err)
	}

	ctx, cancel := context.WithCancelCause(context.Background())
	server, conn := net.Pipe()
	defer conn.Close()
	done := make(chan error)
	go func() { done <- tree.Serve(ctx, server) }()
	why := errors.New("test is over")
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("cancelled: %v", err)
	}

	c := mount(t, tree)
	if err := tree.Close(); err != nil {
		t.Fatal(err)
	}
	if err := c.ended(); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("closed by the tree: %v", err)
	}
	server, conn = net.Pipe()
	defer conn.Close()
	if err := tree.Serve(context.Background(), server); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("served after Close: %v", err)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	file := writeFile(t, "", dir, "f")
	for _, test := range []struct {
		open func(string, Options) (*Tree, error)
		path string
		want error
	}{
		{Dir, filepath.Join(dir, "missing"), errdefs.ErrNotFound},
		{Dir, filepath.Join(file, "below"), errdefs.ErrNotFound},
		{Dir, file, errdefs.ErrInvalidArgument},
		{SingleFile, dir, errdefs.ErrInvalidArgument},
		{SingleFile, "/", errdefs.ErrInvalidArgument},
		{SingleFile, filepath.Join(dir, "missing"), errdefs.ErrNotFound},
	} {
		if _, err := test.open(test.path, Options{}); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.path, err, test.want)
		}
	}
}

// TestFlush flushes requests that run and some that do not: each reply comes
// before its Rflush, and every flush is answered.
func TestFlush(t *testing.T) {
	tree, _ := serveDir(t, Options{})
	c := mount(t, tree)
	f := c.create(0, "f", openReadWrite, 0o600, 0)
	data := bytes.Repeat([]byte("x"), 1<<19)
	for range 20 {
		tag, reply := c.start(msgTwrite, fields(f, uint64(0), uint32(len(data)), data))
		c.ok(msgTflush, tag)
		select {
		case m := <-reply:
			if m.typ != msgTwrite+1 {
				t.Fatalf("reply of type %d", m.typ)
			}
		default:
			t.Fatal("Rflush came before the reply it waits for")
		}
	}
	c.ok(msgTflush, uint16(60000))
	tag, flush := c.start(msgTflush, fields(uint16(60001)))
	c.ok(msgTflush, tag)
	if _, err := c.await(msgTflush, flush); err != nil {
		t.Error(err)
	}
}

// TestRequestsRunConcurrently has many clients work on the same files and
// fids, with clunks and renames in between.
func TestRequestsRunConcurrently(t *testing.T) {
	tree, dir := serveDir(t, Options{MaxPinned: 3})
	c := mount(t, tree)
	for i := range 4 {
		writeFile(t, fmt.Sprint(i), dir, fmt.Sprint(i))
	}
	shared := c.open(c.walk(0, "0"), openReadWrite)
	d := c.open(c.walk(0), 0)
	var workers sync.WaitGroup
	for w := range 8 {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for i := range 60 {
				name := fmt.Sprint((w + i) % 4)
				fid := c.newFid()
				if _, err := c.call(msgTwalk, walkFields(0, fid, name)); err == nil {
					_, _ = c.call(msgTlopen, fid, uint32(openReadWrite))
					_, _ = c.call(msgTread, fid, uint64(0), uint32(100))
					_, _ = c.call(msgTgetattr, fid, uint64(statsBasic))
					_, _ = c.call(msgTlock, fid, uint8(lockWrite), uint32(0), uint64(w), uint64(1), uint32(w), "g")
				}
				_, _ = c.call(msgTclunk, fid)
				_, _ = c.call(msgTwrite, shared, uint64(w), uint32(1), []byte{byte('a' + w)})
				_, _ = c.call(msgTreaddir, d, uint64(0), uint32(4096))
				_, _ = c.call(msgTrenameat, uint32(0), name, uint32(0), fmt.Sprint((w+i+1)%4))
				_, _ = c.call(msgTmkdir, uint32(0), fmt.Sprint((w+2*i)%4), uint32(0o700), uint32(0))
				_, _ = c.call(msgTclunk, uint32(1000+i)) // somebody else's
			}
		}()
	}
	workers.Wait()
	c.stat(0)
}

// TestClientThatDoesNotRead asks for more and more, and takes no reply.
func TestClientThatDoesNotRead(t *testing.T) {
	tree, dir := serveDir(t, Options{})
	writeFile(t, string(make([]byte, 1<<20)), dir, "f")
	server, conn := net.Pipe()
	defer conn.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- tree.Serve(ctx, server) }()
	exchange := func(typ uint8, body []byte) {
		t.Helper()
		if _, err := conn.Write(frame(typ, 1, body)); err != nil {
			t.Fatal(err)
		}
		if m, err := readMessage(conn); err != nil || m.typ != typ+1 {
			t.Fatalf("%v, type %d", err, m.typ)
		}
	}
	exchange(msgTversion, fields(uint32(maxMsize), protocolVersion))
	exchange(msgTattach, fields(uint32(0), noFid, "", "", uint32(0)))
	exchange(msgTwalk, walkFields(0, 1, "f"))
	exchange(msgTlopen, fields(uint32(1), uint32(0)))
	// The server takes as many requests as it has slots for, and then stops
	// reading: what it holds is bounded.
	taken := 0
	for tag := uint16(2); ; tag++ {
		conn.SetWriteDeadline(time.Now().Add(time.Second))
		_, err := conn.Write(frame(msgTread, tag, fields(uint32(1), uint64(0), uint32(maxMsize))))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		taken++
	}
	// Besides those in flight, what fits into the reader's buffer.
	if limit := maxInFlight + 2 + readAhead/23; taken > limit {
		t.Errorf("the server took %d requests, want at most %d", taken, limit)
	}
	cancel()
	select {
	case <-done:
	case <-time.After(testTimeout):
		t.Fatal("the session did not end")
	}
}

func TestDuplicateTagEndsTheSession(t *testing.T) {
	q := newInFlight()
	if err := q.add(&request{tag: 3}); err != nil {
		t.Fatal(err)
	}
	if err := q.add(&request{tag: 3}); !errors.Is(err, errMalformed) {
		t.Errorf("%v", err)
	}
}

// TestErrnoTable checks the table against the host that the numbers are from.
func TestErrnoTable(t *testing.T) {
	if unix.ENOTEMPTY != 39 {
		t.Skip("the host's numbers are not Linux's")
	}
	for host, e := range linuxErrno {
		if uint32(host) != uint32(e) {
			t.Errorf("%v is %d, not %d", host, uint32(host), uint32(e))
		}
	}
	if got := toErrno(fmt.Errorf("wrapped: %w", unix.EDQUOT)); got != 122 {
		t.Errorf("EDQUOT became %d", got)
	}
	if got := toErrno(errors.New("unheard of")); got != linuxEIO {
		t.Errorf("an unknown error became %d", got)
	}
}
