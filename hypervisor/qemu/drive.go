//go:build linux

package qemu

import (
	"fmt"
	"os"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
)

// drive is the file of a disk that QEMU inherits. QEMU has it by its descriptor:
// when it wants to open it again its root is empty (see root).
type drive struct {
	fd int
	// device is true for a block device, which QEMU has another driver for.
	device   bool
	readOnly bool
}

// openDisks opens the disks' files, in their order.
func openDisks(disks []hypervisor.Disk) ([]*os.File, error) {
	var files []*os.File
	for _, d := range disks {
		f, err := d.Open()
		if err != nil {
			closeFiles(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// drivesOf is what QEMU is told of the open disks, which it inherits from a
// descriptor on.
func drivesOf(disks []hypervisor.Disk, files []*os.File, first int) ([]drive, error) {
	var drives []drive
	for i, f := range files {
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		drives = append(drives, drive{fd: first + i, device: !info.Mode().IsRegular(), readOnly: disks[i].ReadOnly})
	}
	return drives, nil
}

// driveArgs put each descriptor into a set of its own, which has a path within
// QEMU (qemu-options.hx, -add-fd), and a disk on it. The image is raw for not
// being anything else: a guest could write any format's header.
func driveArgs(drives []drive) []string {
	var args []string
	for i, d := range drives {
		driver := map[bool]string{true: "host_device", false: "file"}[d.device]
		readOnly := map[bool]string{true: "on", false: "off"}[d.readOnly]
		args = append(args,
			"-add-fd", fmt.Sprintf("fd=%d,set=%d", d.fd, i),
			"-blockdev", fmt.Sprintf("driver=raw,node-name=disk%d,read-only=%s,file.driver=%s,file.filename=/dev/fdset/%d", i, readOnly, driver, i),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=disk%d,addr=%#x", i, firstDiskSlot+i),
		)
	}
	return args
}
