package bell

import "testing"

func rung(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestBell(t *testing.T) {
	var b Bell
	b.Ring() // Nobody waits.
	first, second := b.Next(), b.Next()
	if rung(first) {
		t.Error("it was rung before Next")
	}
	b.Ring()
	if !rung(first) || !rung(second) {
		t.Error("not all were woken")
	}
	if rung(b.Next()) {
		t.Error("who comes later is woken too")
	}
}
