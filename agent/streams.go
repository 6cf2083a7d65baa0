//go:build linux

package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
)

const (
	// prefaceTimeout bounds how long a connection may take to say what it is.
	prefaceTimeout = 10 * time.Second
	// claimTimeout bounds how long a connection waits for the request that
	// names it.
	claimTimeout = 60 * time.Second
)

// stream is a data connection. Its two directions end apart from each other.
type stream interface {
	net.Conn
	CloseWrite() error
}

// streams are the accepted data connections of one port that no request has
// named yet. It owns them until they are claimed, and closes the ones that are
// not.
type streams struct {
	claimTimeout time.Duration

	mu     sync.Mutex
	closed bool
	byID   map[string]*waiting
}

type waiting struct {
	stream
	expiry *time.Timer
}

func newStreams() *streams {
	return &streams{claimTimeout: claimTimeout, byID: map[string]*waiting{}}
}

// serve accepts connections until l is closed.
func (s *streams) serve(ctx context.Context, l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept data connection: %w", err)
		}
		go func() {
			if err := s.admit(conn); err != nil {
				log.G(ctx).WithError(err).Warn("data connection refused")
				conn.Close()
			}
		}()
	}
}

// admit reads the preface of conn, registers it and answers, in this order:
// once the host has its answer, the stream can be claimed.
func (s *streams) admit(conn net.Conn) error {
	st, ok := conn.(stream)
	if !ok {
		return fmt.Errorf("%T has no half-close: %w", conn, errdefs.ErrNotImplemented)
	}
	if err := conn.SetDeadline(time.Now().Add(prefaceTimeout)); err != nil {
		return err
	}
	id, err := agentproto.ReadPreface(conn)
	if err != nil {
		return err
	}
	if err := s.offer(id, st); err != nil {
		return errors.Join(err, agentproto.AnswerPreface(conn, false))
	}
	if err := agentproto.AnswerPreface(conn, true); err != nil {
		s.claim(id)
		return fmt.Errorf("stream %q: %w", id, err)
	}
	return nil
}

// offer makes st claimable, and takes it over. Errors are AlreadyExists and,
// after close, Unavailable; st is the caller's then.
func (s *streams) offer(id string, st stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("stream %q: the agent is going away: %w", id, errdefs.ErrUnavailable)
	}
	if _, taken := s.byID[id]; taken {
		return fmt.Errorf("stream %q: %w", id, errdefs.ErrAlreadyExists)
	}
	w := &waiting{stream: st}
	w.expiry = time.AfterFunc(s.claimTimeout, func() { s.expire(id, w) })
	s.byID[id] = w
	return nil
}

func (s *streams) expire(id string, w *waiting) {
	s.mu.Lock()
	expired := s.byID[id] == w
	if expired {
		delete(s.byID, id)
	}
	s.mu.Unlock()
	if expired {
		log.L.WithField("stream", id).Warnf("no request has named this stream for %s: closed", s.claimTimeout)
		w.Close()
	}
}

// claim hands over the stream with this id, for the caller to close. NotFound
// if there is none.
func (s *streams) claim(id string) (stream, error) {
	s.mu.Lock()
	w, ok := s.byID[id]
	delete(s.byID, id)
	s.mu.Unlock()
	if !ok {
		return nil, fmt.Errorf("stream %q has not been opened: %w", id, errdefs.ErrNotFound)
	}
	w.expiry.Stop()
	// The deadline was the preface's.
	if err := w.SetDeadline(time.Time{}); err != nil {
		w.Close()
		return nil, fmt.Errorf("stream %q: %w", id, err)
	}
	return w.stream, nil
}

// close closes what is unclaimed, and refuses what comes later.
func (s *streams) close() {
	s.mu.Lock()
	byID := s.byID
	s.byID, s.closed = nil, true
	s.mu.Unlock()
	for _, w := range byID {
		w.expiry.Stop()
		w.Close()
	}
}
