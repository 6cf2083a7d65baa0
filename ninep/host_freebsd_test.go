package ninep

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Times that do not fit into 64 bits of nanoseconds.
func TestFarTimes(t *testing.T) {
	far := timespec{sec: 1 << 34, nsec: 5}
	if got, want := hostTime(timeChange{action: timeSet, to: far}), (unix.Timespec{Sec: 1 << 34, Nsec: 5}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}
