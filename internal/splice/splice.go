// Package splice joins two connections.
package splice

import (
	"context"
	"io"
)

// Conn is a connection whose directions end apart.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// Join copies from each connection to the other until both directions have
// ended, one of them has failed or ctx ends, and closes both.
func Join(ctx context.Context, a, b Conn) {
	cut := func() {
		a.Close()
		b.Close()
	}
	defer context.AfterFunc(ctx, cut)()
	done := make(chan struct{})
	one := func(dst, src Conn) {
		_, err := io.Copy(dst, src)
		if err == nil {
			err = dst.CloseWrite()
		}
		if err != nil {
			cut()
		}
	}
	go func() {
		defer close(done)
		one(a, b)
	}()
	one(b, a)
	<-done
	cut()
}
