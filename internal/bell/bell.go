// Package bell tells goroutines that what they wait for may have come, with
// channels, so that they can wait for something else as well: a context's end.
package bell

// Bell is rung whenever something changes that a mutex guards, which guards the
// bell as well. The zero value is ready.
type Bell struct{ rung chan struct{} }

// Next is closed by the next Ring. The caller holds the mutex, and has looked at
// what it waits for since it took it.
func (b *Bell) Next() <-chan struct{} {
	if b.rung == nil {
		b.rung = make(chan struct{})
	}
	return b.rung
}

// Ring wakes all who have called Next. The caller holds the mutex.
func (b *Bell) Ring() {
	if b.rung != nil {
		close(b.rung)
		b.rung = nil
	}
}
