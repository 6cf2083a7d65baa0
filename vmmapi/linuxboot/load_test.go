package linuxboot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

const (
	miB = 1 << 20
	giB = 1 << 30
)

// memorySizes are those at which the layout changes, and those in use.
var memorySizes = []uint64{128 * miB, giB, 3*giB - pageSize, 3 * giB, 3*giB + pageSize, 4 * giB, 9 * giB}

func TestLoadBzImage(t *testing.T) {
	initrd := pattern(5*miB + 17)
	for _, size := range memorySizes {
		t.Run(fmt.Sprintf("%dMiB", size>>20), func(t *testing.T) {
			mem := newMemory(size)
			got, err := Load(mem, Config{Kernel: section(testBzImage()), Initrd: section(initrd), Cmdline: "console=ttyS0 x=y", RSDP: 0xf2400})
			if err != nil {
				t.Fatal(err)
			}
			if got.Format != BzImage || got.CPU.RIP != testPref+0x200 {
				t.Errorf("format %s, entry %#x", got.Format, got.CPU.RIP)
			}
			if !bytes.Equal(mem.read(testPref, testSyssize), pattern(testSyssize)) {
				t.Error("the kernel's bytes are not at pref_address")
			}
			checkPlacement(t, got, mem)
			checkBootParams(t, got, mem, initrd, "console=ttyS0 x=y")
			p := mem.read(got.CPU.RSI, bootParamsSize)
			if v := le.Uint64(p[bpACPIRSDPAddr:]); v != 0xf2400 {
				t.Errorf("acpi_rsdp_addr %#x", v)
			}
			if v := le.Uint32(p[hdrCode32Start:]); v != testPref {
				t.Errorf("code32_start %#x", v)
			}
			if v := le.Uint64(p[hdrPrefAddress:]); v != testPref {
				t.Errorf("the kernel's own header was not copied: pref_address %#x", v)
			}
		})
	}
}

func TestLoadELF(t *testing.T) {
	initrd := pattern(miB)
	for _, size := range memorySizes {
		t.Run(fmt.Sprintf("%dMiB", size>>20), func(t *testing.T) {
			mem := newMemory(size)
			// Memory that was used before: what the file does not fill must be
			// cleared all the same.
			if _, err := mem.WriteAt(bytes.Repeat([]byte{0xaa}, 0x7000), testPref); err != nil {
				t.Fatal(err)
			}
			got, err := Load(mem, Config{Kernel: section(testELF()), Initrd: section(initrd), Cmdline: "quiet"})
			if err != nil {
				t.Fatal(err)
			}
			if got.Format != ELF || got.CPU.RIP != testPref+0x40 {
				t.Errorf("format %s, entry %#x", got.Format, got.CPU.RIP)
			}
			if !bytes.Equal(mem.read(testPref, 0x1000), pattern(0x1800)[:0x1000]) ||
				!bytes.Equal(mem.read(testPref+0x2000, 0x800), pattern(0x1800)[0x1000:]) {
				t.Error("the segments' bytes are not at their physical addresses")
			}
			if !bytes.Equal(mem.read(testPref+0x2800, 0x4800), make([]byte, 0x4800)) {
				t.Error("memory beyond the segment's file bytes is not zero")
			}
			checkPlacement(t, got, mem)
			checkBootParams(t, got, mem, initrd, "quiet")
		})
	}
}

// checkPlacement asserts that nothing overlaps, that all is in low memory and
// that bhyve's tables have been left their place.
func checkPlacement(t *testing.T, l *Loaded, mem *memory) {
	t.Helper()
	for i, r := range l.Regions {
		if r.End <= r.Start || r.End > mem.low {
			t.Errorf("%s is not in low memory", r)
		}
		if r.Start < 0x100000 && r.End > 0x9fc00 {
			t.Errorf("%s is over the tables' place", r)
		}
		for _, o := range l.Regions[i+1:] {
			if r.Start < o.End && o.Start < r.End {
				t.Errorf("%s lies over %s", r, o)
			}
		}
	}
	for page := range mem.pages {
		if addr := page * pageSize; addr >= 0x9f000 && addr < 0x100000 {
			t.Errorf("something was written at %#x", addr)
		}
	}
}

