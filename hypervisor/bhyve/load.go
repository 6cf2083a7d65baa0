package bhyve

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/hypervisor"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi"
	"github.com/containerd-shim-bhyve/containerd-shim-bhyve/vmmapi/linuxboot"
)

var _ linuxboot.GuestMemory = (*vmmapi.Memory)(nil)

// guest is what is loaded into a new virtual machine.
type guest struct {
	config
	// Kernel and Initrd are paths.
	Kernel, Initrd string
	Cmdline        string
	// Restore is the file to restore from, empty for a guest that is to be booted.
	Restore string

	// LinkMark is the mark of the first network device's tap, PortMark that of the
	// second's if it is the machine's own, Asked what the machine was asked for.
	// They are for who adopts the machine.
	LinkMark, PortMark string
	Asked              hypervisor.Config
}

// make makes the virtual machine: loaded, or empty for bhyve(8) to restore.
func (g guest) make(host *vmmapi.Host) error {
	if g.Restore == "" {
		return load(host, g)
	}
	vm, err := host.Create(g.Name)
	if err != nil {
		return err
	}
	vm.Close()
	return nil
}

// command is the program that runs it, with its configuration in dir, on a host
// with so many CPUs.
func (g guest) command(dir string, cpus int) (path string, argv []string, err error) {
	conf := filepath.Join(dir, configFile)
	if g.Restore == "" {
		return program, []string{"bhyve", "-k", conf, g.Name}, nil
	}
	others, err := unpinnedCPUs(cpus)
	// The name that is given last is the one that counts.
	return cpuset, []string{"cpuset", "-l", others, program, "-k", conf, "-r", g.Restore, g.Name}, err
}

// load makes the virtual machine and puts the guest into it, so that bhyve(8)
// finds it ready to run. On error there is no virtual machine.
//
// The guest's memory stays mapped in the process that calls this until that
// process ends or becomes another program: it is for a process that becomes
// bhyve(8).
func load(host *vmmapi.Host, g guest) (err error) {
	kernel, err := openSection(g.Kernel)
	if err != nil {
		return err
	}
	defer kernel.Close()
	initrd, err := openSection(g.Initrd)
	if err != nil {
		return err
	}
	defer initrd.Close()

	vm, err := host.Create(g.Name)
	if err != nil {
		return err
	}
	defer vm.Close()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("load %s: %w", g.Name, err), vm.Destroy())
		}
	}()
	memory, err := vm.SetupMemory(uint64(g.MemoryMiB)<<20, g.Wired)
	if err != nil {
		return err
	}
	// Where the ACPI root pointer will be is bhyve's to decide, and not at the
	// beginning of its tables: the kernel searches, as it does with a BIOS.
	loaded, err := linuxboot.Load(memory, linuxboot.Config{
		Kernel: kernel.SectionReader, Initrd: initrd.SectionReader, Cmdline: g.Cmdline,
	})
	if err != nil {
		return err
	}
	bsp, err := vm.VCPU(0)
	if err != nil {
		return err
	}
	return setCPU(bsp, loaded.CPU)
}

// cpu is what setCPU needs of a *vmmapi.VCPU.
type cpu interface {
	SetRegister(vmmapi.Register, uint64) error
	SetDescriptor(vmmapi.Register, vmmapi.Descriptor) error
}

// setCPU puts a vCPU into the state. EFER comes after CR0 and CR4, as libvmmapi
// itself sets them (lib/libvmmapi/amd64/vmmapi_freebsd_machdep.c): long mode is
// active only with paging on.
func setCPU(c cpu, s linuxboot.CPU) error {
	for _, seg := range []struct {
		reg vmmapi.Register
		linuxboot.Segment
	}{
		{vmmapi.CS, s.CS}, {vmmapi.DS, s.DS}, {vmmapi.ES, s.ES}, {vmmapi.SS, s.SS},
		{vmmapi.FS, s.FS}, {vmmapi.GS, s.GS}, {vmmapi.TR, s.TR}, {vmmapi.LDTR, s.LDTR},
	} {
		if err := c.SetDescriptor(seg.reg, vmmapi.Descriptor{Base: seg.Base, Limit: seg.Limit, Access: seg.Access}); err != nil {
			return err
		}
		if err := c.SetRegister(seg.reg, uint64(seg.Selector)); err != nil {
			return err
		}
	}
	for _, t := range []struct {
		reg vmmapi.Register
		linuxboot.Table
	}{{vmmapi.GDTR, s.GDTR}, {vmmapi.IDTR, s.IDTR}} {
		if err := c.SetDescriptor(t.reg, vmmapi.Descriptor{Base: t.Base, Limit: t.Limit}); err != nil {
			return err
		}
	}
	for _, r := range []struct {
		reg   vmmapi.Register
		value uint64
	}{
		{vmmapi.CR0, s.CR0}, {vmmapi.CR4, s.CR4}, {vmmapi.EFER, s.EFER}, {vmmapi.CR3, s.CR3},
		{vmmapi.RFLAGS, s.RFLAGS}, {vmmapi.RSP, s.RSP}, {vmmapi.RSI, s.RSI}, {vmmapi.RIP, s.RIP},
	} {
		if err := c.SetRegister(r.reg, r.value); err != nil {
			return err
		}
	}
	return nil
}

// section is a whole file, to be read from and closed.
type section struct {
	*io.SectionReader
	io.Closer
}

func openSection(path string) (*section, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &section{io.NewSectionReader(f, 0, info.Size()), f}, nil
}
