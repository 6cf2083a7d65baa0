package linuxboot

import "testing"

// TestStartState pins the state to the numbers of the specifications, written
// out.
func TestStartState(t *testing.T) {
	got := startState(0x1000200)
	data := Segment{Selector: 0x18, Limit: 0xffffffff, Access: 0xc093}
	want := CPU{
		RIP: 0x1000200, RSP: 0x9000, RSI: 0x7000, RFLAGS: 2,
		CR0: 0x80000021, CR3: 0x9000, CR4: 0x20, EFER: 0x500,
		CS: Segment{Selector: 0x10, Limit: 0xffffffff, Access: 0xa09b},
		DS: data, ES: data, SS: data, FS: data, GS: data,
		TR: Segment{Access: 0x8b}, LDTR: Segment{Access: 0x10000},
		GDTR: Table{Base: 0x1000, Limit: 31},
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

// TestGDT: what a processor would load from the table must be what the
// segments' hidden parts say, or the first reload changes the state.
func TestGDT(t *testing.T) {
	cpu := startState(0)
	table := gdt(cpu)
	for i, want := range []uint64{0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff} {
		if got := le.Uint64(table[i*8:]); got != want {
			t.Errorf("entry %d: %#016x, want %#016x", i, got, want)
		}
	}
	s := Segment{Base: 0x12345678, Limit: 0xabcde, Access: 0x4092}
	if got, want := s.descriptor(), uint64(0x124a92345678bcde); got != want {
		t.Errorf("byte-granular segment with a base: %#016x, want %#016x", got, want)
	}
}

// TestPageTables walks the tables as a processor does.
func TestPageTables(t *testing.T) {
	const at = 0x9000
	mem := newMemory(128 * miB)
	if _, err := mem.WriteAt(pageTables(at), at); err != nil {
		t.Fatal(err)
	}
	entry := func(table uint64, index uint64) uint64 { return le.Uint64(mem.read(table+index*8, 8)) }
	const addrMask = 0x000ffffffffff000
	walk := func(va uint64) (pa uint64, ok bool) {
		e := entry(at, va>>39&511)
		for _, shift := range []uint{30, 21} {
			if e&3 != 3 {
				return 0, false
			}
			e = entry(e&addrMask, va>>shift&511)
		}
		if e&0x83 != 0x83 {
			return 0, false
		}
		return e&addrMask + va&(2*miB-1), true
	}
	for _, va := range []uint64{0, 0x7123, 2*miB - 1, 2 * miB, testPref, giB - 1, giB, 3 * giB, 0xfee00020, 4*giB - 1} {
		if pa, ok := walk(va); !ok || pa != va {
			t.Errorf("%#x is mapped to %#x, %t", va, pa, ok)
		}
	}
	for _, va := range []uint64{4 * giB, 512 * giB} {
		if pa, ok := walk(va); ok {
			t.Errorf("%#x is mapped to %#x, want not mapped", va, pa)
		}
	}
}
