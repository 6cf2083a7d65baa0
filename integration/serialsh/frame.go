package serialsh

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// Each answer stands between these two characters, which neither a kernel's
// messages nor the echo of what was typed contain.
const (
	frameStart = 1
	frameEnd   = 2
	// maxFrame is the largest answer: mostPiece, were it not compressed at all,
	// in base64 and with all its line ends.
	maxFrame = 2 * mostPiece
)

// words are the answers that are not data.
var words = []string{"quiet", "ready", "up", "over", "done", "busy", "damaged"}

// frame is one answer: a word, or what was wanted.
type frame struct {
	seq  string
	word string
	data []byte
}

var errDamaged = errors.New("damaged on its way")

// parse reads what stands in a frame.
func parse(text []byte) (frame, error) {
	seq, rest, ok := strings.Cut(string(text), " ")
	if !ok {
		return frame{}, errDamaged
	}
	encoded, isData := strings.CutPrefix(rest, ".")
	if !isData {
		// A message in the middle makes none of them another.
		if !slices.Contains(words, rest) {
			return frame{}, errDamaged
		}
		return frame{seq: seq, word: rest}, nil
	}
	data, err := unpack(encoded)
	if err != nil {
		return frame{}, fmt.Errorf("%w: %w", errDamaged, err)
	}
	return frame{seq: seq, data: data}, nil
}

func unpack(encoded string) ([]byte, error) {
	packed, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, err
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(z)
}

// lineLength is that of encoded input. Terminals take lines of 255 characters
// (MAX_CANON).
const lineLength = 240

// pack is the other direction: lines, and a dot for their end.
func pack(data []byte) ([]byte, error) {
	var packed, lines bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(data); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	encoded := base64.StdEncoding.EncodeToString(packed.Bytes())
	for len(encoded) > 0 {
		n := min(lineLength, len(encoded))
		lines.WriteString(encoded[:n] + "\n")
		encoded = encoded[n:]
	}
	lines.WriteString(".\n")
	return lines.Bytes(), nil
}

// receiver finds the frames in what the line says.
type receiver struct {
	link   Link
	frames chan []byte
	// failed has the error that reading has ended with.
	failed chan error
	// heard is when the last character came, in nanoseconds.
	heard      atomic.Int64
	stop, done chan struct{}
}

// receive reads until halt is called.
func receive(link Link) *receiver {
	r := &receiver{
		link: link, frames: make(chan []byte), failed: make(chan error, 1),
		stop: make(chan struct{}), done: make(chan struct{}),
	}
	go func() {
		defer close(r.done)
		r.failed <- r.run()
	}()
	return r
}

func (r *receiver) run() error {
	buf := make([]byte, 4096)
	var text []byte
	inside := false
	for {
		n, err := r.link.Read(buf)
		if n > 0 {
			r.heard.Store(time.Now().UnixNano())
		}
		for _, c := range buf[:n] {
			switch {
			case c == frameStart:
				inside, text = true, nil
			case inside && c == frameEnd:
				inside = false
				select {
				case r.frames <- text:
				case <-r.stop:
					return nil
				}
			case inside && len(text) < maxFrame:
				text = append(text, c)
			}
		}
		if err != nil {
			return err
		}
	}
}

// halt leaves the line to the next reader.
func (r *receiver) halt() error {
	close(r.stop)
	err := r.link.SetReadDeadline(time.Unix(1, 0))
	<-r.done
	return errors.Join(err, r.link.SetReadDeadline(time.Time{}))
}
