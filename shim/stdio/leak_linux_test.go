package stdio

import (
	"context"
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// held counts what a leak would show in: descriptors of pipes and sockets, and
// goroutines of this package and of package fifo.
func held(t *testing.T) (fds, goroutines int) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && (strings.HasPrefix(target, "socket:") || strings.HasPrefix(target, os.TempDir())) {
			fds++
		}
	}
	buf := make([]byte, 4<<20)
	for g := range strings.SplitSeq(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		if strings.Contains(g, "/shim/stdio.(*") || strings.Contains(g, "containerd/fifo.") {
			goroutines++
		}
	}
	return fds, goroutines
}

func TestNothingIsLeftBehind(t *testing.T) {
	for name, run := range map[string]func(*testing.T, *bed){
		"closed while idle": func(t *testing.T, b *bed) {
			r1, r2, w := b.client(b.cfg.Stdout, os.O_RDONLY), b.client(b.cfg.Stderr, os.O_RDONLY), (*os.File)(nil)
			o := b.open()
			w = b.client(b.cfg.Stdin, os.O_WRONLY)
			o.Close()
			r1.Close()
			r2.Close()
			w.Close()
		},
		"closed without a stdin writer": func(t *testing.T, b *bed) {
			r1, r2 := b.client(b.cfg.Stdout, os.O_RDONLY), b.client(b.cfg.Stderr, os.O_RDONLY)
			b.open().Close()
			r1.Close()
			r2.Close()
		},
		"closed with full pipes": func(t *testing.T, b *bed) {
			r1, r2 := b.client(b.cfg.Stdout, os.O_RDONLY), b.client(b.cfg.Stderr, os.O_RDONLY)
			o := b.open()
			w := b.client(b.cfg.Stdin, os.O_WRONLY)
			for _, c := range []interface {
				SetWriteDeadline(time.Time) error
				Write([]byte) (int, error)
			}{b.end("stdout"), w} {
				must(t, c.SetWriteDeadline(time.Now().Add(300*time.Millisecond)))
				if _, err := c.Write(make([]byte, 64<<20)); !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatal(err)
				}
			}
			o.Close()
			o.Close()
			r1.Close()
			r2.Close()
			w.Close()
		},
		"aborted and closed": func(t *testing.T, b *bed) {
			r1, r2 := b.client(b.cfg.Stdout, os.O_RDONLY), b.client(b.cfg.Stderr, os.O_RDONLY)
			o := b.open()
			o.Abort()
			o.WaitDrained(context.Background(), patience)
			o.Close()
			r1.Close()
			r2.Close()
		},
		"no client within the deadline": func(t *testing.T, b *bed) {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			defer cancel()
			if _, err := Open(ctx, b.cfg, b.streams()); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		},
		"second FIFO missing": func(t *testing.T, b *bed) {
			r := b.client(b.cfg.Stdout, os.O_RDONLY)
			b.cfg.Stderr += ".none"
			if _, err := Open(context.Background(), b.cfg, b.streams()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "stderr") {
				t.Errorf("got %v", err)
			}
			r.Close()
		},
		"stdin FIFO missing": func(t *testing.T, b *bed) {
			r1, r2 := b.client(b.cfg.Stdout, os.O_RDONLY), b.client(b.cfg.Stderr, os.O_RDONLY)
			b.cfg.Stdin += ".none"
			if _, err := Open(context.Background(), b.cfg, b.streams()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "stdin") {
				t.Errorf("got %v", err)
			}
			r1.Close()
			r2.Close()
		},
		"link refuses the last stream": func(t *testing.T, b *bed) {
			r1, r2 := b.client(b.cfg.Stdout, os.O_RDONLY), b.client(b.cfg.Stderr, os.O_RDONLY)
			refusal := errors.New("refused")
			s := b.streams()
			s.Dial = func(ctx context.Context, id string) (net.Conn, error) {
				if id == "p/stdin" {
					return nil, refusal
				}
				return b.dial(ctx, id)
			}
			_, err := Open(context.Background(), b.cfg, s)
			if !errors.Is(err, refusal) || !strings.Contains(err.Error(), "stdin") {
				t.Errorf("got %v", err)
			}
			r1.Close()
			r2.Close()
		},
	} {
		t.Run(name, func(t *testing.T) {
			fds, goroutines := held(t)
			b := newBed(t, "stdin", "stdout", "stderr")
			run(t, b)
			b.close()
			eventually(t, "descriptors and goroutines are back to what they were", func() bool {
				f, g := held(t)
				return f <= fds && g <= goroutines
			})
		})
	}
}
