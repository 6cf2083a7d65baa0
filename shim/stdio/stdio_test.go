package stdio

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// bed is what surrounds an IO: the client's FIFOs and the guest's ends of the
// streams, which are real TCP connections over loopback.
type bed struct {
	t        *testing.T
	listener net.Listener
	cfg      Config
	book     *receipt.Book

	mu    sync.Mutex
	guest map[string]*net.TCPConn
}

func newBed(t *testing.T, streams ...string) *bed {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{t: t, listener: l, guest: map[string]*net.TCPConn{}}
	t.Cleanup(b.close)
	dir := t.TempDir()
	if b.book, err = receipt.Open(filepath.Join(dir, "receipts")); err != nil {
		t.Fatal(err)
	}
	for _, s := range streams {
		path := filepath.Join(dir, s)
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		switch s {
		case "stdin":
			b.cfg.Stdin = path
		case "stdout":
			b.cfg.Stdout = path
		case "stderr":
			b.cfg.Stderr = path
		}
	}
	return b
}

func (b *bed) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listener.Close()
	for _, c := range b.guest {
		c.Close()
	}
	b.guest = nil
}

func (b *bed) dial(ctx context.Context, id string) (net.Conn, error) {
	var d net.Dialer
	host, err := d.DialContext(ctx, "tcp", b.listener.Addr().String())
	if err != nil {
		return nil, err
	}
	guest, err := b.listener.Accept()
	if err != nil {
		host.Close()
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.guest[id] = guest.(*net.TCPConn)
	return host, nil
}

// end is the guest's end of a stream.
func (b *bed) end(name string) *net.TCPConn {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.guest["p/"+name]
	if c == nil {
		b.t.Fatalf("no stream for %s", name)
	}
	return c
}

func (b *bed) streams() Streams {
	return Streams{Prefix: "p", ID: "c1", Namespace: "ns", Dial: b.dial, Receipts: b.book}
}

// open opens the IO; clients must open their ends at the same time.
func (b *bed) open() *IO {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	// The streams must live on when the request that opened them ends.
	defer cancel()
	o, err := Open(ctx, b.cfg, b.streams())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() {
		o.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		must(b.t, o.AwaitLogger(ctx))
	})
	if err := o.StartInput(ctx); err != nil {
		b.t.Fatal(err)
	}
	return o
}

// client opens the client's end of a FIFO without waiting for the other one.
// A writer must come after the reader.
func (b *bed) client(path string, flag int) *os.File {
	b.t.Helper()
	f, err := os.OpenFile(path, flag|unix.O_NONBLOCK, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { f.Close() })
	return f
}

// received is everything that arrived up to the end of the stream.
type received struct {
	data []byte
	err  error
}

func collect(r io.Reader) <-chan received {
	done := make(chan received, 1)
	go func() {
		data, err := io.ReadAll(r)
		done <- received{data, err}
	}()
	return done
}

func (b *bed) want(done <-chan received, want []byte) {
	b.t.Helper()
	select {
	case got := <-done:
		if got.err != nil {
			b.t.Errorf("after %d bytes: %v", len(got.data), got.err)
		}
		if sha256.Sum256(got.data) != sha256.Sum256(want) {
			b.t.Errorf("got %d bytes (%.40q), want %d (%.40q)", len(got.data), got.data, len(want), want)
		}
	case <-time.After(patience):
		b.t.Fatal("the end of the stream did not come")
	}
}