func checkBootParams(t *testing.T, l *Loaded, mem *memory, initrd []byte, cmdline string) {
	t.Helper()
	p := mem.read(l.CPU.RSI, bootParamsSize)
	if le.Uint16(p[hdrBootFlag:]) != 0xaa55 || string(p[hdrMagic:hdrMagic+4]) != "HdrS" || le.Uint16(p[hdrVersion:]) < 0x20c {
		t.Error("no setup header in boot_params")
	}
	if p[bpSentinel] != 0 || p[hdrTypeOfLoader] != 0xff || p[hdrLoadflags]&1 != 1 {
		t.Errorf("sentinel %#x, type_of_loader %#x, loadflags %#x", p[bpSentinel], p[hdrTypeOfLoader], p[hdrLoadflags])
	}
	if got := string(mem.read(uint64(le.Uint32(p[hdrCmdLinePtr:])), len(cmdline)+1)); got != cmdline+"\x00" {
		t.Errorf("command line %q", got)
	}
	addr, size := uint64(le.Uint32(p[hdrRamdiskImage:])), int(le.Uint32(p[hdrRamdiskSize:]))
	if size != len(initrd) || addr%pageSize != 0 || !bytes.Equal(mem.read(addr, size), initrd) {
		t.Errorf("initramfs: %d bytes at %#x, want %d", size, addr, len(initrd))
	}
	if addr+uint64(size) > 0x80000000 || addr+uint64(size)+pageSize <= min(mem.low, 0x80000000) {
		t.Errorf("initramfs ends at %#x: want as high as possible, not above initrd_addr_max", addr+uint64(size))
	}

	// RAM in the map must be exactly the guest's memory less what is reserved.
	var ram, prev uint64
	for i := range int(p[bpE820Entries]) {
		e := p[bpE820Table+i*e820EntrySize:]
		start, n, typ := le.Uint64(e), le.Uint64(e[8:]), le.Uint32(e[16:])
		if start < prev || n == 0 {
			t.Errorf("e820 entry %d: %#x bytes at %#x after %#x", i, n, start, prev)
		}
		prev = start + n
		if typ == 1 {
			ram += n
			if start < 0x100000 && start+n > 0x9fc00 || start < 4*giB && start+n > mem.low || start+n > 4*giB+mem.high {
				t.Errorf("e820 entry %d: %#x-%#x is no memory of the guest's", i, start, start+n)
			}
		}
	}
	if want := mem.low + mem.high - (0x100000 - 0x9fc00); ram != want {
		t.Errorf("%#x bytes of RAM in the map, want %#x", ram, want)
	}
}

// TestLoadWithoutInitrd: the fields must say that there is none.
func TestLoadWithoutInitrd(t *testing.T) {
	for _, initrd := range []*io.SectionReader{nil, section(nil)} {
		mem := newMemory(128 * miB)
		got, err := Load(mem, Config{Kernel: section(testBzImage()), Initrd: initrd})
		if err != nil {
			t.Fatal(err)
		}
		p := mem.read(got.CPU.RSI, bootParamsSize)
		if a, n := le.Uint32(p[hdrRamdiskImage:]), le.Uint32(p[hdrRamdiskSize:]); a != 0 || n != 0 {
			t.Errorf("initramfs of %d bytes at %#x", n, a)
		}
	}
}

