package ninep

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testTimeout bounds every wait for the server.
const testTimeout = 20 * time.Second

// client speaks raw 9p, so that tests can say what no kernel would.
type client struct {
	t    testing.TB
	conn net.Conn
	// served yields what Serve returned.
	served chan error

	mu      sync.Mutex
	waiting map[uint16]chan message
	nextTag uint16
	nextFid uint32
	closed  error
}

type message struct {
	typ  uint8
	tag  uint16
	body []byte
}

// connect serves tree on a pipe and returns the other end, before Tversion.
// When the test is over, the session must have ended without a trace.
func connect(t testing.TB, tree *Tree) *client {
	t.Helper()
	server, conn := net.Pipe()
	c := &client{
		t: t, conn: conn, served: make(chan error, 1),
		waiting: make(map[uint16]chan message), nextFid: 1000,
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { c.served <- tree.Serve(ctx, server) }()
	read := make(chan struct{})
	go func() {
		defer close(read)
		c.readReplies()
	}()
	t.Cleanup(func() {
		conn.Close()
		c.ended()
		<-read
		cancel()
	})
	return c
}

// ended waits for the end of the session and returns what Serve did.
func (c *client) ended() error {
	c.t.Helper()
	select {
	case err := <-c.served:
		c.served <- err
		return err
	case <-time.After(testTimeout):
		c.t.Fatal("the session did not end")
		return nil
	}
}

func (c *client) readReplies() {
	for {
		m, err := readMessage(c.conn)
		c.mu.Lock()
		if err != nil {
			c.closed = err
			for tag, ch := range c.waiting {
				close(ch)
				delete(c.waiting, tag)
			}
			c.mu.Unlock()
			return
		}
		if ch := c.waiting[m.tag]; ch != nil {
			delete(c.waiting, m.tag)
			ch <- m
		} else {
			c.t.Errorf("reply of type %d with tag %d, which nobody waits for", m.typ, m.tag)
		}
		c.mu.Unlock()
	}
}

func readMessage(r io.Reader) (message, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return message{}, err
	}
	body := make([]byte, binary.LittleEndian.Uint32(header[:])-headerSize)
	_, err := io.ReadFull(r, body)
	return message{header[4], binary.LittleEndian.Uint16(header[5:]), body}, err
}

// fields encodes a message body: uint8, uint16, uint32, uint64, string and raw
// bytes.
func fields(values ...any) []byte {
	r := &reply{}
	for _, v := range values {
		switch v := v.(type) {
		case uint8:
			r.u8(v)
		case uint16:
			r.u16(v)
		case uint32:
			r.u32(v)
		case uint64:
			r.u64(v)
		case string:
			r.str(v)
		case []byte:
			r.b = append(r.b, v...)
		default:
			panic("fields: unknown type")
		}
	}
	return r.b
}

func frame(typ uint8, tag uint16, body []byte) []byte {
	r := &reply{b: append(make([]byte, headerSize), body...)}
	r.finish(typ, tag)
	return r.b
}

var errConnClosed = errors.New("connection closed by the server")

// start sends a request and returns where its reply will arrive.
func (c *client) start(typ uint8, body []byte) (uint16, chan message) {
	ch := make(chan message, 1)
	c.mu.Lock()
	c.nextTag++
	tag := c.nextTag
	if c.closed != nil {
		close(ch)
		c.mu.Unlock()
		return tag, ch
	}
	c.waiting[tag] = ch
	c.mu.Unlock()
	c.conn.SetWriteDeadline(time.Now().Add(testTimeout))
	// An error of the write also ends the reading, and there the wait.
	_, _ = c.conn.Write(frame(typ, tag, body))
	return tag, ch
}

func (c *client) await(typ uint8, ch chan message) (*decoder, error) {
	c.t.Helper()
	select {
	case m, ok := <-ch:
		if !ok {
			return &decoder{}, errConnClosed
		}
		if m.typ == msgRlerror {
			return &decoder{}, errno(binary.LittleEndian.Uint32(m.body))
		}
		if m.typ != typ+1 {
			c.t.Errorf("reply of type %d to a request of type %d", m.typ, typ)
		}
		return &decoder{b: m.body}, nil
	case <-time.After(testTimeout):
		c.t.Errorf("no reply to a request of type %d", typ)
		return &decoder{}, errConnClosed
	}
}

// call makes a request. The error is the server's errno, or errConnClosed.
func (c *client) call(typ uint8, values ...any) (*decoder, error) {
	c.t.Helper()
	_, ch := c.start(typ, fields(values...))
	return c.await(typ, ch)
}

// want makes a request that must be answered with this errno, 0 for success.
func (c *client) want(want errno, typ uint8, values ...any) *decoder {
	c.t.Helper()
	d, err := c.call(typ, values...)
	var got errno
	if err != nil && !errors.As(err, &got) {
		c.t.Fatalf("request of type %d: %v", typ, err)
	}
	if got != want {
		c.t.Fatalf("request of type %d: errno %d, want %d", typ, got, want)
	}
	return d
}

func (c *client) ok(typ uint8, values ...any) *decoder {
	c.t.Helper()
	return c.want(0, typ, values...)
}

func (c *client) newFid() uint32 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nextFid++
	return c.nextFid
}

// mount says Tversion and attaches fid 0 as root.
func mount(t testing.TB, tree *Tree) *client {
	t.Helper()
	c := connect(t, tree)
	c.version(maxMsize)
	c.attach(0, 0)
	return c
}

