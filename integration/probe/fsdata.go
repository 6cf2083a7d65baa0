//go:build linux

package main

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

func appends() error {
	for _, part := range []string{"one ", "two"} {
		f, err := os.OpenFile("appended", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		if _, err := f.WriteString(part); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	}
	return wantContent("appended", "one two")
}

func truncates() error {
	f, err := os.Create("truncated")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(bytes.Repeat([]byte("x"), 10_000)); err != nil {
		return err
	}
	if err := f.Truncate(5000); err != nil {
		return err
	}
	if err := f.Truncate(8192); err != nil {
		return err
	}
	data, err := os.ReadFile("truncated")
	if err != nil {
		return err
	}
	want := append(bytes.Repeat([]byte("x"), 5000), make([]byte, 3192)...)
	if !bytes.Equal(data, want) {
		return fmt.Errorf("%d bytes, not 5000 and then 3192 zeros", len(data))
	}
	return nil
}

func largeOffset() error {
	const offset = 5 << 30
	f, err := os.Create("large")
	if err != nil {
		return err
	}
	defer os.Remove("large")
	defer f.Close()
	if _, err := f.WriteAt([]byte("end"), offset); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != offset+3 {
		return fmt.Errorf("size %d, want %d", info.Size(), int64(offset+3))
	}
	buf := make([]byte, 3)
	if _, err := f.ReadAt(buf, offset); err != nil || string(buf) != "end" {
		return fmt.Errorf("read %q, %v", buf, err)
	}
	return nil
}

func fallocates() error {
	f, err := os.Create("allocated")
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.Fallocate(int(f.Fd()), 0, 0, 1<<20)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err == nil && info.Size() != 1<<20 {
		err = fmt.Errorf("size %d after success", info.Size())
	}
	return err
}

func sharedMap() error {
	const size = 3 * 4096
	f, err := os.Create("mapped")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	copy(m[4096:], "through the map")
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return fmt.Errorf("msync: %w", err)
	}
	if err := unix.Munmap(m); err != nil {
		return err
	}
	buf := make([]byte, len("through the map"))
	if _, err := f.ReadAt(buf, 4096); err != nil || string(buf) != "through the map" {
		return fmt.Errorf("read %q, %v", buf, err)
	}
	return nil
}

func mapText() error {
	f, err := os.Open("/bin/busybox")
	if err != nil {
		return err
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
	if err != nil {
		return fmt.Errorf("mmap: %w", err)
	}
	defer unix.Munmap(m)
	if !bytes.HasPrefix(m, []byte(elf.ELFMAG)) {
		return fmt.Errorf("the map starts with %q", m[:4])
	}
	return nil
}

func flocks() error {
	a, err := os.Create("flocked")
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.Open("flocked")
	if err != nil {
		return err
	}
	defer b.Close()
	if err := unix.Flock(int(a.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return err
	}
	if err := unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB); !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("a second lock gave %v, want EWOULDBLOCK", err)
	}
	if err := unix.Flock(int(a.Fd()), unix.LOCK_UN); err != nil {
		return err
	}
	return unix.Flock(int(b.Fd()), unix.LOCK_SH|unix.LOCK_NB)
}

func recordLocks() error {
	a, err := os.Create("locked")
	if err != nil {
		return err
	}
	defer a.Close()
	b, err := os.OpenFile("locked", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer b.Close()
	// Open file description locks: two of one process conflict.
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 10, Len: 10}
	if err := unix.FcntlFlock(a.Fd(), unix.F_OFD_SETLK, &lock); err != nil {
		return err
	}
	lock = unix.Flock_t{Type: unix.F_WRLCK, Start: 15, Len: 10}
	if err := unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &lock); !errors.Is(err, unix.EAGAIN) {
		return fmt.Errorf("an overlapping lock gave %v, want EAGAIN", err)
	}
	lock = unix.Flock_t{Type: unix.F_WRLCK, Start: 20, Len: 10}
	return unix.FcntlFlock(b.Fd(), unix.F_OFD_SETLK, &lock)
}

func twoDescriptors() error {
	w, err := os.Create("watched")
	if err != nil {
		return err
	}
	defer w.Close()
	r, err := os.Open("watched")
	if err != nil {
		return err
	}
	defer r.Close()
	for i := range 10 {
		line := fmt.Sprintf("line %d\n", i)
		if _, err := w.WriteString(line); err != nil {
			return err
		}
		buf := make([]byte, len(line))
		if _, err := r.Read(buf); err != nil || string(buf) != line {
			return fmt.Errorf("write %q, read %q, %v", line, buf, err)
		}
	}
	return nil
}

func fsync() error {
	f, err := os.Create("synced")
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("x"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	dir, err := os.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func statfs() error {
	var st unix.Statfs_t
	if err := unix.Statfs(".", &st); err != nil {
		return err
	}
	if st.Bsize <= 0 || st.Blocks == 0 || st.Namelen < 255 {
		return fmt.Errorf("block size %d, %d blocks, names of %d bytes", st.Bsize, st.Blocks, st.Namelen)
	}
	return nil
}
