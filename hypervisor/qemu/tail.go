//go:build linux

package qemu

import "sync"

// tail keeps the last bytes written to it, at most max. It never fails and
// never blocks: what is written comes from a guest or a process that may not
// be able to fill the host's memory, and should not wait for a reader.
type tail struct {
	max int

	mu   sync.Mutex
	buf  []byte
	next int // where the oldest byte is once buf is full
}

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	n := len(p)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(p) > t.max {
		p = p[len(p)-t.max:]
	}
	fresh := min(len(p), t.max-len(t.buf))
	t.buf = append(t.buf, p[:fresh]...)
	for p = p[fresh:]; len(p) > 0; {
		c := copy(t.buf[t.next:], p)
		p = p[c:]
		t.next = (t.next + c) % t.max
	}
	return n, nil
}

// Bytes returns a copy of what is kept, oldest first.
func (t *tail) Bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append(append(make([]byte, 0, len(t.buf)), t.buf[t.next:]...), t.buf[:t.next]...)
}
