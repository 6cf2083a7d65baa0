package task

import "testing"

func TestGuestSignal(t *testing.T) {
	const (
		hangup, kill, term          = 1, 9, 15 // the same everywhere
		linuxUser1, linuxUrgent     = 10, 23
		freebsdUser1, freebsdUrgent = 30, 16
	)
	for _, tc := range []struct {
		host       string
		from, want uint32
	}{
		{"freebsd", freebsdUser1, linuxUser1},
		{"freebsd", freebsdUrgent, linuxUrgent},
		{"freebsd", hangup, hangup}, {"freebsd", kill, kill}, {"freebsd", term, term},
		{"freebsd", 40, 40}, {"freebsd", 0, 0},
		{"linux", linuxUser1, linuxUser1}, {"linux", 30, 30},
	} {
		if got := guestSignal(tc.host, tc.from); got != tc.want {
			t.Errorf("%s's signal %d became %d, want %d", tc.host, tc.from, got, tc.want)
		}
	}
	seen := map[uint32]bool{}
	for _, to := range freebsdSignals {
		if seen[to] {
			t.Errorf("two signals become %d", to)
		}
		seen[to] = true
	}
}
