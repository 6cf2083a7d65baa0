package stdio

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"time"
)

// A client that leaves is not the end of the input: another may attach.
func TestStdinOutlivesItsWriters(t *testing.T) {
	b := newBed(t, "stdin")
	o := b.open()
	got := collect(b.end("stdin"))
	for _, text := range []string{"first ", "second"} {
		w := b.client(b.cfg.Stdin, os.O_WRONLY)
		_, err := w.Write([]byte(text))
		must(t, err)
		w.Close()
	}
	o.CloseStdin()
	b.want(got, []byte("first second"))
}

// Before the process is started its client's writer waits, and an end that is
// asked for meanwhile comes after what was written.
func TestInputWaitsForStart(t *testing.T) {
	b := newBed(t, "stdin")
	o, err := Open(t.Context(), b.cfg, b.streams())
	must(t, err)
	t.Cleanup(o.Close)
	if _, err := os.OpenFile(b.cfg.Stdin, os.O_WRONLY|syscall.O_NONBLOCK, 0); !errors.Is(err, syscall.ENXIO) {
		t.Fatalf("the FIFO has a reader before the process is started: %v", err)
	}
	w, err := os.OpenFile(b.cfg.Stdin, os.O_RDWR, 0)
	must(t, err)
	defer w.Close()
	_, err = w.Write([]byte("early"))
	must(t, err)
	o.CloseStdin()
	must(t, o.StartInput(t.Context()))
	must(t, o.StartInput(t.Context()))
	b.want(collect(b.end("stdin")), []byte("early"))
}

// What was in the FIFO before the shim came is input as well.
func TestStdinOfAWriterThatIsGone(t *testing.T) {
	b := newBed(t, "stdin")
	// Without a reader, a FIFO cannot be opened for writing alone.
	w, err := os.OpenFile(b.cfg.Stdin, os.O_RDWR, 0)
	must(t, err)
	_, err = w.Write([]byte("gone"))
	must(t, err)
	o := b.open()
	w.Close()
	o.CloseStdin()
	b.want(collect(b.end("stdin")), []byte("gone"))
}

func TestCloseStdin(t *testing.T) {
	t.Run("before any writer", func(t *testing.T) {
		b := newBed(t, "stdin")
		o := b.open()
		o.CloseStdin()
		b.want(collect(b.end("stdin")), nil)
	})
	t.Run("at once", func(t *testing.T) {
		b := newBed(t, "stdin")
		b.open().CloseStdin()
		b.want(collect(b.end("stdin")), nil)
	})
	t.Run("writer holds the FIFO and wrote nothing", func(t *testing.T) {
		b := newBed(t, "stdin")
		o := b.open()
		b.client(b.cfg.Stdin, os.O_WRONLY)
		o.CloseStdin()
		b.want(collect(b.end("stdin")), nil)
	})
	t.Run("writer holds the FIFO", func(t *testing.T) {
		b := newBed(t, "stdin")
		o := b.open()
		w := b.client(b.cfg.Stdin, os.O_WRONLY)
		_, err := w.Write([]byte("x\n"))
		must(t, err)
		o.CloseStdin()
		b.want(collect(b.end("stdin")), []byte("x\n"))
	})
	t.Run("twice", func(t *testing.T) {
		b := newBed(t, "stdin")
		o := b.open()
		w := b.client(b.cfg.Stdin, os.O_WRONLY)
		in := payload(60 << 10)
		_, err := w.Write(in)
		must(t, err)
		o.CloseStdin()
		o.CloseStdin()
		b.want(collect(b.end("stdin")), in)
		o.CloseStdin()
	})
	t.Run("after the end", func(t *testing.T) {
		b := newBed(t, "stdin")
		o := b.open()
		got := collect(b.end("stdin"))
		w := b.client(b.cfg.Stdin, os.O_WRONLY)
		_, err := w.Write([]byte("x"))
		must(t, err)
		o.CloseStdin()
		b.want(got, []byte("x"))
		o.CloseStdin()
	})
}

// Everything that the client has written is delivered before the end, however
// much of it waits behind a guest that does not read, and however often the
// end is asked for meanwhile.
func TestCloseStdinOvertakesNothing(t *testing.T) {
	b := newBed(t, "stdin")
	o := b.open()
	w := b.client(b.cfg.Stdin, os.O_WRONLY)
	in := payload(64 << 20)

	// Nobody reads in the guest: the client's write comes to a stop with the
	// FIFO, the shim and the sockets full.
	must(t, w.SetWriteDeadline(time.Now().Add(time.Second)))
	n, err := w.Write(in)
	if err == nil {
		t.Fatalf("wrote %d bytes to a guest that does not read", n)
	}
	o.CloseStdin()
	o.CloseStdin()
	b.want(collect(b.end("stdin")), in[:n])
}

// The process's end of its input closes the client's FIFO: its writer gets
// EPIPE as it would from the process itself.
func TestAGuestThatStopsReading(t *testing.T) {
	b := newBed(t, "stdin")
	b.open()
	w := b.client(b.cfg.Stdin, os.O_WRONLY)
	b.end("stdin").Close()
	done := make(chan error, 1)
	go func() {
		for {
			if _, err := w.Write(make([]byte, 4096)); err != nil {
				done <- err
				return
			}
		}
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the client's write never ended")
	}
}
