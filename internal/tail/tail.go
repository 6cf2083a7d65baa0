// Package tail keeps the end of what a process or a guest has to say, for the
// error that will quote it.
package tail

import (
	"bytes"
	"sync"
)

// Buffer keeps the last bytes written to it, at most Max. It never fails and
// never blocks: what is written comes from a guest or a process that may not
// be able to fill the host's memory, and should not wait for a reader.
type Buffer struct {
	Max int

	mu   sync.Mutex
	buf  []byte
	next int // where the oldest byte is once buf is full
}

// Write implements io.Writer.
func (t *Buffer) Write(p []byte) (int, error) {
	n := len(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(p) > t.Max {
		p = p[len(p)-t.Max:]
	}
	fresh := min(len(p), t.Max-len(t.buf))
	t.buf = append(t.buf, p[:fresh]...)
	for p = p[fresh:]; len(p) > 0; {
		c := copy(t.buf[t.next:], p)
		p = p[c:]
		t.next = (t.next + c) % t.Max
	}
	return n, nil
}

// Bytes returns a copy of what is kept, oldest first.
func (t *Buffer) Bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append(append(make([]byte, 0, len(t.buf)), t.buf[t.next:]...), t.buf[:t.next]...)
}

// LastLine returns the last line that is not empty.
func (t *Buffer) LastLine() string {
	text := bytes.TrimSpace(t.Bytes())
	return string(text[bytes.LastIndexByte(text, '\n')+1:])
}
