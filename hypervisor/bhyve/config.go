package bhyve

import (
	"bytes"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi"
	"github.com/containerd/errdefs"
)

// config is what bhyve(8) is told about a virtual machine. Size and wiring of
// its memory must be what it was loaded with.
type config struct {
	// Name is the virtual machine's name, see vmName.
	Name string
	// UUID is the machine's SMBIOS UUID, so that it does not follow from the
	// name.
	UUID  string
	VCPUs int
	// MemoryMiB is the guest's memory in MiB.
	MemoryMiB int
	// Wired keeps the guest's memory from being paged out.
	Wired bool
	// ACPI gives the guest ACPI tables, which are compiled by iasl(8) at each
	// start.
	ACPI bool
	// Pinned keeps the vCPUs on the host's first CPU, see unpinnedCPUs.
	Pinned bool
	// Console is where the first serial port goes: "stdio", or one end of an
	// nmdm(4) pair. Empty for no serial port.
	Console string
	NICs    []nic
	Disks   []hypervisor.Disk
}

// nic is a virtio network device.
type nic struct {
	// Tap is the name of the host's tap(4). bhyve(8) tells by its beginning what
	// it is, so it must be the one that the system gave it.
	Tap string
	// MAC is the guest's address. Without one it would follow from the name.
	MAC net.HardwareAddr
}

// PCI slots of bus 0. Devices are never added later, so they are counted from
// firstSlot in a fixed order: a guest sees the same machine at each start.
const (
	hostBridgeSlot = 0
	firstSlot      = 2
	lpcSlot        = 31 // also where firmware for bhyve expects it
)

// file renders the configuration file for bhyve -k (bhyve_config(5)).
func (c config) file() ([]byte, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	var f file
	f.set("name", c.Name)
	f.set("uuid", c.UUID)
	f.set("cpus", strconv.Itoa(c.VCPUs))
	f.set("memory.size", strconv.Itoa(c.MemoryMiB)+"M")
	f.set("memory.wired", strconv.FormatBool(c.Wired))
	f.set("acpi_tables", strconv.FormatBool(c.ACPI))
	// The guest expects UTC; the default is the host's local time.
	f.set("rtc.use_localtime", "false")
	// Without it an idle guest takes a whole CPU.
	f.set("x86.vmexit_on_hlt", "true")
	// Unknown model-specific registers read as zero instead of raising a fault.
	f.set("x86.strictmsr", "false")
	// Interrupts would take fewer exits, but Linux gives x2APIC mode up where it
	// knows of no remapping of interrupts, and vmm(4) does not let it: no timer
	// interrupt comes.
	f.set("x86.x2apic", "false")

	for id := range c.VCPUs {
		if c.Pinned {
			f.set(fmt.Sprintf("vcpu.%d.cpuset", id), "0")
		}
	}

	f.device(hostBridgeSlot, "hostbridge")
	slot := firstSlot
	for _, n := range c.NICs {
		f.device(slot, "virtio-net", "backend", n.Tap, "mac", n.MAC.String())
		slot++
	}
	for _, d := range c.Disks {
		f.device(slot, "virtio-blk", "path", d.Path, "ro", strconv.FormatBool(d.ReadOnly))
		slot++
	}
	f.device(slot, "virtio-rnd")
	if c.Console != "" {
		f.device(lpcSlot, "lpc")
		f.set("lpc.com1.path", c.Console)
	}
	return f.Bytes(), f.err
}

// file is a configuration file being written.
type file struct {
	bytes.Buffer
	err error
}

func (f *file) set(key, value string) {
	v, err := encode(value)
	if err != nil && f.err == nil {
		f.err = fmt.Errorf("bhyve configuration %s: %w", key, err)
	}
	fmt.Fprintf(f, "%s=%s\n", key, v)
}

// device puts a device on bus 0, with keys and values of its own.
func (f *file) device(slot int, kind string, keyvals ...string) {
	at := fmt.Sprintf("pci.0.%d.0.", slot)
	f.set(at+"device", kind)
	for i := 0; i < len(keyvals); i += 2 {
		f.set(at+keyvals[i], keyvals[i+1])
	}
}

// encode writes a value so that bhyve reads it back as it is
// (usr.sbin/bhyve/config.c). A value with a '%' in it is expanded, and then
// '\' takes the meaning from what follows; in any other it is an ordinary
// character. Line ends and empty values cannot be written.
func encode(v string) (string, error) {
	if v == "" || strings.ContainsAny(v, "\n\x00") {
		return "", fmt.Errorf("value %q cannot be written: %w", v, errdefs.ErrInvalidArgument)
	}
	if !strings.Contains(v, "%") {
		return v, nil
	}
	return strings.NewReplacer(`\`, `\\`, `%`, `\%`).Replace(v), nil
}

var (
	validTap     = regexp.MustCompile(`^tap[0-9]+$`)
	validConsole = regexp.MustCompile(`^(stdio|/dev/nmdm[A-Za-z0-9._-]+[AB])$`)
	validUUID    = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
)

// maxVCPUs is what bhyve's option parser takes; vmm(4) has a limit of its own.
const maxVCPUs = 1<<16 - 1

// validate refuses what bhyve would misread, or would read as something that
// is not meant: its serial port also takes "tcp=", which lets any user of the
// host in.
func (c config) validate() error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("bhyve machine %s: %s: %w", c.Name, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	if err := vmmapi.ValidateName(c.Name); err != nil {
		return err
	}
	switch {
	case !validUUID.MatchString(c.UUID):
		return bad("uuid %q", c.UUID)
	case c.VCPUs < 1 || c.VCPUs > maxVCPUs:
		return bad("%d vCPUs", c.VCPUs)
	case c.MemoryMiB < hypervisor.MinMemoryMiB:
		return bad("%d MiB of memory", c.MemoryMiB)
	case c.Console != "" && !validConsole.MatchString(c.Console):
		return bad(`console %q: want "stdio" or an nmdm device`, c.Console)
	case len(c.NICs)+len(c.Disks)+1 > lpcSlot-firstSlot:
		return bad("%d network devices and %d disks: too many for one bus", len(c.NICs), len(c.Disks))
	}
	for _, n := range c.NICs {
		if !validTap.MatchString(n.Tap) {
			return bad("tap %q: want a name as the system gives it, tap and a number", n.Tap)
		}
		if len(n.MAC) != 6 || n.MAC[0]&1 != 0 {
			return bad("tap %s: MAC address %q: want six bytes, not a multicast address", n.Tap, n.MAC)
		}
	}
	for _, d := range c.Disks {
		if !filepath.IsAbs(d.Path) {
			return bad("disk %q: want an absolute path", d.Path)
		}
	}
	return nil
}
