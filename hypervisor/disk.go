package hypervisor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/errdefs"
)

const (
	// MaxDisks is the most disks that a machine may have: each takes a slot of the
	// one PCI bus, and the other devices leave this many in both backends.
	MaxDisks = 26

	// SectorSize is the unit of a disk's size, in bytes (virtio 1.2, 5.2.4).
	SectorSize = 512
)

// Disk is a virtio block device on a file of the caller's.
type Disk struct {
	// Path is what the disk's bytes are in, as they are: a regular file or a
	// device (a block device on Linux; a zvol or an md(4) on FreeBSD). It exists,
	// outlives the machine and is never removed with it; its size is whole sectors
	// and stays as it is. What a guest has written and flushed is in it.
	//
	// Nobody else writes to it while a machine has it, and nobody reads it while one
	// can write to it. That is the caller's to see to: QEMU refuses a file that
	// another QEMU writes to, and bhyve does not.
	Path string
	// ReadOnly has the guest's writes refused, and needs no right to write to the
	// file. Any number of machines may have such a disk at once.
	ReadOnly bool
}

// Open opens the file as a machine uses it, and sees that it can be a disk. The
// errors are errdefs.ErrNotFound, errdefs.ErrInvalidArgument for what is no disk,
// and the system's own where it may not be opened.
func (d Disk) Open() (*os.File, error) {
	f, err := d.open()
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.Path, err)
	}
	return f, nil
}

func (d Disk) open() (_ *os.File, err error) {
	// Before it is opened, which waits where it is a FIFO, and starts a watchdog.
	info, err := os.Stat(d.Path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", errdefs.ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	if !holdsDisk(info.Mode()) {
		return nil, fmt.Errorf("neither a file nor a disk's device but %s: %w", info.Mode(), errdefs.ErrInvalidArgument)
	}
	flag := os.O_RDWR
	if d.ReadOnly {
		flag = os.O_RDONLY
	}
	f, err := os.OpenFile(d.Path, flag, 0)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	// Its end, as stat(2) does not know the size of a device.
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return nil, err
	}
	if size == 0 || size%SectorSize != 0 {
		return nil, fmt.Errorf("it has %d bytes: want sectors of %d, at least one: %w", size, SectorSize, errdefs.ErrInvalidArgument)
	}
	return f, nil
}

func holdsDisk(mode os.FileMode) bool {
	if mode&os.ModeDevice == 0 {
		return mode.IsRegular()
	}
	// FreeBSD has character devices only, disks included.
	return (mode&os.ModeCharDevice != 0) == (runtime.GOOS == "freebsd")
}

// validateDisks checks what can be checked without touching the host.
func (c Config) validateDisks() error {
	if len(c.Disks) > MaxDisks {
		return fmt.Errorf("machine %s: %d disks: want at most %d: %w", c.ID, len(c.Disks), MaxDisks, errdefs.ErrInvalidArgument)
	}
	seen := map[string]bool{}
	for _, d := range c.Disks {
		path := filepath.Clean(d.Path)
		if !filepath.IsAbs(path) || seen[path] {
			return fmt.Errorf("machine %s: disk %q: want an absolute path, and each once: %w", c.ID, d.Path, errdefs.ErrInvalidArgument)
		}
		seen[path] = true
	}
	if c.CheckpointDir != "" {
		return c.ValidateSave()
	}
	return nil
}

// ValidateSave returns errdefs.ErrNotImplemented for a machine that is not to be
// saved or restored whatever the backend can do: what is on its disks would have to
// be saved at the same moment, and kept for each copy.
func (c Config) ValidateSave() error {
	if len(c.Disks) > 0 {
		return fmt.Errorf("machine %s: to save or restore one with disks: %w", c.ID, errdefs.ErrNotImplemented)
	}
	return nil
}
