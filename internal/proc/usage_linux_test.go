package proc

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadMaps(t *testing.T) {
	const smaps = `7f0000000000-7f0010000000 rw-p 00000000 fe:00 42                         /pool/a dir/memory
Size:             262144 kB
Rss:               40000 kB
Pss:               20000 kB
Private_Dirty:      1200 kB
VmFlags: rd wr mr mw me
7f0020000000-7f0030000000 rw-p 00000000 00:00 0 
Size:             262144 kB
Private_Dirty:         8 kB
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
Size:                  4 kB
`
	var got []mapping
	if err := readMaps(strings.NewReader(smaps), func(m mapping) { got = append(got, m) }); err != nil {
		t.Fatal(err)
	}
	want := []mapping{
		{Mapping{"/pool/a dir/memory", "rw-p", 256 << 20}, 40000 << 10, 20000 << 10, 1200 << 10, "7f0000000000-7f0010000000"},
		{Mapping{"", "rw-p", 256 << 20}, 0, 0, 8 << 10, "7f0020000000-7f0030000000"},
		{Mapping{"[vsyscall]", "--xp", 4 << 10}, 0, 0, 0, "ffffffffff600000-ffffffffff601000"},
	}
	if len(got) != len(want) {
		t.Fatalf("got %+v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("got %+v, want %+v", got[i], want[i])
		}
	}
	if err := readMaps(strings.NewReader("a-b r\nRss: many kB\n"), func(mapping) {}); err == nil {
		t.Error("read a size that is none")
	}
}

func TestPrivateDirtyOfAMapping(t *testing.T) {
	path := filepath.Join(t.TempDir(), "memory")
	const size = 8 << 20
	if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	const written = 3
	for i := range written {
		mem[i*os.Getpagesize()*7] = 1
	}
	self, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	got, err := self.PrivateDirty(func(m Mapping) bool { return m.Path == path && m.Size == size && m.Perms == "rw-p" })
	if err != nil || got != uint64(written*os.Getpagesize()) {
		t.Errorf("%d bytes, %v; want %d pages", got, err, written)
	}
}
