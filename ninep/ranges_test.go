package ninep

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestRangesAgreeWithBytes sets and removes locks at random, beside a model that
// knows every byte. The last of its bytes stands for all that follow.
func TestRangesAgreeWithBytes(t *testing.T) {
	const size, owners = 12, 3
	random := rand.New(rand.NewPCG(1, 2))
	var held heldRanges
	var model [owners][size]uint8
	for o := range model {
		for i := range model[o] {
			model[o][i] = lockUnlock
		}
	}
	for step := range 20_000 {
		owner, typ := random.IntN(owners), uint8(random.IntN(3))
		extent := byteRange{start: random.Int64N(size)}
		last := int64(size - 1)
		if extent.start < size-1 && random.IntN(4) > 0 {
			extent.length = 1 + random.Int64N(size-1-extent.start)
			last = extent.start + extent.length - 1
		}
		blocked := false
		for o := range owners {
			for i := extent.start; i <= last && o != owner; i++ {
				blocked = blocked || model[o][i] == lockWrite || model[o][i] == lockRead && typ == lockWrite
			}
		}
		if typ != lockUnlock {
			if _, got := held.blocker(owner, typ, extent); got != blocked {
				t.Fatalf("step %d: %d wants type %d of %v: blocked %v, want %v by %v", step, owner, typ, extent, got, blocked, held)
			}
			if blocked {
				continue
			}
		}
		held = held.with(owner, typ, extent)
		for i := extent.start; i <= last; i++ {
			model[owner][i] = typ
		}
		strongest := uint8(lockUnlock)
		for o := range owners {
			for i := range int64(size) {
				at := byteRange{start: i, length: 1}
				has := uint8(lockUnlock)
				for _, h := range held {
					if h.owner == o && h.overlaps(at) {
						has = h.typ
					}
				}
				if has != model[o][i] {
					t.Fatalf("step %d: %d has type %d at %d, want %d: %v", step, o, has, i, model[o][i], held)
				}
				if has == lockWrite || has == lockRead && strongest == lockUnlock {
					strongest = has
				}
			}
		}
		if got := held.strongest(); got != strongest {
			t.Fatalf("step %d: strongest %d, want %d", step, got, strongest)
		}
	}
}

func TestRangesAtTheEnd(t *testing.T) {
	held := heldRanges{}.with(1, lockWrite, byteRange{start: 10})
	for _, at := range []byteRange{{math.MaxInt64, 0}, {math.MaxInt64 - 1, 1}, {10, 1}, {0, 11}} {
		if _, blocked := held.blocker(2, lockRead, at); !blocked {
			t.Errorf("%v is free", at)
		}
	}
	if _, blocked := held.blocker(2, lockRead, byteRange{0, 10}); blocked {
		t.Error("what is before is not")
	}
	held = held.with(1, lockUnlock, byteRange{20, 10})
	if _, blocked := held.blocker(2, lockRead, byteRange{20, 10}); blocked {
		t.Error("what was given up is not free")
	}
	if _, blocked := held.blocker(2, lockRead, byteRange{30, 0}); !blocked {
		t.Error("what is behind it is")
	}
	if held = held.with(1, lockUnlock, wholeFile); len(held) != 0 {
		t.Errorf("%v remains", held)
	}
}