func TestPlacementErrors(t *testing.T) {
	bz := testBzImage()
	for _, tc := range []struct {
		name   string
		memory uint64
		kernel []byte
		initrd int
		want   string
	}{
		{"kernel beyond memory", 16 * miB, bz, 0, "kernel at 0x1000000-0x1400000"},
		{"kernel needs one page more", 20*miB - pageSize, bz, 0, "kernel at 0x1000000-0x1400000"},
		{"initramfs larger than memory", 128 * miB, bz, 129 * miB, "initramfs"},
		{"initramfs only fits over the kernel", 24 * miB, bz, 16 * miB, "initramfs"},
		{"initramfs limited by the kernel", 128 * miB, patch(bz, hdrInitrdAddrMax, uint32(20*miB)), 19 * miB, "initramfs"},
		{"segments overlap", 128 * miB, patch(testELF(), 64+2*56+24, uint64(testPref+0x800)), 0, "lies over kernel segment 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			mem := newMemory(tc.memory)
			_, err := Load(mem, Config{Kernel: section(tc.kernel), Initrd: section(make([]byte, tc.initrd))})
			var placement *PlacementError
			if !errors.As(err, &placement) || !errdefs.IsOutOfRange(err) {
				t.Fatalf("got %v, want a PlacementError", err)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q, want %q in it", err, tc.want)
			}
			if len(mem.pages) != 0 {
				t.Error("memory was written before everything had its place")
			}
		})
	}
}

// TestInitrdBelowKernel: where the place above the kernel is too small, the
// one below it is used.
func TestInitrdBelowKernel(t *testing.T) {
	mem := newMemory(24 * miB)
	got, err := Load(mem, Config{Kernel: section(testBzImage()), Initrd: section(pattern(8 * miB))})
	if err != nil {
		t.Fatal(err)
	}
	last := got.Regions[len(got.Regions)-1]
	if last.Name != "initramfs" || last.End != testPref {
		t.Errorf("got %s, want its end at the kernel's start", last)
	}
	checkPlacement(t, got, mem)
}

func TestBadArguments(t *testing.T) {
	bz := section(testBzImage())
	for _, tc := range []struct {
		name string
		mem  *memory
		cfg  Config
	}{
		{"no kernel", newMemory(128 * miB), Config{}},
		{"no memory", newMemory(0), Config{Kernel: bz}},
		{"memory not of whole pages", &memory{low: 128*miB + 1}, Config{Kernel: bz}},
		{"low memory over the devices", &memory{low: 3*giB + pageSize}, Config{Kernel: bz}},
		{"absurd high memory", &memory{low: 3 * giB, high: 1 << 50}, Config{Kernel: bz}},
		{"NUL in the command line", newMemory(128 * miB), Config{Kernel: bz, Cmdline: "a\x00b"}},
		{"command line too long", newMemory(128 * miB), Config{Kernel: bz, Cmdline: strings.Repeat("x", 2048)}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := Load(tc.mem, tc.cfg); !errdefs.IsInvalidArgument(err) {
				t.Errorf("got %v, want an invalid argument", err)
			}
		})
	}
	if _, err := Load(newMemory(128*miB), Config{Kernel: bz, Cmdline: strings.Repeat("x", 2047)}); err != nil {
		t.Errorf("the longest command line that the kernel takes: %v", err)
	}
}

// TestMemoryFails: a write that fails at any of the places ends the load with
// the cause and the name of what was written.
func TestMemoryFails(t *testing.T) {
	for what, addr := range map[string]uint64{
		"kernel": testPref + 10, "GDT": gdtAddr, "boot_params": bootParamsAddr + 0x1f1,
		"page tables": pageTablesAddr + 0x3000, "command line": cmdlineAddr, "initramfs": 128*miB - pageSize,
	} {
		mem := newMemory(128 * miB)
		mem.failAt = addr
		_, err := Load(mem, Config{Kernel: section(testBzImage()), Initrd: section(pattern(10))})
		if !errors.Is(err, io.ErrShortWrite) || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// TestFileShrinks: a file that ends before its size is an error, not a kernel
// with a hole.
func TestFileShrinks(t *testing.T) {
	short := io.NewSectionReader(bytes.NewReader(pattern(100)), 0, 5000)
	_, err := Load(newMemory(128*miB), Config{Kernel: section(testBzImage()), Initrd: short})
	if !errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "initramfs") {
		t.Errorf("got %v", err)
	}
}
