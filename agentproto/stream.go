package agentproto

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
)

// A data connection starts with a preface from the host:
//
//	magic "BHS1" | length uint16, big endian | id, length bytes of UTF-8
//
// and the agent's one-byte answer. After prefaceAccepted the connection is a
// raw byte stream. Its end is in band: each side shuts down its sending
// direction after its last byte, so the end can never overtake data.

const (
	prefaceMagic = "BHS1"
	// maxStreamID bounds what a peer can make the reader allocate.
	maxStreamID = 512

	prefaceAccepted byte = 0
	prefaceRefused  byte = 1
)

// ErrStreamRefused is returned by OpenStream when the agent would not take the
// stream: its id is already in use, or the agent is going away.
var ErrStreamRefused = errors.New("stream refused by the agent")

// OpenStream writes the preface for id on a fresh connection and reads the
// answer. It is the host's half. The caller sets deadlines on rw and closes it
// on error.
func OpenStream(rw io.ReadWriter, id string) error {
	if id == "" || len(id) > maxStreamID {
		return fmt.Errorf("stream id of %d bytes: want 1 to %d", len(id), maxStreamID)
	}
	buf := make([]byte, 0, len(prefaceMagic)+2+len(id))
	buf = append(buf, prefaceMagic...)
	buf = binary.BigEndian.AppendUint16(buf, uint16(len(id)))
	buf = append(buf, id...)
	if _, err := rw.Write(buf); err != nil {
		return fmt.Errorf("write stream preface: %w", err)
	}
	var answer [1]byte
	if _, err := io.ReadFull(rw, answer[:]); err != nil {
		return fmt.Errorf("read answer to stream preface: %w", err)
	}
	if answer[0] != prefaceAccepted {
		return fmt.Errorf("stream %q: %w", id, ErrStreamRefused)
	}
	return nil
}

// ReadPreface reads what OpenStream wrote. It is the agent's half, and must be
// followed by AnswerPreface.
func ReadPreface(r io.Reader) (id string, err error) {
	var head [len(prefaceMagic) + 2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", fmt.Errorf("read stream preface: %w", err)
	}
	if string(head[:len(prefaceMagic)]) != prefaceMagic {
		return "", fmt.Errorf("stream preface starts with %q, want %q", head[:len(prefaceMagic)], prefaceMagic)
	}
	n := binary.BigEndian.Uint16(head[len(prefaceMagic):])
	if n == 0 || n > maxStreamID {
		return "", fmt.Errorf("stream preface announces an id of %d bytes: want 1 to %d", n, maxStreamID)
	}
	buf := make([]byte, n)
	if _, err := io.ReadFull(r, buf); err != nil {
		return "", fmt.Errorf("read stream id: %w", err)
	}
	return string(buf), nil
}

// AnswerPreface accepts or refuses the stream that ReadPreface announced.
func AnswerPreface(w io.Writer, accept bool) error {
	answer := prefaceAccepted
	if !accept {
		answer = prefaceRefused
	}
	_, err := w.Write([]byte{answer})
	return err
}

const streamScheme = "stream"

// StreamURI is how a stream's id is written in the stdio fields of the guest's
// Task service: stdin, stdout and stderr of Create and Exec.
func StreamURI(id string) string {
	return (&url.URL{Scheme: streamScheme, Opaque: url.PathEscape(id)}).String()
}

// ParseStreamURI is the inverse of StreamURI.
func ParseStreamURI(s string) (id string, err error) {
	rest, ok := strings.CutPrefix(s, streamScheme+":")
	if !ok {
		return "", fmt.Errorf("stdio %q is not a %s: URI", s, streamScheme)
	}
	id, err = url.PathUnescape(rest)
	if err != nil {
		return "", fmt.Errorf("stdio %q: %w", s, err)
	}
	if id == "" || len(id) > maxStreamID {
		return "", fmt.Errorf("stdio %q: id of %d bytes: want 1 to %d", s, len(id), maxStreamID)
	}
	return id, nil
}
