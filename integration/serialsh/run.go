package serialsh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

const (
	// leastPiece and mostPiece are between what sizes of input, and of output at
	// a time, the line's own is looked for.
	leastPiece = 512
	mostPiece  = 64 << 10

	// grace is what a command has between SIGTERM and SIGKILL.
	grace = 10 * time.Second

	// Where there is nothing new, it is asked for again after an interval that
	// grows from the one to the other: the other side cannot say so by itself.
	leastInterval = 50 * time.Millisecond
	mostInterval  = time.Second
)

// Command is what to run.
type Command struct {
	// Line is for the shell of the other side.
	Line string
	// Stdin may be nil: then there is none.
	Stdin io.Reader
	// Stdout and Stderr get the command's output in its order, but not in the
	// order of the one to the other.
	Stdout, Stderr io.Writer
}

// Run runs a command on the root shell behind link and returns its exit code.
// When ctx ends, the command and what it has started is sent SIGTERM, and SIGKILL
// if it needs it. In the end the shell is as it was. A read from c.Stdin may
// outlive Run.
func Run(ctx context.Context, link Link, c Command) (code int, err error) {
	return runCommand(ctx, link, c, longSilence)
}

func runCommand(ctx context.Context, link Link, c Command, silence time.Duration) (code int, err error) {
	in := receive(link)
	defer func() { err = errors.Join(err, in.halt()) }()
	s, err := start(ctx, link, in, silence)
	if err != nil {
		return 0, err
	}
	// The command is looked after to its end.
	looked := context.WithoutCancel(ctx)
	r := &run{session: s, piece: leastPiece * 8, most: mostPiece}
	code, err = r.run(ctx, looked, c)
	if err != nil && ctx.Err() == nil {
		_, killErr := s.ask(looked, "kill", "KILL")
		err = errors.Join(err, killErr)
	}
	return code, errors.Join(err, s.end(looked))
}

// run is a command while it runs.
type run struct {
	*session

	next    int    // the number of the next piece
	pending []byte // input that is not yet taken
	ended   bool   // input has
	closed  bool   // and the other side knows
	piece   int    // how much input goes at a time

	out, err int // how much output has come
	most     int // how much comes at a time
}

func (r *run) run(ctx, looked context.Context, c Command) (int, error) {
	// A command of any length is input like the rest.
	r.pending = []byte(c.Line + "\n")
	if len(r.pending) > r.piece {
		return 0, fmt.Errorf("the command is longer than %d bytes", r.piece)
	}
	input := r.read(c.Stdin)
	for len(r.pending) > 0 {
		if _, err := r.put(looked); err != nil {
			return 0, err
		}
	}
	interval := leastInterval
	interrupted := ctx.Done()
	var killed <-chan time.Time
	for {
		moved, err := r.feed(looked)
		if err != nil {
			return 0, err
		}
		code, ended, got, err := r.get(looked, c.Stdout, c.Stderr)
		if err != nil {
			return 0, err
		}
		if ended && !got {
			return code, context.Cause(ctx)
		}
		interval = min(2*interval, mostInterval)
		if moved || got {
			interval = leastInterval
		}
		// Input is read when the piece before has been taken.
		from := input
		if len(r.pending) > 0 || r.ended {
			from = nil
		}
		var wait <-chan time.Time
		if got || moved {
			wait = time.After(0)
		} else {
			wait = time.After(interval)
		}
		select {
		case p, ok := <-from:
			r.pending, r.ended = p, !ok
		case <-interrupted:
			interrupted, killed = nil, time.After(grace)
			if _, err := r.ask(looked, "kill", "TERM"); err != nil {
				return 0, err
			}
		case <-killed:
			if _, err := r.ask(looked, "kill", "KILL"); err != nil {
				return 0, err
			}
		case <-wait:
		}
	}
}

// read makes pieces of in, until the run is over.
func (r *run) read(in io.Reader) <-chan []byte {
	pieces := make(chan []byte)
	go func() {
		defer close(pieces)
		if in == nil {
			return
		}
		for {
			p := make([]byte, mostPiece)
			n, err := io.ReadAtLeast(in, p, 1)
			if n > 0 {
				select {
				case pieces <- p[:n]:
				case <-r.in.stop:
					return
				}
			}
			if err != nil {
				return
			}
		}
	}()
	return pieces
}

// feed gives the command some of its input if it takes it, and says whether it
// did.
func (r *run) feed(ctx context.Context) (bool, error) {
	switch {
	case len(r.pending) > 0:
		return r.put(ctx)
	case r.ended && !r.closed:
		f, err := r.ask(ctx, "eof")
		r.closed = f.word == "done"
		return r.closed, err
	}
	return false, nil
}

// put brings the next piece across, and says whether it did: not while the
// command has not read the one before.
func (r *run) put(ctx context.Context) (bool, error) {
	var failure error
	for range attempts {
		n := min(r.piece, len(r.pending))
		lines, err := pack(r.pending[:n])
		if err != nil {
			return false, err
		}
		f, err := r.ask(ctx, "put", r.next)
		if err != nil {
			return false, err
		}
		if f.word == "ready" {
			if err := r.write(string(lines)); err != nil {
				return false, err
			}
			if f, err = r.await(ctx, fmt.Sprint(r.seq)); again(err) {
				// Whether it was taken is not known: the same piece again.
				failure = err
				if err := r.write("\n.\n"); err != nil {
					return false, err
				}
				continue
			} else if err != nil {
				return false, err
			}
		}
		switch f.word {
		case "done":
			r.pending = r.pending[n:]
			r.next++
			r.piece = min(2*r.piece, mostPiece)
			return true, nil
		case "busy":
			return false, nil
		}
		// It was too much at a time, if it was not bad luck.
		failure = fmt.Errorf("a piece of %d bytes: %w", n, errDamaged)
		r.piece = max(n/2, leastPiece)
	}
	return false, failure
}

// get fetches what there is of output. got says that there was some, ended that
// the command has.
func (r *run) get(ctx context.Context, stdout, stderr io.Writer) (code int, ended, got bool, err error) {
	var f frame
	for range attempts {
		f, err = r.askOnce(ctx, "get", r.out, r.err, r.most)
		if err == nil {
			r.most = min(2*r.most, mostPiece)
			break
		}
		if !again(err) {
			return 0, false, false, err
		}
		r.most = max(r.most/2, leastPiece)
	}
	if err != nil {
		return 0, false, false, fmt.Errorf("get: %w", err)
	}
	head, data, _ := bytes.Cut(f.data, []byte("\n"))
	var word string
	var out, errs int
	if _, err := fmt.Sscan(string(head), &word, &out, &errs); err != nil || len(data) != out+errs || out < 0 || errs < 0 {
		return 0, false, false, fmt.Errorf("the other side says %q of %d bytes", head, len(data))
	}
	if word != "-" {
		ended = true
		if _, err := fmt.Sscan(word, &code); err != nil {
			return 0, false, false, fmt.Errorf("exit code %q", word)
		}
	}
	if _, err := stdout.Write(data[:out]); err != nil {
		return 0, false, false, err
	}
	if _, err := stderr.Write(data[out:]); err != nil {
		return 0, false, false, err
	}
	r.out, r.err = r.out+out, r.err+errs
	return code, ended, out+errs > 0, nil
}
