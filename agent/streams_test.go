//go:build linux

package agent

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

// listen serves s on loopback.
func listen(t *testing.T, s *streams) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.serve(t.Context(), l); !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
		s.close()
	})
	return l.Addr().String()
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestStreamsClaim(t *testing.T) {
	s := newStreams()
	addr := listen(t, s)
	host := dial(t, addr)
	if err := agentproto.OpenStream(host, "one"); err != nil {
		t.Fatal(err)
	}
	// The answer says that it can be claimed now.
	guest, err := s.claim("one")
	if err != nil {
		t.Fatal(err)
	}
	defer guest.Close()
	if _, err := host.Write([]byte("hi")); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, 2)
	if _, err := io.ReadFull(guest, got); err != nil || string(got) != "hi" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := s.claim("one"); !errdefs.IsNotFound(err) {
		t.Errorf("second claim: %v; want NotFound", err)
	}
}

func TestStreamsRefuseDuplicate(t *testing.T) {
	s := newStreams()
	addr := listen(t, s)
	if err := agentproto.OpenStream(dial(t, addr), "one"); err != nil {
		t.Fatal(err)
	}
	if err := agentproto.OpenStream(dial(t, addr), "one"); !errors.Is(err, agentproto.ErrStreamRefused) {
		t.Errorf("second stream of that name: %v; want a refusal", err)
	}
	if _, err := s.claim("one"); err != nil {
		t.Errorf("the first one has suffered: %v", err)
	}
}

func TestStreamsCloseGarbage(t *testing.T) {
	s := newStreams()
	addr := listen(t, s)
	c := dial(t, addr)
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadAll(c); errors.Is(err, net.ErrClosed) || isTimeout(err) {
		t.Errorf("a connection without a preface stays open: %v", err)
	}
}

func isTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// pipeStream is a stream that needs no network.
type pipeStream struct{ net.Conn }

func (pipeStream) CloseWrite() error { return nil }

func TestStreamsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStreams()
		host, guest := net.Pipe()
		if err := s.offer("one", pipeStream{guest}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(claimTimeout + time.Second) // the bubble's clock, not the world's
		if _, err := s.claim("one"); !errdefs.IsNotFound(err) {
			t.Errorf("claim after %s: %v; want NotFound", claimTimeout, err)
		}
		if _, err := host.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("the unclaimed connection: %v; want end of file", err)
		}
	})
}

func TestStreamsClose(t *testing.T) {
	s := newStreams()
	host, guest := net.Pipe()
	if err := s.offer("one", pipeStream{guest}); err != nil {
		t.Fatal(err)
	}
	s.close()
	if _, err := host.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("an unclaimed connection: %v; want end of file", err)
	}
	if err := s.offer("two", pipeStream{guest}); !errdefs.IsUnavailable(err) {
		t.Errorf("offer after close: %v; want Unavailable", err)
	}
}
