package linuxboot

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// These tests boot a real kernel from what Load has written. There is no
// bhyve here, so QEMU's emulation runs the guest, and is kept from helping:
// its memory is a file that Load filled, and its firmware is the stub of
// stub_test.go, which does nothing but put a real-mode processor into the
// state that Load returned. The page tables, the GDT, boot_params, the memory
// map and the placements are all the loader's.
//
// BHYVE_GUEST_DIR has the kernel to boot, as vmlinux or vmlinuz or both, and the
// guest image, initrd.img. BHYVE_BZIMAGE may name a vmlinuz elsewhere, as it does in
// `make machines`.

// bootDeadline is generous: emulation on a busy machine.
const bootDeadline = 5 * time.Minute

func TestBootsInQEMU(t *testing.T) {
	qemu, guest := qemuAndGuest(t)
	for format, kernel := range kernels(t, guest) {
		for _, mib := range []uint64{128, 1024, 4608} {
			for _, vcpus := range []int{1, 2} {
				if vcpus == 2 && mib != 1024 || testing.Short() && mib != 128 {
					continue
				}
				// It takes a while to unpack itself, after which it is the same kernel:
				// the least room that it may have for that, and the most.
				if format == BzImage && mib == 1024 {
					continue
				}
				t.Run(fmt.Sprintf("%s/%dMiB/%dvCPU", format, mib, vcpus), func(t *testing.T) {
					console := boot(t, qemu, bootConfig{
						kernel: kernel, format: format, memory: mib << 20, vcpus: vcpus,
						initrd:  testInitramfs("init ran from the initramfs\n"),
						cmdline: "console=ttyS0 panic=-1 reboot=t no_timer_check token=3f9c",
					})
					expect(t, console,
						"Linux version ",
						"Command line: console=ttyS0 panic=-1 reboot=t no_timer_check token=3f9c",
						"init ran from the initramfs")
					expectMemoryMap(t, console, mib<<20)
					if vcpus == 2 {
						// Found in the table where bhyve writes it.
						expect(t, console, "Brought up 1 node, 2 CPUs")
					}
				})
			}
		}
	}
}

// TestBootsGuestImage boots the project's own initramfs, whose size and
// compression are what the loader has to carry in use.
func TestBootsGuestImage(t *testing.T) {
	qemu, guest := qemuAndGuest(t)
	initrd, err := os.ReadFile(filepath.Join(guest, "initrd.img"))
	if err != nil {
		t.Skipf("no guest image: %v", err)
	}
	console := boot(t, qemu, bootConfig{
		kernel: kernels(t, guest)[ELF], format: ELF, memory: 512 << 20, vcpus: 1, initrd: initrd,
		cmdline: "console=ttyS0 panic=-1 reboot=t no_timer_check",
		until:   "as init process",
	})
	expect(t, console, "Run /init as init process")
}

func qemuAndGuest(t *testing.T) (qemu, guest string) {
	t.Helper()
	guest = os.Getenv("BHYVE_GUEST_DIR")
	if guest == "" {
		t.Skip("BHYVE_GUEST_DIR does not name a directory with a kernel and initrd.img")
	}
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("no qemu-system-x86_64")
	}
	return qemu, guest
}

// kernels are the files to boot, by format. A vmlinux that is missing is taken
// out of the vmlinuz.
func kernels(t *testing.T, guest string) map[Format]string {
	t.Helper()
	found := map[Format]string{}
	for _, c := range []struct {
		format Format
		path   string
	}{
		{ELF, filepath.Join(guest, "vmlinux")},
		{BzImage, filepath.Join(guest, "vmlinuz")},
		{BzImage, os.Getenv("BHYVE_BZIMAGE")},
	} {
		if _, err := os.Stat(c.path); err == nil {
			found[c.format] = c.path
		}
	}
	if _, ok := found[ELF]; !ok && found[BzImage] != "" {
		found[ELF] = extractVmlinux(t, found[BzImage])
	}
	if len(found) == 0 {
		t.Fatalf("no kernel in %s", guest)
	}
	return found
}

type bootConfig struct {
	kernel  string
	format  Format
	memory  uint64
	vcpus   int
	initrd  []byte
	cmdline string
	// until ends the guest once it is on the console; without it the guest has
	// to end itself.
	until string
}