// payload is n bytes in which no two blocks are alike.
func payload(n int) []byte {
	var block [4096]byte
	_, _ = rand.NewChaCha8([32]byte{byte(n)}).Read(block[:])
	data := make([]byte, 0, n+len(block))
	for i := uint64(0); len(data) < n; i++ {
		binary.BigEndian.PutUint64(block[:], i)
		data = append(data, block[:]...)
	}
	return data[:n]
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually polls for what has no channel to wait for.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(patience)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

func TestLargeBothWays(t *testing.T) {
	b := newBed(t, "stdin", "stdout", "stderr")
	stdout, stderr := b.client(b.cfg.Stdout, os.O_RDONLY), b.client(b.cfg.Stderr, os.O_RDONLY)
	o := b.open()
	in, out, errs := payload(64<<20), payload(64<<20+1), payload(1<<20)

	gotOut, gotErr, gotIn := collect(stdout), collect(stderr), collect(b.end("stdin"))
	for name, data := range map[string][]byte{"stdout": out, "stderr": errs} {
		end := b.end(name)
		go func() {
			_, _ = end.Write(data)
			_ = end.CloseWrite()
		}()
	}
	stdin := b.client(b.cfg.Stdin, os.O_WRONLY)
	if _, err := stdin.Write(in); err != nil {
		t.Fatal(err)
	}
	stdin.Close()
	o.CloseStdin()

	b.want(gotIn, in)
	b.want(gotOut, out)
	b.want(gotErr, errs)
	if !o.WaitDrained(context.Background(), patience) {
		t.Error("not drained after the last byte")
	}
}

// A process that writes and exits at once: its end of the stream is closed
// before the client has read anything.
func TestAShortLifeLosesNothing(t *testing.T) {
	b := newBed(t, "stdout", "stderr")
	stdout, stderr := b.client(b.cfg.Stdout, os.O_RDONLY), b.client(b.cfg.Stderr, os.O_RDONLY)
	o := b.open()
	for _, name := range []string{"stdout", "stderr"} {
		if _, err := b.end(name).Write([]byte("last words on " + name)); err != nil {
			t.Fatal(err)
		}
		b.end(name).Close()
	}
	if !o.WaitDrained(context.Background(), patience) {
		t.Fatal("not drained")
	}
	b.want(collect(stdout), []byte("last words on stdout"))
	b.want(collect(stderr), []byte("last words on stderr"))
}

func TestOpenWaitsForTheClientsReader(t *testing.T) {
	b := newBed(t, "stdout")
	opened := make(chan *IO, 1)
	go func() { opened <- b.open() }()
	select {
	case <-opened:
		t.Fatal("Open returned without a reader: what is written now would be lost")
	case <-time.After(50 * time.Millisecond):
	}
	stdout := b.client(b.cfg.Stdout, os.O_RDONLY)
	<-opened
	_, err := b.end("stdout").Write([]byte("early"))
	must(t, err)
	b.end("stdout").Close()
	b.want(collect(stdout), []byte("early"))
}

// Another client may attach after the first has left, without the process
// noticing.
func TestAClientMayLeaveAndAnotherCome(t *testing.T) {
	b := newBed(t, "stdout")
	first := b.client(b.cfg.Stdout, os.O_RDONLY)
	o := b.open()
	end := b.end("stdout")
	_, err := end.Write([]byte("one"))
	must(t, err)
	buf := make([]byte, 3)
	if _, err := io.ReadFull(first, buf); err != nil || string(buf) != "one" {
		t.Fatalf("got %q, %v", buf, err)
	}
	first.Close()
	_, err = end.Write([]byte("two"))
	must(t, err)
	eventually(t, "written to nobody", func() bool { return o.moved.Load() == 6 })
	second := b.client(b.cfg.Stdout, os.O_RDONLY)
	_, err = end.Write([]byte("three"))
	must(t, err)
	end.Close()
	b.want(collect(second), []byte("twothree"))
}

func TestASlowReaderHoldsTheGuestBack(t *testing.T) {
	b := newBed(t, "stdout")
	stdout := b.client(b.cfg.Stdout, os.O_RDONLY)
	b.open()
	out, end := payload(32<<20), b.end("stdout")

	// Nobody reads: the writer must come to a stop, not fill the shim.
	must(t, end.SetWriteDeadline(time.Now().Add(time.Second)))
	n, err := end.Write(out)
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d bytes with no reader: %v", n, err)
	}
	must(t, end.SetWriteDeadline(time.Time{}))
	got := collect(stdout)
	_, err = end.Write(out[n:])
	must(t, err)
	must(t, end.CloseWrite())
	b.want(got, out)
}