func (c *client) version(msize uint32) {
	c.t.Helper()
	d := c.ok(msgTversion, msize, protocolVersion)
	if got, v := d.u32(), d.str(); got != msize || v != protocolVersion {
		c.t.Fatalf("version: %d %q", got, v)
	}
}

func (c *client) attach(fid, uid uint32) {
	c.t.Helper()
	c.ok(msgTattach, fid, noFid, "", "", uid)
}

// walk walks from one fid to a new one, which it returns.
func (c *client) walk(from uint32, names ...string) uint32 {
	c.t.Helper()
	fid := c.newFid()
	d := c.ok(msgTwalk, walkFields(from, fid, names...))
	if n := int(d.u16()); n != len(names) {
		c.t.Fatalf("walk to %q ended after %d", names, n)
	}
	return fid
}

func walkFields(from, to uint32, names ...string) []byte {
	b := fields(from, to, uint16(len(names)))
	for _, n := range names {
		b = append(b, fields(n)...)
	}
	return b
}

func (c *client) open(fid uint32, flags uint32) uint32 {
	c.t.Helper()
	c.ok(msgTlopen, fid, flags)
	return fid
}

// create makes a file below dir and returns an open fid.
func (c *client) create(dir uint32, name string, flags, mode, gid uint32) uint32 {
	c.t.Helper()
	fid := c.walk(dir)
	c.ok(msgTlcreate, fid, name, flags, mode, gid)
	return fid
}

func (c *client) clunk(fid uint32) {
	c.t.Helper()
	c.ok(msgTclunk, fid)
}

func (c *client) read(fid uint32, offset uint64, count uint32) []byte {
	c.t.Helper()
	d := c.ok(msgTread, fid, offset, count)
	return d.take(int(d.u32()))
}

func (c *client) write(fid uint32, offset uint64, data string) {
	c.t.Helper()
	d := c.ok(msgTwrite, fid, offset, uint32(len(data)), []byte(data))
	if n := d.u32(); n != uint32(len(data)) {
		c.t.Fatalf("wrote %d of %d bytes", n, len(data))
	}
}

type entry struct {
	qid  qid
	next uint64
	typ  uint8
	name string
}

func (c *client) readdir(fid uint32, offset uint64, count uint32) []entry {
	c.t.Helper()
	d := c.ok(msgTreaddir, fid, offset, count)
	d = &decoder{b: d.take(int(d.u32()))}
	var all []entry
	for len(d.b) > 0 {
		all = append(all, entry{d.qid(), d.u64(), d.u8(), d.str()})
	}
	if d.bad {
		c.t.Fatal("an entry of Rreaddir is cut short")
	}
	return all
}

func (d *decoder) qid() qid { return qid{d.u8(), d.u32(), d.u64()} }

type stat struct {
	qid            qid
	mode, uid, gid uint32
	nlink, rdev    uint64
	size           uint64
	atime, mtime   timespec
}

func (c *client) stat(fid uint32) stat {
	c.t.Helper()
	d := c.ok(msgTgetattr, fid, uint64(statsBasic))
	if valid := d.u64(); valid != statsBasic {
		c.t.Fatalf("valid mask %#x", valid)
	}
	st := stat{qid: d.qid(), mode: d.u32(), uid: d.u32(), gid: d.u32(), nlink: d.u64(), rdev: d.u64(), size: d.u64()}
	d.u64() // blksize
	d.u64() // blocks
	st.atime = timespec{int64(d.u64()), int64(d.u64())}
	st.mtime = timespec{int64(d.u64()), int64(d.u64())}
	d.take(6 * 8) // ctime, btime, gen, data_version
	if err := d.done(); err != nil {
		c.t.Fatal(err)
	}
	return st
}

// setattr sends only what valid names.
func (c *client) setattr(want errno, fid, valid, mode, uid, gid uint32, size uint64, atime, mtime timespec) {
	c.t.Helper()
	c.want(want, msgTsetattr, fid, valid, mode, uid, gid, size,
		uint64(atime.sec), uint64(atime.nsec), uint64(mtime.sec), uint64(mtime.nsec))
}

// serveDir returns a tree for a fresh directory, and the directory. When the
// test is over, no descriptor may be left.
func serveDir(t testing.TB, opts Options) (*Tree, string) {
	t.Helper()
	dir := t.TempDir()
	return serveAt(t, dir, Dir, opts), dir
}

func serveAt(t testing.TB, path string, serve func(string, Options) (*Tree, error), opts Options) *Tree {
	t.Helper()
	if opts.MaxPinned == 0 {
		// So few that finding files again is what all tests are about.
		opts.MaxPinned = 2
	}
	before := openDescriptors(t)
	tree, err := serve(path, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Close(); err != nil {
			t.Error(err)
		}
		if after := openDescriptors(t); after != before {
			t.Errorf("%d descriptors are open, were %d", after, before)
		}
	})
	return tree
}

func openDescriptors(t testing.TB) int {
	t.Helper()
	names, err := os.ReadDir("/dev/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func writeFile(t testing.TB, content string, path ...string) string {
	t.Helper()
	name := filepath.Join(path...)
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

// hostAttr is what the host says about a path.
func hostAttr(t testing.TB, path ...string) attr {
	t.Helper()
	dir, name := filepath.Split(filepath.Join(path...))
	dirFD, err := hostOpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer closeFD(dirFD)
	fd, err := hostOpenAt(dirFD, name)
	if err != nil {
		t.Fatalf("%s: %v", filepath.Join(path...), err)
	}
	defer closeFD(fd)
	a, err := hostStat(fd)
	if err != nil {
		t.Fatal(err)
	}
	return a
}
