package serialsh

import (
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"
)

//go:embed remote.sh
var remote []byte

const (
	// longSilence is how long the line may be quiet before what was asked is taken
	// for lost. An emulated host whose processors are busy is slow to start a
	// program, and asking again costs nothing but time.
	longSilence = 30 * time.Second
	// attempts is how often anything is asked for.
	attempts = 8
	// writeTimeout bounds how long the line may take to accept a piece: at 9600
	// baud, half a minute for 32 KiB.
	writeTimeout = 2 * time.Minute
)

var errSilent = errors.New("no answer from the serial console")

// session is the script on the other side, running.
type session struct {
	link  Link
	in    *receiver
	nonce string
	seq   int
	// silence is longSilence but in tests.
	silence time.Duration
}

// start brings the script to the shell behind the line and runs it. Between the
// requests of an earlier session that did not end well, the line may be in the
// hands of a script like it, or of its wait for a piece: both are ended first.
func start(ctx context.Context, link Link, in *receiver, silence time.Duration) (*session, error) {
	s := &session{link: link, in: in, silence: silence}
	script, err := pack(remote)
	if err != nil {
		return nil, err
	}
	for i := range attempts {
		// The shell may wait for the other end of a quotation. It is not done
		// first: an earlier script, ended by it, could not clean up.
		if i%2 == 1 {
			if err := s.write("\x03"); err != nil {
				return nil, err
			}
		}
		if err = s.load(ctx, script); err == nil {
			return s, nil
		}
		if !again(err) {
			break
		}
	}
	return nil, fmt.Errorf("start on the serial console: %w", err)
}

func (s *session) load(ctx context.Context, script []byte) error {
	const (
		quiet = `sh -c 'stty -echo icanon;printf "\001NONCE quiet\002\n"'`
		load  = `sh -c 'D=/var/tmp/serialsh.NONCE;mkdir -pm 700 $D;printf "\001NONCE ready\002\n";` +
			`sed -n "/^[.]/q;p"|(b64decode -r||base64 -d) 2>/dev/null|gzip -dc>$D/sh&&sh $D/sh $D NONCE;` +
			`rm -rf $D;stty echo;printf "\001NONCE over\002\n"'`
	)
	// Not one of an attempt before: what that has said may be on its way.
	var raw [4]byte
	rand.Read(raw[:])
	s.nonce = hex.EncodeToString(raw[:])
	say := func(line string) string { return strings.ReplaceAll(line, "NONCE", s.nonce) + "\n" }
	if err := s.write("\n.\n" + request("0 end") + say(quiet)); err != nil {
		return err
	}
	if err := s.expect(ctx, "quiet"); err != nil {
		return err
	}
	if err := s.write(say(load)); err != nil {
		return err
	}
	if err := s.expect(ctx, "ready"); err != nil {
		return err
	}
	if err := s.write(string(script)); err != nil {
		return err
	}
	return s.expect(ctx, "up")
}

// expect awaits this word of the shell's.
func (s *session) expect(ctx context.Context, word string) error {
	f, err := s.await(ctx, s.nonce)
	if err == nil && f.word != word {
		err = fmt.Errorf("%q instead of %q: %w", f.word, word, errDamaged)
	}
	return err
}

// end ends the script, and awaits the shell's being the console's again.
func (s *session) end(ctx context.Context) error {
	if _, err := s.ask(ctx, "end"); err != nil {
		return err
	}
	return s.expect(ctx, "over")
}

// ask makes a request that may be repeated, until there is an answer.
func (s *session) ask(ctx context.Context, verb string, args ...any) (frame, error) {
	var err error
	for range attempts {
		var f frame
		if f, err = s.askOnce(ctx, verb, args...); err == nil || !again(err) {
			return f, err
		}
	}
	return frame{}, fmt.Errorf("%s: %w", verb, err)
}

func (s *session) askOnce(ctx context.Context, verb string, args ...any) (frame, error) {
	s.seq++
	seq := fmt.Sprint(s.seq)
	line := strings.TrimSpace(fmt.Sprintln(append([]any{seq, verb}, args...)...))
	if err := s.write(request(line)); err != nil {
		return frame{}, err
	}
	f, err := s.await(ctx, seq)
	if errors.Is(err, errSilent) {
		// It may have been taken for a line of a piece.
		err = errors.Join(err, s.write("\n.\n"))
	}
	return f, err
}

// request is a line twice, for the other side to compare.
func request(line string) string { return line + "=" + line + "\n" }

func again(err error) bool { return errors.Is(err, errSilent) || errors.Is(err, errDamaged) }

func (s *session) write(text string) error {
	s.link.SetWriteDeadline(time.Now().Add(writeTimeout))
	_, err := s.link.Write([]byte(text))
	return err
}

// await returns the frame with this number. Others are late answers to what has
// been asked again.
func (s *session) await(ctx context.Context, seq string) (frame, error) {
	began := time.Now()
	timer := time.NewTimer(s.silence)
	defer timer.Stop()
	for {
		select {
		case text := <-s.in.frames:
			f, err := parse(text)
			if err != nil {
				return frame{}, err
			}
			if f.seq == seq {
				return f, nil
			}
		case err := <-s.in.failed:
			return frame{}, fmt.Errorf("serial console: %w", err)
		case <-ctx.Done():
			return frame{}, ctx.Err()
		case <-timer.C:
			last := time.Unix(0, max(s.in.heard.Load(), began.UnixNano()))
			left := s.silence - time.Since(last)
			if left <= 0 {
				return frame{}, errSilent
			}
			timer.Reset(left)
		}
	}
}