// boot loads a guest, runs it to its end, and returns its console.
func boot(t *testing.T, qemu string, cfg bootConfig) string {
	t.Helper()
	dir := t.TempDir()
	ram := filepath.Join(dir, "ram")
	mem, err := createMemoryFile(ram, cfg.memory)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	kernel, err := os.Open(cfg.kernel)
	if err != nil {
		t.Fatal(err)
	}
	defer kernel.Close()
	info, err := kernel.Stat()
	if err != nil {
		t.Fatal(err)
	}

	began := time.Now()
	loaded, err := Load(mem, Config{
		Kernel: io.NewSectionReader(kernel, 0, info.Size()),
		Initrd: section(cfg.initrd), Cmdline: cfg.cmdline,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("loaded in %v: %v", time.Since(began).Round(time.Millisecond), loaded.Regions)
	if loaded.Format != cfg.format {
		t.Fatalf("loaded as %s", loaded.Format)
	}
	rom := filepath.Join(dir, "rom")
	if err := os.WriteFile(rom, stubROM(loaded.CPU, cfg.vcpus), 0o600); err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), bootDeadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu,
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-accel", "tcg",
		"-machine", "pc,memory-backend=ram,max-ram-below-4g=3G", "-smp", fmt.Sprint(cfg.vcpus),
		"-m", fmt.Sprintf("%dM", cfg.memory>>20),
		"-object", fmt.Sprintf("memory-backend-file,id=ram,size=%d,mem-path=%s,share=on", cfg.memory, ram),
		"-bios", rom, "-serial", "stdio")
	cmd.WaitDelay = time.Second
	console := &consoleWatch{until: cfg.until, found: cancel}
	cmd.Stdout = console
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	if err != nil && !console.seen {
		t.Fatalf("%v: %s\nconsole:\n%s", err, stderr.String(), console.String())
	}
	return console.String()
}

// consoleWatch keeps the console, and calls found once until is on it.
type consoleWatch struct {
	bytes.Buffer
	until string
	found func()
	seen  bool
}

func (c *consoleWatch) Write(p []byte) (int, error) {
	n, err := c.Buffer.Write(p)
	if c.until != "" && !c.seen && strings.Contains(c.String(), c.until) {
		c.seen = true
		c.found()
	}
	return n, err
}

func expect(t *testing.T, console string, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if !strings.Contains(console, l) {
			t.Errorf("%q is not on the console:\n%s", l, console)
			return
		}
	}
}

// expectMemoryMap asserts that the kernel was told what is memory and what is
// not.
func expectMemoryMap(t *testing.T, console string, size uint64) {
	t.Helper()
	low, high := Split(size)
	lines := []string{
		"[mem 0x0000000000000000-0x000000000009fbff] usable",
		"[mem 0x000000000009fc00-0x000000000009ffff] reserved",
		"[mem 0x00000000000e0000-0x00000000000fffff] reserved",
		fmt.Sprintf("[mem 0x0000000000100000-0x%016x] usable", low-1),
		"[mem 0x00000000e0000000-0x00000000efffffff] reserved",
	}
	if high > 0 {
		lines = append(lines, fmt.Sprintf("[mem 0x0000000100000000-0x%016x] usable", 4<<30+high-1))
	}
	for _, l := range lines {
		expect(t, console, "BIOS-e820: "+l)
	}
	if got := strings.Count(console, "BIOS-e820: "); got != len(lines) {
		t.Errorf("%d entries in the memory map, want %d", got, len(lines))
	}
}

// memoryFile is guest memory in a file, low memory first, as QEMU divides it.
type memoryFile struct {
	*os.File
	low, high uint64
}

func createMemoryFile(path string, size uint64) (*memoryFile, error) {
	f, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	low, high := Split(size)
	return &memoryFile{f, low, high}, f.Truncate(int64(size))
}

func (m *memoryFile) LowSize() uint64  { return m.low }
func (m *memoryFile) HighSize() uint64 { return m.high }

func (m *memoryFile) WriteAt(p []byte, gpa int64) (int, error) {
	if end := uint64(gpa) + uint64(len(p)); end > m.low {
		return 0, fmt.Errorf("write of %d bytes at %#x is outside of low memory", len(p), gpa)
	}
	return m.File.WriteAt(p, gpa)
}

// extractVmlinux takes the ELF kernel out of a bzImage (boot.rst,
// payload_offset and payload_length).
func extractVmlinux(t *testing.T, bzImage string) string {
	t.Helper()
	const payloadOffset, payloadLength = 0x248, 0x24c
	p, err := os.ReadFile(bzImage)
	if err != nil {
		t.Fatal(err)
	}
	code := (int(p[hdrSetupSects]) + 1) * sectorSize
	payload := p[code+int(le.Uint32(p[payloadOffset:])):][:le.Uint32(p[payloadLength:])]
	// The kernel's build appends the uncompressed size to the stream.
	payload = payload[:len(payload)-4]
	var tool []string
	for magic, cmd := range map[string][]string{
		"\xfd7zXZ\x00": {"xz", "-dc"}, "\x1f\x8b": {"gzip", "-dc"}, "\x28\xb5\x2f\xfd": {"zstd", "-dc"}, "\x02\x21\x4c\x18": {"lz4", "-dc"},
	} {
		if bytes.HasPrefix(payload, []byte(magic)) {
			tool = cmd
		}
	}
	if tool == nil {
		t.Fatalf("kernel payload begins with % x: no known compression", payload[:8])
	}
	out := filepath.Join(t.TempDir(), "vmlinux")
	f, err := os.Create(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(t.Context(), tool[0], tool[1:]...)
	cmd.Stdin, cmd.Stdout = bytes.NewReader(payload), f
	if err := cmd.Run(); err != nil {
		t.Skipf("cannot decompress the kernel with %s: %v", tool[0], err)
	}
	return out
}
