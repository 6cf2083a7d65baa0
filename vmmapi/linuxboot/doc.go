// Package linuxboot loads a Linux kernel into a guest's memory so that its
// first virtual CPU can start in the kernel, without firmware and without a
// boot loader in the guest.
//
// It follows the 64-bit boot protocol (Documentation/arch/x86/boot.rst in the
// Linux source, cited below as boot.rst): the kernel is placed, boot_params
// (the "zero page") filled in, identity page tables and a GDT written, and the
// register state that the protocol asks for is returned as values. How memory
// is reached and how registers are set is the caller's: the package knows
// nothing of libvmmapi, and runs and is tested on every operating system.
//
// # Where things are
//
// Below 640 KiB, at fixed addresses:
//
//	0x01000  GDT
//	0x07000  boot_params
//	0x08000  stack, growing down from 0x09000
//	0x09000  page tables: PML4, PDPT, four page directories
//	0x20000  command line
//
// Above 1 MiB: the kernel where it asks to be (bzImage: pref_address, ELF: its
// program headers), the initramfs as high as the kernel allows in the memory
// below 3 GiB. 0xE0000 to 1 MiB is left untouched and reported as reserved:
// bhyve writes its MP, SMBIOS and ACPI tables there after the loader has run.
//
// # What is trusted
//
// Nothing in a kernel file. Every field is checked before it is used, and a
// field that cannot be right is a *FormatError that names it. Things that do
// not fit beside each other in the guest's memory are a *PlacementError.
package linuxboot
