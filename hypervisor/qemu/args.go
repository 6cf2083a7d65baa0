//go:build linux

package qemu

import (
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/agentproto"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd/errdefs"
)

// The files that QEMU inherits: exec.Cmd numbers ExtraFiles from 3.
const (
	monitorFD = 3
	linkFD    = 4
	nicFD     = 5
)

// PCI slots of the root bus. They are fixed, so that a guest sees the same
// machine with or without the others.
const (
	linkSlot = 2 + iota
	nicSlot
	entropySlot
	// firstDiskSlot and those after it, up to the board's own at the end.
	firstDiskSlot
)

// maxCmdline is COMMAND_LINE_SIZE less its NUL, arch/x86/include/asm/setup.h.
const maxCmdline = 2047

// spec is what QEMU's arguments are made from.
type spec struct {
	hypervisor.Config
	// uuid is the machine's SMBIOS UUID. It is an argument of its own, by which
	// the process is found if nothing else is known of it.
	uuid string
	// kvm is true where guests run on the hardware.
	kvm bool
	// cid is the guest's vsock address, 0 if the link is a tap.
	cid uint32
	// drives are what Disks are in, as QEMU inherits it.
	drives []drive
	// memory is the file that the guest's memory is in, "" for none. What the
	// guest writes goes to the file if it is shared, and else is private.
	memory string
	shared bool
	// restored is true if the machine is not booted: it waits for a state.
	restored bool
	// root and qemu are what rootArgs are made from.
	root string
	qemu version
}

func (s spec) args() ([]string, error) {
	cmdline := kernelCmdline(s.Config, s.kvm)
	if len(cmdline) > maxCmdline {
		return nil, fmt.Errorf("machine %s: kernel command line of %d bytes: want at most %d: %w",
			s.ID, len(cmdline), maxCmdline, errdefs.ErrInvalidArgument)
	}
	boot := []string{"-kernel", s.Kernel, "-initrd", s.Initrd, "-append", cmdline}
	if s.restored {
		// The kernel is in the memory already. -no-reboot keeps it from being
		// wanted ever again.
		boot = []string{"-incoming", "defer"}
	}
	return slices.Concat(
		[]string{"-name", "guest=" + s.ID, "-uuid", s.uuid},
		baseArgs(),
		rootArgs(s.root, s.qemu),
		s.machineArgs(),
		s.memoryArgs(),
		boot,
		consoleArgs(),
		monitorArgs(),
		linkArgs(s.cid),
		nicArgs(s.NIC),
		entropyArgs(),
		driveArgs(s.drives),
	), nil
}

func kernelCmdline(cfg hypervisor.Config, kvm bool) string {
	return strings.Join(slices.Concat(kernelArgs(kvm), cfg.Cmdline), " ")
}

// baseArgs leave nothing to QEMU's defaults or to the user's configuration.
// The seccomp filter takes from QEMU what it does not need after its start.
func baseArgs() []string {
	return []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
	}
}

// machineArgs are the board and processors. See docs/decisions/0003-machine-type.md.
func (s spec) machineArgs() []string {
	accel := "tcg,thread=multi,tb-size=" + strconv.Itoa(translationCacheMiB)
	if s.kvm {
		accel = "kvm"
	}
	return []string{
		"-machine", board,
		"-accel", accel,
		"-cpu", cpuModel(s.kvm),
		"-smp", strconv.Itoa(s.VCPUs),
	}
}

const board = "q35,memory-backend=ram,hpet=off,i8042=off,sata=off,smbus=off,smm=off,usb=off,vmport=off"

func cpuModel(kvm bool) string {
	if kvm {
		return "host"
	}
	// "Enhanced rep movsb" is none here: byte by byte is how it is emulated, and a
	// kernel that believes in it copies a file four times as slowly.
	return "max,la57=off,erms=off"
}

