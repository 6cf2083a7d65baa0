package linuxboot

import (
	"bytes"
	"fmt"
	"os/exec"
	"testing"
)

// TestOffsetsAgainstKernelHeader compares every offset and constant with the
// kernel's own definition, <asm/bootparam.h>, by having a compiler assert it.
func TestOffsetsAgainstKernelHeader(t *testing.T) {
	gcc, err := exec.LookPath("gcc")
	if err != nil {
		t.Skip("no gcc")
	}
	compile := func(src string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), gcc, "-x", "c", "-fsyntax-only", "-Wall", "-Werror", "-")
		cmd.Stdin = bytes.NewBufferString(src)
		return cmd.CombinedOutput()
	}
	const include = "#include <stddef.h>\n#include <asm/bootparam.h>\n"
	if out, err := compile(include); err != nil {
		t.Skipf("no kernel headers for x86: %s", out)
	}

	src := bytes.NewBufferString(include)
	for field, off := range map[string]int{
		"hdr": setupHeader, "hdr.setup_sects": hdrSetupSects, "hdr.syssize": hdrSyssize, "hdr.boot_flag": hdrBootFlag,
		"hdr.jump": hdrJump, "hdr.header": hdrMagic, "hdr.version": hdrVersion, "hdr.type_of_loader": hdrTypeOfLoader,
		"hdr.loadflags": hdrLoadflags, "hdr.code32_start": hdrCode32Start, "hdr.ramdisk_image": hdrRamdiskImage,
		"hdr.ramdisk_size": hdrRamdiskSize, "hdr.cmd_line_ptr": hdrCmdLinePtr, "hdr.initrd_addr_max": hdrInitrdAddrMax,
		"hdr.kernel_alignment": hdrKernelAlignment, "hdr.xloadflags": hdrXloadflags, "hdr.cmdline_size": hdrCmdlineSize,
		"hdr.pref_address": hdrPrefAddress, "hdr.init_size": hdrInitSize, "hdr.handover_offset": setupHeaderMin,
		"edd_mbr_sig_buffer": setupHeaderMax, "acpi_rsdp_addr": bpACPIRSDPAddr, "ext_ramdisk_image": bpExtRamdiskImage,
		"ext_ramdisk_size": bpExtRamdiskSize, "ext_cmd_line_ptr": bpExtCmdLinePtr, "e820_entries": bpE820Entries,
		"sentinel": bpSentinel, "e820_table": bpE820Table,
		"e820_table[1].addr": bpE820Table + e820EntrySize, "e820_table[0].size": bpE820Table + 8, "e820_table[0].type": bpE820Table + 16,
	} {
		fmt.Fprintf(src, "_Static_assert(offsetof(struct boot_params, %s) == %#x, %q);\n", field, off, field)
	}
	for expr, v := range map[string]int{
		"sizeof(struct boot_params)": bootParamsSize, "LOADED_HIGH": loadedHigh, "XLF_KERNEL_64": xlfKernel64,
	} {
		fmt.Fprintf(src, "_Static_assert(%s == %#x, %q);\n", expr, v, expr)
	}
	if out, err := compile(src.String()); err != nil {
		t.Errorf("the kernel's header disagrees: %v\n%s", err, out)
	}
}
