package ninep

import "math"

// byteRange is a lock's extent; length 0 reaches to the end of the file.
type byteRange struct {
	start, length int64
}

// wholeFile is every byte that a file can have.
var wholeFile = byteRange{}

// last is the last byte of the range.
func (r byteRange) last() int64 {
	if r.length == 0 {
		return math.MaxInt64
	}
	return r.start + r.length - 1
}

func (r byteRange) overlaps(other byteRange) bool {
	return r.start <= other.last() && other.start <= r.last()
}

// heldRange is a lock that an owner has on a part of a file.
type heldRange struct {
	owner int
	typ   uint8
	byteRange
}

// heldRanges are the locks on a file as fcntl(2) has them: those of one owner do
// not overlap, a new one replaces what it covers of the old, and owners exclude
// each other unless both read.
type heldRanges []heldRange

// blocker returns a lock that keeps owner from having one of this type there.
func (h heldRanges) blocker(owner int, typ uint8, extent byteRange) (heldRange, bool) {
	for _, held := range h {
		if held.owner != owner && (held.typ == lockWrite || typ == lockWrite) && held.overlaps(extent) {
			return held, true
		}
	}
	return heldRange{}, false
}

// with returns the locks after owner got one, or gave it up if typ is
// lockUnlock. h itself stays as it is.
func (h heldRanges) with(owner int, typ uint8, extent byteRange) heldRanges {
	var after heldRanges
	for _, held := range h {
		if held.owner != owner || !held.overlaps(extent) {
			after = append(after, held)
			continue
		}
		if held.start < extent.start {
			before := held
			before.length = extent.start - held.start
			after = append(after, before)
		}
		if held.last() > extent.last() {
			rest := held
			rest.start = extent.last() + 1
			if held.length != 0 {
				rest.length = held.last() - extent.last()
			}
			after = append(after, rest)
		}
	}
	if typ != lockUnlock {
		after = append(after, heldRange{owner: owner, typ: typ, byteRange: extent})
	}
	return after
}

// strongest is the type of lock that would do for all of them at once:
// lockUnlock if there are none.
func (h heldRanges) strongest() uint8 {
	typ := uint8(lockUnlock)
	for _, held := range h {
		if held.typ == lockWrite {
			return lockWrite
		}
		typ = lockRead
	}
	return typ
}