func (s spec) memoryArgs() []string {
	backend := fmt.Sprintf("memory-backend-ram,id=ram,size=%dM", s.MemoryMiB)
	if s.memory != "" {
		share := map[bool]string{true: "on", false: "off"}[s.shared]
		// A comma in a value is written twice.
		backend = fmt.Sprintf("memory-backend-file,id=ram,size=%dM,share=%s,mem-path=%s",
			s.MemoryMiB, share, strings.ReplaceAll(s.memory, ",", ",,"))
	}
	return []string{"-m", strconv.Itoa(s.MemoryMiB) + "M", "-object", backend}
}

// translationCacheMiB bounds what TCG keeps of translated code: private memory
// of each process. A boot fills some 40 MiB; QEMU's default is an eighth of the
// host's memory, up to 1 GiB.
const translationCacheMiB = 128

// kernelArgs are the guest kernel's parameters (Documentation/admin-guide/
// kernel-parameters.txt). A panic ends the machine, as QEMU runs with
// -no-reboot.
func kernelArgs(kvm bool) []string {
	// The self-tests of the kernel's ciphers are a fifth of a boot in software;
	// whoever built the kernel has run them.
	args := []string{"console=ttyS0", "quiet", "panic=-1", "reboot=t", "cryptomgr.notests",
		// A machine that was parked for a while has done nothing wrong, and an idle
		// one need not wake up to prove it.
		"nowatchdog", "rcupdate.rcu_cpu_stall_suppress=1",
	}
	if !kvm {
		// Time is told by the ACPI timer, whose frequency is known. The kernel finds
		// that of the TSC by comparing it to another clock for some milliseconds;
		// with twenty machines starting on two processors one of them was seen to
		// take its TSC for one of a fifteenth of the frequency, and every timeout in
		// that guest was over in a fifteenth of its time. "unstable" keeps the
		// kernel from using it even for the part of the boot before the ACPI timer
		// is there.
		//
		// QEMU keeps translated code by its virtual address: with programs at
		// random addresses, each start of the OCI runtime is translated anew, which
		// takes ten times as long as to run it. An emulated guest is for
		// development; on hardware addresses stay random.
		//
		// A kernel with one processor overwrites the lock prefixes in its own code.
		// QEMU drops what it has translated of a page at each such write: a tenth
		// of a boot, for prefixes that cost an emulated processor nothing.
		args = append(args, "tsc=unstable", "no_timer_check", "clocksource=acpi_pm", "norandmaps", "noreplace-smp")
	}
	return args
}

// consoleArgs put the first serial port on standard output.
func consoleArgs() []string {
	return []string{"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"}
}

// monitorArgs serve QMP on a listening socket that QEMU inherits.
func monitorArgs() []string {
	return []string{
		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d,server=on,wait=off", monitorFD),
		"-mon", "chardev=monitor,mode=control",
	}
}

func linkArgs(cid uint32) []string {
	if cid != 0 {
		return []string{"-device", fmt.Sprintf("vhost-vsock-pci,addr=%d,guest-cid=%d,vhostfd=%d", linkSlot, cid, linkFD)}
	}
	return tapArgs("link", linkFD, linkSlot, agentproto.GuestLinkMAC)
}

func nicArgs(nic *hypervisor.NIC) []string {
	if nic == nil {
		return nil
	}
	return tapArgs("nic", nicFD, nicSlot, nic.MAC)
}

func tapArgs(id string, fd, slot int, mac net.HardwareAddr) []string {
	return []string{
		"-netdev", fmt.Sprintf("tap,id=%s,fd=%d", id, fd),
		// romfile: no option ROM to boot from the network.
		"-device", fmt.Sprintf("virtio-net-pci,id=%s-device,netdev=%s,addr=%d,mac=%s,romfile=", id, id, slot, mac),
	}
}

func entropyArgs() []string {
	return []string{
		"-object", "rng-builtin,id=entropy",
		"-device", fmt.Sprintf("virtio-rng-pci,rng=entropy,addr=%d", entropySlot),
	}
}
