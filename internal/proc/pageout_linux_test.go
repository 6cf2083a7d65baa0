package proc

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Memory in a file without a name is given back, and comes back as it was.
func TestPageOut(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: reads /proc/PID/map_files")
	}
	const size = 16 << 20
	f, err := os.Create(filepath.Join(t.TempDir(), "memory"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	data, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(data)
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	for i := range data {
		data[i] = byte(i >> 12)
	}
	self, err := Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	before, err := self.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if err := self.PageOut(func(m Mapping) bool { return m.Size == size && m.Perms == "rw-s" }); err != nil {
		t.Fatal(err)
	}
	after, err := self.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if after.RSS+size/2 > before.RSS {
		t.Errorf("RSS was %d MiB and is %d, of which %d could go", before.RSS>>20, after.RSS>>20, size>>20)
	}
	for i := range data {
		if data[i] != byte(i>>12) {
			t.Fatalf("byte %d is %#x", i, data[i])
		}
	}
}
