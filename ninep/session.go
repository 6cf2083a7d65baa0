package ninep

import (
	"bufio"
	"container/list"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

const (
	// maxInFlight bounds the requests that run at the same time, and with
	// msize the memory that a session takes: a request and a reply each.
	maxInFlight = 16
	// maxXattrBytes bounds the values that fids made by Txattrwalk and
	// Txattrcreate hold.
	maxXattrBytes = 4 << 20
	readAhead     = 16 << 10
)

// session is one connection's state. Requests run in goroutines of their own,
// except for Tversion, which waits for all others; one goroutine writes the
// replies.
type session struct {
	tree *Tree
	// conn and fail are set before run. fail ends the session with an error; the
	// first one counts.
	conn net.Conn
	fail context.CancelCauseFunc

	// msize is 0 until the client has said Tversion. It only changes while
	// no request is in flight.
	msize uint32
	fids  fidTable
	locks lockTable

	pins       pinTable
	xattrBytes atomic.Int64

	inFlight inFlight
	handlers sync.WaitGroup
}

func newSession(t *Tree) *session {
	return &session{
		tree:  t,
		fids:  fidTable{fids: make(map[uint32]*fid), max: t.opts.MaxFids},
		locks: lockTable{lockers: make(map[lockKey]*locker)},
		pins: pinTable{
			budget: t.opts.MaxPinned, maxNodes: t.opts.MaxFids, birth: t.birthIsStable,
			idle: list.New(), byName: make(map[entryName]map[*node]struct{}),
		},
		inFlight: newInFlight(),
	}
}

// run serves until the connection ends or ctx does, and cleans up.
func (s *session) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.conn.Close() })
	defer stop()

	written := make(chan struct{})
	go func() {
		defer close(written)
		s.writeReplies()
	}()

	err := s.readRequests(ctx)
	// The end of the input is the end of the session: requests still running
	// finish, but there is nobody to wait for while their replies are sent.
	s.fail(err)
	s.conn.Close()
	s.handlers.Wait()
	s.inFlight.close()
	<-written
	s.dropFids()

	// A failed read may be only the consequence of what ended the session.
	if cause := context.Cause(ctx); cause != nil {
		err = cause
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("9p session: %w", err)
}

// readRequests starts a handler for every message. It returns io.EOF if the
// client closed the connection between two messages.
func (s *session) readRequests(ctx context.Context) error {
	in := bufio.NewReaderSize(s.conn, readAhead)
	for {
		var header [headerSize]byte
		if _, err := io.ReadFull(in, header[:]); err != nil {
			return err
		}
		size := binary.LittleEndian.Uint32(header[:])
		typ, tag := header[4], binary.LittleEndian.Uint16(header[5:])
		limit := s.msize
		if limit == 0 {
			limit = helloMsize
		}
		if size < headerSize || size > limit {
			return fmt.Errorf("%w: size %d, want %d to %d", errMalformed, size, headerSize, limit)
		}
		if s.msize == 0 && typ != msgTversion {
			return fmt.Errorf("%w: type %d before the version was agreed on", errMalformed, typ)
		}
		// Waiting for a free slot before reading on is what keeps a client
		// that sends faster than it is served from piling up memory.
		if err := s.inFlight.acquire(ctx); err != nil {
			return err
		}
		body := getBuffer(int(size) - headerSize)
		if _, err := io.ReadFull(in, body); err != nil {
			return fmt.Errorf("message of %d bytes cut short: %w", size, io.ErrUnexpectedEOF)
		}
		req := &request{typ: typ, tag: tag, body: body, done: make(chan struct{})}
		if typ == msgTflush {
			req.flushed = s.inFlight.find(decodeFlush(body))
		}
		if err := s.inFlight.add(req); err != nil {
			return err
		}
		if typ == msgTversion {
			s.handlers.Wait()
			s.handle(ctx, req)
			continue
		}
		s.handlers.Add(1)
		go func() {
			defer s.handlers.Done()
			s.handle(ctx, req)
		}()
	}
}

