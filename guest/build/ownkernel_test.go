package build

import (
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

func TestReadKernel(t *testing.T) {
	entry := note("Xen", 18, make([]byte, 8))
	said := note("GNU", 3, []byte("Linux version 6.1.176 (build@build) #1\n\x00"))
	write := func(data []byte) string {
		path := filepath.Join(t.TempDir(), "vmlinux")
		write(t, path, string(data))
		return path
	}
	k, err := readKernel(write(makeELF(t, elf.PT_NOTE, append(bytes.Clone(entry), said...))))
	if err != nil || k.release != "6.1.176" {
		t.Errorf("got %+v, %v", k, err)
	}
	for name, data := range map[string][]byte{
		"no program":   []byte("bzImage"),
		"no PVH entry": makeELF(t, elf.PT_NOTE, said),
		"no banner":    makeELF(t, elf.PT_NOTE, entry),
	} {
		if _, err := readKernel(write(data)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: got %v, want an invalid argument", name, err)
		}
	}
	if _, err := readKernel(filepath.Join(t.TempDir(), "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// TestImageWithOwnKernel builds an image around a kernel that is not the lock
// file's: it has that kernel, and no modules.
func TestImageWithOwnKernel(t *testing.T) {
	o := buildOptions(t)
	kernel := makeELF(t, elf.PT_NOTE, append(note("Xen", 18, make([]byte, 8)), note("GNU", 3, []byte("Linux version 9.9 (x)\x00"))...))
	o.Kernel = filepath.Join(t.TempDir(), "vmlinux")
	write(t, o.Kernel, string(kernel))
	img, err := Image(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if img.Manifest.KernelRelease != "9.9" || img.Manifest.Inputs.Kernel != digest(kernel) {
		t.Errorf("the manifest says %+v", img.Manifest)
	}
	if got, err := os.ReadFile(img.Kernel); err != nil || !bytes.Equal(got, kernel) {
		t.Errorf("another kernel is in the image (%v)", err)
	}
	initrd, err := os.ReadFile(img.Initrd)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(initrd, []byte(moduleList)) || !bytes.Contains(initrd, []byte(program.to)) {
		t.Errorf("want %s and no %s in the initramfs", program.to, moduleList)
	}
}
