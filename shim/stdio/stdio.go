// Package stdio carries the standard streams of one process between the link
// and what containerd's client has named for them: FIFOs, files or a logger.
//
// Each stream is a connection of its own, opened before the process is made, so
// that the process can never run ahead of its output. The end of a stream is in
// band on both sides: the writing end of a FIFO is closed, the sending half of a
// connection is shut down. Nothing that travels beside the data says that it is
// over, so nothing can overtake it.
package stdio

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/receipt"
)

// Dialer opens a stream with this id on the link.
type Dialer func(ctx context.Context, id string) (net.Conn, error)

// Streams is the process that an IO is for.
type Streams struct {
	// Prefix starts the ids of the process's streams on the link. It is unique
	// in the machine.
	Prefix string
	// ID is the container's id, or that of an exec, and Namespace containerd's:
	// what a logger is told.
	ID, Namespace string
	Dial          Dialer
	// Receipts is the container's book.
	Receipts *receipt.Book
}

// IO is the running streams of one process. It is safe for concurrent use.
type IO struct {
	prefix  string
	guest   Config
	stdin   *input
	outputs []*output

	// moved counts the bytes that went either way, for WaitDrained to tell a
	// slow stream from a stuck one.
	moved   atomic.Int64
	drained chan struct{}

	logger *logger // nil if there is none
	close  sync.Once
}

// Open connects the streams that cfg names. It returns once the client has
// opened its ends of the output FIFOs, as every shim does: a writer that came
// and went before its reader would lose what it wrote. Likewise it returns once
// a logger is ready. Output flows from then on, input from StartInput. On error
// everything is closed again.
func Open(ctx context.Context, cfg Config, s Streams) (_ *IO, err error) {
	where, err := cfg.parse()
	if err != nil {
		return nil, err
	}
	o := &IO{prefix: s.Prefix, guest: Config{Terminal: cfg.Terminal}, drained: make(chan struct{})}
	defer func() {
		if err != nil {
			o.Close()
			o.AwaitLogger(context.WithoutCancel(ctx))
		}
	}()

	sinks, err := o.openSinks(ctx, where, s)
	// Those that no output has taken.
	defer func() { sinks.close() }()
	if err != nil {
		return nil, err
	}
	connect := func(name string, guest *string) (net.Conn, error) {
		stream := s.Prefix + "/" + name
		conn, err := s.Dial(ctx, stream)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		*guest = agentproto.StreamURI(stream)
		return conn, nil
	}
	for _, out := range []struct {
		name  string
		sink  *sink
		guest *string
	}{{"stdout", &sinks.stdout, &o.guest.Stdout}, {"stderr", &sinks.stderr, &o.guest.Stderr}} {
		if *out.sink == nil {
			continue
		}
		conn, err := connect(out.name, out.guest)
		if err != nil {
			return nil, err
		}
		copied, err := newOutput(out.name, *out.sink, conn, &o.moved)
		if err != nil {
			conn.Close()
			return nil, fmt.Errorf("%s: %w", out.name, err)
		}
		*out.sink = nil
		o.outputs = append(o.outputs, copied)
	}
	if where.stdin != nil {
		conn, err := connect("stdin", &o.guest.Stdin)
		if err != nil {
			return nil, err
		}
		if o.stdin, err = openInput(where.stdin.path, conn, &o.moved); err != nil {
			conn.Close()
			return nil, fmt.Errorf("stdin: %w", err)
		}
	}
	o.run(ctx)
	return o, nil
}

// None is the streams of a process that has none.
func None() *IO {
	drained := make(chan struct{})
	close(drained)
	return &IO{drained: drained}
}

func (o *IO) run(ctx context.Context) {
	// The copies outlive the request that opened them.
	ctx = context.WithoutCancel(ctx)
	var wg sync.WaitGroup
	for _, out := range o.outputs {
		wg.Go(func() {
			if err := out.copy(); err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, os.ErrClosed) {
				log.G(ctx).WithError(err).WithField("stream", o.prefix+"/"+out.name).Warn("output ended early")
			}
		})
	}
	go func() {
		wg.Wait()
		close(o.drained)
	}()
}

// StartInput begins to read what the client has for the process. It is called
// when the process is started; calling it again does nothing.
func (o *IO) StartInput(ctx context.Context) error {
	if o.stdin == nil {
		return nil
	}
	copy, err := o.stdin.start()
	if err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	if copy == nil {
		return nil
	}
	ctx = context.WithoutCancel(ctx)
	go func() {
		// A process may exit without having read its input.
		if err := copy(); err != nil {
			log.G(ctx).WithError(err).WithField("stream", o.prefix+"/stdin").Debug("input ended early")
		}
	}()
	return nil
}

// Guest is the same stdio in the guest's terms, for the agent's Task service.
func (o *IO) Guest() Config { return o.guest }

// CloseStdin ends the process's standard input after everything that the
// client has written up to now, or if it has not been started, up to then. It
// does not wait for that.
func (o *IO) CloseStdin() {
	if o.stdin != nil {
		o.stdin.finish()
	}
}

// WaitDrained waits until every byte of output has been handed to the client,
// and reports whether that came to pass. It gives up when ctx ends, or after
// nothing has moved for idle: then something other than the process holds its
// output open, or the client has stopped reading.
func (o *IO) WaitDrained(ctx context.Context, idle time.Duration) bool {
	tick := time.NewTicker(idle)
	defer tick.Stop()
	for last := o.moved.Load(); ; {
		select {
		case <-o.drained:
			return true
		case <-ctx.Done():
			return false
		case <-tick.C:
			now := o.moved.Load()
			if now == last {
				return false
			}
			last = now
		}
	}
}

// abortGrace is how long the reading of what a dead machine had already sent
// may take. The bytes are in the host's socket buffers by then.
const abortGrace = 200 * time.Millisecond

// Abort ends the streams of a machine that has died: what it had sent is still
// delivered, and no end of stream is waited for.
func (o *IO) Abort() {
	for _, out := range o.outputs {
		out.conn.SetReadDeadline(time.Now().Add(abortGrace))
	}
	if o.stdin != nil {
		o.stdin.close()
	}
}

// Close closes everything at once. What was not drained is lost. A logger is
// left to end, and made to after a while: see AwaitLogger.
func (o *IO) Close() {
	for _, out := range o.outputs {
		out.close()
	}
	if o.stdin != nil {
		o.stdin.close()
	}
	if o.logger != nil {
		o.close.Do(func() { o.logger.end() })
	}
}

// AwaitLogger waits, after Close, until the process's logger has ended, if it
// has one. That is bounded; the error is ctx's if it ends first.
func (o *IO) AwaitLogger(ctx context.Context) error {
	if o.logger == nil {
		return nil
	}
	select {
	case <-o.logger.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of logger %s: %w", o.logger.path, context.Cause(ctx))
	}
}
