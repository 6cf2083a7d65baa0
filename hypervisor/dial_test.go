package hypervisor

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeMachine answers dials by a function, which is told how many there were
// before.
type fakeMachine struct {
	Machine
	dial func(ctx context.Context, n int) (net.Conn, error)
	done chan struct{}

	mu    sync.Mutex
	dials []time.Time
	open  int
}

func newFake(dial func(ctx context.Context, n int) (net.Conn, error)) *fakeMachine {
	return &fakeMachine{dial: dial, done: make(chan struct{})}
}

func (m *fakeMachine) Done() <-chan struct{} { return m.done }
func (m *fakeMachine) Exit() Exit            { return Exit{Reason: ExitReset, Detail: "panic"} }

func (m *fakeMachine) Dial(ctx context.Context, _ uint32) (net.Conn, error) {
	m.mu.Lock()
	n := len(m.dials)
	m.dials = append(m.dials, time.Now())
	m.mu.Unlock()
	return m.dial(ctx, n)
}

// connect is a connection that the machine counts as open until it is closed.
func (m *fakeMachine) connect() net.Conn {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.open++
	ours, theirs := net.Pipe()
	go func() {
		io.Copy(io.Discard, theirs)
		m.mu.Lock()
		defer m.mu.Unlock()
		m.open--
	}()
	return ours
}

var errRefused = errors.New("connection refused")

// lost is a dial whose packets get lost: it lasts until ctx ends.
func lost(ctx context.Context) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestDialReadyNoticesTheGuestAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const bootTime = 730 * time.Millisecond
		up := time.Now().Add(bootTime)
		var m *fakeMachine
		m = newFake(func(ctx context.Context, _ int) (net.Conn, error) {
			if time.Now().Before(up) {
				return lost(ctx)
			}
			return m.connect(), nil
		})
		conn, err := DialReady(t.Context(), m, 1)
		if err != nil {
			t.Fatal(err)
		}
		if late := time.Since(up); late > dialInterval {
			t.Errorf("connected %v after the guest was up, want at most %v", late, dialInterval)
		}
		synctest.Wait()
		if m.open != 1 {
			t.Errorf("%d connections are open, want the one returned", m.open)
		}
		conn.Close()
	})
}

func TestDialReadyOutlastsRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const refusals = 40
		var m *fakeMachine
		m = newFake(func(_ context.Context, n int) (net.Conn, error) {
			if n < refusals {
				return nil, errRefused
			}
			return m.connect(), nil
		})
		conn, err := DialReady(t.Context(), m, 1)
		if err != nil {
			t.Fatal(err)
		}
		conn.Close()
		for i, at := range m.dials[1:] {
			if gap := at.Sub(m.dials[i]); gap < dialInterval {
				t.Errorf("two attempts within %v: a guest that refuses is hammered", gap)
			}
		}
	})
}

func TestDialReadyBoundsAttemptsAndClosesLosers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		inFlight, most := 0, 0
		var m *fakeMachine
		release := make(chan struct{})
		m = newFake(func(context.Context, int) (net.Conn, error) {
			m.mu.Lock()
			inFlight++
			most = max(most, inFlight)
			m.mu.Unlock()
			<-release
			return m.connect(), nil
		})
		time.AfterFunc(10*time.Second, func() { close(release) })
		conn, err := DialReady(t.Context(), m, 1)
		if err != nil {
			t.Fatal(err)
		}
		// All attempts connected at the same time: one is used.
		synctest.Wait()
		if most != dialsInFlight {
			t.Errorf("%d attempts at the same time, want %d", most, dialsInFlight)
		}
		if m.open != 1 {
			t.Errorf("%d connections are open, want the one returned", m.open)
		}
		conn.Close()
	})
}

func TestDialReadyEndsWithTheMachine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake(func(ctx context.Context, _ int) (net.Conn, error) { return lost(ctx) })
		time.AfterFunc(time.Second, func() { close(m.done) })
		start := time.Now()
		_, err := DialReady(t.Context(), m, 1)
		if !errors.Is(err, ErrExited) || !strings.Contains(err.Error(), "panic") {
			t.Errorf("got %v, want that the machine has exited, and how", err)
		}
		if took := time.Since(start); took != time.Second {
			t.Errorf("noticed after %v", took)
		}
	})
}

func TestDialReadyEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newFake(func(context.Context, int) (net.Conn, error) { return nil, errRefused })
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := DialReady(ctx, m, 1)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, errRefused) {
			t.Errorf("got %v, want the deadline and why the last attempt failed", err)
		}
	})
}