func TestTheGuestsStdio(t *testing.T) {
	t.Run("streams", func(t *testing.T) {
		b := newBed(t, "stdin", "stdout", "stderr")
		b.client(b.cfg.Stdout, os.O_RDONLY)
		b.client(b.cfg.Stderr, os.O_RDONLY)
		g := b.open().Guest()
		for name, uri := range map[string]string{"stdin": g.Stdin, "stdout": g.Stdout, "stderr": g.Stderr} {
			if id, err := agentproto.ParseStreamURI(uri); err != nil || id != "p/"+name {
				t.Errorf("%s is %q: %q, %v", name, uri, id, err)
			}
		}
		if g.Terminal {
			t.Error("a terminal nobody asked for")
		}
	})
	t.Run("a terminal has no stderr", func(t *testing.T) {
		b := newBed(t, "stdin", "stdout", "stderr")
		b.cfg.Terminal = true
		b.client(b.cfg.Stdout, os.O_RDONLY)
		g := b.open().Guest()
		if !g.Terminal || g.Stderr != "" || g.Stdout == "" || g.Stdin == "" {
			t.Errorf("guest's stdio is %+v", g)
		}
	})
	t.Run("fifo URI", func(t *testing.T) {
		b := newBed(t, "stdout")
		stdout := b.client(b.cfg.Stdout, os.O_RDONLY)
		b.cfg.Stdout = "fifo://" + b.cfg.Stdout
		b.open()
		_, err := b.end("stdout").Write([]byte("x"))
		must(t, err)
		b.end("stdout").Close()
		b.want(collect(stdout), []byte("x"))
	})
	t.Run("none", func(t *testing.T) {
		for _, o := range []*IO{None(), newBed(t).open()} {
			if g := o.Guest(); g != (Config{}) {
				t.Errorf("guest's stdio is %+v", g)
			}
			if !o.WaitDrained(context.Background(), patience) {
				t.Error("nothing is not drained")
			}
			o.CloseStdin()
			o.Abort()
			o.Close()
		}
	})
}

func TestWaitDrained(t *testing.T) {
	t.Run("drained", func(t *testing.T) {
		b := newBed(t, "stdout")
		stdout := b.client(b.cfg.Stdout, os.O_RDONLY)
		o := b.open()
		drained := make(chan bool)
		go func() { drained <- o.WaitDrained(context.Background(), patience) }()
		_, err := b.end("stdout").Write([]byte("x"))
		must(t, err)
		select {
		case <-drained:
			t.Fatal("drained while the stream is open")
		default:
		}
		b.end("stdout").Close()
		if !<-drained {
			t.Error("gave up")
		}
		b.want(collect(stdout), []byte("x"))
	})
	t.Run("context", func(t *testing.T) {
		b := newBed(t, "stdout")
		b.client(b.cfg.Stdout, os.O_RDONLY)
		o := b.open()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if o.WaitDrained(ctx, patience) {
			t.Error("drained while the stream is open")
		}
	})
	t.Run("idle", func(t *testing.T) {
		b := newBed(t, "stdout")
		b.client(b.cfg.Stdout, os.O_RDONLY)
		o := b.open()
		if o.WaitDrained(context.Background(), 20*time.Millisecond) {
			t.Error("drained while the stream is open")
		}
	})
	t.Run("slow is not idle", func(t *testing.T) {
		b := newBed(t, "stdout")
		stdout := b.client(b.cfg.Stdout, os.O_RDONLY)
		o := b.open()
		end, idle := b.end("stdout"), 400*time.Millisecond
		go func() {
			// Four times idle in all, never idle for long.
			tick := time.NewTicker(idle / 10)
			defer tick.Stop()
			for range 40 {
				<-tick.C
				_, _ = end.Write([]byte("."))
			}
			end.Close()
		}()
		if !o.WaitDrained(context.Background(), idle) {
			t.Error("gave up on a stream that moved")
		}
		b.want(collect(stdout), bytes.Repeat([]byte("."), 40))
	})
}

// The machine has died: no end of stream will come, and what had come is the
// client's, however slow the client.
func TestAbortDeliversWhatHadArrived(t *testing.T) {
	b := newBed(t, "stdin", "stdout")
	stdout := b.client(b.cfg.Stdout, os.O_RDONLY)
	o := b.open()
	// Twice what a FIFO takes, so that the rest waits in the socket.
	out := payload(128 << 10)
	_, err := b.end("stdout").Write(out)
	must(t, err)

	o.Abort()
	if o.WaitDrained(context.Background(), 2*abortGrace) {
		t.Fatal("drained into a FIFO that nobody reads")
	}
	b.want(collect(stdout), out)
	if !o.WaitDrained(context.Background(), patience) {
		t.Error("not drained after the client has read it all")
	}
}

func TestAbortOfAnIdleStream(t *testing.T) {
	b := newBed(t, "stdout", "stderr")
	stdout := b.client(b.cfg.Stdout, os.O_RDONLY)
	b.client(b.cfg.Stderr, os.O_RDONLY)
	o := b.open()
	began := time.Now()
	o.Abort()
	if !o.WaitDrained(context.Background(), patience) {
		t.Fatal("not drained")
	}
	if took := time.Since(began); took > 20*abortGrace {
		t.Errorf("took %v", took)
	}
	b.want(collect(stdout), nil)
}