// handle runs one request and queues its reply.
func (s *session) handle(ctx context.Context, req *request) {
	r := newReply()
	err := s.dispatch(ctx, req, r)
	putBuffer(req.body)
	replyType := req.typ + 1
	if err == nil && s.msize != 0 && len(r.b) > int(s.msize) {
		err = linuxEMSGSIZE
	}
	if err != nil {
		if errors.Is(err, errMalformed) {
			s.fail(fmt.Errorf("%w: type %d, %d bytes", err, req.typ, headerSize+len(req.body)))
		}
		r.fail(toErrno(err))
		replyType = msgRlerror
	}
	r.finish(replyType, req.tag)
	s.inFlight.complete(req, r)
}

func (s *session) dispatch(ctx context.Context, req *request, r *reply) error {
	d := &decoder{b: req.body}
	if op, ok := operations[req.typ]; ok {
		return op(s, d, r)
	}
	switch req.typ {
	case msgTflush:
		return s.flush(ctx, d, req.flushed)
	case msgTauth, msgTrename, msgTremove:
		return s.unsupported(req.typ, d)
	}
	return linuxEOPNOTSUPP
}

// operations are the requests that need nothing but their fields. Each decodes
// its message completely before it acts, and appends the reply's fields.
var operations = map[uint8]func(*session, *decoder, *reply) error{
	msgTversion:     (*session).version,
	msgTattach:      (*session).attach,
	msgTwalk:        (*session).walk,
	msgTclunk:       (*session).clunk,
	msgTlopen:       (*session).lopen,
	msgTlcreate:     (*session).lcreate,
	msgTread:        (*session).read,
	msgTwrite:       (*session).write,
	msgTreaddir:     (*session).readdir,
	msgTfsync:       (*session).fsync,
	msgTgetattr:     (*session).getattr,
	msgTsetattr:     (*session).setattr,
	msgTstatfs:      (*session).statfs,
	msgTreadlink:    (*session).readlink,
	msgTmkdir:       (*session).mkdir,
	msgTsymlink:     (*session).symlink,
	msgTmknod:       (*session).mknod,
	msgTlink:        (*session).link,
	msgTrenameat:    (*session).renameat,
	msgTunlinkat:    (*session).unlinkat,
	msgTxattrwalk:   (*session).xattrwalk,
	msgTxattrcreate: (*session).xattrcreate,
	msgTlock:        (*session).lock,
	msgTgetlock:     (*session).getlock,
}

// version starts the session anew: size[4] version[s]. readRequests has made
// sure that no other request is in flight.
func (s *session) version(d *decoder, r *reply) error {
	msize, version := d.u32(), d.str()
	if err := d.done(); err != nil {
		return err
	}
	if msize < minMsize {
		return linuxEINVAL
	}
	s.dropFids()
	s.msize = min(msize, maxMsize)
	r.u32(s.msize)
	if version != protocolVersion {
		s.msize = 0
		r.str(unknownVersion)
		return nil
	}
	r.str(protocolVersion)
	return nil
}

func decodeFlush(body []byte) (oldTag uint16) {
	d := decoder{b: body}
	return d.u16()
}

// flush answers when the request it is about has been answered, or at once if
// there is none: requests are short, so none is interrupted, and the protocol
// only demands that nothing about the old tag follows the Rflush.
func (s *session) flush(ctx context.Context, d *decoder, old *request) error {
	d.u16()
	if err := d.done(); err != nil {
		return err
	}
	if old == nil {
		return nil
	}
	select {
	case <-old.done:
		return nil
	case <-ctx.Done():
		return linuxEIO
	}
}

// unsupported answers requests that Linux's client replaces by others
// (Tunlinkat, Trenameat) or never makes. Tremove and Trename would have to
// find a fid's name again. Tremove clunks its fid all the same.
func (s *session) unsupported(typ uint8, d *decoder) error {
	if typ == msgTremove {
		id := d.u32()
		if err := d.done(); err != nil {
			return err
		}
		f, err := s.fids.remove(id)
		if err != nil {
			return err
		}
		s.put(f)
	}
	return linuxEOPNOTSUPP
}

func (s *session) dropFids() {
	for _, f := range s.fids.removeAll() {
		s.put(f)
	}
}

// writeReplies writes until the queue is closed. After an error it only keeps
// the slots moving.
func (s *session) writeReplies() {
	failed := false
	for r := range s.inFlight.replies {
		if !failed {
			if _, err := s.conn.Write(r.b); err != nil {
				s.fail(fmt.Errorf("write reply: %w", err))
				failed = true
			}
		}
		putBuffer(r.b)
		s.inFlight.releaseSlot()
	}
}
