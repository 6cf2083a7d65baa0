package proc

import (
	"testing"

	"github.com/containerd/errdefs"
)

func TestParseStat(t *testing.T) {
	const tail = " 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 98765 20 21"
	for _, c := range []struct {
		name, in string
		want     uint64
	}{
		{"plain", "42 (sleep) S" + tail, 98765},
		{"name made to confuse", "42 (a) Z 1 (b)) R" + tail, 98765},
	} {
		if got, err := parseStat([]byte(c.in)); err != nil || got != c.want {
			t.Errorf("%s: %d, %v; want %d", c.name, got, err, c.want)
		}
	}
	if _, err := parseStat([]byte("42 (sleep) Z" + tail)); !errdefs.IsNotFound(err) {
		t.Errorf("zombie: %v, want not found", err)
	}
	for _, in := range []string{"", "42 sleep S", "42 (sleep) S 1 2"} {
		if _, err := parseStat([]byte(in)); err == nil || errdefs.IsNotFound(err) {
			t.Errorf("%q: %v, want a parse error", in, err)
		}
	}
}
