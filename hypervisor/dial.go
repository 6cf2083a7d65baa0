package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"
)

const (
	// dialInterval is how often DialReady starts another attempt.
	dialInterval = 50 * time.Millisecond
	// dialsInFlight bounds the attempts that wait at the same time.
	dialsInFlight = 16
)

// DialReady dials port until the agent accepts, ctx ends or the machine dies.
//
// A booting guest neither refuses nor answers: a SYN to it is lost, and TCP
// sends the next one a whole second later. So attempts are started at a fixed
// short interval and left to run side by side; the first to connect wins. A
// slow guest is given as much time as ctx has, a fast one is noticed at once.
func DialReady(ctx context.Context, m Machine, port uint32) (net.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	type result struct {
		conn net.Conn
		err  error
	}
	results := make(chan result)
	inFlight := 0
	dial := func() {
		inFlight++
		go func() {
			conn, err := m.Dial(ctx, port)
			results <- result{conn, err}
		}()
	}
	// Attempts that lose the race are cancelled and their connections closed,
	// without the winner waiting for them.
	defer func() {
		left := inFlight
		go func() {
			for range left {
				if r := <-results; r.conn != nil {
					r.conn.Close()
				}
			}
		}()
	}()

	tick := time.NewTicker(dialInterval)
	defer tick.Stop()
	dial()
	var last error
	for {
		select {
		case r := <-results:
			inFlight--
			if r.err == nil {
				return r.conn, nil
			}
			last = r.err
		case <-tick.C:
			if inFlight < dialsInFlight {
				dial()
			}
		case <-m.Done():
			exit := m.Exit()
			return nil, fmt.Errorf("dial port %d: %w: %s (%s)", port, ErrExited, exit.Reason, exit.Detail)
		case <-ctx.Done():
			return nil, fmt.Errorf("dial port %d: %w", port, errors.Join(context.Cause(ctx), last))
		}
	}
}
