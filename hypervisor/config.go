package hypervisor

import (
	"fmt"
	"net"
	"regexp"

	"github.com/containerd/errdefs"
)

// Config is everything that makes a machine. Paths are absolute and on the
// host.
type Config struct {
	// ID names the machine on this host: in process lists, device names derived
	// from it, and logs. See ValidateID.
	ID string
	// Dir is a directory of the caller's that exists, belongs to this machine
	// alone and outlives it. The backend keeps its sockets there and removes
	// them on Destroy; the directory stays.
	Dir string

	// VCPUs is the number of virtual CPUs, at least one.
	VCPUs int
	// MemoryMiB is the guest's memory in MiB.
	MemoryMiB int

	// Kernel is a Linux kernel, booted directly: a bzImage, or an ELF vmlinux
	// with a PVH entry point.
	Kernel string
	// Initrd is the guest image: an initramfs whose /init is the agent.
	Initrd string
	// Cmdline is appended to the kernel command line that the backend needs.
	Cmdline []string

	// NIC is the containers' network interface, nil for a machine without one.
	// It is a device apart from the link.
	NIC *NIC
	// Disks are the guest's disks, in the order in which its kernel finds and names
	// them: /dev/vda, /dev/vdb and so on. At most MaxDisks. Such a machine cannot be
	// saved or restored (see ValidateSave).
	Disks []Disk
	// CheckpointDir is an existing directory of the caller's that a later
	// Checkpointer.Checkpoint fills, on a file system that survives a reboot.
	// Empty for a machine that will not be saved.
	CheckpointDir string
	// MemoryDir is an existing directory, on a disk with room for it, in which the
	// guest's memory is in a file without a name, so that it can be given back
	// (see Reclaimable). Empty for memory that is the process's own. A machine that
	// is restored, or has a CheckpointDir, has its memory in a file anyway.
	MemoryDir string
}

// NIC is a virtio network interface on a tap that belongs to the caller, or on
// one of the machine's own.
type NIC struct {
	// Tap is the tap's name. It exists, and outlives the machine. Empty for an
	// interface that leads nowhere until somebody takes its tap to where it is to
	// lead (see Pluggable), where Capabilities.Plug says that there are such.
	Tap string
	// NetNS is the path of the network namespace that the tap is in, empty for
	// this process's own. Linux only.
	NetNS string
	// MAC is the address that the device has at boot. The agent may set another.
	MAC net.HardwareAddr
}

// MinMemoryMiB is the least memory in which the guest image boots.
const MinMemoryMiB = 128

// MaxIDLength bounds Config.ID. It leaves room for a container id (76) with a
// short suffix, and stays far below what bhyve takes (VM_MAX_NAMELEN, 229).
const MaxIDLength = 96

var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// ValidateID returns errdefs.ErrInvalidArgument for an id that cannot name a
// machine. Every id that containerd accepts for a container is valid.
func ValidateID(id string) error {
	if len(id) > MaxIDLength || !validID.MatchString(id) {
		return fmt.Errorf("machine id %q: want at most %d letters, digits, '_', '.', '-', starting with a letter or digit: %w",
			id, MaxIDLength, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Validate checks what can be checked without touching the host. Its errors
// are errdefs.ErrInvalidArgument and name the field, but for ValidateSave's.
func (c Config) Validate(caps Capabilities) error {
	if err := ValidateID(c.ID); err != nil {
		return err
	}
	for _, f := range []struct{ name, value string }{{"dir", c.Dir}, {"kernel", c.Kernel}, {"initrd", c.Initrd}} {
		if f.value == "" {
			return fmt.Errorf("machine %s: no %s: %w", c.ID, f.name, errdefs.ErrInvalidArgument)
		}
	}
	if c.VCPUs < 1 || c.VCPUs > caps.MaxVCPUs {
		return fmt.Errorf("machine %s: %d vCPUs: want 1 to %d: %w", c.ID, c.VCPUs, caps.MaxVCPUs, errdefs.ErrInvalidArgument)
	}
	if c.MemoryMiB < MinMemoryMiB {
		return fmt.Errorf("machine %s: %d MiB of memory: want at least %d: %w", c.ID, c.MemoryMiB, MinMemoryMiB, errdefs.ErrInvalidArgument)
	}
	if c.NIC != nil && (c.NIC.Tap == "" && !caps.Plug || len(c.NIC.MAC) != 6) {
		return fmt.Errorf("machine %s: network interface on tap %q with address %q: want a name and 6 bytes: %w",
			c.ID, c.NIC.Tap, c.NIC.MAC, errdefs.ErrInvalidArgument)
	}
	return c.validateDisks()
}
